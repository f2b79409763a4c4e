"""PROTOCOL.md's gRPC cases below the clients: messages on the wire, metadata, streams and calls that end early."""

import struct
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import pytest

from serving.protocol.proto import HEALTH, INFERENCE, message
from tests.contract.local_engine import Endpoint

Message = Any
Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")
StreamResponse = message("inference.ModelStreamInferResponse")
PAIR = struct.pack("<2f", 1.5, 2.5)
SLOW: dict[str, Any] = {"model": "slow", "shape": [1, 4], "raw": [struct.pack("<4f", 1, 2, 3, 4)]}


@pytest.fixture(scope="module")
def connected(endpoint: Endpoint) -> Iterator[grpc.Channel]:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(endpoint.grpc_address, options=options) as channel:
        yield channel


@pytest.fixture
def channel(connected: grpc.Channel) -> Iterator[grpc.Channel]:
    """A channel; the server must still live when the case is over."""
    yield connected
    live = message("inference.ServerLiveResponse").FromString(call(connected, "ServerLive", b""))
    assert live.live


def call(channel: grpc.Channel, method: str, body: bytes, *, service: str = INFERENCE, **options: Any) -> bytes:
    answer: bytes = channel.unary_unary(f"/{service}/{method}")(body, timeout=10, **options)
    return answer


def request(
    *,
    model: str = "id_fp32",
    datatype: str = "FP32",
    shape: Iterable[int] = (2,),
    raw: Iterable[bytes] = (),
    **fields: Any,
) -> Message:
    tensor = Request.InferInputTensor(name="IN", datatype=datatype, shape=shape)
    return Request(model_name=model, inputs=[tensor], raw_input_contents=raw, **fields)


def typed(datatype: str, field: str, values: list[Any], **options: Any) -> Message:
    """A request with typed contents."""
    made = request(model=f"id_{datatype.lower()}", datatype=datatype, shape=options.pop("shape", [len(values)]))
    getattr(made.inputs[0].contents, field).extend(values)
    return made


def infer(channel: grpc.Channel, asked: Message) -> Message:
    return Response.FromString(call(channel, "ModelInfer", asked.SerializeToString()))


def assert_refused(channel: grpc.Channel, asked: Message | bytes, code: grpc.StatusCode, *fragments: str) -> None:
    body = asked if isinstance(asked, bytes) else asked.SerializeToString()
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, "ModelInfer", body)
    assert raised.value.code() is code, raised.value.details()
    for fragment in fragments:
        assert fragment in raised.value.details()
    assert "Traceback" not in raised.value.details()


BAD = grpc.StatusCode.INVALID_ARGUMENT


# -- tensors ---------------------------------------------------------------------------------------------------------


def test_an_answer_is_always_in_raw_contents(channel: grpc.Channel) -> None:
    for asked in (request(raw=[PAIR]), typed("FP32", "fp32_contents", [1.5, 2.5])):
        answer = infer(channel, asked)
        assert list(answer.raw_output_contents) == [PAIR]
        (output,) = answer.outputs
        assert (output.name, output.datatype, list(output.shape)) == ("OUT", "FP32", [2])
        assert not output.HasField("contents")
        assert (answer.model_name, answer.model_version, answer.id) == ("id_fp32", "1", "")


@pytest.mark.parametrize(
    ("datatype", "field", "values", "wire"),
    [
        ("BOOL", "bool_contents", [True, False], b"\x01\x00"),
        ("INT8", "int_contents", [-128, 127], b"\x80\x7f"),
        ("INT16", "int_contents", [-(2**15), 2**15 - 1], struct.pack("<2h", -(2**15), 2**15 - 1)),
        ("INT32", "int_contents", [-(2**31), 2**31 - 1], struct.pack("<2i", -(2**31), 2**31 - 1)),
        ("INT64", "int64_contents", [-(2**63), 2**63 - 1], struct.pack("<2q", -(2**63), 2**63 - 1)),
        ("UINT8", "uint_contents", [0, 255], b"\x00\xff"),
        ("UINT16", "uint_contents", [0, 2**16 - 1], struct.pack("<2H", 0, 2**16 - 1)),
        ("UINT32", "uint_contents", [0, 2**32 - 1], struct.pack("<2I", 0, 2**32 - 1)),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], struct.pack("<2Q", 0, 2**64 - 1)),
        ("FP32", "fp32_contents", [float("nan"), -0.0], struct.pack("<2f", float("nan"), -0.0)),
        ("FP64", "fp64_contents", [float("inf"), 5e-324], struct.pack("<2d", float("inf"), 5e-324)),
        ("BYTES", "bytes_contents", [b"", b"\xff\x00"], b"\x00\x00\x00\x00\x02\x00\x00\x00\xff\x00"),
    ],
)
def test_typed_contents_of_every_datatype(
    channel: grpc.Channel, datatype: str, field: str, values: list[Any], wire: bytes
) -> None:
    assert list(infer(channel, typed(datatype, field, values)).raw_output_contents) == [wire]
    assert list(infer(channel, typed(datatype, field, [])).raw_output_contents) == [b""]


