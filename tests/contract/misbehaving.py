"""Backends that fail in ways that the endpoint must survive."""

import time
from collections.abc import Mapping
from typing import Final

from models.errors import BackendError
from models.repository import ModelVersion
from models.tensor import Array

SLOW_S: Final = 0.5


class _Echo:
    """Answers OUT with IN."""

    def __init__(self, version: ModelVersion) -> None:
        self._version = version

    def load(self) -> None:
        pass

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {"OUT": inputs["IN"]}

    def close(self) -> None:
        pass


class Raises(_Echo):
    """Fails at every batch, but for the zeros with which a replica warms up."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        if inputs["IN"].any():
            raise BackendError("this model always raises")
        return super().run(inputs)


class Slow(_Echo):
    """Takes its time."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(SLOW_S)
        return super().run(inputs)
