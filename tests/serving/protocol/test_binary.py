import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import DATATYPES, NUMPY_DTYPES, Tensor, encode_bytes
from serving.errors import InvalidArgumentError, ServingError
from serving.protocol.binary import MAX_ID_CHARS, decode_infer, encode_infer
from serving.protocol.messages import InferResponse, RequestedOutput

SHAPES = st.lists(st.integers(0, 4), max_size=3)
TEXTS = st.text(max_size=8)


def body_of(document: Any, tail: bytes = b"") -> tuple[bytes, int]:
    head = json.dumps(document).encode()
    return head + tail, len(head)


@st.composite
def wire_tensors(draw: st.DrawFn) -> Tensor:
    """A tensor of any datatype with legal wire bytes."""
    datatype, shape = draw(st.sampled_from(sorted(DATATYPES))), tuple(draw(SHAPES))
    count = math.prod(shape)
    if datatype == "BYTES":
        elements: list[bytes | str] = list(draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count)))
        data = encode_bytes(elements)
    elif datatype == "BOOL":
        data = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:
        size = count * (2 if datatype == "BF16" else NUMPY_DTYPES[datatype].itemsize)
        data = draw(st.binary(min_size=size, max_size=size))
    return Tensor(draw(TEXTS), datatype, shape, data)


@given(st.lists(wire_tensors(), min_size=1, max_size=4, unique_by=lambda tensor: tensor.name), TEXTS)
def test_binary_inputs_are_slices_of_the_body(tensors: list[Tensor], client_id: str) -> None:
    entries = [
        {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
            "parameters": {"binary_data_size": len(tensor.data)},
        }
        for tensor in tensors
    ]
    body, header_length = body_of({"id": client_id, "inputs": entries}, b"".join(tensor.data for tensor in tensors))
    request = decode_infer("m", 3, body, header_length).request
    assert (request.model, request.version, request.id) == ("m", 3, client_id)
    for expected in tensors:
        found = request.inputs[expected.name]
        assert (found.datatype, found.shape, found.data) == (expected.datatype, expected.shape, expected.data)
        assert isinstance(found.data, memoryview)
        assert found.data.obj is body


@given(st.lists(wire_tensors(), max_size=4, unique_by=lambda tensor: tensor.name), TEXTS)
def test_binary_outputs_follow_the_header_in_order(tensors: list[Tensor], client_id: str) -> None:
    response = InferResponse(model="m", version=7, outputs={tensor.name: tensor for tensor in tensors})
    encoded = encode_infer(response, client_id=client_id, requested=(), binary_default=True)
    document = json.loads(encoded.body[: encoded.header_length])
    assert (document["model_name"], document["model_version"]) == ("m", "7")
    assert document.get("id", "") == client_id
    at = encoded.header_length or len(encoded.body)
    for tensor, entry in zip(tensors, document["outputs"], strict=True):
        size = entry["parameters"]["binary_data_size"]
        assert (entry["name"], entry["datatype"], entry["shape"]) == (tensor.name, tensor.datatype, list(tensor.shape))
        assert encoded.body[at : at + size] == tensor.data
        at += size
    assert at == len(encoded.body)


def test_outputs_that_name_their_form_have_it_and_the_others_the_default() -> None:
    outputs = {name: Tensor(name, "INT8", (1,), b"\x05") for name in "abc"}
    requested = [RequestedOutput(name="a", binary=False), RequestedOutput(name="b", binary=True)]
    encoded = encode_infer(
        InferResponse(model="m", version=1, outputs=outputs), client_id="", requested=requested, binary_default=True
    )
    a, b, c = json.loads(encoded.body[: encoded.header_length])["outputs"]
    assert a["data"] == [5]
    assert b["parameters"] == c["parameters"] == {"binary_data_size": 1}
    assert encoded.body.endswith(b"\x05\x05")


def test_requested_outputs_are_decoded() -> None:
    asked = [
        {"name": "a"},
        {"name": "b", "parameters": {"binary_data": False, "classification": 3}},
        {"name": "c", "parameters": {"binary_data": True, "note": "x"}},
    ]
    inputs = [{"name": "IN", "shape": [1], "datatype": "INT8", "data": [1]}]
    body, _ = body_of({"inputs": inputs, "outputs": asked, "parameters": {"binary_data_output": True}})
    decoded = decode_infer("m", None, body)
    assert decoded.outputs == (
        RequestedOutput(name="a"),
        RequestedOutput(name="b", binary=False, classification=3),
        RequestedOutput(name="c", binary=True),
    )
    assert decoded.binary_default


def test_an_id_is_bounded_because_it_travels_in_a_header() -> None:
    inputs = [{"name": "IN", "shape": [1], "datatype": "INT8", "data": [1]}]
    longest = "é" * MAX_ID_CHARS
    assert decode_infer("m", None, body_of({"id": longest, "inputs": inputs})[0]).request.id == longest
    with pytest.raises(InvalidArgumentError, match="'id'"):
        decode_infer("m", None, body_of({"id": longest + "é", "inputs": inputs})[0])


def test_a_huge_shape_costs_no_memory() -> None:
    for shape in ([2**63 - 1] * 64, [2**40], [2**32, 2**32]):
        entry = {"name": "IN", "shape": shape, "datatype": "FP32"}
        for fields in ({"data": [1]}, {"parameters": {"binary_data_size": 4}}):
            body, header_length = body_of({"inputs": [entry | fields]}, b"" if "data" in fields else bytes(4))
            with pytest.raises(InvalidArgumentError, match="IN"):
                decode_infer("m", None, body, header_length)


