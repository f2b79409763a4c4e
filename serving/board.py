"""What the routers of a machine tell each other: one small file each, in a folder that every process of the run knows.

They share their ports, so a scrape or a question about statistics reaches any one of them: it answers for all. The
autoscaler reads the same files; it needs neither the control process nor a router's attention.
"""

import contextlib
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from prometheus_client.metrics_core import Metric

_log = logging.getLogger("understudy.router")
POST_EVERY_S: Final = 0.5
FRESH_S: Final = 3.0  # a router that posted nothing for so long is dead or stopped
_REMOVE_S: Final = 30.0

# Name, documentation, type, and samples: name, labels, value.
Family = tuple[str, str, str, Sequence[tuple[str, Mapping[str, str], float]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One router's figures: its metrics, the protocol's statistics by version, and its clients' demand.

    ``demand`` is by ``demand_key``: the items that wait or run, averaged over the last seconds.
    """

    router: str
    families: Sequence[Family] = ()
    statistics: Sequence[Mapping[str, Any]] = ()
    demand: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Read:
    """A notice and the file that it was read from: its time of change and its inode."""

    file: tuple[int, int]
    notice: Notice


class Board:
    """The folder of notices; may be used from several threads. ``clock`` is Unix time, as that of files is."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._clock = folder, clock
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._known: dict[str, _Read] = {}
        self._serial = itertools.count()

    def post(self, notice: Notice) -> None:
        """Replace a router's notice; readers see the old one or the new one whole."""
        fresh = self.folder / f"{notice.router}.{next(self._serial)}.new"
        fresh.write_bytes(orjson.dumps(asdict(notice)))
        fresh.replace(self._path(notice.router))

    def withdraw(self, router: str) -> None:
        """Take a router's notice away."""
        self._path(router).unlink(missing_ok=True)

    def notices(self) -> list[Notice]:
        """The notices of all routers that live, in the order of their ids; files already known are not read again."""
        known = {}
        for name in sorted(os.listdir(self.folder)):  # noqa: PTH208 - ten times a second: names are enough
            if name.endswith(".json"):
                try:
                    read = self._read(name)
                except FileNotFoundError:  # withdrawn meanwhile
                    continue
                if read is not None:
                    known[name] = read
        self._known = known
        return [read.notice for read in known.values()]

    def _read(self, name: str) -> _Read | None:
        """A notice as it stands; None of a router that is gone, whose file goes too in the end."""
        path = self.folder / name
        status = path.stat()
        age_s = self._clock() - status.st_mtime
        if age_s > _REMOVE_S:
            path.unlink()
        if age_s > FRESH_S:
            return None
        file = (status.st_mtime_ns, status.st_ino)
        before = self._known.get(name)
        if before is not None and before.file == file:
            return before
        return _Read(file, Notice(**orjson.loads(path.read_bytes())))

    def _path(self, router: str) -> Path:
        return self.folder / f"{router}.json"


class Seat:
    """One router at the board. ``own`` gives its figures, from any thread; from ``start`` on they are posted.

    A router that is not one of ``several`` needs no board to know all figures; the autoscaler may need it.
    """

    def __init__(self, board: Board, router: str, own: Callable[[], Notice], *, several: bool) -> None:
        self._board, self._router, self._own, self._several = board, router, own, several
        self._posting = threading.Lock()
        self._stopping = threading.Event()
        self._poster = threading.Thread(target=self._keep_posting, name="board", daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._poster.start()

    def stop(self) -> None:
        """End that, and take the notice away."""
        self._stopping.set()

    def notices(self) -> list[Notice]:
        """What every router tells. This one posts first: whoever is asked next must not know less than was said."""
        if not self._several:
            return [self._own()]
        own = self._post()
        return [own, *(each for each in self._board.notices() if each.router != self._router)]

    def others(self) -> list[Mapping[str, Any]]:
        """The statistics of the other routers, of any version."""
        notices = self.notices() if self._several else []
        return [entry for notice in notices if notice.router != self._router for entry in notice.statistics]

    def _post(self) -> Notice:
        with self._posting:  # so that an older notice never replaces a newer one
            own = self._own()
            try:
                self._board.post(own)
            except OSError as error:
                _log.warning("the board cannot be written to: %s", error.strerror)
            return own

    def _keep_posting(self) -> None:
        while not self._stopping.wait(POST_EVERY_S):
            self._post()
        with contextlib.suppress(OSError):
            self._board.withdraw(self._router)


def demand_key(model: str, version: int) -> str:
    """What a version's demand is filed under."""
    return f"{model}:{version}"


def families_of(metrics: Iterable[Metric]) -> list[Family]:
    """Collected metrics as plain values."""
    return [
        (
            each.name,
            each.documentation,
            each.type,
            [(sample.name, sample.labels, sample.value) for sample in each.samples],
        )
        for each in metrics
    ]
