"""Evidence on disk: chains of immutable Parquet segments, the oldest of which may have become a checkpoint.

A chain is written by one writer, segment after segment: ``<chain>-000001.parquet``, ``<chain>-000002.parquet``, …
Its head after segment k is ``sha256(head of k − 1 ‖ sha256(bytes of segment k))``, and every segment names the head it
follows, so that a changed byte breaks the chain, and a cut tail disagrees with a head that was recorded elsewhere.

``<chain>.checkpoint-000007.json`` stands for segments 1…7 of its chain: their sums, and the head that segment 8
follows. Of several checkpoints the latest counts; the segments that it covers are not read, whether there or not.

``<chain>.closed.json`` says that the writer came to its end, with the head and the mirror's account there. A chain
without it is still written to, or its writer was killed: ``shadow.losses`` counts what it took along.

``folder`` is everywhere the rollout's evidence folder, ``<reports>/<deployment_id>/evidence``.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Self

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from shadow.accounting import Account
from shadow.comparators import Measure
from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import Evidence, Limits, canonical
from shadow.rows import KEPT_VALUES, SIDES

FORMAT: Final = 2
GENESIS: Final = "0" * 64
_HEADER_KEY: Final = b"understudy"
_CHAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256: Final = re.compile("[0-9a-f]{64}")
_FILE: Final = re.compile(rf"(?P<chain>{_CHAIN.pattern})-(?P<number>[0-9]{{6,}})\.parquet")
_CHECKPOINT: Final = re.compile(rf"(?P<chain>{_CHAIN.pattern})\.checkpoint-(?P<number>[0-9]{{6,}})\.json")
_CLOSING: Final = re.compile(rf"(?P<chain>{_CHAIN.pattern})\.closed\.json")
_SCORE_LEAVES: Final = frozenset(f"{side}_scores.list.element" for side in SIDES)  # noise: no gain


class Kind(StrEnum):
    """What the rows of a chain are."""

    PAIRS = "pairs"  # shadow.rows.SCHEMA
    LABELS = "labels"  # shadow.labels.SCHEMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The durable end of one chain of evidence segments; ``rows`` and ``segments`` count from the chain's start."""

    chain: str
    segments: int
    rows: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a segment says of itself, in the metadata of its schema."""

    kind: Kind
    deployment_id: str
    limits: Limits
    comparator: str  # kind or import path; with ``output`` and ``parameters`` it opens what the rows were compared with
    output: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    measures: tuple[Measure, ...] = ()  # of the comparator, in the order of the rows' column
    kept_values: int = KEPT_VALUES  # of an item on a side; one with more has no scores in its row
    chain: str
    number: int = 0
    previous: str = GENESIS
    account: Account = field(default_factory=Account)  # the mirror's, since the chain's start

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the format."""
        return {"format": FORMAT, **asdict(self)}

    def to_bytes(self) -> bytes:
        """The canonical JSON of it."""
        return canonical(self.to_json())

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        """The header in a schema's metadata.

        Raises:
            ValueError, KeyError, TypeError, ShadowError: there is none, or it is not of this format.
        """
        return cls.from_json(orjson.loads((schema.metadata or {})[_HEADER_KEY]))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``.

        Raises:
            ValueError, KeyError, TypeError, ShadowError: it is not of this format.
        """
        if (found := value["format"]) != FORMAT:
            raise ValueError(f"written in format {found}; this release reads format {FORMAT}")
        facts = {name: part for name, part in value.items() if name != "format"}
        facts["kind"] = Kind(facts["kind"])
        facts["limits"] = Limits(**facts["limits"])
        facts["measures"] = tuple(Measure(**measure) for measure in facts["measures"])
        facts["account"] = Account.from_json(facts["account"])
        return cls(**facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is left of a chain's segments 1…k after their rows were deleted.

    ``header`` is that of segment k, with the account as it was then; ``head`` is the head after it.
    """

    header: Header
    head: Head
    evidence: Evidence  # the sums of all rows up to the head
    batches: int = 0  # of a chain of pairs: rows of a batch with a smaller number are in it, those of others are not

    @property
    def name(self) -> str:
        """Its file name."""
        return f"{self.head.chain}.checkpoint-{self.head.segments:06}.json"

    def to_bytes(self) -> bytes:
        """The canonical JSON of it, with the sha256 of the canonical JSON of all else."""
        facts = {
            "header": self.header.to_json(),
            "head": self.head.to_json(),
            "evidence": self.evidence.to_json(),
            "batches": self.batches,
        }
        return _sealed(facts)

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The inverse of ``to_bytes``.

        Raises:
            ValueError, KeyError, TypeError, AttributeError, ShadowError: it is not one, or was changed.
        """
        facts = _unsealed(data)
        header, head = Header.from_json(facts["header"]), Head(**facts["head"])
        if (header.chain, header.number) != (head.chain, head.segments):
            raise ValueError(f"header: expected that of segment {head.segments} of chain {head.chain}")
        found = cls(header=header, head=head, evidence=Evidence.from_json(facts["evidence"]), batches=facts["batches"])
        if not (_is_head(head) and _is_sound(found.batches, 0)):
            raise ValueError("head: expected a chain's head and whole numbers")
        if not (_is_sound(found.evidence, Evidence()) and _is_sound(header.account, Account())):
            raise ValueError("evidence, account: expected sums of whole numbers")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Closing:
    """That a chain ended in order: its last head, and the mirror's account there, in which nothing ends any more.

    What is pending in it was on its way when the chain was closed, and came too late. A chain in which nothing was
    recorded ends at a head of no segments.
    """

    head: Head
    account: Account

    @property
    def name(self) -> str:
        """Its file name."""
        return f"{self.head.chain}.closed.json"

    def to_bytes(self) -> bytes:
        """The canonical JSON of it, with the sha256 of the canonical JSON of all else."""
        return _sealed({"head": self.head.to_json(), "account": self.account.to_json()})

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The inverse of ``to_bytes``.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is not one, or was changed.
        """
        facts = _unsealed(data)
        found = cls(head=Head(**facts["head"]), account=Account.from_json(facts["account"]))
        if not _is_head(found.head):
            raise ValueError("head: expected a chain's head and whole numbers")
        if not (_is_sound(found.account, Account()) and found.account.balanced):
            raise ValueError("account: items do not add up to those sampled")
        return found


