"""A batch and its reply as frames of a message, between a router and a model replica.

A batch is ``[header, frame…]``: the inputs in declared order; an input whose tensors are small travels as one joined
frame, a larger one as one frame per request, so that no image is copied in the router; where the replica can read the
router's arena, as no frame at all: the header says where it lies. A reply is ``[header, frame…]``
with one frame per output and segment. Headers are JSON: small, inspectable, and free of code. Their classes are not
frozen: that makes each take three times as long to make, and every batch makes several.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any, Final, TypeVar

import orjson

from models.tensor import DATATYPES, Buffer, Tensor
from serving.errors import MalformedMessageError

_Decoded = TypeVar("_Decoded")
JOIN_BELOW_BYTES: Final = 64 * 1024
_KNOWN_LAYOUTS: Final = 1024
_QUOTED_CHARS: Final = 100  # of what is wrong in a frame


@dataclass(frozen=True, slots=True)
class Layout:
    """One tensor of a batch: its datatype and its shape for one row (or whole, without a batch dimension)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    joined: bool


@dataclass(slots=True, kw_only=True)
class BatchHeader:
    """``rows`` are the batch rows of each request; ``measure`` asks for the peak memory.

    ``blocks`` says of inputs that lie in the router's arena where: offset and size for each request.
    """

    id: int
    rows: tuple[int, ...]
    inputs: tuple[Layout, ...]
    measure: bool
    blocks: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Segment:
    """A run of consecutive requests that ended alike: ``kind`` is "ok", "error", "malformed" or "rejected"."""

    requests: int
    kind: str
    error: str
    outputs: tuple[Layout, ...]


@dataclass(slots=True, kw_only=True)
class ReplyHeader:
    """The segments in order, and the batch's measures: microseconds by stage, peak memory.

    ``preprocess_us`` is what the model's preprocess steps took, 0 where it has none. Of both these and ``compute_us``
    together, ``cpu_us`` is the CPU time of the replica's thread, without the time in which others had its core,
    ``process_cpu_us`` that of all threads of its process, and ``gpu_us`` what a GPU's own clock says.
    """

    id: int
    segments: tuple[Segment, ...]
    copy_us: int
    preprocess_us: int
    compute_us: int
    peak_bytes: int | None
    cpu_us: int = 0
    process_cpu_us: int = 0
    gpu_us: int | None = None


