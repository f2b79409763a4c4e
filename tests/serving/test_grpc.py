import asyncio
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from serving.dataplane import DataPlane
from serving.errors import LaunchError, UnavailableError
from serving.grpc import GrpcServer
from serving.protocol.binary import LongWorkError
from serving.protocol.proto import HEALTH, INFERENCE, message
from serving.protocol.protobuf import decode_infer
from serving.stages import STAGES, Stages
from tests.serving.echo_engine import EchoEngine

Request = message("inference.ModelInferRequest")
Streamed = message("inference.ModelStreamInferResponse")
PAIR = struct.pack("<2f", 1.5, 2.5)


def body(**fields: Any) -> bytes:
    tensor = Request.InferInputTensor(name="IN", datatype="FP32", shape=[1, 2])
    timeout_us = fields.pop("timeout_us", None)
    made = Request(model_name="m", inputs=[tensor], raw_input_contents=[PAIR], **fields)
    if timeout_us is not None:
        made.parameters["timeout"].int64_param = timeout_us
    encoded: bytes = made.SerializeToString()
    return encoded


@asynccontextmanager
async def serving(engine: EchoEngine, **options: Any) -> AsyncIterator[tuple[grpc.aio.Channel, GrpcServer]]:
    server = GrpcServer(DataPlane(engine), "127.0.0.1", 0, **options)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel, server
    await server.stop(0.1)


async def infer(channel: grpc.aio.Channel, asked: bytes, **options: Any) -> bytes:
    answer: bytes = await channel.unary_unary(f"/{INFERENCE}/ModelInfer")(asked, **options)
    return answer


async def code_of(awaited: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await awaited
    return raised.value.code()


async def test_the_client_s_deadline_bounds_the_request_s_and_so_does_its_parameter() -> None:
    engine = EchoEngine()
    async with serving(engine) as (channel, _):
        await infer(channel, body(), timeout=3)
        await infer(channel, body(timeout_us=500_000), timeout=3)
        await infer(channel, body(timeout_us=60_000_000), timeout=3)
        await infer(channel, body(timeout_us=500_000))
        await infer(channel, body())
    first, second, third, fourth, fifth = (request.timeout_s for request in engine.seen)
    assert first is not None
    assert 2 < first < 3.1  # gRPC rounds
    assert second == 0.5
    assert third is not None
    assert 2 < third < 3.1
    assert fourth == 0.5
    assert fifth is None


async def test_metadata_gives_key_and_arm_and_the_sequence_goes_before_the_key() -> None:
    engine = EchoEngine()
    metadata = (("x-understudy-key", "camera-7"), ("x-understudy-version", "candidate"))
    sequenced = Request.FromString(body())
    sequenced.parameters["sequence_id"].int64_param = 3
    async with serving(engine) as (channel, _):
        await infer(channel, body(id="mine"), metadata=metadata)
        await infer(channel, sequenced.SerializeToString(), metadata=metadata)
        await infer(channel, body(id="mine"))
    first, second, third = engine.seen
    assert (first.key, first.arm, first.request_id) == ("camera-7", "candidate", "mine")
    assert second.key == "3"
    assert (third.key, third.arm) == ("mine", None)


async def test_every_answered_request_s_stages_are_counted_and_no_refused_one_s() -> None:
    engine, stages = EchoEngine(), Stages()
    server = GrpcServer(DataPlane(engine, stages=stages), "127.0.0.1", 0)
    await server.start()
    before = time.monotonic()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        await infer(channel, body())
        stream = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")(iter([body(id="1"), body(id="2")]))
        assert len([each async for each in stream]) == 2
        engine.failure = UnavailableError("full")
        assert await code_of(infer(channel, body())) is grpc.StatusCode.UNAVAILABLE
    await server.stop(0.1)
    (family,) = stages.collect()
    counts = [each.value for each in family.samples if each.name.endswith("_count")]
    assert counts == [3.0] * len(STAGES)
    timings = [request.timing for request in engine.seen]
    assert all(timing is not None and before <= timing.received <= timing.resumed for timing in timings[:3])


async def test_an_unexpected_error_is_internal_and_tells_nothing() -> None:
    engine = EchoEngine()
    engine.failure = RuntimeError("secret")
    async with serving(engine) as (channel, _):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await infer(channel, body())
        assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")
        stream = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")(iter([body(id="7")]))
        (answer,) = [message("inference.ModelStreamInferResponse").FromString(each) async for each in stream]
        assert (answer.error_message, answer.infer_response.id) == ("internal error", "7")
        engine.failure = UnavailableError("full")
        assert await code_of(infer(channel, body())) is grpc.StatusCode.UNAVAILABLE


async def test_a_model_that_is_not_ready_is_neither_loaded_nor_healthy() -> None:
    engine = EchoEngine()
    engine.is_ready = False
    asked = message("inference.RepositoryModelLoadRequest")(model_name="m").SerializeToString()
    health = message("grpc.health.v1.HealthCheckResponse")
    async with serving(engine) as (channel, _):
        load = channel.unary_unary(f"/{INFERENCE}/RepositoryModelLoad")
        assert await code_of(load(asked)) is grpc.StatusCode.UNAVAILABLE
        watch = channel.unary_stream(f"/{HEALTH}/Watch")(b"")
        assert health.FromString(await watch.read()).status == 2
        engine.is_ready = True
        assert health.FromString(await watch.read()).status == 1
        watch.cancel()
        assert await load(asked) == b""


async def test_a_message_over_the_limit_is_refused() -> None:
    async with serving(EchoEngine(), max_message_bytes=1000) as (channel, _):
        assert await code_of(infer(channel, body(id="x" * 2000))) is grpc.StatusCode.RESOURCE_EXHAUSTED
        zipped = infer(channel, body(model_version="1" * 100_000), compression=grpc.Compression.Gzip)
        assert await code_of(zipped) is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await infer(channel, body())


async def test_a_port_is_shared_only_where_that_was_asked_for() -> None:
    plane = DataPlane(EchoEngine())
    alone = GrpcServer(plane, "127.0.0.1", 0)
    second = GrpcServer(plane, "127.0.0.1", alone.port)
    await alone.start()
    with pytest.raises(LaunchError, match=str(alone.port)):
        await second.start()
    await alone.stop(0)
    shared = GrpcServer(plane, "127.0.0.1", 0, reuse_port=True)
    again = GrpcServer(plane, "127.0.0.1", shared.port, reuse_port=True)
    assert again.port == shared.port
    for server in (shared, again):
        await server.start()
        await server.stop(0)


async def test_stop_lets_what_is_under_way_finish_and_cancels_what_does_not() -> None:
    engine = EchoEngine()
    engine.release = asyncio.Event()
    async with serving(engine) as (channel, server):
        first = asyncio.ensure_future(infer(channel, body()))
        while not engine.seen:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0.05)
        engine.release.set()
        assert await first
        await asyncio.wait_for(stopping, 3)
    engine = EchoEngine()
    engine.release = asyncio.Event()
    async with serving(engine) as (channel, server):
        lost = asyncio.ensure_future(infer(channel, body()))
        while not engine.seen:
            await asyncio.sleep(0.01)
        await asyncio.wait_for(server.stop(0.1), 3)
        assert await code_of(lost) in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_a_stream_that_is_not_read_is_not_read_from_without_end() -> None:
    engine = EchoEngine()
    engine.release = asyncio.Event()

    async def bodies() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield body(id=str(number))

    async with serving(engine) as (channel, _):
        stream = channel.stream_stream(f"/{INFERENCE}/ModelStreamInfer")(bodies())
        await asyncio.sleep(0.3)
        assert 0 < len(engine.seen) <= 130
        engine.release.set()
        assert len([each async for each in stream]) == 1000