def test_raw_and_typed_contents_in_one_request_are_refused(channel: grpc.Channel) -> None:
    both = typed("FP32", "fp32_contents", [1.5, 2.5])
    both.raw_input_contents.append(PAIR)
    assert_refused(channel, both, BAD, "IN", "raw_input_contents")


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_precision_comes_raw_only(channel: grpc.Channel, datatype: str) -> None:
    assert_refused(channel, typed(datatype, "fp32_contents", [1, 2]), BAD, datatype, "raw")


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("INT8", "int_contents", [128, 0]),
        ("INT16", "int_contents", [2**15, 0]),
        ("UINT8", "uint_contents", [256, 0]),
        ("UINT16", "uint_contents", [2**16, 0]),
        ("FP32", "fp64_contents", [1, 2]),
        ("INT64", "int_contents", [1, 2]),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(
    channel: grpc.Channel, datatype: str, field: str, values: list[Any]
) -> None:
    assert_refused(channel, typed(datatype, field, values), BAD, "IN", datatype)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 2.0, 3.0]])
def test_another_number_of_typed_elements_is_refused(channel: grpc.Channel, values: list[float]) -> None:
    assert_refused(channel, typed("FP32", "fp32_contents", values, shape=[2]), BAD, "IN", "2")


@pytest.mark.parametrize("raw", [[PAIR[:6]], [PAIR + b"xx"], [b""], [PAIR, PAIR]])
def test_raw_contents_of_another_size_or_number_are_refused(channel: grpc.Channel, raw: list[bytes]) -> None:
    assert_refused(channel, request(raw=raw), BAD)


def test_a_bool_byte_other_than_0_and_1_is_refused(channel: grpc.Channel) -> None:
    assert_refused(channel, request(model="id_bool", datatype="BOOL", raw=[b"\x02\x00"]), BAD, "BOOL")


@pytest.mark.parametrize(
    "tail", [b"\x01\x00\x00\x00a", b"\x05\x00\x00\x00a\x00\x00\x00\x00", b"\x00" * 12, b"\x00" * 6]
)
def test_bytes_whose_lengths_do_not_add_up_are_refused(channel: grpc.Channel, tail: bytes) -> None:
    assert_refused(channel, request(model="id_bytes", datatype="BYTES", raw=[tail]), BAD, "BYTES")


# -- the message -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"\xff", b"\x0a", b"\x0a\xff", b"\x1a\x01\xff", b"\x0a\x05abc", b"\x80" * 50_000])
def test_a_body_that_is_no_message_is_refused(channel: grpc.Channel, body: bytes) -> None:
    assert_refused(channel, body, BAD, "ModelInferRequest")


def test_an_empty_message_is_refused(channel: grpc.Channel) -> None:
    assert_refused(channel, b"", BAD, "inputs")


def test_fields_that_are_unknown_here_or_in_another_order_do_not_matter(channel: grpc.Channel) -> None:
    whole = request(raw=[PAIR], id="mine").SerializeToString()
    late_name = Request(raw_input_contents=[PAIR], id="mine").SerializeToString()
    late_name += request().SerializeToString()
    for body in (whole + b"\x7a\x01x", whole + b"\x78\x01", b"\xfa\x3e\x01x" + whole, late_name):
        answer = Response.FromString(call(channel, "ModelInfer", body))
        assert (answer.id, list(answer.raw_output_contents)) == ("mine", [PAIR])


