"""gRPC on a socket: HTTP/2 without TLS, messages received where they stay, and what a client may take is bounded.

``serving.http2`` reads and writes the frames' parts. A large message is read from the kernel straight into the buffer
that its tensors are views of; see docs/decisions/0012 for what this is worth beside ``grpc.aio``.
"""

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final, NamedTuple
from urllib.parse import quote

from models.errors import UnderstudyError
from models.tensor import Buffer
from serving import http2
from serving.errors import LaunchError, UnavailableError
from serving.http2 import ConnectionFault, ErrorCode, Fields, HeaderBlocks, StreamFault
from serving.http_server import Limits, uncleared
from serving.protocol import compression
from serving.protocol.errors import Code, error_details, grpc_status

MAX_MESSAGE_BYTES: Final = 2**31 - 1  # protobuf's own limit
_SCRATCH_BYTES: Final = 64 * 1024
_IN_PLACE_BYTES: Final = 32 * 1024  # of less, reading more than one frame at a time is worth a copy
_WINDOW: Final = 4 * 1024 * 1024  # of a stream; a message that is larger gets what it lacks once its size is known
_MAX_STREAMS: Final = 1024
_MAX_NOISE: Final = 2500  # frames that do no work, of one connection in a tick
_RESET_NOISE: Final = 9  # a call that is called off costs more than a frame
_WORK: Final = 5  # frames without work that a call may bring with it
_REFUSED_FACTOR: Final = 2  # of all connections to those that are served: the rest is told so
_LINGER_S: Final = 2.0
_TICK_S: Final = 0.25
_OFFLOAD_BYTES: Final = 4 * 1024  # of compressed ones; a byte can decompress to a thousand
_PREFIX: Final = struct.Struct(">BL")  # of a message: whether it is compressed, and its length
_PREFIX_BYTES: Final = _PREFIX.size
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_DETAILS_SAFE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_TYPE: Final = b"application/grpc"

# Header blocks of answers: 0x88 is ":status: 200" in HPACK's static table, 0x08 any other status.
_HEAD: Final = b"\x88" + http2.literal(b"content-type", _TYPE)
_SPOKEN: Final = http2.literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
_DONE: Final = http2.literal(b"grpc-status", b"0")
_SERVER_SETTINGS: Final = {
    http2.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
    http2.INITIAL_WINDOW_SIZE: _WINDOW,
    http2.MAX_FRAME_SIZE: http2.LARGEST_FRAME,
}

Metadata = tuple[tuple[bytes, bytes], ...]
Allocate = Callable[[int, memoryview], memoryview]


class Answer(NamedTuple):
    """How a call ends: with its one message (a streaming call has sent its own), or with a status other than OK."""

    body: Buffer = b""
    code: Code = Code.OK
    message: str = ""
    metadata: Metadata = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What answers the calls of one path; neither kind may raise.

    ``unary`` gets the request's message, the call, and when its last byte came, in seconds of ``time.monotonic``.
    """

    unary: "Callable[[Buffer, Call, float], Awaitable[Answer]] | None" = None
    streaming: "Callable[[Exchange, Call], Awaitable[Answer]] | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call's headers say. ``timeout_s`` counts from its arrival; ``refusal`` is a header block that ends it."""

    method: Method = Method()
    metadata: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    encoding: str = "identity"
    refusal: bytes | None = None


