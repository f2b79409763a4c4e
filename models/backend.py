"""The contract that every backend fulfils."""

from collections.abc import Mapping
from typing import Protocol

from models.tensor import Array


class Backend(Protocol):
    """Runs one version of a model. Built from a ``models.repository.ModelVersion``; used from one thread.

    ``load`` reads the artifact and makes ready to run. ``run`` takes every declared input by name, batch dimension
    included, and returns every declared output by name; the batch may have any size up to the model's
    ``max_batch_size``. ``close`` frees what ``load`` took; it may be called twice.

    Raises:
        models.errors.BackendError: from ``load`` and ``run``, with the runtime's own words.
    """

    def load(self) -> None:
        """Read the artifact and make ready to run."""

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every declared output by name, for every declared input by name."""

    def close(self) -> None:
        """Free what ``load`` took; may be called twice."""
