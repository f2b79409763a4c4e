"""The control side: the rollouts' controller, the routing table it publishes, and the evidence it gathers.

Routers call ``exchange`` in a long poll: they bring their durable evidence and take the table. Nothing here knows Ray.
"""

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from models.errors import SpecError, UnderstudyError
from models.repository import Repository
from models.room import Room, shortage
from models.spec import Resources, load_spec
from rollout.traffic import Head, Priority, Readiness, Route, Snapshot
from serving.config import Config
from serving.directory import Directory, Process
from serving.router import Table
from shadow.accounting import Ledger
from shadow.cells import PLAIN
from shadow.errors import EvidenceError
from shadow.evidence import Evidence
from shadow.labels import CHAIN as LABELS_CHAIN
from shadow.labels import Label, LabelJoin
from shadow.store import read_segment
from shadow.verify import evidence_at

_log = logging.getLogger("understudy.control")
LEASE_S: Final = 30.0
SILENCE_S: Final = 5.0


class Host(Protocol):
    """Who runs model replicas: Ray Serve. Every call returns at once."""

    def ensure(self, model: str, version: int, priority: Priority) -> None:
        """Have replicas of this version at this priority; again and again does no harm."""

    def remove(self, model: str, version: int, priority: Priority) -> None:
        """Have none."""

    def lacks(self, model: str) -> str:
        """What is missing to load a candidate of this model beside all that runs; "" when nothing is."""

    def room(self) -> Room | None:
        """The memory of the machine that replicas run on; None of several, where each replica sees to its own."""

    def hosted(self) -> Mapping[tuple[str, int, Priority], tuple[Readiness, str]]:
        """All that is hosted, and how far each is (with a reason if it failed)."""


@dataclass(slots=True)
class _Sources:
    """What is known of one rollout's evidence, by chain; and when routers were last heard."""

    labels: LabelJoin
    chains: dict[str, tuple[Evidence, Head]]
    # With the moment when each was last told.
    accounts: dict[str, tuple[Ledger, float]]
    errors: dict[str, str] = field(default_factory=dict)  # by router
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)


