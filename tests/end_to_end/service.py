"""A whole service in processes of its own, as a user starts it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.http as triton
import yaml
from prometheus_client.parser import text_string_to_metric_families

from models.repository import write_hash
from serving.client import AdminClient

COMMAND = (sys.executable, "-c", "from serving.cli import main; main()")
READY_S = 90
DOUBLER = {
    "backend": "doubler",
    "artifact": "nothing.bin",
    "max_batch_size": 16,
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 4]}],
    "provenance": {"dataset": "none", "synthetic": True},
}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at present."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def write_doubler(repository: Path, model: str, version: int, fault: str, **fields: Any) -> None:
    """A version of the doubling model with a fault, and further ``fields`` of its ``model.yaml``."""
    folder = repository / model / str(version)
    folder.mkdir(parents=True)
    (folder / "nothing.bin").write_bytes(fault.encode())
    (folder / "model.yaml").write_text(yaml.safe_dump({**DOUBLER, "parameters": {"fault": fault}, **fields}))
    write_hash(folder)


def understudy(*arguments: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False)


def wait_for(condition: Callable[[], Any], *, timeout_s: float, what: str) -> Any:
    """Poll until a condition holds; its value."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {timeout_s} s: {what}")


@dataclass
class Load:
    """What clients saw of some requests."""

    errors: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    versions: set[str] = field(default_factory=set)

    @property
    def p99_s(self) -> float:
        """The 99th percentile of the end-to-end latency."""
        return float(np.percentile(self.latencies_s, 99))


