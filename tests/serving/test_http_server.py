"""HTTP/1.1 byte by byte, over real sockets: what is understood, what is refused, and what a client may take."""

import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.door import Limits
from tests.serving.talker import LARGE_BYTES, Answer, Client, Talker, talking, told

SMALL = Limits(head_bytes=2000, body_bytes=1000, connections=64)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are kept more closely than in production, so that the cases can be short."""
    monkeypatch.setattr("serving.door._TICK_S", 0.05)


@pytest.fixture(scope="module")
def shared() -> Iterator[Talker]:
    """A server with small limits for all that leaves it as it was."""
    with talking(SMALL) as running:
        yield running


@pytest.fixture
def talker(shared: Talker) -> Iterator[Talker]:
    """The shared server; it must answer others when the case is over, and has no fault."""
    shared.seen.clear()
    shared.release.clear()
    yield shared
    with shared.connect() as client:
        assert client.ask(get(b"/alive")).status == 200
    assert shared.faults == []


@pytest.fixture
def client(talker: Talker) -> Iterator[Client]:
    with talker.connect() as connected:
        yield connected


def get(target: bytes = b"/", *headers: bytes, version: bytes = b"1.1") -> bytes:
    return b"\r\n".join((b"GET %b HTTP/%b" % (target, version), *headers, b"", b""))


def post(body: bytes, *headers: bytes, target: bytes = b"/") -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join((b"POST %b HTTP/1.1" % target, length, *headers, b"", body))


def chunked(*pieces: bytes, headers: tuple[bytes, ...] = (), trailer: bytes = b"") -> bytes:
    framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    head = b"\r\n".join((b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", *headers, b"", b""))
    return head + framed + b"0\r\n" + trailer + b"\r\n"


def assert_refused(answer: Answer, status: int, fragment: str = "") -> None:
    assert answer.status == status, answer
    assert answer.headers[b"content-type"] == b"application/json"
    assert fragment in json.loads(answer.body)["error"]


# -- what is understood --------------------------------------------------------------------------------------------


def test_a_request_is_answered_and_the_connection_goes_on(client: Client) -> None:
    for body in (b"", b"x", bytes(1000)):
        answer = client.ask(post(body, b"X-A: b"))
        headers = {b"content-length": b"%d" % len(body), b"x-a": b"b"}
        assert (answer.status, answer.body) == (200, told("POST", b"/", headers, body))


def test_a_header_may_be_empty_and_of_repeated_ones_the_last_counts(client: Client) -> None:
    assert client.ask(get(b"/", b"A:", b"b:  1 ", b"B: 2")).body == told("GET", b"/", {b"a": b"", b"b": b"2"}, b"")


def test_white_space_around_a_header_s_value_is_none_of_it(client: Client) -> None:
    assert client.ask(get(b"/", b"A: \t b c \t ")).body == told("GET", b"/", {b"a": b"b c"}, b"")


def test_empty_lines_before_a_request_are_passed_over(client: Client) -> None:
    assert client.ask(b"\r\n\r\n\r\n", get(b"/a")).body == told("GET", b"/a", {}, b"")


def test_chunks_extensions_and_trailers(client: Client) -> None:
    trailer = b"Content-Type: x\r\nX-Late: yes\r\n"
    answer = client.ask(chunked(b"abc", b"d" * 300, trailer=trailer))
    assert answer.body == told("POST", b"/", {b"transfer-encoding": b"chunked"}, b"abc" + b"d" * 300)
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = client.ask(head + b'3;name=value;other="quoted"\r\nabc\r\n0;last\r\n\r\n')
    assert answer.body == told("POST", b"/", {b"transfer-encoding": b"chunked"}, b"abc")


def test_the_absolute_form_arrives_as_it_is(client: Client) -> None:
    assert client.ask(get(b"http://x:1/v2?a=b")).body == told("GET", b"http://x:1/v2?a=b", {}, b"")


def test_head_has_the_length_of_the_body_that_it_leaves_out(client: Client) -> None:
    client.send(b"HEAD / HTTP/1.1\r\n\r\n")
    answer = client.answer(head_only=True)
    assert int(answer.headers[b"content-length"]) == len(told("HEAD", b"/", {}, b""))
    assert client.ask(get()).status == 200


@pytest.mark.parametrize(
    ("version", "header", "goes_on"),
    [
        (b"1.1", b"A: b", True),
        (b"1.1", b"Connection: keep-alive", True),
        (b"1.1", b"Connection: close", False),
        (b"1.0", b"A: b", False),
        (b"1.0", b"Connection: keep-alive", True),
        (b"1.0", b"Connection: close", False),
    ],
)
def test_whether_the_connection_goes_on(client: Client, version: bytes, header: bytes, goes_on: bool) -> None:
    answer = client.ask(get(b"/", header, version=version))
    assert answer.status == 200
    if goes_on:
        assert answer.headers.get(b"connection") == (b"keep-alive" if version == b"1.0" else None)
        assert client.ask(get(b"/", header, version=version)).status == 200
    else:
        assert answer.headers[b"connection"] == b"close"
        assert client.ended()


def test_what_follows_a_request_that_closes_is_not_answered(client: Client) -> None:
    assert client.ask(get(b"/", b"Connection: close") + get(b"/more")).status == 200
    assert client.ended()


def test_an_upgrade_is_ignored_with_or_without_a_body(talker: Talker, client: Client) -> None:
    upgrade = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    for _ in range(2):
        client.send(get(b"/a", *upgrade) + post(b"x" * 500, *upgrade) + chunked(b"abc", headers=upgrade) + get(b"/b"))
        assert [client.answer().status for _ in range(4)] == [200] * 4
        assert [bytes(each.body) for each in talker.seen[-4:]] == [b"", b"x" * 500, b"abc", b""]
    head, body = post(b"y" * 900, *upgrade, b"Expect: 100-continue")[:-900], b"y" * 900
    client.send(head + body[:100])
    assert client.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert b"900" in client.ask(body[100:]).body


def test_a_read_full_of_upgrades_is_answered(client: Client) -> None:
    client.send(get(b"/", b"Connection: upgrade", b"Upgrade: x") * 2500)
    assert {client.answer().status for _ in range(2500)} == {200}


def test_a_client_that_half_closes_gets_all_its_answers(talker: Talker, client: Client) -> None:
    client.send(get(b"/wait") + get(b"/b") + get(b"/c"))
    client.half_close()
    time.sleep(0.02)
    talker.let_go()
    assert [b"wait" in client.answer().body, b"/b" in client.answer().body, b"/c" in client.answer().body] == [True] * 3
    assert client.ended()


def test_a_client_that_half_closes_in_the_middle_gets_nothing(talker: Talker) -> None:
    for sent in (b"", b"\r\n", b"GET /", get()[:-2], post(b"abc")[:-1], chunked(b"abc")[:-2]):
        with talker.connect() as client:
            client.send(sent)
            client.half_close()
            assert client.ended()


# -- pipelining --------------------------------------------------------------------------------------------------------


def test_requests_sent_ahead_are_answered_in_order(talker: Talker, client: Client) -> None:
    requests = [post(b"%d" % number * 100, target=b"/%d" % number) for number in range(300)]
    client.send(b"".join([get(b"/wait"), *requests]))
    time.sleep(0.1)
    assert len(talker.seen) == 1  # the server answers one after the other
    talker.let_go()
    assert b"wait" in client.answer().body
    for number in range(300):
        assert b"/%d'" % number in client.answer().body


def test_a_client_that_sends_far_ahead_is_not_read_meanwhile(talker: Talker) -> None:
    with talker.connect() as client:
        client.socket.settimeout(0.3)
        client.send(get(b"/wait"))
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 << 20:
                sent += client.socket.send(get(b"/next") * 1000)
        assert sent < 32 << 20
        talker.let_go()


def test_a_body_that_is_waited_for_is_asked_for_after_the_answers_before_it(talker: Talker, client: Client) -> None:
    client.send(get(b"/wait") + b"POST /b HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
    time.sleep(0.05)
    talker.let_go()
    said = b""
    while b"100 Continue" not in said:
        said += client.socket.recv(1 << 16)
    assert said.startswith(b"HTTP/1.1 200")
    assert said.endswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    client.send(b"abc")
    assert client.answer().status == 200


def test_an_error_does_not_overtake_the_answers_before_it(talker: Talker, client: Client) -> None:
    client.send(get(b"/wait") + get(b"/next") + b"nonsense\r\n\r\n")
    client.half_close()
    time.sleep(0.02)
    talker.let_go()
    assert [client.answer().status for _ in range(3)] == [200, 200, 400]
    assert client.ended()


# -- what is no HTTP ---------------------------------------------------------------------------------------------------

MALFORMED = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": b"CONNECT a:1 HTTP/1.1\r\n\r\n",
    "another version": b"GET / HTTP/3.7\r\n\r\n",
    "an unknown method": b"FETCH / HTTP/1.1\r\n\r\n",
    "a NUL in a header": get(b"/", b"A: b\0c"),
    "a NUL in a name": get(b"/", b"A\0: b"),
    "a NUL in the target": get(b"/\0"),
    "a space in a name": get(b"/", b"A b: c"),
    "a space before the colon": get(b"/", b"Content-Length : 0"),
    "a header without a colon": get(b"/", b"nonsense"),
    "a folded header": get(b"/", b"A: b", b" c"),
    "bare CR": b"GET / HTTP/1.1\r\nA: b\rC: d\r\n\r\n",
    "length and chunked": chunked(b"abc", headers=(b"Content-Length: 3",)),
    "two lengths": post(b"abc", b"Content-Length: 3"),
    "two different lengths": post(b"abc", b"Content-Length: 4"),
    "a list of lengths": get(b"/", b"Content-Length: 0, 0"),
    "a negative length": get(b"/", b"Content-Length: -1"),
    "a signed length": get(b"/", b"Content-Length: +0"),
    "a hexadecimal length": get(b"/", b"Content-Length: 0x0"),
    "an empty length": get(b"/", b"Content-Length: "),
    "a length beyond 64 bits": get(b"/", b"Content-Length: 18446744073709551616"),
    "an endless length": get(b"/", b"Content-Length: " + b"9" * 1500),
    "an unknown transfer encoding": get(b"/", b"Transfer-Encoding: gzip"),
    "chunked that is not last": get(b"/", b"Transfer-Encoding: chunked, gzip"),
    "a chunk size that is no number": chunked()[:-5] + b"zz\r\n",
    "a negative chunk size": chunked()[:-5] + b"-1\r\n",
    "an endless chunk size": chunked()[:-5] + b"f" * 17 + b"\r\n",
    "a chunk longer than it says": chunked()[:-5] + b"1\r\nabc\r\n",
}


@pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_http_is_refused_and_the_connection_ends(client: Client, sent: bytes) -> None:
    assert_refused(client.ask(sent), 400)
    assert client.ended()


def test_lines_that_end_in_lf_alone_are_refused(client: Client) -> None:
    answer = client.ask(b"GET / HTTP/1.1\nA: b\n\n")
    assert_refused(answer, 400)


# -- how much ----------------------------------------------------------------------------------------------------------


def test_a_head_over_the_limit_is_a_431(talker: Talker) -> None:
    for head in (
        get(b"/" + b"a" * 2000),
        get(b"/", b"A: " + b"b" * 2000),
        get(b"/", *[b"A%d: b" % i for i in range(300)]),
    ):
        with talker.connect() as client:
            assert_refused(client.ask(head), 431, "2000")
            assert client.ask(get()).status == 200  # it came whole: the connection can go on
        with talker.connect() as client:
            client.send(head[:1000])
            time.sleep(0.02)
            assert_refused(client.ask(head[1000:]), 431, "2000")


@pytest.mark.parametrize(
    "start", [b"GET /", b"GET / HTTP/1.1\r\nA: ", b"GET / HTTP/1.1\r\n", b"", chunked()[:-5] + b"1;"]
)
def test_what_never_ends_is_refused_when_it_is_over_the_limit(client: Client, start: bytes) -> None:
    filling = {b"GET / HTTP/1.1\r\n": b"A: b\r\n", b"": b"\r\n"}.get(start, b"x")
    client.send(start)
    for _ in range(100):
        client.send(filling * (3000 // len(filling)))
        time.sleep(0.001)
    assert_refused(client.answer(), 431)
    assert client.ended()


def test_endless_trailers_are_refused(client: Client) -> None:
    client.send(chunked(b"abc")[:-2])
    for number in range(100):
        client.send(b"A%d: %b\r\n" % (number, b"b" * 100))
        time.sleep(0.001)
    assert_refused(client.answer(), 431)


@pytest.mark.parametrize("size", [1001, 3000, 4000])
def test_a_body_over_the_limit_is_read_to_its_end_and_the_connection_goes_on(client: Client, size: int) -> None:
    whole = post(bytes(size))
    client.send(whole)
    assert_refused(client.answer(), 413, "1000")
    client.send(whole[:50])
    time.sleep(0.02)
    client.send(whole[50:1500])
    time.sleep(0.02)
    client.send(whole[1500:] + get())
    assert_refused(client.answer(), 413, "1000")
    assert client.answer().status == 200
    assert_refused(client.ask(chunked(*[bytes(100)] * (size // 100 + 1))), 413, "1000")
    assert client.ask(get()).status == 200


def test_a_body_far_over_the_limit_is_refused_at_once_and_the_client_can_read_it(talker: Talker) -> None:
    for head, piece in (
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", bytes(65536)),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(65536) + b"\r\n"),
    ):
        with talker.connect() as client:
            client.send(head)
            for _ in range(50):  # it goes on sending, as clients do that look only afterwards
                client.send(piece)
            assert_refused(client.answer(), 413, "1000")
            assert client.ended()


def test_a_client_that_asks_first_is_told(client: Client, talker: Talker) -> None:
    head, body = post(b"x" * 1000, b"Expect: 100-Continue")[:-1000], b"x" * 1000
    client.send(head)
    assert client.socket.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.ask(body).status == 200
    with talker.connect() as other:
        assert_refused(other.ask(post(bytes(1001), b"Expect: 100-continue")[:-1001]), 413)
    with talker.connect() as old:
        answer = old.ask(head.replace(b"HTTP/1.1", b"HTTP/1.0") + body)
        assert answer.status == 200


def test_many_small_chunks_take_no_more_memory_than_their_body() -> None:
    with talking(Limits(body_bytes=2 << 20)) as talker, talker.connect() as client:
        client.send(chunked(*[b"ab"] * (1 << 20))[:-5])
        deadline = time.monotonic() + 20
        while not (buffers := [len(each._early) for each in list(talker.server.connections)]) or buffers[0] < 2 << 20:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        (connection,) = talker.server.connections
        assert isinstance(connection._early, bytearray)
        assert client.ask(b"0\r\n\r\n").status == 200
        assert connection._early == b""  # an idle connection keeps nothing


# -- how long ----------------------------------------------------------------------------------------------------------


def trickle(client: Client, sent: bytes, *, for_s: float = 3.0) -> None:
    """Send byte by byte, until an answer is there."""
    client.socket.settimeout(0.02)
    ends = time.monotonic() + for_s
    for at in range(len(sent)):
        client.send(sent[at : at + 1])
        try:
            if client.socket.recv(1, socket.MSG_PEEK):
                break
        except TimeoutError:
            assert time.monotonic() < ends, "it trickles for ever"
    client.socket.settimeout(10)


@pytest.mark.parametrize("sent", [get(b"/", b"A: " + b"b" * 500), post(bytes(500)), chunked(*[b"a"] * 100)])
def test_a_request_that_trickles_is_a_408(sent: bytes) -> None:
    with talking(Limits(head_s=0.3, body_s=0.4)) as talker, talker.connect() as client:
        start = sent.index(b"\r\n\r\n") + 4 if sent.startswith(b"POST") else 3
        client.send(sent[:start])
        trickle(client, sent[start:])
        assert_refused(client.answer(), 408)
        assert client.ended()


@pytest.mark.parametrize("sent", [b"", b"\r\n", get()])
def test_an_idle_connection_ends_silently(sent: bytes) -> None:
    with talking(Limits(idle_s=0.3)) as talker, talker.connect() as client:
        client.send(sent)
        if sent == get():
            assert client.answer().status == 200
        assert client.ended()


def test_a_body_that_is_dropped_may_not_trickle_either() -> None:
    with talking(Limits(body_s=0.3, body_bytes=1000)) as talker, talker.connect() as client:
        client.send(post(bytes(2000))[:500])
        assert_refused(client.answer(), 408)


def test_the_time_of_a_request_under_way_is_not_the_client_s() -> None:
    with talking(Limits(head_s=0.2, body_s=0.2, idle_s=0.2)) as talker, talker.connect() as client:
        many = 40  # so many that the server stops reading in the middle of one
        client.send(get(b"/wait") + post(bytes(3000)) * many)
        time.sleep(1)
        talker.let_go()
        assert {client.answer().status for _ in range(1 + many)} == {200}


def test_a_client_that_does_not_read_is_cut_off_and_nobody_else_suffers() -> None:
    with talking(Limits(write_s=0.5)) as talker, talker.connect(receive_buffer=4096) as deaf:
        deaf.send(get(b"/large") + get(b"/more"))
        deaf.send(get(b"/and-more"))
        with talker.connect() as other:
            assert other.ask(get()).status == 200
        wait_for(lambda: talker.connections() == 0)
        assert sorted(each.target for each in talker.seen) == [b"/", b"/large"]
    with talking(Limits(write_s=0.5)) as talker, talker.connect(receive_buffer=4096) as deaf:
        deaf.send(get(b"/large", b"Connection: close"))
        wait_for(lambda: talker.connections() == 0)


def test_a_client_that_leaves_small_answers_unread_is_cut_off() -> None:
    with talking(Limits(write_s=0.4, idle_s=0.4)) as talker, talker.connect(receive_buffer=2048) as deaf:
        target = b"/" + b"a" * 20_000
        for _ in range(12):  # more than the kernel keeps for it, less than makes the transport say stop
            deaf.send(get(target))
        wait_for(lambda: talker.connections() == 0)


def test_a_slow_reader_gets_a_large_answer_whole(client: Client) -> None:
    client.send(get(b"/large") + get(b"/next"))
    time.sleep(0.2)
    assert len(client.answer().body) == LARGE_BYTES
    assert b"/next" in client.answer().body


def wait_for(condition: Callable[[], object], *, for_s: float = 5.0) -> None:
    ends = time.monotonic() + for_s
    while not condition():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.02)


# -- how many ----------------------------------------------------------------------------------------------------------


def test_a_connection_too_many_is_a_503_and_there_is_room_again_afterwards() -> None:
    with talking(Limits(connections=2)) as talker:
        first, second = talker.connect(), talker.connect()
        assert first.ask(get()).status == second.ask(get()).status == 200
        with talker.connect() as third:
            assert_refused(third.ask(get()), 503, "2 connections")
            assert third.ended()
            second.socket.close()
            wait_for(lambda: talker.server.admitted == 1)
            with talker.connect() as fourth:  # though the third is still about
                assert fourth.ask(get()).status == 200
        assert first.ask(get()).status == 200
        first.socket.close()


def test_so_many_too_many_that_they_are_not_even_answered() -> None:
    with talking(Limits(connections=1)) as talker, talker.connect() as first:
        assert first.ask(get()).status == 200
        with talker.connect() as second:
            assert_refused(second.answer(), 503)
            with talker.connect() as third, pytest.raises((ConnectionError, AssertionError)):
                third.ask(get())
        assert first.ask(get()).status == 200
        assert talker.server.admitted == 1


# -- the end -----------------------------------------------------------------------------------------------------------


def test_stop_in_every_state_of_a_connection() -> None:
    with talking(Limits(body_bytes=100_000)) as talker:
        sent = {
            "new": b"",
            "idle": get(),
            "in the head": b"GET / HT",
            "in a body that is parsed": chunked(b"abc")[:-3],
            "in a body in place": post(bytes(90_000))[:-1],
            "in a body that is dropped": post(bytes(300_000))[:-1],
            "refused": b"nonsense\r\n\r\n",
            "not reading": get(b"/large") * 3,
        }
        clients = {name: talker.connect() for name in sent}
        for name, data in sent.items():
            clients[name].send(data)
        assert clients["idle"].answer().status == 200
        asking = talker.connect()
        asking.send(get(b"/wait") + get(b"/next") * 30 + b"GET /half")
        wait_for(lambda: any(each.target == b"/wait" for each in talker.seen))
        talker.stop(0.1)
        answer = asking.answer()
        assert_refused(answer, 503, "stopping")
        assert asking.ended()
        for name in ("new", "idle", "in the head"):
            assert clients[name].ended()
        assert talker.connections() == 0
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", talker.port), timeout=5)
        for each in (*clients.values(), asking):
            each.socket.close()


def test_stop_answers_what_is_under_way() -> None:
    with talking() as talker, talker.connect() as client:
        client.send(get(b"/wait"))
        wait_for(lambda: talker.seen)
        talker.loop.call_soon_threadsafe(talker.loop.call_later, 0.1, talker.release.set)
        talker.stop(5)
        answer = client.answer()
        assert (answer.status, answer.headers[b"connection"]) == (200, b"close")
        assert client.ended()


def test_clients_that_vanish_at_any_byte_leave_nothing_behind(talker: Talker) -> None:
    talker.release.set()
    whole = post(b"x" * 700) + get(b"/large") + chunked(b"abc") + b"nonsense\r\n\r\n"
    for at in range(0, len(whole) + 1, 13):
        client = talker.connect()
        client.send(whole[:at])
        client.reset()
    wait_for(lambda: talker.connections() == 0)


def test_a_handler_that_raises_ends_its_connection_alone() -> None:
    with talking() as talker:

        async def fail(_: object) -> None:
            raise RuntimeError("a mistake")

        handler = talker.server.handler
        talker.server.handler = fail  # type: ignore[assignment]
        with talker.connect() as client:
            client.send(get())
            with pytest.raises(ConnectionError):
                assert client.ended()
                raise ConnectionError  # closed or reset, either will do
        talker.server.handler = handler
        with talker.connect() as client:
            assert client.ask(get()).status == 200
        wait_for(lambda: talker.faults)
        assert isinstance(talker.faults.pop()["exception"], RuntimeError)


# -- however it is cut -------------------------------------------------------------------------------------------------

names = st.binary(min_size=1, max_size=12).map(lambda raw: b"x-" + raw.hex().encode())
values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=30).map(str.encode)
bodies = st.one_of(st.binary(max_size=40), st.sampled_from([b"", bytes(999), b"\r\n" * 300, b"0\r\n\r\n", bytes(1500)]))


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, tuple[int, bytes]]:
    """A request as bytes, and the status and body of its answer."""
    target = b"/" + draw(st.binary(max_size=10)).hex().encode()
    headers = draw(st.dictionaries(names, values, max_size=3))
    body = draw(bodies)
    pieces = [body[at : at + 100] for at in range(0, len(body), 100)]
    lines = [b"%b: %b" % each for each in headers.items()]
    if draw(st.booleans()):
        headers |= {b"transfer-encoding": b"chunked"}
        sent = chunked(*pieces, headers=tuple(lines)).replace(b"POST /", b"POST " + target, 1)
    else:
        headers |= {b"content-length": b"%d" % len(body)}
        sent = post(body, *lines, target=target)
    if len(body) > 1000:
        return sent, (413, b'{"error":"the body is over the limit of 1000 bytes"}')
    return sent, (200, told("POST", target, headers, body))


@settings(max_examples=100)
@given(asked=st.lists(requests(), min_size=1, max_size=5), cuts=st.lists(st.integers(0, 3000), max_size=8))
def test_any_segmentation_of_a_stream_gives_the_same_answers(
    shared: Talker, asked: list[tuple[bytes, tuple[int, bytes]]], cuts: list[int]
) -> None:
    stream = b"".join(sent for sent, _ in asked)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    with shared.connect() as client:
        for start, end in pairwise(edges):
            client.send(stream[start:end])
            if random.Random(start).random() < 0.5:
                time.sleep(0.0005)
        for _, expected in asked:
            answer = client.answer()
            assert (answer.status, answer.body) == expected


def test_a_stream_cut_at_every_byte(shared: Talker) -> None:
    stream = post(b"abcdef", b"X-A: b") + chunked(b"ab", b"c", trailer=b"T: u\r\n") + get(b"/z")
    with shared.connect() as client:
        expected = [client.ask(stream), client.answer(), client.answer()]
        for at in range(1, len(stream)):
            client.send(stream[:at])
            time.sleep(0.0005)
            client.send(stream[at:])
            assert [client.answer() for _ in range(3)] == expected
        for byte in struct.unpack(f"{len(stream)}c", stream):
            client.send(byte)
        assert [client.answer() for _ in range(3)] == expected


@pytest.mark.parametrize("lead", [0, 1, 63, 64, 65_000, 65_536, 65_537, 131_072])
def test_large_bodies_are_received_in_place_whatever_came_before_them(lead: int) -> None:
    body = random.Random(lead).randbytes(1 << 20)
    head = post(body)[: -len(body)]
    first = post(bytes(max(0, lead - 40)))
    with talking(Limits(body_bytes=2 << 20)) as talker, talker.connect() as client:
        for early in (0, 1, 100, 65_536 - len(head) - len(first), 65_536):
            cut = max(0, early)
            client.send(first + head + body[:cut])
            time.sleep(0.005)
            client.send(body[cut:] + get(b"/after"))
            assert client.answer().status == 200
            assert client.answer().body == told("POST", b"/", {b"content-length": b"%d" % len(body)}, body)
            assert b"/after" in client.answer().body
