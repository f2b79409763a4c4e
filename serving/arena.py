"""Memory that a router writes and the replicas on its machine read: an image crosses between processes without a copy.

A body is received into a block of the arena; the message to the replica then says where its tensors lie. The arena is
an anonymous file that ends with its last user, so that no crash can leave it behind, and it is sealed: a replica cannot
map it for writing. docs/decisions/0009 says what it is worth.
"""

import contextlib
import fcntl
import mmap
import os
import weakref
from collections import deque
from typing import Final

import numpy as np

from models.tensor import Buffer

SHARE_FROM_BYTES: Final = 64 * 1024  # below, saying where a tensor lies costs more than copying it
_ALIGNMENT: Final = 64
_STEPS: Final = 8  # sizes of blocks between one power of two and the next: at most an eighth of a block is wasted
_F_SEAL_FUTURE_WRITE: Final = 0x10  # linux/fcntl.h; this process's own mapping stays writable
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


class Arena:
    """Blocks of shared memory, ``capacity_bytes`` at most; pages are taken from the machine as they are first used.

    A block returns to the arena when the last view of it is gone; the one that was used last is used next, and an arena
    that nobody uses is whole again. Lives on the data plane's event loop; the last view may go in any thread.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._fd = os.memfd_create("understudy-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._fd, capacity_bytes)
        self._memory = mmap.mmap(self._fd, capacity_bytes)
        with contextlib.suppress(OSError):  # a kernel before 5.1 does not know the last seal
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, _SEALS)
        self._base = _address(self._memory)
        self._top = 0  # where no block was cut yet
        self._free: dict[int, list[int]] = {}  # offsets by size of block
        self._used: dict[int, weakref.ref[object]] = {}
        self._used_bytes = 0
        self._returned: deque[tuple[int, int]] = deque()  # blocks that are to be taken back; appending is atomic

    @property
    def name(self) -> str:
        """How a process of the same user opens it."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def allocate(self, size: int, lead: int = 0) -> memoryview | None:
        """``size`` bytes that nobody has cleared, of which those after the first ``lead`` are aligned.

        None where it is too small to be worth it, or the arena is full.
        """
        if size < SHARE_FROM_BYTES:
            return None
        self._take_back()
        skip = -lead % _ALIGNMENT
        block = self._take(_block_bytes(size + skip))
        if block is None:
            return None
        offset, block_bytes = block
        view = np.frombuffer(self._memory, np.uint8, size, offset + skip)
        self._used[offset] = weakref.ref(view, lambda _: self._returned.append((offset, block_bytes)))
        self._used_bytes += block_bytes
        return view.data

    @property
    def used_bytes(self) -> int:
        """Of blocks whose views are not all gone."""
        self._take_back()
        return self._used_bytes

    def locate(self, buffer: Buffer) -> int | None:
        """Where in the arena a buffer lies; None where it does not."""
        offset = _address(buffer) - self._base
        return offset if 0 <= offset < self._capacity_bytes else None

    def close(self) -> None:
        """Let go of it; the views that are left keep the memory until they are gone."""
        os.close(self._fd)

    def _take(self, block_bytes: int) -> tuple[int, int] | None:
        """A block: a free one of this size, else a new one, else the smallest free one that is larger."""
        if free := self._free.get(block_bytes):
            return free.pop(), block_bytes
        if self._top + block_bytes <= self._capacity_bytes:
            self._top += block_bytes
            return self._top - block_bytes, block_bytes
        larger = min((size for size, offsets in self._free.items() if offsets and size > block_bytes), default=None)
        return None if larger is None else (self._free[larger].pop(), larger)

    def _take_back(self) -> None:
        """Take back what was returned."""
        while self._returned:
            offset, block_bytes = self._returned.popleft()
            del self._used[offset]
            self._used_bytes -= block_bytes
            self._free.setdefault(block_bytes, []).append(offset)
            if not self._used:  # or it would stay cut as it was once needed
                self._free.clear()
                self._top = 0


class Window:
    """A router's arena as a replica sees it: all of it, for reading only.

    Raises:
        OSError: it cannot be opened: another machine, another user, or its router is gone.
        ValueError: it is no file with anything in it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._memory = mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def view(self, offset: int, size: int) -> memoryview:
        """A part of it.

        Raises:
            ValueError: it reaches beyond the arena.
        """
        if not 0 <= offset <= offset + size <= len(self._memory):
            raise ValueError(f"expected a part of an arena of {len(self._memory)} bytes, got {size} at {offset}")
        return memoryview(self._memory)[offset : offset + size]


def _block_bytes(size: int) -> int:
    """The smallest size of a block that holds ``size`` bytes: a multiple of a page."""
    step = max(1 << (size - 1).bit_length() - 1, SHARE_FROM_BYTES) // _STEPS
    return -(-size // step) * step


def _address(buffer: Buffer | mmap.mmap) -> int:
    return int(np.frombuffer(buffer, np.uint8).__array_interface__["data"][0])
