from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tensor import DATATYPES, Tensor, from_numpy, to_numpy
from serving import wire
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
    with pytest.raises(ValueError):
        decode_batch_header(frame)


def test_bytes_travel_with_their_lengths() -> None:
    words = from_numpy("w", "BYTES", np.array([["a", ""], ["bcd", "é"]], dtype=object))
    _, frame = encode_batch(1, (2,), [{"w": words}], batched=True, measure=False)
    assert to_numpy("BYTES", (2, 2), frame).tolist() == [[b"a", b""], [b"bcd", "é".encode()]]
