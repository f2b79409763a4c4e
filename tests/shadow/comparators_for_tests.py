"""Comparators as a user might write them, named by import path."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from models.tensor import Array
from shadow.comparators import Comparison, Measure
from shadow.comparators.classification import Classification

POISON = 666.0


class Poisoned(Classification):
    """Raises when a score is the poisonous one."""

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        if (baseline[self.output] == POISON).any():
            raise RuntimeError("poison")
        return super().compare(baseline, candidate)


class Short(Classification):
    """Returns arrays of the wrong length."""

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        found = super().compare(baseline, candidate)
        return replace(found, max_delta=found.max_delta[:-1])


class Silent(Classification):
    """Leaves out a measure that it has declared."""

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        return replace(super().compare(baseline, candidate), measures={})


class Neighbours:
    """Says how many items it was given together, which is to be those of one batch; reads two outputs."""

    by_batch = True
    measures = (Measure("together", high=100.0),)

    def __init__(self, output: str, *, beside: str) -> None:
        self.outputs = (output, beside)

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        shapes = {side[name].shape[1:] for side in (baseline, candidate) for name in self.outputs[:1]}
        n = len(baseline[self.outputs[0]])
        return Comparison(
            max_delta=np.full(n, float(len(shapes) - 1)),
            mean_delta=np.zeros(n),
            baseline_top1=baseline[self.outputs[1]][:, 0].astype(np.int32),
            candidate_top1=candidate[self.outputs[1]][:, 0].astype(np.int32),
            measures={"together": np.full(n, float(n))},
        )


class Unmeasured:
    """Whose measures are no measures."""

    measures = ("accuracy",)

    def __init__(self, output: str) -> None:
        self.outputs = (output,)


class Fragile(Classification):
    """Cannot be built."""

    def __init__(self, output: str) -> None:
        raise RuntimeError(f"no {output}")
