"""Bodies of infer requests and responses over gRPC.

A request's body is taken apart by hand on its top level only: its tensors become views into it, and its id is its own.
What is left, the head, says which model and what tensors; a client sends the same one again and again, so its meaning
is remembered. An answer is one join of pieces that are remembered likewise and the tensors' bytes. Protobuf itself
reads and writes the pieces, and whatever is out of the ordinary.
"""

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from models.tensor import DATATYPES, NUMPY_DTYPES, Buffer, Tensor, encode_bytes
from serving.errors import InvalidArgumentError
from serving.protocol.binary import MAX_ID_CHARS, MAX_RANK, LongWorkError, check_extent, check_wire
from serving.protocol.messages import InferRequest, InferResponse, RequestedOutput
from serving.protocol.parameters import check_request_parameters, check_tensor_parameters
from serving.protocol.proto import message

_Request: Final = message("inference.ModelInferRequest")
_Response: Final = message("inference.ModelInferResponse")
_StreamResponse: Final = message("inference.ModelStreamInferResponse")
# A field on the wire is its tag (number << 3 | 2: a length follows), its length as a varint, and its bytes.
_TAG_ID: Final = 3 << 3 | 2
_TAG_RAW_INPUT: Final = 7 << 3 | 2
_TAGS: Final = frozenset(number << 3 | 2 for number in range(1, 8))
_TAG_RESPONSE_ID: Final = b"\x1a"
_TAG_RAW_OUTPUT: Final = b"\x32"
_TAG_STREAM_RESPONSE: Final = b"\x12"
_VARINT_MORE: Final = 0x80
_VARINT_BITS: Final = 64
_MAX_FIELDS: Final = 256  # to be walked over by hand; what has more is left to protobuf, which is faster at that
_REMEMBERED: Final = 1024  # heads and pieces
_LARGE_HEAD_BYTES: Final = 4096  # one that holds tensors, or that nobody sends twice
_SHORT_BYTES: Final = 32 * 1024  # of what is left to protobuf: as many bytes may be half as many elements
_PIECE: Final = 4096  # elements
_WANTS_FINAL: Final = "triton_enable_empty_final_response"  # tritonclient's streams; ours always say which is final
_CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class DecodedInfer(NamedTuple):
    """A decoded body: the request, and the outputs asked for (none named: all)."""

    request: InferRequest
    outputs: tuple[RequestedOutput, ...]


class _Input(NamedTuple):
    """What a head says of one input; ``data`` is None where its bytes are raw contents."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    elements: int
    data: bytes | None


class _Head(NamedTuple):
    """The meaning of a body without its id and its raw contents."""

    model: str
    version: int | None
    inputs: tuple[_Input, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Any]


class _Parts(NamedTuple):  # one of these for each request: a frozen dataclass costs several times as much
    head: bytes
    id: str
    raw: list[memoryview]


def decode_infer(body: Buffer, *, patient: bool = True) -> DecodedInfer:
    """Decode a ``ModelInferRequest``.

    Raises:
        InvalidArgumentError: anything wrong with the body in itself, whatever the model; names what.
        UnsupportedError: shared memory.
        LongWorkError: it would take more than a few milliseconds, and the caller is not ``patient``.
    """
    parts = _split(body)
    if not patient and len(body if parts is None else parts.head) > _SHORT_BYTES:
        raise LongWorkError
    parts = parts or _split_by_protobuf(body)
    if len(parts.id) > MAX_ID_CHARS:
        raise InvalidArgumentError(f"'id' must be a string of at most {MAX_ID_CHARS} characters")
    read = _remembered_head if len(parts.head) < _LARGE_HEAD_BYTES else _read_head
    head = read(parts.head, bool(parts.raw))
    request = InferRequest(
        model=head.model,
        version=head.version,
        id=parts.id,
        inputs=_tensors(head.inputs, parts.raw, patient=patient),
        parameters=head.parameters,
    )
    return DecodedInfer(request, head.outputs)


def lead_of(early: Buffer) -> int:
    """How far a body's first raw contents are from its beginning, of which ``early`` has come; 0 if it has not."""
    at = 0
    try:
        while early[at] in _TAGS:
            tag = early[at]
            size, after = _varint(early, at + 1)
            if tag == _TAG_RAW_INPUT:
                return after
            at = after + size
    except IndexError:
        pass
    return 0


def request_id_of(body: Buffer) -> str:
    """The id of a request that was refused; "" if even that cannot be read."""
    try:
        return (_split(body) or _split_by_protobuf(body)).id[:MAX_ID_CHARS]
    except InvalidArgumentError:
        return ""


