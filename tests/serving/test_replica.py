"""A replica's worker: what it answers, and how it ends."""

import asyncio
import logging
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from models.backend import Backend
from models.errors import BackendError
from models.spec import ModelSpec, TensorSpec
from models.tensor import Array, from_numpy
from rollout.traffic import Priority
from serving.directory import Directory
from serving.frames import Inbox, pack
from serving.replica import HANG_EXIT_STATUS, Worker
from serving.reply import Result, results_of
from serving.wire import ReplyHeader, decode_reply_header, decode_welcome, encode_batch, encode_hello
from shadow.pair import Status
from tests.serving.doubler import BASELINE, GREED_BYTES, RAISES, Doubler, spec_of
from tests.serving.stage import ROOT, WorkerProcess, until


class Client:
    """Sends one batch after another to the replica of a folder, and waits for each reply."""

    def __init__(self, folder: Path) -> None:
        self.directory = Directory(folder)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._inbox = Inbox()
        self._received: deque[list[memoryview]] = deque()
        self._connected = False

    def send(self, requests: Sequence[Mapping[str, Array]], *, datatype: str = "FP32", measure: bool = False) -> None:
        """A batch with these requests."""
        if not self._connected:
            deadline = time.monotonic() + 10
            while not self.directory.replicas():
                assert time.monotonic() < deadline, "no replica"
                time.sleep(0.01)
            (replica,) = self.directory.replicas().values()
            self._socket.connect(replica.address)
            self._connected = True
        tensors = [{name: from_numpy(name, datatype, array) for name, array in each.items()} for each in requests]
        rows = [len(each["x"]) for each in requests]
        for part in pack(encode_batch(1, rows, tensors, batched=True, measure=measure)):
            self._socket.sendall(part)

    def ask(self, requests: Sequence[Mapping[str, Array]], **options: Any) -> tuple[ReplyHeader, list[Result]]:
        """The reply to a batch."""
        self.send(requests, **options)
        return self.receive(requests)

    def receive(self, requests: Sequence[Mapping[str, Array]]) -> tuple[ReplyHeader, list[Result]]:
        """The next reply, to a batch with requests like these."""
        while not self._received:
            self._received.extend(self._inbox.received(self._socket.recv_into(self._inbox.space())))
        head, *frames = self._received.popleft()
        header = decode_reply_header(head)
        return header, results_of(header, frames, [len(each["x"]) for each in requests], batched=True)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client(tmp_path / "replicas")
    yield made
    made.close()


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.stop()


def start(client: Client, workers: list[Worker], backend: Backend, spec: ModelSpec | None = None) -> Worker:
    worker = Worker(
        replica_id="r",
        spec=spec or spec_of(),
        backend=backend,
        directory=client.directory,
        priority=Priority.NORMAL,
        timeout_s=30,
        exit_process=lambda status: None,
    )
    worker.start()
    workers.append(worker)
    return worker


def values(*numbers: float) -> list[dict[str, Array]]:
    return [{"x": np.full((1, 2), number, np.float32)} for number in numbers]


def test_every_request_gets_its_answer_and_the_batch_its_times(client: Client, workers: list[Worker]) -> None:
    start(client, workers, Doubler("slow"))
    header, results = client.ask(values(1, 2, 3))
    assert [result.outputs["y"].numpy().tolist() for result in results] == [[[2, 2]], [[4, 4]], [[6, 6]]]
    assert header.compute_us >= 20_000
    assert 0 <= header.copy_us < header.compute_us
    assert header.peak_bytes is None


def test_memory_is_measured_where_it_is_asked_for(client: Client, workers: list[Worker]) -> None:
    start(client, workers, Doubler())
    header, _ = client.ask(values(1), measure=True)
    assert header.peak_bytes is not None
    assert header.peak_bytes >= 0


@pytest.mark.parametrize("bad", [[0], [2], [4], [1, 3], [0, 1, 2, 3, 4]])
def test_a_request_that_makes_the_model_raise_fails_alone_in_its_batch(
    client: Client, workers: list[Worker], bad: list[int]
) -> None:
    start(client, workers, Doubler())
    _, results = client.ask(values(*(RAISES if at in bad else at for at in range(5))))
    assert [result.status for result in results] == [Status.ERROR if at in bad else Status.OK for at in range(5)]
    assert {result.error for at, result in enumerate(results) if at in bad} == {"BackendError: no such weight"}
    good = [at for at in range(5) if at not in bad]
    assert [results[at].outputs["y"].numpy()[0, 0] for at in good] == [2 * at for at in good]


