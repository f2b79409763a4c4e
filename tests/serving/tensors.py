"""Batches of any datatype for hypothesis: requests that agree in all but their rows."""

from dataclasses import dataclass
from math import prod

import numpy as np
from hypothesis import strategies as st

from models.tensor import DATATYPES, NUMPY_DTYPES, Tensor, encode_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """``inputs`` of each request, and its batch rows; without a batch dimension there is one request."""

    rows: tuple[int, ...]
    inputs: list[dict[str, Tensor]]
    batched: bool


@st.composite
def wire_bytes(draw: st.DrawFn, datatype: str, elements: int) -> bytes:
    """The wire form of some elements."""
    if datatype == "BYTES":
        return encode_bytes([draw(st.binary(max_size=6)) for _ in range(elements)])
    size = 2 if datatype == "BF16" else NUMPY_DTYPES[datatype].itemsize
    seed = draw(st.integers(0, 255))
    return (np.arange(elements * size) * 7 + seed).astype(np.uint8).tobytes()


@st.composite
def batches(draw: st.DrawFn, *, least_rows: int = 0) -> Requests:
    """Up to four requests of up to two tensors each, of any datatype."""
    batched = draw(st.booleans())
    rows = tuple(draw(st.lists(st.integers(least_rows, 3), min_size=1, max_size=4))) if batched else (1,)
    layouts = [
        (name, draw(st.sampled_from(sorted(DATATYPES))), tuple(draw(st.lists(st.integers(1, 3), max_size=2))))
        for name in ("a", "b")[: draw(st.integers(1, 2))]
    ]
    inputs = []
    for count in rows:
        request = {}
        for name, datatype, row_shape in layouts:
            shape = (count, *row_shape) if batched else row_shape
            request[name] = Tensor(name, datatype, shape, draw(wire_bytes(datatype, prod(shape))))
        inputs.append(request)
    return Requests(rows=rows, inputs=inputs, batched=batched)
