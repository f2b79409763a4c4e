"""gRPC on a socket: HTTP/2 without TLS, messages received where they stay, and what a client may take is bounded.

``serving.http2`` reads and writes the frames' parts, ``serving.grpc_stream`` is what happens within one call. A large
message is read from the kernel straight into the buffer that its tensors are views of; see docs/decisions/0012 for
what this is worth beside ``grpc.aio``.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from typing import Any, Final

from models.tensor import Buffer
from serving import http2
from serving.door import LINGER_S, Door, Entry, Limits, uncleared
from serving.errors import UnavailableError
from serving.grpc_call import Method, failed, read_call, with_head
from serving.grpc_sender import Sender
from serving.grpc_stream import WINDOW, Stream
from serving.http2 import ConnectionFault, ErrorCode, HeaderBlocks, StreamFault
from serving.intake import NO_ROOM, Intake
from serving.protocol.errors import Code

MAX_MESSAGE_BYTES: Final = 2**31 - 1  # protobuf's own limit
_IN_PLACE_BYTES: Final = 32 * 1024  # of less, reading more than one frame at a time is worth a copy
_MAX_STREAMS: Final = 1024
_MAX_NOISE: Final = 2500  # frames that do no work, of one connection in a tick
_RESET_NOISE: Final = 9  # a call that is called off costs more than a frame
_WORK: Final = 10  # frames without work that a call may bring with it
_PER_FRAME: Final = 2  # and those that a frame of an answer may: updates of both windows
_STREAMS_PER_NOISE: Final = 16  # which a change of all windows goes through in the time of a frame
_MAX_CREDIT: Final = 4 * _MAX_NOISE
_SERVER_SETTINGS: Final = {
    http2.MAX_CONCURRENT_STREAMS: _MAX_STREAMS,
    http2.INITIAL_WINDOW_SIZE: WINDOW,
    http2.MAX_FRAME_SIZE: http2.LARGEST_FRAME,
}
_NOT_HTTP_2: Final = b"this port speaks gRPC: HTTP/2 without TLS, and no HTTP/1.1\n"
_NOT_HTTP_2_HEAD: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
)

Allocate = Callable[[int, memoryview], memoryview]


class GrpcListener(Door["_Connection"]):
    """Serves one bound socket inside an event loop that already runs.

    ``methods`` are found by their paths. ``allocate`` gives the buffer for a message of a size whose first bytes have
    come; ``intake`` bounds the messages of all connections together, and the bodies of other doors with them.
    """

    def __init__(
        self,
        methods: Mapping[str, Method],
        sock: socket.socket,
        *,
        limits: Limits,
        intake: Intake,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        allocate: Allocate = uncleared,
    ) -> None:
        super().__init__(lambda: _Connection(self), sock, limits=limits, intake=intake)
        self.methods, self.max_message_bytes, self.allocate = methods, max_message_bytes, allocate


class _Connection(asyncio.BufferedProtocol):
    """One client's connection. What the client owes is due at ``read_by``; what it is owed, by ``written_by``."""

    __slots__ = (
        "_block",
        "_block_flags",
        "_block_stream",
        "_blocks",
        "_calm",
        "_closing",
        "_credit",
        "_ends",
        "_entry",
        "_eof",
        "_frame_left",
        "_goaway",
        "_greeted",
        "_idle_by",
        "_in_place",
        "_initial_window",
        "_last_stream",
        "_noise",
        "_over",
        "_padding",
        "_receiving",
        "_rest",
        "_sender",
        "_server",
        "_settled",
        "_stream",
        "_streams",
        "_transport",
        "_whole_by",
        "allocate",
        "intake",
        "max_message_bytes",
        "read_by",
        "uncounted",
        "written_by",
    )

    def __init__(self, server: GrpcListener) -> None:
        self._server = server
        self._transport: Any = None
        self._sender = Sender(server)
        self._entry = Entry.TURNED_AWAY
        self._greeted = False
        self._settled = False  # the client's first settings have come
        self._closing = False  # nothing more is read or begun
        self._over = False  # the last word is said
        self._goaway = False  # the client knows that it shall begin no more
        self._streams: dict[int, Stream] = {}
        self._receiving: dict[int, Stream] = {}  # those that owe bytes, the one that is due first at the front
        self._last_stream = 0
        self._rest = bytearray()  # of a frame that has not come whole
        self._frame_left = 0  # of the payload of a DATA frame
        self._stream: Stream | None = None  # that frame's
        self._padding = 0  # that follows it, or is a frame that means nothing
        self._ends = False  # that frame is its stream's last
        self._in_place = False
        self._eof = False
        self._block = bytearray()  # a header block that is not whole
        self._block_stream = self._block_flags = 0
        self._blocks = HeaderBlocks(lambda fields: read_call(fields, server.methods), server.limits.head_bytes)
        self.intake, self.max_message_bytes, self.allocate = server.intake, server.max_message_bytes, server.allocate
        self.uncounted = 0
        self._credit = http2.MAX_WINDOW  # what the client may send; its streams and the intake bound it more closely
        self._initial_window = http2.DEFAULT_WINDOW  # of the client's streams
        self._noise, self._calm = 0, 0.0
        self._whole_by = inf  # by when the frame, or the header block, that has begun must have come
        self._idle_by = inf
        self.read_by = self.written_by = inf

    # -- the transport's calls ---------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """A client has connected."""
        self._transport, server = transport, self._server
        self._sender.transport = transport
        self._entry = server.enter(self)
        if self._entry is Entry.TURNED_AWAY:
            self.abort()
            return
        self.read_by = self._whole_by = server.now + server.limits.head_s
        if self._entry is Entry.REFUSED:
            self._introduce()
            self._end(ErrorCode.ENHANCE_YOUR_CALM, server.full)

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone, and the calls on it are called off."""
        self._closing = self._over = True
        self._server.leave(self, self._entry)
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._stream = None

    def eof_received(self) -> bool:
        """The client sends no more: it may still wait for its answers."""
        self._sender.flush()  # of calls that are over, and keep the connection open no longer
        self._closing = self._eof = True
        for stream in list(self._streams.values()):
            if not stream.ended:
                self._drop(stream)
        self._goaway = True  # ends with its last stream
        return bool(self._streams)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        if self._stream is not None and not self._rest and (room := self._stream.room()) is not None:
            room = room[: self._frame_left]
            if len(room) >= _IN_PLACE_BYTES:
                self._in_place = True
                return room
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
        if (self._rest or self._block_stream) and self._whole_by == inf:
            self._whole_by = self._server.now + self._server.limits.head_s
        self._mind()

    def pause_writing(self) -> None:
        """The client is slow to read: what it sends is not read either, as it may want answers, too."""
        self._sender.clog()
        self._mind()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._sender.unclog()
        self._pump_ready()
        if not self._sender.clogged:
            self._transport.resume_reading()
            for stream in self._streams.values():
                if stream.exchange is not None:
                    stream.exchange.let_out()
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
            if self._frame_left or self._padding:
                at = self._payload(data, at)
            elif end - at < http2.FRAME_BYTES:
                return at
            elif (size := self._whole_frame(data[at:])) is not None:
                at += size
                self._whole_by = self._whole_by if self._block_stream else inf
            else:
                return at
            if at == end:
                return at
        return end

    def _payload(self, data: memoryview, at: int) -> int:
        """Take up what there is of a DATA frame's payload, or of what means nothing; how far that goes."""
        if taken := min(self._frame_left, len(data) - at):
            self._data(data[at : at + taken])
            return at + taken
        skipped = min(self._padding, len(data) - at)
        self._padding -= skipped
        return at + skipped

    def _whole_frame(self, data: memoryview) -> int | None:
        """Take up a frame, or the head of one whose payload need not be whole; its size, None where it has not come."""
        size, kind, flags, stream_id = http2.read_head(data)
        if self._block_stream and (kind != http2.CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block must not be interrupted")
        if not self._settled and (kind != http2.SETTINGS or flags & http2.ACK):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS come first")
        if kind == http2.DATA:
            return self._data_frame(data, size, flags, stream_id)
        if kind > http2.CONTINUATION:
            self._make_noise()
            self._padding = size
            return http2.FRAME_BYTES
        if size > self._server.limits.head_bytes:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes is too large for its type")
        whole = http2.FRAME_BYTES + size
        if len(data) < whole:
            return None
        self._frame(kind, flags, stream_id, data[http2.FRAME_BYTES : whole])
        return whole

    def _data_frame(self, data: memoryview, size: int, flags: int, stream_id: int) -> int | None:
        """The head of a DATA frame."""
        if not flags & http2.PADDED:
            self._begin_data(size, 0, flags, stream_id)
            return http2.FRAME_BYTES
        if len(data) == http2.FRAME_BYTES and size:
            return None
        padding = 1 + data[http2.FRAME_BYTES] if size else 1
        if padding > size:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than its frame")
        self._begin_data(size, padding, flags, stream_id)
        return http2.FRAME_BYTES + 1

    def _greet(self, data: memoryview) -> int:
        """Check the first bytes of all; how far they go."""
        size = len(http2.PREFACE)
        if data[:size] == http2.PREFACE[: len(data)]:
            self._greeted = len(data) >= size
            if self._greeted:
                self._idle_by, self._whole_by = self._server.now + self._server.limits.idle_s, inf
                self._introduce()
            return size if self._greeted else 0
        self._sender.write(_NOT_HTTP_2_HEAD % len(_NOT_HTTP_2) + _NOT_HTTP_2)
        self._close()
        return len(data)

    def _frame(self, kind: int, flags: int, stream_id: int, payload: memoryview) -> None:
        if kind == http2.HEADERS:
            self._headers(flags, stream_id, http2.unprioritised(http2.unpadded(payload, flags), flags))
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
                self._sender.write(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.GOAWAY:
            http2.check_goaway(payload)
            self.close_if_idle()
        elif kind == http2.PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a client cannot push")
        elif kind == http2.PRIORITY:
            http2.check_priority(stream_id, payload)

    def _make_noise(self, amount: int = 1) -> None:
        """Count a frame that does no work: who sends too many of these is cut off."""
        if self._calm != self._server.now:
            self._calm = self._server.now
            self._noise = max(min(self._noise, 0), -_MAX_CREDIT)
        self._noise += amount - _PER_FRAME * self._sender.take_frames()
        if self._noise > _MAX_NOISE:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that do no work")

    def _settings(self, flags: int, payload: memoryview) -> None:
        if flags & http2.ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement has no settings")
            return
        for name, value in http2.read_settings(payload):
            if name == http2.INITIAL_WINDOW_SIZE:
                for stream in self._streams.values():
                    stream.window += value - self._initial_window
                    if stream.window > http2.MAX_WINDOW:
                        raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window is too large")
                self._initial_window = value
                self._sender.windows_changed()
                self._make_noise(len(self._streams) // _STREAMS_PER_NOISE)
            else:
                self._sender.set(name, value)
        self._settled = True
        self._sender.write(http2.frame(http2.SETTINGS, http2.ACK, 0))
        self._pump_ready()

    def _window_update(self, stream_id: int, increment: int) -> None:
        if not stream_id:
            self._sender.window += increment
            if not increment or self._sender.window > http2.MAX_WINDOW:
                code = ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR
                raise ConnectionFault(code, f"the connection's window cannot grow by {increment}")
            self._pump_ready()
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

    def _known(self, stream_id: int) -> Stream | None:
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
            self._sender.write(http2.rst_stream(stream_id, fault.code))
            self._make_noise(_RESET_NOISE)
        elif len(self._streams) >= _MAX_STREAMS:
            self._sender.write(http2.rst_stream(stream_id, ErrorCode.REFUSED_STREAM))
            self._make_noise()
        else:
            stream = self._streams[stream_id] = Stream(stream_id, call, self, self._initial_window)
            stream.ended = bool(ends)
            stream.begin()
            if ends and stream.open:
                stream.finish()

    def _trailing(self, stream_id: int, ends: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._sender.write(http2.rst_stream(stream_id, ErrorCode.STREAM_CLOSED))
            self._make_noise()
        elif stream.ended or not ends:
            self._reset(stream, ErrorCode.STREAM_CLOSED if stream.ended else ErrorCode.PROTOCOL_ERROR)
        else:
            stream.finish()

    # -- messages ----------------------------------------------------------------------------------------------------

    def _begin_data(self, size: int, padding: int, flags: int, stream_id: int) -> None:
        """A DATA frame's head; ``padding`` bytes of it, one of them already here, are none of the payload."""
        stream = self._known(stream_id)
        self._credit -= size
        if self._credit < http2.MAX_WINDOW // 2:
            self._sender.write(http2.window_update(0, http2.MAX_WINDOW - self._credit))
            self._credit = http2.MAX_WINDOW
        self._ends = bool(flags & http2.END_STREAM)
        self._stream = None
        self._frame_left, self._padding = size - padding, max(0, padding - 1)
        if not self._frame_left and not self._ends:
            self._make_noise()
        if stream is None:
            return
        if stream.ended:
            self._reset(stream, ErrorCode.STREAM_CLOSED)
            return
        stream.credit -= size
        if stream.credit < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"stream {stream_id} has no window for this")
        if padding and not self._ends:
            self.grant(stream, padding)
        self._stream = stream
        if not self._frame_left:
            self._end_data()

    def _data(self, data: memoryview) -> None:
        """A part of a DATA frame's payload."""
        self._frame_left -= len(data)
        stream = self._stream
        if stream is not None and stream.open:
            stream.feed(data, self._frame_left)
        if not self._frame_left:
            self._end_data()

    def _received_in_place(self, nbytes: int) -> None:
        assert self._stream is not None
        self._frame_left -= nbytes
        self._stream.received(nbytes)
        if not self._frame_left:
            self._end_data()

    def _end_data(self) -> None:
        stream, self._stream = self._stream, None
        if self._ends and stream is not None and stream.open:
            stream.finish()

    # -- what streams ask for ----------------------------------------------------------------------------------------

    def grant(self, stream: Stream, size: int) -> None:
        """Let the client send ``size`` bytes more."""
        stream.credit += size
        self._sender.write(http2.window_update(stream.id, size))

    def await_bytes(self, stream: Stream) -> None:
        """The client owes bytes from now on; what it takes too long to send is called off."""
        if stream.id not in self._receiving:
            stream.read_by = self._server.now + self._server.limits.body_s
            self._receiving[stream.id] = stream

    def await_none(self, stream: Stream) -> None:
        """The client owes none."""
        self._receiving.pop(stream.id, None)

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a call's method."""
        task = self._server.loop.create_task(work)
        self._server.tasks.add(task)
        return task

    def worked(self) -> None:
        """A call's method has begun: the client may be a little noisier."""
        self._noise -= _WORK

    def ended(self, task: asyncio.Task[None]) -> None:
        """A call's method has ended."""
        self._server.tasks.discard(task)

    def answer(self, stream: Stream, body: Buffer, trailers: bytes) -> None:
        """Send a unary call's answer."""
        if self._sender.whole(stream, body, trailers):
            self.forget(stream)
        elif self._sender.message(stream, body):
            self.end(stream, trailers)
        else:
            self.end(stream, failed(UnavailableError(NO_ROOM)).trailers())

    def clear_to_send(self, stream: Stream) -> bool:
        """Whether all that was sent is out."""
        return self._sender.clear(stream)

    def send(self, stream: Stream, message: Buffer) -> None:
        """Send a message.

        Raises:
            UnavailableError: the client does not take it, and there is no room for it to wait.
        """
        if not self._sender.message(stream, message):
            raise UnavailableError(NO_ROOM)
        self._pump(stream)

    def end(self, stream: Stream, trailers: bytes) -> None:
        """End the call with these fields, after what was sent."""
        stream.answered = True
        stream.trailers = trailers if stream.started else with_head(trailers)
        stream.let_go()
        self.await_none(stream)
        self._pump(stream)

    def _pump(self, stream: Stream) -> None:
        if self._sender.pump(stream):
            self.forget(stream)
        elif stream.outbox is not None:
            self._mind()

    def _pump_ready(self) -> None:
        while (stream := self._sender.next_ready()) is not None:
            self._pump(stream)

    def forget(self, stream: Stream) -> None:
        """The call is over: what the client might still send of it is not wanted."""
        if not stream.ended:
            self._sender.write(http2.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._drop(stream)

    # -- ends --------------------------------------------------------------------------------------------------------

    def _reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a call without an answer."""
        self._sender.write(http2.rst_stream(stream.id, code))
        self._drop(stream)

    def _drop(self, stream: Stream) -> None:
        """Keep nothing of a call."""
        self._streams.pop(stream.id, None)
        self._receiving.pop(stream.id, None)
        self._sender.drop(stream)
        stream.drop()
        if not self._streams:
            self._idle_by = self._server.now + self._server.limits.idle_s
            if self._goaway:
                self._end(ErrorCode.NO_ERROR, "")
            self._mind()

    def _introduce(self) -> None:
        """Say what the server takes."""
        own = _SERVER_SETTINGS | {http2.MAX_HEADER_LIST_SIZE: self._server.limits.head_bytes}
        self._sender.write(http2.settings(own) + http2.window_update(0, http2.MAX_WINDOW - http2.DEFAULT_WINDOW))

    def _mind(self) -> None:
        """Set when the client's next bytes, and its next reading, are due."""
        if self._over:
            return
        message_by = next(iter(self._receiving.values())).read_by if self._receiving else inf
        self.read_by = min(message_by, self._whole_by, inf if self._streams else self._idle_by)
        self.written_by = self._sender.due()

    @property
    def owes(self) -> bool:
        """Whether an answer, or a part of one, has not left yet."""
        return self._sender.owes

    def expire(self) -> None:
        """The client took too long."""
        now = self._server.now
        if self._sender.is_lost():
            self.abort()
            return
        if self._over:
            self._linger()
            return
        for stream in self._sender.late():
            self._reset(stream, ErrorCode.CANCEL)
        for stream in [each for each in self._receiving.values() if each.read_by < now]:
            stream.refuse(Code.DEADLINE_EXCEEDED, "the message did not arrive in time")
        if self._whole_by < now:
            self._end(ErrorCode.NO_ERROR, "a frame did not arrive in time")
        elif self._idle_by < now and not self._streams:
            self._end(ErrorCode.NO_ERROR, "idle")
        self._mind()

    def close_if_idle(self) -> None:
        """The server stops: a connection without a call ends now, another with its last answer."""
        if self._closing:
            return
        if not self._streams:
            self._end(ErrorCode.NO_ERROR, "")
        elif not self._goaway:
            self._goaway = True
            self._sender.write(http2.goaway(http2.MAX_WINDOW, ErrorCode.NO_ERROR))

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = self._over = True
        self._sender.flush()
        self._transport.abort()

    def _end(self, code: ErrorCode, reason: str) -> None:
        """Say why, and end the connection."""
        if self._over or self._transport.is_closing():
            return
        self._goaway = False
        self._closing = self._over = True
        self._sender.write(http2.goaway(self._last_stream, code, reason))
        for stream in list(self._streams.values()):
            self._drop(stream)
        self._close()

    def _close(self) -> None:
        """Let what was written leave: a reset, for what the client still sends, could overtake it."""
        self._closing = self._over = True
        self._sender.flush()
        self._sender.be_patient()
        self.written_by = self._sender.due()
        if self._eof:
            self.read_by = inf
            self._transport.close()
            return
        self.read_by = self._server.now + LINGER_S
        with contextlib.suppress(OSError):  # it is gone already
            self._transport.write_eof()

    def _linger(self) -> None:
        """The last word is said; it may still be on its way, and the client has a moment to close after it."""
        if self._sender.owes:
            self.read_by, self.written_by = self._server.now + LINGER_S, self._sender.due()
        else:
            self.abort()