def _sealed(facts: Mapping[str, Any]) -> bytes:
    return canonical({**facts, "sha256": sha256(canonical(facts)).hexdigest()})


def _unsealed(data: bytes) -> dict[str, Any]:
    """What ``_sealed`` was given.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: the bytes are not such JSON, or were changed.
    """
    value = orjson.loads(data)
    facts = {name: part for name, part in value.items() if name != "sha256"}
    if canonical(value) != data or sha256(canonical(facts)).hexdigest() != value["sha256"]:
        raise ValueError("changed: its content is not that of its sha256")
    return facts


def _is_head(head: Head) -> bool:
    return bool(_SHA256.fullmatch(head.sha256)) and all(map(_is_sound, (head.segments, head.rows), (0, 0)))


def _is_sound(value: Any, like: Any) -> bool:
    """Whether what was read has the types that sums have, down to every count."""
    if isinstance(like, int):
        return type(value) is int and value >= 0
    if isinstance(like, Mapping):
        return isinstance(value, Mapping) and all(
            not isinstance(part, Mapping) and _is_sound(part, type(part)()) for part in value.values()
        )
    return type(value) is type(like) and all(
        _is_sound(getattr(value, each.name), getattr(like, each.name)) for each in fields(like)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One file of a chain, as read; ``digest`` is the sha256 of its bytes."""

    path: Path
    chain: str
    number: int
    data: bytes

    @property
    def digest(self) -> bytes:
        """The sha256 of the file's bytes."""
        return sha256(self.data).digest()

    def header(self) -> Header:
        """Its header.

        Raises:
            EvidenceError: the file is damaged, or its header is another file's.
        """
        try:
            header = Header.of(pq.read_schema(pa.BufferReader(self.data)))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, ShadowError) as error:
            raise EvidenceError(f"{self.path}: not a segment of evidence: {_line(error)}") from error
        if (header.chain, header.number) != (self.chain, self.number):
            raise EvidenceError(f"{self.path}: header: it is segment {header.number} of chain {header.chain}")
        return header

    def rows(self) -> int:
        """How many rows it holds.

        Raises:
            EvidenceError: the file is damaged.
        """
        try:
            return int(pq.read_metadata(pa.BufferReader(self.data)).num_rows)
        except (pa.ArrowException, OSError) as error:
            raise EvidenceError(f"{self.path}: not a segment of evidence: {_line(error)}") from error

    def table(self, schema: pa.Schema) -> pa.Table:
        """Its rows, which must have this schema.

        Raises:
            EvidenceError: the file is damaged, or has other columns.
        """
        try:
            table = pq.read_table(pa.BufferReader(self.data), use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise EvidenceError(f"{self.path}: not a segment of evidence: {_line(error)}") from error
        if not table.schema.equals(schema):
            raise EvidenceError(f"{self.path}: schema: expected the columns of format {FORMAT}")
        return table


def successor(head: str, digest: bytes) -> str:
    """The chain's head after a segment with this digest."""
    return sha256(bytes.fromhex(head) + digest).hexdigest()


def segment_name(chain: str, number: int) -> str:
    """The file name of a chain's n-th segment, counted from 1."""
    return f"{chain}-{number:06}.parquet"


def chains(folder: Path) -> dict[str, int]:
    """The chains in a folder, and the number of each one's last segment; none where there is no folder.

    Raises:
        EvidenceError: the folder cannot be read.
    """
    return {chain: extent.last for chain, extent in _extents(folder).items()}


@dataclass(slots=True)
class _Extent:
    """How far a chain reaches: the last segment of its latest checkpoint, 0 without one, and its last of all."""

    covered: int = 0
    last: int = 0


def _extents(folder: Path) -> dict[str, _Extent]:
    found: dict[str, _Extent] = {}
    for name in _names(folder):
        if match := _FILE.fullmatch(name):
            extent = found.setdefault(match["chain"], _Extent())
            extent.last = max(extent.last, int(match["number"]))
        elif match := _CHECKPOINT.fullmatch(name):
            extent = found.setdefault(match["chain"], _Extent())
            extent.covered = max(extent.covered, int(match["number"]))
            extent.last = max(extent.last, extent.covered)
    return dict(sorted(found.items()))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are enough, and there may be 1e5
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EvidenceError(f"{folder}: cannot be read: {error.strerror}") from error


def latest_checkpoint(folder: Path, chain: str) -> Checkpoint | None:
    """What stands for a chain's first segments; None where all of them are segments still.

    Raises:
        EvidenceError: it cannot be read, was changed, or is another chain's.
    """
    extent = _extents(folder).get(chain, _Extent())
    return _read_checkpoint(folder, chain, extent.covered) if extent.covered else None


def _read_checkpoint(folder: Path, chain: str, number: int) -> Checkpoint:
    path = folder / f"{chain}.checkpoint-{number:06}.json"
    try:
        found = Checkpoint.of(path.read_bytes())
    except OSError as error:
        raise EvidenceError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, ShadowError) as error:
        raise EvidenceError(f"{path}: not a checkpoint of evidence: {_line(error)}") from error
    if found.name != path.name:
        raise EvidenceError(f"{path}: head: it is checkpoint {found.head.segments} of chain {found.head.chain}")
    return found


