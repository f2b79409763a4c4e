"""The live replicas as a router sees them: a link to each, and a pool for each version that has any."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from models.spec import ModelSpec
from models.tensor import Buffer
from serving.arena import Arena
from serving.batching import Batch, Job, Pool
from serving.channel import Link
from serving.config import Config
from serving.directory import Directory, Replica
from serving.telemetry import log_event
from serving.wire import ReplyHeader

_log = logging.getLogger("understudy.router")


class Fleet:
    """Follows the directory of replicas. Lives on the data plane's event loop.

    ``is_baseline`` says whether a model's version is its baseline: that one's pool stays while its replicas restart, as
    its requests wait for them. ``rehearsed`` says whether a model's batches are mirrored: then the candidate's are
    measured; of the baseline the twin tells what it takes, at no client's expense. ``on_lost`` gets the pool
    and the unanswered batches of a replica that died, in the order they were sent; ``on_leaving`` the pool of one that
    withdrew.
    """

    def __init__(
        self,
        config: Config,
        directory: Directory,
        loop: asyncio.AbstractEventLoop,
        *,
        arena: Arena | None,
        is_baseline: Callable[[str, int], bool],
        rehearsed: Callable[[str], bool],
        on_reply: Callable[[Link, ReplyHeader, Sequence[Buffer]], None],
        on_lost: Callable[[Pool, list[Batch]], None],
        on_leaving: Callable[[Pool], None],
    ) -> None:
        self._config, self._directory, self._loop, self._arena = config, directory, loop, arena
        self._is_baseline, self._rehearsed = is_baseline, rehearsed
        self._on_reply, self._on_lost, self._on_leaving = on_reply, on_lost, on_leaving
        self._links: dict[str, Link] = {}
        self.pools: dict[tuple[str, int], Pool] = {}
        self.live: Mapping[str, Mapping[int, ModelSpec]] = {name: {} for name in config.models}

    def pool_of(self, replica: Replica) -> Pool:
        """The pool of a replica's version."""
        key = (replica.model, replica.version)
        pool = self.pools.get(key)
        if pool is None:
            pool = self.pools[key] = Pool(
                ModelSpec.from_json(replica.spec),
                self._config.models[replica.model].batching,
                self._loop,
                measure=lambda: self._rehearsed(replica.model) and not self._is_baseline(*key),
                kept=lambda: self._rehearsed(replica.model),
                is_baseline=lambda: self._is_baseline(*key),
                locate=None if self._arena is None else self._arena.locate,
                shared=self._config.server.routers > 1,
            )
        return pool

    def scan(self) -> None:
        """Meet new replicas, and let go of those that withdrew; whatever the machine lacks now, it may have later."""
        try:
            announced = self._directory.replicas()
            for replica_id, replica in announced.items():
                if replica_id in self._links:
                    self._links[replica_id].leaving = False
                elif replica.model in self._config.models:
                    self._meet(replica)
        except OSError as error:
            log_event(_log, "replicas_not_found", level=logging.ERROR, error=str(error))
            return
        for replica_id in [known for known in self._links if known not in announced]:
            link = self._links[replica_id]
            link.leaving = True
            self._on_leaving(self.pool_of(link.replica))
            if not link.inflight:
                self._drop(link)
        for key in [key for key, pool in self.pools.items() if self._is_over(key, pool)]:
            del self.pools[key]

    def _is_over(self, key: tuple[str, int], pool: Pool) -> bool:
        return not pool.links and not pool.waiting and not self._is_baseline(*key)

    def note_live(self) -> None:
        """Bring ``live`` up to date: every request asks for it, while replicas seldom come and go."""
        live: dict[str, dict[int, ModelSpec]] = {name: {} for name in self._config.models}
        for (model, version), pool in sorted(self.pools.items(), key=lambda item: item[0]):
            if pool.links or self._is_baseline(model, version):
                live[model][version] = pool.spec
        self.live = live

    def close(self) -> list[Job]:
        """Disconnect; returns the requests that nobody will answer now."""
        jobs: list[Job] = []
        for link in self._links.values():
            link.close()
            for batch in link.inflight.values():
                jobs += batch.jobs
        for pool in self.pools.values():
            jobs += pool.drain()
        return jobs

    def _meet(self, replica: Replica) -> None:
        arena = None if self._arena is None else self._arena.name
        link = Link(self._loop, replica, arena=arena, on_reply=self._on_reply, on_down=self._on_down)
        self._links[replica.id] = link
        pool = self.pool_of(replica)
        pool.links.append(link)
        self.note_live()
        log_event(_log, "replica_up", model=replica.model, version=replica.version, replica=replica.id)
        pool.pump()

    def _drop(self, link: Link) -> None:
        link.close()
        self._links.pop(link.replica.id, None)
        pool = self.pool_of(link.replica)
        if link in pool.links:
            pool.links.remove(link)
            self.note_live()

    def _on_down(self, link: Link) -> None:
        replica = link.replica
        log_event(_log, "replica_down", level=logging.ERROR, model=replica.model, version=replica.version)
        self._directory.withdraw(replica.id)
        pool = self.pool_of(replica)
        batches = list(link.inflight.values())
        link.inflight.clear()
        self._drop(link)
        self._on_lost(pool, batches)
