"""What the tests of the control side play on: a repository, a host in memory, and routers' reports."""

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvicorn
import yaml

from models.repository import write_hash
from models.room import Room
from rollout.controller import Controller, Tools
from rollout.journal import Journal
from rollout.traffic import Priority, Readiness, Route
from serving.admin import create_app
from serving.config import Config
from serving.control import ControlTraffic
from serving.directory import Directory, Replica
from serving.door import bind
from serving.operations import Operations
from shadow.accounting import Accounting
from shadow.evidence import Limits
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.recorder import Recorder
from tests.serving.doubler import MODEL, spec_of

DEPLOYMENT: Final = "m-2-20260101T000000Z"
LIMITS: Final = Limits(tolerance=1e-3)


def write_version(repository: Path, version: int, *, output: str = "y", **fields: Any) -> None:
    """A signed version of ``m``, with further ``fields`` of its ``model.yaml``."""
    folder = repository / MODEL / str(version)
    folder.mkdir(parents=True)
    (folder / "nothing.bin").write_bytes(b"")
    document = {
        "backend": "doubler",
        "artifact": "nothing.bin",
        "max_batch_size": 16,
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
        "outputs": [{"name": output, "datatype": "FP32", "shape": [-1, 2]}],
        "provenance": {"dataset": "none"},
        **fields,
    }
    (folder / "model.yaml").write_text(yaml.safe_dump(document))
    write_hash(folder)


class MemoryHost:
    """A host that loads as soon as it is asked, or as told."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.running: dict[tuple[str, int, Priority], tuple[Readiness, str]] = {}
        self.next: tuple[Readiness, str] = (Readiness.READY, "")
        self.announces = True
        self.missing = ""
        self.free: Room | None = None

    def ensure(self, model: str, version: int, priority: Priority) -> None:
        key = (model, version, priority)
        if key in self.running:
            return
        self.running[key] = self.next
        if self.announces and self.next[0] is Readiness.READY:
            self.announce(model, version, priority)

    def announce(self, model: str, version: int, priority: Priority) -> None:
        """As a replica does that has loaded its model."""
        self._directory.announce(
            Replica(
                id=f"{model}-{version}-{priority}",
                model=model,
                version=version,
                priority=priority,
                address="ipc:///nowhere",
                pid=0,
                spec=spec_of(version).to_json(),
            )
        )

    def remove(self, model: str, version: int, priority: Priority) -> None:
        del self.running[model, version, priority]
        self._directory.withdraw(f"{model}-{version}-{priority}")

    def lacks(self, model: str) -> str:
        return self.missing

    def room(self) -> Room | None:
        return self.free

    def hosted(self) -> Mapping[tuple[str, int, Priority], tuple[Readiness, str]]:
        return dict(self.running)


def route_of(**changes: Any) -> Route:
    """A rollout of version 2 in shadow."""
    route = Route(
        model=MODEL, baseline=1, candidate=2, deployment_id=DEPLOYMENT, salt="salt", mirror=True, limits=LIMITS
    )
    return replace(route, **changes)


class Reporter:
    """A router's side of the exchange: a real recorder, reported as the data server does."""

    def __init__(self, reports: Path, name: str, deployment_id: str = DEPLOYMENT, limits: Limits = LIMITS) -> None:
        self.name, self.table, self.deployment_id = name, (0, 0), deployment_id
        self.accounting = Accounting()
        self.recorder = Recorder(
            reports / deployment_id / "evidence",
            f"{name}-1",
            deployment_id,
            limits,
            self.accounting,
            output="y",
            flush_interval_s=3600,
        )

    def record(self, *request_ids: str, top1: Sequence[int] = (0, 0)) -> None:
        """Mirrored requests of one item; ``top1`` are the baseline's and the candidate's answers."""
        for request_id in request_ids:
            sides = [
                Outcome(
                    answers=(Answer(status=Status.OK, outputs={"y": np.eye(2, dtype=np.float32)[[top]]}),),
                    service_ms=1.0,
                    peak_memory_bytes=1000,
                )
                for top in top1
            ]
            self.accounting.sample(1)
            self.recorder.offer(
                Pair(
                    deployment_id=self.deployment_id,
                    stage=0,
                    at_unix_us=time.time_ns() // 1000,
                    primary=Arm.BASELINE,
                    request_ids=(request_id,),
                    rows=(1,),
                    latencies_ms=(2.0,),
                    baseline=sides[0],
                    candidate=sides[1],
                )
            )
        self.recorder.flush()

    def report(self, *, error: str | None = None) -> dict[str, Any]:
        """What this router tells the control side."""
        recorded = self.recorder.snapshot()
        lane = {
            "deployment_id": self.deployment_id,
            "chain": f"{self.name}-1",
            "evidence": recorded.evidence.to_json(),
            "head": asdict(recorded.head) if recorded.head else None,
            "ledger": self.accounting.ledger().to_json(),
            "error": error,
            "reasons": dict(recorded.reasons),
        }
        return {"router": self.name, "pid": os.getpid(), "shadow_pid": None, "table": self.table, "lanes": [lane]}

    async def exchange(self, traffic: ControlTraffic, *, wait_s: float = 0.0, error: str | None = None) -> None:
        """Report, and take the table."""
        table = await traffic.exchange(self.report(error=error), wait_s=wait_s)
        self.table = (table["epoch"], table["version"])


class Office:
    """The control side without its processes: ``tick`` is called by hand."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.config = config
        self.loop = asyncio.new_event_loop()
        self.host = MemoryHost(Directory(folder / "replicas"))
        self.journal = Journal(config.database)
        self.traffic = ControlTraffic(
            config,
            Directory(folder / "replicas"),
            self.host,
            epoch=lambda: self.journal.epoch,
            loop=self.loop,
            heads=self.journal.heads,
        )
        self.controller = Controller(
            journal=self.journal, reports=config.reports, traffic=self.traffic, baselines={MODEL: 1}, tools=Tools()
        )
        self.operations = Operations(config, self.controller, self.traffic, self.host)

    def close(self) -> None:
        self.traffic._forget(self.deployment_id)
        self.controller.close()
        self.journal.close()
        self.loop.close()

    @property
    def deployment_id(self) -> str:
        active = self.journal.active(MODEL)
        return active.deployment_id if active else ""


@contextmanager
def door(office: Office, token: str | None = None) -> Iterator[str]:
    """The admin door on a real port; its URL."""
    app = create_app(office.operations, token=token)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
    sock = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="door")
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
