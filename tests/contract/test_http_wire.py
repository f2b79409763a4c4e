"""PROTOCOL.md's cases below the clients: bodies, headers and bytes on the socket."""

import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.local_engine import Endpoint

LENGTH = "Inference-Header-Content-Length"
BINARY = {"binary_data_output": True}


@pytest.fixture(scope="module")
def connected(endpoint: Endpoint) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=endpoint.url, headers={"Accept-Encoding": "identity"}) as client:
        yield client


@pytest.fixture
def http(connected: httpx.Client) -> Iterator[httpx.Client]:
    """A plain HTTP client; the server must still live when the case is over."""
    yield connected
    assert connected.get("/v2/health/live").status_code == 200


def entry(**fields: Any) -> dict[str, Any]:
    """An entry of ``inputs``; by default two FP32 elements."""
    merged = {"name": "IN", "shape": [2], "datatype": "FP32", "data": [1.5, 2.5]} | fields
    return {key: value for key, value in merged.items() if value is not ...}


def binary_entry(size: Any = 8, **fields: Any) -> dict[str, Any]:
    return entry(data=..., parameters={"binary_data_size": size}, **fields)


def post(
    http: httpx.Client, document: Any, tail: bytes | None = None, *, model: str = "id_fp32", **headers: str
) -> httpx.Response:
    """POST an infer request: ``document`` as JSON, or as it is if it is bytes, then the ``tail``."""
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    if tail is not None:
        headers = {LENGTH: str(len(head))} | headers
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return http.post(f"/v2/models/{model}/infer", content=head + (tail or b""), headers=named)


