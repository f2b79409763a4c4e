"""What the tests of routing play on: a router with real replicas, real recorders and a table that they may turn."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry

from models.preprocess import Preprocess
from models.spec import ModelSpec
from models.tensor import from_numpy
from rollout.traffic import Priority, Route
from serving.arena import Arena
from serving.config import Config
from serving.directory import Directory
from serving.mirror import MirrorLane, Mirrors
from serving.protocol.messages import InferRequest, InferResponse
from serving.rehearsal import Rehearsal
from serving.replica import Worker
from serving.router import Router, Table
from serving.shadow_lane import ShadowLane
from serving.telemetry import Metrics
from shadow.accounting import Account
from shadow.evidence import StageSums
from tests.serving.doubler import BASELINE, CANDIDATE, MODEL, Doubler, spec_of

DEPLOYMENT: Final = "m-2-20260101T000000Z"
DEADLINE_S: Final = 2.0
ROOT: Final = Path(__file__).parents[2]


def config_of(folder: Path, **model: Any) -> Config:
    """A configuration that serves ``m`` with version 1; ``model`` are fields of the model's section."""
    section = {"baseline": BASELINE, "comparator": {"output": "y"}, "batching": {"max_batch_size": 4}, **model}
    return Config.model_validate(
        {
            "repository": folder / "repository",
            "reports": folder / "reports",
            "database": f"sqlite:///{folder}/understudy.db",
            "server": {"deadline_s": DEADLINE_S},
            "models": {MODEL: section},
        }
    )


def request_of(value: float = 1, *, rows: int = 1, **fields: Any) -> InferRequest:
    """A request whose every element is ``value``."""
    tensor = from_numpy("x", "FP32", np.full((rows, 2), value, np.float32))
    named = {"request_id": f"r-{value}", "key": f"k-{value}", **fields}
    return InferRequest(model=MODEL, inputs={"x": tensor}, **named)


def doubled(response: InferResponse, value: float) -> bool:
    """Whether it is the right answer to ``request_of(value)``."""
    return bool((response.outputs["y"].numpy() == 2 * value).all())


async def until(condition: Callable[[], Any], *, timeout_s: float = 10.0) -> float:
    """Wait for a condition while the loop runs; returns how many seconds it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, "it did not come to pass"
        await asyncio.sleep(0.005)
    return time.monotonic() - started


class WorkerProcess:
    """A replica in a process of its own, which may be killed or stopped."""

    def __init__(
        self,
        directory: Directory,
        replica_id: str,
        *,
        version: int = BASELINE,
        priority: Priority = Priority.NORMAL,
        fault: str = "none",
        timeout_s: float = 30.0,
        limit_bytes: int = 0,
    ) -> None:
        arguments = (directory.folder, replica_id, version, priority.value, fault, timeout_s, limit_bytes)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.serving.worker_process", *map(str, arguments)], cwd=ROOT
        )

    def send(self, number: signal.Signals) -> None:
        """Signal the process."""
        os.kill(self._process.pid, number)

    async def ended(self, timeout_s: float = 10.0) -> tuple[int, float]:
        """Its exit status, once it has ended, and how many seconds that took."""
        took_s = await until(lambda: self._process.poll() is not None, timeout_s=timeout_s)
        return self._process.returncode, took_s

    def end(self) -> None:
        """Kill it, if it still lives."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(timeout=10)


class LocalShadow:
    """A shadow process's part, played on the running loop; flushed by hand."""

    def __init__(self, stage: "Stage", connection: socket.socket) -> None:
        self.pid = os.getpid()
        self.ended = False
        self.rehearsal = Rehearsal(
            stage.config,
            stage.directory,
            connection.dup(),
            loop=asyncio.get_running_loop(),
            arena=None if stage.arena is None else stage.arena.name,
            on_end=self.end,
            flush_interval_s=3600,
        )

    def end(self) -> None:
        self.ended = True

    def close(self) -> None:
        """Without a loop that would still come round."""
        self.rehearsal._timer.cancel()
        self.rehearsal._router.close()
        for link in self.rehearsal._links.values():
            link.close()
        for lane in self.rehearsal.lanes.values():
            lane.recorder.close()
            if lane.exemplars is not None:
                lane.exemplars.close()


