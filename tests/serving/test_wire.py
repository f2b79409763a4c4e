from typing import Any
from unittest.mock import patch

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tensor import DATATYPES, Tensor, from_numpy, to_numpy
from serving import wire
from serving.arena import Arena, Window
from serving.errors import MalformedMessageError
from serving.replica import _stack
from serving.wire import (
    BatchHeader,
    Layout,
    ReplyHeader,
    Segment,
    decode_batch_header,
    decode_reply_header,
    encode_batch,
    encode_reply_header,
)
from tests.serving.tensors import Requests, batches

layouts = st.builds(
    Layout,
    name=st.text(max_size=5),
    datatype=st.sampled_from(sorted(DATATYPES)),
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    joined=st.booleans(),
)
segments = st.builds(
    Segment,
    requests=st.integers(0, 100),
    kind=st.sampled_from(["ok", "error", "malformed"]),
    error=st.text(max_size=20),
    outputs=st.lists(layouts, max_size=3).map(tuple),
)
replies = st.builds(
    ReplyHeader,
    id=st.integers(0, 2**53),
    segments=st.lists(segments, max_size=4).map(tuple),
    copy_us=st.integers(0, 2**53),
    preprocess_us=st.integers(0, 2**53),
    compute_us=st.integers(0, 2**53),
    peak_bytes=st.none() | st.integers(0, 2**53),
    cpu_us=st.integers(0, 2**53),
    process_cpu_us=st.integers(0, 2**53),
    gpu_us=st.none() | st.integers(0, 2**53),
)


@given(batch=batches(), join_below=st.sampled_from([0, 1 << 16]))
def test_a_replica_gets_the_requests_rows_in_order_joined_or_not(batch: Requests, join_below: int) -> None:
    with patch.object(wire, "JOIN_BELOW_BYTES", join_below):
        head, *frames = encode_batch(7, batch.rows, batch.inputs, batched=batch.batched, measure=True)
    header = decode_batch_header(head)
    arrays = _stack(header, frames, None, batched=batch.batched)
    assert (header.id, header.rows, header.measure) == (7, batch.rows, True)
    assert list(arrays) == list(batch.inputs[0])
    for name, array in arrays.items():
        parts = [request[name].numpy() for request in batch.inputs]
        expected = np.concatenate(parts) if batch.batched else parts[0]
        assert array.dtype == expected.dtype
        assert array.shape == expected.shape
        assert array.tobytes() == expected.tobytes() or array.tolist() == expected.tolist()


def test_small_tensors_travel_in_one_frame_and_large_ones_are_not_copied() -> None:
    small = [{"x": from_numpy("x", "UINT8", np.zeros((1, 10), np.uint8))} for _ in range(3)]
    large = [{"x": from_numpy("x", "UINT8", np.zeros((1, 1 << 16), np.uint8))} for _ in range(3)]
    assert len(encode_batch(1, (1, 1, 1), small, batched=True, measure=False)) == 2
    _, *frames = encode_batch(1, (1, 1, 1), large, batched=True, measure=False)
    assert all(frame is request["x"].data for frame, request in zip(frames, large, strict=True))


def test_a_lone_request_is_never_copied() -> None:
    tensor = from_numpy("x", "UINT8", np.zeros((2, 10), np.uint8))
    head, frame = encode_batch(1, (2,), [{"x": tensor}], batched=True, measure=False)
    assert frame is tensor.data
    assert decode_batch_header(head) == BatchHeader(
        id=1, rows=(2,), inputs=(Layout("x", "UINT8", (10,), True),), measure=False
    )


def test_the_first_request_s_order_of_inputs_is_every_request_s() -> None:
    one, two = Tensor("a", "UINT8", (1,), b"\x01"), Tensor("b", "UINT8", (1,), b"\x02")
    head, *frames = encode_batch(1, (1, 1), [{"a": one, "b": two}, {"b": two, "a": one}], batched=True, measure=False)
    assert [layout.name for layout in decode_batch_header(head).inputs] == ["a", "b"]
    assert frames == [b"\x01\x01", b"\x02\x02"]


@given(reply=replies)
def test_a_reply_s_header_is_read_back(reply: ReplyHeader) -> None:
    assert decode_reply_header(encode_reply_header(reply)) == reply


@pytest.mark.parametrize("frame", [b"", b"{", b"[]", b"[1]"])
def test_a_frame_that_is_no_header_is_refused(frame: bytes) -> None:
    for decode in (decode_batch_header, decode_reply_header):
        with pytest.raises(MalformedMessageError):
            decode(frame)


