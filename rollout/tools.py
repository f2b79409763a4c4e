"""What the controller is given from outside: who judges, the clocks, randomness."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from rollout.doubts import find_doubts
from rollout.judge import judge, judge_broken
from rollout.judgement import Doubt, Judgement
from rollout.policy import Policy
from rollout.traffic import Snapshot
from shadow.evidence import Evidence


class Judge(Protocol):
    """``rollout.judge.judge``."""

    def __call__(  # noqa: D102 — the class says it
        self,
        policy: Policy,
        evidence: Evidence,
        /,
        *,
        stage: int,
        stages: Sequence[int],
        elapsed_s: float,
        doubts: Sequence[Doubt],
    ) -> Judgement: ...


class FindDoubts(Protocol):
    """``rollout.doubts.find_doubts``."""

    def __call__(  # noqa: D102 — the class says it
        self, policy: Policy, snapshot: Snapshot, /, *, stage: int, stages: Sequence[int], elapsed_s: float
    ) -> Sequence[Doubt]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What the controller is given from outside, so that a test can decide each of it."""

    judge: Judge = judge
    find_doubts: FindDoubts = find_doubts
    judge_broken: Callable[[Policy, str], Judgement] = judge_broken
    restore_policy: Callable[[Mapping[str, Any]], Policy] = Policy.model_validate  # from the JSON as journaled
    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    salt: Callable[[], str] = lambda: secrets.token_hex(8)
