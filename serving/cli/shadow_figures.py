"""All figures of a rollout's evidence as plain JSON values: what ``understudy shadow report`` prints and draws."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from rollout.bounds import rate_above
from rollout.findings import established
from shadow.agreement import answers_named, measure_means
from shadow.comparators import Measure, difference
from shadow.distributions import (
    Agreement,
    BatchKey,
    Blocks,
    Checkpoints,
    Distributions,
    Found,
    Pooled,
    Quantity,
    RatioKey,
    Ratios,
    Spread,
    Survey,
    beyond_noise,
    wilson,
)
from shadow.evidence import (
    DELTA_UNIT,
    MEASURE_BUCKETS,
    BatchSums,
    DeltaHistogram,
    Evidence,
    LabelCells,
    MeasureSums,
    StageSums,
)
from shadow.findings import FINDINGS, Finding
from shadow.pair import Arm
from shadow.rows import ARMS, SIDES
from shadow.slices import NONE

MEASURE_QUANTILE: Final = 0.95  # of the items, this share is on the better side of a measure's bound
_CLOCKS: Final = (Quantity.WALL, Quantity.CPU, Quantity.GPU)


def document(found: Survey) -> dict[str, Any]:
    """All figures as plain JSON values; None where there is nothing to say.

    Times are in ms, memory in bytes, shares from 0 to 1; an entry of ``service`` or ``memory`` is of batches with
    ``from_rows`` to ``to_rows`` rows, one of ``labels``, ``slices`` or ``accuracy`` of a group, the rarest last.

    Where older segments became ``checkpoints``, all that follows from sums is as it was before. What only rows tell is
    of those that remain: times, batches, ``service``, ``memory``, ``ratios``, ``trend``, ``labels``, the groups of
    ``accuracy``, the measures and the largest |Δ| of a slice, and ``worst``.
    """
    total, seen, header = found.evidence.total(), found.distributions, found.header
    named = answers_named(total, header.comparator, seen.named)
    return {
        "deployment_id": header.deployment_id,
        "comparator": header.comparator,
        "difference": difference(header.comparator),
        "output": header.output,
        "tolerance": header.limits.tolerance,
        "memory_limit_bytes": header.limits.memory_bytes,
        "chains": found.chains,
        "segments": found.segments + found.checkpoints.segments,
        "rows": seen.rows + found.checkpoints.rows,
        "checkpoints": _checkpoints(found.checkpoints),
        "first_at": _time(seen.span.first),
        "last_at": _time(seen.span.last),
        "requests": {
            "pairs": total.pairs,
            "candidate_only_failed": total.candidate_only_failed,
            "baseline_only_failed": total.baseline_only_failed,
        },
        "mirror": found.account.to_json(),
        "items": total.items,
        "agreement": total.agree / total.items if named and total.items else None,
        "over_tolerance": total.delta_over,
        "measures": list(_measures(total, header.measures)),
        "findings": list(_findings(found)),
        "delta": _deltas(total),
        "batches": {"all": seen.batches, "answered_by_candidate": seen.swapped},
        "service": [entry for clock in _CLOCKS for entry in _by_size(seen, clock, "ms", 1e-3)],
        "memory": list(_by_size(seen, Quantity.MEMORY, "bytes", 1.0)),
        "all_batches": list(_all_batches(total)),
        "ratios": {str(quantity): _ratio(seen.ratio(quantity)) for quantity in Quantity},
        "trend": {side: _trend(blocks) for side, blocks in seen.memory.items()},
        "latency": list(_latency(found.evidence)),
        "labels": _groups("label", seen.labels, named=True),
        "slices": {"groups": list(_slices(found, named=named)), "others": None},
        "accuracy": _accuracy(total.labels, seen.accuracy),
        "worst": [asdict(case) for case in seen.worst.cases],
    }


def _time(at_unix_us: int | None) -> str | None:
    """ISO 8601 in UTC; of any number at all."""
    return None if at_unix_us is None else f"{np.datetime_as_string(np.datetime64(at_unix_us, 'us'), unit='s')}Z"


def _checkpoints(found: Checkpoints) -> dict[str, Any] | None:
    """What is left as sums alone."""
    if not found.chains:
        return None
    total = found.evidence.total()
    return {
        "chains": found.chains,
        "segments": found.segments,
        "rows": found.rows,
        "items": total.items,
        "labelled_items": total.labels.n,
    }


def _measures(total: StageSums, measures: Sequence[Measure]) -> Iterator[dict[str, Any]]:
    """The comparator's measures over all items: the mean, and what ``MEASURE_QUANTILE`` of the items do not exceed, or
    fall short of, on the way to no agreement; a bucket is 1/64 of the way.
    """
    means = measure_means(total, measures)
    for measure in measures:
        if measure.name not in means:
            continue
        sums = total.measures[measure.name]
        yield {
            "measure": measure.name,
            "low": measure.low,
            "high": measure.high,
            "agrees": measure.agrees,
            "items": sums.n,
            "mean": means[measure.name],
            "bound": _bound(measure, sums),
        }


def _bound(measure: Measure, sums: MeasureSums) -> float:
    rising = measure.agrees == "low"
    bucket = sums.shares.bucket_of(MEASURE_QUANTILE if rising else 1 - MEASURE_QUANTILE) or 0
    return measure.low + (measure.high - measure.low) * (bucket + rising) / MEASURE_BUCKETS


def _findings(found: Survey) -> Iterator[dict[str, Any]]:
    """What was found; ``established`` where it is more than an accident, and more than what the twin shows.

    The twin ran a share of the batches: it is compared on its own requests, and the candidate also judged by all. Those
    requests are told by rows alone. Where some rows are gone, what the twin shows is taken to be as frequent among the
    requests that it did not run.
    """
    total, seen = found.evidence.total(), found.distributions
    requests = max(total.pairs, *total.findings.values(), 1)
    for finding in FINDINGS:
        rows = seen.findings.get(str(finding), Found())
        candidate, twin = (sums.findings.get(str(finding), 0) for sums in (total, total.noise))
        if not candidate and not twin:
            continue
        if found.checkpoints.chains:
            of_all = min(round(twin * requests / total.noise.pairs), requests) if total.noise.pairs else 0
            known = established(finding, candidate, of_all, requests)
        else:
            known = _established_by_rows(finding, rows, seen)
        yield {
            "finding": str(finding),
            "candidate": candidate,
            "requests": total.pairs,
            "beside_twin": None if found.checkpoints.chains else rows.beside,
            "twin": twin,
            "twin_requests": total.noise.pairs,
            "established": known,
        }


def _established_by_rows(finding: Finding, counts: Found, seen: Distributions) -> bool:
    known = established(finding, counts.candidate, 0, seen.looked)
    if known and counts.twin:
        return established(finding, counts.beside, counts.twin, seen.looked_beside)
    return known


def _deltas(total: StageSums) -> dict[str, Any]:
    """The distributions of the items' max |Δscore|, and what of the candidate's is beyond the twin's."""
    noise, beyond = total.noise, beyond_noise(total)
    return {
        "candidate": _delta(total.deltas, total.delta_max_e9, total.delta_sum_max_e9, total.delta_over),
        "twin": _delta(noise.deltas, noise.delta_max_e9, noise.delta_sum_max_e9, noise.delta_over),
        "beyond_noise": None if beyond is None else asdict(beyond),
    }