def test_bytes_travel_with_their_lengths() -> None:
    words = from_numpy("w", "BYTES", np.array([["a", ""], ["bcd", "é"]], dtype=object))
    _, frame = encode_batch(1, (2,), [{"w": words}], batched=True, measure=False)
    assert to_numpy("BYTES", (2, 2), frame).tolist() == [[b"a", b""], [b"bcd", "é".encode()]]


# What comes from a router that is not as it should be

numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 4)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def stacked(message: list[Any], *, batched: bool, window: Window | None = None) -> dict[str, Any] | None:
    """What a replica makes of a message; None where it refuses it, which it does in one line."""
    head, *frames = message
    try:
        return _stack(decode_batch_header(head), frames, window, batched=batched)
    except MalformedMessageError as error:
        assert "\n" not in str(error)
        return None


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one part of it replaced."""
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(changed(value[at])), *value[at + 1 :]]
    return draw(anything)


@given(data=st.data(), batch=batches(), join_below=st.sampled_from([0, 1 << 16]))
def test_a_header_with_a_part_replaced_is_refused_or_speaks_of_just_these_frames(
    data: st.DataObject, batch: Requests, join_below: int
) -> None:
    with patch.object(wire, "JOIN_BELOW_BYTES", join_below):
        head, *frames = encode_batch(7, batch.rows, batch.inputs, batched=batch.batched, measure=True)
    other = orjson.dumps(data.draw(changed(orjson.loads(head))))
    arrays = stacked([other, *frames], batched=batch.batched)
    if arrays is not None and not any(array.dtype == object for array in arrays.values()):
        assert sum(array.nbytes for array in arrays.values()) == sum(map(len, frames))


@given(frame=st.binary(max_size=60) | anything.map(orjson.dumps), frames=st.lists(st.binary(max_size=20), max_size=3))
def test_any_first_frame_is_a_header_or_refused(frame: bytes, frames: list[bytes]) -> None:
    stacked([frame, *frames], batched=True)
    for decode in (wire.decode_hello, wire.decode_welcome, decode_reply_header):
        try:
            decode(frame)
        except MalformedMessageError as error:
            assert str(error).startswith(decode.__name__)


@given(data=st.data(), batch=batches(), join_below=st.sampled_from([0, 1 << 16]))
def test_frames_that_are_missing_too_many_or_of_another_size_are_refused(
    data: st.DataObject, batch: Requests, join_below: int
) -> None:
    with patch.object(wire, "JOIN_BELOW_BYTES", join_below):
        head, *frames = encode_batch(7, batch.rows, batch.inputs, batched=batch.batched, measure=True)
    at = data.draw(st.integers(0, len(frames) - 1))
    frame = bytes(frames[at])
    others = [[], [frame, b""], [frame + b"\xff"], *([[frame[:-1]]] if frame else [])]
    wrong = [*frames[:at], *data.draw(st.sampled_from(others)), *frames[at + 1 :]]
    assert stacked([head, *wrong], batched=batch.batched) is None


@pytest.fixture(scope="module")
def window() -> Window:
    arena = Arena(1 << 20)
    block = arena.allocate(1 << 16)
    assert block is not None
    block[:] = bytes(range(256)) * 256
    return Window(arena.name)


@given(offset=numbers | st.integers(0, 1 << 20), size=numbers | st.integers(0, 1 << 20), rows=st.integers(0, 1 << 20))
def test_blocks_that_do_not_lie_in_the_arena_whole_are_refused(
    window: Window, offset: int, size: int, rows: int
) -> None:
    head = orjson.dumps((1, [rows], [("x", "UINT8", [], True)], False, {"x": [(offset, size)]}))
    arrays = stacked([head], batched=True, window=window)
    fits = offset >= 0 and rows == size >= 0 and offset + size <= 1 << 20
    assert (arrays is not None) is fits
    if arrays is not None:
        assert arrays["x"].tobytes() == bytes(window.view(offset, size))


@pytest.mark.parametrize(
    ("blocks", "joined"),
    [
        ({"x": [(0, 1), (1, 1)]}, True),
        ({"x": [(0, 2)]}, False),
        ({"y": [(0, 1)]}, True),
        ({"x": []}, True),
        ([1], True),
    ],
)
def test_blocks_of_another_number_or_name_are_refused(window: Window, blocks: Any, joined: bool) -> None:
    head = orjson.dumps((1, [1, 1], [("x", "UINT8", [], joined)], False, blocks))
    assert stacked([head], batched=True, window=window) is None


def test_blocks_are_refused_by_who_cannot_read_the_arena() -> None:
    head = orjson.dumps((1, [1], [("x", "UINT8", [], True)], False, {"x": [(0, 1)]}))
    assert stacked([head], batched=True) is None
