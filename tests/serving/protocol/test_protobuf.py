import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import Tensor, from_numpy
from serving.errors import InvalidArgumentError, UnsupportedError
from serving.protocol.messages import InferResponse, RequestedOutput
from serving.protocol.proto import message
from serving.protocol.protobuf import (
    decode_infer,
    encode_infer,
    encode_streamed,
    encode_streamed_error,
    request_id_of,
    version_of,
)

Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")
StreamResponse = message("inference.ModelStreamInferResponse")
PAIR = struct.pack("<2f", 1.5, 2.5)
NAMES = st.text(max_size=6)


def request(**fields: Any) -> Any:
    tensor = Request.InferInputTensor(name="IN", datatype="FP32", shape=[2])
    return Request(**{"model_name": "m", "inputs": [tensor], "raw_input_contents": [PAIR]} | fields)


def answer(*tensors: Tensor) -> InferResponse:
    return InferResponse(model="m", version=3, outputs={tensor.name: tensor for tensor in tensors})


def test_a_request_with_all_that_it_can_have() -> None:
    made = request(model_version="2", id="é", outputs=[Request.InferRequestedOutputTensor(name="OUT")])
    made.parameters["sequence_id"].int64_param = 7
    made.outputs[0].parameters["classification"].int64_param = 2
    decoded = decode_infer(made.SerializeToString())
    asked = decoded.request
    assert (asked.model, asked.version, asked.id, asked.parameters) == ("m", 2, "é", {"sequence_id": 7})
    assert decoded.outputs == (RequestedOutput(name="OUT", classification=2),)
    tensor = asked.inputs["IN"]
    assert (tensor.datatype, tensor.shape, bytes(tensor.data)) == ("FP32", (2,), PAIR)


def test_tensors_are_views_into_the_body() -> None:
    large = bytes(400_000)
    body = request(
        inputs=[Request.InferInputTensor(name="IN", datatype="UINT8", shape=[400_000])], raw_input_contents=[large]
    ).SerializeToString()
    data = decode_infer(body).request.inputs["IN"].data
    assert isinstance(data, memoryview)
    assert data.obj is body
    assert data == large


def test_a_head_that_was_seen_before_gives_the_new_id_and_tensors() -> None:
    for number in range(3):
        data = struct.pack("<2f", number, number)
        asked = decode_infer(request(id=str(number), raw_input_contents=[data]).SerializeToString()).request
        assert (asked.id, bytes(asked.inputs["IN"].data)) == (str(number), data)


@given(
    st.fixed_dictionaries(
        {"model_name": NAMES, "id": NAMES, "model_version": st.sampled_from(["", "1", "77"])},
    ),
    st.lists(st.tuples(NAMES, st.binary(max_size=300)), min_size=1, max_size=4, unique_by=lambda pair: pair[0]),
    st.lists(NAMES, max_size=3, unique=True),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_protobuf_writes_is_read_as_protobuf_reads_it(
    fields: dict[str, str], tensors: list[tuple[str, bytes]], outputs: list[str], backwards: bool
) -> None:
    made = Request(**fields)
    for name, data in tensors:
        made.inputs.add(name=name, datatype="UINT8", shape=[len(data)])
        made.raw_input_contents.append(data)
    for name in outputs:
        made.outputs.add(name=name)
    body = made.SerializeToString()
    if backwards:  # the raw contents first, and a field of a later protocol
        head = Request.FromString(body)
        head.ClearField("raw_input_contents")
        body = Request(raw_input_contents=[data for _, data in tensors]).SerializeToString() + b"\x7a\x01x"
        body += head.SerializeToString()
    decoded = decode_infer(body)
    assert (decoded.request.model, decoded.request.id) == (fields["model_name"], fields["id"])
    assert decoded.request.version == version_of(fields["model_version"])
    assert {name: bytes(each.data) for name, each in decoded.request.inputs.items()} == dict(tensors)
    assert [output.name for output in decoded.outputs] == outputs


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_body_raises_anything_but_a_refusal(body: bytes) -> None:
    for candidate in (body, request().SerializeToString() + body, body + request().SerializeToString()):
        request_id_of(candidate)
        with contextlib.suppress(InvalidArgumentError, UnsupportedError):
            decode_infer(candidate)


@given(NAMES, st.lists(st.tuples(NAMES, st.binary(max_size=40_000)), max_size=4, unique_by=lambda pair: pair[0]))
@settings(max_examples=100, deadline=None)
def test_protobuf_reads_what_was_encoded(client_id: str, tensors: list[tuple[str, bytes]]) -> None:
    given_answer = answer(*(Tensor(name, "UINT8", (1, len(data)), data) for name, data in tensors))
    plain = Response.FromString(encode_infer(given_answer, client_id=client_id))
    streamed = StreamResponse.FromString(encode_streamed(given_answer, client_id=client_id))
    assert streamed.error_message == ""
    assert streamed.infer_response.parameters["triton_final_response"].bool_param
    streamed.infer_response.parameters.clear()
    assert streamed.infer_response == plain
    assert (plain.model_name, plain.model_version, plain.id) == ("m", "3", client_id)
    assert [(each.name, each.datatype, list(each.shape)) for each in plain.outputs] == [
        (name, "UINT8", [1, len(data)]) for name, data in tensors
    ]
    assert list(plain.raw_output_contents) == [data for _, data in tensors]


def test_an_image_s_size_takes_more_than_one_byte_of_length() -> None:
    image = from_numpy("OUT", "FP32", np.arange(150_528, dtype=np.float32))
    encoded = Response.FromString(encode_infer(answer(image), client_id=""))
    assert encoded.raw_output_contents[0] == image.data


def test_a_streamed_error_has_id_and_is_final() -> None:
    error = StreamResponse.FromString(encode_streamed_error("no", client_id="7"))
    assert (error.error_message, error.infer_response.id) == ("no", "7")
    assert error.infer_response.parameters["triton_final_response"].bool_param


@pytest.mark.parametrize("version", ["v1", "1.0", "-1", "٣", " 1", "9" * 19])
def test_a_version_is_an_integer(version: str) -> None:
    with pytest.raises(InvalidArgumentError, match="version"):
        version_of(version)


@pytest.mark.parametrize("raw", [True, False])
def test_a_shape_without_elements_that_no_array_can_have_is_refused(raw: bool) -> None:
    asked = request(raw_input_contents=[b""] if raw else [])
    del asked.inputs[:]
    asked.inputs.add(name="IN", datatype="FP32", shape=[0, 2**62])
    with pytest.raises(InvalidArgumentError, match=r"input 'IN': shape .* is too large"):
        decode_infer(asked.SerializeToString())
