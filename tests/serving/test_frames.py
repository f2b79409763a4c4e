"""Messages over a stream: whatever the pieces it arrives in."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import MalformedMessageError
from serving.frames import Inbox, pack, send_some

messages = st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=5), min_size=1, max_size=6)


def fed(inbox: Inbox, stream: bytes, pieces: list[int]) -> list[list[bytes]]:
    """What comes out of a stream that is read in these pieces, over and over."""
    found: list[list[bytes]] = []
    at = turn = 0
    while at < len(stream):
        space = inbox.space()
        count = min(pieces[turn % len(pieces)], len(space), len(stream) - at)
        space[:count] = stream[at : at + count]
        found += [[bytes(frame) for frame in message] for message in inbox.received(count)]
        at, turn = at + count, turn + 1
    return found


@given(sent=messages, pieces=st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_messages_come_out_as_they_went_in_however_they_were_cut(sent: list[list[bytes]], pieces: list[int]) -> None:
    stream = b"".join(bytes(part) for message in sent for part in pack(message))
    assert fed(Inbox(), stream, pieces) == sent


@pytest.mark.parametrize("piece", [7_919, 65_536])
@pytest.mark.parametrize("size", [65_000, 65_528, 65_536, 1_000_000])
def test_a_message_larger_than_the_scratch_buffer_is_read_in_place_and_others_follow(size: int, piece: int) -> None:
    sent = [[b"a", bytes(size)], [b"after"], [b"b" * size, b""], [b"end"]]
    stream = b"".join(bytes(part) for message in sent for part in pack(message))
    assert fed(Inbox(), stream, [piece]) == sent


@given(sizes=st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_every_frame_starts_aligned(sizes: list[int]) -> None:
    stream = b"".join(bytes(part) for part in pack([bytes([1]) * size for size in sizes]))
    at = 8 + 8 + 8 * len(sizes)
    for size in sizes:
        at += -(at - 8) % 16
        assert stream[at : at + size] == bytes([1]) * size
        at += size


def test_small_messages_are_one_piece_and_large_frames_are_not_copied() -> None:
    large = bytes(100_000)
    assert len(pack([b"head", b"small"])) == 1
    assert any(part is large for part in pack([b"head", large]))


def test_what_a_socket_does_not_take_is_left_over() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    message = [bytes([number]) * 50_000 for number in range(20)]
    left, sent = pack(message), 0
    inbox = Inbox()
    found: list[list[memoryview]] = []
    with ours, theirs:
        while left:
            before = sum(map(len, left))
            left = send_some(ours, left)
            sent += before - sum(map(len, left))
            while sent:
                count = theirs.recv_into(inbox.space())
                sent -= count
                found += inbox.received(count)
    assert [[bytes(frame) for frame in each] for each in found] == [message]


def test_more_frames_than_the_kernel_takes_at_once_go_in_turns() -> None:
    ours, theirs = socket.socketpair()
    message = [bytes(40) for _ in range(1500)]
    inbox = Inbox()
    found: list[list[memoryview]] = []
    with ours, theirs:
        left = pack(message)
        while left:
            left = send_some(ours, left)
        while not found:
            found = inbox.received(theirs.recv_into(inbox.space()))
    assert len(found[0]) == 1500


@given(
    message=st.lists(st.binary(max_size=40), min_size=1, max_size=4),
    at=st.integers(0, 400),
    number=st.integers(0, 2**64 - 1) | st.integers(0, 64),
)
def test_a_number_of_a_message_that_is_another_makes_it_malformed_or_unfinished(
    message: list[bytes], at: int, number: int
) -> None:
    (whole,) = pack(message)
    numbers = 2 + len(message)  # its size, its number of frames, theirs
    stream = bytearray(whole)
    struct.pack_into("<Q", stream, 8 * (at % numbers), number)
    inbox = Inbox()
    try:
        found = fed(inbox, bytes(stream), [1000])
    except MalformedMessageError as error:
        assert "\n" not in str(error)
        return
    for each in found:  # the sizes add up, as those of a frame may that another's padding had covered
        head = 8 + 8 * len(each)
        assert sum(len(frame) + -len(frame) % 16 for frame in each) + head + -head % 16 <= len(whole) - 8


@given(stream=st.binary(max_size=300), pieces=st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_whatever_comes_is_messages_or_malformed(stream: bytes, pieces: list[int]) -> None:
    try:
        found = fed(Inbox(), stream, pieces)
    except MalformedMessageError:
        return
    assert all(found)


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        (struct.pack("<Q", 0), "in a message of 0 bytes, got 0"),
        (struct.pack("<QQ", 8, 0), "expected one frame or more"),
        (struct.pack("<QQ", 8, 2**61), "expected one frame or more"),
        (struct.pack("<QQQ", 16, 1, 100), "expected frames of 16 bytes together, got 128"),
        (struct.pack("<QQQ16x", 32, 1, 0), "expected frames of 32 bytes together, got 16"),
        (struct.pack("<QQQ", 2**63, 1, 0), "expected a message that fits into memory"),
        (struct.pack("<QQQ", 2**64 - 1, 1, 0), "expected a message that fits into memory"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(stream: bytes, said: str) -> None:
    with pytest.raises(MalformedMessageError, match=said):
        fed(Inbox(), stream, [1000])
