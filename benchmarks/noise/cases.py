"""What the recorded trace is made to be, and which policies judge it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.noise.record import POLICY
from benchmarks.noise.replay import Replay, Run
from benchmarks.noise.trace import Trace
from rollout.gates.latency import Latency
from rollout.policy import PRESETS, Policy, load_policy, presets

EDGE: Final = "edge"
DEFAULT_TWIN: Final = 0.1  # the share of mirrored batches that a twin runs, as configured by default
_SEED: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What the trace is made to be, and which policies judge it."""

    name: str
    change: Callable[[Trace], Trace]
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Some runs of one case."""

    trace: Path
    case: str
    seeds: range


def _as_recorded(trace: Trace) -> Trace:
    return trace


def _of_other_batches(trace: Trace) -> Trace:
    return trace.of_other_batches(np.random.default_rng(_SEED))


def _with_few_twins(trace: Trace) -> Trace:
    return trace.with_twin_in(DEFAULT_TWIN, np.random.default_rng(_SEED))


CASES: Final = (
    Case(name="as recorded", change=_as_recorded, policies=(*presets(), EDGE)),
    Case(name="answers of batches of other sizes", change=_of_other_batches, policies=(POLICY,)),
    Case(name=f"the twin in {DEFAULT_TWIN:.0%} of the batches", change=_with_few_twins, policies=(EDGE,)),
)


def policy_of(name: str, trace: Trace) -> Policy:
    """A preset, or the policy whose limits of latency are the shadow replicas' own 95th percentile in the trace."""
    if name != EDGE:
        return load_policy(name, PRESETS)
    policy, limit_ms = load_policy(POLICY, PRESETS), trace.quantile_ms(0.95)
    latency = Latency(advance_below_ms=limit_ms, roll_back_above_ms=limit_ms)
    return policy.model_copy(update={"name": EDGE, "gates": {**policy.gates, "latency": latency}})


def run(task: Task) -> list[Run]:
    """Some runs, in this process.

    Raises:
        BenchmarkError: the trace cannot be read.
    """
    case = next(each for each in CASES if each.name == task.case)
    trace = Trace.read(task.trace)
    policies = [policy_of(name, trace) for name in case.policies]
    replay = Replay(case.change(trace))
    return [replay.run(policies, seed) for seed in task.seeds]