def encode_batch(
    batch: int,
    rows: Sequence[int],
    requests: Sequence[Mapping[str, Tensor]],
    *,
    batched: bool,
    measure: bool,
    locate: Callable[[Buffer], int | None] | None = None,
) -> list[Buffer]:
    """The frames of a batch; ``requests`` agree in names, datatypes and row shapes.

    ``locate`` tells where in the arena a buffer lies, if the replica can read that.
    """
    inputs: list[Layout] = []
    blocks: dict[str, list[tuple[int, int]]] = {}
    frames: list[Buffer] = [b""]
    for name, first in requests[0].items():
        buffers = [request[name].data for request in requests]
        small = sum(map(len, buffers)) <= JOIN_BELOW_BYTES
        joined = small or len(buffers) == 1
        inputs.append(Layout(name, first.datatype, first.shape[1:] if batched else first.shape, joined))
        if not small and locate is not None and (found := _located(buffers, locate)):
            blocks[name] = found
        elif joined:
            frames.append(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        else:
            frames.extend(buffers)
    header = (batch, rows, [(each.name, each.datatype, each.shape, each.joined) for each in inputs], measure, blocks)
    frames[0] = orjson.dumps(header)
    return frames


def _decoder(decode: Callable[[Buffer], _Decoded]) -> Callable[[Buffer], _Decoded]:
    """Whatever goes wrong with a frame is the fault of who sent it."""

    @wraps(decode)
    def decoded(frame: Buffer) -> _Decoded:
        try:
            return decode(frame)
        except (ValueError, TypeError, AttributeError) as error:
            raise MalformedMessageError(f"{decode.__name__}: {error}") from None

    return decoded


@_decoder
def decode_batch_header(frame: Buffer) -> BatchHeader:
    """The inverse of ``encode_batch``'s first frame.

    Raises:
        MalformedMessageError: it is no such frame, or its parts contradict each other.
    """
    batch, rows, inputs, measure, blocks = orjson.loads(frame)
    header = BatchHeader(id=batch, rows=tuple(rows), inputs=_layouts(inputs), measure=measure, blocks=blocks)
    _check(_is_count(batch), "id", batch)
    _check(bool(rows) and all(map(_is_count, rows)), "rows", rows)
    _check(type(measure) is bool, "measure", measure)
    _check_inputs(header)
    return header


def _check_inputs(header: BatchHeader) -> None:
    names = {layout.name for layout in header.inputs}
    _check(len(names) == len(header.inputs) > 0, "inputs", header.inputs)
    _check(names.issuperset(header.blocks), "blocks", header.blocks)
    for layout in header.inputs:
        blocks = header.blocks.get(layout.name)
        if blocks is not None:
            _check(len(blocks) == (1 if layout.joined else len(header.rows)), f"blocks of {layout.name!r}", blocks)
            _check(all(_is_count(offset) and _is_count(size) for offset, size in blocks), "blocks", blocks)


def _check(good: bool, field: str, value: object) -> None:
    if not good:
        raise ValueError(f"{field}: cannot be {value!r:.{_QUOTED_CHARS}}")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _located(buffers: Sequence[Buffer], locate: Callable[[Buffer], int | None]) -> list[tuple[int, int]]:
    """Where each buffer lies; nothing unless all lie in the arena."""
    found = []
    for buffer in buffers:
        offset = locate(buffer)
        if offset is None:
            return []
        found.append((offset, len(buffer)))
    return found


def encode_hello(arena: str) -> bytes:
    """A router's first message to a replica: the name of its arena."""
    return orjson.dumps(arena)


@_decoder
def decode_hello(frame: Buffer) -> str | None:
    """The arena's name; None of any other message.

    Raises:
        MalformedMessageError: it begins like a name, and is none.
    """
    if frame[:1] != b'"':
        return None
    return str(orjson.loads(frame))


def encode_welcome(shared: bool) -> bytes:
    """A replica's answer to it: whether it can read the arena."""
    return orjson.dumps(shared)


@_decoder
def decode_welcome(frame: Buffer) -> bool | None:
    """Whether the replica can read the arena; None of any other message.

    Raises:
        MalformedMessageError: it is neither.
    """
    if frame[:1] == b"[":
        return None
    return bool(orjson.loads(frame))


def encode_reply_header(reply: ReplyHeader) -> bytes:
    """The first frame of a reply."""
    segments = [
        (each.requests, each.kind, each.error, [(o.name, o.datatype, o.shape, o.joined) for o in each.outputs])
        for each in reply.segments
    ]
    times = (reply.copy_us, reply.preprocess_us, reply.compute_us, reply.cpu_us, reply.process_cpu_us, reply.gpu_us)
    return orjson.dumps((reply.id, segments, times, reply.peak_bytes))


@_decoder
def decode_reply_header(frame: Buffer) -> ReplyHeader:
    """The inverse of ``encode_reply_header``.

    Raises:
        MalformedMessageError: it is no such frame.
    """
    batch, segments, times, peak = orjson.loads(frame)
    copy_us, preprocess_us, compute_us, cpu_us, process_cpu_us, gpu_us = times
    return ReplyHeader(
        id=batch,
        segments=tuple(
            Segment(requests=requests, kind=kind, error=error, outputs=_layouts(outputs))
            for requests, kind, error, outputs in segments
        ),
        copy_us=copy_us,
        preprocess_us=preprocess_us,
        compute_us=compute_us,
        peak_bytes=peak,
        cpu_us=cpu_us,
        process_cpu_us=process_cpu_us,
        gpu_us=gpu_us,
    )


def _layouts(values: Sequence[Any]) -> tuple[Layout, ...]:
    return tuple([_layout(name, datatype, tuple(shape), joined) for name, datatype, shape, joined in values])


@lru_cache(maxsize=_KNOWN_LAYOUTS, typed=True)
def _layout(name: str, datatype: str, shape: tuple[int, ...], joined: bool) -> Layout:
    """Checked once: a model's batches are all laid out alike."""
    _check(type(name) is str, "name", name)
    _check(datatype in DATATYPES, "datatype", datatype)
    _check(all(map(_is_count, shape)), "shape", shape)
    _check(type(joined) is bool, "joined", joined)
    return Layout(name, datatype, shape, joined)