class Service:
    """``understudy serve`` in a session of its own."""

    def __init__(self, config: Path) -> None:
        self.config = config
        settings = yaml.safe_load(config.read_text())
        self.http = f"127.0.0.1:{settings['server']['http_port']}"
        self.grpc = f"127.0.0.1:{settings['server']['grpc_port']}"
        self.metrics_url = f"http://127.0.0.1:{settings['server']['metrics_port']}/metrics"
        self.admin_url = f"http://127.0.0.1:{settings['server']['admin_port']}"
        self.reports = config.parent / settings["reports"]
        self.admin = AdminClient(self.admin_url)
        self.lines: list[str] = []
        self._ready = threading.Event()
        self.process = subprocess.Popen(
            [*COMMAND, "serve", str(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(READY_S) or self.process.poll() is not None:
            self.process.kill()
            raise AssertionError("the service did not start:\n" + "".join(self.lines))

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("ready"):
                self._ready.set()
        self._ready.set()

    def descendants(self) -> list[int]:
        """All processes that stem from it, by session or by parent."""
        listed = subprocess.run(["ps", "-eo", "pid,ppid,sid"], capture_output=True, text=True, check=True).stdout
        rows = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
        found = {self.process.pid}
        for _ in range(10):
            found |= {pid for pid, parent, session in rows if parent in found or session == self.process.pid}
        return sorted(found)

    def pid_of(self, name: str) -> int:
        """The process of a Serve replica, such as ``control``; of several, one of them."""
        pids = self.pids_of(name)
        assert pids, f"no process of {name}"
        return pids[0]

    def pids_of(self, name: str) -> list[int]:
        """The processes of all replicas of that name."""
        listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        mine = set(self.descendants())
        rows = [line.strip().partition(" ") for line in listed.splitlines()[1:]]
        found = [int(pid) for pid, _, arguments in rows if f"ServeReplica:{name}" in arguments]
        return [pid for pid in found if pid in mine]

    def routers(self) -> set[str]:
        """The ids of the routers that have a table."""
        return set(self.scrape("understudy_candidate_weight_percent"))

    def scrape(self, metric: str, **labels: str) -> dict[str, float]:
        """The sum of the samples with these labels, by router."""
        text = wait_for(self._metrics, timeout_s=3, what="a scrape")
        samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
        sums: dict[str, float] = {}
        for each in samples:
            if each.name == metric and labels.items() <= each.labels.items():
                router = each.labels["router"]
                sums[router] = sums.get(router, 0.0) + each.value
        return sums

    def _metrics(self) -> str:
        """The page; empty if a router had the connection that was just killed."""
        try:
            with urllib.request.urlopen(self.metrics_url, timeout=5) as page:
                return str(page.read().decode())
        except OSError:
            return ""

    def stop(self) -> float:
        """Ctrl-C; returns how many seconds it took."""
        started = time.monotonic()
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGINT)
        self.process.wait(timeout=30)
        self._reader.join(timeout=5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.admin.close()
        return time.monotonic() - started

    def rollout(self, model: str) -> dict[str, Any]:
        """The status of the model's latest rollout."""
        return self.admin.status(model)

    def wait_for_state(self, model: str, *states: str, timeout_s: float = 60) -> dict[str, Any]:
        """Wait until the model's latest rollout is in one of these states."""
        seen: dict[str, Any] = {}

        def reached() -> bool:
            seen.update(self.rollout(model))
            return seen["state"] in states

        try:
            wait_for(reached, timeout_s=timeout_s, what=f"{model} in {states}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {seen['state']}: {seen['reason']}; {seen['missing']}") from None
        return seen

    def play(
        self,
        model: str,
        requests: int,
        *,
        clients: int = 8,
        until: Callable[[], bool] | None = None,
        retry_after_s: float | None = None,
    ) -> Load:
        """Send doubling requests from several clients and check every answer.

        A client that retries does so once, over a new connection; then the first error is none.
        """
        load, lock = Load(), threading.Lock()
        left = iter(range(requests))

        def client() -> None:
            connection = triton.InferenceServerClient(self.http)
            for number in left:
                if until is not None and until():
                    break
                started = time.monotonic()
                error, version = _double(connection, model, number)
                if error and retry_after_s is not None:
                    connection.close()
                    time.sleep(retry_after_s)
                    connection = triton.InferenceServerClient(self.http)
                    error, version = _double(connection, model, number)
                with lock:
                    load.latencies_s.append(time.monotonic() - started)
                    load.versions |= {version} - {""}
                    load.errors += [error] if error else []
            connection.close()

        threads = [threading.Thread(target=client) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return load


class Traffic:
    """Clients that play until told to stop."""

    def __init__(self, service: Service, model: str, clients: int = 4, *, retry_after_s: float | None = None) -> None:
        self._stop = threading.Event()
        self._load = Load()
        self._thread = threading.Thread(target=self._play, args=(service, model, clients, retry_after_s))
        self._thread.start()

    def _play(self, service: Service, model: str, clients: int, retry_after_s: float | None) -> None:
        self._load = service.play(
            model, 1_000_000, clients=clients, until=self._stop.is_set, retry_after_s=retry_after_s
        )

    def stop(self) -> Load:
        """What they saw; may be asked for again."""
        self._stop.set()
        self._thread.join()
        return self._load

    def __enter__(self) -> "Traffic":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _double(connection: Any, model: str, number: int) -> tuple[str, str]:
    """One request; what was wrong with its answer, and the version that gave it."""
    value = np.full((1, 4), number, np.float32)
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(value)
    try:
        answer = connection.infer(model, [tensor], request_id=f"{model}-{number}")
    except Exception as error:
        return f"{type(error).__name__}: {error}", ""
    doubled = answer.as_numpy("y")
    wrong = "" if np.array_equal(doubled, value * 2) else f"{number}: a wrong answer: {doubled!r}"
    return wrong, answer.get_response()["model_version"]


def write_config(folder: Path, models: dict[str, Any], **extra: Any) -> Path:
    """A configuration with free ports."""
    names: Sequence[str] = ("http_port", "grpc_port", "metrics_port", "admin_port")
    server = {**dict(zip(names, free_ports(4), strict=True)), **extra.pop("server", {})}
    settings = {"repository": "./repository", "reports": "./reports", "server": server, "models": models, **extra}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
