"""Ways of a batch from a router to a replica and of its reply back, between two processes: round trips in a row.

The router's side runs on uvloop, as it does in service. A payload of an image's size
is written by the router and read, as a sum, by the replica. ``python -m benchmarks.alternatives.channels`` runs one.
"""

import asyncio
import os
import selectors
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import uvloop

from models.tensor import Buffer
from serving.arena import Arena, Window
from serving.frames import Inbox, pack, send_some

_HEAD: Final = b"h" * 100
_SETTLE_S: Final = 0.3


def _child(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def zeromq(scratch: Path, payload: bytes, trips: int) -> float:
    """Microseconds of a round trip over ZeroMQ: DEALER to ROUTER, ipc."""
    import zmq

    address = f"ipc://{scratch}/zeromq"

    def replica() -> None:
        server = zmq.Context().socket(zmq.ROUTER)
        server.bind(address)
        for _ in range(trips + 1):
            peer, head, body = server.recv_multipart(copy=False)
            np.frombuffer(body.buffer, np.uint8).sum()
            server.send_multipart([peer.bytes, head.bytes])
        time.sleep(_SETTLE_S)

    pid = _child(replica)
    time.sleep(_SETTLE_S)

    async def router() -> float:
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
        client = zmq.Context().socket(zmq.DEALER)
        client.connect(address)
        left = trips
        started = 0.0

        def send() -> None:
            # A body is received into fresh memory each time: so must this be.
            client.send_multipart([_HEAD, bytearray(payload)], copy=len(payload) < 1 << 16)
            if int(client.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                loop.call_soon(readable)

        def readable() -> None:
            nonlocal left, started
            while True:
                try:
                    client.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    return
                started = started or time.perf_counter()
                left -= 1
                if left < 0:
                    done.set_result(time.perf_counter() - started)
                    return
                send()

        loop.add_reader(client.FD, readable)
        send()
        return float(await done)

    seconds = uvloop.run(router())
    os.waitpid(pid, 0)
    return seconds / trips * 1e6


def _answer(theirs: socket.socket, size: int, trips: int, arena: Arena | None) -> None:
    """The replica over a Unix socket."""
    window = Window(arena.name) if arena is not None else None
    inbox, seen = Inbox(), 0
    selector = selectors.PollSelector()
    selector.register(theirs, selectors.EVENT_READ)
    while seen <= trips:
        selector.select()
        for head, body in inbox.received(theirs.recv_into(inbox.space())):
            data = body if window is None else window.view(int(bytes(body)), size)
            np.frombuffer(data, np.uint8).sum()
            send_some(theirs, pack([head]))
            seen += 1


class _Router:
    """The router over a Unix socket."""

    def __init__(self, ours: socket.socket, payload: bytes, trips: int, arena: Arena | None) -> None:
        self._socket, self._payload, self._left, self._arena = ours, payload, trips, arena
        self._inbox, self._started = Inbox(), 0.0
        self._held: memoryview | None = None

    async def run(self) -> float:
        """Seconds of all round trips but the first."""
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[float] = self._loop.create_future()
        self._loop.add_reader(self._socket, self._readable)
        self._send()
        return await self._done

    def _send(self) -> None:
        if self._arena is None:
            self._write(pack([_HEAD, bytearray(self._payload)]))
            return
        self._held = block = self._arena.allocate(len(self._payload))
        assert block is not None
        block[:] = self._payload
        self._write(pack([_HEAD, b"%d" % (self._arena.locate(block) or 0)]))

    def _write(self, parts: list[Buffer]) -> None:
        left = send_some(self._socket, parts)
        self._loop.remove_writer(self._socket)
        if left:
            self._loop.add_writer(self._socket, self._write, left)

    def _readable(self) -> None:
        for _ in self._inbox.received(self._socket.recv_into(self._inbox.space())):
            self._started = self._started or time.perf_counter()
            self._left -= 1
            if self._left < 0:
                self._loop.remove_reader(self._socket)
                self._done.set_result(time.perf_counter() - self._started)
                return
            self._send()


def _unix(payload: bytes, trips: int, arena: Arena | None) -> float:
    """Microseconds of a round trip over a Unix socket, the payload in a frame or, with an arena, in place."""
    ours, theirs = socket.socketpair()
    pid = _child(lambda: _answer(theirs, len(payload), trips, arena))
    ours.setblocking(False)
    seconds = uvloop.run(_Router(ours, payload, trips, arena).run())
    os.waitpid(pid, 0)
    return seconds / trips * 1e6


def unix(scratch: Path, payload: bytes, trips: int) -> float:
    """Over a Unix socket, the payload as a frame."""
    return _unix(payload, trips, None)


def arena(scratch: Path, payload: bytes, trips: int) -> float:
    """Over a Unix socket, the payload in shared memory."""
    shared = Arena(16 << 20)
    try:
        return _unix(payload, trips, shared)
    finally:
        shared.close()


CHANNELS: Final[Mapping[str, Callable[[Path, bytes, int], float]]] = {
    "ZeroMQ": zeromq,
    "Unix socket": unix,
    "Unix socket, payload in the arena": arena,
}

if __name__ == "__main__":
    from serving.process import keep_freed_memory

    keep_freed_memory()
    name, folder, size, count = sys.argv[1:]
    print(CHANNELS[name](Path(folder), bytes(int(size)), int(count)))
