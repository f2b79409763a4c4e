"""A rollout's report as facts: everything comes from its journal entries and ``rollout.json``."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from rollout.entries import Entry
from rollout.machine import TERMINAL, State
from rollout.outcome import BY_LABELS, NOTE_EVENTS, REOPENED, Conclusion, conclude_journal, shorten
from rollout.reports.incident import Incident, describe_incident
from shadow.agreement import answers_named, measure_means
from shadow.evidence import Evidence, StageSums
from shadow.store import Header

SUMMARY_WORDS: Final = 200
STEADY: Final = 0.05  # relative change of an estimate that is called steady
NO_POSTERIOR: Final = (
    "Confidence x means: were the opposite true, a figure this high would appear with probability ≤ 1 − x over the "
    "whole rollout, at any looking schedule. It is no posterior probability."
)
_STATUS: Final = {"PASS": "met", "FAIL": "breached", "HOLD": "undecided", "ERROR": "unreadable"}
_LOSSES: Final = ("shed", "too_large", "timed_out", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRow:
    """One gate in the release matrix."""

    axis: str
    threshold: str
    finding: str
    interval: tuple[float, float] | None
    unit: str  # of the interval
    verified_by: str
    evidence: str  # file#run_id
    decision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SloRow:
    """One gate as a service level objective."""

    objective: str
    target: str
    observed: str
    interval: tuple[float, float] | None
    unit: str  # of the interval
    status: str
    trend: str
    evidence: str  # file#run_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One transition."""

    at: str
    event: str
    state: str
    weight: int
    held_s: float  # how long the position before it was held
    actor: str
    reason: str
    evidence: str | None  # file#run_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that a report says, in the order in which it says it."""

    deployment_id: str
    model: str
    baseline: int
    candidate: int
    policy: str
    state: str
    conclusion: Conclusion
    anomalies: tuple[str, ...]
    incident: Incident | None
    summary: str
    slos: tuple[SloRow, ...]
    matrix: tuple[MatrixRow, ...]
    timeline: tuple[Move, ...]
    accounting: Mapping[str, int]
    facts: Mapping[str, Any]  # of both versions
    notes: tuple[str, ...]
    journal_hash: str  # of the last entry that it rests on

    @property
    def title(self) -> str:
        """The first line."""
        return f"Deployment verdict: {self.model} version {self.candidate} against baseline {self.baseline}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "title": self.title, "statement": NO_POSTERIOR, "verdict": self.conclusion.line}


def deployment_report(
    entries: Sequence[Entry], rollout: Mapping[str, Any], errors: Mapping[str, int], header: Header | None = None
) -> Report:
    """The report of a rollout, ended or not.

    Args:
        entries: its journal, verified.
        rollout: the content of ``rollout.json``.
        errors: the candidate's error messages with how often each came.
        header: of its evidence, which says what was compared; None where there is none.
    """
    looks = [entry for entry in entries if entry["judgement"]]
    moves = [entry for entry in entries if entry["event"] not in NOTE_EVENTS]
    counts: Mapping[str, int] = next((entry["accounting"] for entry in reversed(entries) if entry["accounting"]), {})
    gates = looks[-1]["judgement"]["gates"] if looks else []
    evidence = _reference(looks[-1]) if looks else "none"
    facts = dict(rollout.get("facts", {}))
    incident = describe_incident(entries, errors)
    return Report(
        deployment_id=rollout["deployment_id"],
        model=rollout["model"],
        baseline=rollout["baseline"],
        candidate=rollout["candidate"],
        policy=str(rollout.get("policy", {}).get("name", "")),
        state=entries[-1]["state"],
        conclusion=conclude_journal(entries),
        anomalies=tuple(_anomalies(entries, gates, counts)),
        incident=incident,
        summary=shorten(_summary(entries, rollout, header), SUMMARY_WORDS),
        slos=tuple(_slo(gate, looks, evidence) for gate in gates),
        matrix=tuple(_matrix_row(gate, evidence) for gate in gates),
        timeline=tuple(_move(before, entry) for before, entry in zip([moves[0], *moves], moves, strict=False)),
        accounting=counts,
        facts={key: value for key, value in facts.items() if key != "notes"},
        notes=tuple(facts.get("notes", ())),
        journal_hash=entries[-1]["hash"],
    )


def _reference(entry: Entry) -> str:
    return f"{entry['file']}#{entry['run_id']}" if entry["run_id"] else "none: the source could not be read"


def _interval(gate: Mapping[str, Any]) -> tuple[float, float] | None:
    return tuple(gate["interval"]) if gate["interval"] else None


def _matrix_row(gate: Mapping[str, Any], evidence: str) -> MatrixRow:
    return MatrixRow(
        axis=f"{gate['gate']} ({gate['requirement']})",
        threshold=gate["threshold"],
        finding=gate["finding"],
        interval=_interval(gate),
        unit=gate["unit"],
        verified_by=f"{'binding' if gate['binding'] else 'advisory'} gate, n = {gate['n']}",
        evidence=evidence,
        decision=gate["verdict"],
    )


