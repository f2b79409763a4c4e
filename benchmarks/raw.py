"""The model alone, in this process, with the session that a replica uses: the bound of what a server can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.workloads import BASELINE, Workload
from models.backends import open_backend
from models.repository import open_version
from models.tensor import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class RawSample:
    """Calls one after another from one thread, each with ``batch`` rows."""

    batch: int
    calls: int
    rows_per_s: float
    mean_ms: float
    sd_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float


class RawModel:
    """A workload's first version, written into ``scratch`` and loaded."""

    def __init__(self, workload: Workload, scratch: Path) -> None:
        self._workload = workload
        workload.write(scratch / workload.name)
        self._backend = open_backend(open_version(scratch / workload.name / str(BASELINE)), {})
        self._backend.load()

    def scores(self) -> Array:
        """What it answers to the workload's example, flat."""
        return self._backend.run({self._workload.input: self._workload.example})[self._workload.output].ravel()

    def measure(self, batch: int, seconds: float, *, clock: Callable[[], float] = time.perf_counter) -> RawSample:
        """Run batches of one size for ``seconds``."""
        rows = np.repeat(self._workload.example, batch, axis=0)
        inputs = {self._workload.input: rows}
        self._backend.run(inputs)
        took_s: list[float] = []
        started = ended = clock()
        while ended < started + seconds:
            self._backend.run(inputs)
            now = clock()
            took_s.append(now - ended)
            ended = now
        took_ms = np.array(took_s) * 1000
        p50, p90, p99 = np.percentile(took_ms, [50, 90, 99]).tolist()
        return RawSample(
            batch=batch,
            calls=len(took_s),
            rows_per_s=batch * len(took_s) / (ended - started),
            mean_ms=float(took_ms.mean()),
            sd_ms=float(took_ms.std()),
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
        )

    def close(self) -> None:
        """Free the session."""
        self._backend.close()
