"""How requests gather, on a pool whose replicas are played by a link that keeps what it is sent."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tensor import Buffer, from_numpy
from rollout.traffic import Priority
from serving.batching import Batch, Job, Pool, new_batch, signature_of
from serving.channel import Link
from serving.config import Batching
from serving.directory import Replica
from serving.errors import UnavailableError
from serving.protocol.messages import InferRequest
from serving.wire import decode_batch_header
from shadow.pair import Arm
from tests.serving.doubler import spec_of


class Sink:
    """What a pool needs of a ``Link``; answers when told to."""

    def __init__(self, priority: Priority = Priority.NORMAL) -> None:
        self.replica = Replica(id="r", model="m", version=1, priority=priority, address="", pid=0, spec={})
        self.inflight: dict[int, Batch] = {}
        self.usable = True
        self.given = 0.0
        self.shares = False
        self.sent: list[Batch] = []
        self.frames: list[Sequence[Buffer]] = []

    def send(self, batch_id: int, batch: Batch, frames: Sequence[Buffer]) -> None:
        assert batch_id == batch.id
        self.inflight[batch_id] = batch
        self.sent.append(batch)
        self.frames.append(frames)

    def answer(self, pool: Pool) -> None:
        """The oldest batch is done."""
        del self.inflight[next(iter(self.inflight))]
        pool.pump()


def pool_of(*sinks: Sink, max_batch_size: int = 16, shared: bool = False, **batching: Any) -> Pool:
    loop = asyncio.get_running_loop()
    pool = Pool(
        spec_of(max_batch_size=max_batch_size), Batching(**batching), loop, measure=lambda: False, shared=shared
    )
    pool.links += [cast(Link, sink) for sink in sinks]
    return pool


def job_of(rows: int = 1, *, width: int = 2, arm: Arm = Arm.BASELINE, name: str = "") -> Job:
    loop = asyncio.get_running_loop()
    inputs = {"x": from_numpy("x", "FP32", np.zeros((rows, width), np.float32))}
    return Job(
        request=InferRequest(model="m", inputs=inputs, request_id=name),
        version=1,
        arm=arm,
        pinned=False,
        stage=0,
        rows=rows,
        signature=signature_of(inputs.values(), batched=True),
        nbytes=8 * rows,
        future=loop.create_future(),
        arrived=loop.time(),
        deadline=loop.time() + 5,
    )


async def turn() -> None:
    """Let the loop do what is due."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_a_lone_request_never_waits() -> None:
    sink = Sink()
    pool = pool_of(sink, max_wait_ms=10_000)
    job = job_of()
    pool.submit(job)
    await turn()
    assert [batch.jobs for batch in sink.sent] == [[job]]
    assert (pool.queued_items, pool.waiting) == (0, False)


async def test_requests_of_one_turn_of_the_loop_share_a_batch() -> None:
    sink = Sink()
    pool = pool_of(sink)
    jobs = [job_of() for _ in range(5)]
    for job in jobs:
        pool.submit(job)
    await turn()
    assert [batch.jobs for batch in sink.sent] == [jobs]
    assert decode_batch_header(sink.frames[0][0]).rows == (1,) * 5


async def test_batches_form_while_the_replica_is_busy() -> None:
    sink = Sink()
    pool = pool_of(sink, max_wait_ms=10_000)
    pool.submit(job_of())
    await turn()
    for _ in range(6):
        pool.submit(job_of())
        await turn()
    assert len(sink.sent) == 1
    sink.answer(pool)
    assert [len(batch.jobs) for batch in sink.sent] == [1, 6]


async def test_a_full_batch_is_sent_ahead_to_a_busy_replica_but_only_one() -> None:
    sink = Sink()
    pool = pool_of(sink, max_batch_size=4, max_wait_ms=10_000)
    for _ in range(13):
        pool.submit(job_of())
    await turn()
    assert [batch.rows for batch in sink.sent] == [4, 4]
    assert pool.queued_items == 5


async def test_what_waits_max_wait_ms_is_sent_ahead_to_a_busy_replica() -> None:
    sink = Sink()
    pool = pool_of(sink, max_wait_ms=30)
    pool.submit(job_of())
    await turn()
    pool.submit(job_of())
    await turn()
    assert len(sink.sent) == 1
    started = asyncio.get_running_loop().time()
    while len(sink.sent) < 2:
        await asyncio.sleep(0.002)
    assert 0.02 <= asyncio.get_running_loop().time() - started < 0.3


async def test_the_busy_replica_that_began_first_is_given_the_next_batch() -> None:
    first, second = Sink(), Sink()
    pool = pool_of(first, second, max_batch_size=1)
    pool.submit(job_of())
    await turn()
    await asyncio.sleep(0.002)
    pool.submit(job_of())
    await turn()
    pool.submit(job_of())
    await turn()
    assert (len(first.sent), len(second.sent)) == (2, 1)


@pytest.mark.parametrize(("configured", "models", "limit"), [(4, 16, 4), (32, 8, 8), (32, 0, 1)])
async def test_the_size_limit_is_the_smaller_of_the_model_s_and_the_configured(
    configured: int, models: int, limit: int
) -> None:
    pool = pool_of(max_batch_size=models)
    assert Pool(pool.spec, Batching(max_batch_size=configured), pool._loop, measure=bool).max_rows == limit