def closings(folder: Path) -> Iterator[str]:
    """The chains in a folder that were closed, by name.

    Raises:
        EvidenceError: the folder cannot be read.
    """
    return (match["chain"] for name in sorted(_names(folder)) if (match := _CLOSING.fullmatch(name)))


def read_closing(folder: Path, chain: str) -> Closing:
    """How a chain was closed.

    Raises:
        EvidenceError: it was not, or its closing was changed or is another chain's.
    """
    path = folder / f"{chain}.closed.json"
    try:
        found = Closing.of(path.read_bytes())
    except OSError as error:
        raise EvidenceError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"{path}: not the closing of a chain: {_line(error)}") from error
    if found.name != path.name:
        raise EvidenceError(f"{path}: head: it is the closing of chain {found.head.chain}")
    return found


def covered_files(folder: Path, checkpoint: Checkpoint) -> Iterator[Path]:
    """The files that a checkpoint makes needless: segments, earlier checkpoints, and what a crash left of these.

    Raises:
        EvidenceError: the folder cannot be read.
    """
    return (folder / name for name in _names(folder) if _is_covered(name, checkpoint.head))


def _is_covered(name: str, end: Head) -> bool:
    if segment := _FILE.fullmatch(name):
        return segment["chain"] == end.chain and int(segment["number"]) <= end.segments
    checkpoint = _CHECKPOINT.fullmatch(name.removeprefix(".").removesuffix(".tmp"))
    if checkpoint is None or checkpoint["chain"] != end.chain:
        return False
    return name.startswith(".") or int(checkpoint["number"]) < end.segments


def read_segment(folder: Path, chain: str, number: int) -> Segment:
    """One segment.

    Raises:
        EvidenceError: it cannot be read.
    """
    path = folder / segment_name(chain, number)
    try:
        return Segment(path=path, chain=chain, number=number, data=path.read_bytes())
    except OSError as error:
        raise EvidenceError(f"{path}: cannot be read: {error.strerror}") from error


def read_segments(folder: Path, chain: str | None = None, *, after: int = 0) -> Iterator[Segment]:
    """All segments of a folder, or of one chain, in order; those numbered over ``after`` only.

    Those that a checkpoint covers are not read.

    Raises:
        EvidenceError: a segment is missing or cannot be read.
    """
    for name, extent in _extents(folder).items():
        if chain in (None, name):
            for number in range(max(after, extent.covered) + 1, extent.last + 1):
                yield read_segment(folder, name, number)


