from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tensor import Buffer, Tensor
from serving.reply import results_of
from serving.wire import Layout, ReplyHeader, Segment
from shadow.pair import Status
from tests.serving.tensors import Requests, batches


def header(*segments: Segment) -> ReplyHeader:
    return ReplyHeader(id=1, segments=segments, copy_us=0, preprocess_us=0, compute_us=0, peak_bytes=None)


def ok(batch: Requests) -> tuple[Segment, list[Buffer]]:
    """A segment whose outputs are the batch's own tensors, one frame each."""
    layouts = tuple(
        Layout(each.name, each.datatype, each.shape[1:] if batch.batched else each.shape, True)
        for each in batch.inputs[0].values()
    )
    frames: list[Buffer] = [b"".join(request[layout.name].data for request in batch.inputs) for layout in layouts]
    return Segment(requests=len(batch.rows), kind="ok", error="", outputs=layouts), frames


def plain(tensors: dict[str, Tensor]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (each.datatype, each.shape, bytes(each.data)) for name, each in tensors.items()}


@given(batch=batches())
def test_every_request_gets_its_own_rows_back(batch: Requests) -> None:
    segment, frames = ok(batch)
    results = results_of(header(segment), frames, batch.rows, batched=batch.batched)
    assert [result.status for result in results] == [Status.OK] * len(batch.rows)
    assert [plain(dict(result.outputs)) for result in results] == [plain(request) for request in batch.inputs]


@given(good=st.lists(batches(), max_size=3), failed=st.integers(0, 3), kind=st.sampled_from(["error", "malformed"]))
def test_segments_that_ended_differently_keep_their_order(good: list[Requests], failed: int, kind: str) -> None:
    segments, frames, rows, expected = [], [], [], []
    for batch in (each for each in good if each.batched):
        segment, mine = ok(batch)
        segments += [segment, Segment(requests=failed, kind=kind, error="why", outputs=())]
        frames += mine
        rows += [*batch.rows, *[2] * failed]
        expected += ["ok"] * len(batch.rows) + [kind] * failed
    results = results_of(header(*segments), frames, rows, batched=True)
    assert [result.status.value for result in results] == expected
    assert all(result.error == "why" and not result.outputs for result in results if result.status is not Status.OK)
    answered = [request for batch in good if batch.batched for request in batch.inputs]
    assert [plain(dict(result.outputs)) for result in results if result.status is Status.OK] == [
        plain(request) for request in answered
    ]


def test_the_outputs_are_views_into_the_reply() -> None:
    frame = bytearray(range(8))
    segment = Segment(requests=2, kind="ok", error="", outputs=(Layout("y", "UINT8", (4,), True),))
    first, second = results_of(header(segment), [frame], (1, 1), batched=True)
    frame[4] = 99
    assert second.outputs["y"].numpy().tolist() == [[99, 5, 6, 7]]
    assert first.outputs["y"].numpy().tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_a_request_without_rows_gets_an_output_without_rows(datatype: str) -> None:
    segment = Segment(requests=2, kind="ok", error="", outputs=(Layout("y", datatype, (3,), True),))
    results = results_of(header(segment), [b""], (0, 0), batched=True)
    assert [result.outputs["y"].shape for result in results] == [(0, 3), (0, 3)]
    assert all(prod(result.outputs["y"].numpy().shape) == 0 for result in results)


LAYOUT = Layout("y", "FP32", (2,), True)
ONE = Segment(requests=1, kind="ok", error="", outputs=(LAYOUT,))
TWO = Segment(requests=2, kind="ok", error="", outputs=(LAYOUT,))
FAILED = Segment(requests=2, kind="error", error="why", outputs=())
TEXTS = Segment(requests=2, kind="ok", error="", outputs=(Layout("y", "BYTES", (1,), True),))


@pytest.mark.parametrize(
    ("segments", "frames"),
    [
        ((ONE,), [bytes(8)]),  # too few
        ((TWO, ONE), [bytes(16), bytes(8)]),  # too many
        ((FAILED, FAILED), []),
        ((), []),
        ((TWO,), []),
        ((TWO,), [bytes(16), b""]),
        ((FAILED,), [b"x"]),
        ((TWO,), [bytes(15)]),
        ((TWO,), [bytes(24)]),
        ((TWO,), [b""]),
        ((TEXTS,), [bytes(9)]),
        ((TEXTS,), [bytes(4)]),
        ((TEXTS,), [b"\xff" * 8]),
        ((Segment(requests=-1, kind="ok", error="", outputs=(LAYOUT,)),), [b""]),
        ((Segment(requests=2, kind="fine", error="", outputs=()),), []),
        ((Segment(requests=2, kind="ok", error="", outputs=(Layout("y", "BYTES", (1 << 40,), True),)),), [bytes(8)]),
    ],
)
def test_a_reply_that_contradicts_itself_or_the_batch_fails_each_of_its_requests(
    segments: tuple[Segment, ...], frames: list[Buffer]
) -> None:
    results = results_of(header(*segments), frames, (1, 1), batched=True)
    assert [result.status for result in results] == [Status.ERROR] * 2
    assert all("its replica's reply contradicts itself" in result.error for result in results)


def test_without_a_batch_dimension_an_output_s_bytes_must_make_up_its_shape() -> None:
    (good,) = results_of(header(ONE), [bytes(8)], (1,), batched=False)
    assert (good.status, good.outputs["y"].shape) == (Status.OK, (2,))
    (bad,) = results_of(header(ONE), [bytes(7)], (1,), batched=False)
    assert bad.status is Status.ERROR
