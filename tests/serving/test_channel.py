"""A link to a real replica in a process of its own, over a real socket."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.tensor import Buffer, from_numpy
from rollout.traffic import Priority
from serving.channel import Link
from serving.directory import Directory, Replica
from serving.frames import pack
from serving.reply import Result, results_of
from serving.wire import ReplyHeader, encode_batch
from tests.serving.doubler import BASELINE
from tests.serving.stage import Stage, WorkerProcess, until

NOTICED_S = 1.0


class Wire:
    """A link, and what it reported."""

    def __init__(self, replica: Replica) -> None:
        self.replies: dict[int, list[Result]] = {}
        self.headers: dict[int, ReplyHeader] = {}
        self.downs = 0
        self.link = Link(asyncio.get_running_loop(), replica, on_reply=self._replied, on_down=lambda link: self._down())

    def _replied(self, link: Link, header: ReplyHeader, reply: Sequence[Buffer]) -> None:
        rows = link.inflight.pop(header.id, None)
        self.headers[header.id] = header
        if rows is not None:
            self.replies[header.id] = results_of(header, reply[1:], rows, batched=True)

    def _down(self) -> None:
        self.downs += 1

    def send(self, number: int, *values: float, width: int = 2) -> None:
        """A batch with a request per value."""
        requests = [{"x": from_numpy("x", "FP32", np.full((1, width), value, np.float32))} for value in values]
        rows = (1,) * len(values)
        self.link.send(number, rows, encode_batch(number, rows, requests, batched=True, measure=False))

    async def answers(self, number: int) -> list[float]:
        """The first score of every answer."""
        await until(lambda: number in self.replies)
        return [float(result.outputs["y"].numpy()[0, 0]) for result in self.replies[number]]


@pytest.fixture
async def plug(tmp_path: Path) -> AsyncIterator[Callable[[WorkerProcess | None], "asyncio.Task[Wire]"]]:
    """Connects to the only replica that is announced, once it is."""
    directory = Directory(tmp_path)
    wires: list[Wire] = []
    processes: list[WorkerProcess] = []

    async def connect(process: WorkerProcess | None) -> Wire:
        processes.extend([process] if process else [])
        await until(directory.replicas)
        (replica,) = directory.replicas().values()
        wires.append(Wire(replica))
        return wires[-1]

    yield lambda process: asyncio.create_task(connect(process))
    for wire in wires:
        wire.link.close()
    for process in processes:
        process.end()


Plug = Callable[[WorkerProcess | None], "asyncio.Task[Wire]"]


async def test_batches_are_answered_in_order_each_with_its_own_results(tmp_path: Path, plug: Plug) -> None:
    wire = await plug(WorkerProcess(Directory(tmp_path), "r"))
    for number in range(1, 50):
        wire.send(number, number, number + 0.5)
    assert [await wire.answers(number) for number in range(1, 50)] == [[2.0 * n, 2.0 * n + 1] for n in range(1, 50)]
    assert list(wire.replies) == list(range(1, 50))
    assert (wire.link.inflight, wire.link.usable, wire.downs) == ({}, True, 0)


async def test_frames_too_large_to_be_joined_arrive_whole(tmp_path: Path, plug: Plug) -> None:
    wire = await plug(WorkerProcess(Directory(tmp_path), "r"))
    wire.send(1, 1, 2, 3, width=40_000)
    await until(lambda: 1 in wire.headers)
    (segment,) = wire.headers[1].segments
    assert segment.kind == "malformed"  # it declares two columns; it ran all the same
    assert "[3, 40000]" in segment.error


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_replica_that_is_killed_or_stopped_is_noticed_within_a_second(
    tmp_path: Path, plug: Plug, number: signal.Signals
) -> None:
    process = WorkerProcess(Directory(tmp_path), "r")
    wire = await plug(process)
    wire.send(1, 1)
    assert await wire.answers(1) == [2.0]
    process.send(number)
    assert await until(lambda: wire.downs) < NOTICED_S
    assert (wire.link.closed, wire.link.usable) == (True, False)
    await asyncio.sleep(0.05)
    assert wire.downs == 1


async def test_a_replica_that_computes_is_not_mistaken_for_a_dead_one(tmp_path: Path, plug: Plug) -> None:
    wire = await plug(WorkerProcess(Directory(tmp_path), "r", fault="hangs"))
    wire.send(1, 1)
    await asyncio.sleep(1.2)  # longer than a stopped one would live
    assert (wire.downs, wire.link.usable, len(wire.link.inflight)) == (0, True, 1)


async def test_an_address_that_nobody_listens_at_is_down(tmp_path: Path, plug: Plug) -> None:
    process = WorkerProcess(Directory(tmp_path), "r")
    first = await plug(process)
    process.end()
    await until(lambda: first.downs)
    late = await plug(None)  # its announcement and its socket's file are still there
    assert await until(lambda: late.downs) < NOTICED_S


async def test_an_address_without_a_socket_is_down(tmp_path: Path, plug: Plug) -> None:
    process = WorkerProcess(Directory(tmp_path), "r")
    wire = await plug(process)
    process.end()
    other = Directory(tmp_path)
    other.withdraw("r")
    other.announce(replace(wire.link.replica, id="q", address=other.socket_address("nobody")))
    await until(lambda: list(other.replicas()) == ["q"])
    late = await plug(None)
    assert await until(lambda: late.downs) < NOTICED_S


async def test_a_batch_given_up_keeps_the_link_from_getting_more_until_its_reply_comes(
    tmp_path: Path, plug: Plug
) -> None:
    wire = await plug(WorkerProcess(Directory(tmp_path), "r"))
    wire.send(1, 1)
    assert wire.link.abandon(1) == (1,)
    assert (wire.link.usable, wire.link.inflight) == (False, {})
    await until(lambda: wire.link.usable)
    assert wire.replies == {}


async def test_the_announcement_of_a_killed_replica_is_withdrawn(tmp_path: Path) -> None:
    before = Directory(tmp_path / "replicas")
    killed = WorkerProcess(before, "stale")
    try:
        await until(before.replicas)
        killed.end()
        assert list(before.replicas()) == ["stale"]
        stage = Stage(tmp_path)
        try:
            stage.table(candidate=None)
            assert await until(lambda: not before.replicas()) < NOTICED_S
            assert not stage.live(BASELINE)
        finally:
            stage.close()
    finally:
        killed.end()


async def test_sending_to_a_replica_whose_death_was_not_heard_of_yet_does_not_wait(tmp_path: Path, plug: Plug) -> None:
    process = WorkerProcess(Directory(tmp_path), "r")
    wire = await plug(process)
    wire.send(1, 1)
    assert await wire.answers(1) == [2.0]
    process.send(signal.SIGKILL)
    time.sleep(0.5)  # not heard of by the loop; the kernel knows
    wire.send(2, 2)
    await until(lambda: wire.downs)
    assert (wire.downs, list(wire.link.inflight)) == (1, [2])


@pytest.mark.parametrize(
    "sent", [b"\xff" * 64, *(b"".join(map(bytes, pack([head]))) for head in (b"[]", b"[1,2", b"x"))]
)
async def test_a_replica_that_sends_what_is_no_reply_is_gone(tmp_path: Path, sent: bytes) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        wire = Wire(
            Replica(id="r", model="m", version=1, priority=Priority.NORMAL, address=path, pid=os.getpid(), spec={})
        )
        replica, _ = listening.accept()
        with replica:
            replica.sendall(sent)
            await until(lambda: wire.downs)
    assert (wire.downs, wire.link.usable, wire.headers) == (1, False, {})
