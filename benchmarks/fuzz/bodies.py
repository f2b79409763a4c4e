"""Malformed requests near valid ones, endless and reproducible: damaged bytes, and documents with something wrong."""

import copy
import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import numpy as np
import orjson

from benchmarks.environment import ROOT
from serving.protocol.proto import message

LENGTH: Final = "Inference-Header-Content-Length"
DIGITS: Final = "/v2/models/digits/infer"
PICTURES: Final = "/v2/models/digits-image/infer"
PICTURE: Final = (ROOT / "examples" / "digit.png").read_bytes()
_PIXELS: Final = np.zeros((1, 1, 8, 8), np.float32)
_TENSOR: Final[Mapping[str, Any]] = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32"}
_BOMB_BYTES: Final = 65 << 20
_BOMBS: Final = tuple(pack(bytes(_BOMB_BYTES)) for pack in (gzip.compress, zlib.compress))
_BOMB_EVERY: Final = 1000
_MOST_BYTES: Final = 1 << 16  # of a damaged body
_INTERESTING: Final = (0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B, 0x0A)
_WORDS: Final = (b"NaN", b"[[[[[[", b"{}", b"null", b"1e999", b"\\ud800", b"18446744073709551616", b'"', b"-", b",")
_ODD: Final[tuple[Any, ...]] = (
    *(None, True, 0, 1, -1, 2, 64, 2**31, 2**63, 2**64 - 1, -(2**63), 0.5, 1e308, "", "image", "FP32", "BYTES", "é\0"),
    *([], {}, [[]], [{}], {"": {}}, [1, [2]], [None], ["a"], [[1, 2], [3]], {"triton_x": 1}, [2**62] * 3, [0] * 65),
    *("x" * 600, [-1, 1, 8, 8], [9, 1, 8, 8], [1, 64], "INT64", "BOOL", "FP16", {"binary_data_size": 256}),
)
_KEYS: Final = (
    "name",
    "shape",
    "datatype",
    "data",
    "parameters",
    "binary_data_size",
    "id",
    "inputs",
    "outputs",
    "timeout",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """One HTTP request to send."""

    path: str
    headers: Mapping[str, str]
    content: bytes


def http_bodies(seed: int, found: Sequence[bytes] = ()) -> Iterator[Body]:
    """Requests to send over HTTP, most of them malformed; ``found`` are inputs that reached far into the decoders."""
    random = Random(seed)
    makers: list[Callable[[Random], Body]] = [_misleading, _compressed, _picture, _noise]
    makers += [_twisted] * 4 + [_damaged] * 4
    if found:
        makers.append(lambda random: Body(path=DIGITS, headers={}, content=_near(random, found)))
        makers.append(lambda random: Body(path=PICTURES, headers={LENGTH: "0"}, content=_near(random, found)))
    count = 0
    while True:
        count += 1
        yield _bomb(random) if count % _BOMB_EVERY == 0 else random.choice(makers)(random)


def grpc_bodies(seed: int, found: Sequence[bytes] = ()) -> Iterator[bytes]:
    """Messages to send as ModelInfer's, most of them malformed."""
    random = Random(seed)
    seeds = [*message_seeds(), *found]
    while True:
        yield damage(random, random.choice(seeds)) if random.random() < 0.9 else random.randbytes(random.randrange(80))


def heads(seed: int) -> Iterator[bytes]:
    """Bytes to send as whole connections: requests whose heads and framing are damaged."""
    random = Random(seed)
    body = b"%x\r\nabc\r\n0\r\nTrailer: x\r\n\r\n" % 3
    plain = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % DIGITS.encode()
    chunked = b"POST %b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n%b" % (DIGITS.encode(), body)
    asking = b"GET /v2/health/live HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nExpect: 100-continue\r\n\r\n"
    while True:
        parts = [random.choice((plain, chunked, asking)) for _ in range(random.randrange(1, 4))]
        yield damage(random, b"".join(parts))


def binary_seeds() -> list[tuple[bytes, int]]:
    """Valid bodies with the length of their JSON."""
    seeds = []
    for document, tail in ((_binary_document(), _PIXELS.tobytes()), (_json_document(), b"")):
        head = orjson.dumps(document)
        seeds.append((head + tail, len(head)))
    return seeds


def message_seeds() -> list[bytes]:
    """Valid messages."""
    request = message("inference.ModelInferRequest")
    raw = request(model_name="digits", id="a", raw_input_contents=[_PIXELS.tobytes()])
    raw.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8])
    raw.parameters["priority"].int64_param = 1
    typed = request(model_name="digits", model_version="1")
    typed.inputs.add(name="image", datatype="FP32", shape=[1, 1, 8, 8]).contents.fp32_contents.extend([0.5] * 64)
    typed.outputs.add(name="scores").parameters["classification"].int64_param = 2
    picture = request(model_name="digits-image")
    picture.inputs.add(name="picture", datatype="BYTES", shape=[1, 1]).contents.bytes_contents.append(PICTURE)
    return [each.SerializeToString() for each in (raw, typed, picture)]


