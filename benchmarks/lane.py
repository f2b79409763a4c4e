"""What a router spends on a mirrored request before its bytes go anywhere: sampling, slices, account, message.

A real ``MirrorLane`` is offered answered batches; what it sends is discarded, and of every batch it is told at once
that it is over, as the shadow process tells it later. Inputs of 64 KiB and more lie in the arena, as in service.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.synthetic import DEPLOYMENT, LIMITS, SLICES
from models.tensor import Buffer, Tensor
from serving.batching import Batch, Job, new_batch, signature_of
from serving.config import Model
from serving.handoff import Opening
from serving.mirror import MirrorLane
from serving.protocol.messages import InferRequest
from serving.wire import JOIN_BELOW_BYTES, Layout, ReplyHeader, Segment, encode_batch, encode_reply_header
from shadow.pair import Arm

BATCH_SIZES: Final = (1, 8, 30)
INPUTS: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "360 B": ("FP32", (1, 90)),
    "602 KB": ("FP32", (1, 3, 224, 224)),
}
_ELEMENT_BYTES: Final = 4
_CLASSES: Final = 10
_BATCHES: Final = 16  # different ones, in turn
_HELD_BYTES: Final = 1 << 30
_AT_UNIX_US: Final = 1_800_000_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """A batch as the router has it after its answers have left."""

    batch: Batch
    reply: Sequence[Buffer]


class _Case:
    """Batches of one size, with inputs of one kind, and a lane that takes them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, size: int) -> None:
        datatype, shape = INPUTS[name]
        body = bytes(_ELEMENT_BYTES * prod(shape))
        jobs = iter([_job(loop, number, datatype, shape, body) for number in range(_BATCHES * size)])
        self.name, self.size = name, size
        self._answered = [_answered([next(jobs) for _ in range(size)]) for _ in range(_BATCHES)]
        self.lane = MirrorLane(1, _OPENING, _MODEL, send=_discard, most_held_bytes=_HELD_BYTES)
        self._offered = 0

    def run(self, batches: int) -> float:
        """Offer so many batches; microseconds of CPU a request."""
        began = time.process_time()
        for number in range(self._offered + 1, self._offered + batches + 1):
            each = self._answered[number % _BATCHES]
            self.lane.offer(
                each.batch,
                Arm.BASELINE,
                each.reply,
                batched=True,
                waiting=False,
                now=1.0,
                at_unix_us=_AT_UNIX_US + number,
            )
            self.lane.done((number,))
        spent_s = time.process_time() - began
        self._offered += batches
        return spent_s * 1e6 / (batches * self.size)


def measure(*, rounds: int, requests: int, batch_sizes: Sequence[int] = BATCH_SIZES) -> list[dict[str, Any]]:
    """For each kind of input and size of batch the microseconds of CPU a request: the median of alternating rounds."""
    loop = asyncio.new_event_loop()
    try:
        cases = [_Case(loop, name, size) for name in INPUTS for size in batch_sizes]
        for case in cases:
            case.run(_BATCHES)
        samples = [[case.run(max(requests // case.size, 1)) for case in cases] for _ in range(rounds)]
    finally:
        loop.close()
    return [_row(case, list(spent)) for case, spent in zip(cases, zip(*samples, strict=True), strict=True)]


def _row(case: _Case, spent_us: Sequence[float]) -> dict[str, Any]:
    account = case.lane.account()
    return {
        "input": case.name,
        "batch": case.size,
        "us_per_request": median(spent_us),
        "lowest": min(spent_us),
        "highest": max(spent_us),
        "not_handed_over": account.shed + account.too_large,
    }


def _discard(frames: Sequence[Buffer]) -> None:
    """Where the socket would be."""


_MODEL: Final = Model.model_validate(
    {
        "baseline": 1,
        "comparator": {"kind": "classification", "output": "scores"},
        "slices": {"parameter": "place", "values": [name for name in SLICES if name]},
    }
)
_OPENING: Final = Opening(
    deployment_id=DEPLOYMENT,
    model="digits",
    baseline=1,
    candidate=2,
    salt="salt",
    limits=LIMITS,
    chain="router-000001",
)


def _job(loop: asyncio.AbstractEventLoop, number: int, datatype: str, shape: tuple[int, ...], body: bytes) -> Job:
    tensor = Tensor("image", datatype, shape, body)
    return Job(
        request=InferRequest(
            model="digits",
            request_id=f"0123456789abcdef-{number:x}",
            key=f"0123456789abcdef-{number:x}",
            inputs={"image": tensor},
            parameters={"place": SLICES[number % len(SLICES)]},
        ),
        version=1,
        arm=Arm.BASELINE,
        pinned=False,
        stage=0,
        rows=shape[0],
        signature=signature_of([tensor], batched=True),
        nbytes=len(body),
        future=loop.create_future(),
        arrived=0.998,
        deadline=30.0,
        deployment_id=DEPLOYMENT,
    )


def _answered(jobs: list[Job]) -> _Answered:
    batch = new_batch(jobs)
    rows = [job.rows for job in jobs]
    batch.frames = encode_batch(
        batch.id, rows, [job.request.inputs for job in jobs], batched=True, measure=True, locate=_located
    )
    layout = Layout("scores", "FP32", (_CLASSES,), joined=True)
    header = ReplyHeader(
        id=batch.id,
        segments=(Segment(requests=len(jobs), kind="ok", error="", outputs=(layout,)),),
        copy_us=5,
        preprocess_us=0,
        compute_us=1800,
        peak_bytes=1 << 20,
        cpu_us=1700,
        process_cpu_us=1800,
    )
    return _Answered(
        batch=batch, reply=[encode_reply_header(header), np.zeros((len(jobs), _CLASSES), np.float32).tobytes()]
    )


def _located(buffer: Buffer) -> int | None:
    """Where in the arena a body lies: it does where it is large."""
    return 0 if len(buffer) >= JOIN_BELOW_BYTES else None
