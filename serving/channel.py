"""A router's connections to model replicas: one Unix socket each, watched for a peer that is gone or stopped."""

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from models.tensor import Buffer
from serving.directory import Replica
from serving.stream import FrameStream
from serving.wire import ReplyHeader, decode_reply_header, decode_welcome, encode_hello

_log = logging.getLogger("understudy.channel")
_WATCH_S: Final = 0.25
# Of /proc/pid/stat: stopped by a signal or a debugger, dead, or a zombie.
_NOT_RUNNING: Final = frozenset("TtXxZ")


class Link:
    """One replica as a router sees it. Lives on the data plane's event loop; every method is called there.

    The kernel closes a killed process's socket, so its death is noticed at once. A stopped process keeps its own: the
    kernel is asked four times a second whether it runs. A replica that computes, or is starved of cores by clients'
    work, is not mistaken for a dead one.

    ``on_reply`` gets a reply's header, decoded, and all its frames as they came; ``on_down`` is called once.

    ``arena`` is the name of the arena where tensors lie that need not be sent, once the replica ``shares`` it.
    ``rest_s`` is how long replies may wait for others, to be read together (``FrameStream``).
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        replica: Replica,
        *,
        arena: str | None = None,
        rest_s: float = 0.0,
        on_reply: Callable[["Link", ReplyHeader, Sequence[Buffer]], None],
        on_down: Callable[["Link"], None],
    ) -> None:
        self.replica = replica
        self.inflight: dict[int, Any] = {}
        self.abandoned: set[int] = set()  # sent, given up, and still not answered: the replica may hang
        self.closed = False
        self.leaving = False  # it withdrew: it finishes what it has
        self.given = 0.0  # when it was last sent a batch
        self.replied = 0.0  # when its last reply came: it cannot have begun the next batch before
        self.shares = False  # whether the replica has said that it can read the arena
        self._loop, self._on_reply, self._on_down = loop, on_reply, on_down
        self._stream: FrameStream | None = None
        self._watching = loop.call_later(_WATCH_S, self._watch)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(replica.address)
        except OSError as error:  # refused, or so many routers that its backlog is full
            connection.close()
            loop.call_soon(self._end, error.strerror)
            return
        self._stream = FrameStream(loop, connection, on_message=self._take, on_end=self._end, rest_s=rest_s)
        if arena is not None:
            self._stream.send([encode_hello(arena)])

    @property
    def usable(self) -> bool:
        """Whether it may be given work: connected, and not sitting on a batch that was given up."""
        return not self.closed and not self.leaving and not self.abandoned

    def send(self, batch_id: int, batch: Any, frames: Sequence[Buffer]) -> None:
        """Send a batch; its reply, or the link's end, will come by callback. Never waits."""
        self.inflight[batch_id] = batch
        if self._stream is not None:
            self._stream.send(frames)

    def send_soon(self, batch_id: int, batch: Any, frames: Sequence[Buffer]) -> None:
        """The same, together with what follows until ``flush``."""
        self.inflight[batch_id] = batch
        if self._stream is not None:
            self._stream.send_soon(frames)

    def flush(self) -> None:
        """Send what waits to be sent together."""
        if self._stream is not None:
            self._stream.flush()

    def abandon(self, batch_id: int) -> Any:
        """Give a batch up: a late reply is dropped, and until it comes the link gets no more work."""
        self.abandoned.add(batch_id)
        return self.inflight.pop(batch_id)

    def close(self) -> None:
        """Disconnect."""
        if self.closed:
            return
        self.closed = True
        self._watching.cancel()
        if self._stream is not None:
            self._stream.close()

    def _take(self, message: Sequence[memoryview]) -> None:
        shares = decode_welcome(message[0])
        if shares is None:
            header = decode_reply_header(message[0])
            self.abandoned.discard(header.id)
            self._on_reply(self, header, message)
        else:
            self.shares = shares

    def _watch(self) -> None:
        self._watching = self._loop.call_later(_WATCH_S, self._watch)
        if not _runs(self.replica.pid):
            self._end("it is stopped")

    def _end(self, why: str | None) -> None:
        """The replica is gone; said once."""
        if not self.closed:
            _log.info("replica %s: %s", self.replica.id, why)
            self.close()
            self._on_down(self)


def _runs(pid: int) -> bool:
    """Whether the kernel would let a process run."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True  # no descriptor is left to ask with: that says nothing of the replica
    return stat[stat.rindex(")") + 2] not in _NOT_RUNNING