async def test_a_request_that_would_not_fit_waits_for_the_next_batch() -> None:
    sink = Sink()
    pool = pool_of(sink, max_batch_size=4, max_wait_ms=10_000)
    for rows in (3, 2, 2):
        pool.submit(job_of(rows))
    await turn()
    assert [[job.rows for job in batch.jobs] for batch in sink.sent] == [[3], [2, 2]]


async def test_requests_of_different_signatures_are_not_mixed_and_keep_their_order() -> None:
    sink = Sink()
    pool = pool_of(sink, max_wait_ms=10_000)
    jobs = [job_of(width=width, name=str(at)) for at, width in enumerate((2, 3, 2, 3))]
    for job in jobs:
        pool.submit(job)
    await turn()
    sink.answer(pool)
    assert [[job.request.request_id for job in batch.jobs] for batch in sink.sent] == [["0", "2"], ["1", "3"]]


async def test_a_full_queue_refuses_and_says_how_long_it_is() -> None:
    pool = pool_of(max_queue=3)
    pool.submit(job_of(2))
    with pytest.raises(UnavailableError, match=r"queue full \(3 items\)"):
        pool.submit(job_of(2))
    pool.submit(job_of(1))
    assert pool.queued_items == 3


async def test_a_queue_is_bounded_in_bytes_too() -> None:
    sink = Sink()
    pool = pool_of(max_queue_bytes=100)
    large, left, failed, small = (job_of(name=name) for name in ("large", "left", "failed", "small"))
    large.nbytes, left.nbytes, failed.nbytes, small.nbytes = 1000, 60, 1000, 40
    failed.failed = failed.admitted = True  # the baseline takes it over from the candidate's queue, whatever its size
    pool.submit(large)  # alone, it may be of any size
    with pytest.raises(UnavailableError, match=r"queue full \(100 bytes\)"):
        pool.submit(small)
    assert pool.drain() == [large]
    for job in (left, failed, small):
        pool.submit(job)
    with pytest.raises(UnavailableError, match="100 bytes"):
        pool.submit(job_of())
    left.future.cancel()
    assert pool.expire(lambda _: False) == []
    pool.submit(more := job_of())
    pool.links.append(cast(Link, sink))
    pool.pump()
    assert [batch.jobs for batch in sink.sent] == [[failed, small, more]]
    again = job_of()
    again.nbytes = 1000
    pool.submit(again)  # nothing is counted that has left


async def test_requests_whose_clients_left_are_dropped_and_not_run() -> None:
    sink = Sink()
    pool = pool_of(max_queue=2)
    left, stays = job_of(), job_of()
    pool.submit(left)
    pool.submit(stays)
    left.future.cancel()
    pool.links.append(cast(Link, sink))
    pool.pump()
    assert [batch.jobs for batch in sink.sent] == [[stays]]
    assert pool.queued_items == 0


async def test_when_all_clients_left_nothing_is_run() -> None:
    sink = Sink()
    pool = pool_of(sink)
    job = job_of()
    pool.submit(job)
    job.future.cancel()
    await turn()
    assert (sink.sent, pool.waiting) == ([], False)


async def test_a_batch_tried_again_goes_first_and_as_it_is() -> None:
    sink = Sink()
    pool = pool_of(sink, max_wait_ms=0)
    pool.submit(job_of(name="new"))
    again = new_batch([job_of(name="again")])
    pool.retry(again)
    await turn()
    assert sink.sent[0] is again
    assert [job.request.request_id for job in sink.sent[1].jobs] == ["new"]


async def test_what_is_due_is_taken_out_wherever_it_waits() -> None:
    pool = pool_of()
    due, left, stays, due_again, stays_again = (job_of() for _ in range(5))
    for job in (due, left, stays):
        pool.submit(job)
    pool.retry(new_batch([due_again, stays_again]))
    left.future.cancel()
    assert pool.expire(lambda job: job in (due, due_again, left)) == [due_again, due]
    assert pool.queued_items == 1
    assert pool.drain() == [stays_again, stays]
    assert not pool.waiting
    assert pool.expire(lambda job: True) == []


async def test_a_batch_tried_again_that_is_due_as_a_whole_is_gone() -> None:
    pool = pool_of()
    pool.retry(new_batch([job_of()]))
    assert len(pool.expire(lambda job: True)) == 1
    assert not pool.waiting


async def test_only_what_the_baseline_may_answer_instead_is_taken_from_a_candidate_s_queue() -> None:
    pool = pool_of()
    free, pinned = job_of(arm=Arm.CANDIDATE), job_of(arm=Arm.CANDIDATE)
    pinned.pinned = True
    for job in (free, pinned):
        pool.submit(job)
    assert pool.take_protected() == [free]
    assert pool.drain() == [pinned]