def assert_error(response: httpx.Response, status: int, *fragments: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    for fragment in fragments:
        assert fragment in message
    assert "Traceback" not in message


PAIR = struct.pack("<2f", 1.5, 2.5)


# -- the form of answers ------------------------------------------------------------------------------------------


def test_health_has_a_body(http: httpx.Client) -> None:
    assert http.get("/v2/health/live").json() == {"live": True}
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2/models/simple/ready").json() == {"name": "simple", "ready": True}


def test_an_unknown_model_s_readiness_is_a_400(http: httpx.Client) -> None:
    assert_error(http.get("/v2/models/nope/ready"), 400, "nope")


def test_a_binary_answer_is_json_of_the_said_length_then_the_tensors(http: httpx.Client) -> None:
    response = post(http, {"parameters": BINARY, "inputs": [binary_entry()]}, PAIR)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers[LENGTH])
    document = json.loads(response.content[:length])
    assert document["outputs"] == [
        {"name": "OUT", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    ]
    assert response.content[length:] == PAIR


def test_a_json_answer_has_no_length_header(http: httpx.Client) -> None:
    asked = [{"name": "OUT", "parameters": {"binary_data": False}}]
    for document in ({"inputs": [entry()]}, {"inputs": [entry()], "parameters": BINARY, "outputs": asked}):
        response = post(http, document)
        assert LENGTH not in response.headers
        assert response.headers["content-type"] == "application/json"
        assert response.json()["outputs"] == [{"name": "OUT", "datatype": "FP32", "shape": [2], "data": [1.5, 2.5]}]


def test_an_output_s_own_form_overrides_the_request_s(http: httpx.Client) -> None:
    asked = [{"name": "OUT", "parameters": {"binary_data": True}}]
    response = post(http, {"inputs": [entry()], "parameters": {"binary_data_output": False}, "outputs": asked})
    assert response.content.endswith(PAIR)
    unsaid = post(http, {"inputs": [entry()], "parameters": BINARY, "outputs": [{"name": "OUT"}]})
    assert unsaid.content.endswith(PAIR)


def test_null_for_an_optional_key_means_absent(http: httpx.Client) -> None:
    document = {"id": None, "parameters": None, "outputs": None, "inputs": [entry(parameters=None)]}
    response = post(http, document)
    assert response.status_code == 200
    assert "id" not in response.json()
    mixed = post(http, {"inputs": [entry(data=None, parameters={"binary_data_size": 8})]}, PAIR)
    assert mixed.status_code == 200


def test_the_content_type_is_ignored(http: httpx.Client) -> None:
    assert post(http, {"inputs": [entry()]}, Content_Type="text/nonsense").status_code == 200


def test_json_data_may_be_nested(http: httpx.Client) -> None:
    nested = [[[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]]]
    for data in (nested, nested[0][0] + nested[0][1] + nested[0][2]):
        response = post(http, {"inputs": [entry(shape=[1, 3, 4], data=data)]}, model="fixed")
        assert response.json()["outputs"][0]["data"] == [float(number) for number in range(1, 13)]


def test_bare_nan_and_infinity_go_in_and_come_out(http: httpx.Client) -> None:
    response = post(http, b'{"inputs":[{"name":"IN","shape":[3],"datatype":"FP32","data":[NaN,Infinity,-Infinity]}]}')
    assert b"[NaN, Infinity, -Infinity]" in response.content


def test_integers_of_64_bits_are_exact_in_json(http: httpx.Client) -> None:
    for datatype, values in (("INT64", [-(2**63), 2**63 - 1]), ("UINT64", [0, 2**64 - 1])):
        response = post(http, {"inputs": [entry(datatype=datatype, data=values)]}, model=f"id_{datatype.lower()}")
        assert response.json()["outputs"][0]["data"] == values


# -- the request's id, key and version -----------------------------------------------------------------------------


def test_every_answer_has_a_request_id(http: httpx.Client) -> None:
    first, second = (post(http, {"inputs": [entry()]}).headers["x-understudy-request-id"] for _ in range(2))
    assert first != second
    assert post(http, {"id": "mine", "inputs": [entry()]}).headers["x-understudy-request-id"] == "mine"
    assert post(http, {"id": "mine", "inputs": []}).headers["x-understudy-request-id"]
    assert http.get("/v2").headers["x-understudy-request-id"]


def test_an_id_that_no_header_can_hold_is_percent_encoded_there(http: httpx.Client) -> None:
    response = post(http, {"id": 'é%\n" x', "inputs": [entry()]})
    assert response.json()["id"] == 'é%\n" x'
    assert response.headers["x-understudy-request-id"] == '%C3%A9%25%0A"%20x'


def test_an_arm_other_than_the_two_is_refused(http: httpx.Client) -> None:
    assert post(http, {"inputs": [entry()]}, x_understudy_version="baseline").status_code == 200
    assert_error(post(http, {"inputs": [entry()]}, x_understudy_version="2"), 400, "x-understudy-version")


def test_an_arm_and_a_version_exclude_each_other(http: httpx.Client) -> None:
    body = json.dumps({"inputs": [entry()]})
    headers = {"x-understudy-version": "baseline"}
    assert_error(http.post("/v2/models/id_fp32/versions/1/infer", content=body, headers=headers), 400, "exclude")


@pytest.mark.parametrize("value", ["é".encode(), b"7"])
def test_a_routing_key_in_the_header_is_accepted(http: httpx.Client, value: bytes) -> None:
    body = json.dumps({"inputs": [entry()]})
    assert http.post("/v2/models/id_fp32/infer", content=body, headers={b"x-understudy-key": value}).status_code == 200


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"", b"{bad", b"[]", b"null", b"3", b'"x"', b"{}x", b"\xff", b'{"a":NaN', b"{}{}"])
def test_a_body_that_is_no_json_object_is_refused(http: httpx.Client, body: bytes) -> None:
    assert_error(post(http, body), 400)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"inputs": None},
        {"inputs": []},
        {"inputs": {}},
        {"inputs": "IN"},
        {"inputs": ["IN"]},
        {"inputs": [{}]},
        {"inputs": [entry(name=...)]},
        {"inputs": [entry(name=3)]},
        {"inputs": [entry(), entry()]},
        {"inputs": [entry(name="other")]},
        {"inputs": [entry()], "id": 3},
        {"inputs": [entry()], "id": "x" * 513},
        {"inputs": [entry()], "parameters": []},
        {"inputs": [entry()], "outputs": {}},
        {"inputs": [entry()], "outputs": 0},
        {"inputs": [entry()], "outputs": ["OUT"]},
        {"inputs": [entry()], "outputs": [{"name": "OUT", "parameters": {"binary_data": 1}}]},
        {"inputs": [entry()], "outputs": [{"name": "OUT", "parameters": {"classification": -1}}]},
        {"inputs": [entry()], "outputs": [{"name": "OUT", "parameters": {"classification": "2"}}]},
        {"inputs": [entry()], "outputs": [{"name": "OUT", "parameters": {"classification": True}}]},
    ],
    ids=repr,
)
def test_a_malformed_request_is_refused(http: httpx.Client, document: Any) -> None:
    assert_error(post(http, document), 400)


