"""What labels make of a verdict: at a look of a rollout that runs, and after its end. Pure functions.

A verdict stands until its opposite is proved. What an e-value proved at one look stays proved, whatever the e-value has
become since: P(it is ever wrong) was bounded over all looks (STATISTICS.md, "Deciding"; Ville, 1939). So a HOLD takes
nothing back. FAIL makes any verdict REJECT. PASS frees a candidate that the evidence had stopped.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self

from rollout.decision import Look
from rollout.entries import Entry
from rollout.judgement import GateResult, Judgement, Verdict
from rollout.machine import Event, State
from rollout.outcome import NOTE_EVENTS, REOPENED, Outcome, conclude_journal, conclude_move
from rollout.traffic import Head
from shadow.evidence import Evidence
from shadow.labels import CHAIN

_STOPPED: Final = frozenset({Event.FAIL.value, Event.EXHAUSTED.value})  # ends that the evidence alone brought about
_SHOWN: Final = 12  # digits of a chain's head in a text


@dataclass(frozen=True, slots=True, kw_only=True)
class Reopening:
    """What labels that joined after a rollout's end make of its verdict; ``was`` is ``now`` where it stands."""

    was: Outcome
    now: Outcome
    labels: int  # joined since the entry before
    joined: int  # in all
    chain_head: str  # of the joined rows, as sha256
    entry: int | None  # the number of the entry that reopened the verdict as it is now; None: none did

    @property
    def changed(self) -> bool:
        """Whether the verdict is another one."""
        return self.was is not self.now

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "was": self.was.value,
            "now": self.now.value,
            "labels": self.labels,
            "joined": self.joined,
            "chain_head": self.chain_head,
            "entry": self.entry,
        }

    def said(self) -> str:
        """One line: what happened to the verdict, and by which labels."""
        verdict = f"{self.was} → {self.now}" if self.changed else f"the verdict stays {self.now}"
        which = f"{self.joined} in all, chain head {self.chain_head[:_SHOWN]}"
        return f"{verdict}, {self.labels} labels joined after the end ({which})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the journal of an ended rollout says, as far as later labels need it.

    ``base`` is the last entry with evidence. Whatever is judged anew has that entry's pairs, at its heads.
    """

    state: State
    event: str  # that ended it
    concluded: Outcome  # by its end
    standing: Outcome  # now
    stage: int
    last_stage: bool
    held_s: float  # how long the last position was held
    base: Entry | None
    entry: int | None  # the number of the entry that reopened the verdict last
    seq: int  # of the last entry

    @classmethod
    def of(cls, entries: Sequence[Entry], stages: Sequence[int]) -> Self:
        """What some entries say, of which the last may be any after the end.

        Raises:
            KeyError, ValueError: they are not a journal's of this release.
        """
        moves = [entry for entry in entries if entry["event"] not in NOTE_EVENTS and entry["event"] != REOPENED]
        end, before = moves[-1], moves[max(len(moves) - 2, 0)]
        held = datetime.fromisoformat(end["at"]) - datetime.fromisoformat(before["at"])
        again = [entry["seq"] for entry in entries if entry["event"] == REOPENED]
        return cls(
            state=State(end["state"]),
            event=str(end["event"]),
            concluded=conclude_move(end).outcome,
            standing=conclude_journal(entries).outcome,
            stage=end["stage"],
            last_stage=end["stage"] == len(stages) - 1,
            held_s=held.total_seconds(),
            base=next((entry for entry in reversed(entries) if entry["heads"]), None),
            entry=again[-1] if again else None,
            seq=entries[-1]["seq"],
        )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The ends of the chains of pairs that its evidence is of."""
        return tuple(head for head in self._heads() if head.chain != CHAIN)

    @property
    def joined(self) -> int:
        """How many labels had joined by the last entry with evidence."""
        return next((head.rows for head in self._heads() if head.chain == CHAIN), 0)

    def _heads(self) -> Iterator[Head]:
        return (Head(**head) for head in (self.base or {"heads": ()})["heads"])

    def after(self, verdict: Verdict, labels: Head) -> Reopening:
        """What a new judgement makes of the verdict, with the labels up to this head."""
        now = self._judged(verdict)
        return Reopening(
            was=self.standing,
            now=now,
            labels=labels.rows - self.joined,
            joined=labels.rows,
            chain_head=labels.sha256,
            entry=self.entry if now is self.standing else self.seq + 1,
        )

    def _judged(self, verdict: Verdict) -> Outcome:
        if verdict is Verdict.FAIL:
            return Outcome.REJECT
        if verdict is not Verdict.PASS:
            return self.standing
        if self.state is State.PROMOTED or self.event not in _STOPPED:
            return self.concluded  # which labels may have made a REJECT meanwhile
        return Outcome.GO if self.last_stage else Outcome.SHADOW_ONLY


