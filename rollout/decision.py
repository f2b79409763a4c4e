"""What follows from one look at a rollout: pure functions, so that every case can be tested as a value."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rollout.judgement import Judgement, Verdict
from rollout.machine import Event, Position, State
from rollout.policy import OnBudget, Policy
from rollout.traffic import Head, Priority, Readiness, Snapshot
from shadow.errors import EvidenceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """All that one tick saw of a rollout."""

    readiness: Readiness
    why: str  # of the readiness
    judgement: Judgement | None = None  # None: nothing to judge yet
    snapshot: Snapshot | None = None  # None: nothing to judge, or its source is broken
    turned: str = ""  # which gates labels turned to FAIL since the look before, if any

    @property
    def verdict(self) -> Verdict | None:
        """The judgement's; None where there is none."""
        return self.judgement.verdict if self.judgement else None

    @property
    def confidence(self) -> float:
        """The judgement's; 0 where there is none."""
        return self.judgement.confidence if self.judgement else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """An event, and the one line that explains it."""

    event: Event
    reason: str


def decide(
    position: Position, look: Look, policy: Policy, *, patience_s: float, load_limit_s: float
) -> Decision | None:
    """What follows from a look; None: nothing yet.

    Args:
        position: where the rollout stands.
        look: what was seen.
        policy: gives the budget of a stage, and what its end means.
        patience_s: how long the position has been held by a controller that could watch it.
        load_limit_s: after which replicas that are not ready never will be.
    """
    if look.judgement is not None and look.verdict is Verdict.FAIL:
        return Decision(event=Event.FAIL, reason=look.judgement.reason)
    if look.readiness is Readiness.FAILED:
        return Decision(event=Event.LOAD_FAILED, reason=f"the candidate did not load: {look.why or 'no reason given'}")
    if position.state in (State.LOADING, State.STAGING):
        return _decide_loading(look, patience_s, load_limit_s)
    if position.state is State.PAUSED or look.judgement is None:
        return None
    return _decide_judged(look, look.judgement, policy, patience_s)


def _decide_loading(look: Look, patience_s: float, load_limit_s: float) -> Decision | None:
    if look.readiness is Readiness.READY:
        return Decision(event=Event.LOADED, reason="the candidate's replicas are ready")
    if patience_s <= load_limit_s:
        return None
    why = f": {look.why}" if look.why else ""
    return Decision(event=Event.LOAD_FAILED, reason=f"the candidate did not load within {load_limit_s:g} s{why}")


def _decide_judged(look: Look, judgement: Judgement, policy: Policy, patience_s: float) -> Decision | None:
    if judgement.verdict is Verdict.PASS:
        # After a restart the replicas may still be on their way: no weight rises for a candidate that cannot serve.
        ready = look.readiness is Readiness.READY
        return Decision(event=Event.PASS, reason=judgement.reason) if ready else None
    if patience_s <= policy.budget_s:
        return None
    event = Event.STALLED if policy.on_budget is OnBudget.PAUSE else Event.EXHAUSTED
    return Decision(event=event, reason=f"undecided after {policy.budget_s:g} s: {judgement.reason}")


def explain(reason: str, look: Look | None, *, failed: bool = False) -> str:
    """A reason with what the look adds: which gates labels turned, and why the candidate failed where harm was proved.

    The latter is what the candidate itself said most often, for whoever reads why it was rolled back.
    """
    said = [reason]
    reasons = look.snapshot.reasons if look is not None and look.snapshot is not None else {}
    if failed and reasons:
        text, count = max(reasons.items(), key=lambda item: (item[1], item[0]))
        said.append(f"its most frequent failure, {count} ×: {text}")
    if look is not None and look.turned:
        said.append(look.turned)
    return "; ".join(said)


def priority(position: Position) -> Priority:
    """That of the replicas that a position needs: normal as soon as clients are to be answered."""
    shadow = position.state in (State.LOADING, State.SHADOW) or (position.state is State.PAUSED and position.stage == 0)
    return Priority.SHADOW if shadow else Priority.NORMAL


def check_complete(found: Iterable[Head], recorded: Mapping[str, Head]) -> None:
    """Refuse evidence that reaches less far than it did: sums without a lost chain would judge on half the truth.

    Raises:
        EvidenceError: names the chain that is cut, lost or replaced.
    """
    ends = {head.chain: head for head in found}
    for chain, known in sorted(recorded.items()):
        end = ends.get(chain)
        reached = end.segments if end else 0
        if end is None or reached < known.segments:
            raise EvidenceError(f"evidence chain {chain}: {known.segments} segments recorded, {reached} found")
        if reached == known.segments and end.sha256 != known.sha256:
            raise EvidenceError(f"evidence chain {chain}: segment {reached} is not the one that was recorded")