def version_of(text: str) -> int | None:
    """A version in a message; "" is none.

    Raises:
        InvalidArgumentError: it is no integer.
    """
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise InvalidArgumentError(f"no version {text[:64]!r}: versions are integers")
    return int(text)


def _split(body: Buffer) -> _Parts | None:
    """A body's parts; None if it is not made up of a few of the message's fields in their usual form."""
    view = memoryview(body)
    at, end, request_id = 0, len(body), ""
    head: list[Buffer] = []
    raw: list[memoryview] = []
    try:
        while at < end and len(head) + len(raw) < _MAX_FIELDS:
            tag, start, size = body[at], at, body[at + 1]
            at += 2
            if size >= _VARINT_MORE:
                size, at = _varint(body, at - 1)
            at += size
            if tag == _TAG_RAW_INPUT:
                raw.append(view[at - size : at])
            elif tag == _TAG_ID:
                request_id = str(body[at - size : at], "utf-8")
            elif tag in _TAGS:
                head.append(view[start:at])
            else:
                return None
    except (IndexError, UnicodeDecodeError):
        return None
    return _Parts(b"".join(head), request_id, raw) if at == end else None


def _varint(body: Buffer, at: int) -> tuple[int, int]:
    """The number at ``at``, and where the next byte is."""
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < _VARINT_MORE:
            return value, at
    raise IndexError("a varint without an end")


def _split_by_protobuf(body: Buffer) -> _Parts:
    try:
        request = _Request.FromString(bytes(body))
    except DecodeError:
        raise InvalidArgumentError("the body is not a ModelInferRequest") from None
    if len(request.raw_input_contents) > _MAX_FIELDS:
        raise InvalidArgumentError(f"'raw_input_contents' has more than {_MAX_FIELDS} entries")
    raw, request_id = [memoryview(each) for each in request.raw_input_contents], request.id
    request.ClearField("raw_input_contents")
    request.ClearField("id")
    return _Parts(request.SerializeToString(), request_id, raw)


def _read_head(head: bytes, raw: bool) -> _Head:
    """The meaning of a head; ``raw`` says whether raw contents came with it."""
    try:
        request = _Request.FromString(head)
    except DecodeError:
        raise InvalidArgumentError("the body is not a ModelInferRequest") from None
    parameters = _values(request.parameters)
    if _WANTS_FINAL in parameters:
        del parameters[_WANTS_FINAL]
    check_request_parameters(parameters)
    return _Head(
        model=request.model_name,
        version=version_of(request.model_version),
        inputs=_inputs(request.inputs, raw),
        outputs=_outputs(request.outputs),
        parameters=parameters,
    )


_remembered_head = lru_cache(maxsize=_REMEMBERED)(_read_head)