GOOD, X = [7, [1], [["x", "FP32", [2], True]], False, {}], bytes(8)


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n" * 10,
        struct.pack("<QQ", 8, 0),
        *(
            b"".join(map(bytes, pack(frames)))
            for frames in (
                [b"", X],
                [b'"an arena'],
                [b"[1,2,3]", X],
                [orjson.dumps(GOOD)],
                [orjson.dumps(GOOD), X, X],
                [orjson.dumps(GOOD), X[1:]],
                [orjson.dumps([7, [2], *GOOD[2:]]), X],
                [orjson.dumps([*GOOD[:4], {"x": [[0, 8]]}])],
            )
        ),
    ],
)
def test_who_sends_what_is_no_batch_is_let_go_of_with_one_line_and_others_are_served(
    client: Client, workers: list[Worker], caplog: pytest.LogCaptureFixture, stream: bytes
) -> None:
    worker = start(client, workers, Doubler())
    client.ask(values(1))
    with socket.socket(socket.AF_UNIX) as other, caplog.at_level(logging.INFO, "understudy.replica"):
        other.settimeout(10)
        other.connect(next(iter(client.directory.replicas().values())).address)
        other.sendall(stream)
        assert other.recv(1) == b"", "it ends the connection without an answer"
    _, (result,) = client.ask(values(2))
    assert result.outputs["y"].numpy().tolist() == [[4, 4]]
    assert worker.alive
    (line,) = [record.getMessage() for record in caplog.records if record.name == "understudy.replica"]
    assert line.startswith("a router is let go of for a malformed message: ")
    assert "\n" not in line


@pytest.mark.parametrize("arena", ["/nowhere", "/proc/self", "/dev/null", "a\0b"])
def test_an_arena_that_cannot_be_read_is_done_without(client: Client, workers: list[Worker], arena: str) -> None:
    worker = start(client, workers, Doubler())
    client.ask(values(1))
    with socket.socket(socket.AF_UNIX) as other:
        other.settimeout(10)
        other.connect(next(iter(client.directory.replicas().values())).address)
        other.sendall(b"".join(map(bytes, pack([encode_hello(arena)]))))
        inbox = Inbox()
        ((answer,),) = inbox.received(other.recv_into(inbox.space()))
    assert decode_welcome(answer) is False
    assert worker.alive


def test_rows_stay_with_their_requests_when_a_batch_is_split(client: Client, workers: list[Worker]) -> None:
    start(client, workers, Doubler())
    requests = [{"x": np.full((rows, 2), value, np.float32)} for rows, value in ((3, 1), (1, RAISES), (2, 5))]
    _, results = client.ask(requests)
    assert [result.status.value for result in results] == ["ok", "error", "ok"]
    assert (results[0].outputs["y"].shape, results[2].outputs["y"].numpy().tolist()) == ((3, 2), [[10, 10]] * 2)


def test_whatever_a_model_raises_is_one_line_and_does_not_end_the_replica(
    client: Client, workers: list[Worker]
) -> None:
    worker = start(client, workers, Doubler("surprises"))
    _, (result,) = client.ask(values(1))
    assert (result.status, result.error) == (Status.ERROR, r"KeyError: 'first line\nsecond line'")
    assert worker.alive


def test_an_answer_of_another_shape_is_malformed(client: Client, workers: list[Worker]) -> None:
    start(client, workers, Doubler("narrow"))
    _, results = client.ask(values(1, 2))
    assert [result.status for result in results] == [Status.MALFORMED] * 2
    assert results[0].error == "wrong shape: output 'y': expected shape [2, 2], found [2, 1]"


def test_objects_that_are_no_bytes_are_malformed_and_do_not_end_the_replica(
    client: Client, workers: list[Worker]
) -> None:
    class Mumbler(Doubler):
        def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
            answers = {b"good": "yes", b"bad": None}
            return {"y": np.array([[answers[word]] for word in inputs["x"][:, 0]], dtype=object)}

    words = tuple(TensorSpec(name=name, datatype="BYTES", shape=(-1, 1)) for name in ("x", "y"))
    worker = start(client, workers, Mumbler(), replace(spec_of(), inputs=words[:1], outputs=words[1:]))
    for word, status in ((b"bad", Status.MALFORMED), (b"good", Status.OK)):
        _, (result,) = client.ask([{"x": np.array([[word]], dtype=object)}], datatype="BYTES")
        assert result.status is status
    assert result.outputs["y"].numpy().tolist() == [[b"yes"]]
    assert worker.alive


def test_a_model_that_cannot_be_loaded_is_never_announced(client: Client, workers: list[Worker]) -> None:
    class Broken(Doubler):
        def load(self) -> None:
            raise BackendError("the file is empty")

    with pytest.raises(BackendError, match="the file is empty"):
        start(client, workers, Broken())
    assert client.directory.replicas() == {}


