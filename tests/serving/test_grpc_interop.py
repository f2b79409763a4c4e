"""grpcio's own clients against our server of gRPC."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator

import grpc
import grpc.aio
import pytest

from serving.protocol.proto import HEALTH
from tests.serving.grpc_talker import INFER, STREAM, Response, Streamed, Talker, body, body_of, talking, wait_for

UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
WAIT = (("x-understudy-key", "wait"),)
LARGE = random.Random(0).randbytes(8 << 20)


@pytest.fixture(scope="module")
def shared() -> Iterator[Talker]:
    with talking() as running:
        yield running


@pytest.fixture
def talker(shared: Talker) -> Iterator[Talker]:
    """The shared server, which keeps nothing of the case."""
    shared.hold()
    shared.engine.held = shared.engine.cancelled = shared.engine.answered = 0
    before = shared.left()[1]
    yield shared
    shared.wait_settled(before)
    shared.engine.seen.clear()
    assert shared.faults == []


def raw_of(answer: bytes) -> bytes:
    raw: bytes = Response.FromString(answer).raw_output_contents[0]
    return raw


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_sync_client_calls_and_streams(talker: Talker) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{talker.port}") as channel:
        unary, stream = channel.unary_unary(INFER), channel.stream_stream(STREAM)
        for number in range(50):
            assert Response.FromString(unary(body(id=str(number)), timeout=10)).id == str(number)
        answers = [Streamed.FromString(each) for each in stream(body(id=str(number)) for number in range(200))]
        assert [each.infer_response.id for each in answers] == [str(number) for number in range(200)]
        assert channel.unary_unary(f"/{HEALTH}/Check")(b"", timeout=10) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as raised:
            unary(body(model_name="é✓%"), timeout=10)
        assert raised.value.code() is grpc.StatusCode.NOT_FOUND
        assert "é✓%" in raised.value.details()


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_large_messages_in_both_directions(talker: Talker, compression: grpc.Compression) -> None:
    asked = body_of(LARGE)
    with grpc.insecure_channel(f"127.0.0.1:{talker.port}", UNLIMITED, compression) as channel:
        for _ in range(3):
            assert raw_of(channel.unary_unary(INFER)(asked, timeout=20)) == LARGE
        answers = list(channel.stream_stream(STREAM)(iter([asked] * 3), timeout=20))
        assert all(Streamed.FromString(each).infer_response.raw_output_contents[0] == LARGE for each in answers)
        assert len(answers) == 3


async def test_many_calls_at_once_on_one_channel(talker: Talker) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{talker.port}") as channel:
        call = channel.unary_unary(INFER)
        held = [asyncio.ensure_future(call(body(id=str(each)), metadata=WAIT, timeout=20)) for each in range(200)]
        await until(lambda: talker.engine.held == 200)
        talker.let_go()
        assert [Response.FromString(await each).id for each in held] == [str(each) for each in range(200)]


def test_many_threads_on_one_channel(talker: Talker) -> None:
    answered = []
    with grpc.insecure_channel(f"127.0.0.1:{talker.port}", UNLIMITED) as channel:
        call = channel.unary_unary(INFER)

        def ask(number: int) -> None:
            raw = LARGE[: 8 * (number + 1) ** 3]
            for _ in range(10):
                answered.append(raw_of(call(body_of(raw), timeout=20)) == raw)  # noqa: PERF401

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert answered == [True] * 320


async def test_a_deadline_that_passes_and_a_call_that_is_cancelled_end_at_the_server_too(talker: Talker) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{talker.port}") as channel:
        call, stream = channel.unary_unary(INFER), channel.stream_stream(STREAM)
        late = call(body(), metadata=WAIT, timeout=0.2)
        assert await late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        given_up = call(body(), metadata=WAIT), stream(iter([body()]), metadata=WAIT)
        await until(lambda: talker.engine.held == 3)
        for each in given_up:
            each.cancel()
        await until(lambda: talker.engine.cancelled == 3)
        assert raw_of(await call(body(), timeout=5))


async def test_calls_whose_deadline_passes_together_do_not_cost_the_others(talker: Talker) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{talker.port}") as channel:
        call = channel.unary_unary(INFER)
        kept = asyncio.ensure_future(call(body(id="kept"), metadata=WAIT, timeout=20))
        given_up = [asyncio.ensure_future(call(body(), metadata=WAIT)) for _ in range(800)]
        await until(lambda: talker.engine.held == 801)
        for each in given_up:
            each.cancel()
        await until(lambda: talker.engine.cancelled >= 800)
        talker.let_go()
        assert Response.FromString(await kept).id == "kept"


def test_a_client_that_asks_often_whether_the_connection_lives_is_answered(talker: Talker) -> None:
    options = (
        ("grpc.keepalive_time_ms", 100),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    )
    with grpc.insecure_channel(f"127.0.0.1:{talker.port}", options) as channel:
        call = channel.unary_unary(INFER)
        assert raw_of(call(body(), timeout=5))
        waiting = call.future(body(), metadata=WAIT)
        time.sleep(1)
        talker.let_go()
        assert raw_of(waiting.result(5))
        assert talker.left()[0] == 1


def test_a_server_that_stops_answers_what_is_under_way_and_its_successor_the_rest() -> None:
    with talking() as talker, grpc.insecure_channel(f"127.0.0.1:{talker.port}") as channel:
        call = channel.unary_unary(INFER)
        waiting = [call.future(body(id=str(number)), metadata=WAIT) for number in range(20)]
        wait_for(lambda: talker.engine.held == 20)
        talker.loop.call_soon_threadsafe(talker.loop.call_later, 0.2, talker.engine.gate.set)
        talker.stop(5)
        assert [Response.FromString(each.result(5)).id for each in waiting] == [str(number) for number in range(20)]
        with pytest.raises(grpc.RpcError) as raised:
            call(body(), timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
