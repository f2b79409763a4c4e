"""An HTTP server in a thread of its own, on the loop that production uses, and clients that send it any bytes."""

import asyncio
import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvloop

from serving.door import Limits, bind
from serving.http_server import HttpRequest, HttpServer, Reply
from serving.intake import Intake

TEXT = (b"content-type", b"text/plain")
DEFAULT = Limits()
LARGE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Client:
    """One connection; reads answers one by one."""

    def __init__(self, port: int, *, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def ask(self, *pieces: bytes) -> Answer:
        self.send(*pieces)
        return self.answer()

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next answer; interim ones are passed over."""
        while b"\r\n\r\n" not in self._received:
            self._more()
        head, _, self._received = self._received.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = {name: value for name, _, value in (line.partition(b": ") for line in lines[1:])}
        status = int(lines[0].split(b" ")[1])
        if status == 100:
            return self.answer(head_only=head_only)
        size = 0 if head_only else int(headers[b"content-length"])
        while len(self._received) < size:
            self._more()
        body, self._received = self._received[:size], self._received[size:]
        return Answer(status=status, headers=headers, body=body)

    def ended(self) -> bool:
        """Whether the server ends the connection without another byte."""
        return self._received == b"" and self.socket.recv(1) == b""

    def half_close(self) -> None:
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def _more(self) -> None:
        chunk = self.socket.recv(1 << 20)
        assert chunk, f"the server ended the connection after {self._received!r}"
        self._received += chunk


@dataclass(slots=True)
class Talker:
    """The running server. ``/wait`` is answered when ``release`` is set, ``/large`` with 8 MiB, all else at once."""

    port: int
    loop: asyncio.AbstractEventLoop
    server: HttpServer
    release: asyncio.Event
    seen: list[HttpRequest] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def connect(self, *, receive_buffer: int | None = None) -> Client:
        return Client(self.port, receive_buffer=receive_buffer)

    def let_go(self) -> None:
        self.loop.call_soon_threadsafe(self.release.set)

    def stop(self, grace_s: float) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(grace_s), self.loop).result(10)

    def connections(self) -> int:
        """How many connections the server knows."""

        async def count() -> int:
            return len(self.server.connections)

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)

    async def handle(self, request: HttpRequest) -> Reply:
        self.seen.append(request)
        if request.target == b"/wait":
            await self.release.wait()
        if request.target == b"/large":
            return Reply(bytes(LARGE_BYTES), 200, (TEXT,))
        return Reply(told(request.method, request.target, request.headers, bytes(request.body)), 200, (TEXT,))


def told(method: str, target: bytes, headers: dict[bytes, bytes], body: bytes) -> bytes:
    """What the server answers: what it understood."""
    return repr((method, target, sorted(headers.items()), len(body), hashlib.md5(body).hexdigest())).encode()


@contextmanager
def talking(limits: Limits = DEFAULT, *, intake: Intake | None = None) -> Iterator[Talker]:
    """Whatever happens while it runs: nothing reaches the loop's exception handler, and no connection is left, nor any
    of their bytes at the intake.
    """
    sock = bind("127.0.0.1", 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)  # accepted connections have it from here
    started, made = threading.Event(), []

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        talker: Talker

        async def handle(request: HttpRequest) -> Reply:
            return await talker.handle(request)

        server = HttpServer(handle, sock, limits=limits, intake=intake)
        talker = Talker(sock.getsockname()[1], loop, server, asyncio.Event())
        loop.set_exception_handler(lambda _, context: talker.faults.append(context))
        await server.start()
        made.append((talker, ended))
        started.set()
        await ended.wait()
        await server.stop(0.2)
        await asyncio.sleep(0.01)
        assert not server.connections
        assert server.admitted == 0
        assert server.intake.taken_bytes == 0

    thread = threading.Thread(target=lambda: asyncio.Runner(loop_factory=uvloop.new_event_loop).run(serve()))
    thread.start()
    assert started.wait(10)
    talker, ended = made[0]
    try:
        yield talker
    finally:
        talker.loop.call_soon_threadsafe(ended.set)
        thread.join(10)
    assert talker.faults == []
