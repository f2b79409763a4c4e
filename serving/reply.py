"""A replica's reply, taken apart per request without a copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from models.tensor import Buffer, Tensor
from serving.wire import Layout, ReplyHeader
from shadow.pair import Status

_STATUS = {"ok": Status.OK, "error": Status.ERROR, "malformed": Status.MALFORMED, "rejected": Status.REJECTED}


@dataclass(slots=True)
class Result:
    """How one request of a batch ended; ``outputs`` are views into the reply."""

    status: Status
    outputs: Mapping[str, Tensor] = field(default_factory=dict)
    error: str = ""


def results_of(header: ReplyHeader, frames: Sequence[Buffer], rows: Sequence[int], *, batched: bool) -> list[Result]:
    """A result per request, in the batch's order; ``rows`` are the batch rows of each request."""
    results: list[Result] = []
    at = 0
    for segment in header.segments:
        mine = rows[len(results) : len(results) + segment.requests]
        if segment.kind != "ok":
            results += [Result(_STATUS[segment.kind], error=segment.error) for _ in mine]
            continue
        columns = [_split(layout, frames[at + k], mine, batched=batched) for k, layout in enumerate(segment.outputs)]
        at += len(segment.outputs)
        for tensors in zip(*columns, strict=True):
            results.append(Result(Status.OK, {tensor.name: tensor for tensor in tensors}))
    return results


def _split(layout: Layout, frame: Buffer, rows: Sequence[int], *, batched: bool) -> list[Tensor]:
    if not batched:
        return [Tensor(layout.name, layout.datatype, layout.shape, frame)]
    view = memoryview(frame)
    ends = _ends(layout, view, rows)
    tensors, start = [], 0
    for count, end in zip(rows, ends, strict=True):
        tensors.append(Tensor(layout.name, layout.datatype, (count, *layout.shape), view[start:end]))
        start = end
    return tensors


def _ends(layout: Layout, view: memoryview, rows: Sequence[int]) -> list[int]:
    """Where each request's bytes end."""
    if layout.datatype == "BYTES":
        return _bytes_ends(view, [count * prod(layout.shape) for count in rows])
    total = sum(rows)
    row_bytes = len(view) // total if total else 0
    ends, end = [], 0
    for count in rows:
        end += count * row_bytes
        ends.append(end)
    return ends


def _bytes_ends(view: memoryview, elements: Sequence[int]) -> list[int]:
    """BYTES elements have a length each: walk them."""
    ends, at = [], 0
    for count in elements:
        for _ in range(count):
            at += 4 + int.from_bytes(view[at : at + 4], "little")
        ends.append(at)
    return ends
