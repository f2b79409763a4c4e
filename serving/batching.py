"""Requests gather into batches while the replicas of their version are busy.

A batch leaves as soon as a replica is idle, so a lone request never waits. A busy replica is given one more batch ahead
of time when that batch is full or its oldest request has waited ``max_wait_ms``, so that it does not idle between two.
Of several replicas the one with the least to do gets it.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from models.spec import ModelSpec
from models.tensor import Buffer, Tensor
from rollout.traffic import Priority
from serving.channel import Link
from serving.config import Batching
from serving.errors import UnavailableError
from serving.protocol.messages import InferRequest, InferResponse
from serving.wire import encode_batch
from shadow.pair import Arm

Signature = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way. Times are seconds of ``time.monotonic``."""

    request: InferRequest
    version: int
    arm: Arm
    pinned: bool
    stage: int
    rows: int
    signature: Signature
    nbytes: int
    future: "asyncio.Future[InferResponse]"
    arrived: float
    deadline: float
    hurried: bool = False  # the client itself wants its answer by the deadline
    deployment_id: str | None = None  # of the rollout that was routed when it arrived
    batch_id: int = 0  # of the batch whose answer counts; that of an earlier one comes too late
    losses: int = 0  # how often its replica died while running it
    failed: bool = False  # the candidate failed it, and the baseline has it now
    admitted: bool = False  # it has found room in a queue
    adopted: bool = False  # it is in a queue that need not find room for it
    refusal: str = ""  # why the candidate rejected its input: counted as a failure once the baseline has taken it

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more: answered, failed, or its client went away."""
        return self.future.done()

    @property
    def protected(self) -> bool:
        """Whether the baseline answers it if the candidate does not."""
        return self.arm is Arm.CANDIDATE and not self.pinned and not self.failed


@dataclass(slots=True, eq=False)
class Batch:
    """Requests that travel together. ``frames`` are what their replica was sent, where a rollout may want them."""

    id: int
    jobs: list[Job]
    sent: float = 0.0
    frames: Sequence[Buffer] = ()

    @property
    def rows(self) -> int:
        """Batch rows of all its requests."""
        return sum(job.rows for job in self.jobs)


_ids = itertools.count(1)


def new_batch(jobs: list[Job]) -> Batch:
    """A batch with an id that is unique in this process."""
    return Batch(next(_ids), jobs)


def signature_of(inputs: Iterable[Tensor], *, batched: bool) -> Signature:
    """What must agree for two requests to share a batch."""
    return tuple([(each.name, each.datatype, each.shape[1:] if batched else each.shape) for each in inputs])


class Pool:
    """One version's queue and its replicas.

    If they are ``shared`` with other routers, these keep them from idling: a busy one is sent full batches alone.

    ``measure`` says whether batches are to be measured, ``kept`` whether what was sent is to be had again afterwards,
    ``is_baseline`` whether the version is its model's at present. ``locate`` tells where in the arena a buffer lies.
    """

    def __init__(
        self,
        spec: ModelSpec,
        batching: Batching,
        loop: asyncio.AbstractEventLoop,
        *,
        measure: Callable[[], bool],
        kept: Callable[[], bool] = lambda: False,
        is_baseline: Callable[[], bool] = lambda: False,
        locate: Callable[[Buffer], int | None] | None = None,
        shared: bool = False,
    ) -> None:
        self.spec, self.batching, self._shared = spec, batching, shared
        self._locate = locate
        self.links: list[Link] = []
        self.queued_items = 0
        self._adopted_items = 0  # of these, what another version failed
        self._queued_bytes = 0  # of all others
        self._queue: deque[Job] = deque()
        self._retries: deque[Batch] = deque()
        self._loop, self._measure, self._kept, self._is_baseline = loop, measure, kept, is_baseline
        self._scheduled = False
        self._timed = False
        self.max_rows = min(spec.max_batch_size, batching.max_batch_size) if spec.max_batch_size else 1

    @property
    def batched(self) -> bool:
        """Whether the model takes a batch dimension."""
        return self.spec.max_batch_size > 0

    @property
    def usable(self) -> bool:
        """Whether any replica can take work."""
        for link in self.active:  # noqa: SIM110 - asked for every request: a generator costs twice the time
            if link.usable:
                return True
        return False

    @property
    def active(self) -> list[Link]:
        """The replicas that get work: those at normal priority as soon as there are any. A baseline's in shadow are its
        twin, which answers nobody.
        """
        links = self.links
        if len(links) == 1 and links[0].replica.priority is Priority.NORMAL:
            return links
        normal = [link for link in links if link.replica.priority is Priority.NORMAL]
        return normal if normal or self._is_baseline() else links

    @property
    def waiting(self) -> bool:
        """Whether clients' requests wait here."""
        return bool(self._queue or self._retries)

    @property
    def demand(self) -> int:
        """Clients' items that wait or run."""
        waiting = self.queued_items + sum(batch.rows for batch in self._retries)
        running: Iterator[Batch] = (batch for link in self.links for batch in link.inflight.values())
        return waiting + sum(batch.rows for batch in running)

    def submit(self, job: Job) -> None:
        """Queue a request. What the candidate failed was admitted before: it takes nobody's room, and is not refused.

        Raises:
            UnavailableError: the queue is full.
        """
        if job.admitted:
            job.adopted = True
            self._adopted_items += job.rows
        else:
            self._admit(job)
        self._queue.append(job)
        self.queued_items += job.rows
        self._schedule()

    def _admit(self, job: Job) -> None:
        most, most_bytes = self.batching.max_queue, self.batching.max_queue_bytes
        if self.queued_items - self._adopted_items + job.rows > most:
            raise UnavailableError(f"model {self.spec.name}: queue full ({most} items)")
        if self._queued_bytes and self._queued_bytes + job.nbytes > most_bytes:
            raise UnavailableError(f"model {self.spec.name}: queue full ({most_bytes} bytes)")
        self._queued_bytes += job.nbytes
        job.admitted = True

    def retry(self, batch: Batch) -> None:
        """Queue a batch again, ahead of all others and as it is."""
        self._retries.append(batch)
        self._schedule()

    def drain(self) -> list[Job]:
        """Take every queued request out."""
        jobs = list(self._queued())
        self._queue.clear()
        self._retries.clear()
        self._recount()
        return jobs

    def take_protected(self) -> list[Job]:
        """Take out the queued requests that the baseline can answer instead."""
        taken = [job for job in self._queue if job.protected]
        self._queue = deque(job for job in self._queue if not job.protected)
        self._recount()
        return taken

    def expire(self, due: Callable[[Job], bool]) -> list[Job]:
        """Take out the queued requests that are ``due`` or that nobody waits for; returns those still awaited."""
        gone = {id(job): job for job in self._queued() if job.abandoned or due(job)}
        if not gone:
            return []
        self._queue = deque(job for job in self._queue if id(job) not in gone)
        self._recount()
        for batch in self._retries:
            batch.jobs = [job for job in batch.jobs if id(job) not in gone]
        self._retries = deque(batch for batch in self._retries if batch.jobs)
        return [job for job in gone.values() if not job.abandoned]

    def _queued(self) -> Iterator[Job]:
        """Every request that waits, those tried before included."""
        return itertools.chain(*(batch.jobs for batch in self._retries), self._queue)

    def idle_link(self) -> Link | None:
        """A usable replica with nothing to do: of several, the one that has been without work for longest."""
        idle = [link for link in self.active if link.usable and not link.inflight]
        return min(idle, key=_given) if len(idle) > 1 else next(iter(idle), None)

    def send(self, link: Link, batch: Batch) -> None:
        """Send a batch to one replica."""
        batch.sent = link.given = time.monotonic()
        for job in batch.jobs:
            job.batch_id = batch.id
        frames = encode_batch(
            batch.id,
            [job.rows for job in batch.jobs],
            [job.request.inputs for job in batch.jobs],
            batched=self.batched,
            measure=self._measure(),
            locate=self._locate if link.shares else None,
        )
        if self._kept():
            batch.frames = frames
        link.send(batch.id, batch, frames)

    def pump(self) -> None:
        """Send what can be sent."""
        self._scheduled = False
        while self.waiting:
            link = self._link_for_next()
            if link is None:
                return
            batch = self._take()
            if batch.jobs:
                self.send(link, batch)

    def _schedule(self) -> None:
        """Pump once after all requests of this turn of the loop are in: they share a batch."""
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.pump)

    def _link_for_next(self) -> Link | None:
        idle = self.idle_link()
        if idle is not None or self._retries:
            return idle
        busy = [link for link in self.active if link.usable and len(link.inflight) == 1]
        if not busy:
            return None
        if self.queued_items >= self.max_rows:
            return min(busy, key=_outstanding)
        if self._shared:
            return None
        waited = time.monotonic() - self._queue[0].arrived
        wait_s = self.batching.max_wait_ms / 1000
        if waited >= wait_s:
            return min(busy, key=_outstanding)
        if not self._timed:
            self._timed = True
            self._loop.call_later(wait_s - waited, self._pump_timed)
        return None

    def _pump_timed(self) -> None:
        self._timed = False
        self.pump()

    def _take(self) -> Batch:
        """The next batch: a retry as it is, else the oldest requests of one signature up to the size limit."""
        if self._retries:
            return self._retries.popleft()
        jobs: list[Job] = []
        rows = 0
        skipped: list[Job] = []
        while self._queue:
            job = self._queue[0]
            if job.abandoned:
                self._leave(self._queue.popleft())
                continue
            if jobs and rows + job.rows > self.max_rows:
                break
            self._queue.popleft()
            if jobs and job.signature != jobs[0].signature:
                skipped.append(job)
                continue
            jobs.append(job)
            rows += job.rows
            self._leave(job)
            if rows >= self.max_rows:
                break
        self._queue.extendleft(reversed(skipped))
        return new_batch(jobs)

    def _leave(self, job: Job) -> None:
        self.queued_items -= job.rows
        if job.adopted:
            self._adopted_items -= job.rows
        else:
            self._queued_bytes -= job.nbytes

    def _recount(self) -> None:
        self.queued_items = sum(job.rows for job in self._queue)
        self._adopted_items = sum(job.rows for job in self._queue if job.adopted)
        self._queued_bytes = sum(job.nbytes for job in self._queue if not job.adopted)


def _given(link: Link) -> float:
    return link.given


def _outstanding(link: Link) -> tuple[int, float]:
    """What a replica has still to do: its rows, and of equals, how long it has been at it."""
    return sum(batch.rows for batch in link.inflight.values()), link.given
