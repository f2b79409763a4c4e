import asyncio
import json
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from serving.dataplane import DataPlane
from serving.door import Limits, bind
from serving.errors import LaunchError, UnavailableError
from serving.http import HttpApp, _remembered_segments
from serving.http_server import HttpRequest, HttpServer
from serving.protocol.binary import EncodedInfer, encode_infer
from tests.serving.echo_engine import EchoEngine, spec_of

REQUEST = {"inputs": [{"name": "IN", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}


@asynccontextmanager
async def serving(
    engine: EchoEngine, *, max_body_bytes: int = 1000, grace_s: float = 1.0
) -> AsyncIterator[tuple[httpx.AsyncClient, HttpServer]]:
    sock = bind("127.0.0.1", 0)
    host, port = sock.getsockname()
    server = HttpServer(
        HttpApp(DataPlane(engine), max_body_bytes=max_body_bytes), sock, limits=Limits(body_bytes=max_body_bytes)
    )
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}") as client:
            yield client, server
    finally:
        await server.stop(grace_s)


async def test_the_version_that_answered_is_in_the_response() -> None:
    engine = EchoEngine()
    engine.answering = 12
    async with serving(engine) as (client, _):
        response = await client.post("/v2/models/m/infer", json=REQUEST)
    assert response.json()["model_version"] == "12"


async def test_key_and_arm_come_from_the_headers() -> None:
    engine = EchoEngine()
    headers = {"x-understudy-key": "camera-7", "x-understudy-version": "candidate"}
    async with serving(engine) as (client, _):
        response = await client.post("/v2/models/m/infer", json=REQUEST, headers=headers)
    (seen,) = engine.seen
    assert (seen.key, seen.arm) == ("camera-7", "candidate")
    assert seen.request_id == response.headers["x-understudy-request-id"]


async def test_a_raw_body_takes_key_and_arm_from_the_headers_too() -> None:
    engine = EchoEngine()
    headers = {"inference-header-content-length": "0", "x-understudy-key": "k", "x-understudy-version": "baseline"}
    async with serving(engine) as (client, _):
        response = await client.post("/v2/models/m/infer", content=bytes(8), headers=headers)
    (seen,) = engine.seen
    assert (seen.key, seen.arm, seen.inputs["IN"].shape) == ("k", "baseline", (1, 2))
    assert seen.request_id == response.headers["x-understudy-request-id"]


async def test_an_unexpected_error_is_logged_with_the_request_and_hidden_from_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = EchoEngine()
    engine.failure = RuntimeError("a secret")
    async with serving(engine) as (client, _):
        response = await client.post("/v2/models/m/infer", json=REQUEST | {"id": "mine"})
        assert (await client.get("/v2/health/live")).status_code == 200
    assert response.status_code == 500
    assert response.json() == {"error": "internal error"}
    (record,) = (record for record in caplog.records if record.name == "serving.http")
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert vars(record)["understudy_fields"]["request_id"] == "mine"


async def test_an_expected_error_keeps_its_message() -> None:
    engine = EchoEngine()
    engine.failure = UnavailableError("the queue is full")
    async with serving(engine) as (client, _):
        response = await client.post("/v2/models/m/infer", json=REQUEST | {"id": "mine"})
    assert (response.status_code, response.json()) == (503, {"error": "the queue is full"})
    assert response.headers["x-understudy-request-id"] == "mine"


async def test_a_server_that_is_not_ready_says_so() -> None:
    engine = EchoEngine()
    engine.is_ready = False
    async with serving(engine) as (client, _):
        assert (await client.get("/v2/health/live")).status_code == 200
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/models/m/ready")).status_code == 400
        index = (await client.post("/v2/repository/index")).json()
        assert [(entry["state"], bool(entry["reason"])) for entry in index] == [("UNAVAILABLE", True)]
        assert (await client.post("/v2/repository/index", json={"ready": True})).json() == []


@pytest.mark.parametrize("size", [1000, 1001])
async def test_the_limit_is_exact(size: int) -> None:
    body = json.dumps(REQUEST).encode().ljust(size)

    async def chunks() -> AsyncIterator[bytes]:
        yield body[:500]
        yield body[500:]

    async with serving(EchoEngine()) as (client, _):
        for content in (body, chunks()):
            response = await client.post("/v2/models/m/infer", content=content)
            assert response.status_code == (200 if size <= 1000 else 413)


async def test_a_long_path_is_not_remembered() -> None:
    async with serving(EchoEngine()) as (client, _):
        before = _remembered_segments.cache_info().currsize
        for number in range(20):
            assert (await client.get(f"/v2/models/{number:0600}")).status_code == 404
            assert (await client.get("/v2/models/m")).status_code == 200
        assert _remembered_segments.cache_info().currsize <= before + 1


async def test_a_client_that_leaves_does_not_cancel_the_work() -> None:
    engine = EchoEngine()
    engine.release = asyncio.Event()
    async with serving(engine) as (client, _):
        with pytest.raises(httpx.ReadTimeout):
            await client.post("/v2/models/m/infer", json=REQUEST, timeout=0.2)
        staying = asyncio.create_task(client.post("/v2/models/m/infer", json=REQUEST))
        while len(engine.seen) < 2:
            await asyncio.sleep(0.01)
        engine.release.set()
        assert (await staying).status_code == 200


async def test_stop_lets_requests_under_way_finish() -> None:
    engine = EchoEngine()
    engine.release = asyncio.Event()
    async with serving(engine) as (client, server):
        under_way = asyncio.create_task(client.post("/v2/models/m/infer", json=REQUEST))
        while not engine.seen:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0.05)
        with pytest.raises(httpx.ConnectError):
            await httpx.AsyncClient(base_url=client.base_url).get("/v2/health/live")
        engine.release.set()
        assert (await under_way).status_code == 200
        await stopping


