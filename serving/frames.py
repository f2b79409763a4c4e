"""Messages of several frames over a stream socket, as routers and replicas of one machine exchange them.

A message is its size, then the number of its frames, their sizes, and the frames, each padded so that it starts at a
multiple of 16 bytes: a tensor is aligned wherever it arrives. Numbers are little-endian.
"""

import struct
from collections.abc import Sequence
from socket import socket
from typing import Final

import numpy as np

from models.tensor import Buffer
from serving.errors import MalformedMessageError

_SIZE: Final = struct.Struct("<Q")
_COUNT: Final = struct.Struct("<Q")
_ALIGNMENT: Final = 16
_PADS: Final = tuple(bytes(count) for count in range(_ALIGNMENT))
_SCRATCH_BYTES: Final = 64 * 1024
_JOIN_BELOW_BYTES: Final = 16 * 1024
_MAX_PARTS: Final = 512  # the kernel takes 1024 in one call


def pack(frames: Sequence[Buffer]) -> list[Buffer]:
    """A message as pieces to be written one after the other; a small one as a single piece."""
    sizes = [len(frame) for frame in frames]
    head_bytes = _COUNT.size + 8 * len(sizes)
    parts: list[Buffer] = [b"", struct.pack(f"<Q{len(sizes)}Q", len(sizes), *sizes), _PADS[-head_bytes % _ALIGNMENT]]
    total = head_bytes + len(parts[-1])
    for frame, size in zip(frames, sizes, strict=True):
        pad = _PADS[-size % _ALIGNMENT]
        parts += (frame, pad)
        total += size + len(pad)
    parts[0] = _SIZE.pack(total)
    return [b"".join(parts)] if total <= _JOIN_BELOW_BYTES else [part for part in parts if len(part)]


def send_some(connection: socket, parts: Sequence[Buffer]) -> list[Buffer]:
    """Write what the socket takes at once; returns what is left.

    Raises:
        OSError: the other side is gone.
    """
    try:
        sent = connection.sendmsg(parts[:_MAX_PARTS])
    except BlockingIOError:
        return list(parts)
    for at, part in enumerate(parts):
        if sent < len(part):
            return [memoryview(part)[sent:], *parts[at + 1 :]]
        sent -= len(part)
    return []


class Inbox:
    """Takes a stream apart into messages: read into ``space()``, then say how much came.

    A message that fits into the scratch buffer is copied out of it; a larger one is read where it stays. After a
    MalformedMessageError nothing more can be made of the stream.
    """

    def __init__(self) -> None:
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._start = self._end = 0
        self._body: memoryview | None = None
        self._filled = 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun of which more is to come."""
        return self._body is not None or self._end > self._start

    def space(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._scratch[self._end :] if self._body is None else self._body[self._filled :]

    def received(self, nbytes: int) -> list[list[memoryview]]:
        """``nbytes`` have been read into ``space()``; returns the messages that are now whole, as their frames.

        Raises:
            MalformedMessageError: a message whose sizes do not add up, or for which there is no memory.
        """
        if self._body is not None:
            self._filled += nbytes
            if self._filled < len(self._body):
                return []
            whole, self._body = self._body, None
            return [_split(whole)]
        self._end += nbytes
        messages = []
        while (body := self._next()) is not None:
            messages.append(_split(body))
        return messages

    def _next(self) -> memoryview | None:
        """The next message of the scratch buffer; where it is not whole, room is made for the rest."""
        start, have = self._start + _SIZE.size, self._end - self._start - _SIZE.size
        if have >= 0:
            (total,) = _SIZE.unpack_from(self._scratch, self._start)
            if have >= total:
                self._start = start + total
                return memoryview(bytes(self._scratch[start : self._start]))
            if total > _SCRATCH_BYTES - _SIZE.size:
                self._body = _memory(total)
                self._body[:have] = self._scratch[start : self._end]
                self._filled = have
                self._start = self._end = 0
                return None
        if self._start:
            left = bytes(self._scratch[self._start : self._end])
            self._scratch[: len(left)] = left
            self._start, self._end = 0, len(left)
        return None


def _memory(total: int) -> memoryview:
    try:
        return np.empty(total, np.uint8).data
    except (MemoryError, ValueError, OverflowError):
        raise MalformedMessageError(f"expected a message that fits into memory, got one of {total} bytes") from None


def _split(body: memoryview) -> list[memoryview]:
    count = _COUNT.unpack_from(body)[0] if len(body) >= _COUNT.size else 0
    at = _COUNT.size + 8 * count
    if not count or at > len(body):
        raise MalformedMessageError(f"expected one frame or more in a message of {len(body)} bytes, got {count}")
    frames = []
    for size in struct.unpack_from(f"<{count}Q", body, _COUNT.size):
        at += -at % _ALIGNMENT
        frames.append(body[at : at + size])
        at += size
    at += -at % _ALIGNMENT
    if at != len(body):
        raise MalformedMessageError(f"expected frames of {len(body)} bytes together, got {at}")
    return frames