def _delta(deltas: DeltaHistogram, max_e9: int, sum_e9: int, over: int) -> dict[str, Any] | None:
    if not deltas.n:
        return None
    largest = max_e9 * DELTA_UNIT
    quantiles = {name: deltas.quantile(q) or 0.0 for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {
        "items": deltas.n,
        **{name: min(value, largest) for name, value in quantiles.items()},
        "max": largest,
        "mean": sum_e9 * DELTA_UNIT / deltas.n,
        "over_tolerance": over,
    }


def _by_size(seen: Distributions, quantity: Quantity, unit: str, scale: float) -> Iterator[dict[str, Any]]:
    for first in seen.sizes:
        sides = {side: _spread(seen.spreads.get(BatchKey(first, side, quantity)), unit, scale) for side in SIDES}
        if any(sides.values()):
            ratio = _ratio(seen.ratios.get(RatioKey(first, quantity), Ratios()))
            clock = {} if quantity is Quantity.MEMORY else {"clock": str(quantity)}
            yield {"from_rows": first, "to_rows": 2 * first - 1, **clock, **sides, "ratio": ratio}


def _all_batches(total: StageSums) -> Iterator[dict[str, Any]]:
    """All batches by size, whoever answered them: what sums tell of them."""
    for first, by_side in sorted(total.sizes.items()):
        sides = {side: _batch_sums(getattr(by_side, side)) for side in SIDES}
        yield {"from_rows": first, "to_rows": 2 * first - 1, **sides}


def _batch_sums(sums: BatchSums) -> dict[str, Any] | None:
    if sums == BatchSums():
        return None
    return {
        "batches": sums.batches,
        "wall_mean_ms": _mean(sums.wall_us, sums.batches, 1e-3),
        "cpu_mean_ms": _mean(sums.cpu_us, sums.cpu_readings, 1e-3),
        "gpu_mean_ms": _mean(sums.gpu_us, sums.gpu_readings, 1e-3),
        "memory_readings": sums.memory_readings,
        "memory_mean_bytes": _mean(sums.memory_sum_kib, sums.memory_readings, 1024.0),
        "memory_max_bytes": sums.memory_max_bytes if sums.memory_readings else None,
    }


def _mean(total: int, n: int, scale: float) -> float | None:
    return total / n * scale if n else None


def _spread(spread: Spread | None, unit: str, scale: float) -> dict[str, Any] | None:
    if spread is None or spread.mean is None:
        return None
    return {
        "n": spread.n,
        f"p50_{unit}": (spread.quantile(0.5) or 0.0) * scale,
        f"p95_{unit}": (spread.quantile(0.95) or 0.0) * scale,
        f"mean_{unit}": spread.mean * scale,
        f"max_{unit}": spread.largest * scale,
    }


def _ratio(ratios: Ratios) -> dict[str, Any] | None:
    """The median of candidate / twin over the batches that both ran."""
    return {"n": ratios.n, "p50": ratios.quantile(0.5)} if ratios.n else None


def _trend(blocks: Blocks) -> dict[str, Any]:
    trend = blocks.trend()
    signs = trend.rises, trend.falls
    return {
        "readings": trend.n,
        "blocks": len(trend.levels),
        "bytes_per_1000_batches": trend.slope,
        "standard_error": trend.error,
        "rises": trend.rises,
        "falls": trend.falls,
        "log_e_rising": float(rate_above(0.5).log_e(signs)) if any(signs) else None,
    }


def _latency(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """From end to end, of what each version answered to clients, by the rollout's stages."""
    for stage in sorted(evidence.stages):
        sums = evidence.stage(stage)
        for side, arm in zip(ARMS, (sums.baseline, sums.candidate), strict=True):
            if arm.latency.n:
                quantiles = {f"p{round(100 * q)}_ms": arm.latency.quantile_ms(q) for q in (0.5, 0.95, 0.99)}
                yield {"stage": stage, "side": str(side), "n": arm.latency.n, **quantiles}


def _groups(name: str, pooled: Pooled[Any, Agreement], *, named: bool) -> dict[str, Any]:
    return {
        "groups": [{name: label, **_agreement(each, named=named)} for label, each in _largest_first(pooled.by_label)],
        "others": None if pooled.others is None else _agreement(pooled.others, named=named),
    }


def _largest_first(groups: Mapping[Any, Agreement]) -> list[tuple[Any, Agreement]]:
    return sorted(groups.items(), key=lambda group: (-group[1].items, group[0]))


def _slices(found: Survey, *, named: bool) -> Iterator[dict[str, Any]]:
    """By slice; the largest |Δ| only where no row is gone."""
    gone = found.checkpoints.evidence.total()
    of_no_slice = gone.items > sum(each.items for each in gone.slices.by_name.values())
    for name, each in _largest_first(found.by_slice):
        partly = name in gone.slices.by_name or (name == NONE and of_no_slice)
        yield {
            "slice": name,
            **_agreement(each, named=named),
            **({"max_delta": None} if partly else {}),
            "measures": {
                measure.name: {"mean": sums.mean(measure), "bound": _bound(measure, sums)}
                for measure in found.header.measures
                if (sums := each.measures.get(measure.name)) is not None
            },
        }


def _agreement(group: Agreement, *, named: bool) -> dict[str, Any]:
    lower, upper = wilson(group.agree, group.items)
    return {
        "items": group.items,
        "agreement": group.agree / group.items if named else None,
        "low": lower if named else None,
        "high": upper if named else None,
        "over_tolerance": group.over,
        "max_delta": group.max_delta,
    }


def _accuracy(total: LabelCells, pooled: Pooled[int, LabelCells]) -> dict[str, Any]:
    return {
        "all": _right(total) if total.n else None,
        "groups": [
            {"label": label, **_right(cells)}
            for label, cells in sorted(pooled.by_label.items(), key=lambda group: (-group[1].n, group[0]))
        ],
        "others": None if pooled.others is None else _right(pooled.others),
    }


def _right(cells: LabelCells) -> dict[str, Any]:
    """The share of labelled items that each side had right, with its interval."""
    right = {Arm.BASELINE: cells.both + cells.baseline_only, Arm.CANDIDATE: cells.both + cells.candidate_only}
    sides = {str(side): {"accuracy": count / cells.n, **_interval(count, cells.n)} for side, count in right.items()}
    return {"items": cells.n, **sides}


def _interval(count: int, n: int) -> dict[str, float]:
    lower, upper = wilson(count, n)
    return {"low": lower, "high": upper}
