"""Malformed HTTP/2 near valid one, endless and reproducible: whole sessions of a client, damaged frame by frame."""

import struct
from collections.abc import Iterator
from random import Random
from typing import Final

from hpack import Encoder

from benchmarks.fuzz.bodies import damage, message_seeds
from serving import http2
from serving.protocol.proto import HEALTH, INFERENCE

_PATHS: Final = (f"/{INFERENCE}/ModelInfer", f"/{INFERENCE}/ModelStreamInfer", f"/{HEALTH}/Check")
_STREAMS: Final = (0, 1, 2, 3, 5, 7, 99, 2**31 - 1, 2**31, 2**31 + 1)
_SIZES: Final = (0, 1, 4, 5, 6, 8, 9, 255, 16_384, 16_385, 65_536, 2**24 - 1)
_SETTINGS: Final = (0, 1, 2, 100, 16_384, 65_535, 1 << 20, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
_BLOCKS: Final = (
    b"\x80",
    b"\xff\x20",
    b"\x82\x86",
    b"\x40\x05ab",
    b"\x20",
    b"\x3f\xe1\x7f",
    b"\xbe" * 300,
    b"\xff" * 40,
)
_INTACT: Final = 0.1  # of all sessions
_MOST_BYTES: Final = 1 << 16

Frames = list[bytes]


def sessions(seed: int) -> Iterator[bytes]:
    """What a client sends on one connection, from the preface to its last byte; most of them malformed."""
    random = Random(seed)
    messages = message_seeds()
    while True:
        frames = _session(random, messages)
        whole = b"".join(frames)
        if random.random() >= _INTACT:
            for _ in range(random.randrange(1, 4)):
                _disturb(random, frames)
            whole = b"".join(frames)
            if random.random() < 0.5:
                whole = damage(random, whole)
        yield whole[:_MOST_BYTES]


def header_blocks(seed: int) -> bytes:
    """Header blocks of one connection, each behind its length in one byte."""
    random, encoder = Random(seed), Encoder()
    blocks = [bytes(encoder.encode(_fields(random, path))) for path in _PATHS for _ in range(3)]
    return b"".join(bytes((len(block),)) + block for block in blocks)


def _session(random: Random, messages: list[bytes]) -> Frames:
    encoder = Encoder()
    frames = [http2.PREFACE, http2.settings({http2.INITIAL_WINDOW_SIZE: 1 << 20})]
    for stream in range(1, 2 * random.randrange(2, 6), 2):
        frames += _request(random, encoder, stream, random.choice(messages))
    return frames


def _request(random: Random, encoder: Encoder, stream: int, message: bytes) -> Frames:
    """A call: its headers in one or two frames, its message in some, at times with padding and trailers."""
    path = random.choice(_PATHS)
    block, payload = bytes(encoder.encode(_fields(random, path))), _prefixed(b"" if path == _PATHS[2] else message)
    if random.random() < 0.3:
        at = random.randrange(len(block))
        frames = [http2.frame(http2.HEADERS, 0, stream, block[:at])]
        frames.append(http2.frame(http2.CONTINUATION, http2.END_HEADERS, stream, block[at:]))
    else:
        frames = [http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)]
    trailers = random.random() < 0.1
    pieces = [payload[: len(payload) // 2], payload[len(payload) // 2 :]] if random.random() < 0.5 else [payload]
    for number, piece in enumerate(pieces):
        flags = http2.END_STREAM if number == len(pieces) - 1 and not trailers else 0
        if random.random() < 0.2:
            frames.append(http2.frame(http2.DATA, flags | http2.PADDED, stream, b"\x07" + piece + bytes(7)))
        else:
            frames.append(http2.frame(http2.DATA, flags, stream, piece))
    if trailers:
        last = bytes(encoder.encode([("x-trailer", "1")]))
        frames.append(http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, stream, last))
    return frames


def _fields(random: Random, path: str) -> list[tuple[str, str]]:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost")]
    fields += [("te", "trailers"), ("content-type", "application/grpc")]
    if random.random() < 0.3:
        fields.append(("grpc-timeout", random.choice(("5S", "0n", "x", "99999999H", "100000000S"))))
    if random.random() < 0.3:
        fields.append(("grpc-encoding", random.choice(("gzip", "identity", "br"))))
    return fields


def _prefixed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message


def _disturb(random: Random, frames: Frames) -> None:
    """Change one thing in a list of frames."""
    at = random.randrange(len(frames))
    match random.randrange(6):
        case 0 | 1:
            frames.insert(at + 1, _odd(random))
        case 2:
            frames.insert(at, frames[random.randrange(len(frames))])
        case 3:
            if len(frames) > 1:
                del frames[at]
        case 4:
            frames[at] = damage(random, frames[at])
        case _:
            frames.append(frames.pop(at))


def _odd(random: Random) -> bytes:
    """A frame that may be out of place, or is none."""
    kind, flags, stream = (
        random.randrange(12),
        random.choice((0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF)),
        random.choice(_STREAMS),
    )
    setting = struct.pack(">HI", random.randrange(9), random.choice(_SETTINGS))
    number = struct.pack(">I", random.choice(_SETTINGS))
    payload = random.choice((b"", setting, setting * 3, number, number * 2, random.randbytes(8), *_BLOCKS))
    if random.random() < 0.1:  # a length that is not so
        return http2.frame_head(random.choice(_SIZES), kind, flags, stream & 2**32 - 1) + payload
    return http2.frame(kind, flags, stream, payload)
