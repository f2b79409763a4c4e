"""Tensors in the wire form of the Open Inference Protocol, and its datatypes.

A tensor travels through Understudy as its little-endian, row-major wire bytes: a request's body is sliced, never
parsed element by element, and a batch is the concatenation of its requests' bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Buffer: TypeAlias = bytes | bytearray | memoryview
Array: TypeAlias = NDArray[Any]

NUMPY_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES: Final = frozenset(NUMPY_DTYPES) | {"BF16", "BYTES"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named tensor; ``data`` holds its wire bytes, ``shape`` includes the batch dimension if there is one.

    BYTES elements are ``<u32 little-endian length><bytes>`` each, BOOL is one byte, BF16 two bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Buffer

    def numpy(self) -> Array:
        """The tensor as an array of ``shape``: a view, but for BYTES (an array of ``bytes`` objects).

        BF16, which numpy lacks, is shown as its raw ``uint16``.
        """
        return to_numpy(self.datatype, self.shape, self.data)


def to_numpy(datatype: str, shape: tuple[int, ...], data: Buffer) -> Array:
    """Wire bytes as an array of ``shape`` (see ``Tensor.numpy``).

    Raises:
        ValueError: the bytes do not make up ``shape``.
    """
    if datatype == "BYTES":
        elements = decode_bytes(data)
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array.reshape(shape)
    dtype = np.dtype("<u2") if datatype == "BF16" else NUMPY_DTYPES[datatype]
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def from_numpy(name: str, datatype: str, array: Array) -> Tensor:
    """An array as a tensor of ``datatype``; copies only if the array is not contiguous or has another byte order.

    For BYTES the elements may be ``bytes`` or ``str`` (encoded as UTF-8).
    """
    if datatype == "BYTES":
        return Tensor(name, datatype, array.shape, encode_bytes(array.ravel().tolist()))
    dtype = np.dtype("<u2") if datatype == "BF16" else NUMPY_DTYPES[datatype]
    contiguous = np.ascontiguousarray(array, dtype=dtype)
    return Tensor(name, datatype, array.shape, contiguous.reshape(-1).view(np.uint8).data)


def encode_bytes(elements: list[bytes | str]) -> bytes:
    """BYTES elements in wire form."""
    parts: list[bytes] = []
    for element in elements:
        raw = element.encode() if isinstance(element, str) else element
        parts += (len(raw).to_bytes(4, "little"), raw)
    return b"".join(parts)


def decode_bytes(data: Buffer) -> list[bytes]:
    """The elements of a BYTES tensor.

    Raises:
        ValueError: a length runs past the end.
    """
    view, at, elements = memoryview(data), 0, []
    while at < len(view):
        size = int.from_bytes(view[at : at + 4], "little")
        end = at + 4 + size
        if end > len(view):
            raise ValueError(f"a BYTES element of {size} bytes at offset {at} runs past the end of {len(view)} bytes")
        elements.append(bytes(view[at + 4 : end]))
        at = end
    return elements