@pytest.mark.parametrize(
    "parameters",
    [
        {"x": {}},
        {"x": []},
        {"x": None},
        {"triton_x": 1},
        {"sequence_id": True},
        {"sequence_id": -1},
        {"sequence_id": 0.5},
        {"sequence_start": 1},
        {"priority": "high"},
        {"timeout": -1},
        {"timeout": 0.5},
        {"timeout": "1"},
        {"binary_data_output": 1},
    ],
    ids=repr,
)
def test_a_wrong_parameter_is_refused_by_name(http: httpx.Client, parameters: dict[str, Any]) -> None:
    response = post(http, {"inputs": [entry()], "parameters": parameters})
    assert_error(response, 400, repr(next(iter(parameters))))


@pytest.mark.parametrize("datatype", ["fp32", "FP8", "", 3, None, ...])
def test_an_unknown_datatype_is_refused(http: httpx.Client, datatype: Any) -> None:
    assert_error(post(http, {"inputs": [entry(datatype=datatype)]}), 400, "IN", "datatype")


@pytest.mark.parametrize(
    "shape",
    [..., None, 2, "2", [True, 2], [2.0], ["2"], [-1], [-2], [3], [], [1, 2], [2**63, 2], [2**62] * 64, [1] * 65, [0]],
    ids=repr,
)
def test_a_wrong_shape_is_refused(http: httpx.Client, shape: Any) -> None:
    assert_error(post(http, {"inputs": [entry(shape=shape)]}), 400)
    assert_error(post(http, {"inputs": [binary_entry(shape=shape)]}, PAIR), 400)


@pytest.mark.parametrize("tail", [b"", PAIR[:6], PAIR + b"xx"])
def test_binary_data_of_another_length_is_refused(http: httpx.Client, tail: bytes) -> None:
    assert_error(post(http, {"inputs": [binary_entry()]}, tail), 400)


@pytest.mark.parametrize(("size", "tail"), [(4, PAIR[:4]), (12, PAIR + PAIR[:4]), (2**70, PAIR)])
def test_a_binary_size_that_disagrees_with_the_shape_is_refused(http: httpx.Client, size: int, tail: bytes) -> None:
    assert_error(post(http, {"inputs": [binary_entry(size)]}, tail), 400)


@pytest.mark.parametrize("size", [-8, "8", 8.0, True, [], {}])
def test_a_binary_size_that_is_no_size_is_refused(http: httpx.Client, size: Any) -> None:
    assert_error(post(http, {"inputs": [binary_entry(size)]}, PAIR), 400)


def test_data_in_both_forms_or_in_none_is_refused(http: httpx.Client) -> None:
    assert_error(post(http, {"inputs": [entry(parameters={"binary_data_size": 8})]}, PAIR), 400, "IN", "either")
    assert_error(post(http, {"inputs": [entry(data=...)]}), 400, "IN", "either")


