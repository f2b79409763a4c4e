"""What router and shadow process tell each other arrives as it was meant, or is refused."""

from typing import TypeVar

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import MalformedMessageError
from serving.handoff import (
    Counted,
    Failure,
    Handoff,
    Kind,
    Opening,
    decode_failure,
    decode_handoff,
    decode_head,
    encode_close,
    encode_closed,
    encode_done,
    encode_failure,
    encode_handoff,
    encode_open,
    encode_told,
)
from shadow.accounting import Account, Ledger
from shadow.cells import PLAIN
from shadow.evidence import Limits
from shadow.pair import Arm, Status

_T = TypeVar("_T")
counts = st.integers(0, 2**53)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
frames = st.lists(st.binary(max_size=20), max_size=4)


@st.composite
def handoffs(draw: st.DrawFn) -> Handoff:
    rows = draw(st.lists(st.integers(1, 64), min_size=1, max_size=6))
    recorded = draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True).map(sorted))

    def each(values: st.SearchStrategy[_T]) -> st.SearchStrategy[list[_T]]:
        return st.lists(values, min_size=len(recorded), max_size=len(recorded))

    return Handoff(
        number=draw(counts),
        primary=draw(st.sampled_from(Arm)),
        stage=draw(st.integers(0, 9)),
        at_unix_us=draw(counts),
        rows=rows,
        recorded=recorded,
        request_ids=draw(each(texts)),
        latencies_us=draw(each(counts)),
        sizes=draw(each(counts)),
        slices=draw(st.just([]) | each(texts)),
        counted=Counted(sampled=draw(counts), shed=draw(counts), too_large=draw(counts)),
        batched=draw(st.booleans()),
    )


@given(handoff=handoffs(), lane=counts, batch=frames, reply=frames)
def test_a_batch_arrives_as_it_was_handed_over(
    handoff: Handoff, lane: int, batch: list[bytes], reply: list[bytes]
) -> None:
    sent = [memoryview(bytes(frame)) for frame in encode_handoff(lane, handoff, batch, [b"head", *reply])]
    kind, number, rest = decode_head(sent[0])
    got, got_batch, got_reply = decode_handoff(rest, sent[1:])
    assert (kind, number) == (Kind.MIRROR if batch else Kind.ANSWERS, lane)
    assert got == handoff
    assert [bytes(frame) for frame in got_batch] == batch
    assert [bytes(frame) for frame in got_reply] == [b"head", *reply]


def test_what_else_is_told_arrives_as_it_was_said() -> None:
    opening = Opening(
        deployment_id="d", model="m", baseline=1, candidate=2, salt="s", limits=Limits(tolerance=0.5), chain="c"
    )
    failure = Failure(
        stage=1,
        at_unix_us=2,
        request_id="r",
        rows=3,
        latency_us=4,
        status=Status.TIMEOUT,
        error="no answer",
        slice="lobby",
    )
    kind, lane, rest = decode_head(encode_open(7, opening)[0])
    assert (kind, lane, Opening.of(rest[0])) == (Kind.OPEN, 7, opening)
    kind, lane, rest = decode_head(encode_failure(7, failure)[0])
    assert (kind, lane, decode_failure(rest[0])) == (Kind.FAILURE, 7, failure)
    assert decode_head(encode_close(7)[0]) == (Kind.CLOSE, 7, [])
    assert decode_head(encode_closed(7)[0]) == (Kind.CLOSED, 7, [])
    assert decode_head(encode_done(7, [1, 2])[0]) == (Kind.DONE, 7, [[1, 2]])
    ends = Ledger({PLAIN: Account(sampled=2, mirrored=2).ends()})
    head, told = encode_told(7, ends, {"evidence": {}})
    kind, lane, rest = decode_head(head)
    assert (kind, lane, Ledger.from_json(rest[0])) == (Kind.TOLD, 7, ends)
    assert orjson.loads(told) == {"evidence": {}}


@pytest.mark.parametrize("head", [b"", b"{}", b"1", b"[]", b'["open"]', b'["sing", 1]', b'["mirror", "x"]', b"\xff"])
def test_a_message_of_no_known_kind_is_refused(head: bytes) -> None:
    with pytest.raises(MalformedMessageError, match="between router and shadow process"):
        decode_head(head)


@pytest.mark.parametrize(
    "rest", [[], [1], [0, []], [0, [1] * 10], [3, [1, "baseline", 0, 0, [1], [0], ["r"], [1], [0, 0, 0], True]]]
)
def test_a_batch_whose_parts_are_missing_is_refused(rest: list[object]) -> None:
    with pytest.raises(MalformedMessageError, match="handoff"):
        decode_handoff(rest, [memoryview(b"")] * 2)