async def test_a_busy_replica_that_other_routers_use_too_is_sent_full_batches_alone() -> None:
    sink = Sink()
    pool = pool_of(sink, max_batch_size=4, max_wait_ms=0, shared=True)
    for _ in range(4):
        pool.submit(job_of())
        await turn()
    await asyncio.sleep(0.01)
    assert ([batch.rows for batch in sink.sent], pool.queued_items) == ([1], 3)
    pool.submit(job_of())
    await turn()
    assert [batch.rows for batch in sink.sent] == [1, 4]
    pool.submit(job_of())
    sink.answer(pool)
    assert pool.queued_items == 1
    sink.answer(pool)
    assert [batch.rows for batch in sink.sent] == [1, 4, 1]


async def test_idle_replicas_take_turns() -> None:
    sinks = [Sink(), Sink(), Sink()]
    pool = pool_of(*sinks)
    for _ in range(6):
        pool.submit(job_of())
        await turn()
        for sink in sinks:
            if sink.inflight:
                sink.answer(pool)
    assert [len(sink.sent) for sink in sinks] == [2, 2, 2]


async def test_what_clients_want_of_a_version_is_what_waits_and_what_runs_for_them() -> None:
    sink = Sink()
    pool = pool_of(sink, max_batch_size=4, max_wait_ms=10_000)
    for _ in range(7):
        pool.submit(job_of(2))
        await turn()
    pool.retry(new_batch([job_of(3)]))
    await turn()
    assert (sum(batch.rows for batch in sink.inflight.values()), pool.queued_items) == (6, 8)
    assert pool.demand == 17


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=40),
    answers=st.lists(st.integers(0, 2), max_size=40),
    replicas=st.integers(1, 3),
)
def test_a_batch_goes_to_the_replica_with_the_least_to_do(rows: list[int], answers: list[int], replicas: int) -> None:
    async def play() -> None:
        sinks = [Sink() for _ in range(replicas)]
        pool = pool_of(*sinks, max_batch_size=4, max_wait_ms=0, max_queue=10_000)
        send = pool.send

        def checked(link: Link, batch: Batch) -> None:
            open_to_work = [sink for sink in sinks if len(sink.inflight) < 2]
            assert _rows(link) == min(map(_rows, open_to_work))
            assert not link.inflight or all(sink.inflight for sink in sinks), "another had nothing to do"
            send(link, batch)

        cast(Any, pool).send = checked
        for number, replica in zip(rows, [*answers, *[0] * len(rows)], strict=False):
            pool.submit(job_of(number))
            await turn()
            if replica < replicas and sinks[replica].inflight:
                sinks[replica].answer(pool)

    asyncio.run(play())


def _rows(link: Sink | Link) -> int:
    return sum(batch.rows for batch in link.inflight.values())


async def test_replicas_in_shadow_get_work_only_while_there_are_no_others() -> None:
    shadow, normal = Sink(Priority.SHADOW), Sink()
    pool = pool_of(shadow)
    assert pool.idle_link() is cast(Link, shadow)
    pool.links.append(cast(Link, normal))
    assert pool.active == [cast(Link, normal)]
    normal.usable = False
    assert not pool.usable


arrivals = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(1, 4), st.sampled_from([2, 3])),
        st.tuples(st.just("answer"), st.integers(0, 1), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("turn"), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@given(events=arrivals, max_batch_size=st.integers(1, 6), max_wait_ms=st.sampled_from([0, 10_000]))
def test_every_request_is_run_in_exactly_one_batch_and_in_order_within_its_signature(
    events: list[tuple[str, int, int]], max_batch_size: int, max_wait_ms: float
) -> None:
    async def play() -> None:
        sinks = [Sink(), Sink()]
        pool = pool_of(*sinks, max_batch_size=max_batch_size, max_wait_ms=max_wait_ms, max_queue=10_000)
        jobs: list[Job] = []
        for what, number, width in events:
            if what == "submit":
                jobs.append(job_of(number, width=width))
                pool.submit(jobs[-1])
            elif what == "cancel" and number < len(jobs):
                jobs[number].future.cancel()
            elif what == "answer" and sinks[number].inflight:
                sinks[number].answer(pool)
            elif what == "turn":
                await turn()
            assert 0 <= pool.queued_items <= sum(job.rows for job in jobs)
        await turn()
        for _ in range(len(jobs) + 2):
            for sink in sinks:
                if sink.inflight:
                    sink.answer(pool)
        assert not pool.waiting
        _check(sorted((batch for sink in sinks for batch in sink.sent), key=lambda batch: batch.id), jobs, pool)

    asyncio.run(play())


def _check(batches: list[Batch], jobs: list[Job], pool: Pool) -> None:
    ran = [job for batch in batches for job in batch.jobs]
    assert len({id(job) for job in ran}) == len(ran)
    assert {id(job) for job in jobs if not job.future.cancelled()} <= {id(job) for job in ran}
    assert pool.queued_items == 0
    for batch in batches:
        assert len({job.signature for job in batch.jobs}) == 1
        assert batch.rows <= pool.max_rows or len(batch.jobs) == 1
    for signature in {job.signature for job in ran}:
        places = [jobs.index(job) for job in ran if job.signature == signature]
        assert places == sorted(places)
