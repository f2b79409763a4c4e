"""A stream that carries messages: in order, together where that saves wakings, and none left behind."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing

import pytest

from serving.frames import pack
from serving.stream import FrameStream


def _messages(count: int) -> list[list[bytes]]:
    return [[b"%d" % number, bytes(number)] for number in range(count)]


def _unexpected(message: list[memoryview]) -> None:
    pytest.fail(f"nothing was to come, got {message}")


def _run(talk: Callable[[FrameStream, socket.socket], None], *, until: int, rest_s: float = 0.0) -> list[list[bytes]]:
    """What a stream receives of ``until`` messages that the other end of its socket is made to send."""
    received: list[list[bytes]] = []
    ended: list[str] = []

    async def listen() -> None:
        ours, theirs = socket.socketpair()
        enough = asyncio.Event()

        def take(message: list[memoryview]) -> None:
            received.append([bytes(frame) for frame in message])
            if len(received) == until:
                enough.set()

        with closing(theirs):
            stream = FrameStream(asyncio.get_running_loop(), ours, on_message=take, on_end=ended.append, rest_s=rest_s)
            talk(stream, theirs)
            await asyncio.wait_for(enough.wait(), 10)
            stream.close()

    asyncio.run(listen())
    assert ended == []
    return received


@pytest.mark.parametrize("rest_s", [0.0, 0.001])
def test_messages_arrive_whole_and_in_order_however_they_are_cut(rest_s: float) -> None:
    messages = _messages(50)
    stream = b"".join(bytes(part) for message in messages for part in pack(message))

    def talk(_: FrameStream, theirs: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        for at in range(0, len(stream), 97):
            loop.call_later(at * 1e-6, theirs.sendall, stream[at : at + 97])

    assert _run(talk, until=len(messages), rest_s=rest_s) == messages


def test_one_that_rests_reads_what_came_meanwhile_at_one_go() -> None:
    times: list[float] = []
    received: list[int] = []

    async def listen() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        enough = asyncio.Event()

        def take(message: list[memoryview]) -> None:
            received.append(int(bytes(message[0])))
            times.append(loop.time())
            if len(received) == 4:
                enough.set()

        with closing(theirs):
            stream = FrameStream(loop, ours, on_message=take, on_end=pytest.fail, rest_s=0.2)
            for number in range(4):
                loop.call_later(0.02 * number, theirs.sendall, b"".join(bytes(part) for part in pack([b"%d" % number])))
            await asyncio.wait_for(enough.wait(), 10)
            stream.close()

    asyncio.run(listen())
    assert received == [0, 1, 2, 3]
    first, *others = times
    assert min(others) - first > 0.15
    assert max(others) - min(others) < 0.1


def test_a_message_that_fills_the_socket_many_times_is_not_waited_for_in_between() -> None:
    whole = [[bytes(20 << 20)]]

    def talk(_: FrameStream, theirs: socket.socket) -> None:
        theirs.setblocking(False)
        sender = FrameStream(asyncio.get_running_loop(), theirs.dup(), on_message=_unexpected, on_end=lambda _: None)
        sender.send(whole[0])

    # A rest after each of some hundred reads would take minutes.
    assert _run(talk, until=1, rest_s=5.0) == whole


def test_what_is_gathered_goes_out_before_what_is_sent_at_once() -> None:
    def talk(stream: FrameStream, theirs: socket.socket) -> None:
        for message in _messages(3):
            stream.send_soon(message)
        stream.send([b"at once"])
        echo = FrameStream(asyncio.get_running_loop(), theirs.dup(), on_message=lambda _: None, on_end=lambda _: None)
        echo.close()
        theirs.setblocking(True)
        theirs.sendall(theirs.recv(1 << 16))

    assert _run(talk, until=4) == [*_messages(3), [b"at once"]]


def test_what_is_gathered_leaves_when_it_is_flushed() -> None:
    def talk(stream: FrameStream, theirs: socket.socket) -> None:
        stream.send_soon([b"one"])
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        stream.flush()
        theirs.setblocking(True)
        theirs.sendall(theirs.recv(1 << 16))

    assert _run(talk, until=1) == [[b"one"]]


def test_closing_one_that_rests_leaves_nothing_behind() -> None:
    async def close_at_rest() -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        came = asyncio.Event()
        with closing(theirs):
            stream = FrameStream(loop, ours, on_message=lambda _: came.set(), on_end=pytest.fail, rest_s=0.01)
            theirs.sendall(b"".join(bytes(part) for part in pack([b"one"])))
            await asyncio.wait_for(came.wait(), 10)
            stream.close()
            await asyncio.sleep(0.05)

    asyncio.run(close_at_rest())