async def longest_stall(work: "asyncio.Task[Any]") -> float:
    """How long the loop was held up at most while something ran, in seconds."""
    longest, last = 0.0, time.monotonic()
    while not work.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    return longest


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
async def test_the_loop_goes_on_while_a_long_request_is_decoded(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    def noting(body: Any, *, patient: bool = True) -> Any:
        if patient:
            threads.append(threading.get_ident())
        return decode_infer(body, patient=patient)

    monkeypatch.setattr("serving.grpc.decode_infer", noting)
    count = 1 << 20
    tensor = Request.InferInputTensor(name="IN", datatype="BYTES", shape=[count])
    long = Request(model_name="m", inputs=[tensor], raw_input_contents=[bytes(4 * count)]).SerializeToString()
    async with serving(EchoEngine()) as (channel, _):
        if method == "ModelInfer":
            work = asyncio.create_task(code_of(infer(channel, long)))
            stall = await longest_stall(work)
            assert await work is grpc.StatusCode.INVALID_ARGUMENT, "the model takes FP32"
        else:
            call = channel.stream_stream(f"/{INFERENCE}/{method}")(iter([long, body()]))
            work = asyncio.create_task(_all(call))
            stall = await longest_stall(work)
            assert [bool(Streamed.FromString(each).error_message) for each in await work] == [True, False]
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
    assert stall < 0.3


async def _all(call: Any) -> list[bytes]:
    return [each async for each in call]


def test_what_takes_long_is_not_decoded_for_the_impatient_and_nothing_else_is_refused() -> None:
    many = Request.InferInputTensor(name="IN", datatype="BYTES", shape=[20_000])
    raw = Request(model_name="m", inputs=[many], raw_input_contents=[bytes(80_000)]).SerializeToString()
    many.contents.bytes_contents.extend([b""] * 20_000)
    typed = Request(model_name="m", inputs=[many]).SerializeToString()
    for long in (raw, typed, b"\x78\x00" * 20_000 + raw[:40]):
        with pytest.raises(LongWorkError):
            decode_infer(long, patient=False)
    assert decode_infer(typed).request.inputs["IN"].data == decode_infer(raw).request.inputs["IN"].data == bytes(80_000)
    decode_infer(body(), patient=False)