def _values(parameters: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise InvalidArgumentError(f"parameter {key!r}: has no value")
        values[key] = getattr(parameter, choice)
    return values


def _inputs(entries: Any, raw: bool) -> tuple[_Input, ...]:
    if not entries:
        raise InvalidArgumentError("the request has no 'inputs'")
    inputs: dict[str, _Input] = {}
    for entry in entries:
        if entry.name in inputs:
            raise InvalidArgumentError(f"input {entry.name!r} is given twice")
        inputs[entry.name] = _input(entry, raw)
    return tuple(inputs.values())


def _input(entry: Any, raw: bool) -> _Input:
    name, datatype, shape = entry.name, entry.datatype, tuple(entry.shape)
    if datatype not in DATATYPES:
        expected = ", ".join(sorted(DATATYPES))
        raise InvalidArgumentError(f"input {name!r}: unknown datatype {datatype!r}; it must be one of {expected}")
    if len(shape) > MAX_RANK or any(dim < 0 for dim in shape):
        raise InvalidArgumentError(f"input {name!r}: 'shape' must be at most {MAX_RANK} integers of 0 or more")
    check_tensor_parameters(name, _values(entry.parameters))
    if raw and entry.contents.ListFields():  # MLServer's client sends contents without content beside the raw ones
        raise InvalidArgumentError(f"input {name!r}: has 'contents' beside the request's 'raw_input_contents'")
    count = prod(shape)
    if not count:
        check_extent(name, shape)
    return _Input(name, datatype, shape, count, None if raw else _typed(name, datatype, count, entry.contents))


def _typed(name: str, datatype: str, count: int, contents: Any) -> bytes:
    """The wire bytes of typed contents."""
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidArgumentError(f"input {name!r}: {datatype} has no typed contents, send it as raw contents")
    if others := [each.name for each, _ in contents.ListFields() if each.name != field]:
        raise InvalidArgumentError(f"input {name!r}: {datatype} belongs into {field}, not into {', '.join(others)}")
    values = getattr(contents, field)
    if len(values) != count:
        raise InvalidArgumentError(f"input {name!r}: its shape holds {count} elements, {field} has {len(values)}")
    if datatype == "BYTES":
        pieces = (values[at : at + _PIECE] for at in range(0, count, _PIECE))  # other threads get their turn in between
        return b"".join([encode_bytes(piece) for piece in pieces])
    given = np.array(values)
    wire = given.astype(NUMPY_DTYPES[datatype])
    if wire.dtype.kind in "iu" and not np.array_equal(wire, given):  # int_contents hold INT8 and INT16 too
        raise InvalidArgumentError(f"input {name!r}: {field} has a value out of the range of {datatype}")
    return wire.tobytes()


def _outputs(entries: Any) -> tuple[RequestedOutput, ...]:
    outputs: dict[str, RequestedOutput] = {}
    for entry in entries:
        if entry.name in outputs:
            raise InvalidArgumentError(f"output {entry.name!r} is asked for twice")
        parameters = _values(entry.parameters)
        check_tensor_parameters(entry.name, parameters)
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise InvalidArgumentError(f"output {entry.name!r}: 'classification' must be 0 or more, got {classes!r}")
        outputs[entry.name] = RequestedOutput(name=entry.name, classification=classes)
    return tuple(outputs.values())


def _tensors(inputs: tuple[_Input, ...], raw: list[memoryview], *, patient: bool) -> dict[str, Tensor]:
    if not raw:
        return {each.name: Tensor(each.name, each.datatype, each.shape, each.data or b"") for each in inputs}
    if len(raw) != len(inputs):
        raise InvalidArgumentError(f"'raw_input_contents' has {len(raw)} entries for {len(inputs)} inputs")
    tensors: dict[str, Tensor] = {}
    for each, data in zip(inputs, raw, strict=True):
        check_wire(each.name, each.datatype, each.shape, each.elements, data, patient=patient)
        tensors[each.name] = Tensor(each.name, each.datatype, each.shape, data)
    return tensors


def encode_infer(response: InferResponse, *, client_id: str) -> bytes:
    """Encode a ``ModelInferResponse``, every output in raw contents; ``client_id`` "" leaves the id out."""
    return b"".join(_pieces(response, client_id))


def encode_streamed(response: InferResponse, *, client_id: str) -> bytes:
    """Encode a ``ModelStreamInferResponse`` that is the last of its request."""
    pieces = [*_pieces(response, client_id), _FINAL]
    return b"".join((_TAG_STREAM_RESPONSE, _length(sum(map(len, pieces))), *pieces))


def encode_streamed_error(text: str, *, client_id: str) -> bytes:
    """Encode a ``ModelStreamInferResponse`` that is a request's error, and its last."""
    response = _Response(id=client_id)
    response.parameters["triton_final_response"].bool_param = True
    encoded: bytes = _StreamResponse(error_message=text, infer_response=response).SerializeToString()
    return encoded


def _pieces(response: InferResponse, client_id: str) -> list[Buffer]:
    """The fields one after another: protobuf takes them in any order, as long as the outputs' are in their own."""
    pieces: list[Buffer] = [_named(response.model, response.version)]
    if client_id:
        encoded = client_id.encode()
        pieces += (_TAG_RESPONSE_ID, _length(len(encoded)), encoded)
    for tensor in response.outputs.values():
        pieces += (_described(tensor.name, tensor.datatype, tensor.shape), _raw_field(len(tensor.data)), tensor.data)
    return pieces


@lru_cache(maxsize=_REMEMBERED)
def _named(model: str, version: int) -> bytes:
    encoded: bytes = _Response(model_name=model, model_version=str(version)).SerializeToString()
    return encoded


@lru_cache(maxsize=_REMEMBERED)
def _described(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    output = _Response.InferOutputTensor(name=name, datatype=datatype, shape=shape)
    encoded: bytes = _Response(outputs=[output]).SerializeToString()
    return encoded


@lru_cache(maxsize=_REMEMBERED)
def _raw_field(size: int) -> bytes:
    """What comes before a raw output's bytes."""
    return _TAG_RAW_OUTPUT + _length(size)


def _length(size: int) -> bytes:
    """A number as a varint."""
    encoded = bytearray()
    while size >= _VARINT_MORE:
        encoded.append(size & 0x7F | _VARINT_MORE)
        size >>= 7
    encoded.append(size)
    return bytes(encoded)


def _final() -> bytes:
    response = _Response()
    response.parameters["triton_final_response"].bool_param = True
    encoded: bytes = response.SerializeToString()
    return encoded


_FINAL: Final = _final()
