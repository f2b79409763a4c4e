"""Candidates with one fault each, for measuring what that costs the clients: ONNX models, slow, hanging or exiting.

For Understudy this is a user's code, which a configuration names by import path. The candidate that keeps memory is
``models.reference.leaking:LeakingBackend``.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from models.backends.onnxruntime import OnnxRuntimeBackend
from models.backends.parameters import Parameters
from models.repository import ModelVersion
from models.spec import MODEL_FILE
from models.tensor import Array

EXIT_STATUS: Final = 3
_HOUR_S: Final = 3600.0


class _Faulty:
    """The artifact on ONNX Runtime, with the fault's parameters in place of the runtime's."""

    def __init__(self, version: ModelVersion) -> None:
        where = f"{version.directory / MODEL_FILE} ({version.spec.backend})"
        self._parameters = Parameters(where, version.spec.parameters)
        self._inner = OnnxRuntimeBackend(replace(version, spec=replace(version.spec, parameters={})))

    def load(self) -> None:
        """Load the artifact; see ``models.backend.Backend``."""
        self._inner.load()

    def close(self) -> None:
        """Free the session; may be called twice."""
        self._inner.close()


class SlowBackend(_Faulty):
    """Computes ``times`` (5) times as long as the model does on a batch, or as ``batch_us`` (200) if that is longer.

    The second is for a model so small that a replica spends next to all of a batch's time around it: ``batch_us`` is
    that time, so that the candidate is as much slower as its clients would find it. ``clock`` tells the CPU seconds of
    the calling thread, for who computes slowly is not done sooner by being kept from the core.
    """

    def __init__(self, version: ModelVersion, *, clock: Callable[[], float] = time.thread_time) -> None:
        super().__init__(version)
        self._times = self._parameters.integer("times", default=5, minimum=1)
        self._batch_s = self._parameters.integer("batch_us", default=200, minimum=0) / 1e6
        self._parameters.finish()
        self._clock = clock

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch, and the same again until the time is over."""
        started_s = self._clock()
        outputs = self._inner.run(inputs)
        ends_s = started_s + self._times * max(self._clock() - started_s, self._batch_s)
        while self._clock() < ends_s:
            self._inner.run(inputs)
        return outputs


class HangingBackend(_Faulty):
    """Never answers every ``every``-th (50) batch since it was loaded: it sleeps, and computes nothing."""

    def __init__(self, version: ModelVersion, *, sleep: Callable[[float], object] = time.sleep) -> None:
        super().__init__(version)
        self._every = self._parameters.integer("every", default=50, minimum=1)
        self._parameters.finish()
        self._sleep = sleep
        self._batches = 0

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch, or hang."""
        self._batches += 1
        while self._batches % self._every == 0:
            self._sleep(_HOUR_S)
        return self._inner.run(inputs)


class ExitingBackend(_Faulty):
    """Ends its process at the first batch that comes ``after_ms`` (1000) or more after the first one of all.

    So it goes on exiting for as long as it is asked, and stays where nobody asks.
    """

    def __init__(
        self,
        version: ModelVersion,
        *,
        clock: Callable[[], float] = time.monotonic,
        exit_process: Callable[[int], object] = os._exit,
    ) -> None:
        super().__init__(version)
        self._after_s = self._parameters.integer("after_ms", default=1000, minimum=0) / 1000
        self._parameters.finish()
        self._clock, self._exit = clock, exit_process
        self._first_s: float | None = None

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch, or end the process."""
        now_s = self._clock()
        if self._first_s is None:
            self._first_s = now_s
        elif now_s - self._first_s >= self._after_s:
            self._exit(EXIT_STATUS)
        return self._inner.run(inputs)
