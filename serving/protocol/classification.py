"""The classification extension: the best classes of an output instead of the output."""

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np

from models.tensor import Array, Tensor, from_numpy
from serving.errors import InvalidArgumentError

_HALF_BITS: Final = 16


def classify(tensor: Tensor, classes: int, labels: Sequence[str], *, batched: bool) -> Tensor:
    """The ``classes`` best of each item of an output, as BYTES ``"%f:index[:label]"`` in descending order.

    Equal scores are ordered by index and NaN comes last. Of n scores per item, the shape is [B, min(classes, n)], or
    [min(classes, n)] where the model takes no batch dimension.

    Raises:
        InvalidArgumentError: the output is of datatype BYTES.
    """
    if tensor.datatype == "BYTES":
        raise InvalidArgumentError(f"output {tensor.name!r}: BYTES cannot be classified")
    scores = _scores(tensor)
    rows = scores.reshape(tensor.shape[0], prod(tensor.shape[1:])) if batched else scores.reshape(1, -1)
    order = np.argsort(_ascending_key(rows), axis=1, kind="stable")[:, :classes]
    texts = [
        _format(score, index, labels)
        for row, best in zip(rows, order, strict=True)
        for index, score in zip(best.tolist(), row[best].tolist(), strict=True)
    ]
    shape = order.shape if batched else order.shape[1:]
    return from_numpy(tensor.name, "BYTES", np.array(texts, dtype=object).reshape(shape))


def _scores(tensor: Tensor) -> Array:
    array = tensor.numpy()
    if tensor.datatype == "BF16":  # the upper half of an FP32
        return (array.astype(np.uint32) << _HALF_BITS).view(np.float32)
    return array


def _ascending_key(scores: Array) -> Array:
    """A key whose ascending order is the scores' descending one, exact for every integer."""
    return -scores if scores.dtype.kind == "f" else ~scores


def _format(score: float, index: int, labels: Sequence[str]) -> str:
    label = f":{labels[index]}" if index < len(labels) else ""
    return f"{score:f}:{index}{label}"
