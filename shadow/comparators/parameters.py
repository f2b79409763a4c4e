"""The parameters of comparators, checked by name."""

from math import isfinite

from shadow.errors import ShadowError


def whole(name: str, value: object, *, at_least: int) -> int:
    """A whole number.

    Raises:
        ShadowError: it is none, or too small.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise ShadowError(f"comparator.parameters.{name}: expected a whole number from {at_least}, got {value!r}")
    return value


def number(name: str, value: object, *, low: float, high: float) -> float:
    """A number from ``low`` to ``high``.

    Raises:
        ShadowError: it is none, or outside.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not isfinite(value) or not low <= value <= high:
        raise ShadowError(f"comparator.parameters.{name}: expected a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


def flag(name: str, value: object) -> bool:
    """True or false.

    Raises:
        ShadowError: it is neither.
    """
    if not isinstance(value, bool):
        raise ShadowError(f"comparator.parameters.{name}: expected true or false, got {value!r}")
    return value


def text(name: str, value: object) -> str:
    """A name.

    Raises:
        ShadowError: it is none.
    """
    if not isinstance(value, str) or not value:
        raise ShadowError(f"comparator.parameters.{name}: expected a name, got {value!r}")
    return value