def pairs_header(folder: Path) -> Header | None:
    """The header of one segment of pairs, or of a checkpoint of them: how they were compared; None where none are.

    Raises:
        EvidenceError: it is damaged, or the folder cannot be read.
    """
    for chain, extent in _extents(folder).items():
        if extent.last > extent.covered:
            header = read_segment(folder, chain, extent.last).header()
        else:
            header = _read_checkpoint(folder, chain, extent.covered).header
        if header.kind is Kind.PAIRS:
            return header
    return None


def walk_chain(folder: Path, chain: str) -> Iterator[tuple[Segment, Head]]:
    """A chain's segments with the head that each makes; checks that every segment follows the one before.

    The first one follows the chain's checkpoint, where it has one.

    Raises:
        EvidenceError: names the file whose bytes are not those that the next segment was written after.
    """
    start = latest_checkpoint(folder, chain)
    sha, rows, before = (start.head.sha256, start.head.rows, folder / start.name) if start else (GENESIS, 0, None)
    for segment in read_segments(folder, chain, after=start.head.segments if start else 0):
        if segment.header().previous != sha:
            raise EvidenceError(
                f"{before or segment.path}: its bytes are not those that {segment.path.name} was written after"
            )
        sha, rows, before = successor(sha, segment.digest), rows + segment.rows(), segment.path
        yield segment, Head(chain=chain, segments=segment.number, rows=rows, sha256=sha)


class SegmentWriter:
    """Appends segments to one chain, each whole or not at all; goes on where the chain on disk ends.

    ``head`` is the durable end: it moves only after the segment is in its place and both file and folder are synced.

    Raises:
        EvidenceError: the chain's name is not fit for a file name, or the chain on disk does not hold.
    """

    def __init__(self, folder: Path, header: Header) -> None:
        if not _CHAIN.fullmatch(header.chain):
            raise EvidenceError(f"chain: expected letters, digits, '_', '.' and '-', got {header.chain!r}")
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._header = folder, header
        checkpoint = latest_checkpoint(folder, header.chain)
        self.head: Head | None = checkpoint.head if checkpoint else None
        for _, head in walk_chain(folder, header.chain):
            self.head = head

    def write(self, table: pa.Table, account: Account | None = None) -> Head:
        """Append a segment; when this returns it survives a loss of power.

        Raises:
            OSError: it could not be written; the chain is as before, and the call may be repeated.
        """
        before = self._end
        number = before.segments + 1
        data = self._encode(table, number, before.sha256, account or Account())
        write_whole(self._folder / segment_name(before.chain, number), data)
        sha = successor(before.sha256, sha256(data).digest())
        self.head = Head(chain=before.chain, segments=number, rows=before.rows + table.num_rows, sha256=sha)
        return self.head

    def close(self, account: Account) -> None:
        """Say that nothing follows; ``account`` is the mirror's at the end. Survives a loss of power, too.

        Raises:
            OSError: it could not be written; the call may be repeated.
        """
        closing = Closing(head=self._end, account=account)
        write_whole(self._folder / closing.name, closing.to_bytes())

    @property
    def _end(self) -> Head:
        return self.head or Head(chain=self._header.chain, segments=0, rows=0, sha256=GENESIS)

    def _encode(self, table: pa.Table, number: int, previous: str, account: Account) -> memoryview:
        header = replace(self._header, number=number, previous=previous, account=account)
        sink = pa.BufferOutputStream()
        pq.write_table(
            table.replace_schema_metadata({_HEADER_KEY: header.to_bytes()}),
            sink,
            compression={leaf: "NONE" if leaf in _SCORE_LEAVES else "ZSTD" for leaf in _leaves(table.schema)},
            use_dictionary=[each.name for each in table.schema if pa.types.is_dictionary(each.type)],
            write_statistics=False,
        )
        return memoryview(sink.getvalue())


def _leaves(schema: pa.Schema) -> list[str]:
    return [f"{each.name}.list.element" if pa.types.is_list(each.type) else each.name for each in schema]


def write_whole(path: Path, data: bytes | memoryview) -> None:
    """Put a file in its place, whole or not at all; when this returns it survives a loss of power.

    Raises:
        OSError: it could not be written; what was there before is there still.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    _write_synced(temporary, data)
    temporary.replace(path)
    sync_folder(path.parent)


def _write_synced(path: Path, data: bytes | memoryview) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make a new or renamed file's name durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
