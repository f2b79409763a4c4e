"""Bodies of infer requests and responses over HTTP: JSON, and JSON followed by binary tensors.

A body of ``header_length`` bytes of JSON is followed by the tensors whose entries carry ``binary_data_size``, in the
order of the entries. Decoding slices the one body; encoding is one join. No tensor's bytes are copied on the way in.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import orjson

from models.tensor import DATATYPES, NUMPY_DTYPES, Buffer, Tensor
from serving.errors import InvalidArgumentError
from serving.protocol.json_data import decode_data, encode_data, parse, type_name
from serving.protocol.messages import InferRequest, InferResponse, RequestedOutput
from serving.protocol.parameters import check_request_parameters, check_tensor_parameters

MAX_ID_CHARS: Final = 512  # an id travels in a response header, whose line clients bound at 8 KiB
SHORT_JSON_BYTES: Final = 256 * 1024  # takes up to 4 ms; in a thread a longer one holds the others up half as long
_SHORT_DATA_BYTES: Final = 128 * 1024  # of an output in JSON: numbers, some 2 ms
_SHORT_WALK: Final = 16 * 1024  # BYTES elements, some 2 ms
MAX_RANK: Final = 64  # numpy's own bound; keeps the product of a hostile shape small
_LARGEST_EXTENT: Final = (2**63 - 1) // 8  # numpy's own, of the widest elements; of a shape that has none, too
_BINARY_SIZE: Final = "binary_data_size"
_NOTHING: Final[Mapping[str, Any]] = {}
_WIDTHS_BYTES: Final[Mapping[str, int]] = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()} | {"BF16": 2}


@dataclass(slots=True)
class DecodedInfer:
    """A decoded body: the request, the outputs asked for (none named: all), and the form of those that name none."""

    request: InferRequest
    outputs: tuple[RequestedOutput, ...]
    binary_default: bool


@dataclass(slots=True)
class EncodedInfer:
    """An encoded response; ``header_length`` is None for a body that is JSON alone."""

    body: bytes
    header_length: int | None


class LongWorkError(Exception):
    """Decoding or encoding would take so long that it belongs into a thread."""


def decode_infer(
    model: str, version: int | None, body: Buffer, header_length: int | None = None, *, patient: bool = True
) -> DecodedInfer:
    """Decode an infer body; ``header_length`` is that of Inference-Header-Content-Length (None: all is JSON).

    Raises:
        InvalidArgumentError: anything wrong with the body in itself, whatever the model; names what.
        UnsupportedError: shared memory.
        LongWorkError: it would take more than a few milliseconds, and the caller is not ``patient``.
    """
    view = memoryview(body)
    if header_length is None:
        header_length = len(view)
    if header_length > SHORT_JSON_BYTES and not patient:
        raise LongWorkError
    document = parse(view[:header_length])
    if type(document) is not dict:
        raise InvalidArgumentError(f"an infer request must be a JSON object, got {type_name(document)}")
    parameters = _parameters(document, "the request")
    if parameters:
        check_request_parameters(parameters)
    request = InferRequest(
        model=model,
        version=version,
        id=_request_id(document),
        inputs=_inputs(document.get("inputs"), view[header_length:], patient=patient),
        parameters=parameters,
    )
    return DecodedInfer(request, _outputs(document.get("outputs")), parameters.get("binary_data_output", False))


def _parameters(owner: dict[str, Any], what: str, name: str | None = None) -> Mapping[str, Any]:
    value = owner.get("parameters")
    if value is None:
        return _NOTHING
    if type(value) is not dict:
        owner_name = what if name is None else f"{what} {name!r}"
        raise InvalidArgumentError(f"{owner_name}: 'parameters' must be an object, got {type_name(value)}")
    return value


def _request_id(document: dict[str, Any]) -> str:
    value = document.get("id")
    if value is None:
        return ""
    if type(value) is not str or len(value) > MAX_ID_CHARS:
        raise InvalidArgumentError(f"'id' must be a string of at most {MAX_ID_CHARS} characters")
    return value


def _named_entries(entries: Any, what: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """The entries of ``inputs`` or ``outputs`` with their names, each checked to be a named object."""
    if type(entries) is not list:
        raise InvalidArgumentError(f"'{what}s' must be an array, got {type_name(entries)}")
    for index, entry in enumerate(entries):
        if type(entry) is not dict:
            raise InvalidArgumentError(f"{what}s[{index}] must be an object, got {type_name(entry)}")
        name = entry.get("name")
        if type(name) is not str:
            raise InvalidArgumentError(f"{what}s[{index}]: 'name' must be a string, got {type_name(name)}")
        yield name, entry


def _inputs(entries: Any, tail: memoryview, *, patient: bool) -> dict[str, Tensor]:
    if not entries:
        raise InvalidArgumentError("the request has no 'inputs'")
    inputs: dict[str, Tensor] = {}
    at = 0
    for name, entry in _named_entries(entries, "input"):
        if name in inputs:
            raise InvalidArgumentError(f"input {name!r} is given twice")
        datatype = _datatype(name, entry)
        shape, count = _shape(name, entry)
        size = _binary_size(name, entry)
        if size is None:
            data: bytes | memoryview = decode_data(name, datatype, shape, count, entry["data"])
        else:
            data = tail[at : at + size]
            if len(data) != size:
                raise InvalidArgumentError(
                    f"input {name!r}: 'binary_data_size' is {size}, the body has {len(data)} bytes left for it"
                )
            check_wire(name, datatype, shape, count, data, patient=patient)
            at += size
        inputs[name] = Tensor(name, datatype, shape, data)
    if at != len(tail):
        raise InvalidArgumentError(f"the body has {len(tail) - at} bytes more than its tensors")
    return inputs


def _datatype(name: str, entry: dict[str, Any]) -> str:
    datatype = entry.get("datatype")
    if type(datatype) is not str or datatype not in DATATYPES:
        raise InvalidArgumentError(f"input {name!r}: unknown datatype {datatype!r}; it must be one of {_DATATYPES}")
    return datatype


_DATATYPES: Final = ", ".join(sorted(DATATYPES))


def _shape(name: str, entry: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    """An input's shape and its number of elements."""
    shape = entry.get("shape")
    if type(shape) is not list or len(shape) > MAX_RANK:
        raise InvalidArgumentError(f"input {name!r}: 'shape' must be an array of at most {MAX_RANK} integers")
    count = 1
    for dim in shape:
        if type(dim) is not int or dim < 0:
            raise InvalidArgumentError(f"input {name!r}: 'shape' must hold integers of 0 or more")
        count *= dim
    if not count:
        check_extent(name, shape)
    return tuple(shape), count