class GrpcListener:
    """Serves one bound socket inside an event loop that already runs.

    ``methods`` are found by their paths. ``allocate`` gives the buffer for a message of a size whose first bytes have
    come.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        sock: socket.socket,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        backlog: int = 2048,
        allocate: Allocate = uncleared,
    ) -> None:
        self.methods, self.limits, self.max_message_bytes = methods, limits, max_message_bytes
        self.allocate = allocate
        self.connections: set[_Connection] = set()
        self.admitted = 0  # of these, all but those that were one too many
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        # Received and parsed within one callback, so that all connections can share it.
        self.scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self.now = 0.0  # the loop's time, as of the last tick: near enough for timeouts
        self._socket, self._backlog = sock, backlog
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Listen; calls are answered from here on.

        Raises:
            LaunchError: someone else began to listen on the same address since it was bound.
        """
        self._tick()
        try:
            self._server = await self.loop.create_server(
                lambda: _Connection(self), sock=self._socket, backlog=self._backlog
            )
        except OSError as error:
            host, port = self._socket.getsockname()[:2]
            self._socket.close()
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let calls under way finish for up to ``grace_s``, then cancel them."""
        self.stopping = True
        if self._server is not None:
            self._server.close()
        for connection in list(self.connections):
            connection.close_if_idle()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_s)
        for task in list(self.tasks):
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=1.0)
        await asyncio.sleep(0)  # what was written in this turn of the loop leaves at its end
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = self.loop.call_later(_TICK_S, self._tick)
        self.now = self.loop.time()
        now = self.now
        for connection in [each for each in self.connections if each.read_by < now or each.written_by < now]:
            connection.expire()


class _Stream:
    """One call on its way. ``window`` is what the client takes of its answer, ``credit`` what it may still send."""

    __slots__ = (
        "answered",
        "body",
        "call",
        "compressed",
        "credit",
        "ended",
        "exchange",
        "filled",
        "id",
        "message",
        "open",
        "outbox",
        "prefix",
        "read_by",
        "started",
        "task",
        "trailers",
        "window",
        "written_by",
    )

    def __init__(self, stream_id: int, call: Call, window: int, read_by: float) -> None:
        self.id, self.call, self.window, self.read_by = stream_id, call, window, read_by
        self.credit = _WINDOW
        self.open = True
        self.ended = False  # the client sends no more
        self.prefix = b""  # of the next message, where it came in pieces
        self.compressed = False
        self.message: memoryview | None = None  # that is being received
        self.filled = 0
        self.body: Buffer | None = None  # of a unary call
        self.exchange: Exchange | None = None
        self.task: asyncio.Task[None] | None = None
        self.started = False  # the answer's headers are out
        self.outbox: deque[memoryview] | None = None  # what the client's windows do not let out yet
        self.trailers = b""  # that follow the outbox
        self.answered = False
        self.written_by = inf


class Exchange:
    """A streaming call's messages, in both directions."""

    def __init__(self, connection: "_Connection", stream: _Stream) -> None:
        self._connection, self._stream = connection, stream
        self._incoming: deque[tuple[Buffer, bool, int]] = deque()
        self._change = asyncio.Event()
        self._room = asyncio.Event()

    def put(self, message: Buffer, compressed: bool, size: int) -> None:
        """A message has come."""
        self._incoming.append((message, compressed, size))
        self._change.set()

    def wake(self) -> None:
        """The client sends no more, or takes no more."""
        self._change.set()
        self._room.set()

    def let_out(self) -> None:
        """What was sent is on its way."""
        self._room.set()

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        """The client's messages; one that is not taken yet holds back those that follow.

        Raises:
            UnderstudyError: one cannot be decompressed.
        """
        while True:
            while self._incoming:
                message, compressed, size = self._incoming.popleft()
                self._connection.consumed(self._stream, size)
                if compressed:
                    message = await self._connection.decompressed(message, self._stream.call)
                yield message
            if self._stream.ended or not self._stream.open:
                return
            self._change.clear()
            await self._change.wait()

    async def send(self, message: Buffer) -> None:
        """Send a message; waits until the client lets it out.

        Raises:
            asyncio.CancelledError: the client is gone.
        """
        while not self._connection.takes(self._stream):
            self._room.clear()
            await self._room.wait()
        self._connection.send(self._stream, message)