@pytest.mark.parametrize("length", ["-1", "+5", "x", "1.0", "9999999", "9" * 5000, "1"])
def test_a_wrong_header_length_is_refused(http: httpx.Client, length: str) -> None:
    body = json.dumps({"inputs": [entry()]})
    assert_error(http.post("/v2/models/id_fp32/infer", content=body, headers={LENGTH: length}), 400)


def test_a_binary_entry_without_the_length_header_is_refused(http: httpx.Client) -> None:
    assert_error(post(http, json.dumps({"inputs": [binary_entry()]}).encode() + PAIR), 400)
    assert_error(post(http, {"inputs": [binary_entry()]}), 400, "IN")


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [1, 0]),
        ("INT32", [True, 1]),
        ("INT32", [1.0, 2]),
        ("INT32", ["1", "2"]),
        ("INT32", [None, 2]),
        ("INT32", [{}, 2]),
        ("INT32", [2**31, 0]),
        ("INT8", [128, 0]),
        ("UINT8", [-1, 0]),
        ("INT64", [2**63, 0]),
        ("INT64", [-(2**63) - 1, 0]),
        ("UINT64", [2**64, 0]),
        ("UINT64", [-1, 0]),
        ("FP32", ["1", 2]),
        ("FP32", [True, 2]),
        ("FP32", [1e39, 2]),
        ("FP16", [1, 2]),
        ("BF16", [1, 2]),
        ("BYTES", [1, 2]),
        ("FP32", [1]),
        ("FP32", [1, 2, 3]),
        ("FP32", 1),
        ("FP32", {}),
        ("FP32", [[1], [2]]),
        ("FP32", [[1], 2]),
    ],
    ids=repr,
)
def test_json_data_that_does_not_fit_is_refused(http: httpx.Client, datatype: str, data: Any) -> None:
    assert_error(
        post(http, {"inputs": [entry(datatype=datatype, data=data)]}, model=f"id_{datatype.lower()}"), 400, "IN"
    )


def test_ragged_data_is_refused(http: httpx.Client) -> None:
    for data in ([[1, 2], [3]], [[1, 2], 3, 4], [[[1, 2]], [3, 4]]):
        assert_error(post(http, {"inputs": [entry(shape=[2, 2], data=data)]}, model="nobatch2d"), 400, "ragged")


@pytest.mark.parametrize("depth", [3, 120, 5000])
def test_deep_nesting_is_refused(http: httpx.Client, depth: int) -> None:
    nested = b"[" * depth + b"1" + b"]" * depth
    body = b'{"inputs":[{"name":"IN","shape":[2,2],"datatype":"FP32","data":' + nested + b"}]}"
    assert_error(post(http, body, model="nobatch2d"), 400)


def test_a_bool_byte_other_than_0_and_1_is_refused(http: httpx.Client) -> None:
    document = {"inputs": [binary_entry(2, datatype="BOOL")]}
    assert post(http, document, b"\x01\x00", model="id_bool").status_code == 200
    assert_error(post(http, document, b"\x02\x00", model="id_bool"), 400, "IN", "BOOL")


@pytest.mark.parametrize(
    "tail", [b"\x01\x00\x00\x00a", b"\x05\x00\x00\x00a\x00\x00\x00\x00", b"\x00" * 12, b"\x00" * 6]
)
def test_bytes_whose_lengths_do_not_add_up_are_refused(http: httpx.Client, tail: bytes) -> None:
    document = {"inputs": [binary_entry(len(tail), datatype="BYTES")]}
    assert_error(post(http, document, tail, model="id_bytes"), 400, "IN", "BYTES")


# -- header length 0 -----------------------------------------------------------------------------------------------


