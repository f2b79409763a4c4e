"""How the two sides' answers are compared: one contract, one registry, one file per kind."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import signature
from math import isfinite
from typing import Any, Final, Literal, Protocol, cast

import orjson

from models.tensor import Array
from shadow.errors import ShadowError

# Stored differences end here: NaN, infinite and larger ones count as this. It is far over any tolerance, and small
# enough that the sum of 9e7 of them, in units of 1e-9, still fits 63 bits.
DELTA_CAP: Final = 100.0


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that a comparator gives for each item; values are clipped to [``low``, ``high``].

    ``agrees`` is the end that full agreement has.

    Raises:
        ShadowError: there is no room between the ends, or no name.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    agrees: Literal["low", "high"] = "high"

    def __post_init__(self) -> None:
        if not self.name or self.agrees not in ("low", "high"):
            raise ShadowError(f"comparator: measure {self.name!r}: expected a name, and an end at which sides agree")
        if not (isfinite(self.low) and isfinite(self.high) and self.low < self.high):
            raise ShadowError(f"comparator: measure {self.name!r}: expected low < high, got {self.low} and {self.high}")

    @property
    def worst(self) -> float:
        """The end at which the sides agree least."""
        return self.high if self.agrees == "low" else self.low


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The comparison of n items; every array has shape [n].

    ``max_delta`` and ``mean_delta``: largest and mean |Δscore| of the item, at most ``DELTA_CAP``. ``*_top1``: the
    index of each side's answer, −1 where its scores name none (a NaN among them); −1 agrees with nothing.
    ``measures``: the values of every declared measure by name; NaN where it does not apply to the item.
    """

    max_delta: Array
    mean_delta: Array
    baseline_top1: Array
    candidate_top1: Array
    measures: Mapping[str, Array] = field(default_factory=dict)


class Comparator(Protocol):
    """Compares the outputs of n items; a pure function of them, so that anyone can recompute it from the evidence.

    ``compare`` takes for each side the ``outputs`` as float32 of shape [n, *item shape], where an output of one number
    an item has the item shape [1]. All n items of a side are of the same shapes; the two sides may differ in theirs.
    The answer must name the values of every one of the ``measures``.

    More attributes are read where a comparator has them. ``by_batch = True``: what it says of an item depends on the
    others, so it is given the items of one batch at a time, not those of many. ``may_be_empty = True``: an answer
    without any values is one that it can compare (no boxes found), not a malformed one. For reports alone:
    ``names_answers = False``: no item has a top-1 answer, so that there is nothing to agree on but the measures.
    ``difference``: what ``max_delta`` is called where it is not a difference of scores.
    """

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs that it reads."""

    @property
    def measures(self) -> tuple[Measure, ...]:
        """What it says of an item besides the differences and the answers, in the order in which it is recorded."""

    def compare(self, baseline: Mapping[str, Array], candidate: Mapping[str, Array]) -> Comparison:
        """Compare n items."""


COMPARATORS: Final[Mapping[str, str]] = {
    "classification": "shadow.comparators.classification:Classification",
    "embedding": "shadow.comparators.embedding:Embedding",
    "ranking": "shadow.comparators.ranking:Ranking",
    "detection": "shadow.comparators.detection:Detection",
    "segmentation": "shadow.comparators.segmentation:Segmentation",
}


def open_comparator(kind: str, output: str, parameters: Mapping[str, Any] | None = None) -> Comparator:
    """The comparator of a registered kind, or a user's own, named ``package.module:Name``.

    It is built with ``output=`` and the parameters, which must be plain JSON values: they are part of the evidence.

    Raises:
        ShadowError: there is none of that name, a parameter is wrong, or it does not fulfil the contract.
    """
    given = dict(parameters or {})
    factory = _factory(kind)
    try:
        orjson.dumps(given)
    except TypeError as error:
        raise ShadowError(f"comparator.parameters: expected plain JSON values: {error}") from error
    try:
        signature(factory).bind(output=output, **given)
    except TypeError as error:
        raise ShadowError(f"comparator.parameters: {kind}: {error}") from error
    try:
        comparator = factory(output=output, **given)
    except ShadowError:
        raise
    except Exception as error:
        raise ShadowError(f"comparator.kind: cannot open {kind!r}: {error!r}") from error
    return _checked(kind, comparator)


def names_answers(kind: str) -> bool | None:
    """Whether a registered comparator names top-1 answers; None for a user's own, of which its rows alone tell."""
    return getattr(_factory(kind), "names_answers", True) if kind in COMPARATORS else None


def difference(kind: str) -> str:
    """What a registered comparator's ``max_delta`` is called; a user's own is not imported for its name."""
    name = "max |Δscore|"
    return getattr(_factory(kind), "difference", name) if kind in COMPARATORS else name


def _factory(kind: str) -> Callable[..., Any]:
    target = COMPARATORS.get(kind, kind)
    module_name, colon, name = target.partition(":")
    if not colon:
        raise ShadowError(
            f"comparator.kind: expected one of {sorted(COMPARATORS)} or package.module:Name, got {kind!r}"
        )
    try:
        return cast(Callable[..., Any], getattr(import_module(module_name), name))
    except (ImportError, AttributeError) as error:
        raise ShadowError(f"comparator.kind: cannot import {kind!r}: {error}") from error


def _checked(kind: str, comparator: Any) -> Comparator:
    outputs, measures = getattr(comparator, "outputs", None), getattr(comparator, "measures", None)
    if not _distinct(outputs, str) or not outputs or any(not name or ";" in name for name in outputs):
        raise ShadowError(f"comparator.kind: {kind!r}: outputs: expected names without ';', got {outputs!r}")
    if not _distinct(measures, Measure) or not _distinct(tuple(measure.name for measure in measures or ()), str):
        raise ShadowError(f"comparator.kind: {kind!r}: measures: expected different measures, got {measures!r}")
    if not callable(getattr(comparator, "compare", None)):
        raise ShadowError(f"comparator.kind: {kind!r}: expected a method compare")
    return cast(Comparator, comparator)


def _distinct(values: Any, kind: type) -> bool:
    """Whether it is a tuple of different things of a kind."""
    return (
        isinstance(values, tuple) and all(isinstance(each, kind) for each in values) and len({*values}) == len(values)
    )
