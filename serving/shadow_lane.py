"""One rollout's mirrored batches in the shadow process: each is run on the other side, and both outcomes are recorded.

In shadow the candidate runs it, and of a share of the batches the baseline's twin as well; in canary, what the
candidate answered is run by the twin. Replicas that answer clients are never asked.

Where exemplars are kept, requests are picked as their batch ends, while its inputs still lie where they were received.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import isnan, prod
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

import numpy as np
import orjson

from models.spec import TensorSpec
from models.tensor import Buffer, Tensor, decode_bytes, encode_bytes
from serving.arena import Window
from serving.handoff import Counted, Failure, Handoff, Opening
from serving.reply import Result, results_of
from serving.starvation import Starvation
from serving.telemetry import log_event
from serving.wire import BatchHeader, Layout, ReplyHeader, decode_batch_header, decode_reply_header
from shadow.accounting import Account, Accounting
from shadow.cells import Items, items_by_cell
from shadow.comparators import DELTA_CAP, Comparator
from shadow.exemplars import Exemplar, Exemplars
from shadow.findings import Finder
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.recorder import Recorder
from shadow.rows import STATUSES, TWIN, CompactSide, Scores, compact, comparison_columns

_log: Final = logging.getLogger("understudy.shadow")
_ABSENT: Final = Answer(status=Status.ABSENT)
_SPAN: Final = 1 << 32
_MOST_WAITING: Final = 16  # exemplars that wait to be written
_MOST_WAITING_BYTES: Final = 64 << 20
_FORGET_EVERY_S: Final = 60.0


@dataclass(slots=True, eq=False)
class Mirrored:
    """A batch that is to be run again: by each of ``legs``, one after the other."""

    lane: "ShadowLane"
    handoff: Handoff
    header: BatchHeader
    batch: Sequence[memoryview]  # its frames, without the header
    primary: Outcome
    legs: deque[int]  # versions
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by version
    age: int = 0  # ticks since it came, was sent to the present leg's replica, or had its turn there
    starvation: Starvation | None = None
    starved_s: float = 0.0

    def begin(self) -> None:
        """Its time begins anew."""
        self.age, self.starvation, self.starved_s = 0, None, 0.0


class RouterAccounting(Accounting):
    """The account of a lane whose offers a router counts: what that said last, and how the batches ended here."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counted()

    def snapshot(self) -> Account:
        """The lane's account, as of the last batch that came."""
        mine, theirs = super().snapshot(), self.counted
        ended = mine.mirrored + mine.timed_out + mine.failed
        shed = theirs.shed + mine.shed
        return replace(
            mine,
            sampled=theirs.sampled,
            shed=shed,
            too_large=theirs.too_large,
            pending=theirs.sampled - ended - shed - theirs.too_large,
        )


