"""The recorder: takes pairs from the serving loop, and turns them into durable evidence in a thread of its own."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Final

import pyarrow as pa

from models.spec import TensorSpec
from shadow.accounting import Account, Accounting
from shadow.cells import Cell
from shadow.comparators import open_comparator
from shadow.errors import EvidenceError
from shadow.evidence import Evidence, Limits
from shadow.findings import Finder
from shadow.pair import Pair, Status
from shadow.rows import KEPT_VALUES, CompactPair, compact, to_table
from shadow.store import Head, Header, Kind, SegmentWriter
from shadow.sums import sums

_log: Final = logging.getLogger(__name__)
_REASONS: Final = 32
_SEGMENT_ROWS: Final = 16_384  # a flush comes early at that many, so that a segment stays a few megabytes
# Less than this waits for more: an hour would make thousands of small files.
_WORTH_ROWS: Final = 2048
_WORTH_BYTES: Final = 4 << 20
_LATEST_S: Final = 3.0
_LATEST_SHARE: Final = 1 / 60  # of the recorder's age: what is late must matter little beside what is known


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a recorder has made durable. ``evidence`` and ``head`` belong together: nothing else counts."""

    evidence: Evidence = field(default_factory=Evidence)
    head: Head | None = None
    errors: int = 0  # faults of our own so far: lost pairs, failed writes
    fault: str | None = None  # a failed write's ends with the next that goes through; that pairs were lost remains
    reasons: Mapping[str, int] = field(default_factory=dict)  # why the candidate failed, with counts; bounded


