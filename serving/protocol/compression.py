"""Compressed bodies: gzip and deflate, which in HTTP is zlib's format."""

import zlib
from typing import Final

from models.tensor import Buffer
from serving.errors import InvalidArgumentError, PayloadTooLargeError, UnsupportedMediaTypeError

_WINDOW_BITS: Final = {"gzip": 31, "deflate": 15}
_LEVEL: Final = 1  # tensors of real pictures hardly compress: speed before size
ENCODINGS: Final = frozenset(_WINDOW_BITS)


def check_encoding(encoding: str) -> None:
    """Refuse a Content-Encoding that is not spoken here.

    Raises:
        UnsupportedMediaTypeError: names the encoding and those that are spoken.
    """
    if encoding not in ENCODINGS:
        raise UnsupportedMediaTypeError(f"content encoding {encoding!r} is not spoken here; use gzip or deflate")


def decompress(data: Buffer, encoding: str, max_bytes: int) -> bytes:
    """Decompress a whole body in memory bounded by ``max_bytes``.

    Raises:
        InvalidArgumentError: corrupt, cut short, or followed by other bytes.
        PayloadTooLargeError: more than ``max_bytes`` when decompressed.
    """
    stream = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        body = stream.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise InvalidArgumentError(f"corrupt {encoding} body: {error}") from None
    if len(body) > max_bytes:
        raise PayloadTooLargeError(f"the decompressed body is over the limit of {max_bytes} bytes")
    if not stream.eof or stream.unused_data:
        raise InvalidArgumentError(f"corrupt {encoding} body: it is cut short or has bytes after its end")
    return body


def compress(data: Buffer, encoding: str) -> bytes:
    """Compress a whole body."""
    stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return stream.compress(data) + stream.flush()
