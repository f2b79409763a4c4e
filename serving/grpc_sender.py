"""The sending half of a connection of gRPC: what the client's windows let out leaves, the rest waits its turn."""

from collections import deque
from math import inf
from typing import Any, Final

from models.tensor import Buffer
from serving import http2
from serving.door import Door
from serving.grpc_call import HEAD, PREFIX, PREFIX_BYTES
from serving.grpc_stream import Stream

_END: Final = http2.END_HEADERS | http2.END_STREAM


class Sender:
    """Writes to one client. ``window`` is what it takes on all streams at present; ``clogged_by`` when it must read."""

    __slots__ = (
        "_blocked",
        "_door",
        "_frames",
        "_max_frame",
        "_no_table",
        "_table_update",
        "_written",
        "clogged_by",
        "transport",
        "window",
    )

    def __init__(self, door: Door[Any]) -> None:
        self._door = door
        self.transport: Any = None
        self.window = http2.DEFAULT_WINDOW
        self.clogged_by = inf
        self._max_frame = http2.DEFAULT_MAX_FRAME
        self._no_table = self._table_update = b""  # what tells a client that wants no large table that there is none
        self._written: list[bytes] = []
        self._blocked: dict[int, Stream] = {}  # whose answers wait, the one that is due first at the front
        self._frames = 0

    def set(self, name: int, value: int) -> None:
        """The client has changed a setting."""
        if name == http2.MAX_FRAME_SIZE:
            self._max_frame = value
        elif name == http2.HEADER_TABLE_SIZE and value < http2.DEFAULT_TABLE_BYTES and not self._no_table:
            self._no_table = self._table_update = http2.NO_TABLE

    def write(self, data: bytes) -> None:
        """Write at the end of the loop's turn: the requests of a batch are answered in one, often on one connection."""
        if not self._written:
            self._door.loop.call_soon(self.flush)
        self._written.append(data)

    def flush(self) -> None:
        """Write now what is to be written."""
        written, self._written = self._written, []
        if written and not self.transport.is_closing():
            self.transport.write(written[0] if len(written) == 1 else b"".join(written))

    def clog(self) -> None:
        """The client does not read."""
        self.clogged_by = self._door.now + self._door.limits.write_s

    def clear(self, stream: Stream) -> bool:
        """Whether all that was sent on a stream is out."""
        return stream.outbox is None and self.clogged_by == inf

    def whole(self, stream: Stream, body: Buffer, trailers: bytes) -> bool:
        """Send an answer, from its first header to its last, in one piece; False where the client does not allow it."""
        size = len(body) + PREFIX_BYTES
        room = min(self.window, stream.window, self._max_frame)
        if size > room or self.clogged_by < inf or self._table_update:
            return False
        self.window -= size
        pack, stream_id = http2.FRAME.pack, stream.id
        self.write(
            b"".join(
                (
                    pack(0, len(HEAD), http2.HEADERS, http2.END_HEADERS, stream_id),
                    HEAD,
                    pack(size >> 8, size & 0xFF, http2.DATA, 0, stream_id),
                    PREFIX.pack(0, len(body)),
                    body,
                    http2.frame(http2.HEADERS, _END, stream_id, trailers),
                )
            )
        )
        stream.answered = True
        return True

    def message(self, stream: Stream, message: Buffer) -> None:
        """A message that ``pump`` shall send."""
        if not stream.started:
            stream.started = True
            self.write(self._header_block(HEAD, http2.END_HEADERS, stream))
        outbox = stream.outbox = stream.outbox if stream.outbox is not None else deque()
        outbox.append(memoryview(PREFIX.pack(0, len(message))))
        if len(message):
            outbox.append(memoryview(message))

    def pump(self, stream: Stream) -> bool:
        """Send what of a stream the client's windows let out; whether that was its end."""
        outbox, parts = stream.outbox, self._let_out(stream)
        if outbox:
            if parts or stream.id not in self._blocked:
                self._blocked.pop(stream.id, None)
                stream.written_by = self._door.now + self._door.limits.write_s
                self._blocked[stream.id] = stream
        else:
            self.drop(stream)
            stream.outbox = None
            if stream.answered:
                parts.append(self._header_block(stream.trailers, _END, stream))
            if stream.exchange is not None:
                stream.exchange.let_out()
        if parts:
            self.flush()
            self.transport.writelines(parts)
        return stream.answered and not outbox

    def waiting(self) -> list[Stream]:
        """The streams whose answers wait for the client."""
        return list(self._blocked.values())

    def drop(self, stream: Stream) -> None:
        """A stream waits no longer."""
        self._blocked.pop(stream.id, None)

    def due(self) -> float:
        """When the client must have taken something."""
        first = next(iter(self._blocked.values())).written_by if self._blocked else inf
        return min(first, self.clogged_by)

    def take_frames(self) -> int:
        """How many DATA frames were sent since this was asked last, but for those of whole answers."""
        frames, self._frames = self._frames, 0
        return frames

    def _let_out(self, stream: Stream) -> list[Buffer]:
        parts: list[Buffer] = []
        while stream.outbox and self.clogged_by == inf:
            room = min(self.window, stream.window, self._max_frame)
            if room <= 0:
                break
            piece = stream.outbox.popleft()
            if len(piece) > room:
                stream.outbox.appendleft(piece[room:])
                piece = piece[:room]
            self.window -= len(piece)
            stream.window -= len(piece)
            self._frames += 1
            parts += (http2.frame_head(len(piece), http2.DATA, 0, stream.id), piece)
        return parts

    def _header_block(self, block: bytes, flags: int, stream: Stream) -> bytes:
        block, self._table_update = self._table_update + block, b""
        return http2.frame(http2.HEADERS, flags, stream.id, block)
