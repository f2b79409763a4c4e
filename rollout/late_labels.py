"""Labels that come after a rollout's end: taken, joined with its evidence, and its verdict judged anew.

A label is durable before it counts as accepted (``shadow.labels``), a join before it is judged, the journal's entry
before anything is told. So after a crash at any point the next tick goes on: labels that wait are looked for again, and
a chain of labels that reaches further than the database knows is judged again.

One pass reads all rows of a rollout, a slice of time in each tick, and then rests for nine times as long as it worked:
rollouts that run are not kept waiting by one that has ended.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from rollout.decision import Look
from rollout.entry_body import entry_body
from rollout.errors import JournalError, RolloutError
from rollout.exporter import Exporter
from rollout.journal import Journal, Rollout
from rollout.judgement import Judgement
from rollout.outcome import BY_LABELS, LABELS, REOPENED, Outcome
from rollout.policy import Policy
from rollout.reopening import Ending, Reopening, consequence, with_labels
from rollout.reports import write_reports
from rollout.tools import Tools
from rollout.traffic import Head, Readiness, Snapshot
from shadow.accounting import Account, Ledger
from shadow.evidence import Evidence
from shadow.labels import CHAIN, DATABASE, AddResult, Label, LabelJoin

DAY_S: Final = 86_400.0
_SLICE_S: Final = 0.2  # of one tick
_REST: Final = 9.0  # times what a pass took
_RETRY_S: Final = 60.0  # after a fault
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class _Ended:
    """An ended rollout that takes labels; ``walk`` is the pass over its rows, while one goes on."""

    until: datetime
    idle: bool  # nothing is to be done before the next label
    ending: Ending | None = None
    join: LabelJoin | None = None
    walk: Iterator[None] | None = None
    worked_s: float = 0.0  # on this pass
    rest_until_s: float = 0.0
    judged: Head | None = None  # how far the labels reached that were judged last
    noted_s: float | None = None  # when an entry was last made


class LateLabels:
    """Takes the labels of ended rollouts. Not safe for several threads at once: the controller's lock is around it."""

    def __init__(
        self,
        journal: Journal,
        exporter: Exporter,
        tools: Tools,
        *,
        reopen_s: Mapping[str, float],
        note_s: float,
        policy: Callable[[Rollout], Policy],
        baseline: Callable[[str], int],
    ) -> None:
        """Take up every rollout that ended lately enough.

        Args:
            journal: the database, whose epoch is ours.
            exporter: of the rollouts' folders.
            tools: judge and clocks.
            reopen_s: by model, for how long after its end a rollout takes labels; a day where it is not said.
            note_s: between two entries that say that a verdict stands.
            policy: a rollout's own, as frozen when it started.
            baseline: the version that answers a model's clients now.
        """
        self._journal, self._exporter, self._tools = journal, exporter, tools
        self._reopen_s, self._note_s, self._policy, self._baseline = reopen_s, note_s, policy, baseline
        self._ended: dict[str, _Ended] = {}
        longest = timedelta(seconds=max([DAY_S, *reopen_s.values()]))
        for rollout in journal.ended_since(tools.now() - longest):
            self.watch(rollout)

    def watch(self, rollout: Rollout) -> None:
        """From now on take labels of this rollout, which has ended."""
        until = self._until(rollout)
        if self._tools.now() <= until:
            waiting = (self._folder(rollout) / DATABASE).exists()
            self._ended[rollout.deployment_id] = _Ended(until=until, idle=not waiting)

    def add(self, rollout: Rollout, labels: Sequence[Label]) -> AddResult:
        """Take labels of a rollout that has ended; when this returns they survive a loss of power.

        Raises:
            RolloutError: it ended too long ago, has no evidence, or what follows from its end is not done yet.
            EvidenceError: they could not be stored; none is taken.
        """
        name = rollout.deployment_id
        if self._tools.now() > (until := self._until(rollout)):
            raise RolloutError(
                f"{name}: labels were taken until {until.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC, too late"
            )
        if not rollout.settled:
            raise RolloutError(f"{name}: it is just ending; bring the labels again in a few seconds")
        if not self._journal.heads(name):
            raise RolloutError(f"{name}: it ended without evidence that labels could join")
        self._journal.check_epoch()  # one process alone may write to the chain
        ended = self._ended.setdefault(name, _Ended(until=until, idle=True))
        result = self._join(rollout, ended).add(labels)
        ended.idle = False
        return result

    def busy(self) -> list[str]:
        """The rollouts that ``advance`` has something to do for now; lets go of those that take no more labels."""
        now, now_s = self._tools.now(), self._tools.monotonic()
        for name in [name for name, ended in self._ended.items() if ended.idle and now > ended.until]:
            self._rest(self._ended.pop(name))
        return [name for name, ended in self._ended.items() if not ended.idle and now_s >= ended.rest_until_s]

    def advance(self, rollout: Rollout) -> Look | None:
        """Go on with the labels of an ended rollout; returns what was judged anew, if anything was.

        Raises:
            EvidenceError: its evidence is not what it was; tried again after a minute.
            JournalError: its journal cannot be read or written.
        """
        ended = self._ended[rollout.deployment_id]
        try:
            return self._advance(rollout, ended)
        except Exception:
            self._rest(ended)
            ended.ending = None
            ended.rest_until_s = self._tools.monotonic() + _RETRY_S
            raise

    def close(self) -> None:
        """Let go of all files."""
        for ended in self._ended.values():
            self._rest(ended)

    def _advance(self, rollout: Rollout, ended: _Ended) -> Look | None:
        if ended.ending is None:
            ended.ending = self._recall(rollout)
        if not ended.ending.heads:
            raise JournalError(
                f"{rollout.deployment_id}: its journal has no entry with evidence that labels could join"
            )
        join = self._join(rollout, ended)
        if ended.walk is None and join.counts().waiting:
            ended.walk, ended.worked_s = join.complete(ended.ending.heads), 0.0
        if ended.walk is not None and not self._walked(ended, ended.walk):
            return None
        return self._judged(rollout, ended, ended.ending, join)

    def _recall(self, rollout: Rollout) -> Ending:
        """What the journal says; and make good what a crash kept from being written after an entry of ours."""
        entries = self._journal.entries(rollout.deployment_id)
        if entries[-1]["actor"] == BY_LABELS:
            self._publish(rollout)
        return Ending.of(entries, rollout.stages)

    def _walked(self, ended: _Ended, walk: Iterator[None]) -> bool:
        """Go on with a pass for a slice of time; whether it has come to its end."""
        began_s = now_s = self._tools.monotonic()
        while now_s - began_s < _SLICE_S:
            try:
                next(walk)
            except StopIteration:
                ended.walk = None
            now_s = self._tools.monotonic()
            if ended.walk is None:
                ended.worked_s += now_s - began_s
                ended.rest_until_s = now_s + _REST * ended.worked_s
                return True
        ended.worked_s += now_s - began_s
        return False

    def _judged(self, rollout: Rollout, ended: _Ended, ending: Ending, join: LabelJoin) -> Look | None:
        """The look at the evidence with all labels joined by now; None where the last entry has seen them."""
        labels, head = join.snapshot()
        if head is None or head == self._journal.heads(rollout.deployment_id).get(CHAIN):
            if not join.counts().waiting:
                self._rest(ended)
                ended.idle = True
            return None
        due = ended.noted_s is None or self._tools.monotonic() - ended.noted_s >= self._note_s
        if head == ended.judged and not due:
            return None
        look, judgement = self._look(rollout, ending, labels, head)
        ended.judged, reopening = head, ending.after(judgement.verdict, head)
        if reopening.changed or due:
            ended.ending = self._note(rollout, ending, reopening, look)
            ended.noted_s = self._tools.monotonic()
        return look

    def _look(self, rollout: Rollout, ending: Ending, labels: Evidence, head: Head) -> tuple[Look, Judgement]:
        """The evidence as it was at the end, with these labels, under the rollout's own policy."""
        base = ending.base or {}
        snapshot = Snapshot(
            evidence=with_labels(Evidence.from_json(base["evidence"]), labels),
            heads=tuple(sorted((*ending.heads, head), key=lambda each: each.chain)),
            accounting=base["accounting"],
            reasons=base["reasons"],
            coverage=Ledger.from_json(base["coverage"]),
            accounts={name: Account.from_json(each) for name, each in base.get("accounts", {}).items()},
        )
        policy, stage, stages = self._policy(rollout), ending.stage, rollout.stages
        doubts = self._tools.find_doubts(policy, snapshot, stage=stage, stages=stages, elapsed_s=ending.held_s)
        judgement = self._tools.judge(
            policy, snapshot.evidence, stage=stage, stages=stages, elapsed_s=ending.held_s, doubts=doubts
        )
        return Look(readiness=Readiness.READY, why="", judgement=judgement, snapshot=snapshot), judgement

    def _note(self, rollout: Rollout, ending: Ending, reopening: Reopening, look: Look) -> Ending:
        """Journal what labels made of a verdict, then tell it; returns what the journal says from now on."""
        reason = self._reason(rollout, ending, reopening, look)
        event = REOPENED if reopening.changed else LABELS
        body = entry_body(rollout, at=self._tools.now(), event=event, reason=reason, actor=BY_LABELS, look=look)
        heads = [head for head in look.snapshot.heads if head.chain == CHAIN] if look.snapshot else []
        written = self._journal.annotate(rollout, {**body, "reopening": reopening.to_json()}, heads=heads)
        _LOG.log(_level(reopening), "rollout %s: %s: %s", rollout.deployment_id, event, reason)
        self._publish(written)
        base = self._journal.entry(rollout.deployment_id, written.seq)
        return replace(ending, standing=reopening.now, entry=reopening.entry, seq=written.seq, base=base)

    def _reason(self, rollout: Rollout, ending: Ending, reopening: Reopening, look: Look) -> str:
        judged = look.judgement.reason if look.judgement else ""
        if not reopening.changed:
            return f"{reopening.said()}: {judged}"
        baseline = self._baseline(rollout.model)
        follows = consequence(ending, reopening, candidate=rollout.candidate, baseline=baseline)
        return f"{reopening.said()}: {judged}; {follows}"

    def _publish(self, rollout: Rollout) -> None:
        self._exporter.export(rollout)
        write_reports(self._exporter.folder(rollout))

    def _join(self, rollout: Rollout, ended: _Ended) -> LabelJoin:
        if ended.join is None:
            ended.join = LabelJoin(
                self._folder(rollout),
                rollout.deployment_id,
                self._policy(rollout).limits(rollout.tolerance),
                within_s=0.0,  # it is not read while it runs any more
                clock=lambda: self._tools.now().timestamp(),
            )
        return ended.join

    def _rest(self, ended: _Ended) -> None:
        """Hold no file while nothing is to be done."""
        ended.walk = None
        if ended.join is not None:
            ended.join.close()
            ended.join = None

    def _until(self, rollout: Rollout) -> datetime:
        return rollout.entered_at + timedelta(seconds=self._reopen_s.get(rollout.model, DAY_S))

    def _folder(self, rollout: Rollout) -> Path:
        return self._exporter.folder(rollout) / "evidence"


def _level(reopening: Reopening) -> int:
    """How urgent it is for whoever reads the log."""
    if not reopening.changed:
        return logging.INFO
    return logging.ERROR if reopening.now is Outcome.REJECT else logging.WARNING
