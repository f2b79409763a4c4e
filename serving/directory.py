"""Where the live model replicas are: one small file each, in a folder that every process of the service knows.

A replica announces itself when its model is loaded and again whenever its file has gone; a router withdraws the file
of a replica whose connection broke. So the folder heals by itself, and needs neither the control process nor Ray.
"""

import os
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, Self

import orjson

from rollout.traffic import Priority


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """A live replica: which version it runs, how it is scheduled, and where it listens."""

    id: str
    model: str
    version: int
    priority: Priority
    address: str
    pid: int
    spec: dict[str, Any]

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """The inverse of what ``Directory.announce`` writes."""
        value = orjson.loads(raw)
        return cls(**{**value, "priority": Priority(value["priority"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process that requests pass through: a router, its shadow process, or a version's replica at a priority."""

    role: Literal["router", "shadow", "replica"]
    pid: int
    model: str | None = None
    version: int | None = None
    priority: str | None = None

    @property
    def name(self) -> str:
        """``router-7`` or ``digits-1-normal-8``; the last number is the pid."""
        parts = [self.role] if self.model is None else [self.model, self.version, self.priority]
        return "-".join(map(str, [*parts, self.pid]))


class Directory:
    """The folder of announcements."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known: dict[str, Replica] = {}

    def socket_address(self, replica_id: str) -> str:
        """The path of a new replica's socket; short, as a socket's path may have 107 bytes at most."""
        name = blake2b(replica_id.encode(), digest_size=6).hexdigest()
        return f"{self.folder}/{name}.sock"

    def announce(self, replica: Replica) -> None:
        """Make a replica known; again and again does no harm."""
        path = self._path(replica.id)
        if not path.exists():
            fresh = path.with_suffix(".new")
            fresh.write_bytes(orjson.dumps(asdict(replica)))
            fresh.replace(path)

    def withdraw(self, replica_id: str) -> None:
        """Forget a replica."""
        self._path(replica_id).unlink(missing_ok=True)

    def replicas(self) -> dict[str, Replica]:
        """All announced replicas by id; files already known are not read again."""
        files = os.listdir(self.folder)  # noqa: PTH208 - called ten times a second: names are enough
        names = [name.removesuffix(".json") for name in files if name.endswith(".json")]
        known = {}
        for name in names:
            replica = self._known.get(name)
            if replica is None:
                try:
                    replica = Replica.from_bytes(self._path(name).read_bytes())
                except FileNotFoundError:
                    continue
            known[name] = replica
        self._known = known
        return known

    def _path(self, replica_id: str) -> Path:
        return self.folder / f"{replica_id}.json"
