"""What the tests of journal, controller and reports play on: the seams, with a hand on each."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rollout.controller import Controller, Judge, Limits, Tools
from rollout.entries import Entry
from rollout.journal import Journal, Rollout
from rollout.judgement import Doubt, GateResult, Judgement, Verdict
from rollout.policy import Policy
from rollout.traffic import Head, Priority, Readiness, Route, Snapshot
from shadow.evidence import ArmSums, Evidence, LabelCells, StageSums

MODEL, BASELINE, CANDIDATE = "digits", 1, 2
STAGES = (0, 5, 20, 50, 100)
START = datetime(2026, 11, 21, 2, 30, 15, tzinfo=UTC)


class Crash(BaseException):
    """The process dies here: no handler of the code under test may see it."""


class Fuse:
    """Burns down with every call of ``burn``, and then kills."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left < 0:
            self.left = None
            raise Crash


class Clock:
    def __init__(self) -> None:
        self.at_s = 0.0
        self.cost_s = 0.0  # of every look at it

    def monotonic(self) -> float:
        self.at_s += self.cost_s
        return self.at_s

    def now(self) -> datetime:
        return START + timedelta(seconds=self.at_s)


class FlammableJournal(Journal):
    """A journal whose process may die just before or just after any transaction."""

    fuse = Fuse()

    def _burning(self, write: Callable[[], Any]) -> Any:
        self.fuse.burn()
        result = write()
        self.fuse.burn()
        return result

    def create(self, rollout: Rollout, body: Entry, *, ends: tuple[Rollout, Entry] | None = None) -> Rollout:
        written: Rollout = self._burning(lambda: super(FlammableJournal, self).create(rollout, body, ends=ends))
        return written

    def record(self, rollout: Rollout, body: Entry, *, heads: Iterable[Head] = ()) -> Rollout:
        written: Rollout = self._burning(lambda: super(FlammableJournal, self).record(rollout, body, heads=heads))
        return written

    def annotate(self, rollout: Rollout, body: Entry, *, heads: Iterable[Head] = ()) -> Rollout:
        written: Rollout = self._burning(lambda: super(FlammableJournal, self).annotate(rollout, body, heads=heads))
        return written

    def save_heads(self, deployment_id: str, heads: Iterable[Head]) -> None:
        self._burning(lambda: super(FlammableJournal, self).save_heads(deployment_id, heads))

    def settle(self, deployment_id: str) -> None:
        self._burning(lambda: super(FlammableJournal, self).settle(deployment_id))


