"""What a shadow process does: it runs mirrored batches on shadow replicas, and has both outcomes recorded.

It works for one router, over one connection, and ends with it. All of it has the lowest priority that leaves the
evidence a little time of any core; the replicas that it sends batches to have only what nobody else wants.
"""

import asyncio
import itertools
import logging
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final

from models.errors import UnderstudyError
from models.spec import ModelSpec, TensorSpec
from models.tensor import Buffer
from rollout.traffic import Priority
from serving.arena import Window
from serving.channel import Link
from serving.config import Config, Mirror
from serving.directory import Directory
from serving.handoff import (
    Kind,
    Opening,
    decode_failure,
    decode_handoff,
    decode_head,
    encode_closed,
    encode_done,
    encode_refused,
    encode_told,
)
from serving.shadow_lane import Keeper, Mirrored, RouterAccounting, ShadowLane, frames_for, outcome_of
from serving.starvation import Starvation
from serving.stream import FrameStream
from serving.telemetry import log_event
from serving.wire import ReplyHeader
from shadow.comparators import open_comparator
from shadow.exemplars import FOLDER, Exemplars
from shadow.pair import Status
from shadow.recorder import Recorded, Recorder

_log: Final = logging.getLogger("understudy.shadow")
TICK_S: Final = 0.05
_SCAN_EVERY_TICKS: Final = 4
_TELL_EVERY_TICKS: Final = 10
_DONE_AFTER_S: Final = 0.01
_LEAST_AHEAD, _MOST_AHEAD = 4, 16  # batches that a replica may have been sent: else each would cost two wakings
_AHEAD_S: Final = 0.005  # of work, where that many take no longer: they cannot be shed any more
_REST_S: Final = 0.002  # in which many replies of small batches come
_SUSPECT_S: Final = 1.0  # a batch that is with its replica for longer has that one's starvation watched
_MINUTE_S: Final = 60.0
_BURST_S: Final = 10.0  # of the budget may be spent at once


class Budget:
    """Seconds of work a minute; None is no bound. ``clock`` tells seconds."""

    def __init__(self, seconds_per_minute: float | None, clock: Callable[[], float]) -> None:
        self._rate = None if seconds_per_minute is None else seconds_per_minute / _MINUTE_S
        self._clock, self._at = clock, clock()
        self._left_s = 0.0 if self._rate is None else self._rate * _BURST_S

    @property
    def open(self) -> bool:
        """Whether work may be begun: what it takes is known only afterwards, so the next waits for as long."""
        if self._rate is None:
            return True
        now = self._clock()
        self._left_s = min(self._left_s + (now - self._at) * self._rate, self._rate * _BURST_S)
        self._at = now
        return self._left_s > 0

    def spend(self, seconds: float) -> None:
        """Note what work has taken."""
        self._left_s -= seconds