class ControlTraffic:
    """Implements ``rollout.traffic.Traffic``. Called from the controller's thread and from the exchange's loop."""

    def __init__(
        self,
        config: Config,
        directory: Directory,
        host: Host,
        *,
        epoch: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        heads: Callable[[str], Mapping[str, Head]],
    ) -> None:
        self._config, self._directory, self._host, self._loop = config, directory, host, loop
        self._repository = Repository(config.repository)
        self._lock = threading.Lock()
        self._joining = threading.Lock()  # a label join is used by one thread at a time
        self._routes: dict[str, Route] = {}
        self._settled: dict[str, Route] = {}  # the routes whose effects on replicas have been carried out
        self._epoch, self._version = epoch, 0  # the epoch is the journal's, once it has taken one
        self._changed = asyncio.Event()
        self._sources: dict[str, _Sources] = {}
        self._recorded_heads = heads
        self._previous: dict[str, int] = {}
        # By router: when, its pid, and that of its shadow process; those silent since are dropped.
        self._heard: dict[str, tuple[float, int, int | None]] = {}

    # -- rollout.traffic.Traffic ---------------------------------------------------------------------------------------

    def snapshot(self, deployment_id: str) -> Snapshot:
        """Merged durable evidence; see ``Traffic.snapshot``."""
        sources = self._source(deployment_id)
        with self._lock:
            silent = not any(map(self._is_heard, self._heard))
        if silent:
            raise EvidenceError(f"no router was heard for {SILENCE_S:.0f} s")
        with self._lock:
            # What a router lost before it died is stated by the gap in its chain, and no longer a present fault.
            faults = {error for router, error in sources.errors.items() if self._is_heard(router)}
            if faults:
                raise EvidenceError("; ".join(sorted(faults)))
            evidence = sum((mine for mine, _ in sources.chains.values()), Evidence())
            heads = [head for _, head in sources.chains.values()]
            ledgers = {chain: _as_it_stands(*account) for chain, account in sources.accounts.items()}
            reasons: Counter[str] = Counter()
            for each in sources.reasons.values():
                reasons.update(each)
        with self._joining:
            sources.labels.advance(within={head.chain: head.segments for head in heads})
            labelled, head = sources.labels.snapshot()
        evidence += labelled
        heads += [head] if head is not None else []
        return Snapshot(
            evidence=evidence,
            heads=tuple(sorted(heads, key=lambda head: head.chain)),
            accounting=sum(ledgers.values(), Ledger()).total.to_json(),
            # Where it is known what was sampled.
            coverage=sum((each for each in ledgers.values() if each.company), Ledger()),
            accounts={chain: ledger.total for chain, ledger in ledgers.items()},
            reasons=reasons,
        )

    def load(self, model: str, version: int, priority: Priority) -> tuple[Readiness, str]:
        """See ``Traffic.load``."""
        if priority is Priority.SHADOW and not self._answers_clients(model, version):
            self._remove(model, version, Priority.NORMAL)  # of an earlier rollout: in shadow it would be too high
        wanted, hosted = self._wanted(model, version, priority), self._host.hosted()
        if missing := [each for each in wanted if each not in hosted]:
            if lacks := self._lacks(missing):  # what a superseded rollout held may still be on its way out
                return Readiness.LOADING, f"no room to load version {version} beside the baseline: it needs {lacks}"
            for each in missing:
                self._host.ensure(*each)
            hosted = self._host.hosted()
        for each in wanted:
            state, reason = self._state(hosted, each)
            if each[2] is priority and state is not Readiness.READY:
                return state, reason if each[1] == version else f"the baseline's twin: {reason}"
        return Readiness.READY, ""

    def lacks(self, model: str, version: int) -> str:
        """What memory is missing for all the replicas that a rollout of a version will ask for; "" when nothing is."""
        wanted, hosted = self._wanted(model, version, Priority.NORMAL), self._host.hosted()
        return self._lacks(each for each in wanted if each not in hosted)

    def _wanted(self, model: str, version: int, priority: Priority) -> list[tuple[str, int, Priority]]:
        """In shadow for as long as the rollout lasts: what is mirrored never goes to replicas that answer clients."""
        wanted = [(model, version, priority), (model, version, Priority.SHADOW), *self._twin(model)]
        return list(dict.fromkeys(wanted))

    def _lacks(self, missing: Iterable[tuple[str, int, Priority]]) -> str:
        """What replicas of these declare beyond what is free."""
        needs = [
            resources
            for model, version, _ in missing
            if (resources := self._declared(model, version)) != Resources()
            for _ in range(self._config.models[model].replicas.least)
        ]
        room = self._host.room() if needs else None
        return shortage(needs, room) if room is not None else ""

    def _declared(self, model: str, version: int) -> Resources:
        """What a version declares; nothing where its ``model.yaml`` is wrong: its replicas say what is."""
        try:
            return load_spec(self._config.repository / model / str(version), name=model, version=version).resources
        except SpecError:
            return Resources()

    def _state(
        self, hosted: Mapping[tuple[str, int, Priority], tuple[Readiness, str]], wanted: tuple[str, int, Priority]
    ) -> tuple[Readiness, str]:
        state, reason = hosted.get(wanted, (Readiness.LOADING, ""))
        if state is Readiness.READY and not self._announced(*wanted):
            return Readiness.LOADING, "its replicas have not announced themselves yet"
        return state, reason

    def _twin(self, model: str) -> list[tuple[str, int, Priority]]:
        """The baseline in shadow, where it is wanted: what the candidate is compared with at its own priority."""
        route = self._routes.get(model)
        if route is None or not self._config.models[model].mirror.twin:
            return []
        return [(model, route.baseline, Priority.SHADOW)]

    def _answers_clients(self, model: str, version: int) -> bool:
        route = self._routes.get(model)
        return route is not None and (version == route.baseline or (version == route.candidate and route.weight > 0))

    def _is_heard(self, router: str) -> bool:
        return router in self._heard and _is_recent(self._heard[router][0])

    def _hear(self, router: str, pid: int, shadow_pid: int | None) -> None:
        """Note that a router lives, and forget those that do not: each restart brings a new one."""
        with self._lock:
            self._heard[router] = (time.monotonic(), pid, shadow_pid)
            for other in [each for each in self._heard if not self._is_heard(each)]:
                del self._heard[other]
                for sources in self._sources.values():
                    sources.errors.pop(other, None)

    def unload(self, model: str, version: int) -> None:
        """See ``Traffic.unload``."""
        route = self._routes.get(model)
        if route is not None and version == route.baseline:
            return
        for priority in Priority:
            self._remove(model, version, priority)

    def unload_shadow(self, model: str, version: int) -> None:
        """See ``Traffic.unload_shadow``."""
        self._remove(model, version, Priority.SHADOW)

    def route(self, route: Route) -> None:
        """See ``Traffic.route``."""
        with self._lock:
            if self._routes.get(route.model) != route:
                self._routes[route.model] = route
                self._version += 1
                self._loop.call_soon_threadsafe(self._wake)
        before = self._settled.get(route.model)
        if before != route:
            self._settle(route, before)
            self._settled[route.model] = route

    def _settle(self, route: Route, before: Route | None) -> None:
        """What a published route asks of the replicas; where the host fails half-way, the next tick does it again."""
        self._host.ensure(route.model, route.baseline, Priority.NORMAL)
        if before is None:
            return
        if before.baseline != route.baseline:
            self._keep_warm(route, before.baseline)
        if before.deployment_id not in (None, route.deployment_id):
            self._forget(before.deployment_id)

    def describe(self, model: str, version: int) -> Mapping[str, Any]:
        """See ``Traffic.describe``; reads the repository, and checks the artifact's hash again."""
        spec = self._repository.open(model, version).spec
        return {"sha256": spec.sha256, "backend": spec.backend, "provenance": dict(spec.provenance)}

    # -- labels --------------------------------------------------------------------------------------------------------

    def add_labels(self, deployment_id: str, labels: list[Label]) -> Mapping[str, int]:
        """Hand late ground truth to a running rollout's join."""
        join = self._source(deployment_id).labels
        with self._joining:
            return asdict(join.add(labels))

    # -- exchange ------------------------------------------------------------------------------------------------------

    async def exchange(self, report: Mapping[str, Any], *, wait_s: float) -> dict[str, Any]:
        """Take a router's report; give back the table as soon as it is newer than the router's, or after ``wait_s``."""
        # In a thread: the first report of a rollout after a restart has its evidence read from disk.
        await asyncio.to_thread(self._take, report)
        changed = self._changed
        if tuple(report["table"]) >= (self._epoch(), self._version):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), wait_s)
        return self.table()

    def table(self) -> dict[str, Any]:
        """The routing table as plain values."""
        with self._lock:
            table = Table(self._epoch(), self._version, LEASE_S, dict(self._routes))
        return asdict(table)

    def _wake(self) -> None:
        """Wake every waiting router; those that come later wait for the next change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _take(self, report: Mapping[str, Any]) -> None:
        self._hear(report["router"], report["pid"], report["shadow_pid"])
        for lane in report["lanes"]:
            if self._route_of(lane["deployment_id"]) is None:
                continue  # it has ended: what comes now is after the last decision
            try:
                sources = self._source(lane["deployment_id"])
            except (UnderstudyError, OSError):
                continue  # what is on disk is damaged: ``snapshot`` says so, and the router still gets its table
            with self._lock:
                sources.errors.pop(report["router"], None)
                chain = lane["chain"]
                sources.accounts[chain] = Ledger.from_json(lane["ledger"]), time.monotonic()
                sources.reasons[chain] = lane["reasons"]
                if lane["error"]:
                    sources.errors[report["router"]] = lane["error"]
                if lane["head"] is not None:
                    head = Head(**lane["head"])
                    sources.chains[head.chain] = (Evidence.from_json(lane["evidence"]), head)

    def _route_of(self, deployment_id: str) -> Route | None:
        return next((route for route in self._routes.values() if route.deployment_id == deployment_id), None)

    def _source(self, deployment_id: str) -> _Sources:
        """A rollout's sources; after a restart begun from what the database recorded of the evidence on disk."""
        known = self._sources.get(deployment_id)
        if known is not None:
            return known
        with self._joining:  # two threads may ask for it first, but one alone may open its join
            return self._sources.get(deployment_id) or self._open_source(deployment_id)

    def _open_source(self, deployment_id: str) -> _Sources:
        route = self._route_of(deployment_id)
        if route is None:
            raise EvidenceError(f"{deployment_id}: not routed at present: no evidence comes in")
        folder = self._config.reports / deployment_id / "evidence"
        folder.mkdir(parents=True, exist_ok=True)
        recorded = self._recorded_heads(deployment_id)
        heads = [head for chain, head in recorded.items() if chain != LABELS_CHAIN and head.segments]
        chains = {head.chain: (evidence_at(folder, [head]), head) for head in heads}
        accounts = {
            head.chain: (
                Ledger({PLAIN: read_segment(folder, head.chain, head.segments).header().account}),
                time.monotonic(),
            )
            for head in heads
        }
        labels = LabelJoin(
            folder,
            deployment_id,
            route.limits,
            within_s=self._config.models[route.model].rollout.labels_within_s,
            clock=time.time,
        )
        with self._lock:
            return self._sources.setdefault(deployment_id, _Sources(labels=labels, chains=chains, accounts=accounts))

    def _forget(self, deployment_id: str | None) -> None:
        """Let go of an ended rollout; its files stay."""
        with self._lock:
            ended = self._sources.pop(deployment_id or "", None)
        if ended is not None:
            with self._joining:
                ended.labels.close()

    # -- processes -----------------------------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Those that requests pass through: the routers heard lately with their shadow processes, and the replicas that
        announced themselves.
        """
        with self._lock:
            heard = [(pid, shadow_pid) for at, pid, shadow_pid in self._heard.values() if _is_recent(at)]
        routers = [Process(role="router", pid=pid) for pid, _ in heard]
        shadows = [Process(role="shadow", pid=pid) for _, pid in heard if pid is not None]
        replicas = [
            Process(role="replica", pid=each.pid, model=each.model, version=each.version, priority=str(each.priority))
            for each in self._directory.replicas().values()
        ]
        routers = sorted(routers, key=lambda each: each.pid) + sorted(shadows, key=lambda each: each.pid)
        return routers + sorted(replicas, key=lambda each: each.name)

    # -- replicas ------------------------------------------------------------------------------------------------------

    def _announced(self, model: str, version: int, priority: Priority) -> bool:
        return any(
            (replica.model, replica.version, replica.priority) == (model, version, priority)
            for replica in self._directory.replicas().values()
        )

    def _remove(self, model: str, version: int, priority: Priority) -> None:
        if (model, version, priority) in self._host.hosted():
            self._host.remove(model, version, priority)

    def _keep_warm(self, route: Route, previous: int) -> None:
        """Keep the replaced baseline; let go of the one before it."""
        older = self._previous.pop(route.model, None)
        self._previous[route.model] = previous
        if older is not None and older not in (previous, route.baseline, route.candidate):
            self._remove(route.model, older, Priority.NORMAL)


def _is_recent(instant: float) -> bool:
    """Whether a router that was heard then still counts as alive."""
    return time.monotonic() - instant <= SILENCE_S


def _as_it_stands(ledger: Ledger, told: float) -> Ledger:
    """A lane's account, or what is left of it where nobody keeps it any more; it comes back if its router does."""
    return ledger if _is_recent(told) else ledger.abandoned()
