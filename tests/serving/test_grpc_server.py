"""gRPC frame by frame, over real sockets: what is understood, what is refused, and what a client may take."""

import contextlib
import gzip
import logging
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from itertools import pairwise

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import ConnectionTerminated, DataReceived, Event, StreamEnded, TrailersReceived
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.door import Limits
from serving.protocol.proto import HEALTH, INFERENCE
from tests.serving.grpc_talker import (
    ACK,
    END_HEADERS,
    END_STREAM,
    INFER,
    LIVE,
    MOST_WINDOW,
    PADDED,
    PREFACE,
    PRIORITY,
    STREAM,
    WAIT,
    Answer,
    Client,
    Kind,
    Request,
    Response,
    Streamed,
    Talker,
    body,
    body_of,
    data,
    frame,
    frame_head,
    prefixed,
    reset,
    resident_bytes,
    settings_frame,
    talking,
    wait_for,
    window_update,
)

SMALL = Limits(head_bytes=4000, connections=64)
MOST_BYTES = 100_000  # of a message
OK, INVALID, DEADLINE, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 0, 3, 4, 5, 8, 12, 13, 14
CALM, CLOSED, FLOW, PROTOCOL = (
    ErrorCodes.ENHANCE_YOUR_CALM,
    ErrorCodes.STREAM_CLOSED,
    ErrorCodes.FLOW_CONTROL_ERROR,
    ErrorCodes.PROTOCOL_ERROR,
)
COMPRESSION, SIZE = ErrorCodes.COMPRESSION_ERROR, ErrorCodes.FRAME_SIZE_ERROR


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are kept more closely than in production, so that the cases can be short."""
    monkeypatch.setattr("serving.door._TICK_S", 0.05)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a client does is an error of the server's."""
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture(scope="module")
def shared() -> Iterator[Talker]:
    """A server with small limits for all that leaves it as it was."""
    with talking(SMALL, max_message_bytes=MOST_BYTES) as running:
        yield running


@pytest.fixture
def talker(shared: Talker) -> Iterator[Talker]:
    """The shared server; it must answer others when the case is over, and keep nothing of this one."""
    shared.engine.seen.clear()
    shared.engine.held = shared.engine.cancelled = shared.engine.answered = 0
    shared.hold()
    before = shared.left()[1]
    yield shared
    with shared.connect() as client:
        assert_echoed(client.infer())
    shared.wait_settled(before)
    shared.engine.seen.clear()
    assert shared.faults == []


@pytest.fixture
def client(talker: Talker) -> Iterator[Client]:
    with talker.connect() as connected:
        yield connected


def assert_echoed(answer: Answer, encoded: bytes | None = None) -> None:
    """The answer to ``body()``, or to another request."""
    assert answer.status == OK, answer
    assert answer.http_status == 200
    assert answer.blocks[0][b"content-type"].startswith(b"application/grpc")
    (said,) = answer.messages()
    expected = body_input(body() if encoded is None else encoded)
    assert Response.FromString(said).raw_output_contents[0] == expected


def body_input(encoded: bytes) -> bytes:
    raw: bytes = Request.FromString(encoded).raw_input_contents[0]
    return raw


def assert_refused(answer: Answer, *statuses: int) -> None:
    assert answer.http_status == 200
    assert answer.status in statuses, answer
    assert not answer.data


# -- what is understood ------------------------------------------------------------------------------------------------


def test_settings_are_sent_first_and_acknowledged_and_pings_are_answered(client: Client) -> None:
    client.pump(lambda: bool(client.settings) and client.acks == 1)
    client.set({SettingCodes.INITIAL_WINDOW_SIZE: 70_000, 0xABC: 7})
    client.set({})
    client.pump(lambda: client.acks == 3)
    client.ping(bytes(range(8)))
    client.send(frame(Kind.PING, ACK, 0, bytes(8)))
    client.ping()
    assert len(client.pongs) == 2


def test_requests_are_answered_one_after_the_other(client: Client) -> None:
    client.open(0, 1 << 20)
    for number in range(300):
        encoded = body(number, -number, id=str(number))
        assert_echoed(client.infer(encoded), encoded)
    assert list(client.answers) == list(range(1, 600, 2))


def test_other_methods_and_types_with_a_suffix_are_answered(client: Client) -> None:
    for content_type in ("application/grpc", "application/grpc+proto", "application/grpc;x=y"):
        answer = client.infer(b"", path=LIVE, content_type=content_type)
        assert (answer.status, answer.messages()) == (OK, [b"\x08\x01"])
    assert client.infer(b"", path=f"/{HEALTH}/Check").messages() == [b"\x08\x01"]


def test_requests_interleaved_over_streams_are_answered_each_with_its_own(talker: Talker, client: Client) -> None:
    asked = {client.new_stream(): body(number, number, id=str(number)) for number in range(20)}
    client.send(b"".join(client.head(stream) for stream in asked))
    payloads = {stream: prefixed(encoded) for stream, encoded in asked.items()}
    longest = max(map(len, payloads.values()))
    sent = bytearray()
    for at in range(0, longest, 7):
        for stream, payload in reversed(payloads.items()):
            if at < len(payload):
                sent += data(stream, payload[at : at + 7], end=at + 7 >= len(payload))
    client.send(bytes(sent))
    for stream, encoded in asked.items():
        assert_echoed(client.answer(stream), encoded)


def test_a_short_answer_overtakes_one_that_is_waited_for(talker: Talker, client: Client) -> None:
    waiting = client.ask(prefixed(body(7, 7)), WAIT)
    assert_echoed(client.infer())
    assert not client.answers[waiting].over
    talker.let_go()
    assert_echoed(client.answer(waiting), body(7, 7))


def test_a_session_in_one_packet(talker: Talker) -> None:
    with talker.connect(preface=False) as client:
        parts = [PREFACE, settings_frame({})]
        client._unacknowledged.append({})
        for _ in range(50):
            stream = client.new_stream()
            parts += [client.head(stream), data(stream, prefixed(body()))]
        client.send(b"".join(parts))
        for stream in client.answers:
            assert_echoed(client.answer(stream))


def test_a_session_byte_by_byte(talker: Talker) -> None:
    with talker.connect(preface=False) as client:
        client._unacknowledged.append({})
        stream = client.new_stream()
        block, payload = client.block(), prefixed(body())
        session = (
            PREFACE
            + settings_frame({SettingCodes.MAX_FRAME_SIZE: 20_000})
            + frame(Kind.HEADERS, 0, stream, block[:9])
            + frame(Kind.CONTINUATION, END_HEADERS, stream, block[9:])
            + data(stream, payload[:3], end=False)
            + frame(Kind.PING, 0, 0, b"12345678")
            + data(stream, payload[3:])
        )
        for at in range(len(session)):
            client.send(session[at : at + 1])
            if at % 8 == 0:
                time.sleep(0.0005)
        assert_echoed(client.answer(stream))
        assert client.pongs == [b"12345678"]


@settings(max_examples=60)
@given(
    cuts=st.lists(st.integers(1, 400), max_size=8),
    packets=st.lists(st.integers(1, 2000), max_size=6),
    padding=st.integers(0, 255) | st.none(),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3),
)
def test_any_cutting_into_frames_and_packets_gives_the_same_answers(
    shared: Talker, cuts: list[int], packets: list[int], padding: int | None, sizes: list[int]
) -> None:
    with shared.connect() as client:
        asked, stream_bytes = {}, bytearray()
        for size in sizes:
            stream, encoded = client.new_stream(), body(*range(2 * size))
            asked[stream] = encoded
            block, payload = client.block(), prefixed(encoded)
            pieces = cut(block, [each % 60 for each in cuts])
            for number, piece in enumerate(pieces):
                kind = Kind.CONTINUATION if number else Kind.HEADERS
                stream_bytes += frame(kind, END_HEADERS if number == len(pieces) - 1 else 0, stream, piece)
            pieces = cut(payload, cuts)
            for number, piece in enumerate(pieces):
                flags = END_STREAM if number == len(pieces) - 1 else 0
                if padding is None:
                    stream_bytes += frame(Kind.DATA, flags, stream, piece)
                else:
                    padded = bytes((padding,)) + piece + bytes(padding)
                    stream_bytes += frame(Kind.DATA, flags | PADDED, stream, padded)
        for packet in cut(bytes(stream_bytes), packets):
            client.send(packet)
        for stream, encoded in asked.items():
            assert_echoed(client.answer(stream), encoded)


