"""How the figures of evidence are spelled, in text and in drawings."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rollout.gates.text import number, signed
from shadow.evidence import DELTA_EDGES

_ALMOST: Final = 5e-5  # what would be rounded to none, or to all
_LEAST_DELTA: Final = DELTA_EDGES[0]
_UNITS: Final = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))
_NAME_CHARACTERS: Final = 24  # characters of a slice's name


def share(value: float | None) -> str:
    """A share as a percentage with two decimals; what is not all, or not none, is never spelled so."""
    if value is None:
        return "–"
    if 0 < value < _ALMOST:
        return "< 0.01 %"
    return "> 99.99 %" if 1 - _ALMOST < value < 1 else f"{100 * value:.2f} %"


def delta(value: float | None) -> str:
    """A difference of scores, with two digits; what is less than its histogram tells apart is spelled so."""
    if value is None:
        return "–"
    return f"< {_LEAST_DELTA:.0e}" if 0 < value <= _LEAST_DELTA else f"{value:.2g}"


def measured(value: float | None) -> str:
    """What a comparator measured, or a mean of it, with four digits; what is not 0, or not 1, is never spelled so."""
    if value is None:
        return "–"
    if 1 - _ALMOST < value < 1:
        return "> 0.9999"
    return f"{value:.4g}"


def size(nbytes: float) -> str:
    """An amount of memory in the unit that a person would use: "61.5 MB"."""
    unit, scale = _unit(nbytes)
    return f"{number(nbytes / scale)} {unit}"


def growth(slope: float | None, error: float | None) -> str:
    """A slope in bytes with its standard error: "+1.2 ± 0.3 MB"."""
    if slope is None:
        return "unknown"
    unit, scale = _unit(max(abs(slope), error or 0.0))
    beside = "" if error is None else f" ± {number(round(error / scale, 3))}"
    return f"{signed(round(slope / scale, 3))}{beside} {unit}"


def batch_rows(entry: Mapping[str, Any]) -> str:
    """The batch sizes that a line is of: "1", "4–7"."""
    first, last = entry["from_rows"], entry["to_rows"]
    return str(first) if first == last else f"{first}–{last}"


def short(name: object) -> str:
    """A label or slice, cut where it is long; "none" for requests of no slice."""
    text = str(name) or "none"
    return text if len(text) <= _NAME_CHARACTERS else f"{text[: _NAME_CHARACTERS - 1]}…"


def least_agreeing(groups: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Groups in the order given; where there are more than ``most``, those whose agreement is surely lowest."""
    chosen = sorted(range(len(groups)), key=lambda at: groups[at]["high"])[:most]
    return [groups[at] for at in sorted(chosen)]


def _unit(nbytes: float) -> tuple[str, float]:
    return next(((unit, scale) for unit, scale in _UNITS if abs(nbytes) >= scale), ("B", 1.0))
