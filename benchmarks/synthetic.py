"""Mirrored batches that nobody served: as varied as real ones, as many as are wanted, and counted as they are made.

A stream is a function of its plan and a position in it, so that one which was cut off goes on where it stopped. What
is costly to make (scores, answers) comes from a pool of batches; request ids and moments are new for every batch.

Every batch of the pool carries the counts that evidence must come to, by the plainest definition of each and without
any of the functions that are measured.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array
from shadow.cells import Items, items_by_cell
from shadow.evidence import ArmSums, Evidence, Limits
from shadow.findings import Finding
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.slices import NONE

DEPLOYMENT: Final = "digits-2-20270101T000000Z"
LIMITS: Final = Limits(tolerance=1e-3, latency_target_ms=25.0, latency_breach_ms=40.0, memory_bytes=60 << 20)
STAGES: Final = (0, 50)  # shadow, then canary
LARGEST_BATCH: Final = 64  # rows
SLICES: Final = ("lobby", "gate", "dock", NONE)

_CLASSES: Final = 10
_SPREAD: Final = 3.0  # of the logits
_NOISE: Final = 1e-5  # of scores, on every side but the baseline's: far below the tolerance
_SHIFT: Final = 0.05  # far above it
_SHIFTED: Final = 0.02  # of the items
_TWIN: Final = 0.1  # of the batches in shadow
_BY_CANDIDATE: Final = 0.5  # of the batches in canary
_ANSWERS_ALONE: Final = 0.1  # of these: not mirrored
_SQUARE: Final = 0.05  # of the batches: as many scores in another layout, on all sides
_TOO_WIDE: Final = 0.01  # of the batches: the candidate answers with a class more
_SEVERAL_ROWS: Final = 0.05  # of the requests
_MOST_ROWS: Final = 4
_FAILED: Final = 0.01  # of the requests, on each side
_REJECTED: Final = 0.005  # of the requests, by all sides
_FAILURES: Final = (Status.ERROR, Status.TIMEOUT, Status.MALFORMED)
_SIZES: Final = (360, 4_096, 65_536, 602_112)  # bytes of a request's inputs
BEGAN_US: Final = 1_798_761_600_000_000
APART_US: Final = 100_000  # from one batch to the next
_BLOCK: Final = 4096  # batches that are drawn at a time
_MEBIBYTE: Final = 1 << 20

_Random: TypeAlias = np.random.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which stream: so many mirrored requests at least, about half of them in canary, from ``pool`` batches a stage."""

    pairs: int
    pool: int = 512
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A batch of the pool: what is sampled of it, and what evidence must count of it."""

    pair: Pair
    sampled: Items
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a stream has come: batches, and what evidence must have counted of them all."""

    batches: int
    counts: Mapping[str, int]


