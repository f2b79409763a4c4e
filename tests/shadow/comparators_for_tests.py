"""Comparators as a user might write them, named by import path."""

from collections.abc import Mapping

from models.tensor import Array
from shadow.comparators import Comparison
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
        return Comparison(
            max_delta=found.max_delta[:-1],
            mean_delta=found.mean_delta,
            baseline_top1=found.baseline_top1,
            candidate_top1=found.candidate_top1,
        )