def test_a_message_of_a_million_fields_is_refused_at_once(channel: grpc.Channel) -> None:
    started = time.monotonic()
    assert_refused(channel, b"\x3a\x00" * 1_000_000 + request().SerializeToString(), BAD, "raw_input_contents")
    assert_refused(channel, b"\x2a\x00" * 1_000_000, BAD, "datatype")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("triton_x", {"int64_param": 1}),
        ("sequence_id", {"bool_param": True}),
        ("sequence_id", {"int64_param": -1}),
        ("sequence_start", {"int64_param": 1}),
        ("priority", {"string_param": "high"}),
        ("timeout", {"int64_param": -1}),
        ("timeout", {"double_param": 0.5}),
        ("x", {}),
    ],
    ids=repr,
)
def test_a_wrong_parameter_is_refused_by_name(channel: grpc.Channel, key: str, value: dict[str, Any]) -> None:
    parameter = message("inference.InferParameter")(**value)
    assert_refused(channel, request(raw=[PAIR], parameters={key: parameter}), BAD, repr(key))


def test_a_wrong_classification_is_refused(channel: grpc.Channel) -> None:
    for value in ({"int64_param": -1}, {"string_param": "2"}, {"bool_param": True}):
        output = Request.InferRequestedOutputTensor(name="OUT")
        output.parameters["classification"].CopyFrom(message("inference.InferParameter")(**value))
        assert_refused(channel, request(raw=[PAIR], outputs=[output]), BAD, "classification")


def test_a_long_name_in_an_error_does_not_outgrow_the_client_s_headers(channel: grpc.Channel) -> None:
    for letter in "xé\n":
        assert_refused(channel, request(model=letter * 100_000, raw=[PAIR]), grpc.StatusCode.NOT_FOUND, "unknown model")
    assert_refused(channel, request(raw=[PAIR], id="x" * 513), BAD, "id")


def test_what_is_not_offered_is_unimplemented(channel: grpc.Channel) -> None:
    for method in ("SystemSharedMemoryStatus", "CudaSharedMemoryRegister", "TraceSetting", "LogSettings", "Nonsense"):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, method, b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_metadata_request_that_is_no_message_is_refused(channel: grpc.Channel) -> None:
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex"):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, method, b"\xff")
        assert raised.value.code() is BAD


# -- metadata ----------------------------------------------------------------------------------------------------------


def named_by(channel: grpc.Channel, asked: Message, metadata: tuple[tuple[str, str], ...] = ()) -> tuple[Any, str]:
    """The status of a call, and the request's id in its trailing metadata."""
    try:
        _, ended = channel.unary_unary(f"/{INFERENCE}/ModelInfer").with_call(
            asked.SerializeToString(), timeout=10, metadata=metadata
        )
    except grpc.RpcError as error:
        ended = error
    return ended.code(), dict(ended.trailing_metadata())["x-understudy-request-id"]


def test_every_answer_names_its_request_in_the_trailing_metadata(channel: grpc.Channel) -> None:
    good, first = named_by(channel, request(raw=[PAIR]))
    _, second = named_by(channel, request(raw=[PAIR]))
    assert good is grpc.StatusCode.OK
    assert first != second
    assert named_by(channel, request(raw=[PAIR], id="mine")) == (grpc.StatusCode.OK, "mine")
    assert named_by(channel, request(raw=[PAIR], id='é%\n" x'))[1] == '%C3%A9%25%0A"%20x'
    assert named_by(channel, request(model="fixed", raw=[PAIR], id="mine")) == (BAD, "mine")
    refused, ours = named_by(channel, request(raw=[], id="mine"))
    assert refused is BAD
    assert ours
    assert named_by(channel, request(model="nope", raw=[PAIR]))[0] is grpc.StatusCode.NOT_FOUND


def test_an_arm_in_the_metadata_is_checked(channel: grpc.Channel) -> None:
    key = ("x-understudy-key", "camera-7")
    assert named_by(channel, request(raw=[PAIR]), (key, ("x-understudy-version", "baseline")))[0] is grpc.StatusCode.OK
    assert named_by(channel, request(raw=[PAIR]), (("x-understudy-version", "2"),))[0] is BAD
    pinned = request(raw=[PAIR], model_version="1")
    assert named_by(channel, pinned, (("x-understudy-version", "baseline"),))[0] is BAD


# -- streams -----------------------------------------------------------------------------------------------------------


def streamed(channel: grpc.Channel, asked: Iterable[Message | bytes]) -> list[Message]:
    bodies = (each if isinstance(each, bytes) else each.SerializeToString() for each in asked)
    answers = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")(bodies, timeout=20)
    return [StreamResponse.FromString(answer) for answer in answers]


