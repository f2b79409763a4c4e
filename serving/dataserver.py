"""The data plane of one router replica: a thread with its own event loop, HTTP and gRPC servers, and router.

Nothing here knows Ray: ``serving.deployments`` hosts it and carries its exchange with the control side.
"""

import asyncio
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import uvloop
from prometheus_client import CollectorRegistry

from serving.arena import Arena
from serving.board import Notice, Seat, demand_key, families_of
from serving.config import Server
from serving.dataplane import DataPlane
from serving.door import Limits, bind
from serving.errors import LaunchError
from serving.grpc import GrpcServer
from serving.http import HttpApp
from serving.http_server import HttpServer
from serving.intake import Intake
from serving.mirror import MirrorLane, Mirrors
from serving.place import Place
from serving.process import spare_the_collector
from serving.router import Router, table_from
from serving.shadow_process import ShadowProcess
from serving.stages import Stages
from serving.telemetry import AllRouters, Metrics, MetricsServer

_log = logging.getLogger("understudy.router")
_START_S: Final = 20.0
_GRACE_S: Final = 1.0
_DURABLE_S: Final = 1.5  # for the shadow process to write down what it has; later it does so by itself
_STUCK_S: Final = 10.0
_MEASURE_S: Final = 0.1
_SHARE: Final = 0.1  # of the latest measurement in the average: it forgets half in 0.7 s
# What is computed beside the event loop (figures for others, reports) is not to hold the interpreter for long.
_SWITCH_INTERVAL_S: Final = 0.001


class DataServer:
    """Serves the endpoint until ``stop``.

    A router that is alone has opened its ports when ``start`` returns, and refuses what it cannot answer yet. One of
    several opens them when it has its first table: until then the kernel gives all connections to the others. What
    it counts it shares with them, and with the autoscaler, on ``board``.
    """

    def __init__(self, place: Place) -> None:
        self._place, self._config = place, place.config
        config = place.config
        self._several = config.server.routers > 1
        self._scales = any(model.replicas.autoscaling for model in config.models.values())
        self._demand: dict[str, float] = {}
        self._routed: asyncio.Event | None = None
        self.id = uuid.uuid4().hex[:8]
        self._seat = Seat(place.board, self.id, self._notice, several=self._several)
        self._registry = CollectorRegistry()
        self._metrics = Metrics(self._registry)
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._router: Router | None = None
        self._mirrors: Mirrors | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="data-plane", daemon=True)

    def start(self) -> None:
        """Begin to serve.

        Raises:
            LaunchError: a port is in use, or the data plane did not come up.
        """
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        spare_the_collector()
        self._thread.start()
        if not self._ready.wait(_START_S):
            raise LaunchError(f"the data plane did not start within {_START_S:.0f} s")
        if self._failure is not None:
            raise LaunchError(f"the data plane did not start: {self._failure}")
        if self._several or self._scales:
            self._seat.start()

    @property
    def alive(self) -> bool:
        """Whether it still serves: its thread runs, and its loop comes round."""
        stuck = self._router is not None and time.monotonic() - self._router.ticked > _STUCK_S
        return self._thread.is_alive() and not stuck

    def stop(self) -> None:
        """Answer what is in flight, close the ports, and make the evidence durable."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=_GRACE_S + _DURABLE_S + 0.5)
        self._seat.stop()

    def report(self) -> dict[str, Any]:
        """What the control side is told: the table in force, and each rollout's durable evidence."""
        assert self._router is not None
        assert self._mirrors is not None
        return {
            "router": self.id,
            "pid": os.getpid(),
            "shadow_pid": self._mirrors.pid,
            "table": self._router.table.order,
            "lanes": self._mirrors.reports(),
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
        if self._routed is not None:
            self._routed.set()
        self._router.apply(table)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 — reported to start(), and by the thread's end to the health check
            self._failure = error
            _log.exception("the data plane ended")
        finally:
            self._seat.stop()
            self._ready.set()

    async def _serve(self) -> None:
        server = self._config.server
        self._loop = asyncio.get_running_loop()
        self._stop, self._routed = asyncio.Event(), asyncio.Event()
        arena = Arena(server.shared_memory) if server.shared_memory else None
        self._mirrors = Mirrors(
            self._loop,
            partial(ShadowProcess, self._place, None if arena is None else arena.name),
            router=self.id,
            most_held_bytes=server.shared_memory // 2,  # the other half is for requests that come
            on_lost=self._forget,
        )
        router = Router(
            self._config,
            self._place.directory,
            loop=self._loop,
            metrics=self._metrics,
            mirrors=self._mirrors,
            arena=arena,
        )
        self._router = router
        stages = Stages()
        self._registry.register(stages)
        plane = DataPlane(router, stages=stages, others=self._seat.others)
        intake = Intake(server.limits.receiving)
        app = HttpApp(plane, max_body_bytes=server.max_body, max_json_bytes=server.max_json, arena=arena, intake=intake)
        sock = bind(server.host, server.http_port, reuse_port=self._several)
        http = HttpServer(app, sock, limits=_limits(server), allocate=app.allocate, intake=intake)
        router.start()
        self._measure_demand()
        try:
            if self._several:
                self._ready.set()
                await self._first(self._routed, self._stop)
            if not self._stop.is_set():
                await self._open(plane, http, arena, intake)
        finally:
            router.close()
            await self._mirrors.stop(_DURABLE_S)

    def _forget(self, lane: MirrorLane) -> None:
        assert self._router is not None
        self._router.forget(lane)

    async def _open(self, plane: DataPlane, http: HttpServer, arena: Arena | None, intake: Intake) -> None:
        """Serve at all doors until ``stop``."""
        assert self._stop is not None
        server = self._config.server
        grpc = GrpcServer(
            plane,
            server.host,
            server.grpc_port,
            limits=_limits(server),
            max_message_bytes=server.max_grpc_message,
            reuse_port=self._several,
            arena=arena,
            intake=intake,
        )
        registry = CollectorRegistry()
        registry.register(AllRouters(self._seat.notices))
        metrics = MetricsServer(server.host, server.metrics_port, registry, reuse_port=self._several)
        metrics.start()
        await http.start()
        await grpc.start()
        self._ready.set()
        try:
            await self._stop.wait()
            await asyncio.gather(http.stop(_GRACE_S), grpc.stop(_GRACE_S))
        finally:
            metrics.stop()

    async def _first(self, *events: asyncio.Event) -> None:
        """Wait for one of these."""
        waiting = [asyncio.ensure_future(event.wait()) for event in events]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for each in waiting:
            each.cancel()

    def _notice(self) -> Notice:
        assert self._router is not None
        return Notice(
            router=self.id,
            families=families_of(self._registry.collect()),
            statistics=self._router.statistics.all(),
            demand=dict(self._demand),
        )

    def _measure_demand(self) -> None:
        """Average what clients want of each version: an instant says little, as batches come and go."""
        if not self._scales:
            return
        assert self._loop is not None
        assert self._router is not None
        self._loop.call_later(_MEASURE_S, self._measure_demand)
        now = {demand_key(*version): items for version, items in self._router.demand.items()}
        self._demand = {
            key: self._demand.get(key, 0.0) + _SHARE * (items - self._demand.get(key, 0.0))
            for key, items in now.items()
        }


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