@pytest.mark.parametrize("shape", [[0, 2**62], [2**61, 0], [1, 0, 2**40, 2**40], [0, 2**64 - 1]])
def test_a_shape_without_elements_that_no_array_can_have_is_refused(shape: list[int]) -> None:
    forms: list[dict[str, Any]] = [{"data": []}, {"parameters": {"binary_data_size": 0}}]
    for fields in forms:
        body, header_length = body_of({"inputs": [{"name": "IN", "shape": shape, "datatype": "FP32"} | fields]}, b"")
        with pytest.raises(InvalidArgumentError, match=r"input 'IN': shape .* is too large"):
            decode_infer("m", None, body, header_length)


@pytest.mark.parametrize("shape", [[0, 2**59], [0, 3], [3, 0], [0]])
def test_an_empty_tensor_of_any_rank_is_read(shape: list[int]) -> None:
    body, header_length = body_of({"inputs": [{"name": "IN", "shape": shape, "datatype": "FP32", "data": []}]}, b"")
    tensor = decode_infer("m", None, body, header_length).request.inputs["IN"]
    assert tensor.numpy().shape == tuple(shape)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**66), 2**66), st.floats(), TEXTS)
ANYTHING = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
MUTATIONS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(["IN", "a", ""]),
    "shape": st.lists(st.integers(-1, 4), max_size=3),
    "datatype": st.sampled_from([*sorted(DATATYPES), "fp32"]),
    "data": st.one_of(st.lists(st.integers(-300, 300), max_size=4), st.lists(TEXTS, max_size=4)),
    "parameters": st.fixed_dictionaries(
        {},
        optional={"binary_data_size": st.integers(-4, 16), "binary_data": ANYTHING, "shared_memory_region": TEXTS},
    ),
}


@st.composite
def mutated(draw: st.DrawFn, mutations: dict[str, st.SearchStrategy[Any]], good: dict[str, Any]) -> dict[str, Any]:
    """A good object with a few of its keys replaced by something similar, or by anything."""
    keys = draw(st.lists(st.sampled_from(sorted(mutations)), max_size=2, unique=True))
    return good | {key: draw(st.one_of(mutations[key], mutations[key], ANYTHING)) for key in keys}


GOOD = {"name": "IN", "shape": [2], "datatype": "INT16", "data": [1, 2]}
GOOD_BINARY = {"name": "b", "shape": [4], "datatype": "UINT8", "parameters": {"binary_data_size": 4}}
INPUTS = st.tuples(mutated(MUTATIONS, GOOD_BINARY), mutated(MUTATIONS, GOOD)).map(list)
DOCUMENTS = mutated(
    {
        "id": TEXTS,
        "inputs": st.lists(mutated(MUTATIONS, GOOD), max_size=2),
        "parameters": st.dictionaries(st.sampled_from(["sequence_id", "timeout", "triton_x", "y"]), ANYTHING),
        "outputs": st.lists(mutated(MUTATIONS, {"name": "OUT"}), max_size=2),
    },
    {},
)


def decode_or_refuse(body: bytes, header_length: int | None) -> None:
    """Decode; nothing but an error of ours may come out, and what is accepted can be encoded."""
    try:
        decoded = decode_infer("m", None, body, header_length)
    except ServingError as error:
        assert str(error)
        return
    for tensor in decoded.request.inputs.values():
        assert tensor.numpy().shape == tensor.shape
    response = InferResponse(model="m", version=1, outputs=decoded.request.inputs)
    encode_infer(response, client_id=decoded.request.id, requested=(), binary_default=True)


@settings(max_examples=1000, deadline=None)
@given(DOCUMENTS, INPUTS, st.sampled_from([0, 3, 4, 4, 4, 5]), st.booleans())
def test_whatever_the_document_it_is_decoded_or_refused(
    document: dict[str, Any], inputs: list[Any], tail: int, binary: bool
) -> None:
    head = json.dumps({"inputs": inputs} | document).encode()
    decode_or_refuse(head + bytes(tail), len(head) if binary else None)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 200)))
def test_whatever_the_bytes_they_are_decoded_or_refused(body: bytes, header_length: int | None) -> None:
    decode_or_refuse(body, None if header_length is None else min(header_length, len(body)))


@settings(max_examples=1500, deadline=None)
@given(st.data())
def test_a_good_request_with_bytes_changed_is_decoded_or_refused(data: st.DataObject) -> None:
    entry = {"name": "IN", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 10}}
    head = orjson.dumps({"id": "1", "inputs": [entry], "outputs": [{"name": "OUT"}]})
    body = bytearray(head + encode_bytes([b"a", b"b"]))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decode_or_refuse(bytes(body), len(head))


def test_an_unaligned_tensor_is_a_view_all_the_same() -> None:
    head = b'{"inputs":[{"name":"IN","shape":[2],"datatype":"FP64","parameters":{"binary_data_size":16}}]}'
    for padding in range(8):
        padded = head + b" " * padding
        body = padded + np.array([1.5, 2.5]).tobytes()
        tensor = decode_infer("m", None, body, len(padded)).request.inputs["IN"]
        assert tensor.numpy().tolist() == [1.5, 2.5]
