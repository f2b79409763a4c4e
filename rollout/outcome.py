"""What a rollout came to, in one line: ``Execution Verdict: GO — confidence = 0.97``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import floor
from typing import Final

from rollout.entries import Entry
from rollout.machine import Event, State

RATIONALE_WORDS: Final = 25
LABELS: Final = "labels"  # an ended rollout's entry: labels joined late, and its verdict stands
REOPENED: Final = "reopened"  # … and its verdict is another now
BY_LABELS: Final = "labels"  # the actor of both
NOTE_EVENTS: Final = frozenset({"judgement", "restart", LABELS})  # entries that moved nothing and changed no verdict


class Outcome(StrEnum):
    """What may be done with the candidate."""

    GO = "GO"  # promoted
    SHADOW_ONLY = "SHADOW ONLY"  # undecided, or ended by a person: it may rehearse, not serve
    PAUSE_AND_FIX = "PAUSE_AND_FIX"  # it could not be judged: not loaded, broken source, too little evidence
    REJECT = "REJECT"  # harm was proved


_BY_EVENT: Final[Mapping[str, Outcome]] = {
    Event.FAIL: Outcome.REJECT,
    Event.EXHAUSTED: Outcome.PAUSE_AND_FIX,
    Event.STALLED: Outcome.PAUSE_AND_FIX,
    Event.LOAD_FAILED: Outcome.PAUSE_AND_FIX,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conclusion:
    """An outcome, how sure it is, and why, in at most 25 words."""

    outcome: Outcome
    confidence: float
    rationale: str

    @property
    def line(self) -> str:
        """The last line of a report."""
        return verdict_line(self.outcome, self.confidence)


def verdict_line(outcome: Outcome, confidence: float) -> str:
    """The verdict in its one form; the confidence is cut, not rounded, so that .999 never prints as certainty."""
    return f"Execution Verdict: {outcome} — confidence = {floor(confidence * 100 + 1e-9) / 100:.2f}"


def conclude(state: State, event: str, reason: str, confidence: float) -> Conclusion:
    """What the last move comes to; of a rollout that still runs, what would hold if it went no further.

    Args:
        state: that the move led to.
        event: that caused it; "start" or one of ``Event``.
        reason: as journaled.
        confidence: of the judgement that the move was made on; 0 where nothing had been judged.
    """
    by_event = _BY_EVENT.get(event, Outcome.SHADOW_ONLY)
    outcome = Outcome.GO if state is State.PROMOTED else by_event
    return Conclusion(outcome=outcome, confidence=confidence, rationale=shorten(reason))


def conclude_journal(entries: Sequence[Entry]) -> Conclusion:
    """What a journal comes to: its last move, or what labels that joined after it made of the verdict."""
    last = next(entry for entry in reversed(entries) if entry["event"] not in NOTE_EVENTS)
    return conclude_reopened(last) if last["event"] == REOPENED else conclude_move(last)


def conclude_move(entry: Entry) -> Conclusion:
    """What the move of an entry comes to."""
    return conclude(State(entry["state"]), entry["event"], entry["reason"], _confidence(entry))


def conclude_reopened(entry: Entry) -> Conclusion:
    """What an entry comes to that reopened a verdict."""
    outcome = Outcome(entry["reopening"]["now"])
    return Conclusion(outcome=outcome, confidence=_confidence(entry), rationale=shorten(entry["reason"]))


def _confidence(entry: Entry) -> float:
    return (entry["judgement"] or {}).get("confidence") or 0.0


def shorten(text: str, words: int = RATIONALE_WORDS) -> str:
    """At most so many words of a text."""
    found = text.split()
    return " ".join(found) if len(found) <= words else " ".join(found[:words]) + " …"
