"""A client of the admin door; the command line uses nothing else."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from serving.directory import Process
from serving.errors import ServingError


class AdminError(ServingError):
    """The admin door refused, or is not there."""


class AdminClient:
    """Talks to ``http://host:admin_port``. Every method raises AdminError with one clear line.

    Rollout commands return the rollout's status as ``RolloutStatus.to_json`` gives it.
    """

    def __init__(self, url: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        self._url = url
        try:
            self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False)
        except httpx.InvalidURL as error:
            raise AdminError(f"{url}: expected a URL such as http://127.0.0.1:8080: {error}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self._http.close()

    def models(self) -> dict[str, Any]:
        """Every served model: baseline and versions."""
        return self._call("GET", "/models")

    def processes(self) -> list[Process]:
        """The processes that requests pass through, on the machine of the server."""
        return [Process(**each) for each in self._call("GET", "/processes")["processes"]]

    def start(self, model: str, candidate: int, **options: Any) -> dict[str, Any]:
        """Begin a rollout; options: policy, stages, supersede, actor, notes. Returns deployment_id and folder."""
        return self._call("POST", "/rollouts", {"model": model, "candidate": candidate, **options})

    def status(self, model: str) -> dict[str, Any]:
        """How the model's latest rollout stands."""
        return self._call("GET", f"/rollouts/{model}")

    def act(self, model: str, action: str, **options: Any) -> dict[str, Any]:
        """pause, resume, promote, abort or rollback; options: actor, reason, to."""
        return self._call("POST", f"/rollouts/{model}/{action}", options)

    def add_labels(
        self, model: str, labels: Sequence[Mapping[str, Any]], *, rollout: str | None = None
    ) -> dict[str, Any]:
        """Late ground truth: request_id, item, label each; for a rollout by its id, else the active or the last one.

        Returns how many were accepted.
        """
        return self._call("POST", f"/labels/{model}", {"labels": list(labels), "rollout": rollout})

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.RequestError as error:
            raise AdminError(f"{self._url}: is the server running? {error}") from None
        value = answer.json() if "json" in answer.headers.get("content-type", "") else {"error": answer.text[:200]}
        if answer.is_success:
            return dict(value)
        raise AdminError(str(value.get("error", value)))
