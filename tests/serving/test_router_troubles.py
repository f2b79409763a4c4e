"""What a router makes of troubles that come together: a death and a pinned request, a fallback and a slow baseline."""

import asyncio
import errno
import itertools
import socket
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from rollout.traffic import Priority
from serving import router_process
from serving.errors import DeadlineError, ServingError, UnavailableError
from tests.serving.doubler import BASELINE, CANDIDATE, EXITS, MODEL, Doubler
from tests.serving.stage import DEADLINE_S, Stage, config_of, request_of, until


@pytest.fixture
async def faults() -> list[dict[str, Any]]:
    """What callbacks raised on the event loop."""
    seen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: seen.append(context))
    return seen


@pytest.mark.parametrize("pin", [{"version": CANDIDATE}, {"arm": "candidate"}])
async def test_a_pinned_request_whose_version_has_no_replica_left_ends_at_its_deadline(
    stage: Stage, pin: dict[str, Any]
) -> None:
    stage.table()
    stage.thread(BASELINE)
    stage.process(CANDIDATE)
    await stage.cast(BASELINE, CANDIDATE)
    asked = asyncio.ensure_future(stage.router.infer(request_of(EXITS, **pin)))
    with pytest.raises(ServingError):
        await asyncio.wait_for(asked, DEADLINE_S + 1)
    await until(lambda: (MODEL, CANDIDATE) not in stage.router._pools)
    assert await stage.ask_many(3) == [BASELINE] * 3


async def test_a_baseline_that_takes_over_has_the_time_that_it_always_has(stage: Stage) -> None:
    stage.table(weight=100)
    stage.thread(BASELINE, "slow").slow_s = 0.65 * DEADLINE_S  # more than the candidate may take
    stage.thread(CANDIDATE, "raises")
    await stage.cast(BASELINE, CANDIDATE)
    assert (await stage.ask(2)).version == BASELINE


async def test_the_baseline_s_queue_is_bounded_for_what_its_candidate_never_admitted(tmp_path: Path) -> None:
    stage = Stage(tmp_path, config_of(tmp_path, batching={"max_batch_size": 4, "max_queue": 16}))
    try:
        stage.table(weight=50)
        baseline = stage.thread(BASELINE, "waits")
        await stage.cast(BASELINE)  # and no candidate
        asked = [asyncio.ensure_future(stage.router.infer(request_of(value))) for value in range(200)]
        await asyncio.sleep(0.05)
        assert stage.router._pools[MODEL, BASELINE].queued_items <= 16
        baseline.release.set()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(each) for each in ended if isinstance(each, BaseException)} == {UnavailableError}
        assert sum(not isinstance(each, BaseException) for each in ended) >= 16
        assert stage.router._pools[MODEL, BASELINE].queued_items == 0
    finally:
        stage.close()


async def test_a_replica_that_is_announced_again_is_used_again(stage: Stage) -> None:
    stage.table(candidate=None)
    baseline = stage.thread(BASELINE, "slow")
    baseline.slow_s = 0.4
    await stage.cast(BASELINE)
    first = asyncio.ensure_future(stage.ask(1))
    await until(lambda: baseline.batches)
    (replica,) = stage.directory.replicas().values()
    stage.directory.withdraw(replica.id)
    await until(lambda: not stage.live(BASELINE))
    stage.directory.announce(replica)
    await first
    assert (await stage.ask(2)).version == BASELINE


