"""Whatever is sent over HTTP: the protocol's JSON for an error, no fault of the server's, and a connection in step."""

import copy
import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.contract.local_engine import Endpoint
from tests.serving.talker import Answer, Client

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MODELS = ("id_fp32", "id_int64", "id_bool", "id_bytes", "id_fp16", "simple", "fixed", "nobatch2d", "cls", "nope")
WORDS = ("v2", "models", "infer", "versions", "1", "9", "ready", "config", "stats", "health", "live", "load", "unload")
OTHERS = (
    "repository",
    "index",
    "trace",
    "setting",
    "systemsharedmemory",
    "logging",
    "",
    "%2F",
    "%ff%00",
    "é",
    "x" * 700,
)


@pytest.fixture(scope="module")
def connected(endpoint: Endpoint) -> Iterator[list[Client]]:
    """One connection for all examples: an answer too long or too short would put the next one out of step."""
    clients = [Client(endpoint.port)]
    yield clients
    clients[0].socket.close()


def exchange(connected: list[Client], method: bytes, target: bytes, headers: dict[bytes, bytes], body: bytes) -> Answer:
    """Send one request and check what every answer must be."""
    client = connected[0]
    lines = [b"%b: %b" % each for each in ({b"Content-Length": b"%d" % len(body)} | headers).items()]
    client.send(b"\r\n".join((b"%b %b HTTP/1.1" % (method, target), *lines, b"", body)))
    answer = client.answer(head_only=method == b"HEAD")
    if answer.status != 200:
        assert answer.headers[b"content-type"] == b"application/json"
        if method != b"HEAD":
            assert list(error := json.loads(answer.body)) == ["error"]
            assert error["error"]
            assert "Traceback" not in error["error"]
    assert answer.status < 500 or (answer.status == 501 and b"not offered" in answer.body), answer
    assert answer.headers[b"x-understudy-request-id"]
    live = client.ask(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
    assert (live.status, live.body) == (200, b'{"live":true}')
    return answer


# -- routes ------------------------------------------------------------------------------------------------------------

segments = st.one_of(st.sampled_from([*WORDS, *OTHERS, *MODELS]), st.text("aé%/?#[]:@\x01~", max_size=6))
paths = st.one_of(
    st.lists(segments, max_size=6),
    st.builds(
        lambda model, rest: ["v2", "models", model, *rest], st.sampled_from(MODELS), st.lists(segments, max_size=3)
    ),
)
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE"])
prefixes = st.sampled_from([b"/", b"/", b"//", b"http://x/", b"http://[/", b"http://[::1]:8000/", b"*"])
header_names = st.sampled_from(
    [
        b"Inference-Header-Content-Length",
        b"Content-Encoding",
        b"Accept-Encoding",
        b"Content-Type",
        b"x-understudy-key",
        b"x-understudy-version",
        b"x-understudy-request-id",
        b"Expect",
        b"Upgrade",
        b"Connection",
    ]
)
header_values = st.one_of(
    st.sampled_from(
        [b"0", b"1", b"-1", b"99999999999999999999", b"gzip", b"deflate", b"br", b"gzip, deflate", b"", b"baseline"]
    ),
    st.sampled_from([b"100-continue", b"h2c", b"keep-alive, Upgrade", b"\xff\xfe", b"application/json", b"candidate"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(str.encode),
)
headers_near_valid = st.dictionaries(header_names, header_values, max_size=4).filter(
    lambda headers: b"close" not in headers.get(b"Connection", b"")
)


def target_of(prefix: bytes, parts: list[str]) -> bytes:
    """A target that HTTP allows: what it does not allow is the matter of tests/serving/test_http_server.py."""
    raw = "/".join(parts).encode()
    return prefix + b"".join(b"%c" % byte if 33 <= byte < 127 else b"%%%02x" % byte for byte in raw)


@FEW
@given(method=methods, prefix=prefixes, parts=paths, headers=headers_near_valid, body=st.binary(max_size=60))
@example(method=b"GET", prefix=b"http://[", parts=[], headers={}, body=b"")
@example(method=b"POST", prefix=b"/", parts=["v2", "models", "nope" * 9000, "infer"], headers={}, body=b"")
def test_any_method_path_and_headers(
    connected: list[Client], method: bytes, prefix: bytes, parts: list[str], headers: dict[bytes, bytes], body: bytes
) -> None:
    exchange(connected, method, target_of(prefix, parts), headers, body)


# -- infer -------------------------------------------------------------------------------------------------------------

odd_values = st.one_of(
    st.sampled_from([None, True, False, 0, 1, -1, 2, 64, 2**31, 2**53, 2**63, 2**64, 10**30, -(2**63) - 1, 0.5, 1e308]),
    st.sampled_from(
        [float("nan"), float("inf"), "", "IN", "OUT", "FP32", "BYTES", "INT64", "\ud800", "é\0", "x" * 600]
    ),
    st.sampled_from(
        [[], {}, [[]], [{}], {"": {}}, [1, [2]], [None], ["a"], [[1, 2], [3]], {"triton_x": 1}, [2**62] * 3]
    ),
).map(copy.deepcopy)  # they are put into documents, which are changed
keys = st.sampled_from(
    ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "binary_data", "id", "outputs"]
)


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document, as its container and its key or index."""
    for at in list(node) if isinstance(node, dict) else range(len(node)):
        yield node, at
        if isinstance(node[at], dict | list):
            yield from places(node[at])


@st.composite
def documents(draw: st.DrawFn) -> tuple[Any, bytes]:
    """A request that is near a valid one, and the tensors that follow it."""
    name = draw(st.sampled_from(["IN", "INPUT0"]))
    datatype = draw(st.sampled_from(["FP32", "INT64", "BOOL", "BYTES", "FP16", "INT32"]))
    tails = {"FP32": struct.pack("<2f", 1, 2), "BYTES": b"\x01\0\0\0a\0\0\0\0", "BOOL": b"\1\0", "FP16": bytes(4)}
    tail = tails.get(datatype, bytes(16))
    entry: dict[str, Any] = {"name": name, "shape": [2], "datatype": datatype}
    if draw(st.booleans()):
        entry["parameters"] = {"binary_data_size": len(tail)}
    else:
        entry["data"] = {"BOOL": [True, False], "BYTES": ["a", ""]}.get(datatype, [1, 2])
        tail = b""
    document: Any = {"id": "a", "inputs": [entry], "outputs": [{"name": "OUT", "parameters": {"binary_data": True}}]}
    document["parameters"] = {"binary_data_output": draw(st.booleans()), "priority": 1, "timeout": 10_000_000}
    for _ in range(draw(st.integers(0, 3))):
        found = list(places(document))
        if not found:
            break
        holder, at = found[draw(st.integers(0, len(found) - 1))]
        match draw(st.sampled_from(["replace", "remove", "repeat", "add"])):
            case "replace":
                holder[at] = draw(odd_values)
            case "remove":
                del holder[at]
            case "repeat" if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[at]))
            case _ if isinstance(holder, dict):
                holder[draw(keys)] = draw(odd_values)
    if draw(st.integers(0, 9)) == 0:
        document = draw(odd_values)
    return document, tail


@st.composite
def infer_bodies(draw: st.DrawFn) -> tuple[dict[bytes, bytes], bytes]:
    document, tail = draw(documents())
    head = json.dumps(document).encode()
    tail += draw(st.sampled_from([b"", b"", b"", b"x", b"\xff" * 9]))
    body = head + tail
    headers = {}
    if tail or draw(st.booleans()):
        length = len(head) + draw(st.sampled_from([0, 0, 0, 0, -1, 1, 1000, -len(head)]))
        headers[b"Inference-Header-Content-Length"] = b"%d" % length
    if draw(st.integers(0, 4)) == 0 and body:  # damaged
        at = draw(st.integers(0, len(body) - 1))
        body = body[:at] + draw(st.binary(max_size=3)) + body[at + draw(st.integers(0, 3)) :]
    match draw(st.sampled_from(["", "", "", "gzip", "deflate"])):
        case "gzip":
            headers[b"Content-Encoding"], body = b"gzip", gzip.compress(body)
        case "deflate":
            headers[b"Content-Encoding"], body = b"deflate", zlib.compress(body)
    if draw(st.integers(0, 9)) == 0:
        body = body[: draw(st.integers(0, len(body)))]
    if draw(st.booleans()):
        headers[b"Accept-Encoding"] = draw(st.sampled_from([b"gzip", b"deflate", b"gzip, deflate"]))
    return headers, body


@settings(FEW, max_examples=400)
@given(model=st.sampled_from(MODELS), version=st.sampled_from(["", "/versions/1"]), sent=infer_bodies())
def test_any_infer_request(
    connected: list[Client], model: str, version: str, sent: tuple[dict[bytes, bytes], bytes]
) -> None:
    headers, body = sent
    exchange(connected, b"POST", f"/v2/models/{model}{version}/infer".encode(), headers, body)


@FEW
@given(
    action=st.sampled_from(["index", "models/simple/load", "models/nope/load", "models/simple/unload"]),
    document=odd_values,
)
def test_any_repository_request(connected: list[Client], action: str, document: Any) -> None:
    exchange(connected, b"POST", f"/v2/repository/{action}".encode(), {}, json.dumps(document).encode())
