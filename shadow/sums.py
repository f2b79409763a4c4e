"""From rows to sums: the one function that evidence is summed by, when it is recorded and when it is verified.

Every figure is decided within its row (requests on their first item, batches on their first row), so that rows may be
cut into tables anywhere and the sums of the parts add up to those of the whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shadow.comparators import Measure
from shadow.evidence import (
    DELTA_UNIT,
    ArmSums,
    BatchSums,
    DeltaHistogram,
    Evidence,
    Histogram,
    LabelCells,
    Limits,
    MeasureSums,
    Noise,
    SizeSums,
    SliceSums,
    SliceTable,
    StageSums,
)
from shadow.findings import FINDINGS
from shadow.pair import Status
from shadow.rows import ARMS, SIDES, STATUSES, measure_matrix
from shadow.slices import NONE

_Bools = NDArray[np.bool_]
_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]
_NULL: Final = -1  # stands for null in columns that hold no negative numbers, and for "no answer" in top-1
_OK, _ERROR, _TIMEOUT, _MALFORMED = (
    STATUSES.index(status) for status in (Status.OK, Status.ERROR, Status.TIMEOUT, Status.MALFORMED)
)
_ABSENT, _REJECTED = STATUSES.index(Status.ABSENT), STATUSES.index(Status.REJECTED)  # evidence for nothing


@dataclass(frozen=True, slots=True)
class _Side:
    status: _Ints
    batch: _Ints
    service_us: _Ints
    service_cpu_us: _Ints
    service_gpu_us: _Ints
    memory_bytes: _Ints
    top1: _Ints

    @classmethod
    def of(cls, table: pa.Table, name: str) -> Self:
        return cls(
            _codes(table[f"{name}_status"], STATUSES),
            _codes(table[f"{name}_batch"], STATUSES),
            _numbers(table[f"{name}_service_us"]),
            _numbers(table[f"{name}_service_cpu_us"]),
            _numbers(table[f"{name}_service_gpu_us"]),
            _numbers(table[f"{name}_memory_bytes"]),
            _numbers(table[f"{name}_top1"]),
        )

    @property
    def ran(self) -> _Bools:
        """Where the model had something to do with the request's end."""
        return _ran(self.status)

    @property
    def known(self) -> _Bools:
        """Where there is anything to count."""
        known: _Bools = (self.status != _ABSENT) | (self.batch != _ABSENT) | (self.memory_bytes != _NULL)
        return known


@dataclass(frozen=True, slots=True)
class _Deltas:
    """What two sides differ by, row by row; NaN where they were not compared."""

    largest: _Floats
    mean: _Floats

    @classmethod
    def of(cls, table: pa.Table, largest: str, mean: str) -> Self:
        return cls(*(table[name].combine_chunks().to_numpy(zero_copy_only=False) for name in (largest, mean)))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The columns of a table."""

    stages: _Ints
    request: _Bools  # a request's first row
    batch: _Bools  # a batch's first row
    sizes: _Ints  # of its batch: the power of two that is not larger
    primary: _Ints
    latency_us: _Ints
    baseline: _Side
    candidate: _Side
    twin: _Side
    deltas: _Deltas
    noise: _Deltas
    findings: _Ints
    twin_findings: _Ints
    slices: tuple[tuple[str, ...], _Ints]  # names, and which of them each row has
    measures: _Floats  # [rows, measures]

    @classmethod
    def of(cls, table: pa.Table, measures: Sequence[Measure]) -> Self:
        _, exponents = np.frexp(np.maximum(table["batch_rows"].to_numpy(), 1))
        baseline, candidate, twin = (_Side.of(table, name) for name in SIDES)
        return cls(
            stages=table["stage"].to_numpy(),
            request=table["item"].to_numpy() == 0,
            batch=table["batch_row"].to_numpy() == 0,
            sizes=np.left_shift(1, exponents.astype(np.int64) - 1),
            primary=_codes(table["primary"], ARMS),
            latency_us=_numbers(table["latency_us"]),
            baseline=baseline,
            candidate=candidate,
            twin=twin,
            deltas=_Deltas.of(table, "max_delta", "mean_delta"),
            noise=_Deltas.of(table, "twin_max_delta", "twin_mean_delta"),
            findings=_numbers(table["findings"]),
            twin_findings=_numbers(table["twin_findings"]),
            slices=_texts(table["slice"]),
            measures=measure_matrix(table["measures"].combine_chunks(), len(measures)),
        )


def sums(table: pa.Table, limits: Limits, measures: Sequence[Measure]) -> Evidence:
    """The sums of rows of ``shadow.rows.SCHEMA``, by stage; ``measures`` are those of the rows' comparator.

    Raises:
        EvidenceError: the rows have another number of measures.
    """
    rows = _Rows.of(table, measures)
    stages = np.unique(rows.stages).tolist()
    return Evidence({stage: _stage(rows, rows.stages == stage, limits, measures) for stage in stages})


def _stage(rows: _Rows, here: _Bools, limits: Limits, measures: Sequence[Measure]) -> StageSums:
    request, batch = rows.request & here, rows.batch & here
    arms = [
        _requests(side, request)
        + _answers(side, request & (rows.primary == code), rows.latency_us, limits)
        + _batches(side, batch, limits)
        for code, side in enumerate((rows.baseline, rows.candidate))
    ]
    return (
        StageSums(
            baseline=arms[0],
            candidate=arms[1],
            measures=_by_measure(rows.measures[here], measures),
            findings=_found(rows.findings[request]),
            slices=_by_slice(rows, here, limits),
            sizes=_by_size(rows, batch),
        )
        + _pairs(rows.baseline, rows.candidate, request)
        + _items(rows.baseline, rows.candidate, here, rows.deltas, limits)
        + _twin(rows, here, limits)
    )


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


def _requests(side: _Side, request: _Bools) -> ArmSums:
    return ArmSums(
        requests=_count(request & side.ran),
        errors=_count(request & (side.status == _ERROR)),
        timeouts=_count(request & (side.status == _TIMEOUT)),
        malformed=_count(request & (side.status == _MALFORMED)),
    )


def _answers(side: _Side, request: _Bools, latency_us: _Ints, limits: Limits) -> ArmSums:
    """Of the clients' requests that the split gave to this side."""
    failed = _count(request & (side.status != _OK) & side.ran)
    latencies = latency_us[request & (side.status == _OK)]
    return ArmSums(
        answers=len(latencies) + failed,
        answers_failed=failed,
        answers_over_target=failed + _over(latencies, limits.latency_target_ms),
        answers_over_breach=failed + _over(latencies, limits.latency_breach_ms),
        latency=Histogram.of(latencies),
    )


