"""The preprocess steps of one model, applied to a batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.errors import RejectedInputError
from models.preprocess.contract import Step
from models.spec import ModelSpec, StepSpec
from models.tensor import NUMPY_DTYPES, Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A batch as the backend takes it.

    ``failures`` say by a request's place in the batch what went wrong with it; ``inputs`` are those of the others, and
    ``rows`` their batch rows.
    """

    inputs: Mapping[str, Array]
    rows: tuple[int, ...]
    failures: Mapping[int, Exception] = field(default_factory=dict)


class Preprocess:
    """Turns the inputs that clients send into those that the artifact takes."""

    def __init__(self, spec: ModelSpec, steps: Sequence[Step]) -> None:
        self._batched = spec.max_batch_size > 0
        self._steps = tuple(zip(spec.preprocess, steps, strict=True))

    def run(self, inputs: Mapping[str, Array], rows: Sequence[int]) -> Prepared:
        """Prepare a batch; ``rows`` are the batch rows of each request, (1,) without a batch dimension.

        Whatever a step raises ends the one request that it was about.
        """
        made = dict(inputs)
        failures: dict[int, Exception] = {}
        for spec, step in self._steps:
            made[spec.tensor.name] = self._fill(spec, step, made.pop(spec.input), rows, failures)
        if failures:
            good = np.repeat([request not in failures for request in range(len(rows))], rows)
            made = {name: array[good] for name, array in made.items()} if self._batched else {}
        left = tuple(count for request, count in enumerate(rows) if request not in failures)
        return Prepared(inputs=made, rows=left, failures=failures)

    def _fill(
        self, spec: StepSpec, step: Step, elements: Array, rows: Sequence[int], failures: dict[int, Exception]
    ) -> Array:
        shape = spec.tensor.shape[1:] if self._batched else spec.tensor.shape
        filled = np.empty((sum(rows), *shape), NUMPY_DTYPES[spec.tensor.datatype])
        flat, start = elements.ravel(), 0
        for request, count in enumerate(rows):
            if request not in failures:
                failure = _fill_rows(spec, step, flat[start : start + count], filled[start : start + count])
                if failure is not None:
                    failures[request] = failure
            start += count
        return filled if self._batched else filled[0]


def _fill_rows(spec: StepSpec, step: Step, elements: Array, rows: Array) -> Exception | None:
    """Fill the rows of one request; returns what went wrong."""
    for index, element in enumerate(elements):
        try:
            step.fill(element, rows[index, ...])  # a view, also of a single number
        except RejectedInputError as error:
            item = f"item {index}: " if len(elements) > 1 else ""
            return RejectedInputError(f"input {spec.input!r}: {item}{error}")
        except Exception as error:  # noqa: BLE001 — isolation: a step may be the user's; others of the batch go on
            return error
    return None