def test_a_replica_announces_itself_again_when_its_file_has_gone(client: Client, workers: list[Worker]) -> None:
    start(client, workers, Doubler())
    client.ask(values(1))
    client.directory.withdraw("r")
    deadline = time.monotonic() + 2
    while not client.directory.replicas():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_replica_that_is_stopped_withdraws_and_frees_its_model(client: Client, workers: list[Worker]) -> None:
    backend = Doubler()
    worker = start(client, workers, backend)
    client.ask(values(1))
    worker.stop()
    assert (worker.alive, backend.closed) == (False, True)
    assert list(client.directory.folder.iterdir()) == []


def test_a_replica_that_is_stopped_answers_what_it_was_sent(client: Client, workers: list[Worker]) -> None:
    backend = Doubler("waits")
    worker = start(client, workers, backend)
    client.send(values(1))
    while not backend.batches:
        time.sleep(0.005)
    client.send(values(2))  # sent ahead, while the first one runs
    stopper = threading.Thread(target=worker.stop)
    stopper.start()
    while client.directory.replicas():
        time.sleep(0.005)
    backend.release.set()
    assert [client.receive(values(1))[1][0].outputs["y"].numpy()[0, 0] for _ in range(2)] == [2, 4]
    stopper.join()
    assert not worker.alive


def test_a_replica_that_is_stopped_takes_the_time_that_it_is_given_for_all_it_was_sent(
    client: Client, workers: list[Worker]
) -> None:
    backend = Doubler("slow")
    backend.slow_s = 0.4
    worker = start(client, workers, backend)
    for _ in range(4):
        client.send(values(1, 2))
    stopper = threading.Thread(target=worker.stop, args=(5,))
    stopper.start()
    replies = [client.receive(values(1, 2))[1] for _ in range(4)]  # in 1.6 s
    assert [result.status for results in replies for result in results] == [Status.OK] * 8
    stopper.join()
    assert not worker.alive


async def test_a_batch_that_runs_too_long_ends_the_process(client: Client) -> None:
    process = WorkerProcess(client.directory, "r", fault="hangs", timeout_s=0.3)
    try:
        await asyncio.to_thread(client.send, values(1))
        status, took_s = await process.ended()
        assert status == HANG_EXIT_STATUS
        assert took_s < 2
        assert client.directory.replicas() == {}
    finally:
        process.end()


async def test_a_batch_that_hangs_in_c_with_the_interpreter_s_lock_ends_the_process_too(client: Client) -> None:
    process = WorkerProcess(client.directory, "r", fault="clings", timeout_s=0.3)
    try:
        await asyncio.to_thread(client.send, values(1))
        status, took_s = await process.ended()
        assert status == 1  # faulthandler's
        assert took_s < 4
    finally:
        process.end()


async def test_a_batch_beyond_the_memory_limit_fails_and_the_replica_lives(client: Client) -> None:
    process = WorkerProcess(client.directory, "r", fault="greedy", limit_bytes=GREED_BYTES // 4)
    try:
        for _ in range(2):
            _, results = await asyncio.to_thread(client.ask, values(1, 2))
            assert [result.status for result in results] == [Status.ERROR] * 2
            assert "MemoryError" in results[0].error
    finally:
        process.end()


def run_script(script: str) -> str:
    """What a program of its own prints."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_memory_limit_leaves_what_is_under_it() -> None:
    script = """
import numpy as np
from serving.process import limit_memory
limit_memory(200 << 20)
small = np.ones(100 << 20, dtype=np.uint8)
try:
    np.ones(150 << 20, dtype=np.uint8)
except MemoryError:
    print("refused beyond", len(small) >> 20)
"""
    assert run_script(script) == "refused beyond 100\n"


def test_an_ordinary_user_may_lower_the_priority_of_a_process_and_of_the_threads_it_starts() -> None:
    script = """
import os, threading
from serving.process import lower_priority
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
before = threading.Thread(target=lambda: None)
said = lower_priority()
seen = []
thread = threading.Thread(target=lambda: seen.append((os.sched_getscheduler(0), os.nice(0))))
thread.start(); thread.join()
print(said == "SCHED_IDLE" and seen[0][0] == os.SCHED_IDLE or said == "nice 19" and seen[0][1] == 19)
"""
    assert run_script(script) == "True\n"


async def test_a_version_and_its_process_are_in_the_announcement(client: Client) -> None:
    process = WorkerProcess(client.directory, "r", priority=Priority.SHADOW)
    try:
        await until(client.directory.replicas)
        replica = client.directory.replicas()["r"]
        assert (replica.version, replica.priority, replica.spec) == (BASELINE, Priority.SHADOW, spec_of().to_json())
        os.kill(replica.pid, 0)
    finally:
        process.end()
