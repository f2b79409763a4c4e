"""Load of several streams from one process: as fast as so many clients can, or at a constant rate.

At a rate, requests are sent when they are due, whether or not earlier ones are answered; a latency runs from the
moment a request was due. What is due is sent once a millisecond. Nothing here grows with the number of requests.
"""

import asyncio
import itertools
import math
import multiprocessing
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any, Final, Self

import uvloop

from benchmarks.errors import BenchmarkError
from benchmarks.soak.callers import TIMEOUT_S, Caller, Stream, caller

MOST_IN_FLIGHT: Final = 8192
NOT_SENT: Final = f"not sent: {MOST_IN_FLIGHT} in flight"
_TICK_S: Final = 0.001
_CYCLE: Final = 1000  # requests after which the order of the streams comes again
_STEP: Final = math.log(1.05)  # a latency is kept to 2.5 %


@dataclass(slots=True, kw_only=True)
class Tally:
    """What came of a stream's requests; ``latencies`` counts those answered by the logarithm of their latency."""

    offered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)

    @property
    def answered(self) -> int:
        """How many were answered 200 or OK."""
        return self.latencies.total()

    def record(self, failure: str, took_s: float) -> None:
        """Count an answer, or what there was instead."""
        if failure:
            self.failed[failure] += 1
        else:
            self.latencies[round(math.log(max(took_s, 1e-6) * 1000) / _STEP)] += 1

    def quantile_ms(self, share: float) -> float:
        """The latency that ``share`` of the answered requests did not exceed, in ms; NaN where none was answered."""
        wanted = share * self.answered
        reached = 0
        for bucket, count in sorted(self.latencies.items()):
            reached += count
            if reached >= wanted:
                return math.exp(bucket * _STEP)
        return math.nan

    def add(self, other: Self) -> None:
        """Count what another counted, too."""
        self.offered += other.offered
        self.failed.update(other.failed)
        self.latencies.update(other.latencies)

    def to_json(self) -> dict[str, Any]:
        """The tally as plain values."""
        return {"offered": self.offered, "failed": dict(self.failed), "latencies": dict(self.latencies)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``, from JSON too."""
        latencies = Counter({int(bucket): count for bucket, count in value["latencies"].items()})
        return cls(offered=value["offered"], failed=Counter(value["failed"]), latencies=latencies)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some seconds of load; ``cpu_s`` is what making it took."""

    seconds: float
    cpu_s: float
    streams: dict[str, Tally]

    def to_json(self) -> dict[str, Any]:
        """The window as plain values."""
        streams = {name: tally.to_json() for name, tally in self.streams.items()}
        return {"seconds": self.seconds, "cpu_s": self.cpu_s, "streams": streams}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``."""
        return cls(**{**value, "streams": {name: Tally.from_json(each) for name, each in value["streams"].items()}})

    @property
    def answered(self) -> int:
        """How many requests were answered."""
        return sum(each.answered for each in self.streams.values())

    @property
    def failed(self) -> Counter[str]:
        """How many requests failed, by kind."""
        return sum((each.failed for each in self.streams.values()), Counter())


def closed_loop(streams: Sequence[Stream], *, clients: int, seconds: float) -> Window:
    """What ``clients`` get answered that send their next request, of whichever stream, when they have an answer."""
    return uvloop.run(_closed_loop(streams, clients, seconds))


@contextmanager
def offering(streams: Sequence[Stream], *, rate: float, window_s: float) -> Iterator[Iterator[Window]]:
    """Offer ``rate`` requests a second from a process of its own while the block runs; a window every ``window_s``.

    Raises:
        BenchmarkError: by the iterator, when that process ends or is stuck.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_offer, args=(theirs, streams, rate, window_s), daemon=True)
    process.start()
    theirs.close()
    try:
        yield _windows(ours, window_s)
    finally:
        process.terminate()
        process.join()
        ours.close()


def _windows(connection: Connection, window_s: float) -> Iterator[Window]:
    while True:
        if not connection.poll(window_s + 2 * TIMEOUT_S):
            raise BenchmarkError(f"soak: the load's process said nothing for {window_s + 2 * TIMEOUT_S:.0f} s")
        try:
            yield connection.recv()
        except EOFError:
            raise BenchmarkError("soak: the load's process ended") from None


def _offer(connection: Connection, streams: Sequence[Stream], rate: float, window_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    uvloop.run(_offer_for_ever(connection, streams, rate, window_s))


async def _offer_for_ever(connection: Connection, streams: Sequence[Stream], rate: float, window_s: float) -> None:
    async with _load(streams) as load:
        while True:
            await load.at_rate(rate, window_s)
            connection.send(load.take())


class _Load:
    """The callers, and who is asked next."""

    def __init__(self, streams: Sequence[Stream], callers: Sequence[Caller]) -> None:
        self._callers = [(each.name, ask) for each, ask in zip(streams, callers, strict=True)]
        self._order = _order([each.share for each in streams])
        self._tasks: set[asyncio.Task[None]] = set()
        self._begin()

    def _begin(self) -> None:
        self._tallies = {name: Tally() for name, _ in self._callers}
        self._began, self._cpu_began_s = time.perf_counter(), time.process_time()

    def take(self) -> Window:
        """What happened since the last one was taken."""
        seconds, cpu_s = time.perf_counter() - self._began, time.process_time() - self._cpu_began_s
        window = Window(seconds=seconds, cpu_s=cpu_s, streams=self._tallies)
        self._begin()
        return window

    async def client(self, until: float) -> None:
        """Ask, one after the other."""
        while (now := time.perf_counter()) < until:
            name, ask = self._callers[next(self._order)]
            self._tallies[name].offered += 1
            await self._ask(name, ask, now)

    async def at_rate(self, rate: float, seconds: float) -> None:
        """Send what is due for ``seconds``."""
        started, sent = time.perf_counter(), 0
        while (passed := time.perf_counter() - started) < seconds:
            for number in range(sent, int(passed * rate)):
                self._send(started + number / rate)
            sent = max(sent, int(passed * rate))
            await asyncio.sleep(_TICK_S)

    def _send(self, due: float) -> None:
        name, ask = self._callers[next(self._order)]
        self._tallies[name].offered += 1
        if len(self._tasks) >= MOST_IN_FLIGHT:
            self._tallies[name].record(NOT_SENT, 0.0)
            return
        task = asyncio.get_running_loop().create_task(self._ask(name, ask, due))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, name: str, ask: Caller, due: float) -> None:
        failure = await ask.ask()
        self._tallies[name].record(failure, time.perf_counter() - due)


@asynccontextmanager
async def _load(streams: Sequence[Stream]) -> AsyncIterator[_Load]:
    callers = [caller(each) for each in streams]
    try:
        yield _Load(streams, callers)
    finally:
        for each in callers:
            with suppress(Exception):
                await each.close()


async def _closed_loop(streams: Sequence[Stream], clients: int, seconds: float) -> Window:
    async with _load(streams) as load:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(load.client(until) for _ in range(clients)))
        return load.take()


def _order(shares: Sequence[float]) -> Iterator[int]:
    """Streams by their shares, mixed, the same in every run."""
    counts = [round(_CYCLE * share / sum(shares)) for share in shares]
    cycle = [number for number, count in enumerate(counts) for _ in range(count)]
    Random(0).shuffle(cycle)
    return itertools.cycle(cycle)
