"""Tensor data in its JSON form: nested or flat lists of numbers, booleans or strings, exact and range-checked."""

import json
from collections.abc import Callable, Mapping
from itertools import chain
from math import isinf
from typing import Any, Final

import numpy as np
import orjson

from models.tensor import NUMPY_DTYPES, Array, Tensor, encode_bytes
from serving.errors import InvalidArgumentError

_BINARY_ONLY: Final = frozenset({"FP16", "BF16"})
_PIECE: Final = 16 * 1024  # elements, less than 2 ms
_NUMBER: Final = frozenset({int, float})


def _json_types(datatype: str) -> frozenset[type]:
    """The JSON types that an element of a datatype may have."""
    if datatype == "BOOL":
        return frozenset({bool})
    if datatype == "BYTES":
        return frozenset({str})
    return _NUMBER if datatype.startswith("FP") else frozenset({int})


_JSON_TYPES: Final[Mapping[str, frozenset[type]]] = {name: _json_types(name) for name in (*NUMPY_DTYPES, "BYTES")}
_TYPE_NAMES: Final[Mapping[type, str]] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    dict: "object",
    list: "array",
    type(None): "null",
}


def type_name(value: Any) -> str:
    """The JSON name of a parsed value's type, for messages."""
    return _TYPE_NAMES[type(value)]


def parse(text: memoryview) -> Any:
    """Parse JSON; bare ``NaN``, ``Infinity`` and ``-Infinity``, which tritonclient writes, are read as such.

    Integers come back exact; one beyond 64 bits comes back as a float, which no integer datatype accepts.

    Raises:
        InvalidArgumentError: not JSON, not UTF-8, or nested deeper than the parser's bound.
    """
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raw = bytes(text)
        if b"NaN" not in raw and b"Infinity" not in raw:
            raise InvalidArgumentError(f"malformed JSON: {error}") from None
        return _parse_with_nonfinite(raw)


def _parse_with_nonfinite(raw: bytes) -> Any:
    try:
        document = json.loads(raw.decode(), parse_int=_integer, parse_float=_finite)
        # What orjson cannot write (lone surrogates, integers beyond 64 bits, deep nesting) it would not have read.
        orjson.dumps(document)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgumentError(f"malformed JSON: {error}") from None
    return document


def _integer(digits: str) -> int | float:
    """As orjson reads it."""
    number = int(digits)
    return number if -(2**63) <= number < 2**64 else _finite(digits)


def _finite(digits: str) -> float:
    """As orjson reads it: a number that is written out is never infinite.

    Raises:
        ValueError: it is too large.
    """
    number = float(digits)
    if isinf(number):
        raise ValueError(f"number out of range: {digits[:32]}")
    return number


def decode_data(name: str, datatype: str, shape: tuple[int, ...], count: int, data: Any) -> bytes:
    """The wire bytes of an input given as JSON; ``count`` is the number of elements of ``shape``.

    Raises:
        InvalidArgumentError: ragged or too deeply nested, another number of elements, an element of the wrong type
            or out of range, or a datatype without a JSON form.
    """
    if datatype in _BINARY_ONLY:
        raise InvalidArgumentError(f"input {name!r}: {datatype} has no JSON form, send it as binary data")
    flat = _flatten(name, data, rank=len(shape))
    if len(flat) != count:
        raise InvalidArgumentError(
            f"input {name!r}: shape {list(shape)} holds {count} elements, 'data' has {len(flat)}"
        )
    if wrong := set(map(type, flat)) - _JSON_TYPES[datatype]:
        found = ", ".join(sorted(_TYPE_NAMES[kind] for kind in wrong))
        raise InvalidArgumentError(f"input {name!r}: 'data' of datatype {datatype} cannot hold: {found}")
    if datatype == "BYTES":
        return encode_bytes(flat)
    try:
        with np.errstate(over="raise"):
            return np.array(flat, dtype=NUMPY_DTYPES[datatype]).tobytes()
    except (OverflowError, FloatingPointError):
        raise InvalidArgumentError(f"input {name!r}: 'data' has a value out of the range of {datatype}") from None


def _flatten(name: str, data: Any, *, rank: int) -> list[Any]:
    """The elements of regularly nested lists, in row-major order; no deeper than the tensor's rank."""
    if type(data) is not list:
        raise InvalidArgumentError(f"input {name!r}: 'data' must be an array, got {type_name(data)}")
    depth = 1
    level: list[Any] = data
    while level and type(level[0]) is list:
        depth += 1
        if depth > rank:
            raise InvalidArgumentError(f"input {name!r}: 'data' is nested deeper than the {rank} dimensions of 'shape'")
        if any(type(row) is not list for row in level) or len(set(map(len, level))) > 1:
            raise InvalidArgumentError(f"input {name!r}: 'data' is ragged: rows of one level differ in length or kind")
        level = list(chain.from_iterable(level))
    return level


def encode_data(tensor: Tensor) -> Any:
    """An output's elements, flat and in row-major order, as something that orjson (with numpy support) writes.

    Non-finite numbers become bare ``NaN`` and ``Infinity``, as Triton writes them and tritonclient reads them.

    Raises:
        InvalidArgumentError: a datatype without a JSON form, or BYTES that are not UTF-8.
    """
    if tensor.datatype in _BINARY_ONLY:
        raise InvalidArgumentError(
            f"output {tensor.name!r}: {tensor.datatype} has no JSON form, ask for it with 'binary_data': true"
        )
    array = tensor.numpy().reshape(-1)
    if tensor.datatype == "BYTES":
        try:
            return _written(array, _texts) if array.size > _PIECE else _texts(array)
        except UnicodeDecodeError:
            raise InvalidArgumentError(
                f"output {tensor.name!r}: holds BYTES that are not UTF-8, ask for it with 'binary_data': true"
            ) from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return _written(array, np.ndarray.tolist, lambda values: json.dumps(values).encode())
    return _written(array, _aligned) if array.size > _PIECE else _aligned(array)


def _dumped(values: Any) -> bytes:
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)


def _written(array: Array, values: Callable[[Array], Any], dump: Callable[[Any], bytes] = _dumped) -> orjson.Fragment:
    """An array as JSON, a piece after the other: other threads get their turn in between."""
    pieces = (array[at : at + _PIECE] for at in range(0, array.size, _PIECE))
    return orjson.Fragment(b"[%b]" % b",".join([dump(values(piece))[1:-1] for piece in pieces]))


def _texts(array: Array) -> list[str]:
    return [element.decode() for element in array]


def _aligned(array: Array) -> Array:
    return array if array.flags.aligned else array.copy()
