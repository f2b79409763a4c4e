"""What the processes of a service hold: memory of their own, threads, open files. And what it has on disk."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PROC: Final = Path("/proc")
_REPLICA: Final = re.compile(r"ray::ServeReplica:(model:[^:]+:\d+:\w+|[^:]+)")
_NOT_SERVED: Final = "multiprocessing"  # the load's process and its helper
_OURS: Final = (("serving.router_process", "router"), ("serving.cli", "launcher"))
_HOSTS: Final = {"router": "router's host"}
_MB: Final = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one process holds.

    Attributes:
        role: what it does in the service; that of Ray's own begins with "ray".
        own_mb: anonymous memory: heaps and stacks, without what is shared and without files. A leak is in here.
        pss_mb: its proportional share of everything it has mapped but shared memory.
        shared_mb: its proportional share of shared memory, which is the arena of bodies.
    """

    role: str
    pid: int
    own_mb: float
    pss_mb: float
    shared_mb: float
    threads: int
    files: int

    @property
    def ours(self) -> bool:
        """Whether it runs code of Understudy."""
        return not self.role.startswith("ray")


def held_below(root: int) -> list[Held]:
    """What each process below another holds, but for those that make the load."""
    found = []
    names: Counter[str] = Counter()
    for pid in sorted(_below(root)):
        command = _command(pid)
        if not command or _NOT_SERVED in command:
            continue
        role = _role(command)
        names[role] += 1
        held = _held(pid, role if names[role] == 1 else f"{role} {names[role]}")
        found += [held] if held is not None else []
    return found


def disk(folder: Path) -> dict[str, int]:
    """Bytes below a folder by the ending of their files, and the number of ``files``."""
    sizes: Counter[str] = Counter()
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                size = (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
            sizes[Path(name).suffix or "other"] += size
            sizes["files"] += 1
    return dict(sizes)


def _role(command: str) -> str:
    if (replica := _REPLICA.search(command)) is not None:
        return _HOSTS.get(replica[1], replica[1])
    for mark, role in _OURS:
        if mark in command:
            return role
    words = command.split()
    python = Path(words[0]).name.startswith("python")
    program = next((word for word in words if python and word.endswith(".py")), words[0])
    name = Path(program).name.removesuffix(".py").removeprefix("ray::")
    return f"ray {name}"


def _held(pid: int, role: str) -> Held | None:
    """None where it has ended meanwhile."""
    try:
        memory = _fields(_PROC / str(pid) / "smaps_rollup")
        threads = _fields(_PROC / str(pid) / "status")["Threads"]
        files = sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    except (OSError, KeyError):
        return None
    shared = memory["Pss_Shmem"]
    return Held(
        role=role,
        pid=pid,
        own_mb=memory["Anonymous"] * 1024 / _MB,
        pss_mb=(memory["Pss"] - shared) * 1024 / _MB,
        shared_mb=shared * 1024 / _MB,
        threads=threads,
        files=files,
    )


def _fields(path: Path) -> dict[str, int]:
    """The whole numbers of ``name: number`` lines."""
    pairs = (line.split()[:2] for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {pair[0].removesuffix(":"): int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _below(root: int) -> set[int]:
    """All descendants that run."""
    children: dict[int, list[int]] = {}
    for each in _PROC.iterdir():
        if each.name.isdigit():
            children.setdefault(_parent(int(each.name)), []).append(int(each.name))
    found: set[int] = set()
    left = [root]
    while left:
        mine = children.get(left.pop(), [])
        found.update(mine)
        left += mine
    return found


def _parent(pid: int) -> int:
    try:
        stat = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[1])


def _command(pid: int) -> str:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
