"""The control side as routers and the controller see it; model replicas are hosted in memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rollout.traffic import Head, Priority, Readiness, Route
from serving import control
from serving.control import ControlTraffic
from serving.directory import Directory
from serving.router import table_from
from shadow.errors import EvidenceError
from shadow.labels import Label, LabelJoin
from tests.serving.control_room import DEPLOYMENT, MemoryHost, Reporter, route_of, write_version
from tests.serving.doubler import MODEL
from tests.serving.stage import config_of


class Room:
    """Control with its host and its routers; ``restarted`` gives the same after a crash."""

    def __init__(self, folder: Path, heads: dict[str, Head] | None = None, **model: Any) -> None:
        self.folder, self.config = folder, config_of(folder, **model)
        self.directory = Directory(folder / "replicas")
        self.host = MemoryHost(self.directory)
        self.heads = heads or {}
        self.epoch = 1
        self.traffic = ControlTraffic(
            self.config,
            self.directory,
            self.host,
            epoch=lambda: self.epoch,
            loop=asyncio.get_running_loop(),
            heads=lambda deployment_id: self.heads,
        )
        self.reporters: list[Reporter] = []

    def reporter(self, name: str = "a") -> Reporter:
        self.reporters.append(Reporter(self.config.reports, name))
        return self.reporters[-1]

    def close(self) -> None:
        for reporter in self.reporters:
            reporter.recorder.close()


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    for version in (1, 2):
        write_version(tmp_path / "repository", version)
    made = Room(tmp_path)
    yield made
    made.close()


# The exchange


async def test_a_router_that_has_the_table_waits_until_it_changes(room: Room) -> None:
    router = room.reporter()
    room.traffic.route(route_of())
    await router.exchange(room.traffic)
    assert router.table == (1, 1)
    waiting = asyncio.create_task(router.exchange(room.traffic, wait_s=10))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await asyncio.to_thread(room.traffic.route, route_of(weight=5, stage=1))  # as the controller's thread does
    await asyncio.wait_for(waiting, 1)
    assert router.table == (1, 2)


async def test_a_change_reaches_every_router_at_once(room: Room) -> None:
    room.traffic.route(route_of())
    routers = [room.reporter(f"r{number}") for number in range(4)]
    for router in routers:
        await router.exchange(room.traffic)
    waiting = [asyncio.create_task(router.exchange(room.traffic, wait_s=10)) for router in routers]
    await asyncio.sleep(0.05)
    await asyncio.to_thread(room.traffic.route, route_of(weight=5, stage=1))
    await asyncio.wait_for(asyncio.gather(*waiting), 1)
    assert {router.table for router in routers} == {(1, 2)}


async def test_a_router_that_is_behind_gets_the_table_at_once(room: Room) -> None:
    room.traffic.route(route_of())
    started = time.monotonic()
    await room.reporter().exchange(room.traffic, wait_s=10)
    assert time.monotonic() - started < 1


async def test_without_a_change_the_table_comes_after_the_wait(room: Room) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    await router.exchange(room.traffic)
    await asyncio.sleep(0.01)
    started = time.monotonic()
    await router.exchange(room.traffic, wait_s=0.1)
    assert 0.09 <= time.monotonic() - started < 1


async def test_the_same_route_again_is_no_change(room: Room) -> None:
    for _ in range(3):
        room.traffic.route(route_of())
    assert room.traffic.table()["version"] == 1


async def test_a_new_epoch_makes_every_router_behind(room: Room) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    await router.exchange(room.traffic)
    room.epoch = 2
    await asyncio.wait_for(router.exchange(room.traffic, wait_s=10), 1)
    assert router.table == (2, 1)


async def test_a_table_is_read_back_as_it_was_published(room: Room) -> None:
    route = route_of(weight=20, stage=2)
    room.traffic.route(route)
    table = table_from(room.traffic.table())
    assert table.routes == {MODEL: route}
    assert (table.order, table.lease_s) == ((1, 1), 30.0)


# Evidence


async def test_a_snapshot_is_the_sum_of_all_routers_chains(room: Room) -> None:
    room.traffic.route(route_of())
    one, two = room.reporter("a"), room.reporter("b")
    one.record("1", "2", "3")
    two.record("4", "5", top1=(0, 1))
    two.accounting.sample(1)  # still on its way
    for router in (one, two, one):
        await router.exchange(room.traffic)
    snapshot = room.traffic.snapshot(DEPLOYMENT)
    sums = snapshot.evidence.stage(0)
    assert (sums.items, sums.agree, sums.candidate.requests) == (5, 3, 5)
    assert [(head.chain, head.rows) for head in snapshot.heads] == [("a-1", 3), ("b-1", 2)]
    assert {chain: (each.mirrored, each.pending) for chain, each in snapshot.accounts.items()} == {
        "a-1": (3, 0),
        "b-1": (2, 1),
    }
    assert (snapshot.accounting["sampled"], snapshot.accounting["mirrored"], snapshot.accounting["pending"]) == (
        6,
        5,
        1,
    )


async def test_what_a_router_told_that_never_comes_back_still_counts(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.traffic.route(route_of())
    lost, left, fresh = room.reporter("lost"), room.reporter("left"), room.reporter("fresh")
    lost.record("1", "2", top1=(0, 1))
    lost.accounting.sample(3)  # it dies with these
    left.record("3")
    for router in (lost, left):
        await router.exchange(room.traffic)
    now = time.monotonic()
    monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: now + 3600, time=time.time))
    for number in range(4, 8):
        left.record(str(number))
        await left.exchange(room.traffic)
    await fresh.exchange(room.traffic)
    snapshot = room.traffic.snapshot(DEPLOYMENT)
    sums = snapshot.evidence.stage(0)
    assert (sums.items, sums.agree) == (7, 5)
    account = snapshot.accounting
    assert (account["sampled"], account["mirrored"], account["pending"], account["failed"]) == (10, 7, 0, 3)
    assert account["sampled"] == sum(items for outcome, items in account.items() if outcome != "sampled")


async def test_what_waits_in_a_router_that_is_only_silent_is_pending_again_when_it_is_heard(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.traffic.route(route_of())
    slow, other = room.reporter("slow"), room.reporter("other")
    slow.record("1")
    slow.accounting.sample(2)
    await slow.exchange(room.traffic)
    ends = []
    for later, heard in ((0, other), (60, other), (60, slow)):
        now = time.monotonic() + later
        monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda now=now: now, time=time.time))
        await heard.exchange(room.traffic)
        account = room.traffic.snapshot(DEPLOYMENT).accounting
        ends.append((account["pending"], account["failed"]))
    assert ends == [(2, 0), (0, 2), (2, 0)]


async def test_after_a_restart_of_both_sides_what_was_on_its_way_ends_as_lost(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    router.accounting.sample(2)
    router.record("1")  # its segment says that two are pending
    await router.exchange(room.traffic)
    (head,) = room.traffic.snapshot(DEPLOYMENT).heads
    again = Room(room.folder, {head.chain: head})
    again.traffic.route(route_of())
    fresh = again.reporter("b")
    await fresh.exchange(again.traffic)
    assert again.traffic.snapshot(DEPLOYMENT).accounting["pending"] == 2, "its router may still be heard"
    now = time.monotonic()
    monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: now + 60, time=time.time))
    await fresh.exchange(again.traffic)
    account = again.traffic.snapshot(DEPLOYMENT).accounting
    assert (account["sampled"], account["pending"], account["failed"]) == (3, 0, 2)
    again.close()


async def test_nothing_grows_with_the_routers_that_came_and_went(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    now = time.monotonic()
    for restart in range(20):
        at = now + 60 * restart
        monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda at=at: at, time=time.time))
        router.name = f"r{restart}"
        await router.exchange(room.traffic, error="evidence cannot be written: disk full")
        assert len(room.traffic._heard) == 1
        assert len(room.traffic._sources[DEPLOYMENT].errors) == 1
        assert [each.role for each in room.traffic.processes()] == ["router", "replica"]


async def test_only_the_latest_report_of_a_chain_counts(room: Room) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    for request_id in ("1", "2"):
        router.record(request_id)
        await router.exchange(room.traffic)
    assert room.traffic.snapshot(DEPLOYMENT).evidence.stage(0).items == 2


async def test_silent_routers_are_an_error_not_an_absence_of_harm(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.traffic.route(route_of())
    with pytest.raises(EvidenceError, match="no router was heard"):
        room.traffic.snapshot(DEPLOYMENT)
    await room.reporter().exchange(room.traffic)
    assert room.traffic.snapshot(DEPLOYMENT).heads == ()
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + control.SILENCE_S + 1, time=time.time)
    monkeypatch.setattr(control, "time", later)
    with pytest.raises(EvidenceError, match="no router was heard for 5 s"):
        room.traffic.snapshot(DEPLOYMENT)


async def test_a_router_s_fault_is_an_error_until_it_is_over(room: Room) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    await router.exchange(room.traffic, error="evidence cannot be written: disk full")
    with pytest.raises(EvidenceError, match="disk full"):
        room.traffic.snapshot(DEPLOYMENT)
    await router.exchange(room.traffic)
    assert room.traffic.snapshot(DEPLOYMENT).evidence.stages == {}


async def test_the_fault_of_a_router_that_has_died_passes(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    room.traffic.route(route_of())
    await room.reporter("dead").exchange(room.traffic, error="evidence cannot be written: disk full")
    now = time.monotonic()
    monkeypatch.setattr(control, "time", SimpleNamespace(monotonic=lambda: now + 60, time=time.time))
    await room.reporter("next").exchange(room.traffic)
    assert room.traffic.snapshot(DEPLOYMENT).evidence.stages == {}


async def test_a_rollout_that_is_not_routed_has_no_evidence(room: Room) -> None:
    router = room.reporter()
    router.record("1")
    await router.exchange(room.traffic)
    with pytest.raises(EvidenceError, match="not routed"):
        room.traffic.snapshot(DEPLOYMENT)


async def test_after_a_restart_the_evidence_comes_from_disk_up_to_the_recorded_heads(room: Room) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    router.record("1", "2")
    await router.exchange(room.traffic)
    (head,) = room.traffic.snapshot(DEPLOYMENT).heads
    router.record("3")  # durable, but no decision has seen it
    again = Room(room.folder, {head.chain: head})
    again.traffic.route(route_of())
    other = again.reporter("b")  # a router that is new, too
    await other.exchange(again.traffic)
    snapshot = again.traffic.snapshot(DEPLOYMENT)
    assert (snapshot.evidence.stage(0).items, snapshot.heads) == (2, (head,))
    assert (snapshot.accounting["sampled"], snapshot.accounting["mirrored"]) == (2, 2)
    await router.exchange(again.traffic)  # the old router is heard again: its chain goes on
    snapshot = again.traffic.snapshot(DEPLOYMENT)
    assert (snapshot.evidence.stage(0).items, snapshot.accounting["sampled"]) == (3, 3)
    again.close()


async def test_damaged_evidence_is_an_error_but_routers_still_get_their_table(room: Room) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    router.record("1")
    await router.exchange(room.traffic)
    (head,) = room.traffic.snapshot(DEPLOYMENT).heads
    (segment,) = (room.config.reports / DEPLOYMENT / "evidence").glob("*.parquet")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    again = Room(room.folder, {head.chain: head})
    again.traffic.route(route_of())
    await router.exchange(again.traffic)
    assert router.table == (1, 1)
    with pytest.raises(EvidenceError, match="chain a-1: changed"):
        again.traffic.snapshot(DEPLOYMENT)
    again.traffic.route(Route(model=MODEL, baseline=1))
    await router.exchange(again.traffic)
    assert router.table == (1, 2)


async def test_labels_join_the_pairs_of_all_routers(room: Room) -> None:
    room.traffic.route(route_of())
    one, two = room.reporter("a"), room.reporter("b")
    one.record("1")
    two.record("2", top1=(0, 1))
    for router in (one, two):
        await router.exchange(room.traffic)
    labels = [Label(request_id="1", label=0), Label(request_id="2", label=1), Label(request_id="3", label=1)]
    assert room.traffic.add_labels(DEPLOYMENT, labels) == {"accepted": 3, "duplicates": 0}
    assert room.traffic.add_labels(DEPLOYMENT, labels[2:]) == {"accepted": 0, "duplicates": 1}
    snapshot = room.traffic.snapshot(DEPLOYMENT)
    cells = snapshot.evidence.stage(0).labels
    assert (cells.both, cells.candidate_only, cells.n) == (1, 1, 2)
    assert [head.chain for head in snapshot.heads] == ["a-1", "b-1", "labels"]


async def test_a_label_that_comes_after_an_advance_counts_in_the_stage_of_its_pair(room: Room) -> None:
    room.traffic.route(route_of())
    router = room.reporter()
    router.record("1")
    await router.exchange(room.traffic)
    room.traffic.snapshot(DEPLOYMENT)
    room.traffic.route(route_of(weight=5, stage=1))
    room.traffic.add_labels(DEPLOYMENT, [Label(request_id="1", label=0)])
    assert room.traffic.snapshot(DEPLOYMENT).evidence.stage(0).labels.both == 1


async def test_a_rollout_s_labels_are_opened_once_though_two_threads_ask_first(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    class Counted(LabelJoin):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            opened.append(1)
            time.sleep(0.05)  # so that the others come meanwhile
            super().__init__(*arguments, **options)

    monkeypatch.setattr(control, "LabelJoin", Counted)
    room.traffic.route(route_of())
    labels = [[Label(request_id=str(number), label=0)] for number in range(4)]
    adding = (asyncio.to_thread(room.traffic.add_labels, DEPLOYMENT, label) for label in labels)
    assert [added["accepted"] for added in await asyncio.gather(*adding)] == [1] * 4
    assert len(opened) == 1


async def test_a_rollout_that_has_ended_is_let_go_of(room: Room) -> None:
    room.traffic.route(route_of())
    await room.reporter().exchange(room.traffic)
    room.traffic.snapshot(DEPLOYMENT)
    folder = room.config.reports / DEPLOYMENT / "evidence"
    assert (folder / "labels.sqlite-wal").exists()
    room.traffic.route(Route(model=MODEL, baseline=1))
    assert not (folder / "labels.sqlite-wal").exists()
    with pytest.raises(EvidenceError, match="not routed"):
        room.traffic.add_labels(DEPLOYMENT, [Label(request_id="1", label=0)])


# Replicas


async def test_a_version_is_ready_when_its_replicas_have_announced_themselves(room: Room) -> None:
    room.host.announces = False
    assert room.traffic.load(MODEL, 2, Priority.SHADOW)[0] is Readiness.LOADING
    room.host.remove(MODEL, 2, Priority.SHADOW)
    room.host.announces = True
    assert room.traffic.load(MODEL, 2, Priority.SHADOW) == (Readiness.READY, "")


async def test_why_a_version_did_not_load_is_passed_on(room: Room) -> None:
    room.host.next = (Readiness.FAILED, "sha256 mismatch")
    assert room.traffic.load(MODEL, 2, Priority.SHADOW) == (Readiness.FAILED, "sha256 mismatch")


async def test_a_rollout_has_both_versions_in_shadow_for_as_long_as_it_lasts(room: Room) -> None:
    room.traffic.route(Route(model=MODEL, baseline=1))
    room.traffic.load(MODEL, 2, Priority.SHADOW)
    in_shadow = {(MODEL, version, Priority.SHADOW) for version in (1, 2)}
    assert set(room.host.running) == {(MODEL, 1, Priority.NORMAL), *in_shadow}
    room.traffic.route(route_of())
    room.traffic.load(MODEL, 2, Priority.NORMAL)
    room.traffic.route(route_of(weight=5, stage=1))
    answering = {(MODEL, version, Priority.NORMAL) for version in (1, 2)}
    assert set(room.host.running) == answering | in_shadow
    room.traffic.route(Route(model=MODEL, baseline=2))
    for version in (1, 2):
        room.traffic.unload_shadow(MODEL, version)
    assert set(room.host.running) == answering


async def test_without_a_share_for_a_twin_there_is_none(tmp_path: Path) -> None:
    write_version(tmp_path / "repository", 1)
    room = Room(tmp_path, mirror={"twin": 0})
    room.traffic.route(Route(model=MODEL, baseline=1))
    room.traffic.load(MODEL, 2, Priority.SHADOW)
    assert set(room.host.running) == {(MODEL, 1, Priority.NORMAL), (MODEL, 2, Priority.SHADOW)}


async def test_a_twin_that_cannot_be_loaded_is_named_as_such(room: Room) -> None:
    room.traffic.route(Route(model=MODEL, baseline=1))
    room.host.running[MODEL, 2, Priority.SHADOW] = (Readiness.READY, "")
    room.host.running[MODEL, 1, Priority.SHADOW] = (Readiness.FAILED, "out of memory")
    room.host.announce(MODEL, 2, Priority.SHADOW)
    assert room.traffic.load(MODEL, 2, Priority.SHADOW) == (Readiness.FAILED, "the baseline's twin: out of memory")


async def test_replicas_that_an_earlier_rollout_left_at_normal_priority_go_before_the_shadow(
    room: Room,
) -> None:
    room.traffic.route(route_of(weight=5, stage=1))
    room.traffic.load(MODEL, 2, Priority.NORMAL)
    room.traffic.route(route_of(deployment_id="m-2-20260101T000001Z"))
    room.traffic.load(MODEL, 2, Priority.SHADOW)
    in_shadow = {(MODEL, version, Priority.SHADOW) for version in (1, 2)}
    assert set(room.host.running) == {(MODEL, 1, Priority.NORMAL), *in_shadow}


async def test_what_the_host_failed_to_do_for_a_route_is_done_at_the_next_tick(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("the host is away")

    with monkeypatch.context() as away:
        away.setattr(room.host, "ensure", refuse)
        with pytest.raises(OSError, match="away"):
            room.traffic.route(route_of())
    assert room.host.running == {}
    room.traffic.route(route_of())
    assert set(room.host.running) == {(MODEL, 1, Priority.NORMAL)}


async def test_unloading_spares_the_baseline(room: Room) -> None:
    room.traffic.route(route_of())
    room.traffic.load(MODEL, 2, Priority.SHADOW)
    room.traffic.unload(MODEL, 1)
    room.traffic.unload(MODEL, 2)
    room.traffic.unload(MODEL, 2)
    room.traffic.unload_shadow(MODEL, 1)
    assert set(room.host.running) == {(MODEL, 1, Priority.NORMAL)}


async def test_the_replaced_baseline_is_kept_warm_and_the_one_before_it_let_go(room: Room) -> None:
    for baseline in (1, 2, 3):
        room.traffic.route(Route(model=MODEL, baseline=baseline))
    assert {version for _, version, _ in room.host.running} == {2, 3}


async def test_facts_come_from_the_repository(room: Room) -> None:
    facts = room.traffic.describe(MODEL, 2)
    assert (facts["backend"], facts["provenance"], len(facts["sha256"])) == ("doubler", {"dataset": "none"}, 64)
