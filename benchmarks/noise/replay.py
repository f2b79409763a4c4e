"""Replays a trace, resampled, through what a rollout does with its evidence, and looks at it every second.

A run draws blocks of ten seconds, from anywhere in the trace, until it is as long as the trace: bursts stay together,
and so does what hangs on them. The trace is a circle, so that every batch is drawn as often as any other. Source:
Politis & Romano, "A circular block-resampling procedure for stationary data", in Exploring the Limits of Bootstrap
(Wiley 1992), with blocks of equal times in the place of equal counts.

What follows is the product's own: pairs are compacted to rows and searched for findings by a ``Finder`` of the run's
own, in the order of the run; rows become sums, sums evidence; and each look asks ``rollout.findings`` what is reported,
``rollout.doubts`` whether the twin fired, and ``rollout.judge`` what the gates say. Labels come with the pairs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from math import comb, log
from typing import Final, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.noise.trace import DECLARED, OUTPUT, Trace, edges
from rollout.doubts import find_doubts
from rollout.findings import reported
from rollout.judge import judge
from rollout.judgement import Doubt, Judgement, Verdict
from rollout.policy import Policy
from rollout.traffic import Snapshot
from shadow.comparators import Comparator, open_comparator
from shadow.evidence import Evidence, Limits
from shadow.findings import Finder
from shadow.pair import Answer, Pair
from shadow.rows import SCHEMA, compact, to_table
from shadow.sums import label_sums, sums

BLOCK_S: Final = 10.0
STAGES: Final = (0, 5, 20, 50, 100)  # weights, as configured by default
TOLERANCE: Final = 1e-3  # of |Δscore|, likewise
UPLIFT: Final = "compliance_uplift"  # a gate whose claim is false of a twin: to pass it is an error
_SHADOW: Final = 0
_FINDINGS: Final = ("findings", "twin_findings")
_HALVINGS: Final = 50

_Order: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRun:
    """What one policy made of a run, at any of its looks.

    Attributes:
        gates: those that failed the candidate by themselves.
        failed: whether the gates failed it, alone or together, whatever the twin did.
        fired: whether the twin fired.
        rolled_back: whether the verdict was FAIL.
        uplift: whether an uplift was held to be proved.
    """

    gates: frozenset[str] = frozenset()
    failed: bool = False
    fired: bool = False
    rolled_back: bool = False
    uplift: bool = False

    def with_look(self, judgement: Judgement, doubts: Sequence[Doubt], alpha: float) -> "PolicyRun":
        """The same after another look."""
        gates = {each.gate for each in judgement.gates if each.verdict is Verdict.FAIL}
        proved = judgement.log_m >= -log(alpha) or any(each.breach for each in judgement.gates)
        return PolicyRun(
            gates=self.gates | gates,
            failed=self.failed or proved,
            fired=self.fired or any(doubt.over_fail for doubt in doubts),
            rolled_back=self.rolled_back or judgement.verdict is Verdict.FAIL,
            uplift=self.uplift or any(each.gate == UPLIFT and each.verdict is Verdict.PASS for each in judgement.gates),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was seen in one run.

    Attributes:
        marked: requests with any finding.
        reported: kinds of findings that were reported at any look.
    """

    requests: int
    looks: int
    marked: int = 0
    reported: frozenset[str] = frozenset()
    policies: Mapping[str, PolicyRun] = field(default_factory=dict)