def _batches(side: _Side, batch: _Bools, limits: Limits) -> ArmSums:
    """Batches that failed have no service time worth the name: they are over both limits instead, by every clock."""
    failed = _count(batch & (side.batch != _OK) & _ran(side.batch))
    well = batch & (side.batch == _OK)
    wall, cpu, gpu = (_there(times, well) for times in (side.service_us, side.service_cpu_us, side.service_gpu_us))
    memory = _there(side.memory_bytes, batch)
    target_ms, breach_ms = limits.latency_target_ms, limits.latency_breach_ms
    return ArmSums(
        batches=len(wall) + failed,
        service_us=int(wall.sum()),
        service_over_target=failed + _over(wall, target_ms),
        service_over_breach=failed + _over(wall, breach_ms),
        service=Histogram.of(wall),
        service_cpu_us=int(cpu.sum()),
        service_cpu_over_target=failed + _over(cpu, target_ms),
        service_cpu_over_breach=failed + _over(cpu, breach_ms),
        service_cpu=Histogram.of(cpu),
        service_gpu_us=int(gpu.sum()),
        service_gpu_over_target=failed + _over(gpu, target_ms),
        service_gpu_over_breach=failed + _over(gpu, breach_ms),
        service_gpu=Histogram.of(gpu),
        memory_readings=len(memory),
        memory_over=_count(memory > limits.memory_bytes),
        memory_max_bytes=int(memory.max(initial=0)),
    )


def _by_size(rows: _Rows, batch: _Bools) -> Mapping[int, SizeSums]:
    by_size = {}
    for size in np.unique(rows.sizes[batch]).tolist():
        some = batch & (rows.sizes == size)
        found = SizeSums(
            baseline=_of_size(rows.baseline, some),
            candidate=_of_size(rows.candidate, some),
            twin=_of_size(rows.twin, some),
        )
        if found != SizeSums():
            by_size[size] = found
    return by_size


def _of_size(side: _Side, batch: _Bools) -> BatchSums:
    well = batch & (side.batch == _OK)
    wall, cpu, gpu = (_there(times, well) for times in (side.service_us, side.service_cpu_us, side.service_gpu_us))
    memory = _there(side.memory_bytes, batch)
    return BatchSums(
        batches=len(wall),
        wall_us=int(wall.sum()),
        cpu_readings=len(cpu),
        cpu_us=int(cpu.sum()),
        gpu_readings=len(gpu),
        gpu_us=int(gpu.sum()),
        memory_readings=len(memory),
        memory_max_bytes=int(memory.max(initial=0)),
        memory_sum_kib=int((memory >> 10).sum()),
    )


def _pairs(baseline: _Side, candidate: _Side, request: _Bools) -> StageSums:
    both = request & baseline.ran & candidate.ran
    return StageSums(
        pairs=_count(both),
        candidate_only_failed=_count(both & (baseline.status == _OK) & (candidate.status != _OK)),
        baseline_only_failed=_count(both & (baseline.status != _OK) & (candidate.status == _OK)),
    )


