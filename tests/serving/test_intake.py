"""The bound over all bodies that are being received: the account itself, what HTTP takes of it, and decompression."""

import asyncio
import gzip
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.dataplane import DataPlane
from serving.door import Limits
from serving.errors import InvalidArgumentError, PayloadTooLargeError, UnavailableError
from serving.http import HttpApp
from serving.http_server import HttpRequest
from serving.intake import COUNT_FROM_BYTES, Intake
from tests.serving.echo_engine import EchoEngine
from tests.serving.talker import Client, Talker, talking

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE
ROOM = 400 * KIBIBYTE
LARGE = 200 * KIBIBYTE  # one of these fits beside nothing of its size
BESIDE = 100 * KIBIBYTE  # and this beside it, in what is for those that begin
LIMITS = Limits(body_bytes=MEBIBYTE)


# -- the account ---------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(0, 100)), capacity=st.integers(1, 200))
def test_what_is_admitted_is_never_more_than_the_capacity_but_for_a_body_alone(sizes: list[int], capacity: int) -> None:
    intake = Intake(capacity)
    admitted = [size for size in sizes if intake.admit(size)]
    assert intake.taken_bytes == sum(admitted)
    assert intake.taken_bytes <= capacity or len([size for size in admitted if size]) == 1
    for size in admitted:
        intake.release(size)
    assert intake.taken_bytes == 0


def test_a_body_that_grows_alone_may_go_on_but_beside_another_it_may_not() -> None:
    intake = Intake(100)
    assert intake.admit(90)
    assert intake.admit(90, held=90)
    assert not intake.admit(1)
    intake.release(180)
    assert intake.admit(10)
    assert intake.admit(60)
    assert not intake.admit(40, held=60)
    assert intake.taken_bytes == 70


def test_the_last_quarter_is_for_bodies_that_have_begun() -> None:
    intake = Intake(100)
    assert intake.admit(75)
    assert not intake.has_room(1)
    assert not intake.admit(1)
    assert intake.has_room(25, held=75)
    assert intake.admit(10, held=60)
    assert not intake.admit(16, held=70)
    assert intake.taken_bytes == 85


@pytest.mark.parametrize(("bodies", "fit"), [(64, 16), (1000, 16), (300, 4)])
def test_of_a_flock_that_is_refused_half_way_and_comes_again_at_once_a_good_part_gets_through(
    bodies: int, fit: int
) -> None:
    """All grow at random by a 64th; what was refused begins anew with its next piece."""
    size, chance = 64, random.Random(bodies)
    intake, held = Intake(fit * size), [0] * bodies
    pieces = whole = 0
    for _ in range(100_000):
        body = chance.randrange(bodies)
        if not intake.admit(1, held=held[body]):
            intake.release(held[body])
            held[body] = 0
            continue
        pieces, held[body] = pieces + 1, held[body] + 1
        assert intake.taken_bytes <= fit * size
        if held[body] == size:
            intake.release(size)
            held[body], whole = 0, whole + 1
    assert intake.taken_bytes == sum(held)
    assert whole * size > pieces / 8, "nearly all that was let in was for nothing"


# -- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def intake() -> Intake:
    return Intake(ROOM)


@pytest.fixture
def talker(intake: Intake) -> Iterator[Talker]:
    with talking(LIMITS, intake=intake) as running:
        yield running


@pytest.fixture
def client(talker: Talker) -> Iterator[Client]:
    with talker.connect() as connected:
        yield connected


def post(body: bytes, *headers: bytes, target: bytes = b"/") -> bytes:
    return head(len(body), *headers, target=target) + body


def head(size: int, *headers: bytes, target: bytes = b"/") -> bytes:
    return b"\r\n".join((b"POST %b HTTP/1.1" % target, b"Content-Length: %d" % size, *headers, b"", b""))


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, bytes(size))


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < ends, "it did not come to pass"
        time.sleep(0.005)


def test_a_body_counts_as_it_comes_and_until_its_answer_is_written(
    talker: Talker, client: Client, intake: Intake
) -> None:
    client.send(head(LARGE, target=b"/wait"), bytes(COUNT_FROM_BYTES))
    until(lambda: intake.taken_bytes == COUNT_FROM_BYTES)
    client.send(b"x")
    until(lambda: intake.taken_bytes == COUNT_FROM_BYTES + 1)
    client.send(bytes(LARGE - COUNT_FROM_BYTES - 1))
    until(lambda: len(talker.seen) == 1)
    assert intake.taken_bytes == LARGE
    talker.let_go()
    assert client.answer().status == 200
    until(lambda: intake.taken_bytes == 0)


