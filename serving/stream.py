"""A stream socket on an event loop that carries messages of several frames, both ways."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from socket import socket

from models.tensor import Buffer
from serving.errors import MalformedMessageError
from serving.frames import Inbox, pack, send_some


class FrameStream:
    """A connected socket, which it makes its own. Lives on the event loop; every method is called there.

    ``on_message`` gets the frames of each message. ``on_end`` is called once, and never from within ``send``: the other
    side has gone, or sent what is no message; why is said.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: socket,
        *,
        on_message: Callable[[list[memoryview]], None],
        on_end: Callable[[str], None],
    ) -> None:
        self._loop, self._socket = loop, connection
        self._on_message, self._on_end = on_message, on_end
        self._inbox = Inbox()
        self._unsent: deque[Buffer] = deque()
        self.closed = False
        connection.setblocking(False)
        loop.add_reader(connection, self._readable)

    @property
    def unsent(self) -> bool:
        """Whether the other side has still to take what was sent."""
        return bool(self._unsent)

    def send(self, frames: Sequence[Buffer]) -> None:
        """Send a message; what the socket does not take at once waits. Never blocks."""
        parts = pack(frames)
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

    def close(self) -> None:
        """Disconnect; what was not taken yet is lost. ``on_end`` is not called any more."""
        if self.closed:
            return
        self.closed = True
        self._unsent.clear()
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

    def _end(self, why: str | None) -> None:
        if not self.closed:
            self.close()
            self._on_end(why or "the connection broke")
