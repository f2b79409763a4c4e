"""The data plane of one router replica: a thread with its own event loop, HTTP and gRPC servers, router and recorders.

Nothing here knows Ray: ``serving.deployments`` hosts it and carries its exchange with the control side.
"""

import asyncio
import gc
import logging
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import uvloop
from prometheus_client import CollectorRegistry

from rollout.traffic import Route
from serving.arena import Arena
from serving.config import Config, Model, Server
from serving.control import table_from
from serving.dataplane import DataPlane
from serving.directory import Directory
from serving.errors import LaunchError
from serving.grpc import GrpcServer
from serving.http import HttpApp
from serving.http_server import HttpServer, Limits, bind
from serving.mirror import MirrorLane
from serving.router import Router
from serving.telemetry import Metrics, MetricsServer
from shadow.accounting import Accounting
from shadow.recorder import Recorder
from shadow.sampler import Sampler

_log = logging.getLogger("understudy.router")
_START_S: Final = 20.0
_GRACE_S: Final = 1.0
_STUCK_S: Final = 10.0
# The recorder computes beside the event loop; a short interval keeps it from holding the interpreter for long.
_SWITCH_INTERVAL_S: Final = 0.001


class DataServer:
    """Serves the endpoint until ``stop``; ``start`` returns when the ports are open."""

    def __init__(self, config: Config, directory: Directory) -> None:
        self._config, self._directory = config, directory
        self.id = uuid.uuid4().hex[:8]
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._router: Router | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name="data-plane", daemon=True)

    def start(self) -> None:
        """Open the ports.

        Raises:
            LaunchError: a port is in use, or the data plane did not come up.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        _spare_the_collector()
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise LaunchError(f"the data plane did not start within {_START_S:.0f} s")
        if self._failure is not None:
            raise LaunchError(f"the data plane did not start: {self._failure}")

    @property
    def alive(self) -> bool:
        """Whether it still serves: its thread runs, and its loop comes round."""
        stuck = self._router is not None and time.monotonic() - self._router.ticked > _STUCK_S
        return self._thread.is_alive() and not stuck

    def stop(self) -> None:
        """Answer what is in flight, close the ports, and make the evidence durable."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=_GRACE_S + 2)
        for thread in self._closing:
            thread.join(timeout=1)

    def report(self) -> dict[str, Any]:
        """What the control side is told: the table in force, and each rollout's durable evidence."""
        assert self._router is not None
        return {
            "router": self.id,
            "table": self._router.table.order,
            "lanes": [_lane_report(lane) for lane in list(self._router.lanes.values())],
        }

    def receive(self, table: Mapping[str, Any]) -> None:
        """Take the control side's table."""
        if self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._apply, table)

    def _apply(self, value: Mapping[str, Any]) -> None:
        assert self._router is not None
        table = table_from(value)
        if table.order == self._router.table.order:
            self._router.renew()
            return
        for lane in self._router.apply(table):
            # The last flush writes to disk: not on the event loop.
            thread = threading.Thread(target=lane.recorder.close, name="recorder-closing", daemon=True)
            thread.start()
            self._closing = [each for each in self._closing if each.is_alive()] + [thread]

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 — reported to start(), and by the thread's end to the health check
            self._failure = error
            _log.exception("the data plane ended")
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        server = self._config.server
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        arena = Arena(server.shared_memory) if server.shared_memory else None
        router = Router(
            self._config,
            self._directory,
            loop=self._loop,
            metrics=self._metrics,
            lane_factory=self._open_lane,
            arena=arena,
        )
        self._router = router
        plane = DataPlane(router)
        app = HttpApp(plane, max_body_bytes=server.max_body, arena=arena)
        http = HttpServer(app, bind(server.host, server.http_port), limits=_limits(server), allocate=app.allocate)
        grpc = GrpcServer(plane, server.host, server.grpc_port, max_message_bytes=server.max_grpc_message)
        metrics = MetricsServer(server.host, server.metrics_port, self._registry)
        metrics.start()
        await http.start()
        await grpc.start()
        router.start()
        self._ready.set()
        try:
            await self._stop.wait()
            await asyncio.gather(http.stop(_GRACE_S), grpc.stop(_GRACE_S))
        finally:
            for lane in router.close():
                lane.recorder.close()
            metrics.stop()

    def _open_lane(self, route: Route, model: Model) -> MirrorLane:
        assert route.deployment_id is not None
        accounting = Accounting()
        recorder = Recorder(
            self._config.reports / route.deployment_id / "evidence",
            chain=f"{self.id}-{time.time_ns() // 1_000_000:x}",
            deployment_id=route.deployment_id,
            limits=route.limits,
            accounting=accounting,
            comparator=model.comparator.kind,
            output=model.comparator.output,
        )
        return MirrorLane(
            route.deployment_id,
            model.mirror,
            accounting=accounting,
            sampler=Sampler(model.mirror.sample, route.salt),
            recorder=recorder,
        )


def _spare_the_collector() -> None:
    """Let the garbage collector never again walk what was imported: a pass over it all is a pause of some 50 ms."""
    gc.collect()
    gc.freeze()


def _limits(server: Server) -> Limits:
    settings = server.limits
    return Limits(
        connections=settings.connections,
        head_bytes=settings.head,
        body_bytes=server.max_body,
        head_s=settings.head_s,
        body_s=settings.body_s,
        idle_s=settings.idle_s,
        write_s=settings.write_s,
    )


def _lane_report(lane: MirrorLane) -> dict[str, Any]:
    recorded = lane.recorder.snapshot()
    return {
        "deployment_id": lane.deployment_id,
        "evidence": recorded.evidence.to_json(),
        "head": asdict(recorded.head) if recorded.head is not None else None,
        "account": lane.accounting.snapshot().to_json(),
        "error": recorded.fault,
        "reasons": dict(recorded.reasons),
    }