class Recorder:
    """Records one router's pairs of one rollout into a chain of its own.

    ``offer`` may be called from one thread (that of an event loop); it copies the scores and looks at the form of the
    answers, which takes some microseconds, and never waits or raises. A daemon thread compares, writes and syncs
    segments, and only then adds their rows to the sums and settles the account: on the side that did not answer the
    client, OK and REJECTED count as mirrored, TIMEOUT as timed out, ERROR and MALFORMED as failed; a request that never
    ran there (ABSENT) is not in the account at all. The lane calls ``Accounting.sample`` before, and ``shed`` where
    ``offer`` returns False.

    The thread looks every ``flush_interval_s``. It writes what is much, or has a failure of the candidate in it, at
    once; else it gathers for a sixtieth of the recorder's age, 3 s at most.

    ``comparator``, ``output`` and ``parameters`` are what ``open_comparator`` takes, and stand in every segment.
    ``declared`` are the baseline's outputs, for findings that need them (``shadow.findings.Finder``); an item with
    more than ``kept_values`` values on a side is compared, but its values are not kept.

    A fault never reaches the caller. When the disk fails, the rows are kept and tried again, until the bounds are
    reached and offers are refused; a pair that the comparator cannot compare is dropped, its items counted as failed,
    and ``fault`` says so from then on: evidence with holes must not pass a gate.

    Raises:
        EvidenceError: the chain exists already: every incarnation needs its own.
        ShadowError: there is no such comparator, or a parameter of it is wrong.
    """

    def __init__(
        self,
        folder: Path,
        chain: str,
        deployment_id: str,
        limits: Limits,
        accounting: Accounting,
        *,
        comparator: str = "classification",
        output: str = "scores",
        parameters: Mapping[str, Any] | None = None,
        declared: Iterable[TensorSpec] = (),
        kept_values: int = KEPT_VALUES,
        flush_interval_s: float = 1.0,
        max_pending_pairs: int = 8192,
        max_pending_bytes: int = 256 << 20,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._comparator = open_comparator(comparator, output, parameters)
        tensors = tuple(declared)
        self._finder, self._noise_finder = Finder(tensors), Finder(tensors)
        self._kept_values = kept_values
        self._writer = SegmentWriter(
            folder,
            Header(
                kind=Kind.PAIRS,
                deployment_id=deployment_id,
                limits=limits,
                comparator=comparator,
                output=output,
                parameters=dict(parameters or {}),
                measures=self._comparator.measures,
                kept_values=kept_values,
                chain=chain,
            ),
        )
        if self._writer.head is not None:
            raise EvidenceError(f"{folder}: chain {chain} exists already; a recorder needs a chain of its own")
        self._deployment_id, self._limits, self._accounting = deployment_id, limits, accounting
        self._max_pairs, self._max_bytes = max_pending_pairs, max_pending_bytes
        self._interval_s, self._clock = flush_interval_s, clock
        self._began_s = self._flushed_s = clock()
        self._lock = Lock()  # of the fields below; held for moments only
        self._pending: list[CompactPair] = []
        self._pending_rows = self._held_pairs = self._held_bytes = 0  # held: pending or being written
        self._urgent = False  # whether a failure of the candidate is pending
        self._recorded = Recorded()
        self._loss: str | None = None  # why pairs were lost: the evidence is not complete any more
        self._flushing = Lock()  # one flush at a time; covers the writer and the number of batches
        self._batches = 0
        self._wake, self._stop = Event(), Event()
        self._thread = Thread(target=self._run, name=f"recorder-{chain}", daemon=True)
        self._thread.start()

    def offer(self, pair: Pair) -> bool:
        """Take a pair to be recorded; its outputs may be reused afterwards.

        False: not taken, because the bounds are reached, the recorder is closed, or the pair is of another rollout.
        """
        if self._stop.is_set() or pair.deployment_id != self._deployment_id:
            return False
        if self._held_pairs >= self._max_pairs or self._held_bytes >= self._max_bytes:
            return False
        try:
            taken = compact(pair, self._comparator, find=self._finder.find, find_noise=self._noise_finder.find)
        except Exception as error:  # noqa: BLE001 - isolation: a broken pair must not reach the serving loop
            self._loss = f"a pair that cannot be recorded: {error!r}"
            self._note(self._loss)
            return False
        return self._append(taken)

    def snapshot(self) -> Recorded:
        """The sums of all durable rows, and the head of the chain that holds exactly these."""
        with self._lock:
            return self._recorded

    @property
    def due(self) -> bool:
        """Whether what is pending should be written now."""
        now_s = self._clock()
        latest_s = min(_LATEST_SHARE * (now_s - self._began_s), _LATEST_S)
        with self._lock:
            much = self._pending_rows >= _WORTH_ROWS or self._held_bytes >= _WORTH_BYTES
            return much or self._urgent or now_s - self._flushed_s >= latest_s

    def flush(self) -> None:
        """Make everything offered so far durable, unless a fault prevents it (see ``snapshot().fault``)."""
        with self._flushing:
            self._flush()

    def close(self) -> None:
        """Take no more, flush, end the thread and close the chain; what the disk refuses now is counted as failed."""
        self._stop.set()
        self._wake.set()
        self._thread.join()
        self.flush()
        with self._lock:
            lost, self._pending = self._pending, []
            self._held_pairs = self._held_bytes = self._pending_rows = 0
        self._accounting.settle(failed=_ends(lost).all)
        try:
            self._writer.close(self._accounting.snapshot())
        except OSError as error:
            self._note(f"the chain cannot be closed: {error}")

    def _append(self, taken: CompactPair) -> bool:
        with self._lock:
            if self._held_bytes + taken.nbytes > self._max_bytes:
                return False
            self._pending.append(taken)
            self._held_pairs += 1
            self._held_bytes += taken.nbytes
            self._pending_rows += sum(taken.rows)
            self._urgent |= bool(taken.candidate.failures)
            full = self._pending_rows >= _SEGMENT_ROWS
        if full:
            self._wake.set()
        return True

    def _run(self) -> None:
        while not self._stop.is_set():
            woken = self._wake.wait(self._interval_s)
            self._wake.clear()
            if not woken and not self.due:
                continue
            self.flush()
            if self.snapshot().fault is not None:
                self._stop.wait(self._interval_s)  # or a full queue would try a broken disk again and again

    def _flush(self) -> None:
        with self._lock:
            taken, self._pending = self._pending, []
            self._pending_rows, self._urgent = 0, False
        self._flushed_s = self._clock()
        if not taken:
            return
        try:
            self._record(taken)
        except Exception as error:  # noqa: BLE001 - isolation: a full disk must not end the recorder
            self._note(f"evidence cannot be written: {error}")
            with self._lock:
                self._pending = taken + self._pending
                self._pending_rows += sum(sum(pair.rows) for pair in taken)

    def _record(self, taken: list[CompactPair]) -> None:
        """Write one segment and let it count; raises only before anything has changed."""
        kept, table = self._compared(taken)
        head, evidence, ends = self._writer.head, Evidence(), _ends(kept)
        if kept:
            evidence = sums(table, self._limits, self._comparator.measures)
            head = self._writer.write(table, _settled(self._accounting.snapshot(), ends))
            self._batches += len(kept)
        with self._lock:
            self._held_pairs -= len(taken)
            self._held_bytes -= sum(pair.nbytes for pair in taken)
            before = self._recorded
            self._recorded = Recorded(
                evidence=before.evidence + evidence,
                head=head,
                errors=before.errors + len(taken) - len(kept),
                fault=self._loss,
                reasons=_add_reasons(before.reasons, kept),
            )
        self._settle(ends, Counter() if kept is taken else _ends(taken).all - ends.all)

    def _compared(self, taken: list[CompactPair]) -> tuple[list[CompactPair], pa.Table]:
        """The pairs that can be compared, and their rows: first all at once; if that fails, without the faulty ones."""
        try:
            return taken, self._table(taken)
        except Exception as error:  # noqa: BLE001 - isolation: comparators may be the user's
            self._loss = f"the comparator failed: {error!r}"
            _log.warning("recorder: %s", self._loss)
        kept = [pair for pair in taken if self._comparable(pair)]
        return kept, self._table(kept) if kept else None

    def _table(self, pairs: list[CompactPair]) -> pa.Table:
        return to_table(pairs, self._comparator, self._batches, kept_values=self._kept_values)

    def _comparable(self, pair: CompactPair) -> bool:
        try:
            self._table([pair])
        except Exception:  # noqa: BLE001 - isolation: counted and reported by the caller
            return False
        return True

    def _settle(self, ends: "_Ends", lost: Counter[Cell]) -> None:
        try:
            self._accounting.settle(mirrored=ends.mirrored, timed_out=ends.timed_out, failed=ends.failed + lost)
        except Exception as error:  # noqa: BLE001 - isolation: the rows are durable; only the account is wrong
            self._note(str(error))

    def _note(self, fault: str) -> None:
        _log.warning("recorder: %s", fault)
        with self._lock:
            before = self._recorded
            self._recorded = replace(before, errors=before.errors + 1, fault=fault)


def _settled(account: Account, ends: "_Ends") -> Account:
    """The account as it will be once pairs that end so are durable; as it is where they were never sampled."""
    if ends.all.total() > account.pending:
        return account
    return replace(
        account,
        mirrored=account.mirrored + ends.mirrored.total(),
        timed_out=account.timed_out + ends.timed_out.total(),
        failed=account.failed + ends.failed.total(),
        pending=account.pending - ends.all.total(),
    )


@dataclass(frozen=True, slots=True)
class _Ends:
    """Items by cell, as they ended on the side that did not answer the client."""

    mirrored: Counter[Cell] = field(default_factory=Counter)
    timed_out: Counter[Cell] = field(default_factory=Counter)
    failed: Counter[Cell] = field(default_factory=Counter)

    @property
    def all(self) -> Counter[Cell]:
        return self.mirrored + self.timed_out + self.failed


def _ends(pairs: Sequence[CompactPair]) -> _Ends:
    ends = _Ends()
    by_status = {Status.OK: ends.mirrored, Status.REJECTED: ends.mirrored, Status.TIMEOUT: ends.timed_out}
    for pair in pairs:
        for status, cell, items in pair.mirrored():
            by_status.get(status, ends.failed)[cell] += items
    return ends


def _add_reasons(before: Mapping[str, int], pairs: Sequence[CompactPair]) -> Mapping[str, int]:
    """Count the candidate's failures by what was said of them; texts beyond the first few are not told apart."""
    counts = dict(before)
    for text in (text for pair in pairs for text in pair.candidate.failures):
        known = text in counts or len(counts) < _REASONS
        counts[text if known else "others"] = counts.get(text if known else "others", 0) + 1
    return counts
