"""Compressed bodies: gzip and deflate, which in HTTP is zlib's format."""

import zlib
from collections.abc import Iterator
from typing import Final

from models.tensor import Buffer
from serving.errors import InvalidArgumentError, PayloadTooLargeError, UnsupportedMediaTypeError

_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
_LEVEL: Final = 1  # tensors of real pictures hardly compress: speed before size
# Read in small steps: zlib's own way of handing out all at once takes twice the memory before it can be refused.
_READ_BYTES: Final = 64 * 1024
_WRITTEN_BYTES: Final = 1024 * 1024
ENCODINGS: Final = frozenset(_WINDOW_BITS)


def check_encoding(encoding: str) -> None:
    """Refuse a Content-Encoding that is not spoken here.

    Raises:
        UnsupportedMediaTypeError: names the encoding and those that are spoken.
    """
    if encoding not in ENCODINGS:
        raise UnsupportedMediaTypeError(f"content encoding {encoding!r} is not spoken here; use gzip or deflate")


def decompress(data: Buffer, encoding: str, max_bytes: int) -> bytes:
    """Decompress a whole body in memory bounded by ``max_bytes``, or twice that where it keeps to them.

    Raises:
        InvalidArgumentError: corrupt, cut short, or followed by other bytes.
        PayloadTooLargeError: more than ``max_bytes`` when decompressed.
    """
    return b"".join(decompressed(data, encoding, max_bytes))


def decompressed(data: Buffer, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """A body decompressed piece by piece, of 1 MiB at most; errors like ``decompress``, each where it is found."""
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    view, total, at = memoryview(data), 0, 0
    try:
        while at < len(view) and not stream.eof:
            for piece in _pieces(stream, view[at : at + _READ_BYTES]):
                total += len(piece)
                if total > max_bytes:
                    raise PayloadTooLargeError(f"the decompressed body is over the limit of {max_bytes} bytes")
                yield piece
            at += _READ_BYTES
    except zlib.error as error:
        raise InvalidArgumentError(f"corrupt {encoding} body: {error}") from None
    if not stream.eof or stream.unused_data or at < len(view):
        raise InvalidArgumentError(f"corrupt {encoding} body: it is cut short or has bytes after its end")


def _pieces(stream: "zlib._Decompress", data: Buffer) -> Iterator[bytes]:
    """All that a part of a compressed body gives, in bounded pieces."""
    piece = stream.decompress(data, _WRITTEN_BYTES)
    yield piece
    while len(piece) == _WRITTEN_BYTES and not stream.eof:  # there may be more to come, of what was read already
        piece = stream.decompress(stream.unconsumed_tail, _WRITTEN_BYTES)
        yield piece


def compress(data: Buffer, encoding: str) -> bytes:
    """Compress a whole body."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return stream.compress(data) + stream.flush()
