"""Where and with what something was measured; what a figure is worth without it is nothing."""

import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from serving.process import sessions_compete

PACKAGES: Final = ("numpy", "onnxruntime", "orjson", "ray", "uvicorn", "uvloop", "httptools")
ROOT: Final = Path(__file__).resolve().parents[1]


def describe(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Time, commit, machine, load average and versions, fit for JSON; nothing that names the machine or its user."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "processor": _field(Path("/proc/cpuinfo"), "model name"),
            "cores": os.cpu_count(),
            "memory": _field(Path("/proc/meminfo"), "MemTotal"),
            "kernel": platform.release(),
            "autogroup": sessions_compete(),
            "load_average": [round(load, 2) for load in os.getloadavg()],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "wrk": _first_line("wrk", "--version").partition(" [")[0],
        },
    }


def commit() -> str:
    """The commit that was measured; ``+changes`` where the tree is not that of the commit."""
    commit = _first_line("git", "rev-parse", "HEAD")
    changed = _first_line("git", "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if changed else commit


def _first_line(*command: str) -> str:
    """The first line that a command writes; "" where there is no such command."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    except OSError:
        return ""
    return next(iter(ended.stdout.splitlines()), "")


def _field(path: Path, name: str) -> str:
    """The value of ``name: value`` in one of the kernel's files."""
    try:
        lines = path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
