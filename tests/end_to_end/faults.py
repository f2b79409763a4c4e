"""A model that doubles its input, with a fault of choice. Copied beside the tests' configuration: user code."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np


class Doubler:
    """Parameter ``fault``: none, slow, raises, hangs, exits, wrong_shape or allocates; it has it on all but zeros.

    So it passes the warm-up, as a model does that fails on clients' inputs alone.
    """

    def __init__(self, version: Any) -> None:
        self._fault = version.spec.parameters["fault"]
        self._kept: list[Any] = []

    def load(self) -> None:
        pass

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        doubled = inputs["x"] * np.float32(2)
        return {"y": getattr(self, f"_{self._fault}")(doubled) if doubled.any() else doubled}

    def close(self) -> None:
        self._kept.clear()

    def _none(self, doubled: Any) -> Any:
        return doubled

    def _slow(self, doubled: Any) -> Any:
        time.sleep(0.02)
        return doubled

    def _raises(self, doubled: Any) -> Any:
        raise RuntimeError("the weights are made of cheese")

    def _hangs(self, doubled: Any) -> Any:
        time.sleep(3600)
        return doubled

    def _exits(self, doubled: Any) -> Any:
        os._exit(3)

    def _wrong_shape(self, doubled: Any) -> Any:
        return doubled[:, :3]

    def _allocates(self, doubled: Any) -> Any:
        while True:
            self._kept.append(np.ones(4 << 20, dtype=np.float32))
