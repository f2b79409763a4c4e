"""Why a rollout was rolled back: which gate, which numbers, and what the candidate said when it failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as parquet

from rollout.entries import Entry
from rollout.machine import State
from rollout.outcome import NOTE_EVENTS, REOPENED

MESSAGES: Final = 5
_COLUMN: Final = "candidate_error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """One rollback."""

    at: str
    trigger: str  # the event
    weight: int  # the candidate's share when it happened
    after_s: float  # since the stage was entered
    root_cause: str
    gates: tuple[str, ...]  # the deciding ones, with their numbers
    errors: tuple[str, ...]  # the candidate's most frequent messages
    evidence: str | None  # file#run_id


def describe_incident(entries: Sequence[Entry], errors: Mapping[str, int]) -> Incident | None:
    """The incident that ended a rollout; None if it was not rolled back."""
    moves = [entry for entry in entries if entry["event"] not in NOTE_EVENTS and entry["event"] != REOPENED]
    last = moves[-1]
    if last["state"] != State.ROLLED_BACK or len(moves) < 2:
        return None
    before = moves[-2]
    held = datetime.fromisoformat(last["at"]) - datetime.fromisoformat(before["at"])
    frequent = sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:MESSAGES]
    return Incident(
        at=last["at"],
        trigger=last["event"],
        weight=before["weight"],
        after_s=held.total_seconds(),
        root_cause=last["reason"],
        gates=tuple(_numbers(gate) for gate in _deciding(last)),
        errors=tuple(f"{count} × {message}" for message, count in frequent),
        evidence=f"{last['file']}#{last['run_id']}" if last["run_id"] else None,
    )


def _deciding(entry: Entry) -> list[Mapping[str, Any]]:
    """The binding gates that failed; where only all together did, those that weighed most."""
    gates = (entry["judgement"] or {}).get("gates", [])
    binding = [gate for gate in gates if gate["binding"]]
    failed = [gate for gate in binding if gate["breach"] or gate["verdict"] == "FAIL"]
    harmful = [gate for gate in binding if (gate["log_e_harm"] or 0) > 0]
    undecided = [gate for gate in binding if gate["verdict"] != "PASS"]
    return failed or sorted(harmful, key=lambda gate: -gate["log_e_harm"])[:3] or undecided


def _numbers(gate: Mapping[str, Any]) -> str:
    return f"{gate['gate']} ({gate['requirement']}): {gate['finding']}; limit {gate['threshold']}; {gate['reason']}"


def error_messages(evidence: Path) -> dict[str, int]:
    """The candidate's error messages in the raw evidence, and for how many items each was given."""
    counts: dict[str, int] = {}
    for path in sorted(evidence.glob("*.parquet")):
        file = parquet.ParquetFile(path)
        if _COLUMN not in file.schema_arrow.names:
            continue
        for batch in file.iter_batches(columns=[_COLUMN]):
            for pair in batch.column(0).drop_null().value_counts().to_pylist():
                counts[pair["values"]] = counts.get(pair["values"], 0) + pair["counts"]
    return counts