def _slo(gate: Mapping[str, Any], looks: Sequence[Entry], evidence: str) -> SloRow:
    return SloRow(
        objective=gate["gate"],
        target=gate["threshold"],
        observed=gate["finding"],
        interval=_interval(gate),
        unit=gate["unit"],
        status=_STATUS[gate["verdict"]],
        trend=_trend(gate["gate"], looks),
        evidence=evidence,
    )


def _trend(name: str, looks: Sequence[Entry]) -> str:
    """How the gate's estimate moved from the first look that had one to the last."""
    gates = (gate for look in looks for gate in look["judgement"]["gates"] if gate["gate"] == name)
    estimates = [gate["estimate"] for gate in gates if gate["estimate"] is not None]
    if len(estimates) < 2:
        return "too few looks"
    first, last = estimates[0], estimates[-1]
    if abs(last - first) <= STEADY * abs(first):
        return "steady"
    return f"{'rising' if last > first else 'falling'} ({first:.3g} → {last:.3g})"


def _move(before: Entry, entry: Entry) -> Move:
    held = datetime.fromisoformat(entry["at"]) - datetime.fromisoformat(before["at"])
    return Move(
        at=entry["at"],
        event=entry["event"],
        state=entry["state"],
        weight=entry["weight"],
        held_s=held.total_seconds(),
        actor=entry["actor"],
        reason=entry["reason"],
        evidence=_reference(entry) if entry["run_id"] else None,
    )


def _anomalies(entries: Sequence[Entry], gates: Sequence[Mapping[str, Any]], counts: Mapping[str, int]) -> list[str]:
    broken = [entry for entry in entries if entry["judgement"] and entry["judgement"]["verdict"] == "ERROR"]
    restarts = [entry for entry in entries if entry["event"] == "restart"]
    found = [f"Reopened at {each['at']}: {each['reason']}" for each in entries if each["event"] == REOPENED]
    found += [f"Advisory gate {gate['gate']} fails: {gate['reason']}" for gate in gates if _advisory_failure(gate)]
    if broken:
        found.append(f"Evidence or gates were broken at {len(broken)} looks; last: {broken[-1]['reason']}")
    if restarts:
        found.append(f"The controller was restarted {len(restarts)} times; last at {restarts[-1]['at']}")
    found += [f"{entry['actor']}: {entry['event']} at {entry['at']}: {entry['reason']}" for entry in _manual(entries)]
    lost = [f"{counts[name]} {name}" for name in _LOSSES if counts.get(name)]
    if lost:
        found.append(f"Of {counts.get('sampled', 0)} sampled items not compared: {', '.join(lost)}")
    if counts and counts.get("sampled", 0) != sum(count for name, count in counts.items() if name != "sampled"):
        found.append("The mirror's account does not add up: sampled is not the sum of all ends")
    return found


def _advisory_failure(gate: Mapping[str, Any]) -> bool:
    return not gate["binding"] and gate["verdict"] == "FAIL"


def _manual(entries: Sequence[Entry]) -> list[Entry]:
    """What persons did, besides starting it."""
    others = ("gates", "controller", BY_LABELS)
    return [entry for entry in entries if entry["actor"] not in others and entry["event"] != "start"]


def _summary(entries: Sequence[Entry], rollout: Mapping[str, Any], header: Header | None) -> str:
    last, ended = entries[-1], State(entries[-1]["state"]) in TERMINAL
    policy = rollout.get("policy", {}).get("name", "")
    course = f"ended {last['state']}" if ended else f"is still running ({last['state']}, {last['weight']} %)"
    text = (
        f"Version {rollout['candidate']} of {rollout['model']} was compared with baseline {rollout['baseline']} on "
        f"mirrored live traffic under the policy {policy}. The rollout began at {entries[0]['at']} and {course}."
    )
    sums = next((entry["evidence"] for entry in reversed(entries) if entry["evidence"] is not None), None)
    if not sums:
        return f"{text} Nothing was compared."
    return f"{text} {_figures(Evidence.from_json(sums).total(), header)}"


def _figures(sums: StageSums, header: Header | None) -> str:
    candidate = sums.candidate
    parts = [
        f"The candidate failed {candidate.failures} of {candidate.requests} requests",
        _likeness(sums, header),
    ]
    for name, arm in (("candidate", candidate), ("baseline", sums.baseline)):
        if (p95 := arm.service.quantile_ms(0.95)) is not None:
            parts.append(f"the {name}'s service time has a p95 of {p95:.3g} ms")
    if candidate.memory_readings:
        parts.append(f"its largest batch took {candidate.memory_max_bytes / 1e6:.3g} MB")
    if sums.labels.n:
        right = sums.labels.both + sums.labels.candidate_only
        before = sums.labels.both + sums.labels.baseline_only
        parts.append(f"of {sums.labels.n} labelled items the candidate got {right} right, the baseline {before}")
    return "; ".join(parts) + "."


def _likeness(sums: StageSums, header: Header | None) -> str:
    """How alike the answers are: the same top-1 answer, or, where there are none, what the comparator measures."""
    if header is None or answers_named(sums, header.comparator):
        return f"{sums.agree} of {sums.items} compared items have the same top-1 answer"
    means = measure_means(sums, header.measures)
    listed = ", ".join(f"{name} {mean:.4g}" for name, mean in means.items())
    return f"{sums.items} items were compared by {header.comparator}" + (f" (means: {listed})" if listed else "")
