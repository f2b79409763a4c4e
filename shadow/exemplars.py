"""Exemplars: requests that are kept with their inputs, to be looked at and run again: the worst ones, and a sample.

Inputs are what clients sent, people's pictures perhaps. Nothing is kept unless it is asked for; folder and files are
their owner's alone from the moment they exist; how many, how large and how old they get is bounded.

``folder`` is everywhere the folder of a rollout's exemplars, ``<reports>/<deployment_id>/exemplars``. It is the state:
whoever keeps an exemplar looks at what lies there. So the bounds hold for all routers of a rollout together, and
however often one of them begins anew; routers that write in the same moment may exceed them by one exemplar each, until
the next is kept.

An exemplar is one file, ``<kind>-<rank>-<at_unix_us>-<sha256 of its inputs, 16 digits>.parquet``: rank and age are told
of a file that cannot be read, too. It is Parquet with a row for each tensor, the wire bytes as they are: whatever reads
the evidence reads it, and reading it runs nothing. The metadata of its schema hold all else as JSON, and the sha256 of
that JSON and of every tensor.

What could not be kept is counted beside them, ``.lost-<chain>.json`` for each of those who keep: no exemplar is missed
silently.
"""

import logging
import os
import re
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from hashlib import blake2b, sha256
from math import inf, isfinite
from pathlib import Path
from typing import Any, Final

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from models.signature import BYTES_KINDS
from models.tensor import NUMPY_DTYPES, Array, Buffer, Tensor, from_numpy
from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import canonical
from shadow.pair import Answer, Arm, Status
from shadow.rows import ERROR_CHARACTERS
from shadow.store import sync_folder

_log: Final = logging.getLogger(__name__)
FOLDER: Final = "exemplars"
FORMAT: Final = 1
MOST: Final = 2048  # of a kind: the folder is looked through whenever one is kept
_SPAN: Final = 1 << 64  # of draws
_STALE_S: Final = 60.0  # nobody takes so long to write one file
_RETRY_S: Final = 10.0
_INPUT: Final = "input"
_HEADER_KEY: Final = b"understudy.exemplar"
_DIGEST_KEY: Final = b"understudy.sha256"
_NAME: Final = r"(?P<kind>worst|sample)-(?P<rank>[0-9a-f]{16})-(?P<at>[0-9]{1,20})-(?P<inputs>[0-9a-f]{16})\.parquet"
_FILE: Final = re.compile(_NAME)
_TEMPORARY: Final = re.compile(rf"\.{_NAME}\.tmp")
_THRESHOLD: Final = re.compile(r"\.below-(?P<rank>[0-9a-f]{16})")
_LOST: Final = re.compile(r"\.lost-.+\.json")
_DATATYPES: Final = {dtype: name for name, dtype in NUMPY_DTYPES.items()}