def check_extent(name: str, shape: Sequence[int]) -> None:
    """Refuse a shape without elements whose other dimensions no array can have.

    Raises:
        InvalidArgumentError: their product is too large.
    """
    if prod(dim or 1 for dim in shape) > _LARGEST_EXTENT:
        raise InvalidArgumentError(f"input {name!r}: shape {list(shape)} is too large")


def _binary_size(name: str, entry: dict[str, Any]) -> int | None:
    """The size of an input's binary data; None if it has JSON ``data``. It must have one of the two."""
    parameters = _parameters(entry, "input", name)
    size = parameters.get(_BINARY_SIZE)
    if len(parameters) > (size is not None):  # it has others
        check_tensor_parameters(name, parameters)
    if (size is None) is (entry.get("data") is None):
        raise InvalidArgumentError(f"input {name!r}: needs either 'data' or the parameter 'binary_data_size'")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidArgumentError(f"input {name!r}: 'binary_data_size' must be an integer of 0 or more, got {size!r}")
    return size


def check_wire(
    name: str, datatype: str, shape: tuple[int, ...], count: int, data: memoryview, *, patient: bool = True
) -> None:
    """Check that an input's wire bytes make up its shape of ``count`` elements.

    Raises:
        InvalidArgumentError: another size, BYTES whose lengths do not add up, or a BOOL that is neither 0 nor 1.
        LongWorkError: it would take more than a few milliseconds, and the caller is not ``patient``.
    """
    width = _WIDTHS_BYTES.get(datatype)
    if width is None:
        if not patient and min(count, len(data) // 4) > _SHORT_WALK:
            raise LongWorkError
        _check_bytes(name, shape, count, data)
    elif len(data) != count * width:
        raise InvalidArgumentError(
            f"input {name!r}: {datatype} of shape {list(shape)} takes {count * width} bytes, got {len(data)}"
        )
    elif datatype == "BOOL" and count and np.frombuffer(data, np.uint8).max() > 1:
        raise InvalidArgumentError(f"input {name!r}: a BOOL byte must be 0 or 1")


def _check_bytes(name: str, shape: tuple[int, ...], count: int, data: memoryview) -> None:
    """Walk over the length of each BYTES element without taking the elements out."""
    at, found, total = 0, 0, len(data)
    while at < total and found < count:
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        found += 1
    if found != count or at != total:
        raise InvalidArgumentError(
            f"input {name!r}: {total} bytes do not make up the {count} BYTES elements of shape {list(shape)}"
        )


def _outputs(entries: Any) -> tuple[RequestedOutput, ...]:
    if not entries and (entries is None or type(entries) is list):
        return ()
    outputs: dict[str, RequestedOutput] = {}
    for name, entry in _named_entries(entries, "output"):
        if name in outputs:
            raise InvalidArgumentError(f"output {name!r} is asked for twice")
        parameters = _parameters(entry, "output", name)
        check_tensor_parameters(name, parameters)
        binary, classes = parameters.get("binary_data"), parameters.get("classification", 0)
        if binary is not None and type(binary) is not bool:
            raise InvalidArgumentError(f"output {name!r}: 'binary_data' must be a boolean, got {binary!r}")
        if type(classes) is not int or classes < 0:
            raise InvalidArgumentError(f"output {name!r}: 'classification' must be 0 or more, got {classes!r}")
        outputs[name] = RequestedOutput(name=name, binary=binary, classification=classes)
    return tuple(outputs.values())


def encode_infer(
    response: InferResponse,
    *,
    client_id: str,
    requested: Iterable[RequestedOutput],
    binary_default: bool,
    patient: bool = True,
) -> EncodedInfer:
    """Encode the outputs of ``response``, each in the form asked for; ``client_id`` "" leaves the id out.

    Raises:
        InvalidArgumentError: an output without a JSON form that was asked for in JSON.
        LongWorkError: it would take more than a few milliseconds, and the caller is not ``patient``.
    """
    forms = {output.name: output.binary for output in requested}
    outputs: list[dict[str, Any]] = []
    buffers: list[bytes | bytearray | memoryview] = []
    for name, tensor in response.outputs.items():
        entry: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": tensor.shape}
        form = forms.get(name)
        if binary_default if form is None else form:
            buffers.append(tensor.data)
            entry["parameters"] = {_BINARY_SIZE: len(tensor.data)}
        elif len(tensor.data) > _SHORT_DATA_BYTES and not patient:
            raise LongWorkError
        else:
            entry["data"] = encode_data(tensor)
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": response.model, "model_version": str(response.version)}
    if client_id:
        document["id"] = client_id
    document["outputs"] = outputs
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not buffers:
        return EncodedInfer(header, None)
    return EncodedInfer(b"".join((header, *buffers)), len(header))
