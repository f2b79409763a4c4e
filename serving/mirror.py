"""The router's side of the mirror: what a version answered is handed to the shadow process, bounded and counted.

All that costs time happens in that process (``serving.rehearsal``), at the lowest priority: running the batch on the
other version, comparing, recording. Here a batch is sampled, and sent if there is room. What the machine has no time
for stays in the lane until that is full; from then on a batch is shed as it comes.
"""

import asyncio
import logging
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from models.tensor import Buffer
from rollout.traffic import Route
from serving.batching import Batch, Job
from serving.config import Model
from serving.handoff import (
    Counted,
    Failure,
    Handoff,
    Kind,
    Opening,
    decode_head,
    encode_close,
    encode_failure,
    encode_handoff,
    encode_open,
)
from serving.stream import FrameStream
from serving.telemetry import log_event
from shadow.accounting import Account, Accounting, Ledger
from shadow.cells import items_by_cell
from shadow.pair import Arm, Status
from shadow.sampler import Sampler

_log: Final = logging.getLogger("understudy.mirror")
_MOST_FAILURES: Final = 4096  # that wait to be sent: no batch's room is theirs
_AGAIN_S: Final = 0.5
_LATEST_AGAIN_S: Final = 30.0
_STEADY_S: Final = 60.0
_PRESSURE_SHARE: Final = 0.02  # of the latest batch in the average
_EASY: Final = 0.5  # below this all that is sampled is admitted
_WINDOW_S: Final = 0.05
_WINDOW_SHARE: Final = 0.3  # of the latest window in the average
_CALM, _FULL = 0.70, 0.95  # shares of the time that the event loop works: all is admitted, and a trickle
_TRICKLE: Final = 0.02
_MOST_PAST: Final = 8  # lanes that were lost; who has been told of them remembers


