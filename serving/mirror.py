"""The mirror lane of one rollout: batches that a version answered wait here to be run by the other version too.

Bounded in items and bytes; what does not fit is shed and counted. A mirrored batch is never in a client's way: it is
taken up only after its answers have left and while no client's request waits.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from models.tensor import Array
from serving.batching import Batch, Job
from serving.config import Mirror
from shadow.accounting import Accounting
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.recorder import Recorder
from shadow.sampler import Sampler

ABSENT = Answer(status=Status.ABSENT)


@dataclass(slots=True, eq=False)
class Mirrored:
    """A batch that one version answered, on its way to the other. ``recorded`` are the positions of the jobs
    that are evidence: requests that were pinned, that the other version failed first, or that came before this rollout
    travel along but count for nothing.
    """

    jobs: list[Job]
    recorded: list[int]
    pair: Pair
    items: int
    nbytes: int
    offered: float
    lane: "MirrorLane | None" = None  # that has queued it


class MirrorLane:
    """Samples, bounds, queues and settles one rollout's mirrored batches. Lives on the data plane's event loop."""

    def __init__(
        self,
        deployment_id: str,
        settings: Mirror,
        *,
        accounting: Accounting,
        sampler: Sampler,
        recorder: Recorder,
    ) -> None:
        self.deployment_id, self.settings = deployment_id, settings
        self.accounting, self.recorder = accounting, recorder
        self._sampler = sampler
        self._queue: deque[Mirrored] = deque()
        self._items = self._bytes = 0

    def offer(self, mirrored: Mirrored) -> bool:
        """Sample a batch and queue it; a batch that is not to be mirrored is recorded for its answers alone.

        Returns:
            Whether it was queued.
        """
        if not mirrored.recorded:
            return False
        if not self._sampler.takes(mirrored.pair.request_ids[0]):
            self._record_answers(mirrored)
            return False
        self.accounting.sample(mirrored.items)
        if mirrored.nbytes > self.settings.max_pending_bytes or mirrored.items > self.settings.max_pending:
            self.accounting.too_large(mirrored.items)
            self._record_answers(mirrored)
            return False
        if (
            self._items + mirrored.items > self.settings.max_pending
            or self._bytes + mirrored.nbytes > self.settings.max_pending_bytes
        ):
            self.shed(mirrored)
            return False
        mirrored.lane = self
        self._queue.append(mirrored)
        self._items += mirrored.items
        self._bytes += mirrored.nbytes
        return True

    @property
    def head(self) -> Mirrored | None:
        """The batch that waits longest."""
        return self._queue[0] if self._queue else None

    def take(self) -> Mirrored:
        """Take the head out to be sent; it stays within the bounds until it is settled."""
        return self._queue.popleft()

    def settle(self, mirrored: Mirrored, outcome: Outcome) -> None:
        """Record what the other version made of a batch taken from the queue."""
        self._release(mirrored)
        chosen = replace(outcome, answers=tuple(outcome.answers[at] for at in mirrored.recorded))
        pair = mirrored.pair
        answered = pair.primary is Arm.BASELINE
        pair = replace(pair, candidate=chosen) if answered else replace(pair, baseline=chosen)
        if not self.recorder.offer(pair):
            self.accounting.shed(mirrored.items)

    def fail(self, mirrored: Mirrored, status: Status, error: str) -> None:
        """Record that the other version did not answer a batch."""
        answer = Answer(status=status, error=error)
        self.settle(mirrored, Outcome(answers=(answer,) * len(mirrored.jobs)))

    def shed(self, mirrored: Mirrored) -> None:
        """Count a batch that is not mirrored for want of room; its answers stay evidence."""
        self.accounting.shed(mirrored.items)
        self._record_answers(mirrored)

    def shed_queue(self) -> None:
        """Shed all that waits."""
        while self._queue:
            mirrored = self._queue.popleft()
            self._release(mirrored)
            self.shed(mirrored)

    def take_older_than(self, instant: float) -> list[Mirrored]:
        """Take out what was offered before ``instant``; the caller sheds or fails it."""
        old = []
        while self._queue and self._queue[0].offered < instant:
            old.append(self._queue.popleft())
        return old

    def shed_taken(self, mirrored: Mirrored) -> None:
        """Shed a batch that was taken from the queue."""
        self._release(mirrored)
        self.shed(mirrored)

    def record_failure(self, job: Job, *, status: Status, error: str, latency_ms: float, at_unix_us: int) -> None:
        """Record that the candidate failed a client's request, which the baseline answered instead."""
        failure = Outcome(answers=(Answer(status=status, error=error),))
        self.recorder.offer(
            Pair(
                deployment_id=self.deployment_id,
                stage=job.stage,
                at_unix_us=at_unix_us,
                primary=Arm.CANDIDATE,
                request_ids=(job.request.request_id,),
                rows=(job.rows,),
                latencies_ms=(latency_ms,),
                baseline=Outcome(answers=(ABSENT,)),
                candidate=failure,
            )
        )

    def _release(self, mirrored: Mirrored) -> None:
        self._items -= mirrored.items
        self._bytes -= mirrored.nbytes

    def _record_answers(self, mirrored: Mirrored) -> None:
        """Without a mirror image the candidate's own answers are still evidence: of latency, errors and memory."""
        if mirrored.pair.primary is Arm.CANDIDATE:
            self.recorder.offer(mirrored.pair)


def mirrored_batch(
    batch: Batch,
    *,
    deployment_id: str,
    primary: Arm,
    outcome: Outcome,
    latencies_ms: Sequence[float],
    now: float,
    at_unix_us: int,
) -> Mirrored:
    """A primary batch made ready for the lane; ``outcome`` has an answer per job."""
    recorded = [
        at
        for at, job in enumerate(batch.jobs)
        if not job.pinned and not job.failed and job.arm is primary and job.deployment_id == deployment_id
    ]
    jobs = [batch.jobs[at] for at in recorded]
    mine = replace(outcome, answers=tuple(outcome.answers[at] for at in recorded))
    absent = Outcome(answers=(ABSENT,) * len(jobs))
    pair = Pair(
        deployment_id=deployment_id,
        stage=min((job.stage for job in jobs), default=0),
        at_unix_us=at_unix_us,
        primary=primary,
        request_ids=tuple(job.request.request_id for job in jobs),
        rows=tuple(job.rows for job in jobs),
        latencies_ms=tuple(latencies_ms[at] for at in recorded),
        baseline=mine if primary is Arm.BASELINE else absent,
        candidate=mine if primary is Arm.CANDIDATE else absent,
    )
    return Mirrored(
        jobs=batch.jobs,
        recorded=recorded,
        pair=pair,
        items=sum(pair.rows),
        nbytes=sum(job.nbytes for job in batch.jobs) + _answer_bytes(outcome),
        offered=now,
    )


def _answer_bytes(outcome: Outcome) -> int:
    """Bytes that the answers keep alive."""
    arrays: list[Array] = [array for answer in outcome.answers for array in (answer.outputs or {}).values()]
    return sum(array.nbytes for array in arrays)