class ShadowLane:
    """Queues, settles and records. ``done`` is called with the number of each batch that is over."""

    def __init__(
        self,
        opening: Opening,
        *,
        twin: float,
        accounting: RouterAccounting,
        recorder: Recorder,
        exemplars: "Keeper | None" = None,
        done: Callable[[int], None],
    ) -> None:
        self.opening, self.accounting, self.recorder, self.exemplars = opening, accounting, recorder, exemplars
        self._done = done
        self._twin_bound = round(twin * _SPAN)
        self._twin_salt = blake2b(f"twin {opening.salt}".encode(), digest_size=16).digest()
        self.queue: deque[Mirrored] = deque()

    def take(self, handoff: Handoff, batch: Sequence[memoryview], reply: Sequence[memoryview]) -> None:
        """A batch that is to be run again.

        Raises:
            MalformedMessageError: it is no batch, or no reply.
        """
        self.accounting.counted = handoff.counted
        self.accounting.sample(_cells(handoff))
        mirrored = Mirrored(
            lane=self,
            handoff=handoff,
            header=decode_batch_header(batch[0]),
            batch=batch[1:],
            primary=outcome_of(decode_reply_header(reply[0]), reply[1:], handoff),
            legs=deque(self._legs(handoff)),
        )
        self.queue.append(mirrored)

    def take_answers(self, handoff: Handoff, reply: Sequence[memoryview]) -> None:
        """A batch of the candidate's answers that is not run again: evidence of latency, errors and memory alone."""
        self.accounting.counted = handoff.counted
        header = decode_reply_header(reply[0])
        answers = [
            Answer(status=_STATUS[segment.kind], error=segment.error)
            for segment in header.segments
            for _ in range(segment.requests)
        ]
        self._record(handoff, _measured(header, answers), {})

    def record_failure(self, failure: Failure) -> None:
        """A client's request that the candidate failed, and the baseline answered."""
        answer = Answer(status=failure.status, error=failure.error)
        self.recorder.offer(
            Pair(
                deployment_id=self.opening.deployment_id,
                stage=failure.stage,
                at_unix_us=failure.at_unix_us,
                primary=Arm.CANDIDATE,
                request_ids=(failure.request_id,),
                rows=(failure.rows,),
                latencies_ms=(failure.latency_us / 1000,),
                slices=(failure.slice,) if failure.slice else (),
                baseline=Outcome(answers=(_ABSENT,)),
                candidate=Outcome(answers=(answer,)),
            )
        )

    def settle(self, mirrored: Mirrored, version: int, outcome: Outcome) -> None:
        """Note what a version made of a batch: that is recorded, unless there is another that is to run it."""
        mirrored.outcomes[version] = outcome
        if mirrored.legs:
            mirrored.begin()
            self.queue.appendleft(mirrored)
            return
        self._finish(mirrored)

    def fail(self, mirrored: Mirrored, version: int, status: Status, error: str) -> None:
        """Note that a version did not answer a batch."""
        answer = Answer(status=status, error=error)
        self.settle(mirrored, version, Outcome(answers=(answer,) * len(mirrored.handoff.rows)))

    def put_back(self, mirrored: Mirrored, version: int) -> None:
        """A replica did not come to run a batch: another one may."""
        mirrored.legs.appendleft(version)
        mirrored.begin()
        self.queue.appendleft(mirrored)

    def skip_twin(self, mirrored: Mirrored) -> None:
        """There is no twin: a batch taken from the queue goes on without it. That is nobody's failure."""
        mirrored.legs.popleft()
        if mirrored.legs:
            self.queue.appendleft(mirrored)
        elif mirrored.outcomes:
            self._finish(mirrored)
        else:
            self.shed(mirrored)

    def shed(self, mirrored: Mirrored) -> None:
        """Count a batch as not mirrored, for want of time; the candidate's answers stay evidence."""
        if self.opening.candidate in mirrored.outcomes:  # only the twin has not run it yet
            self._finish(mirrored)
            return
        self.accounting.shed(_cells(mirrored.handoff))
        if mirrored.handoff.primary is Arm.CANDIDATE:
            self._record(mirrored.handoff, mirrored.primary, {})
        self._done(mirrored.handoff.number)

    def _finish(self, mirrored: Mirrored) -> None:
        """Record a batch that both sides have run; what it held is free afterwards."""
        pair = self._record(mirrored.handoff, mirrored.primary, mirrored.outcomes)
        if self.exemplars is not None and pair is not None:
            self.exemplars.consider(pair, mirrored)
        self._done(mirrored.handoff.number)

    def _legs(self, handoff: Handoff) -> list[int]:
        """The versions that run a batch again. The twin goes first as often as last: each finds the machine as warm."""
        opening = self.opening
        if handoff.primary is Arm.CANDIDATE:
            return [opening.baseline]
        drawn = int.from_bytes(blake2b(b"%d" % handoff.number, key=self._twin_salt, digest_size=5).digest())
        if drawn >> 8 >= self._twin_bound:
            return [opening.candidate]
        return [opening.baseline, opening.candidate] if drawn & 1 else [opening.candidate, opening.baseline]

    def _record(self, handoff: Handoff, primary: Outcome, others: Mapping[int, Outcome]) -> Pair | None:
        """What is recorded; None where that could not be taken."""
        recorded = handoff.recorded
        absent = Outcome(answers=(_ABSENT,) * len(recorded))
        mine = _chosen(primary, recorded)
        theirs = {version: _chosen(outcome, recorded) for version, outcome in others.items()}
        twin = theirs.get(self.opening.baseline)
        answered = handoff.primary is Arm.BASELINE
        pair = Pair(
            deployment_id=self.opening.deployment_id,
            stage=handoff.stage,
            at_unix_us=handoff.at_unix_us,
            primary=handoff.primary,
            request_ids=tuple(handoff.request_ids),
            rows=tuple(handoff.rows[at] for at in recorded),
            latencies_ms=tuple(latency_us / 1000 for latency_us in handoff.latencies_us),
            baseline=mine if answered else (twin or absent),
            candidate=theirs.get(self.opening.candidate, absent) if answered else mine,
            twin=twin if answered else None,
            slices=tuple(handoff.slices),
            sizes=tuple(handoff.sizes),
            ran_rows=sum(handoff.rows),
        )
        if self.recorder.offer(pair):
            return pair
        if others:
            self.accounting.shed(_cells(handoff))
        return None


