"""Does an answer have the form that the model declared? A dropped field or another dtype is a silent regression."""

from collections.abc import Mapping
from typing import Final

from models.errors import Malformation, MalformedOutputError
from models.spec import ModelSpec, TensorSpec
from models.tensor import NUMPY_DTYPES, Array

# The kinds of numpy array that carry BYTES: objects, and fixed-width bytes or text.
BYTES_KINDS: Final = frozenset("OSU")


def check_outputs(spec: ModelSpec, outputs: Mapping[str, Array], rows: int) -> None:
    """Check the outputs of one run against ``spec``: names, datatypes, ranks, sizes, ``rows`` of them if batched.

    ``rows`` is ignored for a model without batch dimension. A few microseconds: it runs on every batch.

    Raises:
        MalformedOutputError: naming the kind, the output, what was expected and what was found.
    """
    for declared in spec.outputs:
        array = outputs.get(declared.name)
        if array is None:
            found = f"only {', '.join(outputs) or 'nothing'}"
            raise MalformedOutputError(Malformation.MISSING_OUTPUT, declared.name, "an array", found)
        if not _has_datatype(array, declared.datatype):
            raise MalformedOutputError(Malformation.DATATYPE, declared.name, declared.datatype, str(array.dtype))
        if not _has_shape(array.shape, declared.shape, rows if spec.max_batch_size else None):
            expected = _expected_shape(declared, rows, spec.max_batch_size)
            raise MalformedOutputError(Malformation.SHAPE, declared.name, expected, str(list(array.shape)))
    if len(outputs) != len(spec.outputs):
        names = {declared.name for declared in spec.outputs}
        extra = next(name for name in outputs if name not in names)
        expected = f"only {', '.join(sorted(names))}"
        raise MalformedOutputError(Malformation.EXTRA_OUTPUT, extra, expected, "an output that is not declared")


def _has_datatype(array: Array, datatype: str) -> bool:
    if datatype == "BYTES":
        return array.dtype.kind in BYTES_KINDS
    if datatype == "BF16":  # numpy has none: raw 16-bit words
        return array.dtype.kind == "u" and array.dtype.itemsize == 2
    return array.dtype == NUMPY_DTYPES[datatype]


def _has_shape(shape: tuple[int, ...], declared: tuple[int, ...], rows: int | None) -> bool:
    if len(shape) != len(declared) or (rows is not None and shape[0] != rows):
        return False
    return all(size in (-1, found) for size, found in zip(declared, shape, strict=True))


def _expected_shape(declared: TensorSpec, rows: int, max_batch_size: int) -> str:
    shape = [rows, *declared.shape[1:]] if max_batch_size else list(declared.shape)
    return f"shape {shape}"
