"""One bound over all bodies that a router is receiving, whichever door they come through."""

import asyncio
from collections.abc import Iterator
from typing import Final

from models.tensor import Buffer
from serving.errors import UnavailableError
from serving.protocol import compression

NO_ROOM: Final = "the server is receiving as many bytes as it has room for: try again later"
COUNT_FROM_BYTES: Final = 64 * 1024  # smaller bodies are bounded by the number of connections
_OFFLOAD_BYTES: Final = 4 * 1024  # below, compressed, a thread costs more; a byte can decompress to a thousand
_STEP_BYTES: Final = 1024 * 1024
_FOR_THE_BEGUN: Final = 4  # the part of the room that bodies cannot begin in


class Intake:
    """Counts the bytes of requests as they come, until their memory is let go; ``capacity_bytes`` at most.

    What a client merely says it will send takes nobody's room. A body alone is taken whatever its size, for the doors
    bound each body by itself. The last quarter is for bodies that have begun: who is refused half-way and comes again
    does not push out those that were let in before, so that of however many some get through. Not thread-safe: lives
    on the data plane's event loop.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.taken_bytes = 0

    def has_room(self, size: int, *, held: int = 0) -> bool:
        """Whether ``size`` bytes more would be admitted as things are.

        ``held`` is what the same body was admitted with before, for one that grows.
        """
        most = self.capacity_bytes if held else self.capacity_bytes - self.capacity_bytes // _FOR_THE_BEGUN
        return self.taken_bytes <= held or self.taken_bytes + size <= most

    def admit(self, size: int, *, held: int = 0) -> bool:
        """Whether there is room for ``size`` bytes more; from then on they are taken, until ``release``.

        ``held`` is as in ``has_room``.
        """
        if not self.has_room(size, held=held):
            return False
        self.taken_bytes += size
        return True

    def release(self, size: int) -> None:
        """The memory of ``size`` admitted bytes was let go."""
        self.taken_bytes -= size

    async def decompress(self, data: Buffer, encoding: str, max_bytes: int, *, held: int) -> tuple[bytes, int]:
        """Decompress a body that was admitted with ``held`` bytes; what it gives is admitted as it comes.

        Returns:
            What it gives, and how much of that is to be released.

        Raises:
            UnavailableError: there is no room for what it gives.
            ServingError: as ``compression.decompress`` does.
        """
        pieces, kept, total, taken = compression.decompressed(data, encoding, max_bytes), [], 0, 0
        short = len(data) < _OFFLOAD_BYTES
        try:
            while some := _some(pieces) if short else await asyncio.to_thread(_some, pieces):
                total += sum(map(len, some))
                if total >= COUNT_FROM_BYTES:
                    if not self.admit(total - taken, held=held + taken):
                        raise UnavailableError(NO_ROOM)
                    taken = total
                kept += some
            return b"".join(kept) if short else await asyncio.to_thread(b"".join, kept), taken
        except BaseException:
            self.release(taken)
            raise


def _some(pieces: Iterator[bytes]) -> list[bytes]:
    """Pieces of about 1 MiB together, so that changing threads costs little beside them; none at the end."""
    some: list[bytes] = []
    total = 0
    for piece in pieces:
        if piece:
            some.append(piece)
            total += len(piece)
        if total >= _STEP_BYTES:
            break
    return some
