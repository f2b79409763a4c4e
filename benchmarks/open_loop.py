"""Open-loop HTTP load: requests are sent when they are due, whether or not the answers to earlier ones are back.

wrk waits for an answer before it sends again, so a server that stalls is asked less, and its stall counts once. Here
arrivals are a Poisson process and a latency runs from the moment a request was *due*, so a stall counts for all who
would have come meanwhile (coordinated omission). One process makes some thousands of requests a second.
"""

import asyncio
import contextlib
import ctypes
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, Self, cast
from urllib.parse import urlsplit

import numpy as np
import uvloop

from benchmarks.errors import BenchmarkError
from benchmarks.load import Request, Sample

MAX_CONNECTIONS: Final = 256
GRACE_S: Final = 5.0
_SETTLE_S: Final = 0.005
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME
_SUCCESS: Final = (b"HTTP/1.1 2", b"HTTP/1.0 2")


@dataclass(slots=True)
class _Account:
    """What happened to the requests, and who waits."""

    sent: Iterator[bytes]  # one after another
    waiting: deque[float] = field(default_factory=deque)  # when each was due
    idle: list["_Client"] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    open: int = 0  # connections
    last: float = 0.0  # when the last answer came
    lost: str = ""


class _Client(asyncio.Protocol):
    """One connection that carries one request at a time."""

    def __init__(self, account: _Account) -> None:
        self._account = account
        self._due = 0.0
        self._busy = False
        self._missing = -1  # bytes of the answer still to come; negative while its header is
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses of it
        self._next()

    def send(self, due: float) -> None:
        assert self._transport is not None
        self._due, self._busy = due, True
        self._missing = -1
        self._transport.write(next(self._account.sent))

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            self._missing = end + 4 + _content_length(bytes(self._buffer[:end])) - len(self._buffer)
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        account = self._account
        account.open -= 1
        if self in account.idle:
            account.idle.remove(self)
        if self._busy:
            account.failed += 1
            account.lost = str(exc or "the server closed a connection")

    def close(self) -> None:
        self._busy = False
        if self._transport is not None:
            self._transport.abort()

    def _finish(self) -> None:
        if self._buffer.startswith(_SUCCESS):
            self._account.last = time.perf_counter()
            self._account.latencies_s.append(self._account.last - self._due)
        else:
            self._account.failed += 1
        self._buffer.clear()
        self._busy = False
        self._next()

    def _next(self) -> None:
        if self._account.waiting:
            self.send(self._account.waiting.popleft())
        else:
            self._account.idle.append(self)


def offer(
    base_url: str,
    request: Request,
    *,
    rate: float,
    seconds: float,
    seed: int,
    connections: int = MAX_CONNECTIONS,
) -> Sample:
    """Offer ``rate`` requests a second on average for ``seconds``; those unanswered GRACE_S later count as failed.

    A request that is due while all ``connections`` are busy is sent as soon as one is free; its time runs meanwhile.

    Raises:
        BenchmarkError: the server is not there, or nothing was answered.
    """
    sent = repeat(_http(request, urlsplit(base_url).netloc))
    return uvloop.run(_offer(base_url, sent, list(_arrivals(rate, seconds, seed)), seconds, connections))


def offer_at(
    base_url: str, requests: Iterable[Request], dues: Sequence[float], *, connections: int = MAX_CONNECTIONS
) -> Sample:
    """Offer each of some requests when it is due, in seconds from the start, ascending; else as ``offer`` does.

    Raises:
        BenchmarkError: the server is not there, or nothing was answered.
    """
    host = urlsplit(base_url).netloc
    sent = (_http(request, host) for request in requests)
    return uvloop.run(_offer(base_url, sent, dues, max(dues, default=0.0), connections))


async def _offer(
    base_url: str, sent: Iterator[bytes], offsets: Sequence[float], seconds: float, connections: int
) -> Sample:
    address = urlsplit(base_url)
    account = _Account(sent=sent)
    pool = _Pool(account, str(address.hostname), address.port or 80, connections)
    started = time.perf_counter()
    dues = [started + due for due in offsets]
    try:
        with _Alarm() as alarm:
            for due in dues:
                await alarm.wait_until(due)
                pool.send(due)
        await pool.settle(len(dues), time.perf_counter() + GRACE_S)
    finally:
        pool.close()
    took_s = max(account.last - started, seconds)
    return _sample(account, len(dues), took_s, connections, base_url)


class _Pool:
    """Connections, made when there is nothing idle."""

    def __init__(self, account: _Account, host: str, port: int, most: int) -> None:
        self._account, self._host, self._port, self._most = account, host, port, most
        self._clients: list[_Client] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, due: float) -> None:
        """Send now if there is a connection, else with the next that there is."""
        account = self._account
        if account.idle:
            account.idle.pop().send(due)
            return
        account.waiting.append(due)
        if account.open < self._most:
            account.open += 1
            task = asyncio.create_task(self._connect())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settle(self, requests: int, deadline: float) -> None:
        """Wait until all are answered or have failed, but not longer."""
        account = self._account
        while len(account.latencies_s) + account.failed < requests and account.open and time.perf_counter() < deadline:
            await asyncio.sleep(_SETTLE_S)

    def close(self) -> None:
        """Break all connections."""
        for task in self._tasks:
            task.cancel()
        for client in self._clients:
            client.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, client = await loop.create_connection(lambda: _Client(self._account), self._host, self._port)
        except OSError as error:
            self._account.open -= 1
            self._account.lost = str(error)
        else:
            self._clients.append(client)


class _Alarm:
    """Waits to the microsecond, without spinning: the timers of an event loop know milliseconds alone."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._timer < 0:
            raise BenchmarkError(f"open loop: no timer: {os.strerror(ctypes.get_errno())}")
        self._rings = asyncio.Event()

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self._timer, self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._timer)
        os.close(self._timer)

    async def wait_until(self, due: float) -> None:
        """Return at ``due`` by ``time.perf_counter``, which is the monotonic clock; at once if that is past."""
        if due <= time.perf_counter():
            return
        self._rings.clear()
        interval = (ctypes.c_long * 4)(0, 0, int(due), int(due % 1 * 1e9))
        self._libc.timerfd_settime(self._timer, _ABSOLUTE, interval, None)
        await self._rings.wait()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._timer, 8)
        self._rings.set()


def _arrivals(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """When requests are due, in seconds from the start."""
    noise = np.random.default_rng(seed)
    expected = rate * seconds
    gaps = noise.exponential(1 / rate, math.ceil(expected + 6 * math.sqrt(expected) + 10))
    yield from (due for due in np.cumsum(gaps).tolist() if due < seconds)


def _http(request: Request, host: str) -> bytes:
    headers = {"Host": host, **request.headers, "Content-Length": str(len(request.body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {request.path} HTTP/1.1\r\n{lines}\r\n".encode() + request.body


def _content_length(header: bytes) -> int:
    for line in header.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    raise BenchmarkError("open loop: expected an answer with a Content-Length, got one without")


def _sample(account: _Account, offered: int, took_s: float, connections: int, url: str) -> Sample:
    if not account.latencies_s:
        raise BenchmarkError(f"{url}: no request of {offered} was answered: {account.lost or 'too slow'}")
    latencies_ms = np.array(account.latencies_s) * 1000
    p50, p90, p99 = np.percentile(latencies_ms, [50, 90, 99]).tolist()
    return Sample(
        connections=connections,
        requests=offered,
        failed=offered - len(latencies_ms),
        requests_per_s=len(latencies_ms) / took_s,
        mean_ms=float(latencies_ms.mean()),
        sd_ms=float(latencies_ms.std()),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
    )
