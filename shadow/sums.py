"""From rows to sums: the one function that evidence is summed by, when it is recorded and when it is verified.

Every figure is decided within its row (requests on their first item, batches on their first row), so that rows may be
cut into tables anywhere and the sums of the parts add up to those of the whole.
"""

from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from shadow.evidence import DELTA_UNIT, ArmSums, Evidence, Histogram, LabelCells, Limits, StageSums
from shadow.pair import Arm, Status
from shadow.rows import ARMS, STATUSES

_Bools = NDArray[np.bool_]
_Ints = NDArray[np.int64]
_NONE: Final = -1  # stands for null in columns that hold no negative numbers, and for "no answer" in top-1
_OK, _ERROR, _TIMEOUT, _MALFORMED = (
    STATUSES.index(status) for status in (Status.OK, Status.ERROR, Status.TIMEOUT, Status.MALFORMED)
)
_IDLE: Final = (STATUSES.index(Status.ABSENT), STATUSES.index(Status.REJECTED))  # evidence for nothing


@dataclass(frozen=True, slots=True)
class _Side:
    status: _Ints
    batch: _Ints
    service_us: _Ints
    memory_bytes: _Ints
    top1: _Ints

    @classmethod
    def of(cls, table: pa.Table, arm: Arm) -> Self:
        return cls(
            _codes(table[f"{arm}_status"], STATUSES),
            _codes(table[f"{arm}_batch"], STATUSES),
            *(_numbers(table[f"{arm}_{name}"]) for name in ("service_us", "memory_bytes", "top1")),
        )


def sums(table: pa.Table, limits: Limits) -> Evidence:
    """The sums of rows of ``shadow.rows.SCHEMA``, by stage."""
    stages = table["stage"].to_numpy()
    request, batch = table["item"].to_numpy() == 0, table["batch_row"].to_numpy() == 0
    primary, latency_us = _codes(table["primary"], ARMS), _numbers(table["latency_us"])
    sides = {arm: _Side.of(table, arm) for arm in ARMS}
    deltas = table["max_delta"].combine_chunks(), table["mean_delta"].combine_chunks()
    result: dict[int, StageSums] = {}
    for stage in np.unique(stages).tolist():
        here: _Bools = stages == stage
        baseline, candidate = (
            _requests(sides[arm], request & here, limits)
            + _answers(sides[arm], request & here & (primary == code), latency_us, limits)
            + _batches(sides[arm], batch & here, limits)
            for code, arm in enumerate(ARMS)
        )
        result[stage] = (
            StageSums(baseline=baseline, candidate=candidate)
            + _pairs(sides[Arm.BASELINE], sides[Arm.CANDIDATE], request & here)
            + _items(sides[Arm.BASELINE], sides[Arm.CANDIDATE], here, *deltas, limits)
        )
    return Evidence(result)


def label_sums(table: pa.Table) -> Evidence:
    """The sums of rows of ``shadow.labels.SCHEMA``, by stage."""
    stages, label = table["stage"].to_numpy(), table["label"].to_numpy()
    baseline, candidate = _numbers(table["baseline_top1"]) == label, _numbers(table["candidate_top1"]) == label
    return Evidence(
        {
            stage: StageSums(
                labels=LabelCells(
                    both=_count((stages == stage) & baseline & candidate),
                    baseline_only=_count((stages == stage) & baseline & ~candidate),
                    candidate_only=_count((stages == stage) & ~baseline & candidate),
                    neither=_count((stages == stage) & ~baseline & ~candidate),
                )
            )
            for stage in np.unique(stages).tolist()
        }
    )


def _requests(side: _Side, request: _Bools, limits: Limits) -> ArmSums:
    return ArmSums(
        requests=_count(request & _ran(side.status)),
        errors=_count(request & (side.status == _ERROR)),
        timeouts=_count(request & (side.status == _TIMEOUT)),
        malformed=_count(request & (side.status == _MALFORMED)),
    )


def _answers(side: _Side, request: _Bools, latency_us: _Ints, limits: Limits) -> ArmSums:
    """Of the clients' requests that the split gave to this side."""
    failed = _count(request & (side.status != _OK) & _ran(side.status))
    latencies = latency_us[request & (side.status == _OK)]
    return ArmSums(
        answers=len(latencies) + failed,
        answers_failed=failed,
        answers_over_target=failed + _over(latencies, limits.latency_target_ms),
        answers_over_breach=failed + _over(latencies, limits.latency_breach_ms),
        latency=Histogram.of(latencies),
    )


def _batches(side: _Side, batch: _Bools, limits: Limits) -> ArmSums:
    """Batches that failed have no service time worth the name: they are over both limits instead."""
    failed = _count(batch & (side.batch != _OK) & _ran(side.batch))
    service = side.service_us[batch & (side.batch == _OK) & (side.service_us != _NONE)]
    memory = side.memory_bytes[batch & (side.memory_bytes != _NONE)]
    return ArmSums(
        batches=len(service) + failed,
        service_us=int(service.sum()),
        service_over_target=failed + _over(service, limits.latency_target_ms),
        service_over_breach=failed + _over(service, limits.latency_breach_ms),
        service=Histogram.of(service),
        memory_readings=len(memory),
        memory_over=_count(memory > limits.memory_bytes),
        memory_max_bytes=int(memory.max(initial=0)),
    )


def _pairs(baseline: _Side, candidate: _Side, request: _Bools) -> StageSums:
    both = request & _ran(baseline.status) & _ran(candidate.status)
    return StageSums(
        pairs=_count(both),
        candidate_only_failed=_count(both & (baseline.status == _OK) & (candidate.status != _OK)),
        baseline_only_failed=_count(both & (baseline.status != _OK) & (candidate.status == _OK)),
    )


def _items(
    baseline: _Side, candidate: _Side, here: _Bools, largest: pa.Array, mean: pa.Array, limits: Limits
) -> StageSums:
    """Of the items that were compared: both sides OK."""
    compared = here & pc.is_valid(largest).to_numpy(zero_copy_only=False)
    largest_here = largest.to_numpy(zero_copy_only=False)[compared]
    mean_here = mean.to_numpy(zero_copy_only=False)[compared]
    in_units = _units(largest_here)
    same = (baseline.top1 == candidate.top1) & (baseline.top1 != _NONE)
    return StageSums(
        items=_count(compared),
        agree=_count(compared & same),
        delta_over=_count(largest_here > limits.tolerance),
        delta_max_e9=int(in_units.max(initial=0)),
        delta_sum_max_e9=int(in_units.sum()),
        delta_sum_mean_e9=int(_units(mean_here).sum()),
    )


def _ran(status: _Ints) -> _Bools:
    """Where the model had something to do with the end."""
    ran: _Bools = ~np.isin(status, _IDLE)
    return ran


def _units(deltas: NDArray[np.float64]) -> _Ints:
    return np.rint(deltas / DELTA_UNIT).astype(np.int64)


def _over(durations_us: _Ints, limit_ms: float) -> int:
    return _count(durations_us > round(limit_ms * 1000))


def _count(mask: _Bools) -> int:
    return int(np.count_nonzero(mask))


def _numbers(column: pa.ChunkedArray) -> _Ints:
    numbers: _Ints = column.fill_null(_NONE).to_numpy().astype(np.int64, copy=False)
    return numbers


def _codes(column: pa.ChunkedArray, words: tuple[str, ...]) -> _Ints:
    """Words as their places in ``words``; −1 for any other."""
    decoded = pc.cast(column, pa.string())
    return _numbers(pc.index_in(decoded, value_set=pa.array([str(word) for word in words])))
