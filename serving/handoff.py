"""What a router and its shadow process tell each other: what clients were answered with, and what came of it.

A message is frames (``serving.frames``) of which the first is JSON: its kind, the lane's number, and what else the kind
has. Where a batch is to be run again, the frames follow that its replica was sent (tensors in the router's arena stay
there: the message says where), and those with which it replied, as they came: the router decodes and copies nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Self

import orjson

from models.tensor import Buffer
from serving.errors import MalformedMessageError
from shadow.accounting import Ledger
from shadow.evidence import Limits
from shadow.pair import Arm, Status


class Kind(StrEnum):
    """Of a message: first what a router says, then what its shadow process says."""

    OPEN = "open"  # a rollout's lane: ``Opening``
    MIRROR = "mirror"  # a batch to run on the other side: ``Handoff``, batch, reply
    ANSWERS = "answers"  # a batch that counts by its answers alone: ``Handoff``, reply
    FAILURE = "failure"  # a client's request that the candidate failed: ``Failure``
    CLOSE = "close"  # make the lane's evidence durable and forget it
    DONE = "done"  # the numbers of batches that are over: what they held is free
    TOLD = "told"  # a lane's durable evidence and account
    CLOSED = "closed"
    REFUSED = "refused"  # a lane that cannot be opened, and why


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A rollout that is mirrored; ``chain`` names this lane's evidence."""

    deployment_id: str
    model: str
    baseline: int
    candidate: int
    salt: str
    limits: Limits
    chain: str

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """From its JSON."""
        return cls(**{**value, "limits": Limits(**value["limits"])})


class Counted(NamedTuple):
    """What the router has counted of a lane so far, in items."""

    sampled: int = 0
    shed: int = 0
    too_large: int = 0


@dataclass(slots=True, kw_only=True)  # not frozen: that would take three times as long, for every batch
class Handoff:
    """A batch that ``primary`` answered. ``rows`` are of all its requests; ``recorded`` are the positions of those that
    are evidence: a request that was pinned, that the other version failed first, or that came before this rollout
    travels along but counts for nothing. What follows has an entry for each of these. Without a batch dimension the
    model is not ``batched``.
    """

    number: int
    primary: Arm
    stage: int
    at_unix_us: int
    rows: Sequence[int]
    recorded: Sequence[int]
    request_ids: Sequence[str]
    latencies_us: Sequence[int]
    sizes: Sequence[int]  # bytes of their inputs
    slices: Sequence[str]  # none where the model has no slices
    counted: Counted
    batched: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A request of the candidate's share that it failed."""

    stage: int
    at_unix_us: int
    request_id: str
    rows: int
    latency_us: int
    status: Status
    error: str
    slice: str = ""


def encode_open(lane: int, opening: Opening) -> list[Buffer]:
    """A lane begins."""
    return [orjson.dumps((Kind.OPEN, lane, asdict(opening)))]


def encode_close(lane: int) -> list[Buffer]:
    """A lane ends."""
    return [orjson.dumps((Kind.CLOSE, lane))]


def encode_handoff(lane: int, handoff: Handoff, batch: Sequence[Buffer], reply: Sequence[Buffer]) -> list[Buffer]:
    """A batch; ``batch`` are its frames as its replica was sent them, nothing where it is not to be run again.

    ``reply`` are the frames of that one's reply, as they came: with their header.
    """
    values = (
        handoff.number,
        handoff.primary,
        handoff.stage,
        handoff.at_unix_us,
        handoff.rows,
        handoff.recorded,
        handoff.request_ids,
        handoff.latencies_us,
        handoff.sizes,
        handoff.slices,
        tuple(handoff.counted),
        handoff.batched,
    )
    head = orjson.dumps((Kind.MIRROR if batch else Kind.ANSWERS, lane, len(batch), values))
    return [head, *batch, *reply]


def encode_failure(lane: int, failure: Failure) -> list[Buffer]:
    """A client's request that the candidate failed."""
    return [orjson.dumps((Kind.FAILURE, lane, asdict(failure)))]


def encode_done(lane: int, numbers: Sequence[int]) -> list[Buffer]:
    """Batches that are over."""
    return [orjson.dumps((Kind.DONE, lane, numbers))]


def encode_told(lane: int, ends: Ledger, told: Mapping[str, Any]) -> list[Buffer]:
    """How the batches ended that came, and what is durable: in a frame of its own, which the router hands on unread."""
    return [orjson.dumps((Kind.TOLD, lane, ends.to_json())), orjson.dumps(told)]


def encode_closed(lane: int) -> list[Buffer]:
    """A lane's evidence is durable."""
    return [orjson.dumps((Kind.CLOSED, lane))]


def encode_refused(lane: int, why: str) -> list[Buffer]:
    """A lane cannot be opened."""
    return [orjson.dumps((Kind.REFUSED, lane, why))]


def decode_head(frame: Buffer) -> tuple[Kind, int, list[Any]]:
    """A message's kind, its lane, and the rest of its first frame.

    Raises:
        MalformedMessageError: it is no such frame.
    """
    try:
        kind, lane, *rest = orjson.loads(frame)
        return Kind(kind), int(lane), rest
    except (ValueError, TypeError) as error:
        raise MalformedMessageError(f"expected a message between router and shadow process: {error}") from None


def decode_handoff(
    rest: Sequence[Any], frames: Sequence[memoryview]
) -> tuple[Handoff, Sequence[memoryview], Sequence[memoryview]]:
    """The inverse of ``encode_handoff``: the batch's frames and the reply's follow.

    Raises:
        MalformedMessageError: it is no such message.
    """
    try:
        batch_frames, values = rest
        (
            number,
            primary,
            stage,
            at_unix_us,
            rows,
            recorded,
            request_ids,
            latencies_us,
            sizes,
            slices,
            counted,
            batched,
        ) = values
        sampled, shed, too_large = counted
        handoff = Handoff(
            number=number,
            primary=Arm(primary),
            stage=stage,
            at_unix_us=at_unix_us,
            rows=rows,
            recorded=recorded,
            request_ids=request_ids,
            latencies_us=latencies_us,
            sizes=sizes,
            slices=slices,
            counted=Counted(sampled=sampled, shed=shed, too_large=too_large),
            batched=batched,
        )
        if len(frames) <= batch_frames:
            raise ValueError(f"expected a batch of {batch_frames} frames and a reply, got {len(frames)}")
    except (ValueError, TypeError) as error:
        raise MalformedMessageError(f"handoff: {error}") from None
    return handoff, frames[:batch_frames], frames[batch_frames:]


def decode_failure(value: Mapping[str, Any]) -> Failure:
    """The inverse of ``encode_failure``."""
    return Failure(**{**value, "status": Status(value["status"])})