def cut(whole: bytes, at: list[int]) -> list[bytes]:
    """Pieces, none of them empty unless the whole is."""
    edges = sorted({0, len(whole), *(each for each in at if each < len(whole))})
    return [whole[start:end] for start, end in pairwise(edges)] or [b""]


def test_a_header_block_and_a_message_cut_at_every_byte(client: Client) -> None:
    client.open(0, 1 << 20)
    payload = prefixed(body())
    for at in range(len(payload)):
        stream = client.new_stream()
        block = client.block(("x-new", str(at)))
        client.send(
            frame(Kind.HEADERS, 0, stream, block[:at]),
            frame(Kind.CONTINUATION, END_HEADERS, stream, block[at:]),
            data(stream, payload[:at], end=False),
            data(stream, payload[at:]),
        )
        assert_echoed(client.answer(stream))


def test_empty_frames_in_between_change_nothing(client: Client) -> None:
    stream, block, payload = client.new_stream(), client.block(), prefixed(body())
    client.send(frame(Kind.HEADERS, 0, stream), frame(Kind.CONTINUATION, 0, stream))
    client.send(frame(Kind.CONTINUATION, 0, stream, block), frame(Kind.CONTINUATION, END_HEADERS, stream))
    for piece in (b"", payload[:50], b"", payload[50:], b""):
        client.send(data(stream, piece, end=False))
    client.send(data(stream, b""))
    assert_echoed(client.answer(stream))


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_and_priorities_are_left_out(client: Client, padding: int) -> None:
    stream = client.new_stream()
    lead, tail = bytes((padding,)), bytes(padding)
    head = lead + struct.pack(">IB", 3, 9) + client.block() + tail
    client.send(frame(Kind.HEADERS, END_HEADERS | PADDED | PRIORITY, stream, head))
    client.send(frame(Kind.DATA, PADDED, stream, lead + tail))
    client.send(frame(Kind.DATA, PADDED | END_STREAM, stream, lead + prefixed(body()) + tail))
    assert_echoed(client.answer(stream))


def test_a_padded_frame_may_be_as_large_as_the_server_permits(client: Client) -> None:
    client.pump(lambda: bool(client.settings))
    size = min(client.settings.get(SettingCodes.MAX_FRAME_SIZE, 16384), 80_000)
    encoded = body_of(bytes(size // 8 * 8 - 800))
    stream = client.new_stream()
    client.send(client.head(stream))
    client.open(0, 1 << 20)
    client.open(stream, 1 << 20)
    client.send(frame(Kind.DATA, PADDED | END_STREAM, stream, b"\x09" + prefixed(encoded) + bytes(9)))
    assert_echoed(client.answer(stream), encoded)


def test_padding_counts_in_windows_and_is_given_back(client: Client) -> None:
    """What is padding takes of the window, and must not be lost from it: here far more than a window's worth."""
    stream = client.new_stream()
    client.open(0, 1 << 24)
    client.pump(lambda: bool(client.settings))
    client.send(client.head(stream, path=STREAM))
    client.open(stream, 1 << 24)
    payload, sent = prefixed(body()), 0
    granted = client.settings.get(SettingCodes.INITIAL_WINDOW_SIZE, 65535)
    padded = frame(Kind.DATA, PADDED, stream, b"\xff" + payload + bytes(255))
    taken = len(padded) - 9
    total = 5 * granted // (4 * taken)
    while sent < total:
        room = (granted + client.granted.get(stream, 0)) // taken - sent
        if room <= 0:
            client.pump(lambda: (granted + client.granted.get(stream, 0)) // taken > sent, for_s=3)  # noqa: B023
            continue
        count = min(room, 100, total - sent)
        client.send(padded * count)
        sent += count
        client.ping()
    client.send(data(stream, b""))
    answer = client.answer(stream)
    assert len(answer.messages()) == total
    assert answer.status == OK


def test_trailers_from_the_client_end_its_request(client: Client) -> None:
    stream = client.new_stream()
    client.send(client.head(stream), data(stream, prefixed(body()), end=False))
    client.send(frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, client.compress(("x-checksum", "1"))))
    assert_echoed(client.answer(stream))
    assert_echoed(client.infer())


def test_what_means_nothing_here_is_ignored(client: Client) -> None:
    stream = client.new_stream()
    client.send(
        frame(0xEE, 0xFF, 0, b"whatever"),
        frame(0xEE, 0xFF, 12345, b""),
        frame(Kind.PRIORITY, 0, 99, struct.pack(">IB", 97, 1)),
        frame(Kind.PRIORITY, 0xFF, 99, struct.pack(">IB", 97, 1)),
        client.head(stream),
        frame(Kind.PRIORITY, 0, stream, struct.pack(">IB", 0, 1)),
        frame(0xAB, 0, stream, bytes(100)),
        frame(Kind.DATA, END_STREAM | 0xF2, stream | 1 << 31, prefixed(body())),  # flags and a bit without meaning
    )
    assert_echoed(client.answer(stream))
    client.send(window_update(stream, 5), reset(stream), frame(Kind.PRIORITY, 0, stream, bytes(5)))  # it is over
    assert_echoed(client.infer())


def test_an_unknown_frame_may_be_as_large_as_the_server_permits(client: Client) -> None:
    client.pump(lambda: bool(client.settings))
    size = min(client.settings.get(SettingCodes.MAX_FRAME_SIZE, 16384), 70_000)
    client.send(frame(0xEE, 0, 0, bytes(size)))
    assert_echoed(client.infer())


def test_a_client_that_wants_no_table_of_headers_is_not_sent_one(talker: Talker) -> None:
    with talker.connect(settings={SettingCodes.HEADER_TABLE_SIZE: 0}) as client:
        for _ in range(3):
            assert_echoed(client.infer())
    with talker.connect() as client:
        assert_echoed(client.infer())
        for size in (0, 4096, 100, 0):
            client.set({SettingCodes.HEADER_TABLE_SIZE: size})
            assert_echoed(client.infer())


def test_the_client_s_table_of_headers_may_shrink_and_grow_and_turn_over(client: Client) -> None:
    for number in range(60):
        client.encoder.header_table_size = (4096, 0, 200, 4096)[number % 4]
        extra = [(f"x-{number}-{each}", "v" * 50 * each) for each in range(5)]
        assert_echoed(client.infer(None, *extra))
        assert_echoed(client.infer(None, *extra))


def test_metadata_reaches_the_request_whatever_the_table_did(talker: Talker, client: Client) -> None:
    keys = [f"camera-{number % 7}" for number in range(40)]
    for key in keys:
        assert_echoed(client.infer(None, ("x-understudy-key", key)))
    assert [request.key for request in talker.engine.seen] == keys


# -- calls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [b"", prefixed(body()) * 2, prefixed(body()) + b"\0", prefixed(b"")[:0]])
def test_a_unary_call_has_one_message(client: Client, payload: bytes) -> None:
    assert_refused(client.answer(client.ask(payload)), UNIMPLEMENTED, INTERNAL)
    assert_echoed(client.infer())


def test_a_call_that_ends_with_its_headers_has_no_message(client: Client) -> None:
    stream = client.new_stream()
    client.send(client.head(stream, end=True))
    assert_refused(client.answer(stream), UNIMPLEMENTED, INTERNAL)
    stream = client.new_stream()
    client.send(client.head(stream, end=True, path=STREAM))
    assert client.answer(stream).status == OK


@pytest.mark.parametrize("path", [INFER, STREAM, LIVE])
def test_a_message_cut_short_is_no_message(talker: Talker, client: Client, path: str) -> None:
    payload = prefixed(body())
    for at in (1, 4, 5, 6, len(payload) - 1):
        assert_refused(client.answer(client.ask(payload[:at], path=path)), INTERNAL)
    assert talker.engine.seen == []


def test_compressed_messages_are_read(client: Client) -> None:
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        for encoded in (body(), body(*range(2000))):
            client.open(0, 1 << 16)
            stream = client.ask(prefixed(pack(encoded), compressed=1), ("grpc-encoding", encoding))
            assert_echoed(client.answer(stream), encoded)
        assert_echoed(client.infer(None, ("grpc-encoding", encoding)))  # not every message has to be compressed
    assert_echoed(client.infer(None, ("grpc-encoding", "identity")))


@pytest.mark.parametrize("extra", [(), (("grpc-encoding", "identity"),)])
def test_a_message_marked_as_compressed_by_nothing_is_refused(
    client: Client, extra: tuple[tuple[str, str], ...]
) -> None:
    stream = client.ask(prefixed(gzip.compress(body()), compressed=1), *extra)
    assert_refused(client.answer(stream), INTERNAL)
    assert_refused(client.answer(client.ask(prefixed(body(), compressed=2))), INTERNAL)


@pytest.mark.parametrize(
    "packed",
    [b"", b"nonsense", gzip.compress(body())[:-9], zlib.compress(body())],
    ids=["nothing", "nonsense", "gzip cut short", "zlib instead of gzip"],
)
def test_a_message_that_cannot_be_decompressed_is_the_client_s_fault(client: Client, packed: bytes) -> None:
    stream = client.ask(prefixed(packed, compressed=1), ("grpc-encoding", "gzip"))
    assert_refused(client.answer(stream), INVALID, INTERNAL)
    stream = client.ask(prefixed(packed, compressed=1), ("grpc-encoding", "gzip"), path=STREAM)
    assert client.answer(stream).status in (INVALID, INTERNAL)


@pytest.mark.parametrize("encoding", ["br", "snappy", "GZIP", "x" * 300])
def test_an_unknown_encoding_is_unimplemented_and_the_known_ones_are_named(client: Client, encoding: str) -> None:
    answer = client.infer(None, ("grpc-encoding", encoding))
    assert_refused(answer, UNIMPLEMENTED)
    named = b",".join(block.get(b"grpc-accept-encoding", b"") for block in answer.blocks)
    assert {b"gzip", b"deflate", b"identity"} <= {each.strip() for each in named.split(b",")}


@pytest.mark.parametrize("path", [INFER, STREAM])
def test_a_bomb_does_not_go_off(client: Client, path: str) -> None:
    before = resident_bytes()
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress)):
        stream = client.ask(prefixed(pack(bytes(50 << 20)), compressed=1), ("grpc-encoding", encoding), path=path)
        assert client.answer(stream).status == EXHAUSTED
    assert resident_bytes() - before < 80 << 20  # the fifty are ours, to make it
    assert_echoed(client.infer())