def test_header_length_0_means_that_the_body_is_the_input(http: httpx.Client) -> None:
    response = http.post("/v2/models/id_fp32/infer", content=PAIR, headers={LENGTH: "0"})
    assert response.status_code == 200
    assert response.content[int(response.headers[LENGTH]) :] == PAIR
    empty = http.post("/v2/models/id_fp32/infer", content=b"", headers={LENGTH: "0"})
    assert json.loads(empty.content)["outputs"][0]["shape"] == [0]


def test_a_raw_body_is_a_batch_of_one(http: httpx.Client) -> None:
    response = http.post("/v2/models/fixed/infer", content=bytes(48), headers={LENGTH: "0"})
    assert json.loads(response.content[: int(response.headers[LENGTH])])["outputs"][0]["shape"] == [1, 3, 4]


def test_a_raw_body_of_bytes_is_one_element(http: httpx.Client) -> None:
    response = http.post("/v2/models/id_bytes/infer", content=b"a\xff", headers={LENGTH: "0"})
    assert response.content[int(response.headers[LENGTH]) :] == b"\x02\x00\x00\x00a\xff"


def test_a_raw_body_that_cannot_be_the_input_is_refused(http: httpx.Client) -> None:
    assert_error(http.post("/v2/models/simple/infer", content=bytes(64), headers={LENGTH: "0"}), 400, "simple", "2")
    assert_error(http.post("/v2/models/fixed/infer", content=bytes(47), headers={LENGTH: "0"}), 400, "IN")
    assert_error(http.post("/v2/models/id_fp32/infer", content=bytes(7), headers={LENGTH: "0"}), 400, "IN")


# -- paths and methods ---------------------------------------------------------------------------------------------


def test_an_unknown_path_is_not_found(http: httpx.Client) -> None:
    for path in ("/", "/v1", "/v2/nope", "/v2/models", "/v2/models/simple/nope", "/v2/models/simple/versions", "/v2/"):
        assert_error(http.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v2/models/simple/infer", "POST"),
        ("GET", "/v2/models/simple/versions/1/infer", "POST"),
        ("POST", "/v2", "GET"),
        ("POST", "/v2/health/live", "GET"),
        ("PUT", "/v2/health/ready", "GET"),
        ("DELETE", "/v2/models/simple", "GET"),
        ("POST", "/v2/models/simple/ready", "GET"),
        ("POST", "/v2/models/simple/config", "GET"),
        ("GET", "/v2/repository/index", "POST"),
        ("GET", "/v2/repository/models/simple/load", "POST"),
        ("GET", "/v2/repository/models/simple/unload", "POST"),
        ("POST", "/v2/models/stats", "GET"),
        ("POST", "/v2/models/simple/stats", "GET"),
    ],
)
def test_a_wrong_method_is_a_405_that_names_the_right_one(
    http: httpx.Client, method: str, path: str, allowed: str
) -> None:
    response = http.request(method, path)
    assert_error(response, 405, allowed)
    assert response.headers["allow"] == allowed


def test_names_arrive_percent_encoded(http: httpx.Client) -> None:
    assert http.get("/v2/models/%73imple").json()["name"] == "simple"
    assert_error(http.get("/v2/models/a%2Fb%20%C3%A9"), 404, "a/b é")


@pytest.mark.parametrize("version", ["v1", "1.0", "-1", "%D9%A3", "", "9" * 5000])
def test_a_version_that_is_no_integer_is_not_found(http: httpx.Client, version: str) -> None:
    assert_error(http.get(f"/v2/models/simple/versions/{version}"), 404, "version")


def test_a_query_is_ignored(http: httpx.Client) -> None:
    assert http.get("/v2/models/simple?verbose=1").status_code == 200


def test_what_is_not_offered_is_a_501(http: httpx.Client) -> None:
    for path in ("/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/v2/trace/setting", "/v2/logging"):
        assert_error(http.get(path), 501)
    for path in ("/v2/models/simple/trace/setting", "/v2/models/simple/versions/1/trace/setting"):
        assert_error(http.get(path), 501)