async def test_a_machine_without_descriptors_says_nothing_of_its_replicas(
    stage: Stage, faults: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)

    def none_left(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr("serving.channel.Path.read_text", none_left)
        patched.setattr("serving.directory.os.listdir", none_left)
        await asyncio.sleep(0.6)
        assert stage.live(BASELINE)
        await stage.ask(1)
    await stage.ask(2)
    assert faults == []


async def test_two_batches_given_up_together_are_given_up_once(tmp_path: Path, faults: list[dict[str, Any]]) -> None:
    batching = {"max_batch_size": 4, "max_wait_ms": 0, "timeout_s": 0.3}
    stage = Stage(tmp_path, config_of(tmp_path, batching=batching))
    try:
        stage.table(candidate=None)
        stage.thread(BASELINE, "waits")
        await stage.cast(BASELINE)
        ended = await asyncio.gather(
            *(stage.router.infer(request_of(value)) for value in range(8)), return_exceptions=True
        )
        assert {type(each) for each in ended} <= {DeadlineError, UnavailableError}
        assert faults == []
    finally:
        stage.close()


async def test_a_lane_that_is_opened_again_settles_nothing_of_the_one_before(stage: Stage) -> None:
    stage.table()
    stage.thread(BASELINE)
    candidate = stage.thread(CANDIDATE, "waits", priority=Priority.SHADOW)
    await stage.cast(BASELINE, CANDIDATE)
    await stage.ask(1)
    await until(lambda: candidate.batches)
    stage.table(candidate=None)  # as when control came back before the candidate had announced itself
    stage.table()
    candidate.release.set()
    await stage.ask(2)
    sums, account = await stage.sums(), await stage.account()
    assert (sums.items, account.sampled, account.mirrored) == (1, 1, 1)
    await until(lambda: stage.lane.held_bytes == 0)
    assert stage.shadow_lane.recorder.snapshot().fault is None


async def test_a_request_that_no_replica_was_free_for_is_told_so_unless_its_client_hurried(stage: Stage) -> None:
    stage.table(candidate=None)
    baseline = stage.thread(BASELINE, "waits")
    await stage.cast(BASELINE)
    running = [asyncio.ensure_future(stage.router.infer(request_of(value))) for value in range(8)]
    await until(lambda: baseline.batches)
    with pytest.raises(DeadlineError):
        await stage.router.infer(request_of(9, timeout_s=0.1))
    with pytest.raises(UnavailableError, match="no replica was free within the deadline"):
        await stage.router.infer(request_of(10))
    await asyncio.gather(*running, return_exceptions=True)


async def test_an_error_s_text_that_utf_8_cannot_hold_costs_its_request_alone(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprises(_: Doubler) -> None:
        raise ValueError("cannot read \udcff")

    monkeypatch.setattr(Doubler, "_surprises", surprises, raising=False)
    stage.table(candidate=None)
    backend = stage.thread(BASELINE, "surprises")
    await stage.cast(BASELINE)
    with pytest.raises(ServingError, match=r"cannot read \\udcff"):
        await stage.router.infer(request_of(1))
    backend.fault = "none"
    await stage.ask(2)


async def test_a_batch_for_which_there_is_no_memory_fails_and_its_replica_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object, **__: object) -> Any:
        raise MemoryError("Unable to allocate 1 GiB")

    stage.table(candidate=None)
    stage.thread(BASELINE)
    await stage.cast(BASELINE)
    with monkeypatch.context() as patched:
        patched.setattr("serving.replica._stack", no_memory)
        with pytest.raises(ServingError, match="MemoryError: Unable to allocate 1 GiB"):
            await stage.router.infer(request_of(1))
    await stage.ask(2)


def test_an_answer_of_the_router_s_process_that_comes_too_late_is_not_taken_for_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(router_process, "_ANSWER_S", 0.2)
    ours, theirs = socket.socketpair()
    host = router_process.RouterProcess.__new__(router_process.RouterProcess)
    host._connection, host._lock, host._asked = Connection(ours.detach()), threading.Lock(), 0
    numbers = itertools.count(1)

    class Server:
        def report(self) -> dict[str, int]:
            number = next(numbers)
            if number == 2:
                time.sleep(0.4)
            return {"number": number}

        def receive(self, table: dict[str, int]) -> None:
            pass

    child = Connection(theirs.detach())
    stopping = threading.Event()
    answering = threading.Thread(target=router_process._answer, args=(child, Server(), stopping), daemon=True)
    answering.start()
    assert host.report() == {"number": 1}
    with pytest.raises(TimeoutError):
        host.report()
    time.sleep(0.4)
    for number in (3, 4):
        assert host.report() == {"number": number}
        host.receive({"table": number})
    stopping.set()
    host._connection.close()
    answering.join(5)
