"""The Ray Serve deployments: model replicas, router, control. With ``launch``, the only file that imports ray.

Serve places, starts, watches and restarts the processes; tensors never pass through it.
"""

import contextlib
import logging
import os
import sys
import threading
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

import ray
from ray import serve
from ray.serve._private.application_state import StatusOverview
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, LoggingConfig

from models.backends import open_backend
from models.preprocess import open_preprocess
from models.repository import Repository
from models.room import Machine, Room, require_room
from models.warm_up import batch_sizes
from rollout.traffic import Priority, Readiness
from serving.autoscaling import QueuePolicy
from serving.config import Replicas
from serving.place import Place
from serving.process import keep_freed_memory, limit_memory, lower_priority, spare_the_collector
from serving.replica import Worker
from serving.router_process import RouterProcess
from serving.telemetry import log_event

_log = logging.getLogger("understudy.deployments")
CONTROL: Final = "control"
ROUTER: Final = "router"
EXCHANGE_WAIT_S: Final = 0.5
EXCHANGE_TIMEOUT_S: Final = 4.0
RECONNECT_S: Final = 0.25
DRAIN_S: Final = 5.0  # how long a model replica that goes may take for what it was sent
QUIET: Final = LoggingConfig(enable_access_log=False, log_level="WARNING")
# A process of Ray's takes seconds of a core before it lowers its own priority, and a candidate may die every second.
_GENTLY: Final = {"py_executable": f"nice -n 10 {sys.executable}"}
_LIFECYCLE: Final[dict[str, Any]] = {
    "health_check_period_s": 0.5,
    "health_check_timeout_s": 5,
    "graceful_shutdown_wait_loop_s": 0.1,
    "graceful_shutdown_timeout_s": 2,
    "logging_config": QUIET,
}


class ModelReplica:
    """One replica of one version of a model."""

    def __init__(self, place: Place, model: str, version: int, priority: Priority) -> None:
        place.set_up_process(f"model-{model}-{version}")
        keep_freed_memory()
        settings = place.config.models[model]
        scheduling = lower_priority() if priority is Priority.SHADOW else "normal"
        opened = Repository(place.config.repository).open(model, version)
        backend = open_backend(opened, place.config.backends)
        preprocess = open_preprocess(opened, place.config.preprocess)
        limit_memory(settings.replicas.memory_limit)
        if priority is Priority.SHADOW:  # nothing that answers clients is kept from trying
            require_room(opened.spec)
        self._worker = Worker(
            replica_id=f"{model}-{version}-{priority}-{uuid.uuid4().hex[:8]}",
            spec=opened.spec,
            backend=backend,
            preprocess=preprocess,
            directory=place.directory,
            priority=priority,
            timeout_s=settings.batching.timeout_s if priority is Priority.NORMAL else settings.mirror.timeout_s,
            warm_up=batch_sizes(opened.spec, settings.replicas.warm_up, limit=settings.batching.max_batch_size),
        )
        self._worker.start()
        spare_the_collector()
        log_event(_log, "model_loaded", model=model, version=version, priority=str(priority), scheduling=scheduling)

    def check_health(self) -> None:
        """Called by Serve, which restarts the replica when this raises."""
        if not self._worker.alive:
            raise RuntimeError("the replica's worker has ended")

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._worker.stop(DRAIN_S)


class RouterReplica:
    """Hosts a router's process: the doors of one node, and the routing behind them."""

    def __init__(self, place: Place) -> None:
        place.set_up_process(f"{ROUTER}-host")
        self._stopping = threading.Event()
        self._process = RouterProcess(place)
        for work in (self._keep_exchanging, self._end_with_it):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def check_health(self) -> None:
        """Called by Serve, which restarts the replica when this raises."""
        if not self._process.alive:
            raise RuntimeError("the router's process has ended")

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._stopping.set()
            self._process.stop()

    def _end_with_it(self) -> None:
        """Serve replaces a replica whose process ends sooner than one that fails its health checks."""
        self._process.wait()
        if not self._stopping.is_set():
            os._exit(1)

    def _keep_exchanging(self) -> None:
        """Bring evidence and take the table, for ever; while control is away the table in force stays."""
        exchange = None  # one for all: each that is made leaves garbage
        while not self._stopping.is_set():
            try:
                exchange = exchange or serve.get_app_handle(CONTROL).exchange
                reply = exchange.remote(self._process.report())
                self._process.receive(reply.result(timeout_s=EXCHANGE_TIMEOUT_S))
            except Exception as error:  # noqa: BLE001 — control is another process; without this thread its lease ends
                _log.warning("the control side is away: %s", type(error).__name__)
                self._stopping.wait(RECONNECT_S)


