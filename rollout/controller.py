"""The controller: every second, for each rollout, read → judge → step → journal → effect.

The journal is the only truth. What a rollout's position asks of the serving side is derived from it anew at every
tick and said again, so that a crash at any moment heals: a step that was journaled takes effect after the restart,
one that was not never happened. Evidence is durable before it is judged, the entry is committed before its effect.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import orjson

from rollout.decision import Decision, Look, check_complete, decide, explain, priority
from rollout.entries import Entry
from rollout.entry_body import entry_body
from rollout.errors import RolloutError, StaleControllerError
from rollout.exporter import Exporter
from rollout.findings import reported
from rollout.journal import Journal, Rollout
from rollout.judgement import Verdict
from rollout.late_labels import LateLabels
from rollout.machine import Event, State, check_stages, precise, step
from rollout.policy import Policy
from rollout.reopening import turned_by_labels
from rollout.reports import write_reports
from rollout.status import RolloutStatus
from rollout.tools import Judge, Tools
from rollout.traffic import Head, Priority, Readiness, Route, Traffic
from shadow.accounting import Ledger
from shadow.errors import EvidenceError
from shadow.labels import AddResult, Label

__all__ = ["Controller", "Judge", "Limits", "Tools"]

GATES: Final = "gates"  # the actor of what no person did
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The controller's own limits."""

    load_s: float = 120.0  # for replicas to become ready
    note_s: float = 60.0  # between two journaled judgements with the same verdict


