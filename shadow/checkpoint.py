"""Retention: the older segments of a chain become a checkpoint, which keeps their sums, and their rows are deleted.

Request ids and scores go with the rows. A segment cannot be redacted in its place, for every byte of it is in the
hashes that follow; so this is also how ids are removed.

The order makes every moment safe. The checkpoint is durable before the first segment is deleted, and from then on it
counts and the segments that it covers do not: a crash leaves all segments, or a checkpoint and needless files, which
the next run deletes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa

from models.tensor import Array
from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import Evidence
from shadow.store import (
    Checkpoint,
    Head,
    Header,
    Kind,
    covered_files,
    latest_checkpoint,
    read_segment,
    read_segments,
    sync_folder,
    walk_chain,
    write_whole,
)
from shadow.verify import SCHEMAS, table_evidence

LABELS_WITHIN_S: Final = 900.0
_DAY_S: Final = 86_400
_MayGo: TypeAlias = Callable[[pa.Table], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which rows stay: those of ``keep_days``, and in each chain ``keep_segments`` up to its last recorded head.

    What a label may still join always stays: rows younger than ``labels_within_s``. A segment goes as a whole: once its
    youngest row may, or, with ``redact``, once its oldest row must.

    Raises:
        ShadowError: a figure is out of range, or there is no age to redact from.
    """

    keep_days: float | None = None  # None: rows of any age may go
    keep_segments: int = 1
    redact: bool = False
    labels_within_s: float = LABELS_WITHIN_S

    def __post_init__(self) -> None:
        if self.keep_segments < 1:
            raise ShadowError(f"retention: keep_segments: expected 1 or more, got {self.keep_segments}")
        for name in ("keep_days", "labels_within_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ShadowError(f"retention: {name}: expected 0 or more, got {value}")
        if self.redact and self.keep_days is None:
            raise ShadowError("retention: redact: expected keep_days, the age from which no request id may stay")

    def limit_us(self, now_unix_us: int) -> int | None:
        """Rows answered before this moment are older than ``keep_days``; None where age does not matter."""
        return None if self.keep_days is None else now_unix_us - round(self.keep_days * _DAY_S * 1e6)

    def may_go(self, at_unix_us: Array, now_unix_us: int) -> bool:
        """Whether a segment whose rows were answered at these moments may go for its age."""
        if not len(at_unix_us):
            return True
        oldest, youngest = int(at_unix_us.min()), int(at_unix_us.max())
        if youngest >= now_unix_us - round(self.labels_within_s * 1e6):
            return False
        limit_us = self.limit_us(now_unix_us)
        return limit_us is None or (oldest if self.redact else youngest) < limit_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Compacted:
    """What became of one chain."""

    chain: str
    segments: int  # in its checkpoint now; 0: it has none
    rows: int  # in its checkpoint now
    deleted_files: int


def compact(folder: Path, recorded: Iterable[Head], retention: Retention, *, now_unix_us: int) -> tuple[Compacted, ...]:
    """Turn what may go into checkpoints, and delete it; for evidence that ``verify`` has just found to hold.

    ``recorded`` are the heads of the journal's last entry with evidence. Every chain keeps the segment that ends there,
    and all later ones: so that entry stays for ever what the checkpoints' sums are checked against, and nothing that is
    being written is touched. A row of joined labels goes once the row of its pair has.

    Readers that were at a segment when it was deleted fail, and may be run again; writers are not disturbed.

    Raises:
        EvidenceError: the evidence does not hold after all, or the disk fails; the call may be repeated.
    """
    heads = [head for head in recorded if head.segments]
    labels = {head for head in heads if _kind(folder, head) is Kind.LABELS}
    try:
        done = [_compact_pairs(folder, head, retention, now_unix_us) for head in heads if head not in labels]
        covered = {head.chain: _covered_batches(folder, head.chain) for head in heads if head not in labels}
        done += [_compact_labels(folder, head, covered) for head in labels]
        return tuple(done)
    except OSError as error:
        raise EvidenceError(f"{folder}: cannot be compacted: {error.strerror}") from error


def overdue_rows(folder: Path, before_unix_us: int) -> int:
    """How many rows of all chains were answered before this moment and are there still, with their request ids.

    Raises:
        EvidenceError: a segment cannot be read.
    """
    count = 0
    for segment in read_segments(folder):
        times = segment.table(SCHEMAS[segment.header().kind])["at_unix_us"].to_numpy()
        count += int(np.count_nonzero(times < before_unix_us))
    return count


def _kind(folder: Path, head: Head) -> Kind:
    return read_segment(folder, head.chain, head.segments).header().kind


def _compact_pairs(folder: Path, head: Head, retention: Retention, now_unix_us: int) -> Compacted:
    return _compact(
        folder,
        head,
        last=head.segments - retention.keep_segments,
        may_go=lambda table: retention.may_go(table["at_unix_us"].to_numpy(), now_unix_us),
    )


def _compact_labels(folder: Path, head: Head, covered: Mapping[str, int]) -> Compacted:
    def may_go(table: pa.Table) -> bool:
        bounds = [covered.get(source, 0) for source in table["source"].to_pylist()]
        return bool((table["batch"].to_numpy() < np.array(bounds, dtype=np.int64)).all())

    return _compact(folder, head, last=head.segments - 1, may_go=may_go)


def _covered_batches(folder: Path, chain: str) -> int:
    checkpoint = latest_checkpoint(folder, chain)
    return checkpoint.batches if checkpoint is not None else 0


def _compact(folder: Path, head: Head, *, last: int, may_go: _MayGo) -> Compacted:
    """Let go of a chain's first segments, up to the first that may not go, and to the ``last`` of all at most."""
    before = latest_checkpoint(folder, head.chain)
    checkpoint = _extended(folder, head.chain, before, last, may_go)
    if checkpoint is None:
        return Compacted(chain=head.chain, segments=0, rows=0, deleted_files=0)
    if checkpoint is not before:
        write_whole(folder / checkpoint.name, checkpoint.to_bytes())
    return Compacted(
        chain=head.chain,
        segments=checkpoint.head.segments,
        rows=checkpoint.head.rows,
        deleted_files=_delete_covered(folder, checkpoint),
    )


def _extended(folder: Path, chain: str, before: Checkpoint | None, last: int, may_go: _MayGo) -> Checkpoint | None:
    """The checkpoint of all that may go; ``before`` where that is no more than it was."""
    checkpoint = before
    for segment, head in walk_chain(folder, chain):  # also the first that stays: it must follow the head kept here
        header = segment.header()
        table = segment.table(SCHEMAS[header.kind])
        if segment.number > last or not may_go(table):
            break
        checkpoint = _with_segment(checkpoint, header, head, table)
    return checkpoint


def _with_segment(before: Checkpoint | None, header: Header, head: Head, table: pa.Table) -> Checkpoint:
    evidence, batches = (before.evidence, before.batches) if before is not None else (Evidence(), 0)
    if header.kind is Kind.PAIRS and table.num_rows:
        batches = max(batches, int(table["batch"].to_numpy().max()) + 1)
    return Checkpoint(header=header, head=head, evidence=evidence + table_evidence(header, table), batches=batches)


def _delete_covered(folder: Path, checkpoint: Checkpoint) -> int:
    """Delete what the checkpoint makes needless; returns how many files that were."""
    paths = list(covered_files(folder, checkpoint))
    for path in paths:
        path.unlink(missing_ok=True)  # another run may be at it too
    if paths:
        sync_folder(folder)
    return len(paths)
