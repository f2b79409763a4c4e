"""The decoders one by one, as targets for a fuzzer that is guided by coverage.

A target takes any bytes. It may refuse them as the client's fault; whatever else it raises is a finding, and so is an
answer that breaks its promise.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from hpack import Decoder

from benchmarks.errors import BenchmarkError
from benchmarks.fuzz.bodies import PICTURE, binary_seeds, message_seeds
from benchmarks.fuzz.sessions import header_blocks
from benchmarks.report import say
from models.errors import RejectedInputError
from models.preprocess.image import ImageStep
from models.spec import StepSpec, TensorSpec
from models.tensor import DATATYPES
from serving import http2
from serving.errors import InvalidArgumentError, PayloadTooLargeError, UnsupportedError
from serving.frames import Inbox, pack
from serving.protocol import binary, compression, json_data, protobuf
from serving.protocol.messages import InferRequest, InferResponse

Target = Callable[[bytes], None]
_REFUSED: Final = (InvalidArgumentError, UnsupportedError, PayloadTooLargeError, RejectedInputError)
_FAULTS: Final = (http2.ConnectionFault, http2.StreamFault)
_TIMEOUT_S: Final = 300.0
_DATATYPES: Final = sorted(DATATYPES)
_LIMIT_BYTES: Final = 1 << 20
_PICTURES: Final = tuple(
    ImageStep(
        StepSpec(
            input="picture",
            kind="image",
            tensor=TensorSpec(name="image", datatype="FP32", shape=(-1, channels, 8, 8)),
            settings={"mode": mode, "resize": resize, "max_pixels": 1_000_000},
        )
    )
    for channels, mode, resize in ((1, "L", "stretch"), (3, "RGB", 8), (3, "BGR", 16))
)


def _infer(data: bytes) -> None:
    """A body over HTTP; its first two bytes say how long the JSON is. What is accepted can be read and echoed."""
    said, body = int.from_bytes(data[:2], "little"), data[2:]
    decoded = binary.decode_infer("m", None, body, said if said <= len(body) else None)
    response = _echo(decoded.request)
    for binary_default in (True, False):
        encoded = binary.encode_infer(
            response, client_id=decoded.request.id, requested=decoded.outputs, binary_default=binary_default
        )
        assert encoded.body


def _message(data: bytes) -> None:
    """A message over gRPC. What is accepted can be read and echoed."""
    assert len(protobuf.request_id_of(data)) <= binary.MAX_ID_CHARS
    decoded = protobuf.decode_infer(data)
    assert protobuf.encode_infer(_echo(decoded.request), client_id=decoded.request.id)


def _echo(request: InferRequest) -> InferResponse:
    for name, tensor in request.inputs.items():
        assert tensor.name == name
        assert tensor.numpy().shape == tensor.shape
    return InferResponse(model="m", version=1, outputs=request.inputs)


def _json(data: bytes) -> None:
    """Tensor data in JSON; the first byte says of which datatype, the second of how many dimensions."""
    values = json_data.parse(memoryview(data[2:]))
    datatype = _DATATYPES[data[0] % len(_DATATYPES)] if len(data) > 1 else "FP32"
    count = len(values) if isinstance(values, list) else 1
    shape = (count, *([1] * (data[1] % 4 if len(data) > 1 else 0)))
    assert len(json_data.decode_data("x", datatype, shape, count, values)) >= count


def _compressed(data: bytes) -> None:
    """A compressed body; the first byte says how."""
    encoding = "gzip" if data[:1] < b"\x80" else "deflate"
    assert len(compression.decompress(data[1:], encoding, _LIMIT_BYTES)) <= _LIMIT_BYTES


def _picture(data: bytes) -> None:
    """A picture; the first byte says for which model."""
    step = _PICTURES[data[0] % len(_PICTURES)] if data else _PICTURES[0]
    row = np.full(3 * 64, np.nan, np.float32)[: 64 if step is _PICTURES[0] else 3 * 64]
    step.fill(data[1:], row)
    assert np.isfinite(row).all()


def _frames(data: bytes) -> None:
    """Messages between processes, cut anywhere: they come out as they went in."""
    frames = [piece * (1 + 300 * (len(piece) % 7)) for piece in data.split(b"\0")]
    sent = [frames[at : at + 3] for at in range(0, len(frames), 3)]
    stream = b"".join(bytes(part) for message in sent for part in pack(message))
    inbox, received, at, turn = Inbox(), [], 0, 0
    while at < len(stream):
        space = inbox.space()
        count = min(len(space), len(stream) - at, 1 + data[turn % len(data)] ** 2 if data else 1)
        space[:count] = stream[at : at + count]
        received += inbox.received(count)
        at, turn = at + count, turn + 1
    assert [[bytes(frame) for frame in message] for message in received] == sent


def _header_blocks(data: bytes) -> None:
    """Header blocks, each behind its length: they mean what a decoder that remembers nothing of them says."""
    blocks, plain = http2.HeaderBlocks(http2.check_request, _LIMIT_BYTES), Decoder(_LIMIT_BYTES)
    while data:
        block, data = data[1 : 1 + data[0]], data[1 + data[0] :]
        try:
            read = blocks.read(block)
        except http2.StreamFault:
            plain.decode(block, raw=True)
            continue
        assert read == {bytes(name): bytes(value) for name, value in plain.decode(block, raw=True)}


def _frame_parts(data: bytes) -> None:
    """A frame's payload behind its flags, as each kind of frame that has a form."""
    flags, payload = data[0] if data else 0, data[1:]
    inner = http2.unprioritised(http2.unpadded(payload, flags), flags)
    assert len(inner) <= len(payload)
    if len(payload) % 6 == 0:
        settings = dict(http2.read_settings(payload))
        assert len(settings) <= len(payload) // 6
        assert settings.get(http2.INITIAL_WINDOW_SIZE, 0) <= http2.MAX_WINDOW
    else:
        assert http2.read_number(payload) <= http2.MAX_WINDOW


