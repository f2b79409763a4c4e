"""A door: a listening socket in an event loop that already runs, and the connections that came through it."""

import asyncio
import fcntl
import mmap
import socket
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np

from serving.errors import LaunchError
from serving.intake import Intake

SCRATCH_BYTES: Final = 64 * 1024
LINGER_S: Final = 2.0  # how long a client that was refused may go on sending before it is cut off
_REFUSED_FACTOR: Final = 2  # of all connections to those that are served: the rest is refused, with an answer
_TICK_S: Final = 0.25
_LEAST_TAKEN_BYTES: Final = 16 * 1024
_LEAVING_POLL_S: Final = 0.01
# A client that vanished without a word, with a stream under way, is noticed within two minutes.
_KEEPALIVE: Final = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 60,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 15,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 4,
}
_HUGE_FROM_BYTES: Final = (
    4 * 1024 * 1024
)  # where numpy asks for pages of 2 MiB, of which the first byte takes a whole one


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take: sizes in bytes, times in seconds.

    ``head_s`` and ``body_s`` bound how long a request line with its headers, and a body, may take to arrive whole,
    however steadily they trickle; ``idle_s`` bounds a connection without a request, ``write_s`` a client that takes
    next to nothing of its answer. Times are kept to a quarter of a second, ``head_bytes`` to what one read brings.
    """

    connections: int = 4096
    head_bytes: int = 64 * 1024
    body_bytes: int = 64 * 1024 * 1024
    head_s: float = 10.0
    body_s: float = 60.0
    idle_s: float = 75.0
    write_s: float = 60.0


class Guest(Protocol):
    """A connection; what the client owes is due at ``read_by``, and what it is owed must be taken by ``written_by``."""

    read_by: float
    written_by: float

    @property
    def owes(self) -> bool:
        """Whether an answer, or a part of one, has not left yet."""

    def expire(self) -> None:
        """The client took too long."""

    def close_if_idle(self) -> None:
        """The server stops: a connection with nothing under way ends now, another with its last answer."""

    def abort(self) -> None:
        """End the connection at once."""


class Entry(Enum):
    """How a new connection is met."""

    SERVED = auto()
    REFUSED = auto()  # one too many: it is told so
    TURNED_AWAY = auto()  # not even that


GuestT = TypeVar("GuestT", bound=Guest)


class Door(Generic[GuestT]):
    """Accepts connections on a bound socket, and sees to their limits. ``connect`` makes the protocol of each."""

    def __init__(
        self,
        connect: Callable[[], asyncio.BufferedProtocol],
        sock: socket.socket,
        *,
        limits: Limits,
        intake: Intake,
        backlog: int = 2048,
    ) -> None:
        self.limits, self.intake = limits, intake
        self.connections: set[GuestT] = set()
        self.admitted = 0  # of these, all but those that were one too many
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        # Received and parsed within one callback, so that all connections can share it.
        self.scratch = memoryview(bytearray(SCRATCH_BYTES))
        self.now = 0.0  # the loop's time, as of the last tick: near enough for timeouts
        self.loop = asyncio.get_running_loop()
        self._connect, self._socket, self._backlog = connect, sock, backlog
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listen; requests are answered from here on.

        Raises:
            LaunchError: someone else began to listen on the same address since it was bound.
        """
        self._tick()
        host, port = self._socket.getsockname()[:2]
        try:
            self._server = await self.loop.create_server(self._connect, sock=self._socket, backlog=self._backlog)
        except OSError as error:
            self._socket.close()
            raise LaunchError(f"cannot listen on {host}:{port}: {error.strerror}") from None

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let requests under way finish and their answers leave for up to ``grace_s``, then end all."""
        self.stopping, ends = True, self.loop.time() + grace_s
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
        while self.loop.time() < ends and any(each.owes for each in self.connections):
            await asyncio.sleep(_LEAVING_POLL_S)
        for connection in list(self.connections):
            connection.abort()
        if self._timer is not None:
            self._timer.cancel()

    def enter(self, connection: GuestT) -> Entry:
        """A connection was made; unless it is turned away, it calls ``leave`` at its end."""
        most = self.limits.connections
        if self.stopping or len(self.connections) >= _REFUSED_FACTOR * most:
            return Entry.TURNED_AWAY
        self.connections.add(connection)
        if self.admitted >= most:
            return Entry.REFUSED
        self.admitted += 1
        return Entry.SERVED

    def leave(self, connection: GuestT, entry: Entry) -> None:
        """A connection has ended that was met as ``entry`` says."""
        self.connections.discard(connection)
        self.admitted -= entry is Entry.SERVED

    @property
    def full(self) -> str:
        """What one connection too many is told."""
        return f"the server has all of its {self.limits.connections} connections in use"

    def _tick(self) -> None:
        self._timer = self.loop.call_later(_TICK_S, self._tick)
        self.now = now = self.loop.time()
        for connection in [each for each in self.connections if each.read_by < now or each.written_by < now]:
            connection.expire()


def bytes_left(transport: Any) -> int:
    """What was written and has not reached the client's machine: of the kernel's buffers, too, which hold megabytes."""
    left: int = transport.get_write_buffer_size()
    try:
        queued = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError, AttributeError):
        return left  # the socket is gone
    return left + int.from_bytes(queued, sys.byteorder)


class Patience:
    """With a client that is slow to take an answer: ``due`` is when it must have taken some more of it."""

    __slots__ = ("_left", "due")

    def __init__(self) -> None:
        self.due = inf
        self._left = 0

    def begin(self, due: float, left: int) -> None:
        """It has until then to take some of the ``left`` bytes."""
        self.due, self._left = due, left

    def end(self) -> None:
        """It has taken all."""
        self.due = inf

    def is_lost(self, left: int, due: float) -> bool:
        """Whether next to nothing was taken in time; else it has until ``due`` to take some of what is left now."""
        if left > self._left - _LEAST_TAKEN_BYTES:
            return True
        self.begin(due, left)
        return False


def uncleared(size: int, beginning: object = None) -> memoryview:
    """Memory for what will be received; it is taken from the machine only as that comes.

    Raises:
        MemoryError: there is not as much.
    """
    if size < _HUGE_FROM_BYTES:
        return np.empty(size, np.uint8).data
    try:
        return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
    except OSError:
        raise MemoryError(f"no memory for {size} bytes") from None


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A socket bound to ``host`` and ``port`` (0: any free one), not yet listening.

    ``reuse_port`` lets several processes listen on one port; the kernel spreads the connections over them.

    Raises:
        LaunchError: the address is in use, not of this machine, or not permitted; names it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LaunchError(f"cannot bind {host}:{port}: {error.strerror}") from None
    try:
        for option, value in _KEEPALIVE.items():
            sock.setsockopt(*option, value)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise LaunchError(f"cannot bind {host}:{port}: {error.strerror}") from None
    return sock