_SCHEMA: Final = pa.schema(
    [
        pa.field("part", pa.string(), nullable=False),  # "input", "baseline" or "candidate"
        pa.field("name", pa.string(), nullable=False),
        pa.field("datatype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),  # wire bytes
    ]
)


class ExemplarKind(StrEnum):
    """Why a request was kept."""

    WORST = "worst"  # one of the largest disagreements
    SAMPLE = "sample"  # drawn by its id, whatever was answered


@dataclass(frozen=True, slots=True, kw_only=True)
class ExemplarSettings:
    """How much is kept of a rollout; nothing, unless ``worst`` or ``sample`` is set.

    ``worst`` is how many of the largest disagreements are kept, ``sample`` the share of the compared requests that is
    kept whatever they were answered; 2,048 of each at most. ``max_bytes`` bounds all of it; where both are kept, each
    has one half. What is older than ``max_age_s`` is deleted; None is never.

    Raises:
        ShadowError: a field is wrong; named as in the configuration, ``mirror.exemplars.<field>``.
    """

    worst: int = 0
    sample: float = 0.0
    max_bytes: int = 256 << 20
    max_age_s: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.worst <= MOST:
            raise ShadowError(f"mirror.exemplars.worst: expected a number from 0 to {MOST}, got {self.worst!r}")
        if not 0 <= self.sample <= 1:
            raise ShadowError(f"mirror.exemplars.sample: expected a fraction from 0 to 1, got {self.sample!r}")
        if self.max_bytes < 1:
            raise ShadowError(f"mirror.exemplars.max_bytes: expected at least 1 byte, got {self.max_bytes!r}")
        if self.max_age_s is not None and not (self.max_age_s > 0 and isfinite(self.max_age_s)):
            raise ShadowError(f"mirror.exemplars.max_age_s: expected seconds, above 0, got {self.max_age_s!r}")

    @property
    def on(self) -> bool:
        """Whether anything is kept at all."""
        return self.worst > 0 or self.sample > 0

    @property
    def bytes_each(self) -> int:
        """What the exemplars of one kind may take together."""
        return self.max_bytes // 2 if self.worst > 0 and self.sample > 0 else self.max_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemplar:
    """One request with its inputs, and what both sides made of it.

    ``rows`` are its batch rows, 1 for a model without a batch dimension; ``max_delta`` is the largest |Δscore| of its
    items, ``DELTA_CAP`` where one side failed; ``findings`` a mask of ``shadow.findings``. An answer that is OK has all
    its outputs. Whoever keeps it sets ``kind``.
    """

    request_id: str
    deployment_id: str
    chain: str
    model: str
    baseline_version: int
    candidate_version: int
    stage: int
    at_unix_us: int
    rows: int
    slice: str = ""
    kind: ExemplarKind = ExemplarKind.WORST
    max_delta: float
    findings: int = 0
    inputs: tuple[Tensor, ...]
    baseline: Answer
    candidate: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What lies in a folder, and what is missing there.

    ``dropped`` are requests that were wanted and for which there was no time, ``errors`` batches that could not be
    looked at and attempts to write or to delete that failed, as far as they could be written down.
    """

    worst: int = 0
    sample: int = 0
    nbytes: int = 0
    dropped: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True)
class _Held:
    """A file of the folder, by its name and size."""

    path: Path
    kind: ExemplarKind
    rank: int  # of the worst: the bits of |Δscore|, which order as it does; of the sample: what was drawn
    at_unix_us: int
    inputs: str  # the beginning of their sha256
    nbytes: int


class Exemplars:
    """Keeps the exemplars of one router of a rollout, whose ``salt`` it is given; all routers share the folder.

    Of the worst, those with the largest |Δscore| remain, of equal ones the earlier; the same inputs are kept once. The
    sample is drawn by a salted hash of the request's id: those whose draw is below ``sample`` qualify, and of these the
    lowest draws remain, as many as there is room for. That is uniform over all ids that qualified, on whichever router
    and in whatever order: what is kept is what lies below a threshold that only ever falls. (It stands in the folder as
    the name of an empty file. Room that was made by age is not filled again: all have the same chance.)

    Nothing here raises: a fault is counted in ``errors``, and ``fault`` says which it was until an attempt goes well;
    for ten seconds after one, nothing is wanted. ``wants`` may be called from any thread, all else from one. ``clock``
    tells seconds since 1970.
    """

    def __init__(
        self, folder: Path, settings: ExemplarSettings, salt: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._folder, self._settings, self._clock = folder, settings, clock
        self._key = blake2b(f"exemplars {salt}".encode(), digest_size=16).digest()
        self._below = round(settings.sample * _SPAN)  # a draw must be lower
        self._over = 0.0 if settings.worst else inf  # a disagreement must be larger
        self._errors, self._fault, self._again_s = 0, "", 0.0
        self._lost = (0, 0)  # as it was last written down
        if settings.on:
            self._guarded(self._tidy)

    @property
    def errors(self) -> int:
        """Attempts to keep or to forget that failed."""
        return self._errors

    @property
    def fault(self) -> str | None:
        """Why the last attempt failed; None where it did not."""
        return self._fault or None

    def wants(self, delta: float, request_id: str) -> bool:
        """Whether a compared request should be given to ``keep``; ``delta`` is its ``max_delta``. Some microseconds."""
        if self._fault and self._clock() < self._again_s:
            return False
        return delta > self._over or (self._below > 0 and self._draw(request_id) < self._below)

    def keep(self, exemplar: Exemplar) -> None:
        """Write an exemplar, if it is one of the worst or of the sample; a request that is both is written twice.

        When this returns without a fault, the file survives a loss of power. What it displaces is deleted.
        """
        if self._settings.on:
            self._guarded(lambda: self._keep(exemplar))

    def forget(self, before_unix_us: int | None = None) -> None:
        """Delete the exemplars of requests from before a time, and those that are older than ``max_age_s``.

        To be called now and then: what nobody adds to grows old, too.
        """
        self._guarded(lambda: self._forget(before_unix_us))

    def note_lost(self, chain: str, dropped: int, errors: int) -> None:
        """Write down what the keeper of a chain has lost so far, if that is more than it was.

        Where that fails nothing more is lost: it is said in the log, and tried the next time.
        """
        if (dropped, errors) == self._lost:
            return
        try:
            self._note_lost(chain, dropped, errors)
        except OSError as error:
            _log.warning("exemplars: what was lost cannot be written down: %s", error)

    def _note_lost(self, chain: str, dropped: int, errors: int) -> None:
        _make_private(self._folder)
        path = self._folder / f".lost-{chain}.json"
        temporary = self._folder / f"{path.name}.tmp"
        temporary.unlink(missing_ok=True)
        _write_private(temporary, canonical({"dropped": dropped, "errors": errors}))
        temporary.replace(path)
        self._lost = (dropped, errors)

    def _draw(self, request_id: str) -> int:
        text = request_id.encode(errors="surrogatepass")
        return int.from_bytes(blake2b(text, key=self._key, digest_size=8).digest())

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - isolation: a full disk must not end what is rehearsed
            self._errors += 1
            self._again_s = self._clock() + _RETRY_S
            self._fault = f"exemplars: {type(error).__name__}: {error}"
            _log.warning("%s", self._fault)
        else:
            self._fault = ""

    def _forget(self, before_unix_us: int | None) -> None:
        if before_unix_us is not None:
            forget(self._folder, before_unix_us)
        self._tidy()

    def _tidy(self) -> list[_Held]:
        """What lies there, after all is deleted that has no business to."""
        stale_s, age_s = self._clock() - _STALE_S, self._settings.max_age_s
        oldest_us = 0 if age_s is None else round((self._clock() - age_s) * 1e6)
        self._below = min(self._below, _threshold_in(self._folder))
        held = list(_held(self._folder))
        gone = {each for each in held if each.at_unix_us < oldest_us or self._is_over_threshold(each)}
        left_behind = [path for path, status in _entries(self._folder, _TEMPORARY) if status.st_mtime < stale_s]
        _delete(self._folder, [*left_behind, *(each.path for each in gone)])
        left = [each for each in held if each not in gone]
        self._over = self._least(_of(ExemplarKind.WORST, left))
        return left

    def _is_over_threshold(self, held: _Held) -> bool:
        """Whether another router, or a crash, has left what the sample has no room for."""
        return self._settings.sample > 0 and held.kind is ExemplarKind.SAMPLE and held.rank >= self._below

    def _least(self, worst: Sequence[_Held]) -> float:
        """What a disagreement must be larger than, so as to be one of the worst."""
        settings = self._settings
        if not settings.worst:
            return inf
        size = sum(each.nbytes for each in worst) + max((each.nbytes for each in worst), default=0)
        if len(worst) < settings.worst and size <= settings.bytes_each:  # there is room for one more
            return 0.0
        return _delta_of(min(each.rank for each in worst))

    def _keep(self, exemplar: Exemplar) -> None:
        held = self._tidy()
        if self._settings.worst and exemplar.max_delta > 0:
            self._keep_worst(exemplar, _of(ExemplarKind.WORST, held))
        draw = self._draw(exemplar.request_id)
        if draw < self._below:
            self._keep_sample(exemplar, draw, _of(ExemplarKind.SAMPLE, held))

    def _keep_worst(self, exemplar: Exemplar, worst: list[_Held]) -> None:
        new, data = self._encoded(exemplar, ExemplarKind.WORST, _rank_of(exemplar.max_delta))
        same = [each for each in worst if each.inputs == new.inputs]
        if any(each.rank >= new.rank for each in same):
            return
        others = [each for each in worst if each not in same]
        gone = _mildest([new, *others], self._settings.worst, self._settings.bytes_each)
        if new not in gone:
            self._write(new, data, [*same, *gone])
            self._over = self._least([each for each in (new, *others) if each not in gone])

    def _keep_sample(self, exemplar: Exemplar, draw: int, sample: list[_Held]) -> None:
        if any(each.rank == draw for each in sample):  # or a client that repeats its id would displace all others
            return
        new, data = self._encoded(exemplar, ExemplarKind.SAMPLE, draw)
        below = _first_too_many([*sample, new], MOST, self._settings.bytes_each)
        gone = [each for each in sample if each.rank >= below]
        if below < self._below:
            _lower_threshold(self._folder, below)
            self._below = below
        if draw < below:
            self._write(new, data, gone)
        else:
            _delete(self._folder, [each.path for each in gone])

    def _encoded(self, exemplar: Exemplar, kind: ExemplarKind, rank: int) -> tuple[_Held, Buffer]:
        """The file as it would lie there, and its bytes.

        Raises:
            ShadowError: it is larger than all of its kind may be.
        """
        data, inputs = _encode(replace(exemplar, kind=kind)), _short_digest(exemplar.inputs)
        size, most = len(data), self._settings.bytes_each
        if size > most:
            raise ShadowError(f"mirror.exemplars.max_bytes: {most} bytes are left for one of {size}")
        path = self._folder / f"{kind}-{rank:016x}-{exemplar.at_unix_us}-{inputs}.parquet"
        return _Held(path, kind, rank, exemplar.at_unix_us, inputs, size), data

    def _write(self, new: _Held, data: Buffer, gone: Iterable[_Held]) -> None:
        """Put a file in its place, whole or not at all; nothing is displaced before the new one is on disk."""
        _make_private(self._folder)
        temporary = self._folder / f".{new.path.name}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            _write_private(temporary, data)
            for each in gone:
                each.path.unlink(missing_ok=True)
            temporary.replace(new.path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(self._folder)


def read(folder: Path) -> Iterator[Exemplar]:
    """All exemplars of a folder, one at a time, each verified: the sample by its draws, then the worst, mildest first.

    Raises:
        EvidenceError: a file is damaged, or is none of ours; it is named. Or the folder cannot be read.
    """
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208 - names do
    except OSError as error:
        raise EvidenceError(f"{folder}: cannot be read: {error.strerror}") from error
    for path in (folder / name for name in names):
        if not _FILE.fullmatch(path.name):
            raise EvidenceError(f"{path}: expected nothing but exemplars here")
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # a router that still runs has displaced it: it is none of them any more
            continue
        except OSError as error:
            raise EvidenceError(f"{path}: cannot be read: {error.strerror}") from error
        yield _decode(path, data)


def inventory(folder: Path) -> Inventory | None:
    """What lies in a folder, told from names and sizes, and what was lost; None where there is no folder.

    Raises:
        EvidenceError: the folder cannot be read, or a file of what was lost is damaged.
    """
    if not folder.is_dir():
        return None
    try:
        held = list(_held(folder))
        lost = [_read_lost(path) for path, _ in _entries(folder, _LOST)]
    except OSError as error:
        raise EvidenceError(f"{folder}: cannot be read: {error.strerror}") from error
    return Inventory(
        worst=len(_of(ExemplarKind.WORST, held)),
        sample=len(_of(ExemplarKind.SAMPLE, held)),
        nbytes=sum(each.nbytes for each in held),
        dropped=sum(dropped for dropped, _ in lost),
        errors=sum(errors for _, errors in lost),
    )


def _read_lost(path: Path) -> tuple[int, int]:
    try:
        value = orjson.loads(path.read_bytes())
        return int(value["dropped"]), int(value["errors"])
    except (ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f"{path}: expected counts of what was lost: {_line(error)}") from error


def forget(folder: Path, before_unix_us: int) -> int:
    """Delete the exemplars of requests from before a time, also those that cannot be read; returns how many.

    Raises:
        OSError: one of them cannot be deleted.
    """
    old = [
        path
        for pattern in (_FILE, _TEMPORARY)
        for path, _ in _entries(folder, pattern)
        if int(_parts(pattern, path)["at"]) < before_unix_us
    ]
    _delete(folder, old)
    return len(old)


# What goes


def _of(kind: ExemplarKind, held: Iterable[_Held]) -> list[_Held]:
    return [each for each in held if each.kind is kind]


def _mildest(worst: Sequence[_Held], most: int, max_bytes: int) -> list[_Held]:
    """Those that must go for the others to be within bounds: the mildest, of equal ones the latest."""
    gone: list[_Held] = []
    size = sum(each.nbytes for each in worst)
    for each in sorted(worst, key=lambda each: (each.rank, -each.at_unix_us)):
        if len(worst) - len(gone) <= most and size <= max_bytes:
            break
        gone.append(each)
        size -= each.nbytes
    return gone


def _first_too_many(sample: Sequence[_Held], most: int, max_bytes: int) -> int:
    """The lowest draw at which those up to it are beyond bounds; beyond all draws where there is none."""
    size = 0
    for count, each in enumerate(sorted(sample, key=lambda each: each.rank), start=1):
        size += each.nbytes
        if count > most or size > max_bytes:
            return each.rank
    return _SPAN


def _rank_of(delta: float) -> int:
    """The bits of a number that is not negative: they order as the numbers do."""
    return int.from_bytes(struct.pack(">d", delta))


def _delta_of(rank: int) -> float:
    delta: float
    (delta,) = struct.unpack(">d", rank.to_bytes(8))
    return delta


# The folder


def _entries(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Path, os.stat_result]]:
    """The folder's entries that are named so; none where there is no folder."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names tell which to look at
    except FileNotFoundError:
        return
    for path in (folder / name for name in names if pattern.fullmatch(name)):
        try:
            status = path.lstat()
        except FileNotFoundError:  # another router has displaced it meanwhile
            continue
        yield path, status


def _parts(pattern: re.Pattern[str], path: Path) -> re.Match[str]:
    """The parts of a name that has this pattern."""
    match = pattern.fullmatch(path.name)
    assert match is not None
    return match


def _held(folder: Path) -> Iterator[_Held]:
    for path, status in _entries(folder, _FILE):
        name = _parts(_FILE, path)
        kind, rank, at_unix_us = ExemplarKind(name["kind"]), int(name["rank"], 16), int(name["at"])
        yield _Held(path, kind, rank, at_unix_us, name["inputs"], status.st_size)


def _threshold_in(folder: Path) -> int:
    """The draw from which on nothing is kept; a crash may have left the one before, too."""
    return min((int(_parts(_THRESHOLD, path)["rank"], 16) for path, _ in _entries(folder, _THRESHOLD)), default=_SPAN)


def _lower_threshold(folder: Path, below: int) -> None:
    _make_private(folder)
    former = [path for path, _ in _entries(folder, _THRESHOLD)]
    _write_private(folder / f".below-{below:016x}", b"")
    _delete(folder, former)


def _delete(folder: Path, paths: Sequence[Path]) -> None:
    """Delete files for good: a loss of power does not bring them back."""
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        sync_folder(folder)


def _make_private(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _write_private(path: Path, data: Buffer) -> None:
    """Write a new file that is its owner's alone from the start."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


# The file


def _encode(exemplar: Exemplar) -> Buffer:
    tensors = list(_tensors(exemplar))
    head = canonical(_head(exemplar))
    columns = {
        "part": [part for part, _ in tensors],
        "name": [tensor.name for _, tensor in tensors],
        "datatype": [tensor.datatype for _, tensor in tensors],
        "shape": [tensor.shape for _, tensor in tensors],
        "data": [bytes(tensor.data) for _, tensor in tensors],
    }
    metadata = {_HEADER_KEY: head, _DIGEST_KEY: _digest(head, tensors).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(columns, schema=_SCHEMA.with_metadata(metadata)),
        sink,
        compression="NONE",  # pictures are compressed already
        use_dictionary=False,
        write_statistics=False,
    )
    return memoryview(sink.getvalue())


def _tensors(exemplar: Exemplar) -> Iterator[tuple[str, Tensor]]:
    """All tensors, and what each is part of."""
    for tensor in exemplar.inputs:
        yield _INPUT, tensor
    for arm, answer in ((Arm.BASELINE, exemplar.baseline), (Arm.CANDIDATE, exemplar.candidate)):
        for name, array in (answer.outputs or {}).items():
            yield str(arm), from_numpy(name, _datatype_of(array), array)


def _datatype_of(array: Array) -> str:
    """The datatype of an output; BF16, which is shown as its raw words, remains those."""
    return "BYTES" if array.dtype.kind in BYTES_KINDS else _DATATYPES[array.dtype.newbyteorder("<")]


def _head(exemplar: Exemplar) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "request_id": _text(exemplar.request_id),
        "deployment_id": exemplar.deployment_id,
        "chain": exemplar.chain,
        "model": exemplar.model,
        "baseline_version": exemplar.baseline_version,
        "candidate_version": exemplar.candidate_version,
        "stage": exemplar.stage,
        "at_unix_us": exemplar.at_unix_us,
        "rows": exemplar.rows,
        "slice": _text(exemplar.slice),
        "kind": exemplar.kind,
        "max_delta": float(exemplar.max_delta),
        "findings": int(exemplar.findings),
        "baseline": _end(exemplar.baseline),
        "candidate": _end(exemplar.candidate),
    }


def _end(answer: Answer) -> dict[str, str]:
    return {"status": answer.status, "error": _text(answer.error)[:ERROR_CHARACTERS]}


def _text(value: str) -> str:
    """Text that UTF-8 can hold: a client may send half a surrogate pair."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def _digest(head: bytes, tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = sha256(head)
    for part, tensor in tensors:
        size = memoryview(tensor.data).nbytes
        digest.update(canonical((part, tensor.name, tensor.datatype, tensor.shape, size)))
        digest.update(tensor.data)
    return digest.hexdigest()


def _short_digest(inputs: Iterable[Tensor]) -> str:
    return _digest(b"", ((_INPUT, tensor) for tensor in inputs))[:16]


def _decode(path: Path, data: bytes) -> Exemplar:
    """An exemplar's file, verified.

    Raises:
        EvidenceError: it is damaged, or it is another one's.
    """
    try:
        table = pq.read_table(pa.BufferReader(data), use_threads=False)
        if not table.schema.equals(_SCHEMA):
            raise ValueError(f"expected the columns of format {FORMAT}")
        head, digest = (table.schema.metadata[key] for key in (_HEADER_KEY, _DIGEST_KEY))
        tensors = [
            (row["part"], Tensor(row["name"], row["datatype"], tuple(row["shape"]), row["data"]))
            for row in table.to_pylist()
        ]
        if _digest(head, tensors).encode() != digest:
            raise ValueError("its content does not have its sha256")
        exemplar = _read(orjson.loads(head), tensors)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise EvidenceError(f"{path}: not an exemplar: {_line(error)}") from error
    name = _parts(_FILE, path)
    content = exemplar.kind, exemplar.at_unix_us, _short_digest(exemplar.inputs)
    if content != (name["kind"], int(name["at"]), name["inputs"]):
        raise EvidenceError(f"{path}: it holds another exemplar than its name says")
    return exemplar


def _read(head: Any, tensors: Sequence[tuple[str, Tensor]]) -> Exemplar:
    if head["format"] != FORMAT:
        raise ValueError(f"expected format {FORMAT}")
    arms = {str(arm): _answer(head[arm], [tensor for part, tensor in tensors if part == arm]) for arm in Arm}
    facts = {name: value for name, value in head.items() if name != "format"}
    inputs = tuple(tensor for part, tensor in tensors if part == _INPUT)
    return Exemplar(**{**facts, **arms, "kind": ExemplarKind(head["kind"]), "inputs": inputs})


def _answer(end: Any, outputs: Sequence[Tensor]) -> Answer:
    status = Status(end["status"])
    arrays = {tensor.name: tensor.numpy() for tensor in outputs} if status is Status.OK else None
    return Answer(status=status, outputs=arrays, error=end["error"])


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
