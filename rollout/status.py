"""How a rollout stands, for the command line and the console."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import orjson

from rollout.entries import Entry
from rollout.journal import Rollout
from rollout.judgement import Judgement, Verdict
from rollout.outcome import Conclusion, conclude_reopened
from rollout.traffic import Head
from shadow.accounting import Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatus:
    """One rollout now. ``missing`` says, a line for each binding gate that has not passed, what it still lacks."""

    rollout: Rollout
    elapsed_s: float  # at this position
    judgement: Judgement | None  # the latest; None while nothing has been judged since the controller started
    accounting: Mapping[str, int]  # the mirror's, in items
    heads: tuple[Head, ...]
    fault: str | None  # what keeps the controller from acting, if anything does
    coverage: Ledger = field(default_factory=Ledger)  # the same account, by size and slice
    findings: tuple[str, ...] = ()  # what is structurally wrong with the candidate's answers
    reopened: Entry | None = None  # by which labels that came after the end changed the verdict, if they did

    @property
    def conclusion(self) -> Conclusion:
        """What the rollout comes to by now."""
        return self.rollout.conclusion if self.reopened is None else conclude_reopened(self.reopened)

    @property
    def missing(self) -> tuple[str, ...]:
        """What each undecided binding gate is waiting for."""
        gates = self.judgement.gates if self.judgement else ()
        return tuple(
            f"{gate.gate}: {gate.reason}" for gate in gates if gate.binding and gate.verdict is not Verdict.PASS
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        rollout, position, conclusion, again = self.rollout, self.rollout.position, self.conclusion, self.reopened
        return {
            "deployment_id": rollout.deployment_id,
            "model": rollout.model,
            "baseline": rollout.baseline,
            "candidate": rollout.candidate,
            "policy": rollout.policy.get("name"),
            "stages": list(rollout.stages),
            "state": position.state.value,
            "stage": position.stage,
            "weight": rollout.weight,
            "active": not position.ended,
            "started_at": rollout.started_at.isoformat(),
            "since": rollout.entered_at.isoformat(),
            "elapsed_s": self.elapsed_s,
            "reason": rollout.reason,
            "judgement": plain(self.judgement),
            "missing": list(self.missing),
            "accounting": dict(self.accounting),
            "coverage": self.coverage.to_json(),
            "findings": list(self.findings),
            "heads": [asdict(head) for head in self.heads],
            "outcome": conclusion.outcome.value,
            "confidence": conclusion.confidence,
            "verdict": conclusion.line,
            "fault": self.fault,
            "reopened": again and {"at": again["at"], "reason": again["reason"], **again["reopening"]},
        }


def plain(judgement: Judgement | None) -> dict[str, Any] | None:
    """A judgement in plain JSON values; an infinite logarithm becomes null, as JSON has none."""
    if judgement is None:
        return None
    values: dict[str, Any] = orjson.loads(orjson.dumps(asdict(judgement)))
    return values