TARGETS: Final[Mapping[str, Target]] = {
    "infer": _infer,
    "message": _message,
    "json": _json,
    "compressed": _compressed,
    "picture": _picture,
    "frames": _frames,
    "header blocks": _header_blocks,
    "frame parts": _frame_parts,
}


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with, valid ones."""
    bodies = [length.to_bytes(2, "little") + body for body, length in binary_seeds()]
    plain = bodies[1][2:]
    return {
        "infer": bodies,
        "message": message_seeds(),
        "json": [b"\4\0[1.5,2]", b"\1\1[[true],[false]]", b'\2\0["a",""]', b"\4\2[[[NaN]],[[1e9]]]"],
        "compressed": [b"\0" + compression.compress(plain, "gzip"), b"\xff" + compression.compress(plain, "deflate")],
        "picture": [bytes([kind]) + PICTURE for kind in range(3)],
        "frames": [b"abc\0" * 9, bytes(range(256))],
        "header blocks": [header_blocks(number) for number in range(4)],
        "frame parts": [b"\x08\2abc\0\0", b"\x20" + bytes(12), b"\0" + http2.settings({4: 7})[9:], b"\0\0\0\0\7"],
    }[name]


def try_one(name: str, data: bytes) -> bool:
    """Whether a target takes ``data``, or refuses it as the client's fault; anything else that it raises is raised."""
    try:
        TARGETS[name](data)
    except (*_REFUSED, *_FAULTS):
        return False
    return True


def fuzz(name: str, corpus: Path, *, runs: int, seed: int) -> dict[str, Any]:
    """Fuzz one target in a process of its own; leaves what reached further in ``corpus``.

    Raises:
        BenchmarkError: atheris is not installed, or it found something; shows the end of what it says.
    """
    if find_spec("atheris") is None:
        raise BenchmarkError("atheris is not installed: pip install --constraint constraints.txt --editable '.[fuzz]'")
    corpus.mkdir(parents=True)
    for number, data in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(data)
    say(f"fuzzing {name}: {runs} runs")
    command = (sys.executable, "-m", "benchmarks.fuzz.guided", name, str(corpus), str(runs), str(seed))
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{name}: not done within {_TIMEOUT_S:.0f} s") from None
    if ended.returncode:
        raise BenchmarkError(f"{name}: {' | '.join((ended.stdout + ended.stderr).splitlines()[-25:])}")
    return {"target": name, "runs": runs, "inputs_kept": len(list(corpus.iterdir()))}
