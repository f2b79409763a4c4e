"""The data plane's thread: what its host hears of its health, and how several share their ports."""

import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from rollout.traffic import Priority, Route
from serving import dataserver
from serving.board import Board
from serving.config import Config, Server
from serving.dataserver import DataServer
from serving.directory import Directory
from serving.place import Place
from serving.protocol.headers import KEY
from serving.replica import Worker
from serving.router import Table
from serving.split import arm as split
from shadow.accounting import Ledger
from shadow.pair import Arm
from shadow.store import read_segments
from tests.end_to_end.service import free_ports, wait_for
from tests.serving.doubler import BASELINE, CANDIDATE, MODEL, Doubler, spec_of
from tests.serving.stage import config_of

pytestmark = pytest.mark.timeout(30)


def config(folder: Path, *, routers: int = 1, **model: Any) -> Config:
    names = ("http_port", "grpc_port", "metrics_port", "admin_port")
    ports = dict(zip(names, free_ports(4), strict=True))
    server = Server.model_validate({"host": "127.0.0.1", "routers": routers, **ports})
    return config_of(folder, **model).model_copy(update={"server": server})


class Machine:
    """Some routers on the same ports and a replica, all in this process."""

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config, self.routers = folder, config, list[DataServer]()
        self.right = 0
        self.workers = [self._worker(BASELINE)]

    def _worker(self, version: int, priority: Priority = Priority.NORMAL) -> Worker:
        worker = Worker(
            replica_id=f"r{version}-{priority}",
            spec=spec_of(version),
            backend=Doubler("none"),
            directory=Directory(self.folder / "replicas"),
            priority=priority,
            timeout_s=60,
            exit_process=lambda status: None,
        )
        worker.start()
        return worker

    def candidate(self, priority: Priority = Priority.NORMAL) -> None:
        """A replica of the other version."""
        self.workers.append(self._worker(CANDIDATE, priority))

    def router(self) -> DataServer:
        """Another router; it has no table yet."""
        started = DataServer(Place(self.config, self.folder))
        self.routers.append(started)
        started.start()
        return started

    def ask(self, key: str = "") -> int:
        """One request over a connection of its own; the version that answered, 0 for none."""
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
        url = f"http://127.0.0.1:{self.config.server.http_port}/v2/models/{MODEL}/infer"
        answer = httpx.post(url, json={"inputs": [tensor]}, headers={KEY: key} if key else {}, trust_env=False)
        self.right += answer.is_success
        return int(answer.json()["model_version"]) if answer.is_success else 0

    def answers(self) -> bool:
        try:
            return self.ask() > 0
        except httpx.TransportError:
            return False

    def counted(self) -> int:
        """How many inferences the statistics tell, whoever is asked."""
        url = f"http://127.0.0.1:{self.config.server.http_port}/v2/models/{MODEL}/stats"
        (entry,) = httpx.get(url, trust_env=False).json()["model_stats"]
        return int(entry["inference_count"])

    def scraped(self) -> dict[str, float]:
        """The requests that each router answered, of one scrape."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.config.server.metrics_port}/metrics") as page:
            families = {each.name: each for each in text_string_to_metric_families(page.read().decode())}
        samples = families["understudy_requests"].samples
        return {each.labels["router"]: each.value for each in samples if each.labels["outcome"] == "ok"}

    def close(self) -> None:
        for router in self.routers:
            router.stop()
        for worker in self.workers:
            worker.stop()


def give_table(router: DataServer, **rollout: Any) -> None:
    """What the control side says to every router."""
    route = Route(model=MODEL, baseline=BASELINE, salt="salt", **rollout)
    router.receive(asdict(Table(1, 1, 30.0, {MODEL: route})))


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., Machine]]:
    opened: list[Machine] = []

    def start(**settings: Any) -> Machine:
        opened.append(Machine(tmp_path, config(tmp_path, **settings)))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_routers_share_their_ports_and_whoever_is_asked_tells_what_all_have_answered(
    machine: Callable[..., Machine],
) -> None:
    here = machine(routers=2)
    one, two = here.router(), here.router()
    give_table(one)
    wait_for(here.answers, timeout_s=20, what="the first router")
    # The other has no table: it would have to refuse, so the kernel must not choose it.
    assert [here.ask() for _ in range(20)] == [BASELINE] * 20
    assert set(here.scraped()) == {one.id}
    give_table(two)
    wait_for(lambda: here.answers() and two.id in here.scraped(), timeout_s=20, what="the second router")
    told = 0.0
    for _ in range(40):
        assert here.ask() == BASELINE
        shares = here.scraped()
        assert told <= sum(shares.values()) <= here.right, "what was told once is never taken back"
        told = sum(shares.values())
    wait_for(lambda: sum(here.scraped().values()) == here.right, timeout_s=20, what="all answers to be told")
    assert [here.counted() for _ in range(10)] == [here.right] * 10
    shares = here.scraped()
    assert min(shares[one.id], shares[two.id]) > 3, "the kernel spreads connections"


def test_a_key_has_the_same_version_on_every_router(machine: Callable[..., Machine]) -> None:
    here = machine(routers=2)
    here.candidate()
    routers = [here.router(), here.router()]
    for router in routers:
        give_table(router, candidate=CANDIDATE, weight=50)
    wait_for(lambda: here.answers() and len(here.scraped()) == 2, timeout_s=20, what="both routers")
    keys = [f"camera-{number}" for number in range(8)]
    for key in keys:
        arm = split("salt", key, 50)
        assert {here.ask(key) for _ in range(6)} == {CANDIDATE if arm is Arm.CANDIDATE else BASELINE}


def test_when_a_router_goes_the_others_go_on(machine: Callable[..., Machine]) -> None:
    here = machine(routers=2)
    one, two = here.router(), here.router()
    for router in (one, two):
        give_table(router)
    wait_for(lambda: here.answers() and set(here.scraped()) == {one.id, two.id}, timeout_s=20, what="both routers")
    one.stop()
    assert [here.ask() for _ in range(20)] == [BASELINE] * 20
    wait_for(lambda: set(here.scraped()) == {two.id}, timeout_s=20, what="the figures of the one that went to go")


def test_a_router_that_is_alone_posts_nothing_and_tells_its_own_figures(machine: Callable[..., Machine]) -> None:
    here = machine()
    router = here.router()
    give_table(router)
    wait_for(here.answers, timeout_s=20, what="the router")
    assert here.scraped() == {router.id: here.counted()}
    time.sleep(0.6)
    assert list((here.folder / "routers").iterdir()) == []


def test_what_clients_want_is_posted_for_the_autoscaler(machine: Callable[..., Machine]) -> None:
    here = machine(replicas={"autoscaling": {"max_replicas": 2, "target_queue": 4}})
    router = here.router()
    give_table(router)
    wait_for(here.answers, timeout_s=20, what="the router")
    board = Board(here.folder / "routers")
    wait_for(board.notices, timeout_s=20, what="a notice")
    (notice,) = board.notices()
    assert notice.router == router.id
    assert notice.demand[f"{MODEL}:{BASELINE}"] < 1
    router.stop()
    assert wait_for(lambda: not board.notices(), timeout_s=20, what="its notice to go")


def test_a_data_plane_whose_loop_no_longer_comes_round_is_not_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataserver, "_STUCK_S", 0.3)
    server = DataServer(Place(config(tmp_path), tmp_path))
    server.start()
    try:
        time.sleep(0.5)
        assert server.alive
        assert server._loop is not None
        server._loop.call_soon_threadsafe(time.sleep, 1.0)
        time.sleep(0.6)
        assert not server.alive
        time.sleep(0.8)
        assert server.alive
    finally:
        server.stop()
    assert not server.alive


# With a shadow process of its own


def _lanes(router: DataServer) -> list[dict[str, Any]]:
    lanes = list(router.report()["lanes"])
    return [{**lane, "account": Ledger.from_json(lane["ledger"]).total.to_json()} for lane in lanes]


def _mirrored(router: DataServer) -> int:
    return sum(lane["account"]["mirrored"] for lane in _lanes(router))


def _pid(router: DataServer) -> int:
    return int(router.report()["shadow_pid"] or 0)


@pytest.fixture
def rehearsing(machine: Callable[..., Machine]) -> tuple[Machine, DataServer]:
    """A router whose every request is mirrored, by the time that this has been seen."""
    here = machine(mirror={"twin": 0.0})
    here.candidate(Priority.SHADOW)
    router = here.router()
    give_table(router, candidate=CANDIDATE, deployment_id="m-2-20260101T000000Z", mirror=True)
    wait_for(lambda: here.answers() and _mirrored(router), timeout_s=60, what="a pair")
    return here, router


def test_a_shadow_process_records_what_clients_were_answered_at_the_lowest_priority(
    rehearsing: tuple[Machine, DataServer],
) -> None:
    here, router = rehearsing
    assert os.sched_getscheduler(_pid(router)) == os.SCHED_IDLE
    for _ in range(20):
        here.ask()
    wait_for(lambda: _lanes(router)[0]["account"]["pending"] == 0, timeout_s=60, what="all to be recorded")
    (lane,) = _lanes(router)
    stage = lane["evidence"]["0"]
    assert lane["account"]["sampled"] == lane["account"]["mirrored"] == stage["items"] == stage["agree"] >= 21
    assert (lane["head"]["chain"], lane["head"]["rows"], lane["error"]) == (lane["chain"], stage["items"], None)


def test_no_client_notices_when_the_shadow_process_is_killed_and_another_one_goes_on(
    rehearsing: tuple[Machine, DataServer],
) -> None:
    here, router = rehearsing
    before = _pid(router)
    os.kill(before, signal.SIGKILL)
    assert [here.ask() for _ in range(20)] == [BASELINE] * 20
    wait_for(lambda: not _pid(router), timeout_s=20, what="its end to be noticed")
    assert _lanes(router)[0]["error"] == "the shadow process is gone"
    router.receive(asdict(router._router.table))  # type: ignore[union-attr]  # as control does twice a second
    time.sleep(1.0)
    router.receive(asdict(router._router.table))  # type: ignore[union-attr]
    wait_for(lambda: here.ask() and len(_lanes(router)) == 2 and _lanes(router)[1]["head"], timeout_s=60, what="pairs")
    first, second = _lanes(router)
    assert (first["account"]["pending"], second["error"]) == (0, None)
    for lane in (first, second):
        account = dict(lane["account"])
        assert account.pop("sampled") == sum(account.values())


def test_a_shadow_process_ends_with_its_router_and_leaves_all_durable(
    rehearsing: tuple[Machine, DataServer],
) -> None:
    here, router = rehearsing
    for _ in range(5):
        here.ask()
    pid, sampled = _pid(router), _lanes(router)[0]["account"]["sampled"]
    assert router._router is not None
    lane = router._router.lanes[MODEL]
    wait_for(lambda: not lane.held_bytes, timeout_s=60, what="all to be run")
    router.stop()
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=60, what="its end")
    evidence = here.config.reports / "m-2-20260101T000000Z" / "evidence"
    assert sum(segment.rows() for segment in read_segments(evidence)) >= sampled
