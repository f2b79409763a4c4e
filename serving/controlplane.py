"""The control side's process: the controller's tick, the admin door, and the exchange with routers.

Nothing here knows Ray: ``serving.deployments`` hosts it.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any, Final

import uvicorn

from rollout.controller import Controller, Tools
from rollout.errors import StaleControllerError
from rollout.journal import Journal
from rollout.judge import judge, judge_broken
from rollout.policy import Policy
from serving.admin import create_app
from serving.config import Config
from serving.control import ControlTraffic, Host
from serving.directory import Directory
from serving.door import bind
from serving.errors import LaunchError
from serving.operations import Operations

_log = logging.getLogger("understudy.control")
TICK_S: Final = 1.0
_START_S: Final = 20.0


class ControlPlane:
    """Runs until ``stop``; its own event loop, apart from Serve's."""

    def __init__(self, config: Config, directory: Directory, host: Host) -> None:
        self._config, self._directory, self._host = config, directory, host
        self._loop = asyncio.new_event_loop()
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._traffic: ControlTraffic | None = None
        self._door: uvicorn.Server | None = None
        self._controller: Controller | None = None
        self._ticker = threading.Thread(target=self._tick, name="controller", daemon=True)
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)

    def start(self) -> None:
        """Restore what the journal says, publish it, and open the admin door.

        Raises:
            LaunchError: the door's port is in use, or the database cannot be used.
        """
        self._thread.start()
        if not self._started.wait(_START_S) or self._failure is not None:
            raise LaunchError(f"the control side did not start: {self._failure or 'time ran out'}")
        self._ticker.start()

    @property
    def alive(self) -> bool:
        """Whether it still controls; False too once another controller has taken over."""
        return self._thread.is_alive() and self._ticker.is_alive()

    async def exchange(self, report: Mapping[str, Any], *, wait_s: float) -> dict[str, Any]:
        """A router's long poll, from any event loop."""
        assert self._traffic is not None
        future = asyncio.run_coroutine_threadsafe(self._traffic.exchange(report, wait_s=wait_s), self._loop)
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """End the tick and close the door."""
        self._stopping.set()
        if self._door is not None:
            self._door.should_exit = True
        self._thread.join(timeout=2)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 — reported to start(), and by the thread's end to the health check
            self._failure = error
            _log.exception("the control plane ended")
        finally:
            self._started.set()

    async def _serve(self) -> None:
        server = self._config.server
        journal = Journal(self._config.database)
        traffic = ControlTraffic(
            self._config,
            self._directory,
            self._host,
            epoch=lambda: journal.epoch,
            loop=self._loop,
            heads=journal.heads,
        )
        controller = Controller(
            journal=journal,
            reports=self._config.reports,
            traffic=traffic,
            baselines={name: model.baseline for name, model in self._config.models.items()},
            tools=Tools(judge=judge, judge_broken=judge_broken, restore_policy=Policy.model_validate),
            reopen_s={name: model.rollout.labels_reopen_s for name, model in self._config.models.items()},
        )
        self._traffic, self._controller = traffic, controller
        app = create_app(Operations(self._config, controller, traffic, self._host), token=server.admin_token)
        self._door = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        socket = bind(server.host, server.admin_port)
        self._started.set()
        await self._door.serve(sockets=[socket])
        controller.close()
        journal.close()

    def _tick(self) -> None:
        assert self._controller is not None
        while not self._stopping.wait(TICK_S):
            try:
                self._controller.tick()
            except StaleControllerError as error:
                _log.error("%s; this controller ends", error)
                return
            except Exception:  # noqa: BLE001 — the tick is an isolation point: a broken look is tried again
                _log.exception("tick failed")