def damage(random: Random, data: bytes) -> bytes:
    """``data`` with one to four places changed."""
    damaged = bytearray(data)
    for _ in range(random.randrange(1, 5)):
        at = random.randrange(len(damaged) + 1)
        span = random.choice((1, 2, 4, 8, 16, 64))
        match random.randrange(8):
            case 0:
                damaged[at : at + 1] = bytes([random.choice(_INTERESTING)])
            case 1:
                damaged[at : at + 1] = random.randbytes(1)
            case 2:
                damaged[at:at] = random.choice(_WORDS)
            case 3:
                del damaged[at : at + span]
            case 4:
                damaged[at:at] = damaged[at : at + span]
            case 5:
                del damaged[at:]
            case 6:
                damaged[at : at + 4] = random.choice((0, 1, 255, 2**16, 2**31, 2**32 - 1)).to_bytes(4, "little")
            case _:
                damaged[at:at] = random.randbytes(span)
    return bytes(damaged[:_MOST_BYTES])


def twist(random: Random, document: Any) -> Any:
    """A copy of a document in which one to three values are replaced, missing, repeated or too many."""
    twisted = copy.deepcopy(document)
    for _ in range(random.randrange(1, 4)):
        places = list(_places(twisted))
        if not places:
            break
        holder, at = random.choice(places)
        odd = copy.deepcopy(random.choice(_ODD))
        match random.randrange(4):
            case 0 | 1:
                holder[at] = odd
            case 2:
                del holder[at]
            case _ if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[at]))
            case _:
                holder[random.choice(_KEYS)] = odd
    return twisted


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document: its container, and its key or index."""
    for at in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, at
        if isinstance(node[at], dict | list):
            yield from _places(node[at])


def _binary_document() -> dict[str, Any]:
    tensor = {**_TENSOR, "parameters": {"binary_data_size": _PIXELS.nbytes}}
    outputs = [{"name": "scores", "parameters": {"binary_data": True}}]
    return {
        "id": "a",
        "inputs": [tensor],
        "outputs": outputs,
        "parameters": {"binary_data_output": True, "priority": 1},
    }


def _json_document() -> dict[str, Any]:
    return {"inputs": [{**_TENSOR, "data": [[[[0.5] * 8] * 8]]}], "outputs": [{"name": "scores"}]}


def _twisted(random: Random) -> Body:
    """A document with something wrong in it."""
    binary = random.random() < 0.6
    head = orjson.dumps(twist(random, _binary_document() if binary else _json_document()))
    tail = _PIXELS.tobytes() if binary else b""
    return Body(path=DIGITS, headers={LENGTH: str(len(head))} if binary else {}, content=head + tail)


def _damaged(random: Random) -> Body:
    """A body some of whose bytes are wrong."""
    content, length = random.choice(binary_seeds())
    content = damage(random, content)
    headers = {LENGTH: str(min(length, len(content)))} if random.random() < 0.7 else {}
    return Body(path=DIGITS, headers=headers, content=content)


def _misleading(random: Random) -> Body:
    """A header that says something wrong of a good body."""
    content, length = random.choice(binary_seeds())
    lengths = (
        "0",
        "-1",
        str(length + 1),
        str(length - 1),
        str(len(content)),
        "x",
        "9" * 30,
        "",
        str(random.randrange(400)),
    )
    encoding = random.choice(({}, {}, {"Content-Encoding": random.choice(("gzip", "deflate", "br", "x"))}))
    return Body(path=DIGITS, headers={LENGTH: random.choice(lengths), **encoding}, content=content)


def _compressed(random: Random) -> Body:
    """A compressed body that is corrupt, or compresses a corrupt one."""
    content, length = random.choice(binary_seeds())
    encoding, pack = random.choice((("gzip", gzip.compress), ("deflate", zlib.compress)))
    packed = damage(random, pack(content)) if random.random() < 0.7 else pack(damage(random, content))
    return Body(path=DIGITS, headers={LENGTH: str(length), "Content-Encoding": encoding}, content=packed)


def _picture(random: Random) -> Body:
    """A picture that is damaged."""
    return Body(path=PICTURES, headers={LENGTH: "0"}, content=damage(random, PICTURE))


def _noise(random: Random) -> Body:
    """Anything at all."""
    path = random.choice((DIGITS, PICTURES))
    headers = {LENGTH: random.choice(("0", "7"))} if random.random() < 0.3 else {}
    return Body(path=path, headers=headers, content=random.randbytes(random.randrange(300)))


def _bomb(random: Random) -> Body:
    """A few bytes that decompress to more than the limit."""
    at = random.randrange(len(_BOMBS))
    return Body(path=DIGITS, headers={"Content-Encoding": ("gzip", "deflate")[at]}, content=_BOMBS[at])


def _near(random: Random, found: Sequence[bytes]) -> bytes:
    return damage(random, random.choice(found))
