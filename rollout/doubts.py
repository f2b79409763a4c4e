"""What makes evidence doubtful, whatever it says: then a rollout holds."""

from collections.abc import Sequence
from typing import Final

from rollout.coverage import biased
from rollout.judge import judge
from rollout.judgement import Doubt, Verdict
from rollout.policy import Policy
from rollout.traffic import Snapshot
from shadow.evidence import ArmSums, Evidence


def find_doubts(
    policy: Policy, snapshot: Snapshot, *, stage: int, stages: Sequence[int], elapsed_s: float
) -> tuple[Doubt, ...]:
    """All doubts about a rollout's evidence; the arguments are those of ``rollout.judge.judge``."""
    twin = twin_fired(policy, snapshot.evidence, stage=stage, stages=stages, elapsed_s=elapsed_s)
    found = (twin, uncovered(snapshot))
    return tuple(doubt for doubt in found if doubt is not None)


def uncovered(snapshot: Snapshot) -> Doubt | None:
    """Whether some size or slice of requests is under-represented in the evidence: a PASS would not speak for it."""
    missing = biased(snapshot.coverage)
    return None if missing is None else Doubt(reason=f"coverage is biased: {missing}")


def twin_fired(
    policy: Policy, evidence: Evidence, *, stage: int, stages: Sequence[int], elapsed_s: float
) -> Doubt | None:
    """Whether the same gates would roll back the baseline's twin, if it were the candidate.

    The twin is the baseline deployed again. Where it fails, no version is to blame: the environment is none that the
    gates' limits were made for, "environment out of model". Without a twin there is no such doubt.

    The judge's promises stand: a doubt turns no verdict into FAIL or PASS, so P(ever a false FAIL) ≤ α and P(ever a
    false PASS of a stage) ≤ β hold of what is left. Nor is a rollout held for nothing: the gates judge the twin at the
    same α, so where the baseline keeps the limits of harm in this environment, P(its twin ever fires) ≤ α.
    """
    if all(sums.twin == _NO_TWIN for sums in evidence.stages.values()):
        return None
    twin = Evidence({index: sums.of_twin() for index, sums in evidence.stages.items()})
    judgement = judge(policy, twin, stage=stage, stages=stages, elapsed_s=elapsed_s)
    if judgement.verdict is Verdict.FAIL:
        return Doubt(reason=f"environment out of model: the baseline's twin: {judgement.reason}", over_fail=True)
    if judgement.verdict is Verdict.ERROR:
        return Doubt(reason=f"the baseline's twin: {judgement.reason}")
    return None


_NO_TWIN: Final = ArmSums()