class Shadow(Protocol):
    """A shadow process, connected by the socket that it was started with."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def end(self) -> None:
        """Make sure that it ends; it has closed its connection, or is to be given up. Returns at once."""


@dataclass(slots=True)
class _Answered:
    """A batch, and what its replica made of it."""

    batch: Batch
    primary: Arm
    reply: Sequence[Buffer]
    batched: bool
    now: float
    at_unix_us: int

    @property
    def nbytes(self) -> int:
        """Of inputs and outputs."""
        return sum(map(len, self.reply)) + sum([job.nbytes for job in self.batch.jobs])


class Yielding:
    """Makes room for clients before the cores are full: ever less is admitted as what serves them idles less.

    Two things tell: how often work waits when a replica replies, and the share of the time in which this event loop,
    through which all requests pass, works (``busy_s`` is its CPU time). What runs beside them takes from clients
    whatever its priority, as cores share caches and memory, and whoever sleeps less is woken up later. A trickle is
    admitted even then, so that evidence goes on. What is admitted depends on the clients' load alone, never on an
    answer.
    """

    def __init__(self, busy_s: Callable[[], float] = time.thread_time) -> None:
        self._busy_s = busy_s
        self._pressure = self._loop = self._credit = 0.0
        self._window: tuple[float, float] | None = None  # when it began, and the CPU time then

    def note(self, waiting: bool, now: float) -> None:
        """A batch was answered; whether more waited for its replica."""
        self._pressure += _PRESSURE_SHARE * (waiting - self._pressure)
        if self._window is None:
            self._window = now, self._busy_s()
        elif (passed_s := now - self._window[0]) >= _WINDOW_S:
            busy_s = self._busy_s()
            self._loop += _WINDOW_SHARE * ((busy_s - self._window[1]) / passed_s - self._loop)
            self._window = now, busy_s

    def admits(self) -> bool:
        """Whether a batch may be mirrored now."""
        idle = min((1.0 - self._pressure) / (1.0 - _EASY), (_FULL - self._loop) / (_FULL - _CALM))
        room = max(idle, _TRICKLE)
        self._credit = min(self._credit + room, 1.0 + room)
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


class MirrorLane:
    """Samples, bounds and counts one rollout's mirrored batches. Lives on the data plane's event loop.

    ``most_held_bytes`` bounds what the shadow process may keep from clients: a lane that is empty takes one batch of
    any size that its settings allow.
    """

    def __init__(
        self,
        number: int,
        opening: Opening,
        model: Model,
        *,
        send: Callable[[Sequence[Buffer]], None],
        most_held_bytes: int,
    ) -> None:
        self.number, self.opening = number, opening
        self._settings, self._send = model.mirror, send
        self._most_held_bytes = min(most_held_bytes, model.mirror.max_pending_bytes)
        self._sampler = Sampler(model.mirror.sampling(), opening.salt)
        self._slices = model.slices.build() if model.slices is not None else None
        self._accounting = Accounting()
        self._held: dict[int, tuple[int, int, list[Job]]] = {}  # what the shadow process has: items, bytes, requests
        self._items = self._bytes = self._numbers = self._unread = 0
        self._yielding = Yielding()
        self._ends = Ledger()
        self._told = b"{}"
        self._lost: str | None = None  # why it takes nothing more

    @property
    def deployment_id(self) -> str:
        """The rollout's."""
        return self.opening.deployment_id

    @property
    def held_bytes(self) -> int:
        """Of inputs and answers that the shadow process has not let go of."""
        return self._bytes

    def offer(
        self,
        batch: Batch,
        primary: Arm,
        reply: Sequence[Buffer],
        *,
        batched: bool,
        waiting: bool,
        now: float,
        at_unix_us: int,
    ) -> None:
        """Take a batch whose answers have left; ``reply`` are the frames of its replica's, as they came.

        ``waiting`` says whether more of clients' requests waited for that replica when it replied. The candidate's own
        answers are evidence even where they are not mirrored: of latency, errors and memory.
        """
        self._yielding.note(waiting, now)
        mine, jobs = self.deployment_id, batch.jobs
        recorded = [
            at
            for at, job in enumerate(jobs)
            if job.arm is primary and not job.pinned and not job.failed and job.deployment_id == mine
        ]
        if not recorded:
            return
        answered = _Answered(batch, primary, reply, batched, now, at_unix_us)
        chosen = self._choose(jobs, recorded) if batch.frames else []  # sent before this lane was opened: not kept
        mirrored = bool(chosen) and self._admit(answered, chosen)
        if mirrored:
            self._hand_over(answered, chosen, run=True)
            recorded = [at for at in recorded if at not in chosen] if len(chosen) < len(recorded) else []
        if recorded and primary is Arm.CANDIDATE and self._has_room_unread():
            self._hand_over(answered, recorded, run=False)

    def _choose(self, jobs: Sequence[Job], recorded: list[int]) -> list[int]:
        """The positions of those that are to be mirrored."""
        requests = [jobs[at].request for at in recorded]
        ids, keys = [each.request_id for each in requests], [each.key for each in requests]
        chosen = self._sampler.choose(ids, keys, self._slices_of(jobs, recorded))
        if chosen is None:
            return []
        return recorded if len(chosen) == len(recorded) else [recorded[at] for at in chosen]

    def _slices_of(self, jobs: Sequence[Job], positions: Sequence[int]) -> list[str]:
        if self._slices is None:
            return []
        return [self._slices.of(jobs[at].request.parameters) for at in positions]

    def _admit(self, answered: "_Answered", chosen: Sequence[int]) -> bool:
        """Count what is sampled; whether there is room for its batch."""
        settings, jobs = self._settings, answered.batch.jobs
        rows = [jobs[at].rows for at in chosen]
        cells = items_by_cell([jobs[at].nbytes for at in chosen], self._slices_of(jobs, chosen), rows)
        items, nbytes = sum(rows), answered.nbytes
        self._accounting.sample(cells)
        if items > settings.max_pending or nbytes > settings.max_pending_bytes:
            self._accounting.too_large(cells)
            return False
        full = self._bytes and self._bytes + nbytes > self._most_held_bytes
        if full or self._items + items > settings.max_pending or not self._yielding.admits():
            self._accounting.shed(cells)
            return False
        self._held[self._numbers + 1] = items, nbytes, jobs
        self._items += items
        self._bytes += nbytes
        return True

    def _hand_over(self, answered: "_Answered", recorded: Sequence[int], *, run: bool) -> None:
        self._numbers += 1
        jobs = answered.batch.jobs
        mine = [jobs[at] for at in recorded]
        handoff = Handoff(
            number=self._numbers,
            primary=answered.primary,
            stage=min([job.stage for job in mine]),
            at_unix_us=answered.at_unix_us,
            rows=[job.rows for job in jobs],
            recorded=recorded,
            request_ids=[_text(job.request.request_id) for job in mine],
            latencies_us=[round((answered.now - job.arrived) * 1e6) for job in mine],
            sizes=[job.nbytes for job in mine],
            slices=self._slices_of(jobs, recorded),
            counted=self._counted(),
            batched=answered.batched,
        )
        frames, reply = (answered.batch.frames, answered.reply) if run else ((), answered.reply[:1])
        self._send(encode_handoff(self.number, handoff, frames, reply))

    def record_failure(self, job: Job, *, status: Status, error: str, latency_s: float, at_unix_us: int) -> None:
        """Hand over that the candidate failed a client's request, which the baseline answered instead."""
        if self._has_room_unread():
            failure = Failure(
                stage=job.stage,
                at_unix_us=at_unix_us,
                request_id=_text(job.request.request_id),
                rows=job.rows,
                latency_us=round(latency_s * 1e6),
                status=status,
                error=_text(error),
                slice="" if self._slices is None else self._slices.of(job.request.parameters),
            )
            self._send(encode_failure(self.number, failure))

    def done(self, numbers: Sequence[int]) -> None:
        """The shadow process is through with these batches."""
        self._unread = 0
        for number in numbers:
            held = self._held.pop(number, None)
            if held is not None:
                self._items -= held[0]
                self._bytes -= held[1]

    def told(self, ends: Ledger, told: Buffer) -> None:
        """The shadow process has said how its batches ended, and what of it is durable."""
        self._unread = 0
        self._ends, self._told = ends, bytes(told)

    def lose(self, why: str) -> None:
        """The shadow process is gone, or refused the lane, and with it what was not durable."""
        self._lost = why
        self._held.clear()
        self._items = self._bytes = 0

    def report(self) -> dict[str, Any]:
        """What the control side is told. May be called from any thread."""
        report = {"evidence": {}, "head": None, "error": None, "reasons": {}} | orjson.loads(self._told)
        if self._lost is not None:
            report["error"] = self._lost
        return {
            **report,
            "deployment_id": self.deployment_id,
            "chain": self.opening.chain,
            "ledger": self.ledger().to_json(),
        }

    def ledger(self) -> Ledger:
        """Where every sampled item went, as far as it is known."""
        ends = self._ends  # before the account that they belong to
        ledger = self._accounting.ledger() + ends
        return ledger if self._lost is None else ledger.abandoned()

    def account(self) -> Account:
        """The same over all."""
        return self.ledger().total

    def _has_room_unread(self) -> bool:
        """Whether one more message that holds no room may be sent; they are small, but a stopped process reads none."""
        self._unread += 1
        return self._unread <= _MOST_FAILURES

    def _counted(self) -> Counted:
        return Counted(*self._accounting.offered())


