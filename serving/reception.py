"""A replica's side of the channel: routers connect to its Unix socket, and their messages are taken one by one."""

import logging
import select
import socket
import struct
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from models.tensor import Buffer
from serving.arena import Window
from serving.errors import MalformedMessageError
from serving.frames import Inbox, pack, send_some

_log = logging.getLogger("understudy.replica")
_BACKLOG: Final = 128
# A router that takes no reply for this long is as good as gone, and the others wait.
_SEND_TIMEOUT: Final = struct.pack("ll", 2, 0)


class Peer:
    """A connected router. ``window`` shows its arena, if it can be read here."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.descriptor = connection.fileno()
        self.inbox = Inbox()
        self.window: Window | None = None


class Reception:
    """Listens at a path for routers. Used from one thread, which it makes wait.

    Raises:
        OSError: the path cannot be bound.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(path)
        self._listening.listen(_BACKLOG)
        self._peers: dict[int, Peer] = {}
        self._messages: deque[tuple[Peer, list[memoryview]]] = deque()
        self._poll = select.poll()
        self._poll.register(self._listening, select.POLLIN)

    def receive(self, timeout_ms: int) -> tuple[Peer, list[memoryview]] | None:
        """The next message and who sent it; None if none came in time."""
        if not self._messages:
            for descriptor, _ in self._poll.poll(timeout_ms):
                peer = self._peers.get(descriptor)
                if peer is None:
                    self._accept()
                else:
                    self._read(peer)
        return self._messages.popleft() if self._messages else None

    def reply(self, peer: Peer, frames: Sequence[Buffer]) -> None:
        """Answer a router; one that has gone, or takes nothing, is let go."""
        if self._peers.get(peer.descriptor) is not peer:
            return
        parts = pack(frames)
        try:
            while parts:
                left = send_some(peer.connection, parts)
                if left == parts:
                    raise TimeoutError("it takes no reply")
                parts = left
        except OSError as error:
            self._drop(peer, str(error))

    def refuse(self, peer: Peer, why: str) -> None:
        """Let go of a router that sent what is no message: nothing more of it is taken, and no other notices."""
        if self._peers.get(peer.descriptor) is not peer:
            return
        _log.warning("a router is let go of for a malformed message: %s", why)
        self._forget(peer)
        self._messages = deque(each for each in self._messages if each[0] is not peer)

    def close(self) -> None:
        """Disconnect from all routers, which is how they learn of it."""
        self._listening.close()
        for peer in self._peers.values():
            peer.connection.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        connection, _ = self._listening.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
        peer = Peer(connection)
        self._peers[peer.descriptor] = peer
        self._poll.register(connection, select.POLLIN)

    def _read(self, peer: Peer) -> None:
        try:
            count = peer.connection.recv_into(peer.inbox.space())
        except OSError as error:
            self._drop(peer, str(error))
            return
        if not count:
            self._drop(peer, "it closed the connection")
            return
        try:
            self._messages.extend((peer, frames) for frames in peer.inbox.received(count))
        except MalformedMessageError as error:
            self.refuse(peer, str(error))

    def _drop(self, peer: Peer, why: str) -> None:
        """Forget a router. Messages of it that were read already are still taken, and their replies dropped."""
        _log.info("a router is gone: %s", why)
        self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        del self._peers[peer.descriptor]
        self._poll.unregister(peer.descriptor)
        peer.connection.close()