@dataclass
class FakeTraffic:
    """The serving side: what was asked of it, and what it shall answer."""

    fuse: Fuse = field(default_factory=Fuse)
    routes: dict[str, Route] = field(default_factory=dict)
    loaded: set[tuple[str, int, Priority]] = field(default_factory=set)
    unloaded: list[tuple[str, int]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    readiness: dict[Priority, tuple[Readiness, str]] = field(
        default_factory=lambda: dict.fromkeys(Priority, (Readiness.READY, ""))
    )
    snapshots: dict[str, Snapshot] = field(default_factory=lambda: defaultdict(snapshot))
    broken: dict[str, Exception] = field(default_factory=dict)  # by method
    torn: list[str] = field(default_factory=list)  # what was unloaded while a route still named it

    def _called(self, what: str, *details: object) -> None:
        self.calls.append(" ".join(map(str, (what, *details))))
        self.fuse.burn()
        if what in self.broken:
            raise self.broken[what]

    def snapshot(self, deployment_id: str) -> Snapshot:
        self._called("snapshot", deployment_id)
        return self.snapshots[deployment_id]

    def load(self, model: str, version: int, priority: Priority) -> tuple[Readiness, str]:
        self._called("load", model, version, priority)
        self.loaded.add((model, version, priority))
        return self.readiness[priority]

    def unload(self, model: str, version: int) -> None:
        self._called("unload", model, version)
        self.unloaded.append((model, version))
        self.loaded -= {(model, version, priority) for priority in Priority}
        route = self.routes.get(model)
        if route is None or version in (route.baseline, route.candidate):
            self.torn.append(f"{model} {version} while {route}")

    def unload_shadow(self, model: str, version: int) -> None:
        self._called("unload_shadow", model, version)
        self.loaded.discard((model, version, Priority.SHADOW))

    def route(self, route: Route) -> None:
        self._called("route", route.model, route.weight)
        self.routes[route.model] = route

    def describe(self, model: str, version: int) -> Mapping[str, Any]:
        self._called("describe", model, version)
        return {"sha256": f"{version:064d}", "backend": "onnxruntime", "provenance": {"dataset": "digits"}}


def head(chain: str = "router-1", segments: int = 1, sha256: str = "a" * 64) -> Head:
    return Head(chain=chain, segments=segments, rows=10 * segments, sha256=sha256)


def snapshot(segments: int = 1, **heads: Head) -> Snapshot:
    return Snapshot(
        evidence=Evidence({0: StageSums(candidate=ArmSums(requests=10), items=10, agree=9, labels=LabelCells(both=4))}),
        heads=tuple(heads.values()) or (head(segments=segments),),
        accounting={"sampled": 10, "mirrored": 9, "pending": 0, "shed": 1, "too_large": 0, "timed_out": 0, "failed": 0},
    )


def gate(verdict: Verdict, **changes: Any) -> GateResult:
    return GateResult(
        **{
            "gate": "error_rate",
            "requirement": "R2",
            "binding": True,
            "verdict": verdict,
            "threshold": "< 1 % to advance, > 1.5 % rolls back",
            "finding": "7 % (7 of 100)",
            "reason": f"error_rate says {verdict}",
            "n": 100,
            "estimate": 0.07,
            "interval": (0.03, 0.14),
            "log_e_harm": 4.0,
            **changes,
        }
    )


def judged(verdict: Verdict, confidence: float = 0.97, *gates: GateResult) -> Judgement:
    return Judgement(
        verdict=verdict,
        gates=gates or (gate(verdict),),
        log_m=4.0,
        confidence=confidence,
        reason=f"error_rate says {verdict}",
    )


class Stage:
    """A controller with everything around it; ``restart`` is a crash and a new process."""

    def __init__(
        self,
        folder: Path,
        *,
        limits: Limits | None = None,
        judge: Judge | None = None,
        reopen_s: Mapping[str, float] | None = None,
    ) -> None:
        self.folder, self.reports, self.limits, self.reopen_s = folder, folder / "reports", limits, reopen_s
        self.judge = judge or self._judge
        self.url = f"sqlite:///{folder / 'understudy.db'}"
        self.clock, self.traffic = Clock(), FakeTraffic()
        self.judgement: Judgement | Exception = judged(Verdict.HOLD)
        self.looks: list[tuple[int, float]] = []  # stage and elapsed_s, as the judge was asked
        self.journal, self.controller = self._open()

    def restart(self) -> None:
        self.controller.close()  # as the end of a process does with its files
        self.journal.close()
        self.journal, self.controller = self._open()

    def _open(self) -> tuple[FlammableJournal, Controller]:
        journal = FlammableJournal(self.url)
        journal.fuse = self.traffic.fuse
        return journal, Controller(
            journal=journal,
            reports=self.reports,
            traffic=self.traffic,
            baselines={MODEL: BASELINE, "faces": 7},
            tools=Tools(
                judge=self.judge,
                judge_broken=lambda _policy, reason: Judgement(
                    verdict=Verdict.ERROR, gates=(), log_m=0.0, confidence=0.0, reason=reason
                ),
                monotonic=self.clock.monotonic,
                now=self.clock.now,
                salt=lambda: "salt",
            ),
            limits=self.limits,
            reopen_s=self.reopen_s,
        )

    def _judge(
        self,
        _policy: Policy,
        _evidence: Evidence,
        *,
        stage: int,
        stages: Iterable[int],
        elapsed_s: float,
        doubts: Sequence[Doubt],
    ) -> Judgement:
        self.doubts = tuple(doubts)
        assert tuple(stages) == STAGES
        self.looks.append((stage, elapsed_s))
        if isinstance(self.judgement, Exception):
            raise self.judgement
        return self.judgement

    def start(self, candidate: int = CANDIDATE, *, supersede: bool = False, **changes: Any) -> str:
        return self.controller.start(
            MODEL,
            candidate,
            policy(**changes),
            stages=STAGES,
            tolerance=0.01,
            actor="ada",
            supersede=supersede,
            notes=["359 distinct test images"],
        )

    def tick(self, verdict: Verdict | None = None, *, after_s: float = 1.0) -> None:
        if verdict is not None:
            self.judgement = judged(verdict)
        self.clock.at_s += after_s
        self.controller.tick()

    def reach(self, weight: int) -> str:
        """A new rollout, passed on to this weight and then undecided."""
        deployment_id = self.start()
        self.tick(Verdict.HOLD)
        for _ in range(2 * len(STAGES)):
            if self.route.weight >= weight and self.route.mirror:
                break
            self.tick(Verdict.PASS)
        self.judgement = judged(Verdict.HOLD)
        assert self.route.weight == weight
        return deployment_id

    @property
    def route(self) -> Route:
        return self.traffic.routes[MODEL]

    @property
    def state(self) -> str:
        return self.controller.status(MODEL).rollout.position.state

    def events(self, deployment_id: str) -> list[str]:
        return [entry["event"] for entry in self.journal.entries(deployment_id)]


def policy(*, budget_s: float = 3600.0, on_budget: str = "roll_back") -> Policy:
    fields = {"name": "improvement", "min_requests": 0, "bake_s": 0.0, "gates": {"error_rate": {"mode": "binding"}}}
    return Policy.model_validate({**fields, "budget_s": float(budget_s), "on_budget": on_budget})
