"""Slices: kinds of requests that are counted apart, told from a parameter that clients send along."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from shadow.errors import ShadowError

OTHER: Final = "other"  # of a request whose value is none of the declared ones
NONE: Final = ""  # of a request without the parameter, and of all requests where no slices are declared
MAX_SLICES: Final = 64


class Slices:
    """Names a request's slice: the value of one parameter, if it is declared.

    Without a parameter there are no slices. What clients send cannot make more of them than are declared, so that
    whatever is kept by slice stays bounded. A number is compared by its spelling, a boolean as "true" or "false".

    Raises:
        ShadowError: a name is missing, reserved or there twice, or there are more than 64.
    """

    def __init__(self, parameter: str = "", values: Sequence[str] = ()) -> None:
        if values and not parameter:
            raise ShadowError("slices.parameter: expected the name of a request's parameter, got none")
        if parameter and not 0 < len(values) <= MAX_SLICES:
            raise ShadowError(f"slices.values: expected 1 to {MAX_SLICES} values of {parameter}, got {len(values)}")
        for value in values:
            if value in (OTHER, NONE):
                raise ShadowError(f"slices.values: {value!r} stands for what is not declared; expected another value")
        self._parameter, self._names = parameter, {value: value for value in values}
        if len(self._names) < len(values):
            raise ShadowError(f"slices.values: expected different values, got {list(values)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The declared ones."""
        return tuple(self._names)

    def of(self, parameters: Mapping[str, Any]) -> str:
        """The slice of a request with these parameters."""
        if not self._parameter:
            return NONE
        value = parameters.get(self._parameter)
        if value is None:
            return NONE
        return self._names.get(value if type(value) is str else _spelt(value), OTHER)


def _spelt(value: Any) -> str:
    """A parameter that is no text, as a configuration file would have it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