class Keeper:
    """Has requests of one lane kept with their inputs, by a thread of its own: those that ``exemplars`` wants.

    ``consider`` is called on the event loop. It compares a batch once more, as the recorder will, and copies what is
    wanted; it never waits for a disk. What comes while there is much that is not written yet is dropped. No fault
    reaches the caller: each is counted, and the first of them said in the log.

    Args:
        exemplars: where they are kept; nobody else writes through it.
        opening: the lane's.
        comparator: one like the recorder's, and no one else's.
        declared: the baseline's outputs, as ``shadow.findings.Finder`` takes them.
        window: the router's arena, for a batch that has inputs there; None where it cannot be read any more.
        forget_every_s: how long nothing may be written until what is too old is looked for.
    """

    def __init__(
        self,
        exemplars: Exemplars,
        opening: Opening,
        *,
        comparator: Comparator,
        declared: Sequence[TensorSpec],
        window: Callable[[Mirrored], Window | None],
        forget_every_s: float = _FORGET_EVERY_S,
    ) -> None:
        self._exemplars, self._opening, self._comparator, self._window = exemplars, opening, comparator, window
        self._finder = Finder(declared)
        self._forget_every_s = forget_every_s
        self._dropped = self._faults = 0
        self._given = self._given_bytes = 0  # the event loop's alone
        self._written = self._written_bytes = 0  # the thread's alone
        self._waiting: SimpleQueue[tuple[Exemplar, int] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name=f"exemplars-{opening.chain}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Requests that were wanted, and for which there was no room."""
        return self._dropped

    @property
    def errors(self) -> int:
        """Batches that could not be looked at, and attempts to write or to delete that failed."""
        return self._faults + self._exemplars.errors

    def consider(self, pair: Pair, mirrored: Mirrored) -> None:
        """Look at the requests of a recorded batch, whose inputs are still there; both sides have run it."""
        try:
            for place, delta in enumerate(deltas_of(pair, self._comparator)):
                if delta is not None and self._exemplars.wants(delta, pair.request_ids[place]):
                    self._give(pair, mirrored, place, delta)
        except Exception as error:  # noqa: BLE001 - isolation: comparators may be the user's
            self._faults += 1
            if self._faults == 1:
                self._say("exemplars_not_taken", error=repr(error))

    def close(self) -> None:
        """Write what waits, and end the thread. May take as long as the disk does."""
        self._waiting.put(None)
        self._thread.join()
        self._note_lost()
        if self.dropped or self.errors:
            self._say("exemplars_lost", dropped=self.dropped, errors=self.errors)

    def _give(self, pair: Pair, mirrored: Mirrored, place: int, delta: float) -> None:
        waiting, waiting_bytes = self._given - self._written, self._given_bytes - self._written_bytes
        nbytes = pair.sizes[place] + sum(_nbytes(pair.of(arm).answers[place]) for arm in Arm)
        if waiting and (waiting >= _MOST_WAITING or waiting_bytes + nbytes > _MOST_WAITING_BYTES):
            self._dropped += 1
            return
        exemplar = self._exemplar(pair, mirrored, place, delta)
        self._given += 1
        self._given_bytes += nbytes
        self._waiting.put((exemplar, nbytes))

    def _exemplar(self, pair: Pair, mirrored: Mirrored, place: int, delta: float) -> Exemplar:
        """A copy of all that is kept of a request."""
        opening, rows = self._opening, pair.rows[place]
        baseline, candidate = pair.baseline.answers[place], pair.candidate.answers[place]
        return Exemplar(
            request_id=pair.request_ids[place],
            deployment_id=opening.deployment_id,
            chain=opening.chain,
            model=opening.model,
            baseline_version=opening.baseline,
            candidate_version=opening.candidate,
            stage=pair.stage,
            at_unix_us=pair.at_unix_us,
            rows=rows,
            slice=pair.slices[place] if pair.slices else "",
            max_delta=delta,
            findings=self._finder.find(baseline, candidate, rows),
            inputs=inputs_of(mirrored, mirrored.handoff.recorded[place], self._window),
            baseline=_copied(baseline),
            candidate=_copied(candidate),
        )

    def _run(self) -> None:
        while self._write_one():
            pass

    def _write_one(self) -> bool:
        """Write the next one, which is let go of afterwards; False where there is none to come."""
        try:
            waiting = self._waiting.get(timeout=self._forget_every_s)
        except Empty:
            self._exemplars.forget()  # writing one looks for what is too old as well
            self._note_lost()
            return True
        if waiting is None:
            return False
        exemplar, nbytes = waiting
        self._exemplars.keep(exemplar)
        self._written_bytes += nbytes
        self._written += 1
        if self._waiting.empty():  # no sooner: while much waits, each note would have more dropped
            self._note_lost()
        return True

    def _note_lost(self) -> None:
        """For ``understudy shadow report``; written only where it is more than it was."""
        self._exemplars.note_lost(self._opening.chain, self.dropped, self.errors)

    def _say(self, event: str, **facts: Any) -> None:
        log_event(_log, event, level=logging.WARNING, deployment_id=self._opening.deployment_id, **facts)


def deltas_of(pair: Pair, comparator: Comparator) -> list[float | None]:
    """The largest |Δscore| of each request, as it is recorded; ``DELTA_CAP`` where the candidate failed it.

    None where there is nothing to compare: the baseline has not answered it, or the candidate never ran it.

    Raises:
        ShadowError: the comparator's arrays are not what its contract says; a user's own may raise anything else.
    """
    taken = compact(replace(pair, twin=None), comparator, find=_nothing)
    slots = [max(count, 1) for count in pair.rows]
    items = sum(slots)
    nobody = Scores((), np.full(items, -1, np.int64), np.empty(0, np.float32), np.zeros(items, np.int64))
    scores = {
        str(Arm.BASELINE): _scores(taken.baseline, slots),
        str(Arm.CANDIDATE): _scores(taken.candidate, slots),
        TWIN: nobody,
    }
    column = comparison_columns(scores, np.zeros(items, np.int64), comparator)["max_delta"]
    each = column.to_numpy(zero_copy_only=False)  # NaN where there are no two sides
    largest = np.maximum.reduceat(each, np.cumsum([0, *slots[:-1]])).tolist()
    ends = zip(taken.baseline.statuses, taken.candidate.statuses, largest, strict=True)
    return [_delta(STATUSES[baseline], STATUSES[candidate], delta) for baseline, candidate, delta in ends]


def _nothing(baseline: Answer, candidate: Answer, rows: int) -> int:
    """Findings of requests that may not be wanted at all."""
    return 0


def _scores(side: CompactSide, slots: Sequence[int]) -> Scores:
    """A side's scores, item by item."""
    known = tuple(dict.fromkeys(layout for layout in side.layouts if layout is not None))
    codes = np.array([-1 if layout is None else known.index(layout) for layout in side.layouts], np.int64)
    return Scores(known, np.repeat(codes, slots), side.values, np.zeros(sum(slots), np.int64))


def _delta(baseline: Status, candidate: Status, delta: float) -> float | None:
    if baseline is not Status.OK or candidate is Status.ABSENT:
        return None
    if candidate is not Status.OK:
        return DELTA_CAP
    return None if isnan(delta) else delta


def _nbytes(answer: Answer) -> int:
    return sum(array.nbytes for array in (answer.outputs or {}).values())


def _copied(answer: Answer) -> Answer:
    """An answer that does not hold its whole reply in memory."""
    if answer.outputs is None:
        return answer
    return replace(answer, outputs={name: array.copy() for name, array in answer.outputs.items()})


_STATUS: Final = {"ok": Status.OK, "error": Status.ERROR, "malformed": Status.MALFORMED, "rejected": Status.REJECTED}


def outcome_of(header: ReplyHeader, frames: Sequence[Buffer], handoff: Handoff) -> Outcome:
    """What a replica's reply is evidence of, for every request of its batch."""
    results = results_of(header, frames, handoff.rows, batched=handoff.batched)
    return _measured(header, [_answer(result) for result in results])


def _measured(header: ReplyHeader, answers: Sequence[Answer]) -> Outcome:
    return Outcome(
        answers=tuple(answers),
        service_ms=(header.preprocess_us + header.compute_us) / 1000,
        cpu_ms=header.cpu_us / 1000 if header.cpu_us else None,  # nothing where it was not measured
        gpu_ms=None if header.gpu_us is None else header.gpu_us / 1000,
        peak_memory_bytes=header.peak_bytes,
    )


def _answer(result: Result) -> Answer:
    if result.status is not Status.OK:
        return Answer(status=result.status, error=result.error)
    return Answer(status=result.status, outputs={name: each.numpy() for name, each in result.outputs.items()})


def _chosen(outcome: Outcome, recorded: Sequence[int]) -> Outcome:
    if len(recorded) == len(outcome.answers):
        return outcome
    return replace(outcome, answers=tuple(outcome.answers[at] for at in recorded))


def _cells(handoff: Handoff) -> Items:
    return items_by_cell(handoff.sizes, handoff.slices, [handoff.rows[at] for at in handoff.recorded])


def frames_for(mirrored: Mirrored, batch_id: int, window: Window | None) -> list[Buffer]:
    """The batch's frames for a replica; with a ``window`` on the router's arena what lies there is sent, too."""
    header, batch = mirrored.header, mirrored.batch
    blocks = header.blocks
    frames: list[Buffer] = list(batch)
    if window is not None and blocks:
        frames, at = [], 0
        for layout in header.inputs:
            located = blocks.get(layout.name)
            if located is None:
                count = 1 if layout.joined else len(header.rows)
                frames += batch[at : at + count]
                at += count
            else:
                frames += [window.view(offset, size) for offset, size in located]
        blocks = {}
    inputs = [(each.name, each.datatype, each.shape, each.joined) for each in header.inputs]
    return [orjson.dumps((batch_id, header.rows, inputs, True, blocks)), *frames]


def inputs_of(mirrored: Mirrored, at: int, window: Callable[[Mirrored], Window | None]) -> tuple[Tensor, ...]:
    """A copy of the inputs of the request at a position in a batch; ``window`` is asked for only if they are there.

    Raises:
        ValueError: they lie in the router's arena, and that cannot be read.
        OSError: the same.
    """
    header, frame = mirrored.header, 0
    tensors: list[Tensor] = []
    for layout in header.inputs:
        place, located = (0 if layout.joined else at), header.blocks.get(layout.name)
        if located is None:
            data: Buffer = mirrored.batch[frame + place]
            frame += 1 if layout.joined else len(header.rows)
        else:
            data = _shown(window(mirrored), *located[place])
        if layout.joined and len(header.rows) > 1:
            data = _part(layout, data, header.rows, at)
        shape = (header.rows[at], *layout.shape) if mirrored.handoff.batched else layout.shape
        tensors.append(Tensor(layout.name, layout.datatype, shape, bytes(data)))
    return tuple(tensors)


def _shown(window: Window | None, offset: int, size: int) -> Buffer:
    if window is None:
        raise ValueError("its inputs lie in an arena that cannot be read")
    return window.view(offset, size)


def _part(layout: Layout, whole: Buffer, rows: Sequence[int], at: int) -> Buffer:
    """One request's bytes of what was joined for a batch."""
    first, count = sum(rows[:at]), rows[at]
    if layout.datatype == "BYTES":
        width = prod(layout.shape)
        return encode_bytes([*decode_bytes(whole)[first * width : (first + count) * width]])
    width = len(whole) // max(sum(rows), 1)
    return whole[first * width : (first + count) * width]