class Rehearsal:
    """Serves a router's lanes until it hangs up. Lives on one event loop; ``on_end`` is called when all is durable.

    Ages are counted in its own ticks: where this process is starved, nothing grows older, and nobody is blamed.
    """

    def __init__(
        self,
        config: Config,
        directory: Directory,
        connection: socket.socket,
        *,
        loop: asyncio.AbstractEventLoop,
        arena: str | None,
        on_end: Callable[[], None],
        flush_interval_s: float = 1.0,
    ) -> None:
        self._config, self._directory, self._loop, self._arena = config, directory, loop, arena
        self._on_end, self._flush_interval_s = on_end, flush_interval_s
        self._window: Window | None = None
        self.lanes: dict[int, ShadowLane] = {}
        self._told: dict[int, tuple[Recorded, Any]] = {}
        self._over: dict[int, list[int]] = {}
        self._links: dict[str, Link] = {}
        self._ahead: dict[str, int] = {}  # how many batches each of them may have been sent
        self._budgets: dict[str, Budget] = {}
        self._ids = itertools.count(1)
        self._ticks = 0
        self._pumping = False
        self._cpu_s = time.process_time()
        self._closing: set[asyncio.Task[None]] = set()
        self._router = FrameStream(loop, connection, on_message=self._take, on_end=self._hang_up)
        self._timer = loop.call_later(TICK_S, self._tick)

    # -- what the router says ------------------------------------------------------------------------------------------

    def _take(self, message: Sequence[memoryview]) -> None:
        kind, number, rest = decode_head(message[0])
        if kind is Kind.OPEN:
            self._open(number, Opening.of(rest[0]))
            return
        lane = self.lanes.get(number)
        if lane is None:
            return  # it was refused, which the router will have read by now
        if kind is Kind.MIRROR:
            handoff, batch, reply = decode_handoff(rest, message[1:])
            lane.take(handoff, batch, reply)
            self._pump_soon()
        elif kind is Kind.ANSWERS:
            handoff, _, reply = decode_handoff(rest, message[1:])
            lane.take_answers(handoff, reply)
        elif kind is Kind.FAILURE:
            lane.record_failure(decode_failure(rest[0]))
        elif kind is Kind.CLOSE:
            self._close(number)

    def _open(self, number: int, opening: Opening) -> None:
        model = self._config.models[opening.model]
        accounting = RouterAccounting()
        try:
            declared = self._outputs_of(opening)
            recorder = Recorder(
                self._config.reports / opening.deployment_id / "evidence",
                chain=opening.chain,
                deployment_id=opening.deployment_id,
                limits=opening.limits,
                accounting=accounting,
                comparator=model.comparator.kind,
                output=model.comparator.output,
                parameters=model.comparator.parameters,
                declared=declared,
                flush_interval_s=self._flush_interval_s,
            )
        except (OSError, UnderstudyError) as error:
            log_event(
                _log, "lane_not_opened", level=logging.ERROR, deployment_id=opening.deployment_id, error=str(error)
            )
            self._router.send(encode_refused(number, str(error)))
            return
        self.lanes[number] = ShadowLane(
            opening,
            twin=model.mirror.twin,
            accounting=accounting,
            recorder=recorder,
            exemplars=self._keeper_of(opening, declared),
            done=lambda batch: self._done(number, batch),
        )
        self._scan()

    def _keeper_of(self, opening: Opening, declared: Sequence[TensorSpec]) -> Keeper | None:
        """Who keeps the lane's exemplars, where any are to be kept; the lane does its work without, too."""
        model = self._config.models[opening.model]
        settings = model.mirror.exemplars.build()
        if not settings.on:
            return None
        comparator = model.comparator
        try:
            return Keeper(
                Exemplars(self._config.reports / opening.deployment_id / FOLDER, settings, opening.salt),
                opening,
                comparator=open_comparator(comparator.kind, comparator.output, comparator.parameters),
                declared=declared,
                # What a router that has hung up kept for this process is nobody's any more.
                window=lambda mirrored: None if self._router.closed else self._window_on_arena(mirrored),
            )
        except (RuntimeError, UnderstudyError) as error:  # no thread could be started, or there is no such comparator
            log_event(
                _log, "exemplars_not_kept", level=logging.ERROR, deployment_id=opening.deployment_id, error=str(error)
            )
            return None

    def _outputs_of(self, opening: Opening) -> Sequence[TensorSpec]:
        """What the baseline declares; nothing while none of its replicas is there to tell."""
        for replica in self._directory.replicas().values():
            if (replica.model, replica.version) == (opening.model, opening.baseline):
                return ModelSpec.from_json(replica.spec).outputs
        return ()

    def _close(self, number: int) -> None:
        """Take nothing more for a lane; its last flush writes to disk: not on the event loop."""
        lane = self.lanes.pop(number)
        self._told.pop(number, None)
        while lane.queue:
            lane.shed(lane.queue.popleft())
        task = self._loop.create_task(self._finish(number, lane))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _finish(self, number: int, lane: ShadowLane) -> None:
        await asyncio.to_thread(lane.recorder.close)
        if not self._router.closed:
            self._flush_done(number)
            self._router.send(_told(number, lane.recorder.snapshot(), lane.accounting))
            self._router.send(encode_closed(number))
        if lane.exemplars is not None:
            await asyncio.to_thread(lane.exemplars.close)

    def _hang_up(self, why: str) -> None:
        """The router has gone: what is recorded is made durable, and that is all that can still be done."""
        self._timer.cancel()
        for link in self._links.values():
            link.close()
        for number in list(self.lanes):
            self._close(number)
        self._loop.create_task(self._end())

    async def _end(self) -> None:
        await asyncio.gather(*self._closing, return_exceptions=True)
        self._on_end()

    # -- what it is told -----------------------------------------------------------------------------------------------

    def _done(self, number: int, batch: int) -> None:
        """A batch is over. The router is told of several at once: each telling wakes it up."""
        over = self._over.setdefault(number, [])
        over.append(batch)
        if len(over) == 1:
            self._loop.call_later(_DONE_AFTER_S, self._flush_done, number)

    def _flush_done(self, number: int) -> None:
        over = self._over.pop(number, None)
        if over and not self._router.closed:
            self._router.send(encode_done(number, over))

    def _tell(self) -> None:
        """Say what is durable, where that is news."""
        for number, lane in self.lanes.items():
            state = lane.recorder.snapshot(), lane.accounting.snapshot()
            if self._told.get(number) != state:
                self._told[number] = state
                self._router.send(_told(number, state[0], lane.accounting))

    # -- replicas ------------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        """Meet the shadow replicas of what is rehearsed, and let go of all others."""
        wanted = {
            (lane.opening.model, version)
            for lane in self.lanes.values()
            for version in (lane.opening.baseline, lane.opening.candidate)
        }
        try:
            announced = self._directory.replicas()
        except OSError as error:
            log_event(_log, "replicas_not_found", level=logging.ERROR, error=str(error))
            return
        mine = {
            name: replica
            for name, replica in announced.items()
            if replica.priority is Priority.SHADOW and (replica.model, replica.version) in wanted
        }
        for name, replica in mine.items():
            if name not in self._links:
                self._links[name] = Link(
                    self._loop,
                    replica,
                    arena=self._arena,
                    rest_s=_REST_S,
                    on_reply=self._on_reply,
                    on_down=self._on_down,
                )
        for name in [name for name, link in self._links.items() if name not in mine and not link.inflight]:
            self._links.pop(name).close()
            self._ahead.pop(name, None)

    def _links_of(self, model: str, version: int) -> list[Link]:
        return [
            link
            for link in self._links.values()
            if link.replica.model == model and link.replica.version == version and link.usable
        ]

    def _on_reply(self, link: Link, header: ReplyHeader, reply: Sequence[Buffer]) -> None:
        mirrored: Mirrored | None = link.inflight.pop(header.id, None)
        self._budget(link.replica.model).spend(header.process_cpu_us * 1e-6)
        took_s = (header.preprocess_us + header.compute_us) * 1e-6
        self._ahead[link.replica.id] = min(max(round(_AHEAD_S / max(took_s, 1e-6)), _LEAST_AHEAD), _MOST_AHEAD)
        if mirrored is not None:
            mirrored.lane.settle(mirrored, link.replica.version, outcome_of(header, reply[1:], mirrored.handoff))
        for following in itertools.islice(link.inflight.values(), 1):
            following.begin()  # its turn has come
        self._pump_soon()

    def _on_down(self, link: Link) -> None:
        self._links.pop(link.replica.id, None)
        self._ahead.pop(link.replica.id, None)
        self._directory.withdraw(link.replica.id)
        batches = list(link.inflight.values())
        link.inflight.clear()
        self._give_up(link, batches, Status.ERROR, "its replica died")
        self._pump_soon()

    def _give_up(self, link: Link, batches: Sequence[Mirrored], status: Status, why: str) -> None:
        """The batch that a replica had in hand has failed; those that waited behind it are tried again."""
        version = link.replica.version
        for waiting in reversed(batches[1:]):
            waiting.lane.put_back(waiting, version)
        for mirrored in batches[:1]:
            mirrored.lane.fail(mirrored, version, status, why)

    # -- batches -------------------------------------------------------------------------------------------------------

    def _pump_soon(self) -> None:
        """Pump once after all that has come at a time."""
        if not self._pumping:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Send to replicas what waits for them."""
        self._pumping = False
        for lane in self.lanes.values():
            while lane.queue and self._budget(lane.opening.model).open:
                mirrored, version = lane.queue[0], lane.queue[0].legs[0]
                links = self._links_of(lane.opening.model, version)
                if not links and version == lane.opening.baseline:
                    lane.queue.popleft()
                    lane.skip_twin(mirrored)
                    continue
                link = min(links, key=_outstanding, default=None)
                if link is None or _outstanding(link) >= self._ahead.get(link.replica.id, _LEAST_AHEAD):
                    break
                lane.queue.popleft()
                self._send(mirrored, link)
        for link in self._links.values():
            link.flush()

    def _send(self, mirrored: Mirrored, link: Link) -> None:
        batch_id = next(self._ids)
        try:
            frames = frames_for(mirrored, batch_id, None if link.shares else self._window_on_arena(mirrored))
        except (OSError, ValueError) as error:
            _log.warning("a batch cannot be read: %s", error)
            mirrored.lane.shed(mirrored)
            return
        mirrored.legs.popleft()
        mirrored.begin()
        link.send_soon(batch_id, mirrored, frames)

    def _window_on_arena(self, mirrored: Mirrored) -> Window | None:
        if self._window is None and mirrored.header.blocks and self._arena is not None:
            self._window = Window(self._arena)
        return self._window

    def _budget(self, model: str) -> Budget:
        if model not in self._budgets:
            settings = self._config.models[model].mirror
            share = None if settings.budget is None else settings.budget / self._config.server.routers
            self._budgets[model] = Budget(share, time.monotonic)
        return self._budgets[model]

    # -- time ----------------------------------------------------------------------------------------------------------

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._ticks += 1
        if self._ticks % _SCAN_EVERY_TICKS == 0:
            self._scan()
            self._spend_own()
        if self._ticks % _TELL_EVERY_TICKS == 0:
            self._tell()
        for link in list(self._links.values()):
            self._watch(link)
        for lane in self.lanes.values():
            self._age(lane)
        self._pump()

    def _spend_own(self) -> None:
        """What comparing and recording take is shadow work as well."""
        spent_s, self._cpu_s = time.process_time() - self._cpu_s, time.process_time()
        for lane in self.lanes.values():
            self._budget(lane.opening.model).spend(spent_s / len(self.lanes))

    def _age(self, lane: ShadowLane) -> None:
        """What waited too long is shed; where no replica lives to take it, that is its version's failure."""
        settings = self._mirror(lane)
        for mirrored in lane.queue:
            mirrored.age += 1
        while lane.queue and lane.queue[0].age * TICK_S > settings.timeout_s:
            mirrored = lane.queue.popleft()
            version = mirrored.legs.popleft()
            if version == lane.opening.baseline or self._links_of(lane.opening.model, version):
                lane.shed(mirrored)
            else:
                lane.fail(mirrored, version, Status.TIMEOUT, "no live replica")

    def _watch(self, link: Link) -> None:
        """Give up the batch that a replica has in hand if it hangs. While it is kept from running, it does not."""
        mirrored: Mirrored | None = next(iter(link.inflight.values()), None)
        if mirrored is None:
            return
        mirrored.age += 1
        age_s = mirrored.age * TICK_S
        if age_s <= _SUSPECT_S:
            return
        if mirrored.starvation is None:
            mirrored.starvation = Starvation(link.replica.pid)
        mirrored.starved_s += mirrored.starvation.since()
        if age_s - mirrored.starved_s > self._mirror(mirrored.lane).timeout_s:
            batches = [link.abandon(batch_id) for batch_id in list(link.inflight)]
            self._give_up(link, batches, Status.TIMEOUT, "no answer in time")

    def _mirror(self, lane: ShadowLane) -> Mirror:
        return self._config.models[lane.opening.model].mirror


def _outstanding(link: Link) -> int:
    return len(link.inflight)


def _told(number: int, recorded: Recorded, accounting: RouterAccounting) -> list[Buffer]:
    durable = {
        "evidence": recorded.evidence.to_json(),
        "head": asdict(recorded.head) if recorded.head is not None else None,
        "error": recorded.fault,
        "reasons": dict(recorded.reasons),
    }
    return encode_told(number, accounting.ledger().ends(), durable)
