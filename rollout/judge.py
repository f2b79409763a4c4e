"""The judge: one look at the evidence under a policy, all gates merged into one judgement. Pure, and without a clock.

What a judgement promises, at any looking schedule (STATISTICS.md, "Deciding"):

* If no deciding gate's limit of harm is exceeded, the rollout is ever failed by e-values with probability ≤ α.
* If some binding e-gate's claim of health is false at a stage, that stage is ever passed with probability ≤ β.

Doubts about the evidence (``rollout.doubts``) turn verdicts into HOLD alone, so that both stay true with them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import Final

from rollout.bounds import confidence, log_merge
from rollout.gates.contract import Gate, Look, Mode, Reading
from rollout.gates.text import duration, e_value, percent, span
from rollout.judgement import Doubt, GateResult, Judgement, Verdict
from rollout.policy import Policy
from shadow.evidence import Evidence, StageSums

CONFIDENCE_CAP: Final = 0.999
NAMED_GATES: Final = 3  # that a failure by all gates together names


def judge(
    policy: Policy,
    evidence: Evidence,
    *,
    stage: int,
    stages: Sequence[int],
    elapsed_s: float,
    doubts: Sequence[Doubt] = (),
) -> Judgement:
    """What the evidence says of a rollout.

    FAIL when M, the harm e-values of the deciding gates merged with constant weights, reaches 1/α, or at a
    deterministic breach. PASS when every binding gate is healthy on this stage's own evidence and the stage has had
    its requests and its time. ERROR when the sums cannot be true. Else HOLD. Advisory gates are reported only. With a
    doubt PASS is HOLD; with one that is over FAIL, so is FAIL by e-values, but never a deterministic breach.

    Args:
        policy: the gates, their limits, α and β.
        evidence: sums by index into ``stages``.
        stage: the present stage, an index.
        stages: the candidate's weights in percent, of the whole rollout; the same at every look.
        elapsed_s: how long the present stage has lasted.
        doubts: why the evidence is not to be acted on.

    Raises:
        ValueError: there is no such stage.
    """
    weights = tuple(stages)
    if not 0 <= stage < len(weights):
        raise ValueError(f"stage {stage} of a rollout with {len(weights)} stages")
    sums = tuple(evidence.stage(index) for index in range(len(weights)))
    impossible = next((problem for each in sums if (problem := _impossible(each))), None)
    if impossible:
        return judge_broken(policy, impossible)
    case = _Case(policy=policy, sums=sums, weights=weights, stage=stage, elapsed_s=elapsed_s, doubts=tuple(doubts))
    return case.judge()


def judge_broken(policy: Policy, reason: str) -> Judgement:
    """The judgement where there is no evidence to judge, because its source is broken or silent: ERROR, never PASS."""
    results = tuple(
        GateResult(
            gate=name,
            requirement=gate.requirement,
            binding=gate.mode is Mode.BINDING,
            verdict=Verdict.ERROR,
            threshold=gate.threshold(),
            finding="not read",
            reason=reason,
            n=0,
        )
        for name, gate in policy.gates.items()
    )
    return Judgement(
        verdict=Verdict.ERROR, gates=results, log_m=0.0, confidence=0.0, reason=f"evidence is broken: {reason}"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One look at a rollout."""

    policy: Policy
    sums: tuple[StageSums, ...]
    weights: tuple[int, ...]
    stage: int
    elapsed_s: float
    doubts: tuple[Doubt, ...]

    def judge(self) -> Judgement:
        results = {name: self._result(name, gate) for name, gate in self.policy.gates.items()}
        log_m = self._log_m(results)
        breaches = [result for name, result in results.items() if result.breach and self._decides(name)]
        binding = [result for result in results.values() if result.binding]
        waits = self._waits(binding)
        harm = CONFIDENCE_CAP if breaches else _capped(log_m)
        health = _capped(min((each.log_e_health for each in binding if each.log_e_health is not None), default=0.0))
        verdict, sure, reason = Verdict.HOLD, min(harm, health), self._why_hold(waits)
        if breaches or log_m >= self._log_fail:
            harmful = [result for name, result in results.items() if self._decides(name)]
            why = self._why_fail(log_m, breaches, harmful)
            if breaches or not self._may_not_fail:
                verdict, sure, reason = Verdict.FAIL, harm, why
            else:
                reason = f"{self._doubted}; the candidate: {why}"
        elif not waits and not self.doubts:
            verdict, sure, reason = Verdict.PASS, health, self._why_pass(binding)
        return Judgement(verdict=verdict, gates=tuple(results.values()), log_m=log_m, confidence=sure, reason=reason)

    # Gate by gate

    def _decides(self, name: str) -> bool:
        """Whether a gate binds at any stage of this rollout: the same at every look, so that M's weights are."""
        return any(self.policy.gates[name].binds_at(weight) for weight in self.weights)

    def _result(self, name: str, gate: Gate) -> GateResult:
        binds = tuple(gate.binds_at(weight) for weight in self.weights)
        look = Look(
            sums=self.sums,
            weights=self.weights,
            stage=self.stage,
            bets=binds if any(binds) else (True,) * len(binds),
            alpha=self.policy.alpha,
            beta=self.policy.beta,
        )
        reading = gate.read(look)
        verdict = self._verdict(reading)
        return GateResult(
            gate=name,
            requirement=gate.requirement,
            binding=binds[self.stage],
            verdict=verdict,
            threshold=gate.threshold(),
            finding=reading.finding,
            reason=self._reason(reading, verdict),
            n=reading.n,
            estimate=reading.estimate,
            interval=reading.interval,
            log_e_harm=reading.log_e_harm,
            log_e_health=reading.log_e_health,
            breach=reading.breach is not None,
            missing_requests=reading.missing if verdict is Verdict.HOLD else None,
            unit=reading.unit,
            counted=reading.counted,
        )

    def _verdict(self, reading: Reading) -> Verdict:
        """Of one gate alone: FAIL where its share of M would be enough."""
        if reading.breach is not None or (reading.log_e_harm or 0.0) >= self._log_alone:
            return Verdict.FAIL
        return Verdict.PASS if reading.healthy else Verdict.HOLD

    def _reason(self, reading: Reading, verdict: Verdict) -> str:
        if verdict is Verdict.FAIL and reading.breach is not None:
            return reading.breach
        if verdict is Verdict.FAIL:
            return f"E = {e_value(reading.log_e_harm or 0.0)} ≥ {e_value(self._log_alone)} for {reading.harm}"
        if not reading.n:
            return reading.finding
        level = e_value(-log(self.policy.beta))
        if verdict is Verdict.PASS:
            proof = "" if reading.log_e_health is None else f"E = {e_value(reading.log_e_health)} ≥ {level} for "
            return proof + reading.health
        said = [reading.health]
        if reading.log_e_health is not None:
            said = [f"E = {e_value(reading.log_e_health)} of {level} for {reading.health}"]
        if reading.interval is not None:
            said.append(f"{percent(1 - self.policy.alpha)} interval {span(reading.interval, reading.unit)}")
        return "; ".join([*said, self._missing(reading.n, reading.missing, reading.counted)])

    def _missing(self, n: int, missing: int | None, counted: str) -> str:
        """What a gate that holds waits for."""
        if not n:
            return f"no {counted} yet"
        if missing is None:
            return "not on course at the present rate"
        more = f"≈ {missing} more {counted}"
        return f"{more}, ≈ {duration(missing * self.elapsed_s / n)}" if self.elapsed_s > 0 else more

    # All together

    @property
    def _log_fail(self) -> float:
        """ln of the M at which a rollout fails: ln(1/α)."""
        return -log(self.policy.alpha)

    @property
    def _log_alone(self) -> float:
        """ln of the E at which one gate's share of M is enough by itself: ln(gates/α)."""
        return log(len(self._merged())) + self._log_fail

    def _merged(self) -> list[str]:
        """The gates in M, each with the same weight: those that decide and prove harm. A policy has at least one."""
        return [name for name, gate in self.policy.gates.items() if gate.proves_harm and self._decides(name)]

    def _log_m(self, results: dict[str, GateResult]) -> float:
        names = self._merged()
        return float(log_merge([results[name].log_e_harm or 0.0 for name in names], [1 / len(names)] * len(names)))

    def _waits(self, binding: Iterable[GateResult]) -> list[str]:
        """What stands between this stage and the next, harm aside."""
        weight, ran = self.weights[self.stage], self.sums[self.stage].candidate.requests
        waits = [
            f"{each.gate} ({self._missing(each.n, each.missing_requests, each.counted)})"
            for each in binding
            if each.verdict is not Verdict.PASS
        ]
        if (fewer := self.policy.min_requests_at(weight) - ran) > 0:
            waits.append(f"the stage's minimum of requests ({fewer} more)")
        if (sooner_s := self.policy.bake_at(weight) - self.elapsed_s) > 0:
            waits.append(f"its bake time ({duration(sooner_s)} more)")
        return waits

    @property
    def _doubted(self) -> str:
        return "; ".join(doubt.reason for doubt in self.doubts)

    @property
    def _may_not_fail(self) -> bool:
        """Whether what e-values prove may be the environment's fault."""
        return any(doubt.over_fail for doubt in self.doubts)

    def _why_hold(self, waits: Sequence[str]) -> str:
        said = [self._doubted] if self.doubts else []
        return "; ".join([*said, "waiting for " + ", ".join(waits)] if waits else said)

    def _why_fail(self, log_m: float, breaches: Sequence[GateResult], harmful: Iterable[GateResult]) -> str:
        if breaches:
            return "; ".join(f"{each.gate}: {each.reason}" for each in breaches)
        alone = [each for each in harmful if each.verdict is Verdict.FAIL]
        most = sorted(harmful, key=lambda each: -(each.log_e_harm or 0.0))[:NAMED_GATES]
        named = "; ".join(
            f"{each.gate}: {each.finding}, E = {e_value(each.log_e_harm or 0.0)}" for each in alone or most
        )
        return f"harm proved, M = {e_value(log_m)} ≥ {e_value(self._log_fail)}; {named}"

    def _why_pass(self, binding: Iterable[GateResult]) -> str:
        proved = [(each.log_e_health, each.gate) for each in binding if each.log_e_health is not None]
        log_e, gate = min(proved)
        return (
            f"every binding gate is healthy; weakest: {gate}, E = {e_value(log_e)} ≥ {e_value(-log(self.policy.beta))}"
        )


def _capped(log_e: float) -> float:
    return min(confidence(log_e), CONFIDENCE_CAP)


def _impossible(sums: StageSums) -> str | None:
    """What cannot be true of these sums: counts that are negative, or parts larger than their whole."""
    arm, cells = sums.candidate, sums.labels
    parts = {
        "failed requests": (arm.failures, arm.requests),
        "batches over the latency target": (arm.service_over_target, arm.batches),
        "batches over the latency breach": (arm.service_over_breach, arm.batches),
        "answers over the latency target": (arm.answers_over_target, arm.answers),
        "answers over the latency breach": (arm.answers_over_breach, arm.answers),
        "memory readings over the limit": (arm.memory_over, arm.memory_readings),
        "items over tolerance": (sums.delta_over, sums.items),
        "items that agree": (sums.agree, sums.items),
    }
    wrong = next((name for name, (part, whole) in parts.items() if not 0 <= part <= whole), None)
    if wrong is not None:
        part, whole = parts[wrong]
        return f"{part} of {whole} {wrong}"
    if min(cells.both, cells.baseline_only, cells.candidate_only, cells.neither) < 0:
        return "a negative count of labelled items"
    return None
