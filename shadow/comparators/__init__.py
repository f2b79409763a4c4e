"""How the two sides' answers are compared: one contract, one registry, one file per kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Final, Protocol, cast

from models.tensor import Array
from shadow.errors import ShadowError

# Stored differences end here: NaN, infinite and larger ones count as this. It is far over any tolerance, and small
# enough that the sum of 1e8 of them, in units of 1e-9, still fits 64 bits.
DELTA_CAP: Final = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of n items; every array has shape [n].

    ``max_delta`` and ``mean_delta``: largest and mean |Δscore| of the item, at most ``DELTA_CAP``. ``*_top1``: the
    index of each side's answer, −1 where its scores name none (a NaN among them); −1 agrees with nothing.
    """

    max_delta: Array
    mean_delta: Array
    baseline_top1: Array
    candidate_top1: Array


class Comparator(Protocol):
    """Compares the scores of n items; a pure function of them, so that anyone can recompute it from the evidence.

    ``compare`` takes for each side the named ``output`` as float32 of shape [n, scores]; the two sides may differ in
    their number of scores.
    """

    @property
    def output(self) -> str:
        """The name of the output that holds the scores."""

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare n items."""


COMPARATORS: Final[Mapping[str, str]] = {
    "classification": "shadow.comparators.classification:Classification",
}


def open_comparator(kind: str, output: str) -> Comparator:
    """The comparator of a registered kind, or a user's own, named ``package.module:Name``; built with ``output=``.

    Raises:
        ShadowError: there is none of that name.
    """
    target = COMPARATORS.get(kind, kind)
    module_name, colon, name = target.partition(":")
    if not colon:
        raise ShadowError(
            f"comparator.kind: expected one of {sorted(COMPARATORS)} or package.module:Name, got {kind!r}"
        )
    try:
        factory = getattr(import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ShadowError(f"comparator.kind: cannot import {kind!r}: {error}") from error
    return cast(Comparator, factory(output=output))
