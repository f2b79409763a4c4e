"""A peer's packages in a virtual environment of their own, made once."""

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.peers.contract import Peer
from benchmarks.report import say


def installed(peer: Peer, cache: Path) -> Path | None:
    """The interpreter of the peer's environment below ``cache``, if it is there with the pins that are asked for."""
    done = _folder(peer, cache) / ".complete"
    return _python(peer, cache) if done.exists() and done.read_text(encoding="utf-8") == _pins(peer) else None


def python_of(peer: Peer, cache: Path) -> Path:
    """The interpreter of the peer's environment below ``cache``; made first where it is not ``installed``.

    Raises:
        BenchmarkError: pip cannot install it.
    """
    python = installed(peer, cache)
    if python is not None:
        return python
    folder, python = _folder(peer, cache), _python(peer, cache)
    say(f"installing {peer.title} into {folder}")
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    # Everything that is needed is listed. nvidia-pytriton, above all, depends on much that its server never loads.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    _run([*pip, "--requirement", str(peer.folder / "requirements.txt")])
    (folder / ".complete").write_text(_pins(peer), encoding="utf-8")
    return python


def _folder(peer: Peer, cache: Path) -> Path:
    return cache / peer.name


def _python(peer: Peer, cache: Path) -> Path:
    return _folder(peer, cache) / "bin" / "python"


def _pins(peer: Peer) -> str:
    return hashlib.sha256("\n".join((sys.version, *peer.requirements)).encode()).hexdigest()


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        last = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BenchmarkError(f"{' '.join(command[:4])}: {last[0]}")
