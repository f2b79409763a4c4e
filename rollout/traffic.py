"""What rollout/ needs of the serving side; the control deployment satisfies it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from shadow.accounting import Account, Ledger
from shadow.evidence import Evidence, Limits
from shadow.store import Head

__all__ = ["Head", "Priority", "Readiness", "Route", "Snapshot", "Traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one model's traffic goes. ``weight`` is the candidate's share of clients' requests in percent.

    ``mirror`` says whether batches are mirrored to the other version. Without a rollout all of ``candidate``,
    ``deployment_id`` and ``mirror`` are empty. After promotion the candidate is the baseline of a plain route.
    """

    model: str
    baseline: int
    candidate: int | None = None
    weight: int = 0
    deployment_id: str | None = None
    stage: int = 0  # index into the rollout's stages: evidence is summed by it
    salt: str = ""  # of the split's hash; constant for one rollout
    mirror: bool = False
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Merged evidence of a rollout, all of it durable on disk, and the chain heads that it corresponds to.

    ``accounting`` is the mirror's: items sampled, mirrored, pending, shed, too_large, timed_out, failed. ``coverage``
    is the same by size and slice, as far as it is known: a router that is gone took its own along. Doubts of coverage
    rest on it. ``accounts`` is ``accounting`` by chain: what is lost of one whose writer is killed is counted by it.
    ``reasons`` says why the candidate failed requests, with counts; bounded, and for people: nothing is
    decided by it.
    """

    evidence: Evidence
    heads: tuple[Head, ...]
    accounting: Mapping[str, int]
    reasons: Mapping[str, int] = field(default_factory=dict)
    coverage: Ledger = field(default_factory=Ledger)
    accounts: Mapping[str, Account] = field(default_factory=dict)


class Priority(StrEnum):
    """How a candidate's replicas are scheduled: lowest while in shadow, normal before they answer clients."""

    SHADOW = "shadow"
    NORMAL = "normal"


class Readiness(StrEnum):
    """Where the loading of a version stands."""

    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Traffic(Protocol):
    """The serving side as the controller sees it. Every call returns at once and may be repeated at will."""

    def snapshot(self, deployment_id: str) -> Snapshot:
        """The evidence so far.

        Raises:
            shadow.errors.EvidenceError: a source is broken or silent: the controller reads it as ERROR.
        """

    def load(self, model: str, version: int, priority: Priority) -> tuple[Readiness, str]:
        """Ask for replicas of a candidate at this priority, and say how far they are (with a reason if FAILED).

        In shadow there are some of it and of the baseline, too, for as long as its rollout lasts.
        """

    def unload(self, model: str, version: int) -> None:
        """Let go of a version's replicas; what no route needs goes away."""

    def unload_shadow(self, model: str, version: int) -> None:
        """Let go of a version's replicas in shadow: no rollout compares it any more."""

    def route(self, route: Route) -> None:
        """Publish a model's route to all routers."""

    def describe(self, model: str, version: int) -> Mapping[str, Any]:
        """Facts for the report: sha256, backend, provenance."""
