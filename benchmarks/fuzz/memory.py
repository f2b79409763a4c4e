"""The resident memory of the processes behind a door: the router that listens, and the replicas beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.errors import BenchmarkError

_PROC: Final = Path("/proc")
_LISTEN: Final = "0A"
_MB: Final = 1024.0  # kB


def processes_of(port: int) -> dict[str, int]:
    """The ids of the process that listens on ``port`` and of its replicas, by name.

    Raises:
        BenchmarkError: nobody listens, or nobody who may be looked at.
    """
    sockets = _listening(port)
    router = next((pid for pid in _pids() if sockets & _sockets(pid)), None)
    if router is None:
        raise BenchmarkError(f"no process of this user listens on port {port}")
    above = (_parent(router), _parent(_parent(router)))  # the router may be its host's child
    siblings = [pid for pid in _pids() if _parent(pid) in above and ":model:" in _title(pid)]
    return {"router": router} | {f"replica {number + 1}": pid for number, pid in enumerate(siblings)}


class Memory:
    """Compares the processes' memory from ``begin`` on."""

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._processes = processes
        self._before: dict[str, float] = {}

    @property
    def begun(self) -> bool:
        """Whether there is something to compare with."""
        return bool(self._before)

    def begin(self) -> None:
        """Take what they hold now as what they may hold."""
        self._before = self._resident()

    def now(self) -> str:
        """What they hold, for people."""
        return ", ".join(f"{name} {held:.1f} MB" for name, held in self._resident().items())

    def end(self) -> dict[str, dict[str, float]]:
        """What they held and hold, in MB."""
        after = self._resident()
        return {
            name: {"before_mb": before, "after_mb": after[name], "growth_mb": after[name] - before}
            for name, before in self._before.items()
        }

    def _resident(self) -> dict[str, float]:
        return {name: resident_mb(pid) for name, pid in self._processes.items()}


def resident_mb(pid: int) -> float:
    """The resident memory of a process.

    Raises:
        BenchmarkError: it is gone.
    """
    try:
        lines = (_PROC / str(pid) / "status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / _MB
    except (OSError, StopIteration):
        raise BenchmarkError(f"process {pid} has ended") from None


def _pids() -> list[int]:
    return [int(each.name) for each in _PROC.iterdir() if each.name.isdigit()]


def _listening(port: int) -> set[str]:
    """The sockets that listen on a port, as /proc names them."""
    lines = (_PROC / "net" / "tcp").read_text(encoding="ascii").splitlines()[1:]
    fields = (line.split() for line in lines)
    return {f"socket:[{each[9]}]" for each in fields if each[3] == _LISTEN and int(each[1].split(":")[1], 16) == port}


def _sockets(pid: int) -> set[str]:
    found = set()
    try:
        for descriptor in (_PROC / str(pid) / "fd").iterdir():
            found.add(str(descriptor.readlink()))
    except OSError:  # it has ended, or is another user's
        pass
    return found


def _parent(pid: int) -> int:
    try:
        return int(
            (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
        )
    except OSError:
        return -1


def _title(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
