"""How answers leave for a client that is slow, half gone or ungrateful, and what is kept meanwhile."""

import gc
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from serving.arena import Arena
from serving.door import Limits
from serving.grpc_sender import Sender
from serving.grpc_stream import Stream
from serving.intake import NO_ROOM, Intake
from serving.protocol.errors import Code
from tests.serving.grpc_talker import (
    INFER,
    MOST_WINDOW,
    STREAM,
    WAIT,
    Client,
    Kind,
    Talker,
    body,
    body_of,
    data,
    frame,
    frame_head,
    prefixed,
    reset,
    talking,
    wait_for,
    window_update,
)

MEBIBYTE = 1 << 20
WIDE = {SettingCodes.INITIAL_WINDOW_SIZE: MOST_WINDOW}
CLOSED = {SettingCodes.INITIAL_WINDOW_SIZE: 0}
WATCH = "/grpc.health.v1.Health/Watch"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are kept more closely than in production, so that the cases can be short."""
    monkeypatch.setattr("serving.door._TICK_S", 0.05)


@pytest.fixture
def unswept() -> Iterator[None]:
    """What is in a cycle stays."""
    gc.disable()
    yield
    gc.enable()


def wide(talker: Talker, *, receive_buffer: int | None = None) -> Client:
    """A client whose windows hold nothing back."""
    return talker.connect(settings=WIDE, window=MOST_WINDOW - 65535, receive_buffer=receive_buffer)


def test_a_client_that_half_closes_right_behind_its_request_gets_its_answer() -> None:
    with talking() as talker:
        for _ in range(50):
            with talker.connect() as client:
                stream = client.ask(prefixed(body()))
                client.socket.shutdown(socket.SHUT_WR)
                assert client.answer(stream).status == Code.OK


def test_a_server_that_stops_lets_its_last_answers_leave() -> None:
    with talking() as talker, talker.connect() as client:
        encoded = body_of(bytes(600_000))
        stream = client.ask(prefixed(encoded), WAIT)
        answer = client.answers[stream]
        wait_for(lambda: talker.engine.held == 1)
        stopping = threading.Thread(target=talker.stop, args=(10,))
        stopping.start()
        talker.let_go()
        while not answer.over:  # windows as small as they are at first, opened as the bytes come
            client.pump(lambda: answer.over or answer.window == 0 or client.window == 0)
            if not answer.over:
                client.open(stream, 65535 - answer.window)
                client.open(0, 65535 - client.window)
        stopping.join(10)
        assert not stopping.is_alive(), "what has left is not waited for"
        assert len(answer.messages()) == 1
        assert answer.status == Code.OK


def test_a_client_that_said_farewell_may_read_for_longer_than_it_may_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.grpc_server.LINGER_S", 0.1)
    with talking() as talker, wide(talker, receive_buffer=65536) as client:
        stream = client.ask(prefixed(body_of(bytes(12 * MEBIBYTE))), WAIT)
        wait_for(lambda: talker.engine.held == 1)
        client.send(frame(Kind.GOAWAY, 0, 0, bytes(8)))
        client.ping()
        talker.let_go()
        for _ in range(5):
            time.sleep(0.1)
            before = len(client.answers[stream].data)
            client.pump(lambda: len(client.answers[stream].data) > before)  # noqa: B023
        assert client.answer(stream).status == Code.OK


def test_a_half_closed_client_that_never_reads_is_given_up() -> None:
    with talking(Limits(write_s=0.3)) as talker, wide(talker, receive_buffer=4096) as client:
        client.ping()
        connection = next(iter(talker.server.listener.connections))
        encoded = body_of(bytes(30_000))
        while not connection._sender.owes:  # in steps that the transport takes without a word
            client.ask(prefixed(encoded))
            time.sleep(0.005)
        client.ask(prefixed(body()), WAIT)
        wait_for(lambda: talker.engine.held == 1)
        client.socket.shutdown(socket.SHUT_WR)
        time.sleep(0.1)
        talker.let_go()
        talker.wait_settled()


def test_a_client_that_reads_on_for_longer_than_one_answer_may_wait_gets_it_whole() -> None:
    with talking(Limits(write_s=0.3)) as talker, wide(talker, receive_buffer=65536) as client:
        stream = client.ask(prefixed(body_of(bytes(12 * MEBIBYTE))))
        for _ in range(8):
            time.sleep(0.1)
            before = len(client.answers[stream].data)
            client.pump(lambda: len(client.answers[stream].data) > before + 65536)  # noqa: B023
        assert client.answer(stream).status == Code.OK


def test_a_client_that_takes_a_byte_now_and_then_is_given_up() -> None:
    with talking(Limits(write_s=0.3)) as talker, talker.connect(settings=CLOSED) as client:
        client.pump(lambda: client.acks == 1)
        stream = client.ask(prefixed(body_of(bytes(100_000))))
        for _ in range(20):
            time.sleep(0.1)
            if client.answers[stream].over:
                break
            client.open(stream, 1)
            client.ping()
        assert client.answers[stream].reset == ErrorCodes.CANCEL


def test_an_idle_stream_keeps_neither_its_last_message_nor_its_last_answer(unswept: None) -> None:
    arena, intake = Arena(64 * MEBIBYTE), Intake(64 * MEBIBYTE)
    with talking(arena=arena, intake=intake) as talker, wide(talker) as client:
        for _ in range(3):
            stream = client.new_stream()
            client.send(client.head(stream, path=STREAM) + data(stream, prefixed(body_of(bytes(MEBIBYTE))), end=False))
            answer = client.answers[stream]
            client.pump(lambda: len(answer.data) > MEBIBYTE)  # noqa: B023
        talker.engine.seen.clear()
        client.ping()
        assert (arena.used_bytes, intake.taken_bytes) == (0, 0)


def test_what_a_stream_that_is_reset_had_not_taken_yet_is_let_go_at_once(unswept: None) -> None:
    arena, intake = Arena(64 * MEBIBYTE), Intake(64 * MEBIBYTE)
    with talking(arena=arena, intake=intake) as talker, talker.connect() as client:
        stream = client.new_stream()
        client.send(client.head(stream, WAIT, path=STREAM))
        client.send(data(stream, prefixed(body()) * 200, end=False))  # more than run side by side
        client.send(data(stream, prefixed(body_of(bytes(MEBIBYTE))), end=False))
        client.ping()
        wait_for(lambda: talker.engine.held >= 128)
        assert arena.used_bytes > 0
        client.send(reset(stream))
        client.ping()
        wait_for(lambda: talker.engine.cancelled == talker.engine.held)
        talker.engine.seen.clear()
        assert (arena.used_bytes, intake.taken_bytes) == (0, 0)


def test_a_method_that_takes_one_message_takes_no_second() -> None:
    intake = Intake(16 * MEBIBYTE)
    with talking(intake=intake) as talker, talker.connect() as client:
        stream = client.new_stream()
        client.send(client.head(stream, path=WATCH) + data(stream, prefixed(b"") + prefixed(bytes(100_000)), end=False))
        answer = client.answer(stream)
        assert (answer.status, answer.details) == (Code.UNIMPLEMENTED, "the method takes one message, but more came")
        assert intake.taken_bytes == 0


def test_small_messages_of_one_connection_count_together() -> None:
    intake = Intake(4 * MEBIBYTE)
    with talking(intake=intake) as talker, talker.connect() as client:
        message = prefixed(body_of(bytes(60_000)))
        streams = [client.new_stream() for _ in range(8)]
        for stream in streams:
            client.send(client.head(stream, WAIT, path=STREAM))
            for _ in range(40):
                client.send(frame_head(len(message), Kind.DATA, 0, stream) + message)
        client.ping()
        assert 2 * MEBIBYTE < intake.taken_bytes <= intake.capacity_bytes
        refused = [client.answers[stream] for stream in streams if client.answers[stream].over]
        assert refused
        assert {(each.status, each.details) for each in refused} == {(Code.UNAVAILABLE, NO_ROOM)}
        for stream in streams:
            if not client.answers[stream].over:
                client.send(reset(stream))
        client.ping()
        wait_for(lambda: intake.taken_bytes == 0)


@pytest.mark.parametrize("path", [INFER, STREAM])
def test_answers_that_a_client_does_not_take_count_and_those_too_many_are_refused(path: str) -> None:
    intake = Intake(8 * MEBIBYTE)
    with talking(intake=intake) as talker, talker.connect(settings=CLOSED) as client:
        client.pump(lambda: client.acks == 1)
        message = prefixed(body_of(bytes(MEBIBYTE)))
        streams = []
        for _ in range(12):
            streams.append(client.ask(message, path=path))
            client.ping()
        wait_for(lambda: talker.engine.answered == 12 or any(client.answers[each].over for each in streams))
        client.ping()
        assert intake.taken_bytes <= intake.capacity_bytes
        refused = [each for each in streams if client.answers[each].over]
        assert refused
        assert {client.answers[each].status for each in refused} == {Code.UNAVAILABLE}
        for stream in streams:  # those that wait are whole as soon as their client takes them
            if stream not in refused:
                client.open(stream, 2 * MEBIBYTE)
                client.open(0, 2 * MEBIBYTE)
                assert client.answer(stream).status == Code.OK
        wait_for(lambda: intake.taken_bytes == 0)


def test_the_connection_s_window_opened_byte_by_byte_touches_no_stream_that_waits_for_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with talking() as talker, talker.connect(settings=CLOSED) as client:
        client.pump(lambda: client.acks == 1)
        streams = [client.ask(prefixed(body())) for _ in range(100)]
        wait_for(lambda: talker.engine.answered == 100)
        pumped: list[int] = []
        pump = Sender.pump

        def counted(self: Sender, stream: Stream) -> bool:
            pumped.append(stream.id)
            return pump(self, stream)

        monkeypatch.setattr(Sender, "pump", counted)
        client.send(window_update(0, 1) * 500)
        client.ping()
        assert pumped == []
        client.open(streams[0], 1)
        client.ping()
        assert pumped == [streams[0]]
        for stream in streams:
            client.open(stream, 10_000)
        for stream in streams:
            assert client.answer(stream).status == Code.OK


def test_a_frame_that_is_overdue_when_the_last_call_ends_harms_nobody() -> None:
    with talking(Limits(body_s=0.3, head_s=0.3)) as talker, talker.connect() as client:
        client.ping()
        stream = client.new_stream()
        client.send(client.head(stream))
        client.ping()
        client.send(frame(Kind.GOAWAY, 0, 0, bytes(8)) + b"\0\0\x08")
        client.wait_end()
        talker.wait_settled()