def test_statistics_are_those_of_all_of_a_model_or_of_a_version(http: httpx.Client) -> None:
    everything = http.get("/v2/models/stats").json()["model_stats"]
    assert len(everything) > 3
    for path in ("/v2/models/simple/stats", "/v2/models/simple/versions/1/stats"):
        (entry,) = http.get(path).json()["model_stats"]
        assert (entry["name"], entry["version"], entry["memory_usage"]) == ("simple", "1", [])
        assert entry["inference_stats"]["cache_hit"] == {"count": 0, "ns": 0}
    assert_error(http.get("/v2/models/nope/stats"), 404, "nope")
    assert_error(http.get("/v2/models/simple/versions/9/stats"), 404, "9")


def test_a_load_that_says_how_is_refused(http: httpx.Client) -> None:
    path = "/v2/repository/models/simple/load"
    for loaded in (http.post(path), http.post(path, json={"parameters": {}})):
        assert (loaded.status_code, loaded.content) == (200, b"")
    assert_error(http.post(path, json={"parameters": {"config": "{}"}}), 501, "rollouts")
    assert_error(http.post(path, json=[]), 400)


def test_the_index_can_be_asked_for_ready_models_only(http: httpx.Client) -> None:
    assert http.post("/v2/repository/index", json={"ready": True}).json()
    assert_error(http.post("/v2/repository/index", json=[]), 400)
    assert_error(http.post("/v2/repository/index", json={"ready": 1}), 400)


# -- compression ---------------------------------------------------------------------------------------------------


def test_the_header_length_counts_before_compression_both_ways(http: httpx.Client) -> None:
    head = json.dumps({"parameters": BINARY, "inputs": [binary_entry()]}).encode()
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        headers = {LENGTH: str(len(head)), "Content-Encoding": encoding, "Accept-Encoding": encoding}
        response = http.post("/v2/models/id_fp32/infer", content=pack(head + PAIR), headers=headers)
        assert response.headers["content-encoding"] == encoding
        assert response.content[int(response.headers[LENGTH]) :] == PAIR  # httpx has decompressed it


@pytest.mark.parametrize("accepted", ["gzip, deflate, br", "br", "gzip;q=1", "*", "identity"])
def test_only_one_encoding_alone_asks_for_compression(http: httpx.Client, accepted: str) -> None:
    response = post(http, {"inputs": [entry()]}, Accept_Encoding=accepted)
    assert response.status_code == 200
    assert "content-encoding" not in response.headers


def test_only_an_infer_200_is_compressed(http: httpx.Client) -> None:
    only_gzip = {"Accept-Encoding": "gzip"}
    assert "content-encoding" not in http.get("/v2", headers=only_gzip).headers
    assert "content-encoding" not in post(http, b"{bad", Accept_Encoding="gzip").headers
    assert "content-encoding" in post(http, {"inputs": [entry()]}, Accept_Encoding="gzip").headers


def test_a_corrupt_compressed_body_is_refused(http: httpx.Client) -> None:
    packed = gzip.compress(json.dumps({"inputs": [entry()]}).encode())
    for body in (b"", b"nonsense", packed[:-1], packed + b"x"):
        assert_error(post(http, body, Content_Encoding="gzip"), 400, "gzip")
    assert_error(post(http, b"nonsense", Content_Encoding="deflate"), 400, "deflate")


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, deflate", "nonsense"])
def test_an_encoding_that_is_not_spoken_is_a_415(http: httpx.Client, encoding: str) -> None:
    assert_error(post(http, {"inputs": [entry()]}, Content_Encoding=encoding), 415, encoding)


def test_identity_is_no_encoding(http: httpx.Client) -> None:
    assert post(http, {"inputs": [entry()]}, Content_Encoding="identity").status_code == 200


# -- limits ----------------------------------------------------------------------------------------------------------

