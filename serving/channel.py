"""A router's connections to model replicas: one ZeroMQ socket each, watched by heartbeats and a socket monitor."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from models.tensor import Buffer
from rollout.traffic import Priority
from serving.arena import Arena
from serving.directory import Replica
from serving.wire import ReplyHeader, decode_reply_header, decode_welcome, encode_hello

_log = logging.getLogger("understudy.channel")
HEARTBEAT_MS: Final = 200
SILENCE_MS: Final = 600
SHADOW_SILENCE_MS: Final = 5_000  # clients may take every core from a replica of the lowest priority
_DOWN: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CONNECT_RETRIED | zmq.EVENT_CLOSED | zmq.EVENT_MONITOR_STOPPED


class Link:
    """One replica as a router sees it. Lives on the data plane's event loop; every method is called there.

    libzmq's own threads exchange the heartbeats, so a replica that computes is not mistaken for a dead one, while a
    killed process is noticed at once and a stopped one within ``SILENCE_MS``: in shadow ``SHADOW_SILENCE_MS``, as being
    starved there is not the candidate's fault. ``on_down`` is called once.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        loop: asyncio.AbstractEventLoop,
        replica: Replica,
        *,
        arena: Arena | None = None,
        on_reply: Callable[["Link", ReplyHeader, list[Buffer]], None],
        on_down: Callable[["Link"], None],
    ) -> None:
        self.replica = replica
        self.inflight: dict[int, Any] = {}
        self.abandoned: set[int] = set()  # sent, given up, and still not answered: the replica may hang
        self.closed = False
        self.leaving = False  # it withdrew: it finishes what it has
        self._loop, self._on_reply, self._on_down = loop, on_reply, on_down
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.sndhwm = self._socket.rcvhwm = 0
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        silence_ms = SHADOW_SILENCE_MS if replica.priority is Priority.SHADOW else SILENCE_MS
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence_ms)
        self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self._monitor = self._socket.get_monitor_socket(_DOWN)
        self._socket.connect(replica.address)
        self._arena = arena
        self.shares = False  # whether the replica has said that it can read the arena
        if arena is not None:
            self._socket.send(encode_hello(arena.name))
        self._fd, self._monitor_fd = self._socket.FD, self._monitor.FD
        loop.add_reader(self._fd, self._readable)
        loop.add_reader(self._monitor_fd, self._monitored)
        loop.call_soon(self._monitored)

    @property
    def usable(self) -> bool:
        """Whether it may be given work: connected, and not sitting on a batch that was given up."""
        return not self.closed and not self.leaving and not self.abandoned

    @property
    def locate(self) -> Callable[[Buffer], int | None] | None:
        """Where buffers lie that need not be sent."""
        return self._arena.locate if self._arena is not None and self.shares else None

    def send(self, batch_id: int, batch: Any, frames: Sequence[Buffer]) -> None:
        """Send a batch; its reply, or the link's end, will come by callback. Never waits.

        A replica that has just died takes its pipe along, and a socket without one would wait for another for ever.
        """
        self.inflight[batch_id] = batch
        try:
            self._socket.send_multipart(frames, flags=zmq.NOBLOCK, copy=False)
        except zmq.Again:
            self._loop.call_soon(self._end, "it is gone")
            return
        self._check()

    def abandon(self, batch_id: int) -> Any:
        """Give a batch up: a late reply is dropped, and until it comes the link gets no more work."""
        self.abandoned.add(batch_id)
        return self.inflight.pop(batch_id)

    def close(self) -> None:
        """Disconnect."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_reader(self._monitor_fd)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _check(self) -> None:
        """A ZeroMQ descriptor is edge-triggered: sending may swallow the edge, so look again."""
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._readable)

    def _readable(self) -> None:
        while not self.closed:
            try:
                head = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            frames: list[Buffer] = []
            while self._socket.rcvmore:
                frames.append(self._socket.recv(copy=False).buffer)
            if (shares := decode_welcome(head)) is not None:
                self.shares = shares
                continue
            header = decode_reply_header(head)
            self.abandoned.discard(header.id)
            self._on_reply(self, header, frames)

    def _monitored(self) -> None:
        while not self.closed:
            try:
                event: Mapping[str, Any] = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            self._end(str(event["event"]))

    def _end(self, why: str) -> None:
        """The replica is gone; said once."""
        if not self.closed:
            _log.info("replica %s: %s", self.replica.id, why)
            self.close()
            self._on_down(self)
