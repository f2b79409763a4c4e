"""A batch and its reply as ZeroMQ frames, between a router and a model replica.

A batch is ``[header, frame…]``: the inputs in declared order; an input whose tensors are small travels as one joined
frame, a larger one as one frame per request, so that no image is copied in the router. A reply is ``[header, frame…]``
with one frame per output and segment. Headers are JSON: small, inspectable, and free of code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from models.tensor import Buffer, Tensor

JOIN_BELOW_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Layout:
    """One tensor of a batch: its datatype and its shape for one row (or whole, without a batch dimension)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    joined: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchHeader:
    """``rows`` are the batch rows of each request; ``measure`` asks for the peak memory."""

    id: int
    rows: tuple[int, ...]
    inputs: tuple[Layout, ...]
    measure: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of consecutive requests that ended alike: ``kind`` is "ok", "error" or "malformed"."""

    requests: int
    kind: str
    error: str
    outputs: tuple[Layout, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyHeader:
    """The segments in order, and the batch's measures: microseconds copying and computing, peak memory."""

    id: int
    segments: tuple[Segment, ...]
    copy_us: int
    compute_us: int
    peak_bytes: int | None


def encode_batch(
    batch: int, rows: Sequence[int], requests: Sequence[Mapping[str, Tensor]], *, batched: bool, measure: bool
) -> list[Buffer]:
    """The frames of a batch; ``requests`` agree in names, datatypes and row shapes."""
    inputs: list[Layout] = []
    frames: list[Buffer] = [b""]
    for name, first in requests[0].items():
        buffers = [request[name].data for request in requests]
        joined = len(buffers) == 1 or sum(map(len, buffers)) <= JOIN_BELOW_BYTES
        inputs.append(Layout(name, first.datatype, first.shape[1:] if batched else first.shape, joined))
        if joined:
            frames.append(buffers[0] if len(buffers) == 1 else b"".join(buffers))
        else:
            frames.extend(buffers)
    header = (batch, rows, [(each.name, each.datatype, each.shape, each.joined) for each in inputs], measure)
    frames[0] = orjson.dumps(header)
    return frames


def decode_batch_header(frame: Buffer) -> BatchHeader:
    """The inverse of ``encode_batch``'s first frame."""
    batch, rows, inputs, measure = orjson.loads(frame)
    return BatchHeader(id=batch, rows=tuple(rows), inputs=_layouts(inputs), measure=measure)


def encode_reply_header(reply: ReplyHeader) -> bytes:
    """The first frame of a reply."""
    segments = [
        (each.requests, each.kind, each.error, [(o.name, o.datatype, o.shape, o.joined) for o in each.outputs])
        for each in reply.segments
    ]
    return orjson.dumps((reply.id, segments, reply.copy_us, reply.compute_us, reply.peak_bytes))


def decode_reply_header(frame: Buffer) -> ReplyHeader:
    """The inverse of ``encode_reply_header``."""
    batch, segments, copy_us, compute_us, peak = orjson.loads(frame)
    return ReplyHeader(
        id=batch,
        segments=tuple(
            Segment(requests=requests, kind=kind, error=error, outputs=_layouts(outputs))
            for requests, kind, error, outputs in segments
        ),
        copy_us=copy_us,
        compute_us=compute_us,
        peak_bytes=peak,
    )


def _layouts(values: Sequence[Any]) -> tuple[Layout, ...]:
    return tuple(Layout(name, datatype, tuple(shape), joined) for name, datatype, shape, joined in values)
