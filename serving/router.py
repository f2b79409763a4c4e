"""The router: takes a request to the version that the routing table names, and its batch to the other one afterwards.

Everything here runs on the data plane's event loop as callbacks, never inside a request's own task: a client that goes
away cancels its own wait and nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from models.spec import ModelSpec
from models.tensor import Buffer
from rollout.traffic import Route
from serving.arena import Arena
from serving.batching import Batch, Job, Pool, new_batch, signature_of
from serving.channel import Link
from serving.config import Config
from serving.directory import Directory, Replica
from serving.errors import (
    DeadlineError,
    InvalidArgumentError,
    ModelFailedError,
    NotFoundError,
    ServingError,
    UnavailableError,
)
from serving.fleet import Fleet
from serving.mirror import MirrorLane, Mirrors
from serving.protocol.messages import InferRequest, InferResponse
from serving.reply import Result, results_of
from serving.split import arm as split_arm
from serving.statistics import Statistics
from serving.telemetry import Metrics, log_event
from serving.wire import ReplyHeader
from shadow.evidence import Limits
from shadow.pair import Arm, Status

_log = logging.getLogger("understudy.router")
_TICK_S: Final = 0.025
_SCAN_EVERY_TICKS: Final = 4
_MAX_LOSSES: Final = 2


@dataclass(frozen=True, slots=True)
class Table:
    """What the control side publishes. ``lease_s`` bounds how long a candidate keeps its weight without control."""

    epoch: int
    version: int
    lease_s: float
    routes: Mapping[str, Route] = field(default_factory=dict)

    @property
    def order(self) -> tuple[int, int]:
        """Tables are ordered by the controller's epoch, then by its count."""
        return (self.epoch, self.version)


def table_from(value: Mapping[str, Any]) -> Table:
    """A published table, read back."""
    routes = {name: Route(**{**route, "limits": Limits(**route["limits"])}) for name, route in value["routes"].items()}
    return Table(value["epoch"], value["version"], value["lease_s"], routes)


