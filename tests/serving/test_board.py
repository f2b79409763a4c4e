"""What routers tell each other through files."""

import os
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serving.autoscaling import QueuePolicy
from serving.board import FRESH_S, Board, Notice, Seat, demand_key, families_of
from serving.telemetry import AllRouters, Metrics


def aged(board: Board, router: str, seconds: float) -> None:
    """Let a notice be as old as this."""
    then = time.time() - seconds
    os.utime(board.folder / f"{router}.json", (then, then))


def counted(requests: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for _ in range(requests):
        metrics.observe("m", 1, "ok", 0.004)
    return registry


def test_every_router_reads_what_every_router_posted_last(tmp_path: Path) -> None:
    one, two = Board(tmp_path / "board"), Board(tmp_path / "board")
    one.post(Notice(router="a", demand={"m:1": 1.0}))
    two.post(Notice(router="b", demand={"m:1": 2.0}))
    assert [(each.router, each.demand) for each in one.notices()] == [("a", {"m:1": 1.0}), ("b", {"m:1": 2.0})]
    for demand in (3.0, 4.0):  # faster than a file's time of change can tell
        one.post(Notice(router="a", demand={"m:1": demand}))
        assert [each.demand["m:1"] for each in two.notices()] == [demand, 2.0]


def test_a_router_that_went_is_forgotten_at_once_and_one_that_died_after_a_while(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for router in ("went", "died", "long-dead", "lives"):
        board.post(Notice(router=router))
    board.withdraw("went")
    board.withdraw("went")
    aged(board, "died", FRESH_S + 1)
    aged(board, "long-dead", 3600)
    assert [each.router for each in board.notices()] == ["lives"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["died.json", "lives.json"]
    board.post(Notice(router="died"))  # it was only stopped
    assert [each.router for each in board.notices()] == ["died", "lives"]


def test_a_notice_is_never_read_half_written(tmp_path: Path) -> None:
    writer, board, stop = Board(tmp_path), Board(tmp_path), threading.Event()
    family = families_of(counted(1).collect())

    def keep_posting() -> None:
        while not stop.is_set():
            writer.post(Notice(router="a", families=family))

    threads = [threading.Thread(target=keep_posting) for _ in range(2)]
    board.post(Notice(router="a", families=family))
    for thread in threads:
        thread.start()
    try:
        assert all(len(notices) == 1 for notices in (board.notices() for _ in range(300)))
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_board_that_cannot_be_written_to_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path)
    board.post(Notice(router="b", statistics=[{"name": "m"}]))

    def full(notice: Notice) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board, "post", full)
    seat = Seat(board, "a", lambda: Notice(router="a", statistics=[{"name": "mine"}]), several=True)
    assert [each.router for each in seat.notices()] == ["a", "b"]
    assert seat.others() == [{"name": "m"}]


def test_one_scrape_shows_the_samples_of_all_routers_and_each_family_once(tmp_path: Path) -> None:
    board = Board(tmp_path)
    for router, requests in (("a", 2), ("b", 3)):
        board.post(Notice(router=router, families=families_of(counted(requests).collect())))
    scraped = CollectorRegistry()
    scraped.register(AllRouters(board.notices))
    text = generate_latest(scraped).decode()
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(set(types)) == len(types)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["understudy_requests"].type == "counter"
    assert families["understudy_request_seconds"].type == "histogram"
    ok = [each for each in families["understudy_requests"].samples if each.labels["outcome"] == "ok"]
    assert {each.labels["router"]: each.value for each in ok if each.name.endswith("_total")} == {"a": 2, "b": 3}
    buckets = [
        each
        for each in families["understudy_request_seconds"].samples
        if each.name.endswith("_bucket") and each.labels["le"] == "+Inf"
    ]
    assert {each.labels["router"]: each.value for each in buckets} == {"a": 2, "b": 3}


def test_a_counter_keeps_its_kind_and_its_labels_on_the_way() -> None:
    registry = CollectorRegistry()
    Counter("fell", "Falls.", ("where",), registry=registry).labels('the "stairs"\n').inc(2)
    scraped = CollectorRegistry()
    scraped.register(AllRouters(lambda: [Notice(router="a", families=families_of(registry.collect()))]))
    assert scraped.get_sample_value("fell_total", {"where": 'the "stairs"\n', "router": "a"}) == 2
    assert "# TYPE fell_total counter" in generate_latest(scraped).decode()


class Now:
    """Serve's context, as far as the policy reads it."""

    def __init__(self, replicas: int) -> None:
        self.target_num_replicas = replicas


@pytest.mark.parametrize(
    ("demands", "wanted"),
    [((0.0,), 0), ((8.0,), 1), ((8.1,), 2), ((8.0, 8.0, 8.0), 3), ((0.0, 20.0), 3)],
)
def test_replicas_are_wanted_for_what_all_routers_hold(tmp_path: Path, demands: tuple[float, ...], wanted: int) -> None:
    board = Board(tmp_path)
    for number, demand in enumerate(demands):
        notice = Notice(router=f"r{number}", demand={demand_key("m", 2): demand, demand_key("m", 1): 1000.0})
        board.post(notice)
    policy = QueuePolicy(folder=str(tmp_path), model="m", version=2, target_queue=8)
    assert policy(Now(5)) == (wanted, {})


def test_while_no_router_tells_anything_the_replicas_stay_as_many_as_they_are(tmp_path: Path) -> None:
    board = Board(tmp_path / "board")
    policy = QueuePolicy(folder=str(board.folder), model="m", version=2, target_queue=8)
    assert policy(Now(3)) == (3, {})
    board.post(Notice(router="a", demand={demand_key("m", 2): 1.0}))
    assert policy(Now(3)) == (1, {})
    aged(board, "a", FRESH_S + 1)
    assert policy(Now(3)) == (3, {})
    board.withdraw("a")
    board.folder.rmdir()  # the run has ended
    assert policy(Now(3)) == (3, {})