LIMIT = 64 * 1024 * 1024


def test_a_body_over_the_limit_is_a_413_and_the_connection_goes_on(http: httpx.Client) -> None:
    assert_error(http.post("/v2/models/id_fp32/infer", content=bytes(LIMIT + 1)), 413, str(LIMIT))
    assert post(http, {"inputs": [entry()]}).status_code == 200


def test_a_chunked_body_over_the_limit_is_a_413(http: httpx.Client) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(65):
            yield bytes(1024 * 1024)

    assert_error(http.post("/v2/models/id_fp32/infer", content=chunks()), 413, str(LIMIT))


def test_a_small_body_that_decompresses_to_a_large_one_is_a_413(http: httpx.Client) -> None:
    assert_error(post(http, gzip.compress(bytes(LIMIT + 1)), Content_Encoding="gzip"), 413, str(LIMIT))


# -- bytes on the socket -----------------------------------------------------------------------------------------------


BODY = json.dumps({"inputs": [entry()]}).encode()


def converse(endpoint: Endpoint, *pieces: bytes, expected: int) -> bytes:
    """Send the pieces one by one, and read until ``expected`` status lines have come with their bodies."""
    with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        received = b""
        while received.count(b'"outputs":') < expected or not received.endswith(b"}"):
            chunk = connection.recv(65536)
            assert chunk, received
            received += chunk
        return received


def head(*headers: bytes) -> bytes:
    return b"\r\n".join((b"POST /v2/models/id_fp32/infer HTTP/1.1", b"Host: x", *headers, b"", b""))


def test_a_body_chunked_in_seven_byte_pieces(endpoint: Endpoint) -> None:
    pieces = [BODY[at : at + 7] for at in range(0, len(BODY), 7)]
    framed = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
    received = converse(endpoint, head(b"Transfer-Encoding: chunked"), *framed, b"0\r\n\r\n", expected=1)
    assert received.startswith(b"HTTP/1.1 200 ")


def test_a_pipelined_pair(endpoint: Endpoint) -> None:
    one = head(b"Content-Length: %d" % len(BODY)) + BODY
    received = converse(endpoint, one + one, expected=2)
    assert received.count(b"HTTP/1.1 200 ") == 2


def test_a_client_that_expects_to_be_told_to_continue(endpoint: Endpoint) -> None:
    with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as connection:
        connection.sendall(head(b"Content-Length: %d" % len(BODY), b"Expect: 100-continue"))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_expects_to_continue_with_too_much_is_told_at_once(endpoint: Endpoint) -> None:
    with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as connection:
        connection.sendall(head(b"Content-Length: %d" % (LIMIT + 1), b"Expect: 100-continue"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_header_names_in_any_case(endpoint: Endpoint) -> None:
    document = json.dumps({"inputs": [binary_entry()]}).encode()
    for name in (b"inference-header-content-length", b"INFERENCE-HEADER-CONTENT-LENGTH"):
        sizes = (b"%b: %d" % (name, len(document)), b"content-length: %d" % (len(document) + 8))
        received = converse(endpoint, head(*sizes) + document + PAIR, expected=1)
        assert received.startswith(b"HTTP/1.1 200 ")


def test_clients_that_leave_in_the_middle_disturb_nobody(endpoint: Endpoint, http: httpx.Client) -> None:
    slow = json.dumps({"inputs": [entry(shape=[1, 4], data=[1, 2, 3, 4])]}).encode()
    asking = head(b"Content-Length: %d" % len(slow)).replace(b"id_fp32", b"slow") + slow
    for sent in (asking, asking[:-5], asking[:60]):
        with socket.create_connection((endpoint.host, endpoint.port), timeout=10) as connection:
            connection.sendall(sent)
    assert http.get("/v2/health/live").status_code == 200
    assert http.post("/v2/models/slow/infer", content=slow, timeout=10).status_code == 200
