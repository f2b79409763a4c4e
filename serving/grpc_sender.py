"""The sending half of a connection of gRPC: what the client's windows let out leaves, the rest waits its turn."""

from collections import deque
from math import inf
from typing import Any, Final

from models.tensor import Buffer
from serving import http2
from serving.door import Door, Patience, bytes_left
from serving.grpc_call import HEAD, PREFIX, PREFIX_BYTES
from serving.grpc_stream import Stream

_END: Final = http2.END_HEADERS | http2.END_STREAM
_PIECE_BYTES: Final = 1024 * 1024


class Sender:
    """Writes to one client. ``window`` is what it takes on all streams at present.

    It is ``clogged`` while the client reads too slowly, for which ``patience`` has a limit.
    """

    __slots__ = (
        "_blocked",
        "_door",
        "_frames",
        "_max_frame",
        "_no_table",
        "_ready",
        "_table_update",
        "_written",
        "clogged",
        "patience",
        "transport",
        "window",
    )

    def __init__(self, door: Door[Any]) -> None:
        self._door = door
        self.transport: Any = None
        self.window = http2.DEFAULT_WINDOW
        self.clogged, self.patience = False, Patience()
        self._max_frame = http2.DEFAULT_MAX_FRAME
        self._no_table = self._table_update = b""  # what tells a client that wants no large table that there is none
        self._written: list[bytes] = []
        self._blocked: dict[int, Stream] = {}  # whose answers wait, the one that is due first at the front
        self._ready: dict[int, Stream] = {}  # of these, those that wait for nothing that is the stream's own
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
        self.clogged = True
        self.be_patient()

    def unclog(self) -> None:
        """It has read what was written."""
        self.clogged = False
        self.patience.end()

    def be_patient(self) -> None:
        """What is written has some time to leave."""
        self.patience.begin(self._until(), bytes_left(self.transport))

    @property
    def owes(self) -> bool:
        """Whether anything has not left yet."""
        return bool(self._blocked or self._written or self.transport.get_write_buffer_size())

    def clear(self, stream: Stream) -> bool:
        """Whether all that was sent on a stream is out."""
        return stream.outbox is None and not self.clogged

    def whole(self, stream: Stream, body: Buffer, trailers: bytes) -> bool:
        """Send an answer, from its first header to its last, in one piece; False where the client does not allow it."""
        size = len(body) + PREFIX_BYTES
        room = min(self.window, stream.window, self._max_frame)
        if size > room or self.clogged or self._table_update:
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

    def message(self, stream: Stream, message: Buffer) -> bool:
        """Take a message that ``pump`` shall send; False where there is no room for it to wait."""
        size = len(message)
        if self.clogged or size + PREFIX_BYTES > min(self.window, stream.window):
            if not self._door.intake.admit(size):
                return False
            stream.waiting += size
        if not stream.started:
            stream.started = True
            self.write(self._header_block(HEAD, http2.END_HEADERS, stream))
        outbox = stream.outbox = stream.outbox if stream.outbox is not None else deque()
        outbox.append(memoryview(PREFIX.pack(0, size)))
        if size:
            outbox.append(memoryview(message))
        return True

    def pump(self, stream: Stream) -> bool:
        """Send what of a stream the client's windows let out; whether that was its end."""
        parts = self._let_out(stream)
        while stream.outbox and parts:  # a piece at a time: a client that does not read is noticed in between
            self._write_now(parts)
            parts = self._let_out(stream)
        if stream.outbox:
            self._wait(stream)
            return False
        self.drop(stream)
        stream.outbox = None
        if stream.answered:
            parts.append(self._header_block(stream.trailers, _END, stream))
        if parts:
            self._write_now(parts)
        if stream.exchange is not None:
            stream.exchange.let_out()
        return stream.answered

    def _write_now(self, parts: list[Buffer]) -> None:
        self.flush()
        self.transport.writelines(parts)

    def _wait(self, stream: Stream) -> None:
        """A stream's answer, or what is left of it, waits for the client."""
        if stream.id not in self._blocked:
            stream.patience = Patience()
            self._give_time(stream)
        self._ready.pop(stream.id, None)
        if stream.window > 0:
            self._ready[stream.id] = stream

    def _give_time(self, stream: Stream) -> None:
        stream.patience.begin(self._until(), _bytes_left(stream))
        self._blocked.pop(stream.id, None)
        self._blocked[stream.id] = stream

    def _until(self) -> float:
        return self._door.now + self._door.limits.write_s

    def next_ready(self) -> Stream | None:
        """A stream that waited for the client and can send some more now."""
        if self.window <= 0 or self.clogged:
            return None
        return next(iter(self._ready.values()), None)

    def windows_changed(self) -> None:
        """The client has changed the windows of all streams."""
        self._ready = {each.id: each for each in self._blocked.values() if each.window > 0}

    def late(self) -> list[Stream]:
        """The streams of whose answers the client takes next to nothing; the others get more time.

        While the client is slow to read what is written already, ``is_lost`` says whether that is too slow.
        """
        found = []
        for stream in [each for each in self._blocked.values() if each.patience.due < self._door.now]:
            if not self.clogged and stream.patience.is_lost(_bytes_left(stream), self._until()):
                found.append(stream)
            else:
                self._give_time(stream)
        return found

    def is_lost(self) -> bool:
        """Whether the client takes next to nothing of what was written to it."""
        if self.patience.due >= self._door.now:
            return False
        return self.patience.is_lost(bytes_left(self.transport), self._until())

    def drop(self, stream: Stream) -> None:
        """A stream waits no longer."""
        self._blocked.pop(stream.id, None)
        self._ready.pop(stream.id, None)
        self._door.intake.release(stream.waiting)
        stream.waiting = 0

    def due(self) -> float:
        """When the client must have taken something."""
        first = next(iter(self._blocked.values())).patience.due if self._blocked else inf
        return min(first, self.patience.due)

    def take_frames(self) -> int:
        """How many DATA frames were sent since this was asked last, but for those of whole answers."""
        frames, self._frames = self._frames, 0
        return frames

    def _let_out(self, stream: Stream) -> list[Buffer]:
        parts: list[Buffer] = []
        total = 0
        while stream.outbox and not self.clogged and total < _PIECE_BYTES:
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
            total += len(piece)
            parts += (http2.frame_head(len(piece), http2.DATA, 0, stream.id), piece)
        return parts

    def _header_block(self, block: bytes, flags: int, stream: Stream) -> bytes:
        block, self._table_update = self._table_update + block, b""
        return http2.frame(http2.HEADERS, flags, stream.id, block)


def _bytes_left(stream: Stream) -> int:
    return sum(map(len, stream.outbox or ()))