class ControlReplica:
    """The controller, its database and the admin door."""

    def __init__(self, place: Place) -> None:
        from serving.controlplane import ControlPlane

        place.set_up_process(CONTROL)
        self._plane = ControlPlane(place.config, place.directory, ServeHost(place))
        self._plane.start()

    async def exchange(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """A router's long poll."""
        return await self._plane.exchange(report, wait_s=EXCHANGE_WAIT_S)

    def check_health(self) -> None:
        """Called by Serve, which restarts the replica when this raises."""
        if not self._plane.alive:
            raise RuntimeError("the control plane has ended")

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self._plane.stop()


class ServeHost:
    """Implements ``serving.control.Host`` with one Serve application per version and priority."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._asked: set[str] = set()

    def ensure(self, model: str, version: int, priority: Priority) -> None:
        """See ``Host.ensure``."""
        name = app_name(model, version, priority)
        if name in self._asked or any(each.name == name for each in _statuses()):
            return
        replicas = self._place.config.models[model].replicas
        deployment = serve.deployment(
            name="model",
            **self._number(model, version, priority),
            max_constructor_retry_count=1,
            ray_actor_options={
                "num_cpus": _cpus(replicas, priority),
                "num_gpus": replicas.num_gpus,
                "runtime_env": _GENTLY if priority is Priority.SHADOW else {},
            },
            **_LIFECYCLE | {"graceful_shutdown_timeout_s": DRAIN_S + 1},
        )(ModelReplica)
        _deploy(name, deployment.bind(self._place, model, version, priority))
        self._asked.add(name)

    def _number(self, model: str, version: int, priority: Priority) -> dict[str, Any]:
        """How many replicas. In shadow it stays fixed: there is no client whose queue could tell."""
        replicas = self._place.config.models[model].replicas
        autoscaling = replicas.autoscaling
        if autoscaling is None or priority is Priority.SHADOW:
            return {"num_replicas": replicas.least}
        board = {"folder": str(self._place.board.folder), "model": model, "version": version}
        policy = AutoscalingPolicy(  # type: ignore[no-untyped-call]  # ray's own
            policy_function=QueuePolicy, policy_kwargs={**board, "target_queue": autoscaling.target_queue}
        )
        bounds = autoscaling.model_dump(exclude={"target_queue"})
        return {"autoscaling_config": AutoscalingConfig(policy=policy, **bounds)}

    def remove(self, model: str, version: int, priority: Priority) -> None:
        """See ``Host.remove``."""
        name = app_name(model, version, priority)
        self._asked.discard(name)
        serve.delete(name, _blocking=False)

    def lacks(self, model: str) -> str:
        """See ``Host.lacks``. A candidate is there twice, in shadow and for clients, and so is the baseline."""
        replicas = self._place.config.models[model].replicas
        free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]  # ray's own
        in_shadow = 2 if self._place.config.models[model].mirror.twin else 1
        needs = {
            "CPU": replicas.least * (replicas.num_cpus + in_shadow * _cpus(replicas, Priority.SHADOW)),
            "GPU": replicas.least * (1 + in_shadow) * replicas.num_gpus,
        }
        short = [
            f"{need:g} {resource} (free: {free.get(resource, 0):g})"
            for resource, need in needs.items()
            if need > free.get(resource, 0)
        ]
        return " and ".join(short)

    def room(self) -> Room | None:
        """See ``Host.room``."""
        machines = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # ray's own
        return Machine() if len(machines) == 1 else None

    def hosted(self) -> Mapping[tuple[str, int, Priority], tuple[Readiness, str]]:
        """See ``Host.hosted``."""
        found = {}
        for each in _statuses():
            key, app = parse_app_name(each.name), each.app_status
            if key is not None and app.status is not ApplicationStatus.DELETING:
                messages = [app.message, *(deployment.message for deployment in each.deployment_statuses)]
                found[key] = (_readiness(app.status), _last_error(messages))
        return found


def _cpus(replicas: Replicas, priority: Priority) -> float:
    """Cores that are set aside: none for shadow work, which runs in what clients leave of all of them."""
    return 0.0 if priority is Priority.SHADOW else replicas.num_cpus


def deploy_control(place: Place) -> None:
    """Start the control side; Serve restarts it when it dies."""
    deployment = serve.deployment(
        name=CONTROL, max_ongoing_requests=100, ray_actor_options={"num_cpus": 0}, **_LIFECYCLE
    )(ControlReplica)
    _deploy(CONTROL, deployment.bind(place))


def deploy_router(place: Place) -> None:
    """Start the routers."""
    deployment = serve.deployment(
        name=ROUTER,
        num_replicas=place.config.server.routers,
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": 0},
        **_LIFECYCLE,
    )(RouterReplica)
    _deploy(ROUTER, deployment.bind(place))


def app_name(model: str, version: int, priority: Priority) -> str:
    """The Serve application of a version at a priority."""
    return f"model:{model}:{version}:{priority}"


def parse_app_name(name: str) -> tuple[str, int, Priority] | None:
    """The inverse of ``app_name``; None for other applications."""
    kind, *parts = name.split(":")
    if kind != "model" or len(parts) != 3:
        return None
    return parts[0], int(parts[1]), Priority(parts[2])


def _deploy(name: str, app: "serve.Application") -> None:
    serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )


def _statuses() -> list[StatusOverview]:
    """All applications. ``serve.status()`` tells the same, but pickles classes for each: megabytes of garbage."""
    client = _get_global_client(raise_if_no_controller_running=False)
    return list(client.list_serve_statuses()) if client is not None else []


def _readiness(status: ApplicationStatus) -> Readiness:
    if status is ApplicationStatus.RUNNING:
        return Readiness.READY
    if status is ApplicationStatus.DEPLOY_FAILED:
        return Readiness.FAILED
    return Readiness.LOADING


def why_failed(app: Any) -> str:
    """Serve's message about a failed application, down to the error itself."""
    return _last_error([app.message, *(deployment.message for deployment in app.deployments.values())])


def _last_error(messages: Iterable[str]) -> str:
    lines = [line.strip() for message in messages for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error:" in line]
    return str((errors or lines or [""])[-1])
