"""Warm-up: batches of zeros that a model runs before anybody is answered, so that first times are in no comparison.

What a runtime does at its first batch of a size (choose kernels, compile, reserve memory) is no batch's cost.
"""

from collections.abc import Sequence

import numpy as np

from models.spec import ModelSpec, TensorSpec
from models.tensor import NUMPY_DTYPES, Array


def batch_sizes(spec: ModelSpec, declared: Sequence[int] | None, *, limit: int) -> tuple[int, ...]:
    """The batch sizes to warm a model up with, each once.

    Args:
        spec: the model's; without a batch dimension there is one size, 1.
        declared: in their order, those beyond what a batch may have brought down to it; none if empty. Where None: 1
            and the largest.
        limit: how many rows are ever batched, further bounded by the model's own ``max_batch_size``.
    """
    most = min(limit, spec.max_batch_size) or 1
    wanted = (1, most) if declared is None else declared
    return tuple(dict.fromkeys(min(size, most) for size in wanted))


def zeros(spec: ModelSpec, rows: int) -> dict[str, Array]:
    """Every input that the artifact takes, as zeros; BYTES as empty strings.

    Shapes are the declared ones: ``rows`` in place of the batch dimension, 1 in place of other variable ones.
    """
    return {tensor.name: _zeros(tensor, rows) for tensor in spec.for_backend().inputs}


def _zeros(tensor: TensorSpec, rows: int) -> Array:
    shape = [1 if size == -1 else size for size in tensor.shape]
    if tensor.shape and tensor.shape[0] == -1:
        shape[0] = rows
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype="<u2" if tensor.datatype == "BF16" else NUMPY_DTYPES[tensor.datatype])