class Router:
    """Implements ``serving.dataplane.Engine`` over the live replicas."""

    def __init__(
        self,
        config: Config,
        directory: Directory,
        *,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        mirrors: Mirrors,
        arena: Arena | None = None,
    ) -> None:
        self._config, self._loop = config, loop
        self._metrics, self._mirrors = metrics, mirrors
        self._table = Table(0, 0, 0.0)
        self._lease_ends = 0.0
        self._lanes: dict[str, MirrorLane] = {}  # by model
        self._fleet = Fleet(
            config,
            directory,
            loop,
            arena=arena,
            is_baseline=lambda model, version: self._baseline_of(model) == version,
            rehearsed=lambda model: model in self._lanes,
            on_reply=self._on_reply,
            on_lost=self._on_lost,
            on_leaving=self._rescue_queue,
        )
        self._pools = self._fleet.pools
        self._ticks = 0
        self.ticked = time.monotonic()  # when the loop last got round to it
        self.statistics = Statistics()
        self._timer: asyncio.TimerHandle | None = None

    # -- the data plane's view -----------------------------------------------------------------------------------------

    def models(self) -> Mapping[str, Mapping[int, ModelSpec]]:
        """Every model with its live versions."""
        return self._fleet.live

    def default_version(self, model: str) -> int:
        """The baseline."""
        return self._route(model).baseline

    def ready(self, model: str, version: int | None) -> bool:
        """Whether a version (the baseline if None) can answer now."""
        route = self._table.routes.get(model)
        if route is None:
            return False
        pool = self._pools.get((model, version or route.baseline))
        return pool is not None and pool.usable

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a request that was checked against its model's spec.

        Raises:
            ServingError: NotFoundError, UnavailableError, DeadlineError, ModelFailedError, or InvalidArgumentError
                where the model could not read the input.
        """
        job = self._job(request)
        try:
            self._dispatch(job)
            response = await job.future
        except ServingError as error:
            self._note_failure(job, error)
            raise
        self._metrics.observe(request.model, response.version, "ok", time.monotonic() - job.arrived)
        return response

    def _note_failure(self, job: Job, error: ServingError) -> None:
        """Count and log a request that got an error; one that its model could not read is its client's affair."""
        elapsed_s, model = time.monotonic() - job.arrived, job.request.model
        rejected = isinstance(error, InvalidArgumentError)
        self._metrics.observe(model, job.version, "rejected" if rejected else "error", elapsed_s)
        if not rejected:
            self.statistics.record_failure(model, job.version, total_ns=round(elapsed_s * 1e9))
        log_event(
            _log,
            "request_rejected" if rejected else "request_failed",
            level=logging.INFO if rejected else logging.WARNING,
            model=model,
            request_id=job.request.request_id,
            error=str(error),
        )

    # -- control -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to watch replicas, deadlines and the lease; replicas that are there already are known at once."""
        self._fleet.scan()
        self._tick()

    def close(self) -> None:
        """Stop; the lanes stay open for whoever has opened the mirrors."""
        if self._timer is not None:
            self._timer.cancel()
        for job in self._fleet.close():
            _fail(job, UnavailableError("the server is stopping"))

    def renew(self) -> None:
        """The control side was heard: the candidate keeps its weight for another lease."""
        self._lease_ends = time.monotonic() + self._table.lease_s
        self._open_lanes()

    def apply(self, table: Table) -> None:
        """Take a newer table; an older one is ignored. The lanes of rollouts that ended are closed."""
        if table.order <= self._table.order:
            return
        self._table = table
        for model, lane in list(self._lanes.items()):
            route = table.routes.get(model)
            if route is None or route.deployment_id != lane.deployment_id:
                self._mirrors.close(self._lanes.pop(model))
        self.renew()
        for model, route in table.routes.items():
            self._metrics.set_weight(model, route.weight)
        self._fleet.note_live()
        for pool in self._pools.values():
            pool.pump()

    def forget(self, lane: MirrorLane) -> None:
        """A lane is lost with its shadow process: another one is opened at a later renewal."""
        if self._lanes.get(lane.opening.model) is lane:
            del self._lanes[lane.opening.model]

    def _open_lanes(self) -> None:
        """Open the lanes that are missing; where no process can be had for them now, the next renewal tries again."""
        for model, route in self._table.routes.items():
            if route.deployment_id is None or model in self._lanes or not self._mirrors.may_start:
                continue
            try:
                self._lanes[model] = self._mirrors.open(route, self._config.models[model])
            except OSError as error:
                log_event(
                    _log,
                    "lane_not_opened",
                    level=logging.ERROR,
                    deployment_id=route.deployment_id,
                    model=model,
                    error=str(error),
                )

    @property
    def table(self) -> Table:
        """The table in force."""
        return self._table

    @property
    def lanes(self) -> Mapping[str, MirrorLane]:
        """The running rollouts' mirror lanes by model."""
        return self._lanes

    @property
    def demand(self) -> dict[tuple[str, int], int]:
        """How many items of clients wait or run, by model and version."""
        return {key: pool.demand for key, pool in self._pools.items()}

    # -- a request's way -----------------------------------------------------------------------------------------------

    def _route(self, model: str) -> Route:
        route = self._table.routes.get(model)
        if route is None and model in self._config.models:
            raise UnavailableError(f"model {model!r}: the control side has not said yet who answers")
        if route is None:
            known = ", ".join(sorted(self._config.models))
            raise NotFoundError(f"unknown model {model!r}; served are: {known}")
        return route

    def _job(self, request: InferRequest) -> Job:
        route = self._route(request.model)
        now = time.monotonic()
        arm, pinned = self._choose(route, request, now)
        version = self._version(route, arm, request)
        pool = self._pools.get((request.model, version)) or self._pools.get((request.model, route.baseline))
        batched = pool is None or pool.batched
        first = next(iter(request.inputs.values()))
        most_s = self._config.server.deadline_s
        return Job(
            request=request,
            version=version,
            arm=arm,
            pinned=pinned,
            stage=route.stage,
            rows=first.shape[0] if batched else 1,
            signature=signature_of(request.inputs.values(), batched=batched),
            nbytes=sum(len(each.data) for each in request.inputs.values()),
            future=self._loop.create_future(),
            arrived=now,
            deadline=now + (most_s if request.timeout_s is None else min(request.timeout_s, most_s)),
            hurried=request.timeout_s is not None and request.timeout_s < most_s,
            deployment_id=route.deployment_id,
        )

    def _choose(self, route: Route, request: InferRequest, now: float) -> tuple[Arm, bool]:
        """The side that answers, and whether the client chose it."""
        if request.version is not None:
            return (Arm.CANDIDATE if request.version == route.candidate else Arm.BASELINE), True
        if request.arm is not None:
            return Arm(request.arm), True
        if route.candidate is None or now > self._lease_ends:
            return Arm.BASELINE, False
        return split_arm(route.salt, request.key, route.weight), False

    def _version(self, route: Route, arm: Arm, request: InferRequest) -> int:
        if request.version is not None:
            return request.version
        if arm is Arm.BASELINE:
            return route.baseline
        if route.candidate is None:
            raise NotFoundError(f"model {route.model!r} has no candidate at present")
        return route.candidate

    def _dispatch(self, job: Job) -> None:
        """Queue a request with its version; the candidate's troubles become the baseline's work."""
        pool = self._pools.get((job.request.model, job.version))
        if job.protected and (pool is None or not pool.usable):
            self._fall_back(job, Status.ERROR, "no live replica")
            return
        if pool is None or not (pool.usable or self._is_baseline(job)):
            raise self._absent(job)
        try:
            pool.submit(job)
        except UnavailableError:
            if not job.protected:
                raise
            self._fall_back(job, Status.ERROR, "queue full")

    def _is_baseline(self, job: Job) -> bool:
        """Whether it wants the baseline: while that restarts, its requests wait for it up to their deadline."""
        return job.version == self._route(job.request.model).baseline

    def _absent(self, job: Job) -> ServingError:
        route = self._route(job.request.model)
        if job.version in (route.baseline, route.candidate):
            return UnavailableError(f"model {route.model!r}: version {job.version} has no live replica at present")
        return NotFoundError(f"model {route.model!r} has no version {job.version} loaded")

    def _fall_back(self, job: Job, status: Status, error: str, *, counted: bool = True) -> None:
        """The candidate failed a client's request: that is counted, and the baseline answers."""
        if job.abandoned or not job.protected:
            return
        route = self._route(job.request.model)
        job.failed, job.batch_id = True, 0
        if counted:
            self._record_failure(job, status, error)
        self._metrics.count_fallback(job.request.model)
        log_event(
            _log,
            "candidate_failed",
            level=logging.WARNING,
            deployment_id=route.deployment_id,
            model=job.request.model,
            version=job.version,
            request_id=job.request.request_id,
            status=str(status),
            error=error,
        )
        pool = self._pools.get((job.request.model, route.baseline))
        try:
            if pool is None:
                raise UnavailableError(f"model {route.model!r}: version {route.baseline} is not loaded")
            pool.submit(job)
        except UnavailableError as unavailable:
            _fail(job, unavailable)

    def _on_reply(self, link: Link, header: ReplyHeader, reply: Sequence[Buffer]) -> None:
        batch: Batch | None = link.inflight.pop(header.id, None)
        pool = self._fleet.pool_of(link.replica)
        if batch is not None:
            replied = time.monotonic()
            started, link.replied = max(batch.sent, link.replied), replied
            results = results_of(header, reply[1:], [job.rows for job in batch.jobs], batched=pool.batched)
            _note_times(batch.jobs, header, started, replied)
            answered = self._answer(link.replica, batch, results)
            self._count(link.replica, batch, answered, header, started, replied)
            if link.replica.model in self._lanes:
                self._loop.call_soon(self._answered, pool, batch, reply, pool.waiting)
        pool.pump()

    def _count(
        self,
        replica: Replica,
        batch: Batch,
        answered: list[Job],
        header: ReplyHeader,
        started: float,
        replied: float,
    ) -> None:
        """Note in the statistics what a batch answered."""
        if not answered:
            return
        now, arrived_s = time.monotonic(), sum(job.arrived for job in answered)
        self.statistics.record(
            replica.model,
            replica.version,
            requests=len(answered),
            rows=sum(job.rows for job in answered),
            total_ns=round((now * len(answered) - arrived_s) * 1e9),
            queue_ns=round((started * len(answered) - arrived_s) * 1e9),
            input_ns=(header.copy_us + header.preprocess_us) * 1000,
            infer_ns=header.compute_us * 1000,
            output_ns=round((now - replied) * 1e9),
        )

    def _answer(self, replica: Replica, batch: Batch, results: list[Result]) -> list[Job]:
        """Answer a batch's clients; returns those that got what they asked for."""
        answered = []
        for job, result in zip(batch.jobs, results, strict=True):
            if job.abandoned or job.batch_id != batch.id:
                continue  # nobody waits, or the candidate is too late: the baseline has it now
            if result.status is Status.OK:
                if job.refusal:
                    self._record_failure(job, Status.ERROR, job.refusal)
                response = InferResponse(model=replica.model, version=replica.version, outputs=result.outputs)
                job.future.set_result(response)
                answered.append(job)
            elif job.protected:
                self._candidate_failed(job, result)
            elif result.status is Status.REJECTED:
                job.future.set_exception(InvalidArgumentError(f"model {replica.model!r}: {result.error}"))
            else:
                job.future.set_exception(ModelFailedError(f"model {replica.model!r}: {result.error}"))
        return answered

    def _candidate_failed(self, job: Job, result: Result) -> None:
        """The baseline answers instead. What the candidate rejected may be wrong in itself: the baseline will tell."""
        rejected = result.status is Status.REJECTED
        job.refusal = result.error if rejected else ""
        self._fall_back(job, result.status, result.error, counted=not rejected)

    def _answered(self, pool: Pool, batch: Batch, reply: Sequence[Buffer], waiting: bool) -> None:
        """After the answers have left: what they are evidence of."""
        model, version = pool.spec.name, pool.spec.version
        lane, route = self._lanes.get(model), self._table.routes[model]
        if lane is None or not route.mirror or version not in (route.baseline, route.candidate):
            return
        lane.offer(
            batch,
            Arm.BASELINE if version == route.baseline else Arm.CANDIDATE,
            reply,
            batched=pool.batched,
            waiting=waiting,
            now=time.monotonic(),
            at_unix_us=time.time_ns() // 1000,
        )

    def _record_failure(self, job: Job, status: Status, error: str) -> None:
        lane = self._lanes.get(job.request.model)
        if lane is not None and lane.deployment_id == job.deployment_id:
            latency_s = time.monotonic() - job.arrived
            lane.record_failure(job, status=status, error=error, latency_s=latency_s, at_unix_us=time.time_ns() // 1000)

    # -- replicas ------------------------------------------------------------------------------------------------------

    def _baseline_of(self, model: str) -> int | None:
        route = self._table.routes.get(model)
        return None if route is None else route.baseline

    def _on_lost(self, pool: Pool, batches: Sequence[Batch]) -> None:
        """A replica died: its batches are tried again, answered by the baseline, or counted."""
        for at, batch in enumerate(batches):
            self._lost(pool, batch, "its replica died", Status.ERROR, ran=at == 0)
        self._rescue_queue(pool)

    def _lost(self, pool: Pool, batch: Batch, why: str, status: Status, *, ran: bool) -> None:
        """A batch that will not be answered: the candidate's, or to be tried again in halves.

        ``ran`` is False for one that still waited behind the batch in work: it is not to blame for anything.
        """
        again = []
        for job in batch.jobs:
            if job.abandoned or job.batch_id != batch.id:
                continue
            if job.protected:
                self._fall_back(job, status, why)
                continue
            job.losses += ran
            again.append(job)
        if len(again) == 1 and again[0].losses >= _MAX_LOSSES:
            model = pool.spec.name
            times = again[0].losses
            _fail(again[0], ModelFailedError(f"model {model!r}: its process died {times} times running this request"))
            return
        # Halves, then one by one: a request that kills has three replicas at most, however large its batch was.
        tried_before = any(job.losses > 1 for job in again)
        size = 1 if tried_before else (len(again) + 1) // 2
        for at in range(0, len(again), max(size, 1)):
            pool.retry(new_batch(again[at : at + size]))

    def _rescue_queue(self, pool: Pool) -> None:
        """When a candidate has no replica left, the baseline answers what waits for it."""
        if pool.usable:
            return
        for job in pool.take_protected():
            self._fall_back(job, Status.ERROR, "no live replica")

    # -- time ----------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self._loop.call_later(_TICK_S, self._tick)
        self._ticks += 1
        self.ticked = time.monotonic()
        now = time.monotonic()
        if self._ticks % _SCAN_EVERY_TICKS == 0:
            self._fleet.scan()
            self._show()
        for pool in list(self._pools.values()):
            self._expire(pool, now)

    def _expire(self, pool: Pool, now: float) -> None:
        for link in list(pool.links):
            for batch in list(link.inflight.values()):
                self._expire_batch(pool, link, batch, now)
        for job in pool.expire(lambda job: now >= self._due(job)):
            self._late(job, queued=True)

    def _due(self, job: Job) -> float:
        """When a request is given up: at its deadline, or halfway while the candidate has it."""
        if job.protected:
            return (job.arrived + job.deadline) / 2
        return job.deadline

    def _late(self, job: Job, *, queued: bool = False) -> None:
        if job.protected:
            # A client in a hurry proves nothing: the candidate had its time when it had that of the latency target.
            target_s = self._route(job.request.model).limits.latency_target_ms / 1000
            fair = time.monotonic() - job.arrived >= target_s
            self._fall_back(job, Status.TIMEOUT, "no answer in time", counted=fair)
        elif queued and not job.hurried:
            _fail(job, UnavailableError(f"model {job.request.model!r}: no replica was free within the deadline"))
        else:
            _fail(job, DeadlineError(f"model {job.request.model!r}: no answer within the deadline"))

    def _expire_batch(self, pool: Pool, link: Link, batch: Batch, now: float) -> None:
        for job in batch.jobs:
            if not job.abandoned and now >= self._due(job):
                self._late(job)
        if now - batch.sent < self._patience(pool, batch) or batch.id not in link.inflight:
            return
        link.abandon(batch.id)
        self._lost(pool, batch, "no answer in time", Status.TIMEOUT, ran=True)
        for other in list(link.inflight.values()):
            del link.inflight[other.id]
            self._lost(pool, other, "its replica hangs", Status.TIMEOUT, ran=False)
        self._rescue_queue(pool)

    def _patience(self, pool: Pool, batch: Batch) -> float:
        """How long a batch may be with its replica before that is taken to hang."""
        if any(job.version == pool.spec.version and job.arm is Arm.CANDIDATE and not job.pinned for job in batch.jobs):
            return min(pool.batching.timeout_s, self._config.server.deadline_s / 2)
        return pool.batching.timeout_s

    def _show(self) -> None:
        for model, lane in self._lanes.items():
            self._metrics.set_mirror(model, lane.account().to_json())
        for (model, version), pool in self._pools.items():
            self._metrics.set_queue(model, version, pool.queued_items)


def _note_times(jobs: Iterable[Job], header: ReplyHeader, started: float, replied: float) -> None:
    for job in jobs:
        timing = job.request.timing
        if timing is not None:
            timing.decoded, timing.started, timing.replied = job.arrived, started, replied
            timing.copy_us, timing.preprocess_us = header.copy_us, header.preprocess_us
            timing.compute_us = header.compute_us


def _fail(job: Job, error: ServingError) -> None:
    if not job.abandoned:
        job.future.set_exception(error)
