"""One rollout's mirrored batches in the shadow process: each is run on the other side, and both outcomes are recorded.

In shadow the candidate runs it, and of a share of the batches the baseline's twin as well; in canary, what the
candidate answered is run by the twin. Replicas that answer clients are never asked.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Final

import orjson

from models.tensor import Buffer
from serving.arena import Window
from serving.handoff import Counted, Failure, Handoff, Opening
from serving.reply import Result, results_of
from serving.wire import BatchHeader, ReplyHeader, decode_batch_header, decode_reply_header
from shadow.accounting import Account, Accounting
from shadow.cells import Items, items_by_cell
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.recorder import Recorder

_ABSENT: Final = Answer(status=Status.ABSENT)
_SPAN: Final = 1 << 32


@dataclass(slots=True, eq=False)
class Mirrored:
    """A batch that is to be run again: by each of ``legs``, one after the other."""

    lane: "ShadowLane"
    handoff: Handoff
    header: BatchHeader
    batch: Sequence[memoryview]  # its frames, without the header
    primary: Outcome
    legs: deque[int]  # versions
    age: int = 0  # ticks since it came, or since its present leg was sent
    outcomes: dict[int, Outcome] = field(default_factory=dict)  # by version


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
        done: Callable[[int], None],
    ) -> None:
        self.opening, self.accounting, self.recorder = opening, accounting, recorder
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
            mirrored.age = 0
            self.queue.appendleft(mirrored)
            return
        self._record(mirrored.handoff, mirrored.primary, mirrored.outcomes)
        self._done(mirrored.handoff.number)

    def fail(self, mirrored: Mirrored, version: int, status: Status, error: str) -> None:
        """Note that a version did not answer a batch."""
        answer = Answer(status=status, error=error)
        self.settle(mirrored, version, Outcome(answers=(answer,) * len(mirrored.handoff.rows)))

    def skip_twin(self, mirrored: Mirrored) -> None:
        """There is no twin: a batch taken from the queue goes on without it. That is nobody's failure."""
        mirrored.legs.popleft()
        if mirrored.legs:
            self.queue.appendleft(mirrored)
        elif mirrored.outcomes:
            self._record(mirrored.handoff, mirrored.primary, mirrored.outcomes)
            self._done(mirrored.handoff.number)
        else:
            self.shed(mirrored)

    def shed(self, mirrored: Mirrored) -> None:
        """Count a batch as not mirrored, for want of time; the candidate's answers stay evidence."""
        if self.opening.candidate in mirrored.outcomes:  # only the twin has not run it yet
            self._record(mirrored.handoff, mirrored.primary, mirrored.outcomes)
        else:
            self.accounting.shed(_cells(mirrored.handoff))
            if mirrored.handoff.primary is Arm.CANDIDATE:
                self._record(mirrored.handoff, mirrored.primary, {})
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

    def _record(self, handoff: Handoff, primary: Outcome, others: Mapping[int, Outcome]) -> None:
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
        if not self.recorder.offer(pair) and others:
            self.accounting.shed(_cells(handoff))


_STATUS: Final = {"ok": Status.OK, "error": Status.ERROR, "malformed": Status.MALFORMED, "rejected": Status.REJECTED}


def outcome_of(header: ReplyHeader, frames: Sequence[Buffer], handoff: Handoff) -> Outcome:
    """What a replica's reply is evidence of, for every request of its batch."""
    results = results_of(header, frames, handoff.rows, batched=handoff.batched)
    return _measured(header, [_answer(result) for result in results])


def _measured(header: ReplyHeader, answers: Sequence[Answer]) -> Outcome:
    return Outcome(
        answers=tuple(answers),
        service_ms=(header.preprocess_us + header.compute_us) / 1000,
        cpu_ms=header.cpu_us / 1000,
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