@pytest.mark.parametrize("path", [INFER, STREAM])
@pytest.mark.parametrize("size", [MOST_BYTES + 1, 2**32 - 1])
def test_a_message_over_the_limit_is_refused_and_the_connection_goes_on(client: Client, path: str, size: int) -> None:
    stream = client.new_stream()
    client.send(client.head(stream, path=path), data(stream, struct.pack(">BI", 0, size), end=False))
    assert client.answer(stream).status == EXHAUSTED
    for _ in range(20):  # the client may not know yet
        client.send(data(stream, bytes(16384), end=False))
    client.send(data(stream, b""))
    assert_echoed(client.infer())


def test_a_message_at_the_limit_is_read(client: Client) -> None:
    encoded = body_of(bytes((MOST_BYTES - 60) // 8 * 8))
    assert MOST_BYTES - 60 < len(encoded) <= MOST_BYTES
    client.open(0, 1 << 20)
    stream = client.new_stream()
    client.set({SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20})
    client.send(client.head(stream), data(stream, prefixed(encoded)))
    assert_echoed(client.answer(stream), encoded)


@pytest.mark.parametrize(
    "path",
    [f"/{INFERENCE}/Nothing", "/no.Service/ModelInfer", "/", "*", "x", INFER + "/", INFER + "?x", "/" + "é" * 99],
)
def test_an_unknown_method_is_unimplemented(client: Client, path: str) -> None:
    assert_refused(client.infer(path=path), UNIMPLEMENTED)
    stream = client.new_stream()
    client.send(client.head(stream, path=path))  # it need not wait for the message
    assert_refused(client.answer(stream), UNIMPLEMENTED)


@pytest.mark.parametrize("content_type", [None, "", "application/json", "text/plain", "grpc", "application/grpc-web"])
def test_another_content_type_is_a_415(client: Client, content_type: str | None) -> None:
    assert client.infer(content_type=content_type).http_status == 415
    assert_echoed(client.infer())


@pytest.mark.parametrize("method", ["GET", "PUT", "post", "CONNECT"])
def test_what_is_not_posted_is_no_call(talker: Talker, client: Client, method: str) -> None:
    answer = client.infer(method=method)
    assert answer.reset is not None or answer.http_status == 405
    assert talker.engine.seen == []
    assert_echoed(client.infer())


@pytest.mark.parametrize(
    ("timeout", "expected_s"),
    [("2H", 7200), ("3M", 180), ("4S", 4), ("5000m", 5), ("6000000u", 6), ("99999999n", 0.099999999), ("00000007S", 7)],
)
def test_the_deadline_in_every_unit(talker: Talker, client: Client, timeout: str, expected_s: float) -> None:
    assert_echoed(client.infer(None, ("grpc-timeout", timeout)))
    said = talker.engine.seen[-1].timeout_s
    assert said is not None
    assert expected_s - 0.05 < said <= expected_s


@pytest.mark.parametrize("timeout", ["", "5", "S", "5x", "-1S", "1.5S", "123456789S", "5 S", " 5S", "5s", "٣S", "5S\n"])
def test_a_malformed_deadline_is_refused(talker: Talker, client: Client, timeout: str) -> None:
    answer = client.infer(None, ("grpc-timeout", timeout))
    assert answer.reset is not None or answer.status not in (OK, None)
    assert talker.engine.seen == []
    assert_echoed(client.infer())


def test_a_stream_ends_at_its_deadline(talker: Talker, client: Client) -> None:
    before = talker.left()[1]
    for timeout, path in (("100m", STREAM), ("100m", f"/{HEALTH}/Watch"), ("1n", STREAM)):
        stream = client.new_stream()
        began = time.monotonic()
        client.send(client.head(stream, ("grpc-timeout", timeout), WAIT, path=path))
        client.send(data(stream, prefixed(body() if path == STREAM else b""), end=path != STREAM))
        assert client.answer(stream).status == DEADLINE
        assert time.monotonic() - began < 2
    assert talker.left()[1] == before


def test_an_error_s_text_may_have_any_characters(client: Client) -> None:
    name = 'é✓ 100% "x"\n\t\'~'
    answer = client.infer(body(model_name=name))
    assert_refused(answer, NOT_FOUND)
    raw = answer.blocks[-1][b"grpc-message"]
    assert all(0x20 <= byte < 0x7F for byte in raw)
    assert "é✓ 100% " in answer.details
    assert_echoed(client.infer())


def test_a_stream_answers_in_order_while_it_is_sent_and_ends_when_its_client_ends(client: Client) -> None:
    stream = client.new_stream()
    client.send(client.head(stream, path=STREAM))
    for number in range(5):
        client.send(data(stream, prefixed(body(id=str(number))), end=False))
        client.pump(lambda: len(client.answers[stream].messages()) == number + 1)  # noqa: B023
    client.send(data(stream, prefixed(body(id="5")) + prefixed(b"nonsense") + prefixed(body(id="7"))))
    answer = client.answer(stream)
    said = [Streamed.FromString(each) for each in answer.messages()]
    assert [each.infer_response.id for each in said] == ["0", "1", "2", "3", "4", "5", "", "7"]
    assert [bool(each.error_message) for each in said] == [False] * 6 + [True, False]
    assert answer.status == OK


# -- what is no HTTP/2 -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + bytes(50),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 100,
    ],
)
def test_what_is_not_http_2_is_told_what_is_spoken_here(talker: Talker, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", talker.port), timeout=5) as connection:
        connection.sendall(sent)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    at = received.index(b"HTTP/1.1 400 ")
    head, _, text = received[at:].partition(b"\r\n\r\n")
    assert b"gRPC" in text
    assert f"content-length: {len(text)}".encode() in head.lower()


def test_a_client_of_http_1_understands_what_it_is_told(talker: Talker) -> None:
    with contextlib.closing(HTTPConnection("127.0.0.1", talker.port, timeout=5)) as connection:
        connection.request("GET", "/v2/health/live")
        answer = connection.getresponse()
        assert answer.status == 400
        assert b"gRPC" in answer.read()


def largest_frame(client: Client) -> int:
    client.pump(lambda: bool(client.settings))
    return client.settings.get(SettingCodes.MAX_FRAME_SIZE, 16384)


def too_large(kind: int, stream: int, factor: int = 1) -> Callable[[Client], bytes]:
    """A frame over the permitted size by its head alone; where every size is permitted, one of a senseless size."""

    def make(client: Client) -> bytes:
        size = min(largest_frame(client) + 1, 2**24 - 1)
        return frame_head(size // factor * factor, kind, 0, stream)

    return make


def begun(client: Client) -> int:
    """A stream that waits for its message."""
    stream = client.new_stream()
    client.send(client.head(stream))
    return stream


def opened(kind: int, flags: int, payload: bytes) -> Callable[[Client], bytes]:
    return lambda client: frame(kind, flags, begun(client), payload)


def as_head(block: bytes) -> Callable[[Client], bytes]:
    return lambda client: frame(Kind.HEADERS, END_HEADERS, client.new_stream(), block)


def plain(sent: bytes) -> Callable[[Client], bytes]:
    return lambda _: sent


def unfinished(then: Callable[[Client], bytes]) -> Callable[[Client], bytes]:
    """Something where a CONTINUATION is due; the block's stream is 1."""
    return lambda client: frame(Kind.HEADERS, 0, client.new_stream(), client.block()) + then(client)


FAULTS: dict[str, tuple[Callable[[Client], bytes], tuple[int, ...]]] = {
    "headers on an even stream": (lambda c: frame(Kind.HEADERS, END_HEADERS, 2, c.block()), (PROTOCOL,)),
    "headers on stream 0": (lambda c: frame(Kind.HEADERS, END_HEADERS, 0, c.block()), (PROTOCOL,)),
    "data on stream 0": (plain(data(0, b"x")), (PROTOCOL,)),
    "data on an idle stream": (plain(data(7, b"x")), (PROTOCOL,)),
    "data on an idle even stream": (plain(data(8, b"x")), (PROTOCOL,)),
    "a reset of an idle stream": (plain(reset(7)), (PROTOCOL,)),
    "a reset of stream 0": (plain(reset(0)), (PROTOCOL,)),
    "a reset of 3 bytes": (opened(Kind.RST_STREAM, 0, b"abc"), (SIZE,)),
    "window for an idle stream": (plain(window_update(7, 1)), (PROTOCOL,)),
    "no window for the connection": (plain(window_update(0, 0)), (PROTOCOL,)),
    "too much window for the connection": (plain(window_update(0, MOST_WINDOW)), (FLOW,)),
    "a window update of 5 bytes": (plain(frame(Kind.WINDOW_UPDATE, 0, 0, bytes(5))), (SIZE,)),
    "too large headers": (too_large(Kind.HEADERS, 1), (SIZE,)),
    "too large settings": (too_large(Kind.SETTINGS, 0, 6), (SIZE,)),
    "a continuation of nothing": (plain(frame(Kind.CONTINUATION, END_HEADERS, 1)), (PROTOCOL,)),
    "a continuation of what is complete": (opened(Kind.CONTINUATION, END_HEADERS, b""), (PROTOCOL,)),
    "a ping within headers": (unfinished(plain(frame(Kind.PING, 0, 0, bytes(8)))), (PROTOCOL,)),
    "data within headers": (unfinished(plain(data(1, b"x"))), (PROTOCOL,)),
    "other headers within headers": (unfinished(lambda c: c.head(c.new_stream())), (PROTOCOL,)),
    "the same headers within headers": (unfinished(lambda c: c.head(1)), (PROTOCOL,)),
    "another continuation within headers": (unfinished(plain(frame(Kind.CONTINUATION, 4, 3))), (PROTOCOL,)),
    "an unknown frame within headers": (unfinished(plain(frame(0xEE, 0, 1))), (PROTOCOL,)),
    "settings of 5 bytes": (plain(frame(Kind.SETTINGS, 0, 0, bytes(5))), (SIZE,)),
    "an acknowledgement with settings": (plain(frame(Kind.SETTINGS, ACK, 0, bytes(6))), (SIZE,)),
    "settings of a stream": (opened(Kind.SETTINGS, 0, b""), (PROTOCOL,)),
    "half a push": (plain(settings_frame({SettingCodes.ENABLE_PUSH: 2})), (PROTOCOL,)),
    "too large an initial window": (plain(settings_frame({SettingCodes.INITIAL_WINDOW_SIZE: 2**31})), (FLOW,)),
    "too small a largest frame": (plain(settings_frame({SettingCodes.MAX_FRAME_SIZE: 16383})), (PROTOCOL,)),
    "too large a largest frame": (plain(settings_frame({SettingCodes.MAX_FRAME_SIZE: 2**24})), (PROTOCOL,)),
    "a ping of 7 bytes": (plain(frame(Kind.PING, 0, 0, bytes(7))), (SIZE,)),
    "a ping of a stream": (opened(Kind.PING, 0, bytes(8)), (PROTOCOL,)),
    "a farewell of a stream": (opened(Kind.GOAWAY, 0, bytes(8)), (PROTOCOL,)),
    "a farewell of 7 bytes": (plain(frame(Kind.GOAWAY, 0, 0, bytes(7))), (SIZE,)),
    "a priority of stream 0": (plain(frame(Kind.PRIORITY, 0, 0, bytes(5))), (PROTOCOL, SIZE)),
    "a push": (opened(Kind.PUSH_PROMISE, END_HEADERS, bytes(4)), (PROTOCOL,)),
    "data that is less than its padding": (opened(Kind.DATA, PADDED, b"\x05abcd"), (PROTOCOL,)),
    "data without the length of its padding": (opened(Kind.DATA, PADDED, b""), (PROTOCOL, SIZE)),
    "headers that are less than their padding": (
        lambda c: frame(Kind.HEADERS, END_HEADERS | PADDED, 1, b"\xff" + c.block()),
        (PROTOCOL,),
    ),
    "headers without their priority": (
        plain(frame(Kind.HEADERS, END_HEADERS | PRIORITY, 1, b"abcd")),
        (SIZE, PROTOCOL),
    ),
    "HPACK: index 0": (as_head(b"\x80"), (COMPRESSION,)),
    "HPACK: beyond the table": (as_head(b"\xff\x20"), (COMPRESSION,)),
    "HPACK: a literal cut short": (as_head(b"\x40\x05abc"), (COMPRESSION,)),
    "HPACK: a number cut short": (as_head(b"\xff\x80"), (COMPRESSION,)),
    "HPACK: an endless number": (as_head(b"\xff" + b"\xff" * 3000 + b"\x01"), (COMPRESSION,)),
    "HPACK: a table over the limit": (as_head(b"\x3f\xe2\x1f"), (COMPRESSION,)),
    "HPACK: a table's size after a field": (as_head(b"\x82\x20"), (COMPRESSION,)),
    "HPACK: Huffman's end of string": (as_head(b"\x40\x84\xff\xff\xff\xff\x01x"), (COMPRESSION,)),
    "HPACK: Huffman padded with zeros": (as_head(b"\x40\x81\x00\x01x"), (COMPRESSION,)),
    "HPACK: nonsense on a second frame": (
        lambda c: frame(Kind.HEADERS, 0, 1, b"\x82") + frame(Kind.CONTINUATION, END_HEADERS, 1, b"\x80"),
        (COMPRESSION,),
    ),
}


@pytest.mark.parametrize(("make", "codes"), FAULTS.values(), ids=FAULTS)
def test_what_breaks_the_protocol_ends_the_connection_with_the_right_code(
    talker: Talker, make: Callable[[Client], bytes], codes: tuple[int, ...]
) -> None:
    with talker.connect() as client:
        client.ping()
        client.send(make(client))
        client.wait_end()
        assert client.goaway in codes
        assert client.goaways[0].last_stream_id < 10
    assert talker.engine.seen == []


def test_settings_come_first(talker: Talker) -> None:
    for sent in (frame(Kind.PING, 0, 0, bytes(8)), frame(Kind.SETTINGS, ACK, 0), window_update(0, 1)):
        with talker.connect(preface=False) as client:
            client.send(PREFACE, sent)
            client.wait_end(for_s=2)
            assert client.goaway == PROTOCOL


REQUEST = (":method", "POST"), (":scheme", "http"), (":path", INFER), ("te", "trailers")
TYPE = ("content-type", "application/grpc")
MALFORMED = {
    "an upper-case name": (*REQUEST, TYPE, ("X-Upper", "1")),
    "a field about the connection": (*REQUEST, TYPE, ("connection", "close")),
    "a transfer encoding": (*REQUEST, TYPE, ("transfer-encoding", "chunked")),
    "a pseudo-field after others": (*REQUEST[:2], TYPE, REQUEST[2]),
    "an unknown pseudo-field": (*REQUEST[:3], (":sheme", "x"), TYPE),
    "an answer's pseudo-field": (*REQUEST[:3], (":status", "200"), TYPE),
    "two paths": (*REQUEST[:3], (":path", INFER), TYPE),
    "no method": (*REQUEST[1:], TYPE),
    "no path": (*REQUEST[:2], TYPE),
    "an empty path": (*REQUEST[:2], (":path", ""), TYPE),
    "no scheme": (REQUEST[0], REQUEST[2], TYPE),
    "an empty name": (*REQUEST, TYPE, ("", "x")),
    "no fields": (),
}


@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_headers_that_are_no_request_s_end_their_stream_alone(
    talker: Talker, client: Client, fields: tuple[tuple[str, str], ...]
) -> None:
    waiting = client.ask(prefixed(body()), WAIT)
    stream = client.new_stream()
    client.send(frame(Kind.HEADERS, END_HEADERS, stream, client.compress(*fields)), data(stream, prefixed(body())))
    answer = client.answer(stream)
    assert answer.reset == PROTOCOL or answer.http_status == 400
    talker.let_go()
    assert_echoed(client.answer(waiting))
    assert_echoed(client.infer())


def test_errors_of_one_stream_end_it_alone(client: Client) -> None:
    payload = prefixed(body())
    cases: list[tuple[Callable[[int], bytes], tuple[int, ...]]] = [
        (lambda stream: window_update(stream, 0), (PROTOCOL,)),
        (lambda stream: window_update(stream, MOST_WINDOW), (FLOW,)),
        (client.head, (PROTOCOL, CLOSED)),  # a second head that is not its last
    ]
    for make, codes in cases:
        stream = client.new_stream()
        client.send(client.head(stream))
        client.send(make(stream))
        assert client.answer(stream).reset in codes
        client.send(data(stream, payload))  # on its way before the client knew
        assert_echoed(client.infer())


def test_what_comes_after_a_stream_s_end_is_an_error_of_the_stream_or_the_connection(talker: Talker) -> None:
    for again in (lambda client: data(1, b"x"), lambda client: client.head(1)):
        with talker.connect() as client:
            client.ask(prefixed(body()), WAIT)
            client.send(again(client))
            client.pump(lambda: client.answers[1].over or client.ended)
            assert client.answers[1].reset == CLOSED or client.goaway == CLOSED


def test_a_stream_s_number_may_not_go_down(talker: Talker) -> None:
    with talker.connect() as client:
        client.answers[3], client.answers[5] = Answer(65535), Answer(65535)
        client.send(client.head(5) + data(5, prefixed(body())))
        assert_echoed(client.answer(5))
        client.send(client.head(3) + data(3, prefixed(body())))
        client.pump(lambda: client.answers[3].over or client.ended)
        assert client.answers[3].reset in (CLOSED, PROTOCOL) or client.goaway in (CLOSED, PROTOCOL)
    assert len(talker.engine.seen) == 1


# -- flow control ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("initial", [0, 1])
@pytest.mark.parametrize("path", [INFER, STREAM])
def test_an_answer_comes_byte_by_byte_as_its_window_opens(talker: Talker, initial: int, path: str) -> None:
    with talker.connect(settings={SettingCodes.INITIAL_WINDOW_SIZE: initial}) as client:
        client.pump(lambda: client.acks == 1)
        stream = client.ask(prefixed(body()), path=path)
        answer = client.answers[stream]
        client.pump(lambda: bool(answer.blocks))
        client.ping()
        assert len(answer.data) == initial
        count = initial
        while not answer.ended:
            client.open(stream, 1)
            count += 1
            client.pump(lambda: len(answer.data) == count or answer.ended)  # noqa: B023
            assert count < 500
        assert answer.status == OK
        assert len(answer.messages()) == 1


def test_the_connection_s_window_is_shared_and_kept_to_the_byte(talker: Talker) -> None:
    with talking() as other, other.connect(settings={SettingCodes.INITIAL_WINDOW_SIZE: MOST_WINDOW}) as client:
        encoded = body_of(bytes(40_000))
        streams = [client.ask(prefixed(encoded)) for _ in range(4)]
        client.pump(lambda: client.window == 0)
        client.ping()
        assert sum(len(client.answers[each].data) for each in streams) == 65535
        for increment in (1, 2, 3, 16384, 40_000):
            client.open(0, increment)
            client.pump(lambda: client.window == 0)
        client.open(0, 1 << 20)
        for stream in streams:
            assert_echoed(client.answer(stream), encoded)


def test_the_initial_window_may_change_on_the_way_and_fall_below_nothing(talker: Talker) -> None:
    with talking() as other, other.connect(window=1 << 20) as client:
        encoded = body_of(bytes(200_000))
        client.set({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
        client.pump(lambda: client.acks == 2)
        stream = client.ask(prefixed(encoded))
        answer = client.answers[stream]
        client.pump(lambda: len(answer.data) == 1000)
        client.set({SettingCodes.INITIAL_WINDOW_SIZE: 100})
        client.pump(lambda: client.acks == 3)
        assert answer.window == -900
        client.open(stream, 900)
        client.ping()
        assert (answer.window, len(answer.data)) == (0, 1000)
        client.open(stream, 7)
        client.pump(lambda: len(answer.data) == 1007)
        client.set({SettingCodes.INITIAL_WINDOW_SIZE: 150})
        client.pump(lambda: len(answer.data) == 1057)
        client.set({SettingCodes.INITIAL_WINDOW_SIZE: MOST_WINDOW - 1})
        assert_echoed(client.answer(stream), encoded)


def test_windows_that_settings_make_too_large_are_an_error(talker: Talker) -> None:
    with talker.connect() as client:
        stream = client.ask(prefixed(body()), WAIT)
        client.open(stream, MOST_WINDOW - 65535)
        client.ping()
        client.send(settings_frame({SettingCodes.INITIAL_WINDOW_SIZE: 65536}))
        client.wait_end()
        assert client.goaway == FLOW


def test_frames_are_as_large_as_the_client_permits(talker: Talker) -> None:
    encoded = body_of(bytes(300_000))
    for size in (None, 16384, 20_000, 100_000, 2**24 - 1):
        values = {SettingCodes.INITIAL_WINDOW_SIZE: 1 << 20} | (
            {} if size is None else {SettingCodes.MAX_FRAME_SIZE: size}
        )
        with talking() as other, other.connect(settings=values, window=1 << 20) as client:
            client.pump(lambda: client.acks == 1)
            assert_echoed(client.infer(encoded), encoded)
            assert client.largest <= (size or 16384)  # the client checks each, too


def test_a_client_that_gives_back_every_frame_s_window_is_not_too_noisy(talker: Talker) -> None:
    """Some clients update both windows after every frame: two frames for each of thousands that they were sent."""
    with talking() as other, other.connect() as client:
        encoded = body_of(bytes(48 << 20))
        stream = client.ask(prefixed(encoded))
        answer, seen = client.answers[stream], 0
        while not answer.over:
            client.pump(lambda: len(answer.data) > seen or answer.over, for_s=10)  # noqa: B023
            pieces, rest = divmod(len(answer.data) - seen, 16384)
            seen = len(answer.data)
            for size in [16384] * pieces + [rest] * bool(rest):
                client.open(stream, size)
                client.open(0, size)
        assert answer.status == OK
        assert len(answer.data) > 48 << 20


class Library:
    """Calls through a strict client library, side by side on one connection."""

    def __init__(self, requests: list[bytes], path: str = INFER) -> None:
        self._connection = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._connection.initiate_connection()
        fields = [*REQUEST[:2], (":path", path), (":authority", "x"), TYPE, ("te", "trailers")]
        self._left: dict[int, memoryview] = {}
        for request in requests:
            stream = self._connection.get_next_available_stream_id()
            self._connection.send_headers(stream, fields)
            self._left[stream] = memoryview(prefixed(request))
        self.answers = {stream: bytearray() for stream in self._left}
        self._ended: set[int] = set()

    def converse(self, port: int) -> list[bytes]:
        """The bytes of the answers."""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            while len(self._ended) < len(self.answers):
                self._send()
                sock.sendall(self._connection.data_to_send())
                chunk = sock.recv(1 << 18)
                assert chunk
                for event in self._connection.receive_data(chunk):
                    self._receive(event)
        return [bytes(each) for each in self.answers.values()]

    def _send(self) -> None:
        connection, left = self._connection, self._left
        for stream in list(left):
            most = connection.max_outbound_frame_size
            while left[stream] and (room := min(connection.local_flow_control_window(stream), most, 1 << 16)):
                connection.send_data(stream, bytes(left[stream][:room]))
                left[stream] = left[stream][room:]
            if not left[stream]:
                connection.end_stream(stream)
                del left[stream]

    def _receive(self, event: Event) -> None:
        match event:
            case DataReceived():
                self.answers[event.stream_id] += event.data or b""
                self._connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            case TrailersReceived():
                assert ("grpc-status", "0") in (event.headers or ())
            case StreamEnded():
                self._ended.add(event.stream_id)
            case ConnectionTerminated():
                raise AssertionError(event)


def test_a_client_that_keeps_to_the_server_s_windows_can_send_large_messages() -> None:
    with talking() as talker:
        requests = [body_of(bytes(size)) for size in (5 << 20, 80, 9 << 20, 5 << 20, 65536)]
        for request, answer in zip(requests, Library(requests).converse(talker.port), strict=True):
            assert Response.FromString(bytes(answer[5:])).raw_output_contents[0] == body_input(request)
        (streamed,) = Library(requests[:1], STREAM).converse(talker.port)
        assert Streamed.FromString(bytes(streamed[5:])).infer_response.raw_output_contents[0] == bytes(5 << 20)
        talker.wait_settled()


def test_a_client_that_overruns_the_window_is_cut_off_and_takes_no_memory() -> None:
    with talking() as talker, talker.connect() as client:
        stream = client.new_stream()
        client.send(client.head(stream, WAIT, path=STREAM) + data(stream, prefixed(body()), end=False))
        piece = data(stream, prefixed(body(id="x" * 8000)) * 20, end=False)
        before = resident_bytes()
        client.pump(lambda: bool(client.settings))
        left = 8 * client.settings.get(SettingCodes.INITIAL_WINDOW_SIZE, 65535)
        while not client.ended and client.answers[stream].reset is None:
            client.send(piece, frame(Kind.PING, 0, 0, bytes(8)))
            count, left = len(client.pongs), left - len(piece)
            client.pump(lambda: len(client.pongs) > count or client.ended)  # noqa: B023
            assert left > 0, "a server that does not read on must say so"
        assert client.goaway == FLOW or client.answers[stream].reset == FLOW
        assert resident_bytes() - before < 64 << 20


# -- abuse -------------------------------------------------------------------------------------------------------------


def flood(client: Client, piece: bytes, times: int) -> bool:
    """Send something often and read nothing; whether the server let it all in."""
    client.socket.settimeout(0.5)
    try:
        for _ in range(times):
            client.socket.sendall(piece)
    except OSError:
        return False
    return True


def ended_calmly(client: Client) -> bool:
    """Whether the server said to be calm, or cut the connection; else it must be in its senses still."""
    with contextlib.suppress(AssertionError):
        client.pump(lambda: client.ended, for_s=1.0)
    if client.ended:
        assert client.goaway in (CALM, None)
        return True
    client.ping()
    return False


def test_streams_that_are_begun_and_reset_at_once_leave_nothing(talker: Talker, client: Client) -> None:
    began, before, memory = time.monotonic(), talker.left()[1], resident_bytes()
    for _ in range(100):
        parts = []
        for _ in range(100):
            stream = client.new_stream()
            parts += [client.head(stream), data(stream, prefixed(body())), reset(stream)]
        if not flood(client, b"".join(parts), 1):
            break
    ended_calmly(client)  # or took it all, at a pace that is no attack
    assert time.monotonic() - began < 8
    assert resident_bytes() - memory < 48 << 20
    client.socket.close()
    talker.wait_settled(before)
    assert len(talker.engine.seen) <= 10_000


def test_a_few_calls_that_are_begun_and_reset_in_one_packet_leave_nothing(talker: Talker, client: Client) -> None:
    before = talker.left()[1]
    for extra in ((), (WAIT,)):
        for path in (INFER, STREAM):
            for _ in range(10):
                stream = client.new_stream()
                client.send(client.head(stream, *extra, path=path) + data(stream, prefixed(body())) + reset(stream))
    assert_echoed(client.infer())
    wait_for(lambda: talker.left() == (1, before))


def test_calls_under_way_that_are_reset_together_do_not_cost_the_others(talker: Talker) -> None:
    """Their deadline has passed, all at once: nothing unusual."""
    with talker.connect(window=1 << 20) as client:
        kept = client.ask(prefixed(body()), WAIT)
        streams = [client.ask(prefixed(body()), WAIT) for _ in range(800)]
        wait_for(lambda: talker.engine.held == 801)
        client.send(b"".join(map(reset, streams)))
        wait_for(lambda: talker.engine.cancelled == 800)
        talker.let_go()
        assert_echoed(client.answer(kept))


FLOODS: dict[str, tuple[Callable[[Client], bytes], int]] = {
    "pings": (plain(frame(Kind.PING, 0, 0, bytes(8)) * 4000), 500),
    "settings": (plain(settings_frame({SettingCodes.INITIAL_WINDOW_SIZE: 70_000}) * 4000), 500),
    "empty settings": (plain(settings_frame({}) * 4000), 500),
    "empty data": (lambda c: frame(Kind.DATA, 0, begun(c)) * 8000, 100),
    "empty padded data": (lambda c: frame(Kind.DATA, PADDED, begun(c), b"\0") * 8000, 100),
    "data of what is over": (lambda c: data(c.ask(b""), b"", end=False) * 8000, 100),
    "priorities": (plain(frame(Kind.PRIORITY, 0, 5, bytes(5)) * 8000), 100),
    "unknown frames": (plain(frame(0xEE, 0, 5) * 8000), 100),
    "window updates": (lambda c: window_update(begun(c), 1) * 8000, 100),
    "resets of what is over": (lambda c: reset(c.ask(b"")) * 8000, 100),
    "headers of what is over": (lambda c: frame(Kind.HEADERS, 5, c.ask(b""), b"\x82") * 8000, 100),
    "empty continuations": (
        lambda c: frame(Kind.HEADERS, 0, c.new_stream()) + frame(Kind.CONTINUATION, 0, 1) * 8000,
        1,
    ),
}


@pytest.mark.parametrize(("make", "times"), FLOODS.values(), ids=FLOODS)
def test_a_flood_of_frames_that_do_no_work_is_cut_off(
    talker: Talker, make: Callable[[Client], bytes], times: int
) -> None:
    with talker.connect(receive_buffer=4096) as client:
        piece = make(client)
        before, began = resident_bytes(), time.monotonic()
        let_in = flood(client, piece, times)
        assert resident_bytes() - before < 32 << 20
        assert ended_calmly(client) or not let_in
        assert time.monotonic() - began < 6


def test_headers_that_never_end_are_cut_off_at_the_limit(talker: Talker) -> None:
    for filling in (bytes(1000), b"\x82" * 1000, b"\x00\x01a\x01b" * 200):
        with talker.connect() as client:
            stream = client.new_stream()
            client.send(frame(Kind.HEADERS, 0, stream, client.block()))
            for _ in range(10):
                try:
                    client.send(frame(Kind.CONTINUATION, 0, stream, filling))
                except OSError:
                    break
                time.sleep(0.001)
            client.wait_end()
            assert client.goaway in (CALM, PROTOCOL, COMPRESSION)
    assert talker.engine.seen == []


def test_headers_over_the_limit_are_refused(talker: Talker) -> None:
    for fields in ([("x-long", "v" * 5000)], [(f"x-{number}", "v") for number in range(200)]):
        with talker.connect() as client:
            stream = client.new_stream()
            client.send(client.head(stream, *fields, end=True))
            client.pump(lambda: client.answers[stream].over or client.ended)  # noqa: B023
            if client.ended:
                assert client.goaway in (CALM, PROTOCOL, SIZE)
            else:
                assert client.answers[stream].http_status == 431 or client.answers[stream].status == EXHAUSTED
    assert talker.engine.seen == []


def test_few_bytes_that_stand_for_many_headers_are_refused(talker: Talker) -> None:
    with talker.connect() as client:
        before = resident_bytes()
        assert_echoed(client.infer(None, ("x-bomb", "v" * 3000)))
        stream = client.new_stream()
        client.send(frame(Kind.HEADERS, END_HEADERS | END_STREAM, stream, client.block() + b"\xbe" * 3000))
        client.pump(lambda: client.answers[stream].over or client.ended)
        assert client.answers[stream].status != OK
        assert resident_bytes() - before < 16 << 20


def test_more_streams_than_permitted_are_refused_and_the_others_unharmed(talker: Talker) -> None:
    with talker.connect(window=1 << 20) as client:
        client.pump(lambda: bool(client.settings))
        most = client.settings[SettingCodes.MAX_CONCURRENT_STREAMS]
        assert 100 <= most <= 10_000
        streams = [client.ask(prefixed(body()), WAIT) for _ in range(most + 5)]
        for stream in streams[most:]:
            assert client.answer(stream).reset == ErrorCodes.REFUSED_STREAM
        assert talker.engine.held == most
        talker.let_go()
        for stream in streams[:most]:
            assert_echoed(client.answer(stream))
        assert_echoed(client.infer())


# -- how long ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", PREFACE[:5], PREFACE[:-1]])
def test_who_says_nothing_is_let_go(sent: bytes) -> None:
    with talking(Limits(head_s=0.3)) as talker:
        with socket.create_connection(("127.0.0.1", talker.port), timeout=2) as connection:
            connection.sendall(sent)
            while connection.recv(1000):
                pass
        talker.wait_settled()


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside a call"])
@pytest.mark.parametrize("part", ["half a frame's head", "half a frame", "half a block"])
def test_headers_that_trickle_are_cut_off(part: str, busy: bool) -> None:
    with talking(Limits(head_s=0.3)) as talker, talker.connect() as client:
        if busy:
            client.ask(prefixed(body()), WAIT)
        stream = client.new_stream()
        block = client.block()
        sent = {
            "half a frame's head": frame(Kind.HEADERS, 0, stream, block)[:5],
            "half a frame": frame(Kind.HEADERS, END_HEADERS, stream, block)[:-5],
            "half a block": frame(Kind.HEADERS, 0, stream, block[:-5]),
        }[part]
        client.send(sent)
        client.wait_end(for_s=3)


@pytest.mark.parametrize("path", [INFER, STREAM])
def test_a_message_that_trickles_is_refused_and_the_connection_goes_on(path: str) -> None:
    with talking(Limits(body_s=0.3)) as talker, talker.connect() as client:
        stream = client.new_stream()
        client.send(client.head(stream, path=path))
        payload, began = prefixed(body()), time.monotonic()
        for at in range(len(payload) - 1):
            client.send(data(stream, payload[at : at + 1], end=False))
            time.sleep(0.02)
            client.ping()
            if client.answers[stream].over:
                break
        assert time.monotonic() - began < 1.5
        answer = client.answers[stream]
        assert answer.reset is not None or answer.status not in (OK, None)
        time.sleep(0.2)
        assert_echoed(client.infer())


def test_a_stream_may_be_silent_between_its_messages() -> None:
    with talking(Limits(body_s=0.2, idle_s=0.2, head_s=0.2)) as talker, talker.connect() as client:
        stream = client.new_stream()
        client.send(client.head(stream, path=STREAM))
        for number in range(3):
            time.sleep(0.5)
            client.send(data(stream, prefixed(body()), end=False))
            client.pump(lambda: len(client.answers[stream].messages()) == number + 1)  # noqa: B023
        client.send(data(stream, b""))
        assert client.answer(stream).status == OK


def test_a_connection_without_a_call_is_let_go_with_no_error() -> None:
    with talking(Limits(idle_s=0.3)) as talker:
        for asks in (0, 1):
            with talker.connect() as client:
                for _ in range(asks):
                    assert_echoed(client.infer())
                began = time.monotonic()
                client.wait_end(for_s=2)
                assert time.monotonic() - began > 0.2
                assert client.goaway == ErrorCodes.NO_ERROR
                assert client.goaways[0].last_stream_id == asks


def test_a_call_under_way_is_not_the_client_s_delay() -> None:
    with talking(Limits(head_s=0.2, body_s=0.2, idle_s=0.2, write_s=0.2)) as talker, talker.connect() as client:
        stream = client.ask(prefixed(body()), WAIT)
        time.sleep(0.8)
        talker.let_go()
        assert_echoed(client.answer(stream))


def test_a_client_that_does_not_open_its_window_is_given_up() -> None:
    with talking(Limits(write_s=0.4)) as talker:
        with talker.connect(settings={SettingCodes.INITIAL_WINDOW_SIZE: 10}) as client:
            client.pump(lambda: client.acks == 1)
            stream = client.ask(prefixed(body_of(bytes(100_000))))
            client.pump(lambda: client.answers[stream].reset is not None or client.ended, for_s=3)
        talker.wait_settled()
        with talker.connect(settings={SettingCodes.INITIAL_WINDOW_SIZE: MOST_WINDOW}) as client:  # the connection's
            streams = [client.ask(prefixed(body_of(bytes(100_000)))) for _ in range(3)]
            client.pump(lambda: client.ended or all(client.answers[each].over for each in streams), for_s=3)
        talker.wait_settled()


def test_a_client_that_reads_nothing_is_cut_off_and_nobody_else_suffers() -> None:
    with talking(Limits(write_s=0.4)) as talker:
        values = {SettingCodes.INITIAL_WINDOW_SIZE: MOST_WINDOW}
        deaf = talker.connect(settings=values, window=MOST_WINDOW - 65535, receive_buffer=4096)
        deaf.ask(prefixed(body_of(bytes(24 << 20))))
        with talker.connect() as other:
            assert_echoed(other.infer())
        wait_for(lambda: talker.left() == (0, 0))
        deaf.socket.close()
        deaf = talker.connect(settings=values, window=MOST_WINDOW - 65535, receive_buffer=4096)
        stream = deaf.new_stream()
        deaf.send(deaf.head(stream, path=STREAM))
        assert not flood(deaf, data(stream, prefixed(body_of(bytes(80_000))), end=False), 1000)
        wait_for(lambda: talker.left() == (0, 0))
        deaf.socket.close()


def test_a_slow_reader_that_goes_on_reading_gets_its_answer() -> None:
    with talking(Limits(write_s=0.5)) as talker, talker.connect(window=1 << 20) as client:
        client.set({SettingCodes.INITIAL_WINDOW_SIZE: 100_000})
        encoded = body_of(bytes(400_000))
        stream = client.ask(prefixed(encoded))
        answer = client.answers[stream]
        while not answer.over:
            time.sleep(0.3)
            client.ping()
            if not answer.over:
                client.open(stream, 100_000)
        assert_echoed(client.answer(stream), encoded)


# -- how many ----------------------------------------------------------------------------------------------------------


def test_a_connection_too_many_is_refused_and_there_is_room_again_afterwards() -> None:
    with talking(Limits(connections=2)) as talker:
        first, second = talker.connect(), talker.connect()
        assert_echoed(first.infer())
        assert_echoed(second.infer())
        for _ in range(5):
            with talker.connect() as third:
                third.wait_end()
                assert third.goaway in (CALM, ErrorCodes.NO_ERROR, ErrorCodes.REFUSED_STREAM, None)
        second.socket.close()
        wait_for(lambda: talker.server.listener.admitted == 1)
        with talker.connect() as fourth:
            assert_echoed(fourth.infer())
            assert_echoed(first.infer())
        first.socket.close()


# -- the end -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [INFER, STREAM])
def test_a_reset_calls_off_what_is_under_way_and_nothing_else(talker: Talker, client: Client, path: str) -> None:
    kept = client.ask(prefixed(body()), WAIT, path=path)
    given_up = client.ask(prefixed(body()), WAIT, path=path)
    wait_for(lambda: talker.engine.held == 2)
    client.send(reset(given_up))
    wait_for(lambda: talker.engine.cancelled == 1)
    talker.let_go()
    assert client.answer(kept).status == OK
    client.ping()
    assert not client.answers[given_up].blocks


def test_a_client_that_leaves_calls_off_all_that_is_under_way(talker: Talker) -> None:
    for leave in ("close", "reset"):
        client, before, talker.engine.held = talker.connect(), talker.left()[1], 0
        for _ in range(10):
            client.ask(prefixed(body()), WAIT)
        wait_for(lambda: talker.engine.held == 10)
        if leave == "reset":
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.send(frame(Kind.PING, 0, 0, bytes(8)))
        client.socket.close()
        talker.wait_settled(before)


def test_a_client_that_half_closes_gets_its_answers(talker: Talker, client: Client) -> None:
    streams = [client.ask(prefixed(body()), WAIT) for _ in range(3)]
    client.socket.shutdown(socket.SHUT_WR)
    time.sleep(0.05)
    talker.let_go()
    for stream in streams:
        assert_echoed(client.answer(stream))
    client.wait_end()


def test_a_client_that_says_farewell_gets_its_answers(talker: Talker, client: Client) -> None:
    stream = client.ask(prefixed(body()), WAIT)
    client.send(frame(Kind.GOAWAY, 0, 0, bytes(8)))
    client.ping()
    talker.let_go()
    assert_echoed(client.answer(stream))


def test_clients_that_vanish_at_any_byte_leave_nothing_behind(talker: Talker) -> None:
    with talker.connect() as model:
        session = PREFACE + settings_frame({}) + model.head(1) + data(1, prefixed(body()))
        session += model.head(3, path=STREAM) + data(3, prefixed(body()) * 3)
    before = talker.left()[1]
    for at in range(0, len(session), 7):
        client = talker.connect(preface=False)
        client.send(session[:at])
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.socket.close()
    talker.wait_settled(before)


def test_stop_says_so_answers_what_is_under_way_and_ends() -> None:
    with talking() as talker, talker.connect() as client, talker.connect() as idle:
        idle.ping()
        stream = client.ask(prefixed(body()), WAIT)
        wait_for(lambda: talker.engine.held == 1)
        talker.loop.call_soon_threadsafe(talker.loop.call_later, 0.2, talker.engine.gate.set)
        talker.stop(5)
        assert_echoed(client.answer(stream))
        client.wait_end()
        assert {each.error_code for each in client.goaways} == {ErrorCodes.NO_ERROR}
        assert client.goaways[-1].last_stream_id >= stream
        idle.wait_end()
        assert idle.goaway == ErrorCodes.NO_ERROR
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", talker.port), timeout=5)


def test_stop_calls_off_what_does_not_end_in_time() -> None:
    with talking() as talker, talker.connect() as client:
        streams = [client.ask(prefixed(body()), WAIT, path=path) for path in (INFER, STREAM)]
        half = client.new_stream()
        client.send(client.head(half))
        wait_for(lambda: talker.engine.held == 2)
        began = time.monotonic()
        talker.stop(0.1)
        assert time.monotonic() - began < 3
        for stream in streams:
            answer = client.answers[stream]
            client.pump(lambda: answer.over or client.ended)  # noqa: B023
            assert answer.status in (UNAVAILABLE, None)
        client.wait_end()


def test_a_fault_while_the_server_stops_is_the_last_word() -> None:
    with talking() as talker, talker.connect() as client:
        client.ask(prefixed(body()), WAIT)
        wait_for(lambda: talker.engine.held == 1)
        client.send(frame(Kind.GOAWAY, 0, 0, bytes(8)))  # the server answers with its own, and waits for the call
        client.ping()
        client.send(window_update(0, 0))
        client.wait_end()
        assert [each.error_code for each in client.goaways][-1] == PROTOCOL


def test_an_idle_connection_ends_late_for_calls_that_were_refused_before_their_end() -> None:
    """The time that a message had is not the time that the connection has."""
    with talking(Limits(body_s=0.3, idle_s=60), max_message_bytes=1000) as talker, talker.connect() as client:
        stream = client.new_stream()
        client.send(client.head(stream))
        client.ping()
        client.send(reset(stream))
        time.sleep(0.6)
        assert_echoed(client.infer())


def test_many_clients_at_once(talker: Talker) -> None:
    clients = [talker.connect() for _ in range(40)]
    streams = [[client.ask(prefixed(body(number, number)), WAIT) for number in range(10)] for client in clients]
    wait_for(lambda: talker.engine.held == 400)
    talker.let_go()
    for client, asked in zip(clients, streams, strict=True):
        for number, stream in enumerate(asked):
            assert_echoed(client.answer(stream), body(number, number))
        client.socket.close()
