"""Whatever is sent over gRPC: a code that blames the right side, on every method, and a server that lives."""

import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.protocol.proto import HEALTH, INFERENCE, message
from tests.contract.local_engine import Endpoint

FEW = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ALLOWED = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
METHODS = (
    "ServerLive",
    "ServerReady",
    "ServerMetadata",
    "ModelReady",
    "ModelMetadata",
    "ModelConfig",
    "ModelStatistics",
    "ModelInfer",
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "Nothing",
)
Request = message("inference.ModelInferRequest")
StreamResponse = message("inference.ModelStreamInferResponse")


@pytest.fixture(scope="module")
def channel(endpoint: Endpoint) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(endpoint.grpc_address) as connected:
        yield connected


def ask(channel: grpc.Channel, method: str, body: bytes, *, service: str = INFERENCE) -> bytes | None:
    """The answer; None for a refusal, whose code and words are checked."""
    try:
        answer: bytes = channel.unary_unary(f"/{service}/{method}")(body, timeout=20)
    except grpc.RpcError as error:
        assert error.code() in ALLOWED, (error.code(), error.details())
        assert error.details()
        assert "Traceback" not in error.details()
        return None
    return answer


names = st.one_of(
    st.sampled_from(["id_fp32", "id_bytes", "id_int64", "id_bool", "simple", "nope", "IN", ""]), st.text(max_size=9)
)
sizes = st.one_of(st.sampled_from([0, 1, 2, -1, 2**62, -(2**63), 2**63 - 1]), st.integers(0, 4))
numbers = st.lists(st.one_of(st.sampled_from([0, 1, -1, 127, 128, 2**31 - 1, -(2**31)]), st.integers(0, 9)), max_size=3)
raw_contents = st.one_of(
    st.sampled_from([b"", struct.pack("<2f", 1, 2), b"\x01\0\0\0a\0\0\0\0"]), st.binary(max_size=20)
)


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, Any]:
    kind = message("inference.InferParameter")
    keys = st.sampled_from(
        ["sequence_id", "priority", "timeout", "binary_data_output", "triton_x", "classification", "", "é"]
    )
    choices = st.one_of(
        st.builds(lambda value: kind(bool_param=value), st.booleans()),
        st.builds(lambda value: kind(int64_param=value), sizes),
        st.builds(lambda value: kind(string_param=value), st.text(max_size=5)),
        st.builds(lambda value: kind(double_param=value), st.floats()),
        st.builds(kind),
    )
    return draw(st.dictionaries(keys, choices, max_size=2))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A body that is near that of a valid request."""
    asked = Request(model_name=draw(names), model_version=draw(st.sampled_from(["", "1", "9", "x", "-1", "٣"])))
    asked.id = draw(st.sampled_from(["", "a", "é", "x" * 600]))
    for key, value in draw(parameters()).items():
        asked.parameters[key].CopyFrom(value)
    for _ in range(draw(st.sampled_from([1, 1, 1, 0, 2]))):
        entry = asked.inputs.add(name=draw(st.sampled_from(["IN", "IN", "INPUT0", "x"])))
        entry.datatype = draw(st.sampled_from(["FP32", "FP32", "INT64", "BYTES", "BOOL", "FP16", "fp32", ""]))
        entry.shape.extend(draw(st.lists(sizes, max_size=2)))
        for key, value in draw(parameters()).items():
            entry.parameters[key].CopyFrom(value)
        if draw(st.booleans()):
            getattr(entry.contents, draw(st.sampled_from(["int_contents", "int64_contents"]))).extend(draw(numbers))
        if draw(st.booleans()):
            entry.contents.fp32_contents.extend(draw(numbers))
    asked.raw_input_contents.extend(draw(st.lists(raw_contents, max_size=2)))
    if draw(st.booleans()):
        asked.outputs.add(name=draw(st.sampled_from(["OUT", "OUTPUT0", ""])))
    body: bytes = asked.SerializeToString()
    if body and draw(st.integers(0, 2)) == 0:  # damaged
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=4)) + body[at + draw(st.integers(0, 4)) :]
    return body


@settings(FEW, max_examples=150)
@given(body=st.one_of(requests(), requests(), st.binary(max_size=50)))
def test_any_infer_request(channel: grpc.Channel, body: bytes) -> None:
    ask(channel, "ModelInfer", body)
    assert ask(channel, "ServerLive", b"") == b"\x08\x01"


@FEW
@given(method=st.sampled_from(METHODS), body=st.one_of(requests(), st.binary(max_size=30)))
def test_any_method(channel: grpc.Channel, method: str, body: bytes) -> None:
    ask(channel, method, body)
    ask(channel, "Check", body, service=HEALTH)
    assert ask(channel, "ServerLive", b"") == b"\x08\x01"


@settings(FEW, max_examples=30)
@given(bodies=st.lists(st.one_of(requests(), st.binary(max_size=30)), max_size=6))
def test_any_stream_has_an_answer_for_each_request_and_goes_on(channel: grpc.Channel, bodies: list[bytes]) -> None:
    good = Request(model_name="id_fp32", id="last", raw_input_contents=[bytes(8)])
    good.inputs.add(name="IN", datatype="FP32", shape=[2])
    call = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")(
        iter([*bodies, good.SerializeToString()]), timeout=20
    )
    answers = [StreamResponse.FromString(each) for each in call]
    assert len(answers) == len(bodies) + 1
    assert answers[-1].infer_response.id == "last"
    assert not answers[-1].error_message
    for answer in answers:
        assert "internal" not in answer.error_message