def test_a_body_for_which_there_is_no_room_is_refused_and_its_connection_goes_on(
    talker: Talker, client: Client, intake: Intake
) -> None:
    with talker.connect() as holding:
        holding.send(head(LARGE + 1), bytes(LARGE))
        until(lambda: intake.taken_bytes == LARGE)
        answer = client.ask(post(bytes(LARGE)))
        assert (answer.status, answer.headers[b"content-type"]) == (503, b"application/json")
        assert "as many bytes as it has room for" in json.loads(answer.body)["error"]
        assert client.ask(post(bytes(BESIDE))).status == 200
        assert intake.taken_bytes == LARGE
        assert holding.ask(b"x").status == 200
    assert client.ask(post(bytes(LARGE))).status == 200


def test_heads_without_bodies_take_nobody_s_room(talker: Talker, client: Client, intake: Intake) -> None:
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(talker.connect()).send(head(ROOM), bytes(KIBIBYTE))
        until(lambda: talker.connections() == 17)
        assert client.ask(post(bytes(ROOM))).status == 200
        assert intake.taken_bytes == 0


@pytest.mark.parametrize("left", [0, 1, LARGE])
def test_a_body_that_finds_no_room_half_way_is_dropped_to_its_end_and_its_connection_goes_on(
    talker: Talker, client: Client, intake: Intake, left: int
) -> None:
    with talker.connect() as holding:
        holding.send(head(MEBIBYTE), bytes(KIBIBYTE))
        until(lambda: talker.connections() == 2)
        client.send(head(LARGE + left), bytes(BESIDE))
        until(lambda: intake.taken_bytes == BESIDE)
        holding.send(bytes(LARGE - KIBIBYTE))
        until(lambda: intake.taken_bytes == BESIDE + LARGE)
        holding.send(bytes(ROOM - BESIDE - LARGE))
        until(lambda: intake.taken_bytes == ROOM)
        client.send(bytes(LARGE - BESIDE))
        until(lambda: intake.taken_bytes == ROOM - BESIDE)
        assert client.ask(bytes(left)).status == 503
        assert client.ask(post(b"x")).status == 200
        assert holding.ask(bytes(MEBIBYTE - (ROOM - BESIDE))).status == 200, "alone it may have all it needs"
    assert [len(request.body) for request in talker.seen] == [1, MEBIBYTE]


def test_of_many_bodies_at_a_time_some_get_through_and_each_gets_an_answer(talker: Talker, intake: Intake) -> None:
    """Each sends a piece in turn, and once more from its beginning what was refused."""
    piece, pieces = 16 * KIBIBYTE, 16
    with ExitStack() as stack:
        clients = [stack.enter_context(talker.connect()) for _ in range(12)]
        statuses: list[int] = []
        for _ in range(3):
            for client in clients:
                client.send(head(piece * pieces))
            for _ in range(pieces):
                for client in clients:
                    client.send(bytes(piece))
            statuses += [client.answer().status for client in clients]
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 3
    until(lambda: intake.taken_bytes == 0)


def test_small_bodies_are_taken_however_full_it_is(talker: Talker, client: Client, intake: Intake) -> None:
    with talker.connect() as holding:
        holding.send(head(ROOM + 1), bytes(ROOM))
        until(lambda: intake.taken_bytes == ROOM)
        for _ in range(10):
            assert client.ask(post(bytes(COUNT_FROM_BYTES - 1))).status == 200


def test_alone_a_body_may_be_larger_than_all_the_room(client: Client) -> None:
    assert client.ask(post(bytes(MEBIBYTE))).status == 200
    assert client.ask(CHUNKED, *(chunk(100 * KIBIBYTE) for _ in range(10)), b"0\r\n\r\n").status == 200


def test_who_waits_to_be_told_to_send_is_told_that_there_is_no_room(
    talker: Talker, client: Client, intake: Intake
) -> None:
    with talker.connect() as holding:
        holding.send(head(LARGE + 1), bytes(LARGE))
        until(lambda: intake.taken_bytes == LARGE)
        assert client.ask(head(LARGE, b"Expect: 100-continue")).status == 503
        assert client.ended()


def test_a_chunked_body_counts_as_it_grows_and_is_refused_when_the_room_is_full(
    talker: Talker, client: Client, intake: Intake
) -> None:
    with talker.connect() as holding:
        holding.send(head(LARGE + 1), bytes(LARGE))
        until(lambda: intake.taken_bytes == LARGE)
        client.send(CHUNKED, chunk(80 * KIBIBYTE))
        until(lambda: intake.taken_bytes == LARGE + 80 * KIBIBYTE)
        client.send(chunk(130 * KIBIBYTE))
        until(lambda: intake.taken_bytes == LARGE)
        assert client.ask(chunk(80 * KIBIBYTE), b"0\r\n\r\n").status == 503
        assert client.ask(post(b"x")).status == 200


@pytest.mark.parametrize("sent", [head(LARGE + 1) + bytes(LARGE), CHUNKED + chunk(LARGE)])
def test_what_a_client_leaves_behind_that_goes_away_is_let_go_of(talker: Talker, intake: Intake, sent: bytes) -> None:
    with talker.connect() as client:
        client.send(sent)
        until(lambda: intake.taken_bytes >= LARGE)
        client.reset()
    until(lambda: intake.taken_bytes == 0)


