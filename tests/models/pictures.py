"""Encoded pictures for tests."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from models.spec import StepSpec, TensorSpec
from models.tensor import Array


def step_spec(shape: tuple[int, ...] = (-1, 3, 4, 4), datatype: str = "UINT8", **settings: Any) -> StepSpec:
    """An ``image`` step that makes ``x`` of the input ``picture``."""
    tensor = TensorSpec(name="x", datatype=datatype, shape=shape)
    return StepSpec(input="picture", kind="image", tensor=tensor, settings={"mode": "RGB", **settings})


def noise(height: int, width: int, channels: int = 3, *, seed: int = 0) -> Array:
    """Random pixels, UINT8, ``[height, width, channels]``; without the last dimension for one channel."""
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: Array | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The pixels as a file of this kind."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def png(header: bytes, lines: bytes, *before: tuple[bytes, bytes]) -> bytes:
    """A PNG put together by hand: the content of IHDR, the filtered lines, chunks that come before the pixels."""
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def header(width: int, height: int, *, depth: int = 8, colour: int = 2) -> bytes:
    """The content of a PNG's IHDR."""
    return struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
