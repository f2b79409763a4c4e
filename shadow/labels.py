"""Late ground truth: labels joined with the pairs that they belong to, on disk, in either order of arrival.

The joined rows are a chain of their own, ``labels``, and that chain is the truth. Beside it an SQLite file holds what
waits: labels without their pair, pairs without their label, and how far each chain has been read. A join is first
written to the chain, then marked in SQLite; after a crash in between, the marks are made up from the chain.

Rules: the first pair of an item wins, the first label wins; an item counts at most once in a rollout. Only pairs that
both versions ran count, with the baseline's answer OK. A candidate that failed did not satisfy the label. A baseline
that failed says nothing of which is better, and to count it would favour the candidate: such an item gives no cell.

While a rollout runs, a label and its pair wait for each other within a window, which bounds what waits. Once it has
ended, all its pairs are on disk: labels that come then are looked for among all of them (``LabelJoin.complete``).
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import pyarrow as pa
import pyarrow.compute as pc

from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import Evidence, Limits
from shadow.pair import Status
from shadow.rows import SCHEMA as PAIR_SCHEMA
from shadow.store import (
    Head,
    Header,
    Kind,
    Segment,
    SegmentWriter,
    chains,
    latest_checkpoint,
    read_segment,
    read_segments,
    segment_name,
    walk_chain,
)
from shadow.sums import label_sums

CHAIN: Final = "labels"
DATABASE: Final = "labels.sqlite"
_LIST_EVERY_US: Final = 5_000_000
_ROWS: Final = 16_384  # of one joined segment
_AT_ONCE: Final = 1_000_000  # labels that one pass over all pairs looks for: they are held in memory
_ALWAYS_US: Final = 2**62  # longer than any label is late
_LARGEST: Final = 2**31 - 1

SCHEMA: Final = pa.schema(
    [
        pa.field("at_unix_us", pa.int64(), nullable=False),  # when the pair was answered
        pa.field("stage", pa.int32(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("label", pa.int32(), nullable=False),
        pa.field("baseline_top1", pa.int32(), nullable=False),
        pa.field("candidate_top1", pa.int32(), nullable=True),  # null: the candidate failed
        pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),  # chain of the pair's row
        pa.field("batch", pa.int64(), nullable=False),  # its batch there
    ]
)

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS labels (
    request_id TEXT, item INTEGER, label INTEGER, at_us INTEGER, PRIMARY KEY (request_id, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pairs (
    request_id TEXT, item INTEGER, at_us INTEGER, stage INTEGER, baseline_top1 INTEGER, candidate_top1 INTEGER,
    source TEXT, batch INTEGER, PRIMARY KEY (request_id, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS joined (request_id TEXT, item INTEGER, PRIMARY KEY (request_id, item)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (chain TEXT PRIMARY KEY, segments INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counts (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS labels_by_age ON labels (at_us);
CREATE INDEX IF NOT EXISTS pairs_by_age ON pairs (at_us);
"""
_MATCHES: Final = """
SELECT pairs.at_us, stage, request_id, item, label, baseline_top1, candidate_top1, source, batch
FROM labels JOIN pairs USING (request_id, item) WHERE abs(labels.at_us - pairs.at_us) <= ? LIMIT ?
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The true class of one item: batch row ``item`` of a request.

    Raises:
        ShadowError: a field is out of range.
    """

    request_id: str
    item: int = 0
    label: int

    def __post_init__(self) -> None:
        if not self.request_id:
            raise ShadowError("label: request_id: expected a request's id, got an empty text")
        for name in ("item", "label"):
            value = getattr(self, name)
            if not 0 <= value <= _LARGEST:
                raise ShadowError(f"label of {self.request_id!r}: {name}: expected 0 to {_LARGEST}, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AddResult:
    """What became of some labels: each is accepted, or the item has one already."""

    accepted: int
    duplicates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCounts:
    """What became of all labels, and of the pairs' items that they could belong to."""

    accepted: int = 0
    duplicates: int = 0
    joined: int = 0
    waiting: int = 0  # labels whose pair has not been seen yet
    expired: int = 0  # labels whose pair did not come within the window, or is none of an ended rollout's
    unlabelled: int = 0  # items whose label did not come within the window
    repeated: int = 0  # items whose id had a pair already


class LabelJoin:
    """Joins labels with the pair rows of all other chains in the folder.

    A label counts when it arrives within ``within_s`` of its pair, before or after. Until the first label has arrived
    no pair is read. Not safe for several threads at once. ``clock`` gives Unix time in seconds.

    Raises:
        EvidenceError: the labels chain does not hold or is shorter than what was joined, or the disk fails.
    """

    def __init__(
        self, folder: Path, deployment_id: str, limits: Limits, *, within_s: float, clock: Callable[[], float]
    ) -> None:
        header = Header(
            kind=Kind.LABELS, deployment_id=deployment_id, limits=limits, comparator="", output="", chain=CHAIN
        )
        self._writer = SegmentWriter(folder, header)
        self._folder, self._within_us, self._clock = folder, round(within_s * 1e6), clock
        with self._translated():
            self._database = sqlite3.connect(folder / DATABASE, isolation_level=None, check_same_thread=False)
            self._database.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; {_TABLES}")
        self._evidence = Evidence()
        self._known: list[str] = []
        self._listed_us: int | None = None
        self._recover()

    def add(self, labels: Sequence[Label]) -> AddResult:
        """Take labels; when this returns they survive a loss of power.

        Raises:
            EvidenceError: they could not be stored; none is taken.
        """
        now_us, before = self._now_us(), self._changes()
        with self._translated(), self._transaction():
            self._database.executemany(
                "INSERT OR IGNORE INTO labels SELECT :id, :item, :label, :now "
                "WHERE NOT EXISTS (SELECT 1 FROM joined WHERE request_id = :id AND item = :item)",
                [{"id": each.request_id, "item": each.item, "label": each.label, "now": now_us} for each in labels],
            )
            accepted = self._changes() - before
            self._count(accepted=accepted, duplicates=len(labels) - accepted)
        return AddResult(accepted=accepted, duplicates=len(labels) - accepted)

    def advance(self, max_segments: int = 64, *, within: Mapping[str, int] | None = None) -> None:
        """Read up to ``max_segments`` new segments, write what can be joined, and let go of what is too old.

        ``within`` gives for each chain how many of its segments may be read, so that no label is joined with a pair
        that the evidence at hand does not hold yet; None: all that are there.

        Raises:
            EvidenceError: a segment is damaged, or the disk fails; nothing is lost, and the call may be repeated.
        """
        with self._translated():
            if self._counts().get("accepted"):
                self._advance(max_segments, within)

    def complete(self, heads: Sequence[Head]) -> Iterator[None]:
        """Look for the labels that wait now among all rows up to ``heads``, whatever their age; pauses at each segment.

        For a rollout that has ended. Its bytes are checked against the heads before anything is joined. At the end each
        of the labels (the first million of them) is joined, or expired since no row there is its own. A pass that is
        not carried on has joined nothing; the labels still wait for the next one. Labels that come meanwhile do, too.

        Raises:
            EvidenceError: a chain is not what it was at its head, or the disk fails.
        """
        with self._translated():
            asked = self._database.execute("SELECT request_id, item FROM labels LIMIT ?", (_AT_ONCE,)).fetchall()
            self._database.execute("DELETE FROM pairs")  # those that are asked for are found again
        ids = pa.array(sorted({request_id for request_id, _ in asked}), pa.string())
        for head in heads:
            if head.chain != CHAIN:
                yield from self._find(head, ids)
        with self._translated():
            while self._join(_ALWAYS_US):
                pass
            self._let_go(asked)

    def _find(self, head: Head, ids: pa.Array) -> Iterator[None]:
        """Let the rows of these requests wait for their labels: all of a chain up to a head, checked on the way."""
        checkpoint = latest_checkpoint(self._folder, head.chain)
        reached = checkpoint.head if checkpoint is not None else None
        for segment, end in walk_chain(self._folder, head.chain):
            if end.segments > head.segments:
                break
            reached = end
            with self._translated(), self._transaction():
                self._wait_for_labels(_joinable(segment, 0, ids))
            yield
        if reached != head:
            what = f"{head.segments} segments with the head {head.sha256} were recorded"
            raise EvidenceError(f"{self._folder}: chain {head.chain}: not as it was when the rollout ended: {what}")

    def _let_go(self, asked: Sequence[tuple[str, int]]) -> None:
        before = self._changes()
        with self._transaction():
            self._database.executemany("DELETE FROM labels WHERE request_id = ? AND item = ?", asked)
            self._count(expired=self._changes() - before)
            self._database.execute("DELETE FROM pairs")

    def _advance(self, max_segments: int, within: Mapping[str, int] | None) -> None:
        read = 0
        for segment in self._unread(max_segments, within):
            self._read(segment)
            read += 1
        while self._join(self._within_us):
            pass
        if read < max_segments:  # else the pair of an old label may still be unread
            self._expire()

    def snapshot(self) -> tuple[Evidence, Head | None]:
        """The label cells of all durable joins, and the head of the chain that holds exactly these."""
        return self._evidence, self._writer.head

    def counts(self) -> LabelCounts:
        """What became of all labels so far."""
        with self._translated():
            (waiting,) = self._database.execute("SELECT count(*) FROM labels").fetchone()
            joined = self._writer.head.rows if self._writer.head else 0
            return LabelCounts(**self._counts(), waiting=waiting, joined=joined)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _recover(self) -> None:
        """Sum up the chain, and mark what a crash kept from being marked."""
        marked, written = self._progress().get(CHAIN, 0), self._writer.head.segments if self._writer.head else 0
        if marked > written:
            raise EvidenceError(f"{self._folder}: chain {CHAIN} has {written} segments, but {marked} were written")
        if (checkpoint := latest_checkpoint(self._folder, CHAIN)) is not None:
            self._evidence = checkpoint.evidence
        for segment in read_segments(self._folder, CHAIN):
            table = segment.table(SCHEMA)
            self._evidence += label_sums(table)
            if segment.number > marked:
                self._mark(table, segment.number)

    def _unread(self, most: int, within: Mapping[str, int] | None) -> Iterator[Segment]:
        progress = self._progress()
        for chain in self._sources() if within is None else within:
            last = None if within is None else within[chain]
            number = self._first_unread(chain, progress.get(chain, 0) + 1, last)
            while most > 0 and self._may_read(chain, number, last):
                yield read_segment(self._folder, chain, number)
                number, most = number + 1, most - 1

    def _first_unread(self, chain: str, number: int, last: int | None) -> int:
        """The segment to go on with: this one, or the first after a checkpoint that took its place."""
        if (last is not None and number > last) or (self._folder / segment_name(chain, number)).exists():
            return number
        checkpoint = latest_checkpoint(self._folder, chain)  # lists the folder; so only where a segment is missing
        return max(number, checkpoint.head.segments + 1) if checkpoint is not None else number

    def _may_read(self, chain: str, number: int, last: int | None) -> bool:
        return number <= last if last is not None else (self._folder / segment_name(chain, number)).exists()

    def _sources(self) -> list[str]:
        """The other chains; the folder may hold 1e5 files, so it is listed now and then only."""
        now_us = self._now_us()
        if self._listed_us is None or abs(now_us - self._listed_us) >= _LIST_EVERY_US:
            self._listed_us, self._known = now_us, [each for each in chains(self._folder) if each != CHAIN]
        return self._known

    def _read(self, segment: Segment) -> None:
        """Let a segment's rows wait for their labels."""
        (oldest_us,) = self._database.execute("SELECT min(at_us) FROM labels").fetchone()
        rows = list(_joinable(segment, (self._now_us() if oldest_us is None else oldest_us) - self._within_us))
        before = self._changes()
        with self._transaction():
            self._wait_for_labels(rows)
            self._count(repeated=len(rows) - (self._changes() - before))
            self._set_progress(segment.chain, segment.number)

    def _wait_for_labels(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._database.executemany(
            "INSERT OR IGNORE INTO pairs SELECT :id, :item, :at, :stage, :baseline, :candidate, :source, :batch "
            "WHERE NOT EXISTS (SELECT 1 FROM joined WHERE request_id = :id AND item = :item)",
            rows,
        )

    def _join(self, within_us: int) -> bool:
        """Write one segment of rows joined with labels this near; False when there is nothing to join."""
        found = self._database.execute(_MATCHES, (within_us, _ROWS)).fetchall()
        if not found:
            return False
        columns = zip(SCHEMA, zip(*found, strict=True), strict=True)
        table = pa.table([_column(values, each.type) for each, values in columns], schema=SCHEMA)
        head = self._writer.write(table)
        self._evidence += label_sums(table)
        self._mark(table, head.segments)
        return True

    def _mark(self, table: pa.Table, segments: int) -> None:
        keys = list(zip(table["request_id"].to_pylist(), table["item"].to_pylist(), strict=True))
        with self._transaction():
            self._database.executemany("INSERT OR IGNORE INTO joined VALUES (?, ?)", keys)
            self._database.executemany("DELETE FROM labels WHERE request_id = ? AND item = ?", keys)
            self._database.executemany("DELETE FROM pairs WHERE request_id = ? AND item = ?", keys)
            self._set_progress(CHAIN, segments)

    def _expire(self) -> None:
        bound = (self._now_us() - self._within_us,)
        with self._transaction():
            labels = self._database.execute("DELETE FROM labels WHERE at_us < ?", bound).rowcount
            pairs = self._database.execute("DELETE FROM pairs WHERE at_us < ?", bound).rowcount
            self._count(expired=labels, unlabelled=pairs)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Faults of the disk as what they are to those who ask for evidence."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise EvidenceError(f"{self._folder}: labels cannot be stored: {error}") from error

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _progress(self) -> dict[str, int]:
        return dict(self._database.execute("SELECT chain, segments FROM progress"))

    def _set_progress(self, chain: str, segments: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", (chain, segments))

    def _counts(self) -> dict[str, int]:
        return dict(self._database.execute("SELECT name, value FROM counts"))

    def _count(self, **more: int) -> None:
        self._database.executemany(
            "INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
            [(name, value) for name, value in more.items() if value],
        )

    def _changes(self) -> int:
        return self._database.total_changes

    def _now_us(self) -> int:
        return round(self._clock() * 1e6)


def _joinable(segment: Segment, oldest_us: int, ids: pa.Array | None = None) -> Iterator[dict[str, Any]]:
    """The rows that a label may still be joined with; of these requests only, if ``ids`` are given."""
    table = segment.table(PAIR_SCHEMA)
    ran = pc.and_(
        pc.equal(pc.cast(table["baseline_status"], pa.string()), Status.OK.value),
        pc.not_equal(pc.cast(table["candidate_status"], pa.string()), Status.ABSENT.value),
    )
    real = pc.and_(pc.greater(table["request_rows"], 0), pc.greater_equal(table["at_unix_us"], oldest_us))
    mine = pc.and_(ran, real) if ids is None else pc.and_(pc.and_(ran, real), pc.is_in(table["request_id"], ids))
    kept = table.filter(mine)
    names = {
        "id": "request_id",
        "item": "item",
        "at": "at_unix_us",
        "stage": "stage",
        "baseline": "baseline_top1",
        "candidate": "candidate_top1",
        "batch": "batch",
    }
    columns = [kept[column].to_pylist() for column in names.values()]
    for values in zip(*columns, strict=True):
        yield {**dict(zip(names, values, strict=True)), "source": segment.chain}


def _column(values: Iterable[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)