class _Connection(asyncio.BufferedProtocol):
    """One client's connection. What the client owes is due at ``read_by``; what it is owed, by ``written_by``."""

    __slots__ = (
        "_admitted",
        "_block",
        "_block_flags",
        "_block_stream",
        "_blocked",
        "_blocks",
        "_calm",
        "_clogged_by",
        "_closing",
        "_credit",
        "_ends",
        "_eof",
        "_frame_left",
        "_goaway",
        "_greeted",
        "_in_place",
        "_initial_window",
        "_last_stream",
        "_max_frame",
        "_noise",
        "_receiving",
        "_rest",
        "_server",
        "_stream",
        "_streams",
        "_transport",
        "_window",
        "_written",
        "read_by",
        "written_by",
    )

    def __init__(self, server: GrpcListener) -> None:
        self._server = server
        self._transport: Any = None
        self._written: list[bytes] = []
        self._admitted = False
        self._greeted = False
        self._closing = False  # nothing more is read or begun
        self._goaway = False  # the client knows that it shall begin no more
        self._streams: dict[int, _Stream] = {}
        self._receiving: dict[int, _Stream] = {}  # those that owe bytes, the one that is due first at the front
        self._blocked: dict[int, _Stream] = {}  # those whose answer waits for the client, likewise
        self._last_stream = 0
        self._rest = bytearray()  # of a frame that has not come whole
        self._frame_left = 0  # of the payload of a DATA frame
        self._stream: _Stream | None = None  # that frame's
        self._ends = False  # that frame is its stream's last
        self._in_place = False
        self._eof = False
        self._block = bytearray()  # a header block that is not whole
        self._block_stream = self._block_flags = 0
        self._blocks = HeaderBlocks(self._call, server.limits.head_bytes)
        self._credit = (
            http2.MAX_WINDOW
        )  # what the client may send; its streams and the limits bound what it has under way
        self._window = self._initial_window = http2.DEFAULT_WINDOW  # of the client: what it takes
        self._max_frame = http2.DEFAULT_MAX_FRAME
        self._noise, self._calm = 0, 0.0
        self._clogged_by = inf
        self.read_by = self.written_by = inf

    # -- the transport's calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        self._transport = transport
        server = self._server
        most = server.limits.connections
        if server.stopping or len(server.connections) >= _REFUSED_FACTOR * most:
            self._closing = True
            transport.abort()
            return
        server.connections.add(self)
        self.read_by = server.now + server.limits.head_s
        own = _SERVER_SETTINGS | {http2.MAX_HEADER_LIST_SIZE: server.limits.head_bytes}
        raised = http2.window_update(0, http2.MAX_WINDOW - http2.DEFAULT_WINDOW)
        transport.write(http2.settings(own) + raised)
        if server.admitted >= most:
            self._end(ErrorCode.ENHANCE_YOUR_CALM, f"the server has all of its {most} connections in use")
        else:
            server.admitted += 1
            self._admitted = True

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, and the calls on it are called off."""
        self._closing = True
        self._server.connections.discard(self)
        self._server.admitted -= self._admitted
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._stream = None

    def eof_received(self) -> bool:
        """The client sends no more: it may still wait for its answers."""
        self._closing = self._eof = True
        for stream in list(self._streams.values()):
            if not stream.ended:
                self._drop(stream)
        self._goaway = True  # ends with its last stream
        return bool(self._streams)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        stream = self._stream
        if stream is not None and stream.message is not None and not self._rest:
            room = min(self._frame_left, len(stream.message) - stream.filled)
            if room >= _IN_PLACE_BYTES:
                self._in_place = True
                return stream.message[stream.filled : stream.filled + room]
        return self._server.scratch

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        try:
            if self._in_place:
                self._in_place = False
                if not self._closing:
                    self._received_in_place(nbytes)
            elif not self._closing:
                self._parse(self._server.scratch[:nbytes])
        except ConnectionFault as fault:
            self._end(fault.code, str(fault))
        self._mind()

    def pause_writing(self) -> None:
        """The client is slow to read: what it sends is not read either, as it may want answers, too."""
        self._clogged_by = self._server.now + self._server.limits.write_s
        self._mind()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._clogged_by = inf
        self._pump_all()
        self._transport.resume_reading()
        self._mind()

    # -- frames ------------------------------------------------------------------------------------------------------

    def _parse(self, data: memoryview) -> None:
        if self._rest:
            self._rest += data
            with memoryview(self._rest) as whole:
                at = self._frames(whole)
            del self._rest[:at]
        elif (at := self._frames(data)) < len(data):
            self._rest += data[at:]

    def _frames(self, data: memoryview) -> int:
        """Take up all frames that are whole, and what there is of a DATA frame; how far that goes."""
        at, end = 0, len(data)
        if not self._greeted:
            at = self._greet(data)
            if not self._greeted:
                return at
        while not self._closing:
            if self._frame_left:
                taken = min(self._frame_left, end - at)
                self._data(data[at : at + taken])
                at += taken
                if self._frame_left:
                    return at
                continue
            if end - at < http2.FRAME_BYTES:
                return at
            upper, lower, kind, flags, stream_id = http2.FRAME.unpack_from(data, at)
            size = upper << 8 | lower
            stream_id &= http2.STREAM_MASK
            if kind == http2.DATA and not flags & http2.PADDED and not self._block_stream:
                at += http2.FRAME_BYTES
                self._begin_data(size, flags, stream_id)
                continue
            if size > self._server.limits.head_bytes:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes is too large for its type")
            if end - at < http2.FRAME_BYTES + size:
                return at
            at += http2.FRAME_BYTES
            self._frame(kind, flags, stream_id, data[at : at + size])
            at += size
        return end

    def _greet(self, data: memoryview) -> int:
        """Check the first bytes of all; how far they go."""
        size = len(http2.PREFACE)
        if data[:size] == http2.PREFACE[: len(data)]:
            self._greeted = len(data) >= size
            self.read_by = inf if self._greeted else self.read_by
            return size if self._greeted else 0
        self._closing = True
        text = b"this port speaks gRPC: HTTP/2 without TLS, and no HTTP/1.1\n"
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        )
        self._write(head % len(text) + text)
        self._close()
        return len(data)

    def _frame(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        if self._block_stream and (kind != http2.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block must not be interrupted")
        if kind == http2.HEADERS:
            self._headers(flags, stream_id, http2.unprioritised(http2.unpadded(payload, flags), flags))
            return
        if kind == http2.DATA:
            self._begin_data(len(payload), flags, stream_id)
            content = http2.unpadded(payload, flags)
            self._frame_left = len(content)
            if content:
                self._data(content)
            elif self._stream is not None:
                self._end_data()
            return
        if kind == http2.WINDOW_UPDATE:
            self._window_update(stream_id, http2.read_number(payload))
        elif kind == http2.CONTINUATION:
            self._continuation(flags, stream_id, payload)
        elif kind == http2.RST_STREAM:
            self._reset_by_client(stream_id, payload)
        else:
            self._control(kind, flags, stream_id, payload)
        self._make_noise()

    def _control(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        """Frames about the connection, and those that mean nothing here."""
        if kind in (http2.SETTINGS, http2.PING, http2.GOAWAY) and stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame about the connection names a stream")
        if kind == http2.SETTINGS:
            self._settings(flags, payload)
        elif kind == http2.PING:
            if len(payload) != 8:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING has 8 bytes")
            if not flags & http2.ACK:
                self._write(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.GOAWAY:
            self.close_if_idle()
        elif kind == http2.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client cannot push")
        elif kind == http2.PRIORITY and (not stream_id or len(payload) != 5):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY has 5 bytes and a stream")

    def _make_noise(self, amount: int = 1) -> None:
        """Count a frame that does no work: who sends too many of these is cut off."""
        if self._calm != self._server.now:
            self._calm, self._noise = self._server.now, 0
        self._noise += amount
        if self._noise > _MAX_NOISE:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that do no work")

    def _settings(self, flags: int, payload: memoryview) -> None:
        if flags & http2.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement has no settings")
            return
        for name, value in http2.read_settings(payload):
            if name == http2.MAX_FRAME_SIZE:
                self._max_frame = value
            elif name == http2.INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                    if stream.window > http2.MAX_WINDOW:
                        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
                self._initial_window = value
        self._write(http2.frame(http2.SETTINGS, http2.ACK, 0))
        self._pump_all()

    def _window_update(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            self._window += increment
            if not increment or self._window > http2.MAX_WINDOW:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise ConnectionFault(code, f"the connection's window cannot grow by {increment}")
            self._pump_all()
            return
        stream = self._known(stream_id)
        if stream is None:
            return
        stream.window += increment
        if not increment or stream.window > http2.MAX_WINDOW:
            self._reset(stream, ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR)
        elif stream.outbox is not None:
            self._pump(stream)

    def _reset_by_client(self, stream_id: int, payload: memoryview) -> None:
        http2.read_number(payload)
        if not stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the connection cannot be reset")
        stream = self._known(stream_id)
        if stream is not None:
            self._drop(stream)
            self._make_noise(_RESET_NOISE)

    def _known(self, stream_id: int) -> _Stream | None:
        """A stream; None if it is over."""
        stream = self._streams.get(stream_id)
        if stream is None and (stream_id > self._last_stream or not stream_id & 1):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {stream_id} was never begun")
        return stream

    # -- headers -----------------------------------------------------------------------------------------------------

    def _headers(self, flags: int, stream_id: int, block: memoryview) -> None:
        if not stream_id & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client's streams have odd numbers")
        if flags & http2.END_HEADERS:
            self._head(flags, stream_id, bytes(block))
        else:
            self._block_stream, self._block_flags = stream_id, flags
            self._block += block

    def _continuation(self, flags: int, stream_id: int, payload: memoryview) -> None:
        if not self._block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "nothing is to be continued")
        self._block += payload
        if len(self._block) > self._server.limits.head_bytes:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "the headers are over the limit")
        if flags & http2.END_HEADERS:
            block, self._block, self._block_stream = bytes(self._block), bytearray(), 0
            self._head(self._block_flags, stream_id, block)

    def _head(self, flags: int, stream_id: int, block: bytes) -> None:
        """A call begins; or it ends, with fields that say nothing here."""
        fault: StreamFault | None = None
        ends = flags & http2.END_STREAM
        try:
            call = self._blocks.read(block)
        except StreamFault as error:
            fault = error
        if stream_id <= self._last_stream:
            self._trailing(stream_id, bool(ends))
            return
        self._last_stream = stream_id
        if fault is not None:
            self._write(http2.rst_stream(stream_id, fault.code))
            self._make_noise(_RESET_NOISE)
        elif len(self._streams) >= _MAX_STREAMS:
            self._write(http2.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            self._make_noise()
        else:
            self._begin(stream_id, call, bool(ends))

    def _trailing(self, stream_id: int, ends: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._write(http2.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            self._make_noise()
        elif stream.ended or not ends:
            self._reset(stream, ErrorCode.STREAM_CLOSED if stream.ended else ErrorCode.PROTOCOL_ERROR)
        else:
            self._finish(stream)

    def _call(self, fields: Fields) -> Call:
        """What a header block says."""
        found = http2.check_request(fields)
        if found[b":method"] != b"POST":
            return Call(refusal=_http_status(b"405", http2.literal(b"allow", b"POST")))
        if not found.get(b"content-type", b"").lower().startswith(_TYPE):
            return Call(refusal=_http_status(b"415"))
        path = found[b":path"].decode("latin-1")
        method = self._server.methods.get(path)
        encoding = found.get(b"grpc-encoding", b"identity").decode("latin-1")
        timeout = found.get(b"grpc-timeout")
        if method is None:
            return Call(refusal=_trailers_only(Code.UNIMPLEMENTED, f"unknown method {path[:256]}"))
        if encoding != "identity" and encoding not in compression.ENCODINGS:
            text = f"encoding {encoding[:64]!r} is not spoken here; use gzip or deflate"
            return Call(refusal=_trailers_only(Code.UNIMPLEMENTED, text) + _SPOKEN)
        timeout_s = None
        if timeout is not None:
            read = _TIMEOUT.fullmatch(timeout)
            if read is None:
                return Call(refusal=_trailers_only(Code.INTERNAL, "'grpc-timeout' is malformed"))
            timeout_s = int(read[1]) * _UNITS_S[read[2]]
        metadata = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in found.items() if name[:1] != b":"
        }
        return Call(method=method, metadata=metadata, timeout_s=timeout_s, encoding=encoding)

    def _begin(self, stream_id: int, call: Call, ends: bool) -> None:
        server = self._server
        stream = _Stream(stream_id, call, self._initial_window, server.now + server.limits.body_s)
        self._streams[stream_id] = stream
        if call.refusal is not None:
            stream.ended = ends
            self._end_with(stream, call.refusal)
            return
        if call.method.streaming is not None:
            stream.exchange = Exchange(self, stream)
            self._run(stream, self._streaming(stream, call.method.streaming))
        elif not ends:
            self._receiving[stream_id] = stream
        if ends:
            self._finish(stream)

    # -- messages ----------------------------------------------------------------------------------------------------

    def _begin_data(self, size: int, flags: int, stream_id: int) -> None:
        """A DATA frame's head; its payload follows."""
        stream = self._known(stream_id)
        self._credit -= size
        if self._credit < http2.MAX_WINDOW // 2:
            self._write(http2.window_update(0, http2.MAX_WINDOW - self._credit))
            self._credit = http2.MAX_WINDOW
        self._ends = bool(flags & http2.END_STREAM)
        self._stream = None
        self._frame_left = size
        if stream is None or stream.answered:
            if not size:
                self._make_noise()
        elif stream.ended:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
        else:
            stream.credit -= size
            if stream.credit < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"stream {stream_id} has no window for this")
            self._stream = stream
            if not size:
                if not self._ends:
                    self._make_noise()
                self._end_data()

    def _data(self, data: memoryview) -> None:
        """A part of a DATA frame's payload."""
        self._frame_left -= len(data)
        stream = self._stream
        if stream is not None and stream.open and not stream.answered:
            self._feed(stream, data)
        if not self._frame_left:
            self._end_data()

    def _received_in_place(self, nbytes: int) -> None:
        stream = self._stream
        assert stream is not None
        assert stream.message is not None
        stream.filled += nbytes
        self._frame_left -= nbytes
        if stream.filled == len(stream.message):
            self._whole(stream, stream.message)
        if not self._frame_left:
            self._end_data()

    def _end_data(self) -> None:
        stream, self._stream = self._stream, None
        if self._ends and stream is not None and stream.open:
            self._finish(stream)

    def _feed(self, stream: _Stream, data: memoryview) -> None:
        """Take up a stream's bytes: messages, one after the other, each behind its prefix."""
        while data and not stream.answered:
            if stream.message is not None:
                message, filled = stream.message, stream.filled
                taken = min(len(data), len(message) - filled)
                message[filled : filled + taken] = data[:taken]
                stream.filled = filled + taken
                data = data[taken:]
                if stream.filled == len(message):
                    self._whole(stream, message)
                continue
            if stream.prefix or len(data) < _PREFIX_BYTES:
                lacking = _PREFIX_BYTES - len(stream.prefix)
                stream.prefix += data[:lacking]
                data = data[lacking:]
                if len(stream.prefix) < _PREFIX_BYTES:
                    return
                flag, size = _PREFIX.unpack(stream.prefix)
                stream.prefix = b""
            else:
                flag, size = _PREFIX.unpack_from(data)
                data = data[_PREFIX_BYTES:]
            if not self._permitted(stream, flag, size):
                return
            if len(data) >= size:
                self._whole(stream, bytes(data[:size]))
                data = data[size:]
            else:
                self._begin_message(stream, size, data)

    def _permitted(self, stream: _Stream, flag: int, size: int) -> bool:
        most = self._server.max_message_bytes
        if size > most:
            self._refuse(stream, Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is over the limit of {most}")
        elif flag > 1 or (flag and stream.call.encoding == "identity"):
            self._refuse(stream, Code.INTERNAL, "a message is marked as compressed, but 'grpc-encoding' names no way")
        else:
            stream.compressed = bool(flag)
            return True
        return False

    def _begin_message(self, stream: _Stream, size: int, early: memoryview) -> None:
        try:
            stream.message = self._server.allocate(size, early)
        except MemoryError:
            self._refuse(stream, Code.RESOURCE_EXHAUSTED, f"no memory for a message of {size} bytes")
            return
        stream.filled = 0
        if stream.exchange is not None:
            stream.read_by = self._server.now + self._server.limits.body_s
            self._receiving[stream.id] = stream
        if (lacking := size - len(early) - self._frame_left - stream.credit) > 0:
            stream.credit += lacking
            self._write(http2.window_update(stream.id, lacking))

    def _whole(self, stream: _Stream, message: Buffer) -> None:
        """A message is whole."""
        stream.message = None
        if stream.exchange is not None:
            self._receiving.pop(stream.id, None)
            stream.exchange.put(message, stream.compressed, len(message) + _PREFIX_BYTES)
        elif stream.body is None:
            stream.body = message
        else:
            self._refuse(stream, Code.UNIMPLEMENTED, "the method takes one message, but more came")

    def _finish(self, stream: _Stream) -> None:
        """The client has sent all it will of a call."""
        stream.ended = True
        self._receiving.pop(stream.id, None)
        if stream.answered:
            self._forget(stream)
        elif stream.message is not None or stream.prefix:
            self._refuse(stream, Code.INTERNAL, "the last message is cut short")
        elif stream.exchange is not None:
            stream.exchange.wake()
        elif stream.body is None:
            self._refuse(stream, Code.UNIMPLEMENTED, "the method takes one message, but none came")
        else:
            self._run(stream, self._unary(stream, stream.body, time.monotonic()))
            stream.body = None

    def consumed(self, stream: _Stream, size: int) -> None:
        """A streaming call has taken a message: its client may send as much again."""
        if stream.open and not stream.ended and stream.credit < _WINDOW:
            granted = min(size, _WINDOW - stream.credit)
            stream.credit += granted
            self._write(http2.window_update(stream.id, granted))

    async def decompressed(self, message: Buffer, call: Call) -> bytes:
        """A compressed message as it was.

        Raises:
            UnderstudyError: it cannot be, or it is too large.
        """
        most = self._server.max_message_bytes
        if len(message) < _OFFLOAD_BYTES:
            return compression.decompress(message, call.encoding, most)
        return await asyncio.to_thread(compression.decompress, message, call.encoding, most)

    # -- calls -------------------------------------------------------------------------------------------------------

    def _run(self, stream: _Stream, work: Any) -> None:
        self._noise -= _WORK
        stream.task = task = self._server.loop.create_task(work)
        self._server.tasks.add(task)

    async def _unary(self, stream: _Stream, body: Buffer, received: float) -> None:
        call = stream.call
        try:
            if stream.compressed:
                body = await self.decompressed(body, call)
            assert call.method.unary is not None
            answer = await call.method.unary(body, call, received)
        except UnderstudyError as error:
            answer = failed(error)
        except asyncio.CancelledError:
            answer = failed(UnavailableError("the server is stopping"))
        finally:
            self._done(stream)
        self._answer(stream, answer)

    async def _streaming(self, stream: _Stream, handle: "Callable[[Exchange, Call], Awaitable[Answer]]") -> None:
        assert stream.exchange is not None
        try:
            async with asyncio.timeout(stream.call.timeout_s):
                answer = await handle(stream.exchange, stream.call)
        except UnderstudyError as error:
            answer = failed(error)
        except TimeoutError:
            answer = Answer(code=Code.DEADLINE_EXCEEDED, message="the deadline has passed")
        except asyncio.CancelledError:
            answer = failed(UnavailableError("the server is stopping"))
        finally:
            self._done(stream)
        if stream.open and not stream.answered:
            self._end_with(stream, _trailers(answer))

    def _done(self, stream: _Stream) -> None:
        if stream.task is not None:
            self._server.tasks.discard(stream.task)
            stream.task = None

    def _answer(self, stream: _Stream, answer: Answer) -> None:
        """End a unary call with its message, in one piece where the client's windows and frames allow."""
        if not stream.open or stream.answered:
            return
        if answer.code:
            self._end_with(stream, _trailers(answer))
            return
        body, trailers = answer.body, _trailers(answer)
        size = len(body) + _PREFIX_BYTES
        if size > self._window or size > stream.window or size > self._max_frame or self._clogged_by < inf:
            self._queue(stream, body)
            self._end_with(stream, trailers)
            return
        self._window -= size
        pack, stream_id = http2.FRAME.pack, stream.id
        self._write(
            b"".join(
                (
                    pack(0, len(_HEAD), http2.HEADERS, http2.END_HEADERS, stream_id),
                    _HEAD,
                    pack(size >> 8, size & 0xFF, http2.DATA, 0, stream_id),
                    _PREFIX.pack(0, len(body)),
                    body,
                    http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream_id, trailers),
                )
            )
        )
        stream.answered = True
        self._forget(stream)

    def takes(self, stream: _Stream) -> bool:
        """Whether another message of a streaming call can be sent: those before it are out."""
        return not stream.open or (stream.outbox is None and self._clogged_by == inf)

    def send(self, stream: _Stream, message: Buffer) -> None:
        """Send a message of a streaming call."""
        if not stream.open:
            raise asyncio.CancelledError
        self._queue(stream, message)
        self._pump(stream)

    def _queue(self, stream: _Stream, message: Buffer) -> None:
        if not stream.started:
            stream.started = True
            self._write(http2.frame(http2.HEADERS, http2.END_HEADERS, stream.id, _HEAD))
        outbox = stream.outbox = stream.outbox if stream.outbox is not None else deque()
        outbox.append(memoryview(_PREFIX.pack(0, len(message))))
        if len(message):
            outbox.append(memoryview(message))

    def _end_with(self, stream: _Stream, trailers: bytes) -> None:
        """End a call with these fields, after what is queued."""
        stream.answered = True
        stream.trailers = trailers if stream.started or trailers[:1] in (b"\x88", b"\x08") else _HEAD + trailers
        stream.message = stream.body = None
        self._receiving.pop(stream.id, None)
        self._pump(stream)

    def _refuse(self, stream: _Stream, code: Code, text: str) -> None:
        """End a call whose messages are not as they must be."""
        task = stream.task
        self._end_with(stream, _trailers(Answer(code=code, message=text)))
        if task is not None:
            task.cancel()

    def _pump(self, stream: _Stream) -> None:
        """Send what of a stream's answer the client's windows let out."""
        outbox = stream.outbox
        parts: list[Buffer] = []
        while outbox and self._clogged_by == inf:
            room = min(self._window, stream.window, self._max_frame)
            if room <= 0:
                break
            piece = outbox.popleft()
            if len(piece) > room:
                outbox.appendleft(piece[room:])
                piece = piece[:room]
            self._window -= len(piece)
            stream.window -= len(piece)
            parts += (http2.frame_head(len(piece), http2.DATA, 0, stream.id), piece)
        if outbox:
            if parts or stream.id not in self._blocked:
                self._blocked.pop(stream.id, None)
                stream.written_by = self._server.now + self._server.limits.write_s
                self._blocked[stream.id] = stream
        else:
            stream.outbox = None
            self._blocked.pop(stream.id, None)
            if stream.answered:
                last = http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream.id, stream.trailers
                parts.append(http2.frame(*last))
            if stream.exchange is not None:
                stream.exchange.let_out()
        if parts:
            self._flush()
            self._transport.writelines(parts)
        if stream.answered and not outbox:
            self._forget(stream)

    def _pump_all(self) -> None:
        for stream in list(self._blocked.values()):
            self._pump(stream)
        for stream in self._streams.values():
            if stream.exchange is not None:
                stream.exchange.let_out()

    # -- ends --------------------------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        """Write at the end of the loop's turn: the requests of a batch are answered in one, often on one connection."""
        if not self._written:
            self._server.loop.call_soon(self._flush)
        self._written.append(data)

    def _flush(self) -> None:
        written, self._written = self._written, []
        if written and not self._transport.is_closing():
            self._transport.write(written[0] if len(written) == 1 else b"".join(written))

    def _forget(self, stream: _Stream) -> None:
        """A call is answered: what the client might still send of it is not wanted."""
        if not stream.ended:
            self._write(http2.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._drop(stream)

    def _reset(self, stream: _Stream, code: ErrorCode) -> None:
        """End a call without an answer."""
        self._write(http2.rst_stream(stream.id, code))
        self._drop(stream)

    def _drop(self, stream: _Stream) -> None:
        """Keep nothing of a call."""
        stream.open, stream.message, stream.body, stream.outbox = False, None, None, None
        self._streams.pop(stream.id, None)
        self._receiving.pop(stream.id, None)
        self._blocked.pop(stream.id, None)
        if stream.task is not None:
            stream.task.cancel()
        if stream.exchange is not None:
            stream.exchange.wake()
        if not self._streams:
            if self._goaway:
                self._end(ErrorCode.NO_ERROR, "")
            self._mind()

    def _mind(self) -> None:
        """Set when the client's next bytes, and its next reading, are due."""
        server = self._server
        if self._receiving:
            self.read_by = next(iter(self._receiving.values())).read_by
        elif self._streams:
            self.read_by = inf
        elif self._greeted and not self._closing and self.read_by == inf:
            self.read_by = server.now + server.limits.idle_s
        first = next(iter(self._blocked.values())).written_by if self._blocked else inf
        self.written_by = min(first, self._clogged_by)

    def expire(self) -> None:
        """The client took too long."""
        now = self._server.now
        if self._closing or self._clogged_by < now:
            self.abort()
            return
        for stream in [each for each in self._blocked.values() if each.written_by < now]:
            self._reset(stream, ErrorCode.CANCEL)
        for stream in [each for each in self._receiving.values() if each.read_by < now]:
            self._refuse(stream, Code.DEADLINE_EXCEEDED, "the message did not arrive in time")
        if self.read_by < now and not self._streams:
            self._end(ErrorCode.NO_ERROR, "idle" if self._greeted else "no request came")
        self._mind()

    def close_if_idle(self) -> None:
        """The server stops: a connection without a call ends now, another with its last answer."""
        if self._closing:
            return
        if not self._streams:
            self._end(ErrorCode.NO_ERROR, "")
        elif not self._goaway:
            self._goaway = True
            self._write(http2.goaway(http2.MAX_WINDOW, ErrorCode.NO_ERROR))

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        self._flush()
        self._transport.abort()

    def _end(self, code: ErrorCode, reason: str) -> None:
        """Say why, and end the connection."""
        if self._transport.is_closing():
            return
        self._closing = True
        self._write(http2.goaway(self._last_stream, code, reason))
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._close()

    def _close(self) -> None:
        """Let what was written leave: a reset, for what the client still sends, could overtake it."""
        self._flush()
        if self._eof:
            self._transport.close()
            return
        self.read_by = self._server.now + _LINGER_S
        with contextlib.suppress(OSError):  # it is gone already
            self._transport.write_eof()


def failed(error: UnderstudyError, metadata: Metadata = ()) -> Answer:
    """How a call ends with an error."""
    return Answer(code=grpc_status(error), message=error_details(str(error)), metadata=metadata)


def _trailers(answer: Answer) -> bytes:
    fields = _DONE if not answer.code else _status(answer.code, answer.message)
    for name, value in answer.metadata:
        fields += http2.literal(name, value)
    return fields


def _status(code: Code, message: str) -> bytes:
    fields = http2.literal(b"grpc-status", b"%d" % code)
    return fields + http2.literal(b"grpc-message", quote(message, safe=_DETAILS_SAFE).encode()) if message else fields


def _trailers_only(code: Code, message: str) -> bytes:
    return _HEAD + _status(code, message)


def _http_status(status: bytes, further: bytes = b"") -> bytes:
    """A header block of an answer that is none of gRPC's."""
    return b"\x08" + http2.string(status) + further
