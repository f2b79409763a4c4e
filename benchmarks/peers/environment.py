"""A peer's packages in a virtual environment of their own, made once."""

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.peers.contract import Peer
from benchmarks.report import say


def python_of(peer: Peer, cache: Path) -> Path:
    """The interpreter of the peer's environment below ``cache``; made first if its pins are not those asked for.

    Raises:
        BenchmarkError: pip cannot install it.
    """
    pins = hashlib.sha256("\n".join((sys.version, *peer.requirements)).encode()).hexdigest()[:12]
    folder = cache / f"{peer.name}-{pins}"
    python, done = folder / "bin" / "python", folder / ".complete"
    if not done.exists():
        say(f"installing {', '.join(peer.requirements)} into {folder}")
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.requirements])
        done.touch()
    return python


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BenchmarkError(f"{' '.join(command[:4])}: {last[0]}")