def consequence(ending: Ending, reopening: Reopening, *, candidate: int, baseline: int) -> str:
    """What follows from a verdict that changed; no traffic moves by it.

    Args:
        ending: of the rollout.
        reopening: by which the verdict changed.
        candidate: the rollout's.
        baseline: the version that answers the model's clients now.
    """
    if reopening.now is not Outcome.REJECT:
        return f"version {candidate} may be tried again"
    if ending.state is not State.PROMOTED:
        return f"version {candidate} is not to be tried again as it is"
    if baseline == candidate:
        return f"version {candidate} still answers all clients: it is for you to replace it"
    return f"version {candidate} answers no clients any more, version {baseline} does"


def with_labels(evidence: Evidence, labels: Evidence) -> Evidence:
    """Evidence with the labelled items of another one in place of its own."""
    stages = {*evidence.stages, *labels.stages}
    return Evidence({each: replace(evidence.stage(each), labels=labels.stage(each).labels) for each in sorted(stages)})


def turned_by_labels(before: Look | None, now: Look, judge_again: Callable[[Evidence], Judgement]) -> str:
    """Which gates fail at this look, did not at the one before, and would not now without the labels since; "" if none.

    Args:
        before: the look before, if there was one.
        now: this one.
        judge_again: judges other evidence as this look's was judged.
    """
    if before is None or before.snapshot is None or now.snapshot is None:
        return ""
    old, new = _labels(before.snapshot.heads), _labels(now.snapshot.heads)
    failing, past = _by_name(now.judgement), _by_name(before.judgement)
    turned = [name for name, gate in failing.items() if _fails(gate) and name in past and not _fails(past[name])]
    if not turned or new is None or new == old:
        return ""
    without = _by_name(judge_again(with_labels(now.snapshot.evidence, before.snapshot.evidence)))
    named = ", ".join(f"{name} from {past[name].verdict} to FAIL" for name in turned if not _fails(without[name]))
    more = new.rows - (old.rows if old else 0)
    which = f"{new.rows} in all, chain head {new.sha256[:_SHOWN]}"
    return f"{more} labels joined since the last look ({which}) turned {named}" if named else ""


def _labels(heads: Iterable[Head]) -> Head | None:
    return next((head for head in heads if head.chain == CHAIN), None)


def _by_name(judgement: Judgement | None) -> Mapping[str, GateResult]:
    return {gate.gate: gate for gate in judgement.gates} if judgement else {}


def _fails(gate: GateResult) -> bool:
    return gate.verdict is Verdict.FAIL


def check_reopenings(entries: Sequence[Entry], stages: Sequence[int]) -> Iterator[str]:
    """What is wrong with the entries that labels made after the end, given that their judgements are right.

    Raises:
        KeyError, ValueError, TypeError: they are not a journal's of this release.
    """
    for number, entry in enumerate(entries):
        if entry.get("reopening") is None:
            continue
        labels = _labels(Head(**head) for head in entry["heads"])
        if labels is None:
            yield f"journal: entry {entry['seq']}: heads: expected one of the chain {CHAIN}"
            continue
        expected = Ending.of(entries[:number], stages).after(Verdict(entry["judgement"]["verdict"]), labels)
        yield from _differences(entry, expected)


def _differences(entry: Entry, expected: Reopening) -> Iterator[str]:
    said, found = entry["reopening"], expected.to_json()
    for name, value in found.items():
        if said.get(name) != value:
            yield f"journal: entry {entry['seq']}: reopening: {name}: expected {value}, the entry says {said.get(name)}"
    if (entry["event"] == REOPENED) is not expected.changed:
        yield f"journal: entry {entry['seq']}: event: the verdict was {expected.was} and is {expected.now}"