def test_answers_leave_a_stream_in_the_order_of_its_requests(channel: grpc.Channel) -> None:
    slow_first = [request(**SLOW, id="0"), *(request(raw=[struct.pack("<2f", n, n)], id=str(n)) for n in range(1, 500))]
    answers = streamed(channel, slow_first)
    assert [answer.infer_response.id for answer in answers] == [str(number) for number in range(500)]
    assert answers[7].infer_response.raw_output_contents[0] == struct.pack("<2f", 7, 7)
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)


def test_requests_of_one_stream_run_side_by_side(channel: grpc.Channel) -> None:
    started = time.monotonic()
    streamed(channel, [request(**SLOW), request(model="raises", shape=[1, 4], raw=[bytes(16)])])
    assert time.monotonic() - started < 0.9


def test_an_error_in_a_stream_has_its_id_and_the_stream_goes_on(channel: grpc.Channel) -> None:
    wants_final = {"triton_enable_empty_final_response": message("inference.InferParameter")(bool_param=True)}
    asked = [
        request(raw=[PAIR], id="1", parameters=wants_final),
        request(raw=[PAIR[:6]], id="2"),
        request(model="nope", raw=[PAIR], id="3"),
        b"\xff",
        request(model="raises", shape=[1, 4], raw=[b"\x01" * 16], id="5"),
        request(raw=[PAIR], id="6"),
    ]
    answers = streamed(channel, asked)
    assert [answer.infer_response.id for answer in answers] == ["1", "2", "3", "", "5", "6"]
    errors = [answer.error_message for answer in answers]
    assert errors[0] == errors[5] == ""
    assert "8 bytes" in errors[1]
    assert "nope" in errors[2]
    assert "ModelInferRequest" in errors[3]
    assert "always raises" in errors[4]
    assert all(answer.infer_response.parameters["triton_final_response"].bool_param for answer in answers)
    assert list(answers[5].infer_response.raw_output_contents) == [PAIR]


def test_a_stream_without_a_request_ends_well(channel: grpc.Channel) -> None:
    assert streamed(channel, []) == []


# -- calls that end early ----------------------------------------------------------------------------------------------


def test_calls_that_are_cancelled_disturb_nobody(channel: grpc.Channel) -> None:
    slow = request(**SLOW).SerializeToString()
    unary = channel.unary_unary(f"/{INFERENCE}/ModelInfer").future(slow, timeout=10)
    gate = threading.Event()

    def bodies() -> Iterator[bytes]:
        yield slow
        gate.wait(10)

    stream = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")(bodies(), timeout=10)
    time.sleep(0.1)
    unary.cancel()
    stream.cancel()
    gate.set()
    assert list(infer(channel, request(raw=[PAIR])).raw_output_contents) == [PAIR]
    time.sleep(1.1)  # the model is done with what was cancelled
    assert infer(channel, request(**SLOW)).raw_output_contents


def test_a_deadline_ends_a_call_and_nothing_else(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"/{INFERENCE}/ModelInfer")(request(**SLOW).SerializeToString(), timeout=0.1)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert list(infer(channel, request(raw=[PAIR])).raw_output_contents) == [PAIR]


# -- health ------------------------------------------------------------------------------------------------------------


def health(body: bytes) -> str:
    answer = message("grpc.health.v1.HealthCheckResponse").FromString(body)
    return str(answer.DESCRIPTOR.enum_types_by_name["ServingStatus"].values_by_number[answer.status].name)


def test_grpc_s_own_health_check(channel: grpc.Channel) -> None:
    asked = message("grpc.health.v1.HealthCheckRequest")
    for service in ("", INFERENCE, HEALTH):
        body = asked(service=service).SerializeToString()
        assert health(call(channel, "Check", body, service=HEALTH)) == "SERVING"
    with pytest.raises(grpc.RpcError) as raised:
        call(channel, "Check", asked(service="nope").SerializeToString(), service=HEALTH)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_can_be_watched(channel: grpc.Channel) -> None:
    asked = message("grpc.health.v1.HealthCheckRequest")
    for service, expected in (("", "SERVING"), ("nope", "SERVICE_UNKNOWN")):
        watch = channel.unary_stream(f"/{HEALTH}/Watch")(asked(service=service).SerializeToString(), timeout=10)
        assert health(next(watch)) == expected
        watch.cancel()
