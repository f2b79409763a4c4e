"""Rehearsals that a real recorder has written, for the tests of what is made of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shadow.accounting import Accounting
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.recorder import Recorder
from tests.shadow.builders import DEPLOYMENT, LIMITS, PARAMETERS

CLASSES = 3
BEGAN_US = 1_800_000_000_000_000
NEVER_S = 3600.0


def batch(
    number: int,
    size: int = 1,
    *,
    label: int = 0,
    answer: int | None = None,
    delta: float = 0.0,
    noise: float | None = None,
    times_ms: Sequence[float] = (2.0, 3.0, 2.5),
    memory: Sequence[int] = (500, 600, 550),
    slice_name: str = "",
    primary: Arm = Arm.BASELINE,
    stage: int = 0,
) -> Pair:
    """The n-th batch, a second after the one before: ``size`` requests of one item each.

    The baseline scores its ``label`` with 0.8 and all else with 0.1. The candidate adds ``delta`` to the score of its
    ``answer``, the twin ``noise`` to that of the label; without noise no twin ran. Times and memory are of baseline,
    candidate and twin; the thread's CPU time is half of the wall's.
    """
    base = np.full(CLASSES, 0.1, np.float32)
    base[label] = 0.8
    place = label if answer is None else answer
    sides = [_moved(base, label, 0.0), _moved(base, place, delta), _moved(base, label, noise or 0.0)]
    outcomes = [
        Outcome(
            answers=(Answer(status=Status.OK, outputs={"scores": scores[None]}),) * size,
            service_ms=time_ms,
            cpu_ms=time_ms / 2,
            peak_memory_bytes=peak,
        )
        for scores, time_ms, peak in zip(sides, times_ms, memory, strict=True)
    ]
    return Pair(
        deployment_id=DEPLOYMENT,
        stage=stage,
        at_unix_us=BEGAN_US + number * 1_000_000,
        primary=primary,
        request_ids=tuple(f"{number}-{index}" for index in range(size)),
        rows=(1,) * size,
        latencies_ms=(4.0,) * size,
        baseline=outcomes[0],
        candidate=outcomes[1],
        twin=None if noise is None else outcomes[2],
        slices=(slice_name,) * size if slice_name else (),
    )


def _moved(scores: NDArray[np.float32], place: int, by: float) -> NDArray[np.float32]:
    moved = scores.copy()
    moved[place] += by
    return moved


def record(folder: Path, *segments: Sequence[Pair], chain: str = "router") -> Path:
    """Have these pairs recorded, a segment each time; returns the folder."""
    accounting = Accounting()
    recorder = Recorder(folder, chain, DEPLOYMENT, LIMITS, accounting, parameters=PARAMETERS, flush_interval_s=NEVER_S)
    try:
        for pairs in segments:
            for one in pairs:
                accounting.sample(sum(one.rows))
                assert recorder.offer(one)
            recorder.flush()
    finally:
        recorder.close()
    return folder