async def test_stop_cancels_what_does_not_finish_in_time() -> None:
    engine = EchoEngine()
    engine.release = asyncio.Event()
    async with serving(engine) as (client, server):
        under_way = asyncio.create_task(client.post("/v2/models/m/infer", json=REQUEST))
        while not engine.seen:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(server.stop(0.1), 3)
        assert (await under_way).status_code == 503


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"127\.0\.0\.1:{port}: .*in use"):
            bind("127.0.0.1", port)


def test_a_host_that_is_not_here_is_named() -> None:
    with pytest.raises(LaunchError, match=r"203\.0\.113\.1:8000"):
        bind("203.0.113.1", 8000)


def test_a_port_is_shared_only_by_those_who_ask() -> None:
    first = bind("127.0.0.1", 0, reuse_port=True)
    port = first.getsockname()[1]
    first.listen()
    with bind("127.0.0.1", port, reuse_port=True) as second:
        assert second.getsockname()[1] == port
    with pytest.raises(LaunchError, match="in use"):
        bind("127.0.0.1", port)
    first.close()


async def test_a_port_that_is_taken_between_bind_and_start_is_a_launch_error() -> None:
    first, second = bind("127.0.0.1", 0), None
    port = first.getsockname()[1]
    second = bind("127.0.0.1", port)
    first.listen()
    with pytest.raises(LaunchError, match="in use"):
        await HttpServer(HttpApp(DataPlane(EchoEngine())), second).start()
    first.close()


def test_localhost_is_bound() -> None:
    with bind("localhost", 0) as sock:
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")


async def test_json_over_its_limit_is_refused_and_binary_data_named_as_the_way() -> None:
    app = HttpApp(DataPlane(EchoEngine()), max_json_bytes=1000)
    infer, index = b"/v2/models/m/infer", b"/v2/repository/index"
    small, large = orjson.dumps(REQUEST), orjson.dumps(REQUEST | {"id": "x" * 400}) + b" " * 600
    binary = {b"inference-header-content-length": b"%d" % len(large)}
    for target, headers in ((infer, {}), (index, {}), (infer, binary)):
        reply = await app(HttpRequest("POST", target, headers, large))
        assert reply.status == 413
        assert "over the limit of 1000 bytes; send its tensors as binary data" in orjson.loads(reply.body)["error"]
    assert (await app(HttpRequest("POST", infer, {}, small))).status == 200
    tensors = orjson.dumps({"inputs": [{**REQUEST["inputs"][0], "data": None, "parameters": {"binary_data_size": 8}}]})
    binary = {b"inference-header-content-length": b"%d" % len(tensors)}
    assert (await app(HttpRequest("POST", infer, binary, tensors + bytes(8)))).status == 200


def numbers(count: int) -> tuple[bytes, dict[bytes, bytes]]:
    """A request whose JSON is long."""
    tensor = {"name": "IN", "shape": [count // 2, 2], "datatype": "FP32", "data": [1] * count}
    return orjson.dumps({"inputs": [tensor]}), {}


def words(count: int) -> tuple[bytes, dict[bytes, bytes]]:
    """A request with many empty strings as binary data."""
    tensor = {"name": "IN", "shape": [count], "datatype": "BYTES", "parameters": {"binary_data_size": 4 * count}}
    head = orjson.dumps({"inputs": [tensor]})
    return head + bytes(4 * count), {b"inference-header-content-length": b"%d" % len(head)}


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [(*numbers(1_000_000), "expected a batch of 1 to 4, got 500000"), (*words(500_000), "got BYTES of shape [500000]")],
)
async def test_the_loop_goes_on_while_a_long_request_is_decoded(
    body: bytes, headers: dict[bytes, bytes], said: str
) -> None:
    app = HttpApp(DataPlane(EchoEngine()))
    asking = asyncio.create_task(app(HttpRequest("POST", b"/v2/models/m/infer", headers, body)))
    turns = 0
    while not asking.done():
        turns += 1
        await asyncio.sleep(0)
    assert said in orjson.loads(asking.result().body)["error"], "it was decoded, and refused only then"
    assert turns > 10


async def test_the_loop_goes_on_while_a_long_answer_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noting(*arguments: Any, patient: bool = True, **options: Any) -> EncodedInfer:
        if patient:
            threads.append(threading.get_ident())
        return encode_infer(*arguments, patient=patient, **options)

    monkeypatch.setattr("serving.http.encode_infer", noting)
    app = HttpApp(DataPlane(EchoEngine(spec_of(1, max_batch_size=1 << 20))))
    count = 500_000
    tensor = {"name": "IN", "shape": [count // 2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 4 * count}}
    head = orjson.dumps({"inputs": [tensor]})
    headers = {b"inference-header-content-length": b"%d" % len(head)}
    body = head + np.arange(count, dtype=np.float32).tobytes()
    asking = asyncio.create_task(app(HttpRequest("POST", b"/v2/models/m/infer", headers, body)))
    turns = 0
    while not asking.done():
        turns += 1
        await asyncio.sleep(0)
    assert orjson.loads(asking.result().body)["outputs"][0]["data"] == list(range(count))
    assert turns > 10
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
