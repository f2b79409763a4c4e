"""Servers: started afresh, checked for right answers, and measured from outside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import orjson

from benchmarks import perf_analyzer
from benchmarks.errors import BenchmarkError
from benchmarks.load import Request, Sample, Wrk, ask
from benchmarks.open_loop import offer
from benchmarks.peers.contract import Load, Measure, Peer, Settings, Transport
from benchmarks.peers.scores import binary_scores
from benchmarks.process import free_ports, running
from benchmarks.raw import RawModel
from benchmarks.service import BATCHING, understudy
from benchmarks.workloads import BASELINE, Workload
from models.tensor import Array

WARM_UP_S: Final = 2.0
_SEED: Final = 0
_WINDOWS: Final = 3  # perf_analyzer wants three windows that agree; any three will do here, their spread is recorded
_ANY_SPREAD: Final = 999.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a running server is asked, how, and how its answers are read."""

    url: str
    grpc: str
    request: Request
    scores: Callable[[bytes], Array]


@dataclass(slots=True, kw_only=True)
class _Client:
    """Measures an endpoint; each transport is warmed up when it is first used."""

    endpoint: Endpoint
    workload: Workload
    scratch: Path
    warmed: set[Transport] = field(default_factory=set)

    def check(self, expected: Array) -> None:
        found = self.endpoint.scores(ask(self.endpoint.url, self.endpoint.request).content)
        if not np.allclose(found, expected, atol=1e-5):
            raise BenchmarkError(f"{self.endpoint.url}: expected the scores {expected[:10]}, got {found[:10]}")

    def measure(self, load: Load, seconds: float) -> Sample:
        if load.transport not in self.warmed:
            self.warmed.add(load.transport)
            self._run(Load(loop="closed", transport=load.transport, amount=max(self.workload.connections)), WARM_UP_S)
        return self._run(load, seconds)

    def _run(self, load: Load, seconds: float) -> Sample:
        endpoint = self.endpoint
        if load.transport == "grpc":
            return _over_grpc(endpoint.grpc, self.workload, load.amount, seconds, self.scratch / "inputs")
        if load.loop == "open":
            return offer(endpoint.url, endpoint.request, rate=load.amount, seconds=seconds, seed=_SEED)
        return Wrk(self.scratch).run(endpoint.url, endpoint.request, connections=load.amount, seconds=seconds)


def _over_grpc(url: str, workload: Workload, connections: int, seconds: float, inputs: Path) -> Sample:
    """From perf_analyzer, which sends the workload's example too: random bytes of its own would be NaN at times."""
    inputs.mkdir(exist_ok=True)
    (inputs / workload.input).write_bytes(workload.example.tobytes())
    profile = perf_analyzer.run(
        url,
        "grpc",
        workload.name,
        connections,
        seconds=seconds / _WINDOWS,
        trials=_WINDOWS,
        stability_percent=_ANY_SPREAD,
        options=("--input-data", str(inputs)),
    )
    return Sample(
        connections=connections,
        requests=profile.requests,
        failed=profile.errors,
        requests_per_s=profile.throughput,
        mean_ms=profile.mean_us / 1000,
        sd_ms=profile.sd_us / 1000,
        p50_ms=profile.p50_us / 1000,
        p90_ms=profile.p90_us / 1000,
        p99_ms=profile.p99_us / 1000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerServer:
    """A peer, run by the Python of its own environment; ``changed`` replaces the settings that it is measured with."""

    peer: Peer
    python: Path
    changed: Settings | None = None

    @property
    def name(self) -> str:
        """The peer's."""
        return self.peer.name

    @property
    def title(self) -> str:
        """The peer's."""
        return self.peer.title

    def takes(self, load: Load) -> bool:
        """HTTP always; gRPC where the peer speaks the protocol."""
        return load.transport == "http" or (load.transport == "grpc" and self.peer.grpc)

    def settings(self, workload: Workload) -> Settings:
        """The peer's for this workload."""
        return self.changed or self.peer.settings_for(workload.name)

    @contextmanager
    def running(self, workload: Workload, folder: Path) -> Iterator[Measure]:
        """Its server script, in processes of its own.

        Raises:
            BenchmarkError: it did not start, or its answers are wrong.
        """
        workload.write(folder / "models")
        model = folder / "models" / str(BASELINE) / "model.onnx"
        port, grpc_port = free_ports(2)
        command = [str(self.python), str(self.peer.server), "--model", str(model), "--name", workload.name]
        command += ["--max-batch-size", str(workload.max_batch_size), "--port", str(port)]
        command += ["--grpc-port", str(grpc_port), "--folder", str(folder)]
        command += ["--settings", orjson.dumps(dict(self.settings(workload))).decode()]
        url = f"http://127.0.0.1:{port}"
        with running(command, ready_url=url + self.peer.ready_path, log=folder / "server.log"):
            endpoint = Endpoint(
                url=url,
                grpc=f"127.0.0.1:{grpc_port}",
                request=self.peer.request(workload),
                scores=self.peer.scores,
            )
            yield _checked(endpoint, workload, folder)


class Understudy:
    """Understudy as a user starts it, without a rollout."""

    name: Final = "understudy"
    title: Final = "Understudy"

    def takes(self, load: Load) -> bool:
        """Both transports."""
        return load.transport in ("http", "grpc")

    def settings(self, workload: Workload) -> Settings:
        """Its batching; all else is the default."""
        return {**BATCHING, "max_batch_size": workload.max_batch_size}

    @contextmanager
    def running(self, workload: Workload, folder: Path) -> Iterator[Measure]:
        """``understudy serve`` with one model.

        Raises:
            BenchmarkError: it did not start, or its answers are wrong.
        """
        with understudy(folder / "service", [workload]) as service:
            endpoint = Endpoint(url=service.url, grpc=service.grpc, request=workload.request(), scores=binary_scores)
            yield _checked(endpoint, workload, folder)


class Raw:
    """The model alone, in the benchmark's own process."""

    name: Final = "raw"
    title: Final = "the model alone"

    def takes(self, load: Load) -> bool:
        """Calls, no requests."""
        return load.loop == "direct"

    def settings(self, workload: Workload) -> Settings:
        """None."""
        return {}

    @contextmanager
    def running(self, workload: Workload, folder: Path) -> Iterator[Measure]:
        """The session that a replica opens."""
        model = RawModel(workload, folder)
        try:
            yield lambda load, seconds: _direct(model, load.amount, seconds)
        finally:
            model.close()


def _direct(model: RawModel, rows: int, seconds: float) -> Sample:
    found = model.measure(rows, seconds)
    return Sample(
        connections=1,
        requests=found.calls * rows,
        failed=0,
        requests_per_s=found.rows_per_s,
        mean_ms=found.mean_ms,
        sd_ms=found.sd_ms,
        p50_ms=found.p50_ms,
        p90_ms=found.p90_ms,
        p99_ms=found.p99_ms,
    )


def _checked(endpoint: Endpoint, workload: Workload, folder: Path) -> Measure:
    """How the endpoint is measured, once it has given the model's own answer."""
    model = RawModel(workload, folder / "expected")
    expected = model.scores()
    model.close()
    client = _Client(endpoint=endpoint, workload=workload, scratch=folder)
    client.check(expected)
    return client.measure
