"""HTTP/1.1 on a socket: httptools parses, bodies are received where they stay, and what a client may take is bounded.

A body of known length is read from the kernel straight into the buffer that its tensors are views of; see
docs/decisions/0008 for what that and the absence of layers in between is worth.
"""

import asyncio
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from math import inf
from typing import Any, Final

import httptools

from models.tensor import Buffer
from serving.door import LINGER_S, SCRATCH_BYTES, Door, Entry, Limits, Patience, bytes_left, uncleared
from serving.intake import COUNT_FROM_BYTES, NO_ROOM, Intake
from serving.protocol.errors import error_body

JSON: Final = (b"content-type", b"application/json")
_MAX_WAITING: Final = 16  # requests that one connection may send ahead of their answers
_DRAIN_FACTOR: Final = 4  # a refused body of up to this many times the limit is read to its end
_STATUS: Final = {each.value: b"HTTP/1.1 %d %b\r\n" % (each.value, each.phrase.encode()) for each in HTTPStatus}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True)
class HttpRequest:
    """A request as it arrived; header names in lower case, of repeated ones the last.

    ``received`` is when its last byte came, in seconds of ``time.monotonic``; ``held`` how many bytes of its body count
    at the intake.
    """

    method: str
    target: bytes
    headers: dict[bytes, bytes]
    body: Buffer
    keep_alive: bool = True
    http_1_0: bool = False
    received: float = 0.0
    held: int = 0


@dataclass(slots=True)
class Reply:
    """A response before its framing."""

    body: Buffer
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,)


Headers = Mapping[bytes, bytes]
Handler = Callable[[HttpRequest], Awaitable[Reply]]
Allocate = Callable[[int, Headers], memoryview]


class HttpServer(Door["_Connection"]):
    """Serves one bound socket inside an event loop that already runs.

    ``handler`` answers every request; it must not raise. ``allocate`` gives the buffer for a body of a size, once the
    head has come. ``intake`` bounds the bodies of all connections together, those of other doors included.
    """

    def __init__(
        self,
        handler: Handler,
        sock: socket.socket,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        backlog: int = 2048,
        allocate: Allocate | None = None,
        intake: Intake | None = None,
    ) -> None:
        intake = intake or Intake(limits.connections * limits.body_bytes)
        super().__init__(lambda: _Connection(self), sock, limits=limits, intake=intake, backlog=backlog)
        self.handler = handler
        self.allocate = allocate or uncleared


