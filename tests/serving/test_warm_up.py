"""A replica runs its batches of zeros before anybody learns of it."""

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from models.tensor import Array
from rollout.traffic import Priority
from serving.config import load_config
from serving.directory import Directory
from serving.errors import ConfigError
from serving.replica import Worker
from tests.serving.doubler import spec_of


class Watched:
    """A doubler that notes its batches, and in which thread and how widely known they ran; ``refuses`` sizes."""

    def __init__(self, directory: Directory, *, refuses: Sequence[int] = ()) -> None:
        self._directory, self._refuses = directory, refuses
        self.loaded = False
        self.seen: list[tuple[int, float]] = []
        self.announced: list[bool] = []
        self.threads: set[str] = set()

    def load(self) -> None:
        self.loaded = True

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert self.loaded
        x = inputs["x"]
        self.seen.append((len(x), float(np.abs(x).sum())))
        self.announced.append(bool(self._directory.replicas()))
        self.threads.add(threading.current_thread().name)
        if len(x) in self._refuses:
            raise ZeroDivisionError("zeros are no picture\nof anything")
        return {"y": x * np.float32(2)}

    def close(self) -> None:
        self.loaded = False


@pytest.fixture
def directory(tmp_path: Path) -> Directory:
    return Directory(tmp_path / "replicas")


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.stop()


def start(directory: Directory, workers: list[Worker], backend: Watched, warm_up: Sequence[int]) -> Worker:
    worker = Worker(
        replica_id="r",
        spec=spec_of(),
        backend=backend,
        directory=directory,
        priority=Priority.NORMAL,
        timeout_s=30,
        warm_up=warm_up,
        exit_process=lambda status: None,
    )
    workers.append(worker)
    worker.start()
    return worker


def test_the_declared_batches_run_on_zeros_before_the_replica_is_announced(
    directory: Directory, workers: list[Worker]
) -> None:
    backend = Watched(directory)
    start(directory, workers, backend, (1, 16, 4))
    assert backend.seen == [(1, 0.0), (16, 0.0), (4, 0.0)]
    assert backend.announced == [False, False, False]
    assert backend.threads == {"replica-worker"}, "the thread that serves"


def test_a_model_that_refuses_zeros_is_ready_all_the_same_and_the_log_says_so(
    directory: Directory, workers: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    backend = Watched(directory, refuses=[1, 8])
    with caplog.at_level(logging.WARNING, logger="understudy.replica"):
        worker = start(directory, workers, backend, (1, 4, 8))
    assert [rows for rows, _ in backend.seen] == [1, 4, 8]
    assert worker.alive
    assert [record.getMessage() for record in caplog.records] == [
        f"the warm-up with a batch of {rows} failed: ZeroDivisionError: zeros are no picture" for rows in (1, 8)
    ]


class Exits(Watched):
    """Ends its thread at the first batch, as ``sys.exit`` does there."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise SystemExit(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_in_the_warm_up_is_not_alive(directory: Directory, workers: list[Worker]) -> None:
    worker = start(directory, workers, Exits(directory), (1,))
    worker._thread.join(10)
    assert not worker.alive
    assert not directory.replicas()


class Reserves(Watched):
    """Keeps memory from its first batch on, as a runtime's arena does."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        self.arena = np.ones(64 << 20, dtype=np.uint8)
        return super().run(inputs)


def test_what_a_runtime_reserves_in_the_warm_up_counts_for_the_batches_and_not_for_the_weights(
    directory: Directory, workers: list[Worker]
) -> None:
    meter = start(directory, workers, Reserves(directory), (1,))._meter
    meter.reset()
    peak_bytes = meter.peak_bytes()
    if peak_bytes is None:
        pytest.skip("the kernel does not tell")
    assert peak_bytes > 32 << 20


CONFIG = {
    "repository": ".",
    "models": {"m": {"baseline": 1, "batching": {"max_batch_size": 8}, "comparator": {"output": "y"}}},
}


def configured(folder: Path, sizes: object) -> tuple[int, ...] | None:
    model = {**CONFIG["models"]["m"], "replicas": {"warm_up": sizes}}  # type: ignore[index]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, "models": {"m": model}}, sort_keys=False))
    return load_config(path).models["m"].replicas.warm_up


@pytest.mark.parametrize("sizes", [None, [], [1], [8, 1, 3]])
def test_sizes_from_one_to_the_largest_batch_can_be_declared(tmp_path: Path, sizes: list[int] | None) -> None:
    assert configured(tmp_path, sizes) == (None if sizes is None else tuple(sizes))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([1, 0], "models.m.replicas.warm_up.1: Input should be greater than or equal to 1, got 0"),
        ([1, 9, 32], "expected replicas.warm_up of sizes up to batching.max_batch_size, 8, got [9, 32]"),
        (["all"], "models.m.replicas.warm_up.0: Input should be a valid integer"),
        (4, "models.m.replicas.warm_up: Input should be a valid tuple"),
    ],
)
def test_another_size_is_refused_by_name(tmp_path: Path, sizes: object, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configured(tmp_path, sizes)
    assert said in str(refused.value)
