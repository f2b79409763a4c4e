"""Evidence on disk: chains of immutable Parquet segments.

A chain is written by one writer, segment after segment: ``<chain>-000001.parquet``, ``<chain>-000002.parquet``, …
Its head after segment k is ``sha256(head of k − 1 ‖ sha256(bytes of segment k))``, and every segment names the head it
follows, so that a changed byte breaks the chain, and a cut tail disagrees with a head that was recorded elsewhere.

``folder`` is everywhere the rollout's evidence folder, ``<reports>/<deployment_id>/evidence``.
"""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
from shadow.evidence import Limits, canonical
from shadow.rows import KEPT_VALUES, SIDES

FORMAT: Final = 2
GENESIS: Final = "0" * 64
_HEADER_KEY: Final = b"understudy"
_CHAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FILE: Final = re.compile(rf"(?P<chain>{_CHAIN.pattern})-(?P<number>[0-9]{{6,}})\.parquet")
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

    def to_bytes(self) -> bytes:
        """The canonical JSON of it."""
        return canonical({"format": FORMAT, **asdict(self)})

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        """The header in a schema's metadata.

        Raises:
            ValueError, KeyError, TypeError, ShadowError: there is none, or it is not of this format.
        """
        value = orjson.loads((schema.metadata or {})[_HEADER_KEY])
        if (found := value.pop("format")) != FORMAT:
            raise ValueError(f"written in format {found}; this release reads format {FORMAT}")
        value["kind"] = Kind(value["kind"])
        value["limits"] = Limits(**value["limits"])
        value["measures"] = tuple(Measure(**measure) for measure in value["measures"])
        value["account"] = Account.from_json(value["account"])
        return cls(**value)


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
    last: dict[str, int] = {}
    for name in _names(folder):
        if match := _FILE.fullmatch(name):
            last[match["chain"]] = max(last.get(match["chain"], 0), int(match["number"]))
    return dict(sorted(last.items()))


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 - names are enough, and there may be 1e5
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EvidenceError(f"{folder}: cannot be read: {error.strerror}") from error


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

    Raises:
        EvidenceError: a segment is missing or cannot be read.
    """
    for name, count in chains(folder).items():
        if chain in (None, name):
            for number in range(after + 1, count + 1):
                yield read_segment(folder, name, number)


def walk_chain(folder: Path, chain: str) -> Iterator[tuple[Segment, Head]]:
    """A chain's segments with the head that each makes; checks that every segment follows the one before.

    Raises:
        EvidenceError: names the file whose bytes are not those that the next segment was written after.
    """
    sha, rows, before = GENESIS, 0, folder
    for segment in read_segments(folder, chain):
        if segment.header().previous != sha:
            culprit = before if segment.number > 1 else segment.path
            raise EvidenceError(f"{culprit}: its bytes are not those that {segment.path.name} was written after")
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
        self.head: Head | None = None
        for _, head in walk_chain(folder, header.chain):
            self.head = head

    def write(self, table: pa.Table, account: Account | None = None) -> Head:
        """Append a segment; when this returns it survives a loss of power.

        Raises:
            OSError: it could not be written; the chain is as before, and the call may be repeated.
        """
        before = self.head or Head(chain=self._header.chain, segments=0, rows=0, sha256=GENESIS)
        number = before.segments + 1
        data = self._encode(table, number, before.sha256, account or Account())
        path = self._folder / segment_name(before.chain, number)
        temporary = path.with_name(f".{path.name}.tmp")
        _write_synced(temporary, data)
        temporary.replace(path)
        sync_folder(self._folder)
        sha = successor(before.sha256, sha256(data).digest())
        self.head = Head(chain=before.chain, segments=number, rows=before.rows + table.num_rows, sha256=sha)
        return self.head

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


def _write_synced(path: Path, data: memoryview) -> None:
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
