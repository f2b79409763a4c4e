"""Starts and stops a whole service on one machine. With ``deployments``, the only file that imports ray."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import httpx
import ray
from ray import serve
from ray.serve.schema import ApplicationStatus

from models.errors import ModelError
from models.repository import Repository
from rollout.errors import PolicyError
from rollout.policy import load_policy
from serving.config import Config
from serving.deployments import QUIET, deploy_control, deploy_router, why_failed
from serving.errors import ConfigError, LaunchError
from serving.place import Place
from serving.process import sessions_compete

READY_TIMEOUT_S: Final = 90.0
SYSTEM_CONFIG: Final = {
    # Ray gives its workers nice 15: whatever else runs on the machine would come before our clients' requests.
    "worker_niceness": 0,
    # Nobody reads these, as there is no dashboard; telling them makes each process of Ray's grow by 0.5 MB a minute.
    "enable_metrics_collection": False,
    "task_events_report_interval_ms": 0,
}
STOP_TIMEOUT_S: Final = 3.0
_AUTOGROUP: Final = (
    "note: this kernel divides the cores among sessions before it heeds priorities (sched_autogroup): shadow work "
    "yields to this service's clients, but not to other programs of this machine. To have it yield to all: "
    "sysctl kernel.sched_autogroup_enabled=0"
)
_POLL_S: Final = 0.1


@contextmanager
def running(config: Config, *, say: Callable[[str], None] = lambda _: None) -> Iterator[Place]:
    """A service that answers; stopped, with every process that it started, at the end.

    Raises:
        LaunchError: a port is in use, the placement cannot fit, or the service did not become ready.
        ConfigError, ModelError: something named in the configuration is missing or wrong.
    """
    check(config)
    if sessions_compete():
        say(_AUTOGROUP)
    run_dir = Path(tempfile.mkdtemp(prefix="understudy-"))
    place = Place(config, run_dir)
    try:
        say("starting Ray")
        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.ERROR)
        ray.init(
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
            _system_config=SYSTEM_CONFIG,
        )
        try:
            _check_placement(config)
            serve.start(proxy_location="Disabled", logging_config=QUIET)
            say("starting the control side, the router and the models")
            deploy_control(place)
            deploy_router(place)
            _wait_until_ready(config)
            yield place
        finally:
            _stop()
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def check(config: Config) -> None:
    """Find out what would make the service fail, before anything is started."""
    _check_packages()
    for port in ("http_port", "grpc_port", "metrics_port", "admin_port"):
        _check_port(config.server.host, getattr(config.server, port), f"server.{port}")
    _check_reports(config.reports)
    repository = Repository(config.repository)
    for name, model in config.models.items():
        try:
            spec = repository.open(name, model.baseline).spec
        except ModelError as error:
            raise ConfigError(f"models.{name}.baseline: {error}") from error
        if wrong := model.replicas.too_small_for(spec):
            raise ConfigError(f"models.{name}.replicas.{wrong}")
        if model.comparator.output not in [output.name for output in spec.outputs]:
            names = ", ".join(output.name for output in spec.outputs)
            raise ConfigError(
                f"models.{name}.comparator.output: expected one of the outputs {names}, got {model.comparator.output!r}"
            )
        try:
            load_policy(model.rollout.policy, relative_to=config.directory)
        except PolicyError as error:
            raise ConfigError(f"models.{name}.rollout.policy: {error}") from error


def wait_for_signal() -> None:
    """Block until Ctrl-C or SIGTERM."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(1):
        pass


def _check_packages() -> None:
    """``models`` is a common name: another package of that name would be imported into our processes."""
    ours = Path(__file__).resolve().parents[1]
    for name in ("models", "shadow", "rollout"):
        spec = find_spec(name)
        if spec is None or spec.origin is None or Path(spec.origin).resolve().parents[1] != ours:
            raise LaunchError(f"the package {name!r} is not Understudy's: {spec.origin if spec else 'missing'}")


def _check_reports(folder: Path) -> None:
    """Evidence, journals and logs go there: whatever part of the path exists must take what is missing of it."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"reports: expected a folder that can be written to, {existing} is not")


def _check_port(host: str, port: int, field: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"{field}: port {port} on {host} cannot be used: {os.strerror(error.errno or 0)}"
            ) from None


def _check_placement(config: Config) -> None:
    """Ray would wait for ever for what it does not have."""
    have: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # ray's own
    for resource, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        need = sum(model.replicas.least * getattr(model.replicas, field) for model in config.models.values())
        if need > have.get(resource, 0):
            raise LaunchError(
                f"models.*.replicas.{field}: the baselines need {need:g}, this machine has {have.get(resource, 0):g}"
            )


def _wait_until_ready(config: Config) -> None:
    base = config.server.url(config.server.http_port)
    waiting = [f"{base}/v2/models/{name}/ready" for name in config.models]
    deadline = time.monotonic() + READY_TIMEOUT_S
    with httpx.Client(timeout=2, trust_env=False) as client:
        while waiting:
            for name, app in serve.status().applications.items():
                if app.status is ApplicationStatus.DEPLOY_FAILED:
                    raise LaunchError(f"{name}: {why_failed(app)}")
            if time.monotonic() > deadline:
                raise LaunchError(f"not ready within {READY_TIMEOUT_S:.0f} s: {waiting[0]}")
            try:
                if client.get(waiting[0]).status_code == httpx.codes.OK:
                    waiting.pop(0)
                    continue
            except httpx.TransportError:
                pass
            time.sleep(_POLL_S)


def _stop() -> None:
    """Let replicas finish what they have, then end Ray with all its processes."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    try:
        for name in serve.status().applications:
            serve.delete(name, _blocking=False)
        while serve.status().applications and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    finally:
        ray.shutdown()