class Mirrors:
    """A router's lanes, and the shadow process behind them: started for the first, ended after the last.

    ``start`` starts one, given its end of a socket. When it dies, all lanes are lost: what they held counts as failed.
    ``on_lost`` is told of each that is to be opened again, ``may_start`` says when: soon, but less and less soon where
    the processes keep dying.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[socket.socket], Shadow],
        *,
        router: str,
        most_held_bytes: int,
        on_lost: Callable[[MirrorLane], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop, self._start, self._router, self._on_lost, self._clock = loop, start, router, on_lost, clock
        self._most_held_bytes = most_held_bytes
        self._stream: FrameStream | None = None
        self._shadow: Shadow | None = None
        self._lanes: dict[int, MirrorLane] = {}
        self._past: list[MirrorLane] = []  # of rollouts that go on, lost with their process
        self._numbers = 0
        self._began_s = self._not_before_s = 0.0
        self._again_s = _AGAIN_S
        self._quiet = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The shadow process's id, while there is one."""
        return None if self._shadow is None else self._shadow.pid

    @property
    def may_start(self) -> bool:
        """Whether a lane may be opened now."""
        return self._stream is not None or self._clock() >= self._not_before_s

    def open(self, route: Route, model: Model) -> MirrorLane:
        """Open the lane of a rollout.

        Raises:
            OSError: the shadow process cannot be started.
        """
        assert route.deployment_id is not None
        assert route.candidate is not None
        if self._stream is None:
            self._begin()
        assert self._stream is not None
        self._numbers += 1
        opening = Opening(
            deployment_id=route.deployment_id,
            model=route.model,
            baseline=route.baseline,
            candidate=route.candidate,
            salt=route.salt,
            limits=route.limits,
            chain=f"{self._router}-{uuid.uuid4().hex[:12]}",
        )
        lane = MirrorLane(
            self._numbers, opening, model, send=self._stream.send_soon, most_held_bytes=self._most_held_bytes
        )
        self._lanes[lane.number] = lane
        self._quiet.clear()
        self._stream.send(encode_open(lane.number, opening))
        return lane

    def close(self, lane: MirrorLane) -> None:
        """Let a lane's evidence be made durable; its rollout is over."""
        self._past = [each for each in self._past if each.deployment_id != lane.deployment_id]
        if lane.number in self._lanes and self._stream is not None:
            self._stream.send(encode_close(lane.number))

    def reports(self) -> list[dict[str, Any]]:
        """Of every lane, those lost included, what the control side is told. May be called from any thread."""
        return [lane.report() for lane in (*self._past, *list(self._lanes.values()))]

    async def stop(self, grace_s: float) -> None:
        """Close all lanes; returns when their evidence is durable, or after ``grace_s``: it is made durable then, too,
        by a process that nobody waits for.
        """
        for lane in list(self._lanes.values()):
            self.close(lane)
        if self._lanes:
            try:
                await asyncio.wait_for(self._quiet.wait(), grace_s)
            except TimeoutError:
                _log.warning("the shadow process is still writing")
        self._end()

    def _begin(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._shadow = self._start(theirs)
            except OSError:
                ours.close()
                raise
        self._began_s = self._clock()
        self._stream = FrameStream(self._loop, ours, on_message=self._take, on_end=self._down)

    def _end(self) -> None:
        """Hang up: it ends when it has nothing left to do."""
        if self._stream is not None:
            self._stream.close()
        self._stream = self._shadow = None

    def _take(self, message: Sequence[memoryview]) -> None:
        kind, number, rest = decode_head(message[0])
        lane = self._lanes.get(number)
        if lane is None:
            return
        if kind is Kind.DONE:
            lane.done(rest[0])
        elif kind is Kind.TOLD:
            lane.told(Ledger.from_json(rest[0]), message[1])
        elif kind is Kind.REFUSED:
            self._lose(lane, rest[0])
        elif kind is Kind.CLOSED:
            del self._lanes[number]
            if not self._lanes:
                self._quiet.set()
                self._end()

    def _down(self, why: str) -> None:
        steady = self._clock() - self._began_s >= _STEADY_S
        self._again_s = _AGAIN_S if steady else min(2 * self._again_s, _LATEST_AGAIN_S)
        self._not_before_s = self._clock() + self._again_s
        log_event(_log, "shadow_process_down", level=logging.ERROR, why=why, again_s=self._again_s)
        if self._shadow is not None:
            self._shadow.end()
        self._stream = self._shadow = None
        for lane in list(self._lanes.values()):
            self._lose(lane, "the shadow process is gone")
        self._quiet.set()

    def _lose(self, lane: MirrorLane, why: str) -> None:
        del self._lanes[lane.number]
        lane.lose(why)
        self._past = [*self._past, lane][-_MOST_PAST:]
        self._on_lost(lane)


def _text(value: str) -> str:
    """Text that UTF-8 can hold: a client may send half a surrogate pair."""
    return value if value.isascii() else value.encode(errors="replace").decode()
