"""A backend with a real fault, for drills: it keeps memory after every batch, and it is slow."""

import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from models.backends.onnxruntime import OnnxRuntimeBackend
from models.backends.parameters import Parameters
from models.errors import BackendError
from models.repository import ModelVersion
from models.spec import MODEL_FILE
from models.tensor import Array


class LeakingBackend:
    """Runs the artifact on ONNX Runtime, keeps ``leak_bytes`` per batch and answers after ``delay_ms`` at the earliest.

    The leak stops at ``leak_limit_bytes``, so that no drill can exhaust the machine that it runs on.
    """

    def __init__(self, version: ModelVersion) -> None:
        parameters = Parameters(f"{version.directory / MODEL_FILE} (leaking)", version.spec.parameters)
        self._leak_bytes = parameters.integer("leak_bytes", default=40 << 20, minimum=0)
        self._leak_limit_bytes = parameters.integer("leak_limit_bytes", default=1 << 30, minimum=0)
        self._delay_s = parameters.integer("delay_ms", default=530, minimum=0) / 1000
        parameters.finish()
        self._inner = OnnxRuntimeBackend(replace(version, spec=replace(version.spec, parameters={})))
        self._leaked: list[Array] = []

    def load(self) -> None:
        """Load the artifact; see ``models.backend.Backend``."""
        self._inner.load()

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch, slowly, and leak."""
        started_s = time.monotonic()
        outputs = self._inner.run(inputs)
        self._leak()
        time.sleep(max(0.0, self._delay_s - (time.monotonic() - started_s)))
        return outputs

    def close(self) -> None:
        """Free everything, the leak too; may be called twice."""
        self._leaked.clear()
        self._inner.close()

    def _leak(self) -> None:
        if (len(self._leaked) + 1) * self._leak_bytes > self._leak_limit_bytes:
            return
        try:
            self._leaked.append(np.ones(self._leak_bytes, dtype=np.uint8))  # ones: touched, hence resident
        except MemoryError as error:
            raise BackendError(f"leaking: out of memory after {len(self._leaked)} batches") from error