def _items(baseline: _Side, candidate: _Side, here: _Bools, deltas: _Deltas, limits: Limits) -> StageSums:
    """Of the items that were compared: both sides OK."""
    compared = here & ~np.isnan(deltas.largest)
    largest = deltas.largest[compared]
    in_units = _units(largest)
    return StageSums(
        items=len(largest),
        agree=_count(compared & _same(baseline, candidate)),
        delta_over=_count(largest > limits.tolerance),
        delta_max_e9=int(in_units.max(initial=0)),
        delta_sum_max_e9=int(in_units.sum()),
        delta_sum_mean_e9=int(_units(deltas.mean[compared]).sum()),
        deltas=DeltaHistogram.of(largest),
    )


def _twin(rows: _Rows, here: _Bools, limits: Limits) -> StageSums:
    """What the twin did, and the noise: all as for the candidate, but that it answers no client."""
    request, batch = rows.request & here, rows.batch & here
    if not rows.twin.known[here].any():
        return StageSums()
    pairs = _pairs(rows.baseline, rows.twin, request)
    items = _items(rows.baseline, rows.twin, here, rows.noise, limits)
    return StageSums(
        twin=_requests(rows.twin, request) + _batches(rows.twin, batch, limits),
        noise=Noise(
            pairs=pairs.pairs,
            twin_only_failed=pairs.candidate_only_failed,
            baseline_only_failed=pairs.baseline_only_failed,
            items=items.items,
            agree=items.agree,
            delta_over=items.delta_over,
            delta_max_e9=items.delta_max_e9,
            delta_sum_max_e9=items.delta_sum_max_e9,
            delta_sum_mean_e9=items.delta_sum_mean_e9,
            deltas=items.deltas,
            findings=_found(rows.twin_findings[request]),
        ),
    )


def _by_measure(values: _Floats, measures: Sequence[Measure]) -> Mapping[str, MeasureSums]:
    found = {measure.name: MeasureSums.of(values[:, at], measure) for at, measure in enumerate(measures)}
    return {name: each for name, each in found.items() if each.n}


def _found(masks: _Ints) -> Mapping[str, int]:
    """How many requests show each finding."""
    if not masks.any():
        return {}
    counts = {str(finding): _count((masks >> bit & 1) == 1) for bit, finding in enumerate(FINDINGS)}
    return {name: count for name, count in counts.items() if count}


def _by_slice(rows: _Rows, here: _Bools, limits: Limits) -> SliceTable:
    names, codes = rows.slices
    compared = here & ~np.isnan(rows.deltas.largest)
    same = _same(rows.baseline, rows.candidate)
    by_name = {}
    for code in np.unique(codes[compared]).tolist():
        some = compared & (codes == code)
        if names[code] != NONE:
            by_name[names[code]] = SliceSums(
                items=_count(some),
                agree=_count(some & same),
                delta_over=_count(rows.deltas.largest[some] > limits.tolerance),
            )
    return SliceTable.of(by_name)


def _same(one: _Side, other: _Side) -> _Bools:
    """Where both answer the same."""
    same: _Bools = (one.top1 == other.top1) & (one.top1 != _NULL)
    return same


def _ran(status: _Ints) -> _Bools:
    ran: _Bools = (status != _ABSENT) & (status != _REJECTED)
    return ran


def _there(values: _Ints, where: _Bools) -> _Ints:
    chosen: _Ints = values[where & (values != _NULL)]
    return chosen


def _units(deltas: _Floats) -> _Ints:
    return np.rint(deltas / DELTA_UNIT).astype(np.int64)


def _over(durations_us: _Ints, limit_ms: float) -> int:
    return _count(durations_us > round(limit_ms * 1000))


def _count(mask: _Bools) -> int:
    return int(np.count_nonzero(mask))


def _numbers(column: pa.ChunkedArray) -> _Ints:
    numbers: _Ints = column.fill_null(_NULL).to_numpy().astype(np.int64, copy=False)
    return numbers


def _codes(column: pa.ChunkedArray, words: Sequence[str]) -> _Ints:
    """Words as their places in ``words``; −1 for any other."""
    places = {str(word): place for place, word in enumerate(words)}
    names, codes = _texts(column)
    known = np.array([*(places.get(name, -1) for name in names), -1], np.int64)
    found: _Ints = known[codes]
    return found


def _texts(column: pa.ChunkedArray) -> tuple[tuple[str, ...], _Ints]:
    """The different words of a column, and which of them each row has; −1 is null."""
    places: dict[str, int] = {}
    parts = [np.empty(0, np.int64)]
    for chunk in column.chunks:
        known = [places.setdefault(word, len(places)) for word in chunk.dictionary.to_pylist()]
        indices = chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        parts.append(np.array([*known, -1], np.int64)[indices])
    return tuple(places), np.concatenate(parts)