def test_requests_that_wait_for_an_earlier_one_s_answer_are_let_go_of_with_their_connection(
    talker: Talker, intake: Intake
) -> None:
    with talker.connect() as client:
        client.send(post(b"", target=b"/wait"), post(bytes(LARGE)))
        until(lambda: intake.taken_bytes == LARGE)
        client.reset()
    talker.let_go()  # a connection that waits so is not read from, and its end may not be noticed before
    until(lambda: intake.taken_bytes == 0)


def test_a_request_under_way_counts_though_its_client_has_gone(talker: Talker, intake: Intake) -> None:
    with talker.connect() as client:
        client.send(post(bytes(LARGE), target=b"/wait"))
        until(lambda: len(talker.seen) == 1)
        client.reset()
        until(lambda: talker.connections() == 0)
        assert intake.taken_bytes == LARGE
    talker.let_go()
    until(lambda: intake.taken_bytes == 0)


@pytest.mark.parametrize("sent", [head(LARGE + 1) + bytes(LARGE), CHUNKED + chunk(LARGE)])
def test_a_body_that_does_not_arrive_in_time_is_let_go_of(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr("serving.door._TICK_S", 0.02)
    intake = Intake(ROOM)
    with talking(Limits(body_bytes=MEBIBYTE, body_s=0.1), intake=intake) as talker, talker.connect() as client:
        client.send(sent)
        until(lambda: intake.taken_bytes >= LARGE)
        assert client.answer().status == 408
        until(lambda: intake.taken_bytes == 0)


def test_a_server_that_stops_lets_go_of_all(talker: Talker, client: Client, intake: Intake) -> None:
    client.send(post(bytes(LARGE), target=b"/wait"))
    until(lambda: len(talker.seen) == 1)
    talker.stop(0.01)
    until(lambda: intake.taken_bytes == 0)


# -- decompression -------------------------------------------------------------------------------------------------

BOMB = gzip.compress(bytes(8 * MEBIBYTE))


async def test_what_a_body_decompresses_to_counts_as_it_comes_and_until_it_is_released(intake: Intake) -> None:
    for size in (0, 1, COUNT_FROM_BYTES - 1, COUNT_FROM_BYTES, MEBIBYTE, 8 * MEBIBYTE):
        body, taken = await intake.decompress(gzip.compress(bytes(size)), "gzip", 8 * MEBIBYTE, held=0)
        assert body == bytes(size)
        assert intake.taken_bytes == taken == (size if size >= COUNT_FROM_BYTES else 0)
        intake.release(taken)


async def test_incompressible_bodies_come_back_whole(intake: Intake) -> None:
    body = bytes(range(256)) * 20_000
    packed = gzip.compress(body, 0)
    assert (await intake.decompress(packed, "gzip", len(body), held=0))[0] == body


async def test_together_bombs_are_given_no_more_than_the_room_whatever_they_would_take() -> None:
    intake = Intake(16 * MEBIBYTE)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, intake.taken_bytes)
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    bombs = [intake.decompress(BOMB, "gzip", 64 * MEBIBYTE, held=0) for _ in range(8)]
    ends = await asyncio.gather(*bombs, return_exceptions=True)
    watching.cancel()
    kept = [end[1] for end in ends if not isinstance(end, BaseException)]
    assert {type(end) for end in ends if isinstance(end, BaseException)} == {UnavailableError}
    assert intake.taken_bytes == sum(kept)
    assert max(most, sum(kept)) <= 16 * MEBIBYTE


@pytest.mark.parametrize(
    ("packed", "error"),
    [
        (BOMB[:-1], InvalidArgumentError),
        (BOMB + b"x", InvalidArgumentError),
        (b"\x00" + BOMB, InvalidArgumentError),
        (gzip.compress(bytes(9 * MEBIBYTE)), PayloadTooLargeError),
    ],
)
async def test_a_body_that_cannot_be_decompressed_leaves_nothing_behind(
    intake: Intake, packed: bytes, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await intake.decompress(packed, "gzip", 8 * MEBIBYTE, held=0)
    assert intake.taken_bytes == 0


async def test_what_a_request_decompresses_to_is_let_go_of_with_its_answer_or_refused_with_503(intake: Intake) -> None:
    app = HttpApp(DataPlane(EchoEngine()), max_body_bytes=16 * MEBIBYTE, intake=intake)
    headers = {b"content-encoding": b"gzip", b"inference-header-content-length": b"0"}
    request = HttpRequest("POST", b"/v2/models/m/infer", headers, BOMB)
    reply = await app(request)
    assert reply.status == 400, "8 MiB are no vector of two"
    assert intake.taken_bytes == 0
    assert intake.admit(LARGE)
    assert (await app(request)).status == 503
    assert intake.taken_bytes == LARGE