class Stream:
    """The batches of a plan, in order; the first ``batches`` of them are the plan's."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.pools = [
            [template(np.random.default_rng([plan.seed, stage, at]), stage) for at in range(plan.pool)]
            for stage in range(len(STAGES))
        ]
        self._names = tuple(sorted({name for pool in self.pools for each in pool for name in each.counts}))
        self._counts = np.array(
            [[[each.counts.get(name, 0) for name in self._names] for each in pool] for pool in self.pools], np.int64
        )  # [stages, templates, names]
        mean = self._counts[0, :, self._names.index("pairs")].mean()
        self._shadowed = round(plan.pairs / len(STAGES) / mean)  # batches before the canary
        self.end = self.position("pairs", plan.pairs)

    def position(self, name: str, least: int) -> Position:
        """The first place where a count has come to ``least``."""
        column, total, batches = self._names.index(name), np.zeros(len(self._names), np.int64), 0
        for block in self._blocks():
            reached = total[column] + np.cumsum(block[:, column])
            if reached[-1] >= least:
                more = int(np.searchsorted(reached, least)) + 1 if least > total[column] else 0
                return self._position(batches + more, total + block[:more].sum(axis=0))
            total += block.sum(axis=0)
            batches += len(block)
        raise AssertionError("a stream has no end")

    def after(self, batches: int, token: str) -> Iterator[tuple[Template, Pair]]:
        """The batches after the first ``batches``; ``token`` makes their request ids unique."""
        while True:
            number, first = divmod(batches, _BLOCK)
            for at in self._drawn(number)[first:].tolist():
                stage = int(batches >= self._shadowed)
                each = self.pools[stage][at]
                ids = tuple([f"{token}-{batches:x}-{place}" for place in range(len(each.pair.rows))])
                yield each, replace(each.pair, request_ids=ids, at_unix_us=BEGAN_US + batches * APART_US)
                batches += 1

    def _drawn(self, number: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._plan.seed, len(STAGES), number]).integers(self._plan.pool, size=_BLOCK)

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        """The counts of all batches, block by block: [batches, names]."""
        number = 0
        while True:
            canary = np.arange(number * _BLOCK, (number + 1) * _BLOCK) >= self._shadowed
            yield self._counts[canary.astype(np.int64), self._drawn(number)]
            number += 1

    def _position(self, batches: int, counts: NDArray[np.int64]) -> Position:
        found = zip(self._names, counts.tolist(), strict=True)
        return Position(batches=batches, counts={name: count for name, count in found if count})


def counted(evidence: Evidence, rows: int) -> dict[str, int]:
    """What evidence says of the counts that a ``Position`` has; without those that are zero."""
    sums = evidence.total()
    found = {
        "rows": rows,
        "pairs": sums.pairs,
        "candidate_only_failed": sums.candidate_only_failed,
        "items": sums.items,
        "agree": sums.agree,
        "delta_over": sums.delta_over,
        "twin_requests": sums.twin.requests,
        "twin_items": sums.noise.items,
        "twin_agree": sums.noise.agree,
        **{f"{name} items": each.items for name, each in sums.slices.by_name.items()},
        **{f"finding {name}": count for name, count in sums.findings.items()},
        **{f"twin finding {name}": count for name, count in sums.noise.findings.items()},
        **_counted_of(Arm.BASELINE, sums.baseline),
        **_counted_of(Arm.CANDIDATE, sums.candidate),
    }
    return {name: count for name, count in found.items() if count}


def _counted_of(arm: Arm, sums: ArmSums) -> dict[str, int]:
    return {
        f"{arm} requests": sums.requests,
        f"{arm} {Status.ERROR}": sums.errors,
        f"{arm} {Status.TIMEOUT}": sums.timeouts,
        f"{arm} {Status.MALFORMED}": sums.malformed,
        f"{arm} batches": sums.batches,
        f"{arm} service_us": sums.service_us,
        f"{arm} answers": sums.answers,
        f"{arm} answers over target": sums.answers_over_target,
        f"{arm} memory over": sums.memory_over,
    }


def template(rng: _Random, stage: int) -> Template:
    """A batch of some stage, drawn; it has no request ids and no moment yet."""
    rows = _rows(rng)
    in_canary = STAGES[stage] > 0
    primary = Arm.CANDIDATE if in_canary and rng.random() < _BY_CANDIDATE else Arm.BASELINE
    alone = primary is Arm.CANDIDATE and rng.random() < _ANSWERS_ALONE
    with_twin = not in_canary and rng.random() < _TWIN
    scores = _scores(rng, sum(rows), square=rng.random() < _SQUARE, too_wide=rng.random() < _TOO_WIDE)
    rejected = (rng.random(len(rows)) < _REJECTED).tolist()
    baseline, candidate, twin = (_outcome(rng, side, rows, rejected) for side in scores)
    if alone:
        baseline = Outcome(answers=(Answer(status=Status.ABSENT),) * len(rows))
        candidate = replace(candidate, answers=tuple(replace(each, outputs=None) for each in candidate.answers))
    pair = Pair(
        deployment_id=DEPLOYMENT,
        stage=stage,
        at_unix_us=BEGAN_US,
        primary=primary,
        request_ids=("",) * len(rows),
        rows=rows,
        latencies_ms=tuple((rng.integers(2_000, 30_000, len(rows)) / 1000).tolist()),
        baseline=baseline,
        candidate=candidate,
        twin=twin if with_twin else None,
        slices=tuple(SLICES[at] for at in rng.integers(len(SLICES), size=len(rows))),
        sizes=tuple(_SIZES[at] for at in rng.integers(len(_SIZES), size=len(rows))),
    )
    sampled = {} if alone else items_by_cell(pair.sizes, pair.slices, pair.rows)
    return Template(pair=pair, sampled=sampled, counts=_counts(pair))


def _rows(rng: _Random) -> tuple[int, ...]:
    left, rows = int(rng.integers(1, LARGEST_BATCH, endpoint=True)), []
    while left:
        wanted = int(rng.integers(2, _MOST_ROWS, endpoint=True)) if rng.random() < _SEVERAL_ROWS else 1
        rows.append(min(wanted, left))
        left -= rows[-1]
    return tuple(rows)


def _scores(rng: _Random, n: int, *, square: bool, too_wide: bool) -> tuple[Array, Array, Array]:
    """Probabilities of n items: of the baseline, the candidate and the twin."""
    baseline = _normal(np.exp(rng.normal(scale=_SPREAD, size=(n, _CLASSES))))
    candidate, twin = (_normal(np.abs(baseline + rng.normal(scale=_NOISE, size=baseline.shape))) for _ in range(2))
    shifted = np.flatnonzero(rng.random(n) < _SHIFTED)
    candidate[shifted, (baseline[shifted].argmax(axis=1) + 1) % _CLASSES] += _SHIFT
    candidate = _normal(candidate)
    if too_wide:
        candidate = np.column_stack([candidate, np.full(n, _NOISE)])
    elif square:
        baseline, candidate, twin = (side.reshape(n, 2, -1) for side in (baseline, candidate, twin))
    return baseline.astype(np.float32), candidate.astype(np.float32), twin.astype(np.float32)


def _normal(scores: Array) -> Array:
    normal: Array = scores / scores.sum(axis=1, keepdims=True)
    return normal


def _outcome(rng: _Random, scores: Array, rows: Sequence[int], rejected: Sequence[bool]) -> Outcome:
    ends = np.cumsum(rows)[:-1]
    failed = (rng.random(len(rows)) < _FAILED).tolist()
    answers = []
    for part, fails, rejects in zip(np.split(scores, ends), failed, rejected, strict=True):
        if rejects:
            answers.append(Answer(status=Status.REJECTED, error="image: not a JPEG"))
        elif fails:
            status = _FAILURES[int(rng.integers(len(_FAILURES)))]
            answers.append(Answer(status=status, error=f"it ended with {status}"))
        else:
            answers.append(Answer(status=Status.OK, outputs={"scores": part}))
    service_us = int(rng.lognormal(mean=0.0, sigma=0.3) * (1_000 + 300 * sum(rows)))
    return Outcome(
        answers=tuple(answers),
        service_ms=service_us / 1000,
        cpu_ms=service_us * 9 // 10 / 1000,
        peak_memory_bytes=int(rng.integers(20 * _MEBIBYTE, 62 * _MEBIBYTE)),
    )


def _counts(pair: Pair) -> dict[str, int]:
    counts: Counter[str] = Counter(rows=sum(pair.rows))
    for arm in Arm:
        _count_arm(counts, pair, arm)
    for at, rows in enumerate(pair.rows):
        baseline, candidate = pair.baseline.answers[at], pair.candidate.answers[at]
        counts["pairs"] += _ran(baseline) and _ran(candidate)
        counts["candidate_only_failed"] += baseline.status is Status.OK and candidate.status in _FAILURES
        over, agree, compared = _compared(baseline, candidate, rows)
        counts.update({"delta_over": over, "agree": agree, "items": compared, f"{pair.slices[at]} items": compared})
        if over and baseline.outputs and candidate.outputs:
            counts[f"finding {Finding.SHAPE}"] += baseline.outputs["scores"].shape != candidate.outputs["scores"].shape
        if pair.twin is not None:
            _, agree, compared = _compared(baseline, pair.twin.answers[at], rows)
            counts.update({"twin_requests": _ran(pair.twin.answers[at]), "twin_agree": agree, "twin_items": compared})
    del counts[f"{NONE} items"]
    return {name: int(count) for name, count in counts.items() if count}


def _count_arm(counts: Counter[str], pair: Pair, arm: Arm) -> None:
    outcome, mine = pair.of(arm), pair.primary is arm
    limit_ms = LIMITS.latency_target_ms
    for answer, latency_ms in zip(outcome.answers, pair.latencies_ms, strict=True):
        ran, failed = _ran(answer), answer.status in _FAILURES
        counts[f"{arm} requests"] += ran
        counts[f"{arm} {answer.status}"] += failed
        counts[f"{arm} answers"] += mine and ran
        counts[f"{arm} answers over target"] += mine and ran and (failed or latency_ms > limit_ms)
    well = any(answer.status is Status.OK for answer in outcome.answers)
    counts[f"{arm} batches"] += any(map(_ran, outcome.answers))
    counts[f"{arm} service_us"] += round((outcome.service_ms or 0.0) * 1000) if well else 0
    counts[f"{arm} memory over"] += (outcome.peak_memory_bytes or 0) > LIMITS.memory_bytes


def _ran(answer: Answer) -> bool:
    return answer.status not in (Status.ABSENT, Status.REJECTED)


def _compared(baseline: Answer, other: Answer, rows: int) -> tuple[int, int, int]:
    """Of a request's items those over the tolerance, those of the same top-1, and all."""
    if baseline.outputs is None or other.outputs is None:
        return 0, 0, 0
    left, right = (side.outputs["scores"].reshape(rows, -1) for side in (baseline, other) if side.outputs)
    agree = int((left.argmax(axis=1) == right.argmax(axis=1)).sum())
    if left.shape != right.shape:
        return rows, agree, rows
    return int((np.abs(left - right).max(axis=1) > LIMITS.tolerance).sum()), agree, rows
