"""What an operator can do: the admin door and whatever else may come only translate to these."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.repository import Repository
from models.schema_diff import diff
from rollout.controller import Controller
from rollout.errors import RolloutError
from rollout.policy import Policy, load_policy
from rollout.status import RolloutStatus
from serving.config import Config
from serving.control import ControlTraffic, Host
from shadow.comparators import open_comparator
from shadow.labels import Label

ACTIONS = ("pause", "resume", "promote", "abort", "rollback")


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A wish to begin a rollout; ``policy`` and ``stages`` as configured where None."""

    model: str
    candidate: int
    policy: str | None = None
    stages: tuple[int, ...] | None = None
    supersede: bool = False
    actor: str = "operator"
    notes: tuple[str, ...] = ()


class Operations:
    """Checks a wish against everything that would make it fail later, then hands it to the controller."""

    def __init__(self, config: Config, controller: Controller, traffic: ControlTraffic, host: Host) -> None:
        self._config, self._controller, self._traffic, self._host = config, controller, traffic, host
        self._repository = Repository(config.repository)

    def models(self) -> dict[str, Any]:
        """Every served model: its baseline, its versions in the repository, its latest rollout's verdict line."""
        return {
            name: {"baseline": self._controller.baseline(name), "versions": self._repository.versions(name)}
            for name in self._config.models
        }

    def processes(self) -> dict[str, Any]:
        """The processes of this machine that requests pass through."""
        return {"processes": [asdict(each) for each in self._traffic.processes()]}

    def start(self, wish: Start) -> dict[str, Any]:
        """Begin a rollout.

        Raises:
            RolloutError: the model is not served, the candidate does not fit the baseline or the machine, or another
                rollout is active. PolicyError, ModelError, ShadowError: the policy, the candidate's files or the
                comparator are wrong.
        """
        model = self._config.models.get(wish.model)
        if model is None:
            raise RolloutError(f"{wish.model}: unknown model; served are {sorted(self._config.models)}")
        policy = self._policy(wish.policy or model.rollout.policy)
        comparator = model.comparator  # opened by the shadow process it would fail too late
        open_comparator(comparator.kind, comparator.output, comparator.parameters)
        self._check_candidate(wish.model, wish.candidate)
        if not wish.supersede:  # which frees the room that it needs
            self._check_room(wish.model, wish.candidate)
        deployment_id = self._controller.start(
            wish.model,
            wish.candidate,
            policy,
            stages=wish.stages or model.rollout.stages,
            tolerance=model.comparator.tolerance,
            actor=wish.actor,
            supersede=wish.supersede,
            notes=wish.notes,
        )
        return {"deployment_id": deployment_id, "folder": str(self._config.reports / deployment_id)}

    def status(self, model: str) -> dict[str, Any]:
        """How the model's latest rollout stands."""
        return self._status(self._controller.status(model))

    def act(self, model: str, action: str, *, actor: str, reason: str, to: int | None = None) -> dict[str, Any]:
        """Pause, resume, promote, abort or roll back."""
        if action not in ACTIONS:
            raise RolloutError(f"action: expected one of {list(ACTIONS)}, got {action!r}")
        if action == "promote":
            return self._status(self._controller.promote(model, actor=actor, reason=reason, to=to))
        return self._status(getattr(self._controller, action)(model, actor=actor, reason=reason))

    def add_labels(
        self, model: str, labels: Sequence[Mapping[str, Any]], *, rollout: str | None = None
    ) -> dict[str, Any]:
        """Hand late ground truth to a rollout, by its id; without one to the active, or else to the last.

        Raises:
            RolloutError: there is no such rollout, or it ended too long ago. ShadowError: a label is wrong.
        """
        found = self._controller.find(model, rollout)
        rows = [Label(**label) for label in labels]
        if found.position.ended:
            return asdict(self._controller.add_labels(found, rows))
        return dict(self._traffic.add_labels(found.deployment_id, rows))

    def _policy(self, name: str) -> Policy:
        return load_policy(name, relative_to=self._config.directory)

    def _check_candidate(self, model: str, candidate: int) -> None:
        opened = self._repository.open(model, candidate).spec
        if wrong := self._config.models[model].replicas.too_small_for(opened):
            raise RolloutError(f"{model}: models.{model}.replicas.{wrong}")
        baseline = self._repository.open(model, self._controller.baseline(model)).spec
        reasons = [each.reason for each in diff(baseline, opened).differences if not each.compatible]
        if reasons:
            raise RolloutError(f"{model}: version {candidate} does not fit the baseline: {reasons[0]}")

    def _check_room(self, model: str, candidate: int) -> None:
        lacks = " and ".join(filter(None, (self._host.lacks(model), self._traffic.lacks(model, candidate))))
        if lacks:
            raise RolloutError(f"{model}: no room to load version {candidate} beside the baseline: it needs {lacks}")

    def _status(self, status: RolloutStatus) -> dict[str, Any]:
        return {**status.to_json(), "folder": str(Path(self._config.reports) / status.rollout.deployment_id)}
