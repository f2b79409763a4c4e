"""A stream socket on an event loop that carries messages of several frames, both ways."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from socket import socket
from typing import Final

from models.tensor import Buffer
from serving.errors import MalformedMessageError
from serving.frames import Inbox, pack, send_some

_SOON_S: Final = 0.005
_MUCH_BYTES: Final = 64 * 1024


class FrameStream:
    """A connected socket, which it makes its own. Lives on the event loop; every method is called there.

    ``on_message`` gets the frames of each message. ``on_end`` is called once, and never from within ``send``: the other
    side has gone, or sent what is no message; why is said.

    After a read that left nothing half read, the socket is left alone for ``rest_s``: what comes meanwhile is read at
    one go. Each reading costs a waking.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket,
        *,
        on_message: Callable[[list[memoryview]], None],
        on_end: Callable[[str], None],
        rest_s: float = 0.0,
    ) -> None:
        self._loop, self._socket, self._rest_s = loop, connection, rest_s
        self._resting: asyncio.TimerHandle | None = None
        self._on_message, self._on_end = on_message, on_end
        self._inbox = Inbox()
        self._unsent: deque[Buffer] = deque()
        self._gathered: list[Buffer] = []
        self._gathered_bytes = 0
        self._gathering: asyncio.TimerHandle | None = None
        self.closed = False
        connection.setblocking(False)
        loop.add_reader(connection, self._readable)

    @property
    def unsent(self) -> bool:
        """Whether the other side has still to take what was sent."""
        return bool(self._unsent or self._gathered)

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send a message; what the socket does not take at once waits. Never blocks."""
        if self._gathered:
            self.flush()  # it came before
        self._write(pack(frames))

    def _write(self, parts: Sequence[Buffer]) -> None:
        if self._unsent:
            self._unsent.extend(parts)
            return
        try:
            self._unsent.extend(send_some(self._socket, parts))
        except OSError as error:
            self._loop.call_soon(self._end, error.strerror)
            return
        if self._unsent:
            self._loop.add_writer(self._socket, self._writable)

    def send_soon(self, frames: Sequence[Buffer]) -> None:
        """Send a message together with those of the next milliseconds, or of the time until ``flush``: each waking of
        the other side costs both.
        """
        parts = pack(frames)
        self._gathered += parts
        self._gathered_bytes += sum(map(len, parts))
        if self._gathered_bytes >= _MUCH_BYTES:
            self.flush()
        elif self._gathering is None:
            self._gathering = self._loop.call_later(_SOON_S, self.flush)

    def flush(self) -> None:
        """Send what was gathered."""
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        parts, self._gathered, self._gathered_bytes = self._gathered, [], 0
        if parts and not self.closed:
            self._write(parts)

    def close(self) -> None:
        """Disconnect; what was not taken yet is lost. ``on_end`` is not called any more."""
        if self.closed:
            return
        self.closed = True
        self._unsent.clear()
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _writable(self) -> None:
        try:
            self._unsent = deque(send_some(self._socket, tuple(self._unsent)))
        except OSError as error:
            self._end(error.strerror)
            return
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        try:
            count = self._socket.recv_into(self._inbox.space())
        except BlockingIOError:
            return
        except OSError as error:
            self._end(error.strerror)
            return
        if not count:
            self._end("it closed the connection")
            return
        try:
            for message in self._inbox.received(count):
                self._on_message(message)
        except MalformedMessageError as error:
            self._end(str(error))
        if self._rest_s and not self.closed and not self._inbox.partial:
            self._loop.remove_reader(self._socket)
            self._resting = self._loop.call_later(self._rest_s, self._rested)

    def _rested(self) -> None:
        self._loop.add_reader(self._socket, self._readable)

    def _end(self, why: str | None) -> None:
        if not self.closed:
            self.close()
            self._on_end(why or "the connection broke")
