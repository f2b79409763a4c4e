"""One of the test images as a PNG that a person can look at: black ink on white paper."""

import struct
import zlib
from typing import Final

import numpy as np

from models.tensor import Array

INK: Final = 15  # levels of grey for one count of ink, of which there are at most 16
_ENLARGED: Final = 8
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_GREY_8_BITS: Final = (8, 0, 0, 0, 0)


def draw(image: Array, source: str) -> bytes:
    """A digit of shape [1, 8, 8] with 0…16 counts of ink as a PNG of 64 × 64 pixels.

    The same bytes whatever libraries are installed: nothing is compressed. ``source`` becomes the PNG's own text.
    """
    grey = (255 - INK * image[0]).astype(np.uint8)
    pixels = grey.repeat(_ENLARGED, axis=0).repeat(_ENLARGED, axis=1)
    lines = b"".join(b"\0" + line.tobytes() for line in pixels)
    stored = struct.pack("<BHH", 1, len(lines), len(lines) ^ 0xFFFF) + lines
    parts = {
        b"IHDR": struct.pack(">II5B", pixels.shape[1], pixels.shape[0], *_GREY_8_BITS),
        b"tEXt": b"Source\0" + source.encode("latin-1"),
        b"IDAT": b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(lines)),
        b"IEND": b"",
    }
    return _SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts.items())


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