class _Connection(asyncio.BufferedProtocol):
    """One client's connection: requests are parsed as they come, answered one after the other.

    The parser sees heads, chunked bodies, and what of a plain body came along with its head; the rest of that is
    received in place, and a new parser takes up what follows. What the client owes is due at ``read_by``, and what it
    is owed must be taken by ``written_by``.
    """

    __slots__ = (
        "_begun",
        "_body",
        "_closing",
        "_early",
        "_entry",
        "_eof",
        "_expected",
        "_filled",
        "_headers",
        "_held",
        "_in_head",
        "_left",
        "_lingering",
        "_owes_continue",
        "_parser",
        "_patience",
        "_reading",
        "_received",
        "_refusal",
        "_server",
        "_target",
        "_task",
        "_transport",
        "_unbroken",
        "_waiting",
        "_writable",
        "read_by",
        "written_by",
    )

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._transport: Any = None
        self._waiting: deque[tuple[HttpRequest, Reply | None]] = deque()  # with the answer that is known already
        self._task: asyncio.Task[None] | None = None
        self._writable: asyncio.Event | None = None  # set and cleared only for a client that is slow to read
        self._patience = Patience()
        self._entry = Entry.TURNED_AWAY
        self._reading = True
        self._lingering = False  # the last answer is known: what still comes is dropped
        self._closing = False  # the last answer is written
        self._eof = False
        self._body: memoryview | None = None  # of a body that is received in place
        self._filled = 0
        self._left = 0  # of a body that is read only to be dropped
        self._parser: Any = None
        self._held = 0  # of the body that is being received, what counts at the intake
        self._unbroken = 0  # bytes since the parser last made anything whole of them
        self.read_by = self.written_by = inf
        self._begin()

    # -- the transport's calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        self._transport, server = transport, self._server
        self._entry = server.enter(self)
        if self._entry is Entry.TURNED_AWAY:
            self.abort()
            return
        self.read_by = server.now + server.limits.idle_s
        if self._entry is Entry.REFUSED:
            self._refuse(503, server.full)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone; what is under way for it runs to its end, unheard."""
        self._closing = True
        self._server.leave(self, self._entry)
        for request, _ in self._waiting:
            self._server.intake.release(request.held)
        self._waiting.clear()
        self._reset()
        self._body = self._parser = None  # which refers to this connection
        if self._writable is not None:
            self._writable.set()

    def eof_received(self) -> bool:
        """The client sends no more: it may still wait for its answers."""
        self._eof = True
        return self._task is not None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._body is not None:
            return self._body[self._filled :]
        if self._left:
            return self._server.scratch[: self._left]
        return self._server.scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._lingering:
            return
        if self._body is not None:
            self._filled += nbytes
            if not self._admit(self._filled):
                self._give_up_in_place()
            elif self._filled == len(self._body):
                self._complete(self._body)
        elif self._left:
            self._left -= nbytes
            if not self._left:
                self._complete(b"")
        else:
            self._parse(self._server.scratch[:nbytes])

    def pause_writing(self) -> None:
        """The client is slow to read."""
        self._writable = asyncio.Event()
        self._give_time(self._server.limits.write_s)

    def resume_writing(self) -> None:
        """The client has caught up."""
        if self._writable is not None:
            self._writable.set()
            self._writable = None
        if not self._closing:
            self.written_by = inf

    # -- the parser's calls ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Be ready for another request."""
        self._parser = httptools.HttpRequestParser(self)
        self._reset()

    def _reset(self) -> None:
        """Keep nothing of the last request."""
        self._release()
        self._begun = False
        self._in_head = True
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._early: bytes | bytearray = b""  # of the body, what the parser saw
        self._received = 0
        self._expected = 0
        self._owes_continue = False
        self._refusal: Reply | None = None

    def on_message_begin(self) -> None:
        """A request's first byte."""
        self._begun = True
        self.read_by = self._server.now + self._server.limits.head_s

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header; those that follow a chunked body are not for us."""
        if self._in_head:
            self._headers[name.lower()] = value.rstrip(b" \t")

    def on_headers_complete(self) -> None:
        """The body follows, if there is one."""
        if self._parser.should_upgrade():
            return
        self._in_head = False
        headers, limits = self._headers, self._server.limits
        if self._unbroken > limits.head_bytes and self._head_bytes() > limits.head_bytes:
            self._refusal = self._too_long()
        self._unbroken = 0
        self.read_by = self._server.now + limits.body_s
        declared = headers.get(b"content-length")
        if declared is not None:
            self._expected = int(declared)
            if self._expected > limits.body_bytes:
                self._refusal = self._too_large()
            elif self._refusal is None and not self._has_room(self._expected):
                self._refusal = self._too_much()
        if b"expect" in headers and self._refusal is None and self._continues():
            if self._task is None:
                self._transport.write(_CONTINUE)
            else:
                self._owes_continue = True  # after the answers to the requests before it

    def on_body(self, data: bytes) -> None:
        """A piece of the body: of a chunked one, or what came with the head."""
        self._unbroken = 0
        self._received += len(data)
        if self._refusal is not None:
            return
        if self._received > self._server.limits.body_bytes:
            self._give_up(self._too_large())
        elif not self._admit(self._received):
            self._give_up(self._too_much())
        elif not self._early:
            self._early = data
        else:  # one buffer, for the pieces can be so small that a list of them takes a multiple of the limit
            if not isinstance(self._early, bytearray):
                self._early = bytearray(self._early)
            self._early += data

    def on_message_complete(self) -> None:
        """The request is whole."""
        if not self._parser.should_upgrade():
            self._enqueue(self._early)

    def _has_room(self, size: int) -> bool:
        """Whether a body of ``size`` bytes is worth beginning with."""
        return size < COUNT_FROM_BYTES or self._server.intake.has_room(size)

    def _admit(self, size: int) -> bool:
        """Whether the body, of which ``size`` bytes have come by now, may have them."""
        more = size - self._held
        if size < COUNT_FROM_BYTES or more <= 0:
            return True
        if not self._server.intake.admit(more, held=self._held):
            return False
        self._held = size
        return True

    def _release(self) -> None:
        self._server.intake.release(self._held)
        self._held = 0

    def _give_up(self, refusal: Reply) -> None:
        """Keep no more of a body."""
        self._refusal, self._early = refusal, b""
        self._release()

    def _give_up_in_place(self) -> None:
        """Keep no more of a body that is received in place."""
        self._body, self._received = None, self._filled
        self._give_up(self._too_much())
        if self._received == self._expected:
            self._complete(b"")
        else:
            self._drop_rest(self._too_much())

    def _continues(self) -> bool:
        """Whether the client waits to be told to send the body."""
        return self._headers[b"expect"].lower() == b"100-continue" and self._parser.get_http_version() != "1.0"

    def _head_bytes(self) -> int:
        return len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._headers.items())

    # -- requests ----------------------------------------------------------------------------------------------------

    def _parse(self, data: Buffer) -> None:
        self._unbroken += len(data)
        while data:
            try:
                self._parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                if self._parser.get_method() == b"CONNECT":
                    self._refuse(400, "no tunnel begins here")
                    return
                data = self._plain_head() + data[int(upgrade.args[0]) :]
                self._begin()
            except (httptools.HttpParserError, ValueError) as error:
                self._refuse(400, f"not HTTP/1.1: {error}")
                return
        if self._unbroken > self._server.limits.head_bytes:
            self._linger(self._too_long())
        elif self._refusal is not None:
            self._drop_rest(self._refusal)
        elif self._expected > self._received:
            self._receive_in_place()

    def _plain_head(self) -> bytes:
        """The head once more without the wish for another protocol, after which the parser would leave off."""
        line = b"%b %b HTTP/%b" % (self._parser.get_method(), self._target, self._parser.get_http_version().encode())
        headers = (b"%b: %b" % each for each in self._headers.items() if each[0] != b"upgrade")
        return b"\r\n".join((line, *headers, b"", b""))

    def _receive_in_place(self) -> None:
        try:
            self._body = body = self._server.allocate(self._expected, self._headers)
        except MemoryError:
            self._refuse(503, f"no memory for a body of {self._expected} bytes")
            return
        self._filled = len(self._early)
        body[: self._filled] = self._early
        self._early = b""

    def _drop_rest(self, refusal: Reply) -> None:
        """Read a body that is refused to its end, so that the connection can go on; not for ever, though."""
        most = _DRAIN_FACTOR * self._server.limits.body_bytes
        if self._headers.get(b"expect") or self._expected > most or self._received > most:
            self._linger(refusal)
        elif self._expected:
            self._left = self._expected - self._received

    def _complete(self, body: Buffer) -> None:
        """A body that the parser did not see to its end is whole."""
        self._body = None
        self._enqueue(body)
        self._begin()

    def _enqueue(self, body: Buffer) -> None:
        parser = self._parser
        request = HttpRequest(
            parser.get_method().decode("latin-1"),
            self._target,
            self._headers,
            body,
            keep_alive=parser.should_keep_alive(),
            http_1_0=parser.get_http_version() == "1.0",
            received=time.monotonic(),
            held=self._held,
        )
        self._held = 0  # the request has it now
        self._waiting.append((request, self._refusal))
        self._reset()
        self._unbroken = 0
        self.read_by = inf
        if self._task is None:
            self._task = task = self._server.loop.create_task(self._answer_all())
            self._server.tasks.add(task)
        elif self._reading and (len(self._waiting) >= _MAX_WAITING or self._waiting_bytes() > SCRATCH_BYTES):
            self._reading = False
            self._transport.pause_reading()

    def _waiting_bytes(self) -> int:
        return sum(len(request.body) for request, _ in self._waiting)

    async def _answer_all(self) -> None:
        """Answer what waits, in order."""
        try:
            while self._waiting and not self._closing:
                request, reply = self._waiting.popleft()
                try:
                    self._write(request, reply or await self._answer(request))
                finally:
                    self._server.intake.release(request.held)
                del request, reply  # a slow reader holds its answer, not its request
                if self._writable is not None:
                    await self._writable.wait()
        except BaseException:
            self._transport.abort()
            raise
        finally:
            if self._task is not None:
                self._server.tasks.discard(self._task)
            self._task = None
        self._rest()

    async def _answer(self, request: HttpRequest) -> Reply:
        try:
            return await self._server.handler(request)
        except asyncio.CancelledError:
            return Reply(error_body("the server is stopping"), 503)

    def _rest(self) -> None:
        """All requests that came are answered."""
        server = self._server
        if self._closing:
            return
        if self._eof:
            self._close()
            return
        if not self._begun:
            self.read_by = server.now + server.limits.idle_s
        elif self._owes_continue:
            self._owes_continue = False
            self._transport.write(_CONTINUE)
            self.read_by = server.now + server.limits.body_s
        if not self._reading:
            self._reading = True
            self._transport.resume_reading()
            if self._begun:  # what it takes until now was not the client's doing
                self.read_by = server.now + server.limits.body_s

    def _write(self, request: HttpRequest, reply: Reply) -> None:
        if self._closing:
            return
        closes = self._server.stopping or not request.keep_alive
        parts: list[Buffer] = [_STATUS[reply.status]]
        for name, value in reply.headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"content-length: %d\r\n" % len(reply.body))
        if closes:
            parts.append(b"connection: close\r\n")
        elif request.http_1_0:
            parts.append(b"connection: keep-alive\r\n")
        parts.append(b"\r\n")
        if request.method != "HEAD":
            parts.append(reply.body)
        self._transport.write(b"".join(parts))
        if closes:
            self._close()

    # -- ends --------------------------------------------------------------------------------------------------------

    def _close(self) -> None:
        """Write what is left and end; where the client may still be sending, a reset could overtake its answer."""
        self._closing = True
        self.read_by = inf
        if self._lingering and not self._eof:
            self._give_time(LINGER_S)
            self._transport.write_eof()
        else:
            self._give_time(self._server.limits.write_s)
            self._transport.close()

    def _give_time(self, seconds: float) -> None:
        """What is written has so long to leave, or a good part of it."""
        self.written_by = self._server.now + seconds
        self._patience.begin(self.written_by, bytes_left(self._transport))

    @property
    def owes(self) -> bool:
        """Whether an answer, or a part of one, has not left yet."""
        return self._task is not None or bool(self._transport.get_write_buffer_size())

    def close_if_idle(self) -> None:
        """The server stops: a connection without a request that came whole ends now, another with its answer."""
        if self._task is None and not self._closing:
            self._close()

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        self._transport.abort()

    def expire(self) -> None:
        """The client took too long."""
        now = self._server.now
        if self.written_by < now:
            if self._patience.is_lost(bytes_left(self._transport), now + self._server.limits.write_s):
                self.abort()
                return
            self.written_by = self._patience.due
        if self.read_by >= now:
            return
        self.read_by = inf
        if not self._begun:
            self._close()
        elif self._reading:
            self._refuse(408, "the request did not arrive in time")

    def _too_long(self) -> Reply:
        return Reply(error_body(f"the head is over the limit of {self._server.limits.head_bytes} bytes"), 431)

    def _too_large(self) -> Reply:
        return Reply(error_body(f"the body is over the limit of {self._server.limits.body_bytes} bytes"), 413)

    def _too_much(self) -> Reply:
        return Reply(error_body(NO_ROOM), 503)

    def _refuse(self, status: int, message: str) -> None:
        self._linger(Reply(error_body(message), status))

    def _linger(self, last: Reply) -> None:
        """Answer for the last time; whatever the client is still sending is read for a moment, and dropped."""
        if self._closing or self._lingering:
            return
        self._reset()
        self._body, self._left, self._lingering, self.read_by = None, 0, True, inf
        farewell = HttpRequest("", b"", {}, b"", keep_alive=False)
        if self._task is None:
            self._write(farewell, last)
        else:
            self._waiting.append((farewell, last))
