"""A replica's reply, taken apart per request without a copy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from models.tensor import NUMPY_DTYPES, Buffer, Tensor
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
    """A result per request, in the batch's order; ``rows`` are the batch rows of each request.

    A reply that is not the batch's, or whose parts contradict each other, is an error of all of the batch's requests.
    """
    try:
        return _results(header, frames, rows, batched=batched)
    except (ValueError, IndexError, TypeError, KeyError) as error:
        why = f"its replica's reply contradicts itself: {error}"
        return [Result(Status.ERROR, error=why) for _ in rows]


def _results(header: ReplyHeader, frames: Sequence[Buffer], rows: Sequence[int], *, batched: bool) -> list[Result]:
    results: list[Result] = []
    at = 0
    for segment in header.segments:
        mine = rows[len(results) : len(results) + segment.requests]
        if len(mine) != segment.requests:
            raise ValueError(f"its segments are of more than the {len(rows)} requests")
        if segment.kind != "ok":
            results += [Result(_STATUS[segment.kind], error=segment.error) for _ in mine]
            continue
        columns = [_split(layout, frames[at + k], mine, batched=batched) for k, layout in enumerate(segment.outputs)]
        at += len(segment.outputs)
        for tensors in zip(*columns, strict=True):
            results.append(Result(Status.OK, {tensor.name: tensor for tensor in tensors}))
    if len(results) != len(rows) or at != len(frames):
        raise ValueError(f"{len(results)} results in {len(frames)} frames for {len(rows)} requests")
    return results


def _split(layout: Layout, frame: Buffer, rows: Sequence[int], *, batched: bool) -> list[Tensor]:
    view = memoryview(frame)
    if not batched:
        rows = (1,)
    ends = _ends(layout, view, rows)
    if (ends[-1] if ends else 0) != len(view):
        raise ValueError(
            f"output {layout.name!r}: {len(view)} bytes do not make up {list(rows)} rows of {layout.shape}"
        )
    if not batched:
        return [Tensor(layout.name, layout.datatype, layout.shape, frame)]
    tensors, start = [], 0
    for count, end in zip(rows, ends, strict=True):
        tensors.append(Tensor(layout.name, layout.datatype, (count, *layout.shape), view[start:end]))
        start = end
    return tensors


def _ends(layout: Layout, view: memoryview, rows: Sequence[int]) -> list[int]:
    """Where each request's bytes end."""
    if layout.datatype == "BYTES":
        return _bytes_ends(view, [count * prod(layout.shape) for count in rows])
    row_bytes = prod(layout.shape) * (2 if layout.datatype == "BF16" else NUMPY_DTYPES[layout.datatype].itemsize)
    ends, end = [], 0
    for count in rows:
        end += count * row_bytes
        ends.append(end)
    return ends


def _bytes_ends(view: memoryview, elements: Sequence[int]) -> list[int]:
    """BYTES elements have a length each: walk them."""
    if sum(elements) > len(view) // 4:
        raise ValueError(f"{len(view)} bytes do not make up {sum(elements)} BYTES elements")
    ends, at = [], 0
    for count in elements:
        for _ in range(count):
            at += 4 + int.from_bytes(view[at : at + 4], "little")
        ends.append(at)
    return ends
