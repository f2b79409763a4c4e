"""The bound over all bodies that are being received, as gRPC keeps it."""

from collections.abc import Iterator
from typing import Any

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from serving.intake import COUNT_FROM_BYTES, NO_ROOM, Intake
from serving.protocol.errors import Code
from tests.serving.grpc_talker import (
    MOST_WINDOW,
    STREAM,
    WAIT,
    Client,
    Talker,
    body,
    body_of,
    data,
    prefixed,
    reset,
    talking,
    wait_for,
)

KIBIBYTE = 1024
MEBIBYTE = 1024 * KIBIBYTE
ROOM = 400 * KIBIBYTE
LARGE = 200 * KIBIBYTE  # one of these fits beside nothing of its size
BESIDE = 100 * KIBIBYTE  # and this beside it, in what is for those that begin


@pytest.fixture
def intake() -> Iterator[Intake]:
    made = Intake(ROOM)
    yield made
    assert made.taken_bytes == 0


@pytest.fixture
def talker(intake: Intake) -> Iterator[Talker]:
    with talking(intake=intake) as running:
        yield running


@pytest.fixture
def client(talker: Talker) -> Iterator[Client]:
    settings = {SettingCodes.INITIAL_WINDOW_SIZE: MOST_WINDOW}
    with talker.connect(settings=settings, window=MOST_WINDOW - 65535) as connected:
        yield connected


def message(size: int) -> bytes:
    """A request of ``size`` bytes, with its prefix."""
    raw = bytes(size // 8 * 8)
    spare = len(body_of(raw)) - size
    encoded = body_of(bytes((size - spare - 16) // 8 * 8))
    encoded = body_of(bytes((size - spare - 16) // 8 * 8), id="i" * (size - len(encoded) - 2))
    assert len(encoded) == size
    return prefixed(encoded)


def begin(client: Client, part: bytes, *extra: tuple[str, str], path: str | None = None) -> int:
    """A call of which a part of its message comes; its stream."""
    stream = client.new_stream()
    named: dict[str, Any] = {} if path is None else {"path": path}
    client.send(client.head(stream, *extra, **named) + (data(stream, part, end=False) if part else b""))
    return stream


def test_a_message_counts_as_it_comes_and_until_its_answer_is_given(
    talker: Talker, client: Client, intake: Intake
) -> None:
    whole = message(LARGE)
    stream = begin(client, whole[: COUNT_FROM_BYTES + 4], WAIT)
    client.ping()
    assert intake.taken_bytes == 0
    client.send(data(stream, whole[COUNT_FROM_BYTES + 4 : COUNT_FROM_BYTES + 6], end=False))
    wait_for(lambda: intake.taken_bytes == COUNT_FROM_BYTES + 1)
    client.send(data(stream, whole[COUNT_FROM_BYTES + 6 :]))
    wait_for(lambda: talker.engine.held)
    assert intake.taken_bytes == LARGE
    talker.let_go()
    assert client.answer(stream).status == Code.OK
    wait_for(lambda: intake.taken_bytes == 0)


def test_prefixes_without_messages_take_nobody_s_room(client: Client, intake: Intake) -> None:
    for _ in range(16):
        begin(client, message(LARGE)[:KIBIBYTE])
    assert client.infer(message(ROOM)[5:]).status == Code.OK
    assert intake.taken_bytes == 0


def test_a_message_for_which_there_is_no_room_is_refused_and_its_connection_goes_on(
    client: Client, intake: Intake
) -> None:
    whole = message(LARGE)
    holding = begin(client, whole[:-1])
    wait_for(lambda: intake.taken_bytes == LARGE - 1)
    refused = client.infer(message(LARGE)[5:])
    assert (refused.status, refused.details) == (Code.UNAVAILABLE, NO_ROOM)
    assert client.infer(message(BESIDE)[5:]).status == Code.OK
    assert client.infer().status == Code.OK
    client.send(data(holding, whole[-1:]))
    assert client.answer(holding).status == Code.OK


def test_a_message_that_finds_no_room_half_way_is_refused_and_another_gets_through(
    client: Client, intake: Intake
) -> None:
    first, second = message(LARGE), message(MEBIBYTE)
    holding = begin(client, second[:KIBIBYTE])
    dropped = begin(client, first[: BESIDE + 5])
    wait_for(lambda: intake.taken_bytes == BESIDE)
    client.send(data(holding, second[KIBIBYTE : ROOM - BESIDE + 5], end=False))
    wait_for(lambda: intake.taken_bytes == ROOM)
    client.send(data(dropped, first[BESIDE + 5 :], end=False))
    answer = client.answer(dropped)
    assert (answer.status, answer.details) == (Code.UNAVAILABLE, NO_ROOM)
    client.pump(lambda: client.answers[dropped].reset is not None)
    assert client.answers[dropped].reset == ErrorCodes.NO_ERROR
    assert intake.taken_bytes == ROOM - BESIDE
    client.send(data(dropped, b"late"), data(holding, second[ROOM - BESIDE + 5 :]))
    assert client.answer(holding).status == Code.OK, "alone it may have all it needs"


def test_each_message_of_a_stream_counts_until_its_answer_is_made(
    talker: Talker, client: Client, intake: Intake
) -> None:
    stream = begin(client, message(LARGE) + message(BESIDE) + prefixed(body()), WAIT, path=STREAM)
    wait_for(lambda: talker.engine.held == 3)
    assert intake.taken_bytes == LARGE + BESIDE
    talker.let_go()
    wait_for(lambda: intake.taken_bytes == 0)
    client.send(data(stream, b""))
    assert len(client.answer(stream).messages()) == 3


def test_a_stream_that_finds_no_room_half_way_ends_and_lets_go_of_all(
    talker: Talker, client: Client, intake: Intake
) -> None:
    stream = begin(client, message(BESIDE) + message(LARGE)[:KIBIBYTE], WAIT, path=STREAM)
    wait_for(lambda: talker.engine.held == 1)
    holding = begin(client, message(LARGE)[:LARGE])
    wait_for(lambda: intake.taken_bytes == BESIDE + LARGE - 5)
    client.send(data(stream, bytes(BESIDE - KIBIBYTE), end=False))
    wait_for(lambda: intake.taken_bytes > ROOM - KIBIBYTE)
    client.send(data(stream, bytes(KIBIBYTE), end=False))
    answer = client.answer(stream)
    assert (answer.status, answer.details) == (Code.UNAVAILABLE, NO_ROOM)
    wait_for(lambda: intake.taken_bytes == LARGE - 5)
    client.send(reset(holding))
    wait_for(lambda: intake.taken_bytes == 0)


@pytest.mark.parametrize("path", [None, STREAM])
def test_what_a_client_leaves_behind_that_goes_away_is_let_go_of(
    talker: Talker, intake: Intake, path: str | None
) -> None:
    with talker.connect() as client:
        begin(client, message(LARGE)[:-1], path=path)
        wait_for(lambda: intake.taken_bytes == LARGE - 1)
    wait_for(lambda: intake.taken_bytes == 0)
