"""A model that doubles, and misbehaves as told: by its fault always, or by a value in its input."""

import ctypes
import os
import threading
import time
from collections.abc import Mapping
from typing import Final

import numpy as np

from models.errors import BackendError
from models.spec import ModelSpec, TensorSpec
from models.tensor import Array

MODEL: Final = "m"
BASELINE, CANDIDATE = 1, 2
GREED_BYTES: Final = 512 << 20
RAISES, EXITS, HANGS = 1300.0, 1301.0, 1302.0  # values that have their effect on any doubler


def spec_of(version: int = BASELINE, *, max_batch_size: int = 16) -> ModelSpec:
    """``m``: x → y, both FP32 of shape [-1, 2]."""
    batch = (-1,) if max_batch_size else ()
    return ModelSpec(
        name=MODEL,
        version=version,
        backend="doubler",
        artifact="nothing.bin",
        sha256="0" * 64,
        max_batch_size=max_batch_size,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(*batch, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(*batch, 2)),),
    )


class Doubler:
    """``fault``: none, or the name of a method below without its underscore; ``narrow`` gives one column only."""

    def __init__(self, fault: str = "none") -> None:
        self.fault = fault
        self.slow_s = 0.02
        self.batches: list[int] = []
        self.closed = False
        self.release = threading.Event()

    def load(self) -> None:
        pass

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        x = inputs["x"]
        self.batches.append(len(x))
        for value, fault in ((RAISES, self._raises), (EXITS, self._exits), (HANGS, self._hangs)):
            if (x == value).any():
                fault()
        if self.fault != "none":
            getattr(self, f"_{self.fault}")()
        y = x * np.float32(2)
        if self.fault == "narrow":
            return {"y": y[:, :1]}
        return {"y": y}

    def close(self) -> None:
        self.closed = True
        self.release.set()

    def _raises(self) -> None:
        raise BackendError("no such weight")

    def _exits(self) -> None:
        os._exit(3)

    def _hangs(self) -> None:
        self.release.wait(3600)

    def _waits(self) -> None:
        self.release.wait(30)

    def _slow(self) -> None:
        time.sleep(self.slow_s)

    def _surprises(self) -> None:
        raise KeyError("first line\nsecond line")

    def _clings(self) -> None:
        ctypes.PyDLL(None).sleep(60)  # in C, and the interpreter's lock is kept

    def _greedy(self) -> None:
        np.ones(GREED_BYTES, dtype=np.uint8)

    def _narrow(self) -> None:
        pass