class Replay:
    """A trace made ready: its rows once, and what is asked of the requests of each batch."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._comparator: Comparator = open_comparator("classification", OUTPUT, {})
        pairs = [compact(pair, self._comparator, find=_nothing, find_noise=_nothing) for pair in trace.pairs]
        self._rows = to_table(pairs, self._comparator, 0)
        self._labels = pa.table(
            {
                "stage": self._rows["stage"],
                "label": pa.array(trace.labels),
                "baseline_top1": self._rows["baseline_top1"],
                "candidate_top1": self._rows["candidate_top1"],
            }
        )
        self._edges = edges(len(pair.rows) for pair in trace.pairs)
        self._questions = [_questions(pair) for pair in trace.pairs]

    def run(self, policies: Sequence[Policy], seed: int) -> Run:
        """One resampled run under some policies, which are told apart by their names."""
        finders = Finder(DECLARED), Finder(DECLARED)
        found = {policy.name: PolicyRun() for policy in policies}
        evidence = {limits: Evidence() for limits in map(_limits, policies)}
        kinds: set[str] = set()
        requests = marked = looks = 0
        for looks, batches in enumerate(resampled(self._trace, np.random.default_rng(seed)), start=1):
            rows, labels = self._examined(batches, finders)
            requests += rows.num_rows
            marked += int(np.count_nonzero(rows["findings"].to_numpy()))
            labelled = label_sums(labels)
            for limits in evidence:
                evidence[limits] += sums(rows, limits, self._comparator.measures) + labelled
            kinds.update(reported(next(iter(evidence.values()))))
            for policy in policies:
                found[policy.name] = _look(policy, evidence[_limits(policy)], looks, found[policy.name])
        return Run(
            requests=requests,
            looks=looks,
            marked=marked,
            reported=frozenset(kind.partition(":")[0] for kind in kinds),
            policies=found,
        )

    def _examined(self, batches: _Order, finders: tuple[Finder, Finder]) -> tuple[pa.Table, pa.Table]:
        """The rows of some batches with what the finders say of them, and the labels of their images."""
        places = pa.array(np.concatenate([np.arange(*self._edges[batch]) for batch in batches.tolist()]))
        asked = [question for batch in batches.tolist() for question in self._questions[batch]]
        rows = self._rows.take(places)
        masks = (
            [finders[0].find(baseline, candidate, 1) for baseline, candidate, _ in asked],
            [0 if twin is None else finders[1].find(baseline, twin, 1) for baseline, _, twin in asked],
        )
        for name, each in zip(_FINDINGS, masks, strict=True):
            rows = rows.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), pa.array(each, pa.int32()))
        labels = self._labels.take(places)
        return rows, labels.filter(labels["baseline_top1"].is_valid())


def resampled(trace: Trace, rng: np.random.Generator) -> Iterator[_Order]:
    """The batches of one run, second by second; a second without any is left out."""
    order, at_s = [], []
    for begins_s in np.arange(0.0, trace.seconds, BLOCK_S):
        length_s = min(BLOCK_S, trace.seconds - begins_s)
        elapsed = (trace.at_s - trace.at_s[rng.integers(len(trace.at_s))]) % trace.seconds
        within = np.flatnonzero(elapsed < length_s)
        within = within[np.argsort(elapsed[within], kind="stable")]
        order.append(within)
        at_s.append(begins_s + elapsed[within])
    batches, seconds = np.concatenate(order), np.concatenate(at_s).astype(np.int64)
    yield from np.split(batches, np.flatnonzero(np.diff(seconds)) + 1)


def clopper_pearson(count: int, n: int, alpha: float = 0.05) -> tuple[float, float]:
    """The exact two-sided interval of a binomial share at level 1 − α.

    Source: Clopper & Pearson, Biometrika 26 (1934). 0 ≤ count ≤ n, n ≥ 1.
    """
    low = 0.0 if count == 0 else _where(lambda p: 1 - _at_most(count - 1, n, p) >= alpha / 2)
    high = 1.0 if count == n else _where(lambda p: _at_most(count, n, p) <= alpha / 2)
    return low, high


def _where(holds: Callable[[float], bool]) -> float:
    """The share from 0 to 1 from which on something holds."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _at_most(count: int, n: int, p: float) -> float:
    """P(X ≤ count) of a binomial X."""
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count + 1))


def _look(policy: Policy, evidence: Evidence, elapsed_s: float, before: PolicyRun) -> PolicyRun:
    snapshot = Snapshot(evidence=evidence, heads=(), accounting={})
    doubts = find_doubts(policy, snapshot, stage=_SHADOW, stages=STAGES, elapsed_s=elapsed_s)
    judgement = judge(policy, evidence, stage=_SHADOW, stages=STAGES, elapsed_s=elapsed_s, doubts=doubts)
    return before.with_look(judgement, doubts, policy.alpha)


def _limits(policy: Policy) -> Limits:
    return policy.limits(TOLERANCE)


def _questions(pair: Pair) -> list[tuple[Answer, Answer, Answer | None]]:
    """What the finders are asked of each request: the baseline's answer, the candidate's, and the twin's."""
    twins = repeat(None) if pair.twin is None else pair.twin.answers
    return list(zip(pair.baseline.answers, pair.candidate.answers, twins, strict=False))


def _nothing(baseline: Answer, candidate: Answer, rows: int) -> int:
    """No finding: they are looked for in every run anew."""
    return 0