class Stage:
    """A router on the running loop; baseline and candidate may be played by threads or by processes."""

    def __init__(self, folder: Path, config: Config | None = None, *, arena: Arena | None = None) -> None:
        self.folder = folder
        self.config = config or config_of(folder)
        self.directory = Directory(folder / "replicas")
        self.registry = CollectorRegistry()
        self.arena = arena
        self.mirrors = Mirrors(
            asyncio.get_running_loop(),
            self._start_shadow,
            router="router",
            most_held_bytes=1 << 30,
            on_lost=lambda lane: self.router.forget(lane),  # noqa: PLW0108 - there is none yet
        )
        self.router = Router(
            self.config,
            self.directory,
            loop=asyncio.get_running_loop(),
            metrics=Metrics(self.registry),
            mirrors=self.mirrors,
            arena=arena,
        )
        self.may_fork = True
        self.shadows: list[LocalShadow] = []
        self._version = 0
        self._workers: list[Worker] = []
        self._backends: list[Doubler] = []
        self._processes: list[WorkerProcess] = []
        self.router.start()

    def _start_shadow(self, connection: socket.socket) -> "LocalShadow":
        if not self.may_fork:
            raise OSError("Resource temporarily unavailable")
        self.shadows.append(LocalShadow(self, connection))
        return self.shadows[-1]

    def thread(
        self,
        version: int = BASELINE,
        fault: str = "none",
        *,
        priority: Priority = Priority.NORMAL,
        spec: ModelSpec | None = None,
        preprocess: Preprocess | None = None,
    ) -> Doubler:
        """Start a replica in this process; returns its backend."""
        backend = Doubler(fault)
        worker = Worker(
            replica_id=f"{version}-{len(self._workers)}",
            spec=spec or spec_of(version),
            backend=backend,
            preprocess=preprocess,
            directory=self.directory,
            priority=priority,
            timeout_s=60,
            exit_process=lambda status: None,
        )
        worker.start()
        self._workers.append(worker)
        self._backends.append(backend)
        return backend

    def process(self, version: int = BASELINE, fault: str = "none", **options: Any) -> WorkerProcess:
        """Start a replica in a process of its own."""
        name = f"{version}-process{len(self._processes)}"
        started = WorkerProcess(self.directory, name, version=version, fault=fault, **options)
        self._processes.append(started)
        return started

    def stop_worker(self, number: int) -> None:
        """Stop a thread's replica in an orderly way."""
        self._workers[number].stop()

    def live(self, version: int) -> bool:
        """Whether a version can answer."""
        return self.router.ready(MODEL, version)

    async def cast(self, *versions: int) -> None:
        """Wait until these versions can answer."""
        await until(lambda: all(self.live(version) for version in versions))

    async def in_shadow(self, replicas: int) -> None:
        """Wait until the shadow process has met so many."""
        await until(lambda: self.shadows and len(self.shadows[-1].rehearsal._links) == replicas)

    def table(
        self, *, weight: int = 0, candidate: int | None = CANDIDATE, epoch: int = 1, lease_s: float = 30.0, **route: Any
    ) -> None:
        """Publish a table: a rollout at this weight, or the baseline alone."""
        self._version += 1
        rollout = {"candidate": candidate, "weight": weight, "deployment_id": DEPLOYMENT, "mirror": True} | route
        fields = rollout if candidate is not None else {}
        routes = {MODEL: Route(model=MODEL, baseline=BASELINE, salt="salt", **fields)}
        self.router.apply(Table(epoch, self._version, lease_s, routes))

    async def ask(self, value: float = 1, **fields: Any) -> InferResponse:
        """One request's right answer."""
        response = await self.router.infer(request_of(value, **fields))
        assert doubled(response, value)
        return response

    async def ask_many(self, count: int, **fields: Any) -> list[int]:
        """Some requests at once; the versions that answered them."""
        answers = await asyncio.gather(*(self.ask(value, **fields) for value in range(count)))
        return [answer.version for answer in answers]

    @property
    def lane(self) -> MirrorLane:
        """The rollout's lane."""
        return self.router.lanes[MODEL]

    async def sums(self, stage: int = 0) -> StageSums:
        """The evidence of a stage, once nothing is on its way any more."""
        await asyncio.sleep(0.01)  # what follows an answer comes a turn of the loop after it
        await until(self._settled)
        return self.shadow_lane.recorder.snapshot().evidence.stage(stage)

    async def account(self) -> Account:
        """The lane's account, once nothing is on its way any more."""
        await self.sums()
        return self.lane.account()

    @property
    def shadow_lane(self) -> ShadowLane:
        """The same lane in the shadow process."""
        return self.shadows[-1].rehearsal.lanes[self.lane.number]

    def _settled(self) -> bool:
        if self.lane.number not in self.shadows[-1].rehearsal.lanes:
            return False  # it has not heard of it yet
        self.shadow_lane.recorder.flush()
        self.shadows[-1].rehearsal._tell()
        return self.lane.account().pending == 0 and not self.mirrors._stream.unsent  # type: ignore[union-attr]

    def close(self) -> None:
        """End all of it."""
        self.router.close()
        for backend in self._backends:
            backend.release.set()
        for shadow in self.shadows:
            shadow.close()
        with ThreadPoolExecutor() as pool:
            list(pool.map(Worker.stop, self._workers))
        for process in self._processes:
            process.end()