class Controller:
    """Moves the rollouts of all models. One at a time may: making one takes the journal's next epoch.

    ``tick`` and the commands may be called from different threads. After a promotion the old baseline's replicas are
    kept: whoever needs their room unloads them.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        reports: Path,
        traffic: Traffic,
        baselines: Mapping[str, int],
        tools: Tools,
        limits: Limits | None = None,
        reopen_s: Mapping[str, float] | None = None,
    ) -> None:
        """Take over: restore every rollout that has not ended and publish all routes as journaled.

        Args:
            journal: the database.
            reports: the folder of all rollouts' folders.
            traffic: the serving side.
            baselines: by model, as configured; a model that has had a rollout has its baseline in the database.
            tools: judge, clocks, randomness.
            limits: the defaults when None.
            reopen_s: by model, for how long after its end a rollout takes labels; a day where it is not said.
        """
        self._journal, self._exporter, self._traffic = journal, Exporter(journal, reports), traffic
        self._configured, self._tools, self._limits = dict(baselines), tools, limits or Limits()
        self._lock = threading.RLock()
        self._started_s = tools.monotonic()
        self._policies: dict[str, Policy] = {}
        self._looks: dict[str, Look] = {}
        self._noted: dict[str, tuple[Verdict, float]] = {}  # what was journaled of a rollout's judgements, and when
        self._entered: dict[str, tuple[datetime, float]] = {}  # the same moment on both clocks
        self._warm: set[tuple[str, Priority]] = set()  # whose replicas have been ready since this controller started
        self._faults: dict[str, str] = {}
        journal.take_epoch()
        self._late = LateLabels(
            journal,
            self._exporter,
            tools,
            reopen_s=reopen_s or {},
            note_s=self._limits.note_s,
            policy=self._policy,
            baseline=self.baseline,
        )
        self._take_over()

    # Every second

    def tick(self) -> None:
        """Look at every rollout once. What goes wrong with one is logged and leaves the others alone.

        Raises:
            StaleControllerError: another controller has taken over; this one must not be used any more.
        """
        with self._lock:
            self._journal.check_epoch()
            for rollout in self._journal.unsettled():
                self._guard(self._advance, rollout)
            for deployment_id in self._late.busy():
                if (ended := self._journal.rollout(deployment_id)) is not None:
                    self._guard(self._reopen, ended)

    def _guard(self, act: Callable[[Rollout], object], rollout: Rollout) -> bool:
        """Whether the act came to its end."""
        try:
            act(rollout)
            self._faults.pop(rollout.deployment_id, None)
            return True
        except StaleControllerError:
            raise
        except Exception as error:  # noqa: BLE001 — the controller's tick is an isolation point: others go on
            what = f"{type(error).__name__}: {error}"
            if self._faults.get(rollout.deployment_id) != what:
                _LOG.warning("rollout %s: %s", rollout.deployment_id, what, exc_info=error)
            self._faults[rollout.deployment_id] = what
            return False

    def _advance(self, rollout: Rollout) -> None:
        if not rollout.position.ended:
            look = self._look(rollout)
            policy = self._policy(rollout)
            decision = decide(
                rollout.position,
                look,
                policy,
                patience_s=self._patience_s(rollout),
                load_limit_s=self._limits.load_s,
            )
            rollout = self._note(rollout, look) if decision is None else self._move(rollout, decision, look, GATES)
        self._apply(rollout)

    def _reopen(self, rollout: Rollout) -> None:
        """Judge an ended rollout anew, where labels came since."""
        if (look := self._late.advance(rollout)) is not None:
            self._looks[rollout.deployment_id] = look

    # Read and judge

    def _look(self, rollout: Rollout) -> Look:
        readiness, why = self._load(rollout)
        look = Look(readiness=readiness, why=why)
        if rollout.position.state is not State.LOADING:
            look = self._judge(rollout, look)
        self._looks[rollout.deployment_id] = look
        return look

    def _load(self, rollout: Rollout) -> tuple[Readiness, str]:
        wanted = priority(rollout.position)
        try:
            readiness, why = self._traffic.load(rollout.model, rollout.candidate, wanted)
        except Exception as error:  # noqa: BLE001 — the serving side is another process: its failure is a reading
            return Readiness.LOADING, f"{type(error).__name__}: {error}"
        if readiness is Readiness.READY:
            self._warm.add((rollout.deployment_id, wanted))
        return readiness, why

    def _judge(self, rollout: Rollout, look: Look) -> Look:
        policy = self._policy(rollout)
        try:
            snapshot = self._traffic.snapshot(rollout.deployment_id)
            check_complete(snapshot.heads, self._journal.heads(rollout.deployment_id))
            stage, stages, elapsed_s = rollout.position.stage, rollout.stages, self._elapsed_s(rollout)
            judged = partial(
                self._tools.judge,
                policy,
                stage=stage,
                stages=stages,
                elapsed_s=elapsed_s,
                doubts=self._tools.find_doubts(policy, snapshot, stage=stage, stages=stages, elapsed_s=elapsed_s),
            )
            look = replace(look, judgement=judged(snapshot.evidence), snapshot=snapshot)
            return replace(look, turned=turned_by_labels(self._looks.get(rollout.deployment_id), look, judged))
        except Exception as error:  # noqa: BLE001 — a source or a gate that breaks is a verdict (ERROR), not a crash
            reason = str(error) if isinstance(error, EvidenceError) else f"{type(error).__name__}: {error}"
            return replace(look, judgement=self._tools.judge_broken(policy, reason))

    def _policy(self, rollout: Rollout) -> Policy:
        if rollout.deployment_id not in self._policies:
            self._policies[rollout.deployment_id] = self._tools.restore_policy(rollout.policy)
        return self._policies[rollout.deployment_id]

    def _elapsed_s(self, rollout: Rollout) -> float:
        """Seconds at this position: across restarts by the wall clock, within one run by the monotonic one."""
        now_s = self._tools.monotonic()
        known = self._entered.get(rollout.deployment_id)
        if known is None or known[0] != rollout.entered_at:
            away_s = (self._tools.now() - rollout.entered_at).total_seconds()
            known = rollout.entered_at, now_s - max(away_s, 0.0)
            self._entered[rollout.deployment_id] = known
        return now_s - known[1]

    def _patience_s(self, rollout: Rollout) -> float:
        """What counts against a limit: not the time in which no controller was there to see anything."""
        return min(self._elapsed_s(rollout), self._tools.monotonic() - self._started_s)

    # Journal

    def _move(
        self, rollout: Rollout, decision: Decision, look: Look | None, actor: str, *, to: int | None = None
    ) -> Rollout:
        event = precise(rollout.position, decision.event, rollout.stages)
        reason = explain(decision.reason, look, failed=decision.event is Event.FAIL)
        moved = replace(
            rollout,
            position=step(rollout.position, event, rollout.stages, to=to),
            entered_at=self._tools.now(),
            event=event.value,
            reason=reason,
            confidence=look.confidence if look else 0.0,
        )
        written = self._write(moved, event.value, reason, actor, look)
        _LOG.info("rollout %s: %s → %s: %s", rollout.deployment_id, event, moved.position.state, reason)
        return written

    def _note(self, rollout: Rollout, look: Look) -> Rollout:
        """Journal a judgement that moved nothing: when its verdict is new, else now and then."""
        snapshot = look.snapshot
        if look.judgement is None:
            return rollout
        verdict, at_s = self._noted.get(rollout.deployment_id, (None, 0.0))
        stale = self._tools.monotonic() - at_s >= self._limits.note_s
        if verdict is not look.judgement.verdict or stale or look.turned:
            return self._write(rollout, "judgement", explain(look.judgement.reason, look), GATES, look)
        if snapshot is not None:
            self._save_heads(rollout, snapshot.heads)
        return rollout

    def _save_heads(self, rollout: Rollout, heads: Iterable[Head]) -> None:
        known = self._journal.heads(rollout.deployment_id)
        news = [head for head in heads if known.get(head.chain) != head]
        if news:
            self._journal.save_heads(rollout.deployment_id, news)

    def _write(self, rollout: Rollout, event: str, reason: str, actor: str, look: Look | None) -> Rollout:
        body = self._body(rollout, event, reason, actor, look)
        heads = look.snapshot.heads if look and look.snapshot else ()
        written = self._journal.record(rollout, body, heads=heads)
        if look is not None and look.judgement is not None:
            self._noted[rollout.deployment_id] = look.judgement.verdict, self._tools.monotonic()
        return written

    def _body(self, rollout: Rollout, event: str, reason: str, actor: str, look: Look | None) -> Entry:
        return entry_body(rollout, at=self._tools.now(), event=event, reason=reason, actor=actor, look=look)

    # Effect

    def _apply(self, rollout: Rollout) -> None:
        """Make the serving side and the folder what the journal says; safe to repeat."""
        if rollout.position.ended:
            self._settle(rollout)
        else:
            self._traffic.route(self._route(rollout))
            self._exporter.export(rollout)

    def _route(self, rollout: Rollout) -> Route:
        """The route of an active rollout: without its replicas, as after a restart, the baseline's alone."""
        position = rollout.position
        # While staging for its first clients the candidate goes on in shadow, on the replicas that it had.
        serving = Priority.SHADOW if position.state is State.STAGING else priority(position)
        if position.state is State.LOADING or (rollout.deployment_id, serving) not in self._warm:
            return self._plain_route(rollout.model)
        return Route(
            model=rollout.model,
            baseline=rollout.baseline,
            candidate=rollout.candidate,
            weight=rollout.weight,
            deployment_id=rollout.deployment_id,
            stage=position.stage,
            salt=rollout.salt,
            mirror=True,
            limits=self._policy(rollout).limits(rollout.tolerance),
        )

    def _plain_route(self, model: str) -> Route:
        return Route(model=model, baseline=self.baseline(model))

    def _settle(self, rollout: Rollout) -> None:
        """What follows from an end: first the route, then the candidate's replicas, then the papers."""
        active = self._journal.active(rollout.model)
        self._traffic.route(self._route(active) if active else self._plain_route(rollout.model))
        needed = {self.baseline(rollout.model), *((active.baseline, active.candidate) if active else ())}
        if rollout.candidate not in needed:
            self._traffic.unload(rollout.model, rollout.candidate)
        rehearsing = (active.baseline, active.candidate) if active else ()
        for version in {rollout.baseline, rollout.candidate}.difference(rehearsing):
            self._traffic.unload_shadow(rollout.model, version)
        self._exporter.export(rollout)
        write_reports(self._exporter.folder(rollout))
        self._journal.settle(rollout.deployment_id)
        self._late.watch(rollout)
        self._forget(rollout)

    def _forget(self, rollout: Rollout) -> None:
        self._warm = {key for key in self._warm if key[0] != rollout.deployment_id}
        for memory in (self._policies, self._noted, self._entered):
            memory.pop(rollout.deployment_id, None)

    # Taking over

    def _take_over(self) -> None:
        unsettled = self._journal.unsettled()
        for model in sorted({*self._configured, *self._journal.baselines()} - {each.model for each in unsettled}):
            self._traffic.route(self._plain_route(model))
        for rollout in unsettled:
            if not self._guard(self._resume, rollout):  # whatever is wrong with it, the model's clients are answered
                self._traffic.route(self._plain_route(rollout.model))

    def _resume(self, rollout: Rollout) -> None:
        if not rollout.position.ended:
            reason = f"controller of epoch {self._journal.epoch} resumes at {rollout.position.state}"
            rollout = self._write(rollout, "restart", reason, "controller", None)
            self._load(rollout)
        self._apply(rollout)

    # Commands

    def baseline(self, model: str) -> int:
        """The version that answers a model's clients.

        Raises:
            RolloutError: the model is unknown.
        """
        version = self._journal.baselines().get(model, self._configured.get(model))
        if version is None:
            raise RolloutError(f"{model}: unknown model; expected one of {sorted(self._configured)}")
        return version

    def start(
        self,
        model: str,
        candidate: int,
        policy: Policy,
        *,
        stages: Sequence[int],
        tolerance: float,
        actor: str,
        supersede: bool = False,
        notes: Sequence[str] = (),
    ) -> str:
        """Begin a rollout; returns its deployment id.

        Args:
            model: by name.
            candidate: its version.
            policy: what judges it; frozen into the journal.
            stages: weights in percent, rising from 0 to 100.
            tolerance: of max |Δscore| per item; frozen too.
            actor: who starts it.
            supersede: end the model's active rollout, if there is one.
            notes: for the report, as how many of the requests' images are distinct.

        Raises:
            RolloutError: another rollout is active, the candidate is the baseline, or the stages are wrong.
        """
        with self._lock:
            baseline, active = self.baseline(model), self._journal.active(model)
            if candidate == baseline:
                raise RolloutError(f"{model}: candidate: version {candidate} is the baseline already")
            if active is not None and not supersede:
                raise RolloutError(f"{model}: the rollout {active.deployment_id} is active; end it, or supersede it")
            now = self._tools.now()
            rollout = Rollout(
                deployment_id=self._new_id(model, candidate, now),
                model=model,
                baseline=baseline,
                candidate=candidate,
                policy=policy.to_json(),
                stages=check_stages(stages),
                tolerance=tolerance,
                salt=self._tools.salt(),
                facts={
                    "baseline": self._describe(model, baseline),
                    "candidate": self._describe(model, candidate),
                    "notes": list(notes),
                },
                started_at=now,
                entered_at=now,
                reason=f"version {candidate} against baseline {baseline} under the policy {policy.name}",
            )
            self._begin(rollout, active, actor)
            return rollout.deployment_id

    def _begin(self, rollout: Rollout, active: Rollout | None, actor: str) -> None:
        first = {**self._body(rollout, "start", rollout.reason, actor, None), "rollout": rollout.to_json()}
        ended = self._superseded(active, rollout, actor) if active else None
        started = self._journal.create(rollout, first, ends=ended)
        _LOG.info("rollout %s: started by %s", rollout.deployment_id, actor)
        for each in (active and self._journal.rollout(active.deployment_id), started):
            if each is not None:
                self._guard(self._apply, each)

    def _superseded(self, active: Rollout, by: Rollout, actor: str) -> tuple[Rollout, Entry]:
        reason, event = f"superseded by {by.deployment_id}", Event.SUPERSEDE
        look = self._looks.get(active.deployment_id)
        ended = replace(
            active,
            position=step(active.position, event, active.stages),
            entered_at=by.started_at,
            event=event.value,
            reason=reason,
            confidence=look.confidence if look else 0.0,
        )
        return ended, self._body(ended, event.value, reason, actor, look)

    def _new_id(self, model: str, candidate: int, now: datetime) -> str:
        name = f"{model}-{candidate}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        taken = {rollout.deployment_id for rollout in self._journal.rollouts(model)}
        again = (f"{name}-{number}" for number in range(2, len(taken) + 3))
        return next(each for each in (name, *again) if each not in taken)

    def _describe(self, model: str, version: int) -> dict[str, Any]:
        try:
            return dict(orjson.loads(orjson.dumps(self._traffic.describe(model, version), default=str)))
        except Exception as error:  # noqa: BLE001 — facts are for the report; without them the rollout still runs
            return {"unknown": f"{type(error).__name__}: {error}"}

    def pause(self, model: str, *, actor: str, reason: str = "") -> RolloutStatus:
        """Stop advancing; the weight stays, evidence goes on, and harm still rolls back."""
        return self._command(model, Event.PAUSE, actor, reason)

    def resume(self, model: str, *, actor: str, reason: str = "") -> RolloutStatus:
        """Go on where it was paused; the stage's bake time and budget start anew."""
        return self._command(model, Event.RESUME, actor, reason)

    def promote(self, model: str, *, actor: str, reason: str = "", to: int | None = None) -> RolloutStatus:
        """Raise the weight to the next stage, or to that of a later one, whatever the gates say; harm excepted."""
        return self._command(model, Event.PROMOTE, actor, reason, to=to)

    def abort(self, model: str, *, actor: str, reason: str = "") -> RolloutStatus:
        """Give the rollout up without a word on the candidate; the baseline serves alone."""
        return self._command(model, Event.ABORT, actor, reason)

    def rollback(self, model: str, *, actor: str, reason: str = "") -> RolloutStatus:
        """Send everybody back to the baseline."""
        return self._command(model, Event.ROLL_BACK, actor, reason)

    def _command(self, model: str, event: Event, actor: str, reason: str, *, to: int | None = None) -> RolloutStatus:
        with self._lock:
            rollout = self._journal.active(model)
            if rollout is None:
                raise RolloutError(f"{model}: no rollout is active")
            decision = Decision(event=event, reason=reason or f"{event} by {actor}")
            step(rollout.position, event, rollout.stages, to=to)  # refuses before anything is read
            # Only a promotion looks anew: an operator can end a rollout whose evidence cannot even be read.
            look = self._look(rollout) if event is Event.PROMOTE else self._looks.get(rollout.deployment_id)
            if event is Event.PROMOTE and look is not None and look.verdict is Verdict.FAIL:
                raise RolloutError(f"{model}: cannot promote: harm is proved, the next tick rolls it back")
            moved = self._move(rollout, decision, look, actor, to=to)
            self._guard(self._apply, moved)
            return self._status(self._journal.rollout(moved.deployment_id) or moved)

    def status(self, model: str) -> RolloutStatus:
        """How the model's active rollout stands, or how its last one ended.

        Raises:
            RolloutError: the model is unknown or has had no rollout.
        """
        with self._lock:
            self.baseline(model)
            rollouts = self._journal.rollouts(model)
            if not rollouts:
                raise RolloutError(f"{model}: no rollout yet")
            return self._status(self._journal.active(model) or rollouts[-1])

    def find(self, model: str, deployment_id: str | None = None) -> Rollout:
        """A model's rollout by its id; without one the active rollout, or else the last.

        Raises:
            RolloutError: the model is unknown, or has no such rollout.
        """
        if deployment_id is None:
            return self.status(model).rollout
        self.baseline(model)
        rollout = self._journal.rollout(deployment_id)
        if rollout is None or rollout.model != model:
            raise RolloutError(f"{model}: rollout: expected the id of one of its rollouts, got {deployment_id!r}")
        return rollout

    def add_labels(self, ended: Rollout, labels: Sequence[Label]) -> AddResult:
        """Take labels of a rollout that has ended: they join its evidence, and its verdict is judged anew.

        Raises:
            RolloutError: it takes no labels any more, or never had evidence. EvidenceError: they could not be stored.
        """
        with self._lock:
            return self._late.add(self._journal.rollout(ended.deployment_id) or ended, labels)

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._late.close()

    def _status(self, rollout: Rollout) -> RolloutStatus:
        look = self._looks.get(rollout.deployment_id)
        snapshot = look.snapshot if look else None
        return RolloutStatus(
            rollout=rollout,
            elapsed_s=(self._tools.now() - rollout.entered_at).total_seconds(),
            judgement=look.judgement if look else None,
            accounting=snapshot.accounting if snapshot else {},
            coverage=snapshot.coverage if snapshot else Ledger(),
            findings=reported(snapshot.evidence) if snapshot else (),
            heads=tuple(self._journal.heads(rollout.deployment_id).values()),
            fault=self._faults.get(rollout.deployment_id),
            reopened=self._reopened(rollout),
        )

    def _reopened(self, rollout: Rollout) -> Entry | None:
        """The entry that reopened an ended rollout's verdict as it stands; entries after an end name it."""
        last = self._journal.entry(rollout.deployment_id, rollout.seq) if rollout.position.ended else None
        number = last["reopening"]["entry"] if last is not None and "reopening" in last else None
        return None if number is None else self._journal.entry(rollout.deployment_id, number)
