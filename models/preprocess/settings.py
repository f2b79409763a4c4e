"""A step's settings, read strictly: a typing error must not fall back to a default."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import SettingError


class Settings:
    """Takes settings one by one; ``finish`` refuses what nobody took. Each raises ``SettingError``."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self._taken: list[str] = []

    def value(self, name: str, default: object = None) -> Any:
        """Whatever is there."""
        self._taken.append(name)
        return self._values.get(name, default)

    def choice(self, name: str, options: Sequence[str], *, default: str | None = None) -> str:
        """One of ``options``; required where there is no default."""
        value = self.value(name, default)
        if value not in options:
            raise SettingError(name, f"one of {', '.join(options)}", value)
        return str(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        """True or false."""
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise SettingError(name, "true or false", value)
        return value

    def integer(self, name: str, *, default: int, largest: int) -> int:
        """An integer from 1 to ``largest``."""
        value = self.value(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            raise SettingError(name, f"an integer from 1 to {largest}", value)
        return value

    def positive(self, name: str, *, default: float) -> float:
        """A number above 0."""
        value = self.value(name, default)
        if not _is_number(value) or value <= 0:
            raise SettingError(name, "a number above 0", value)
        return float(value)

    def numbers(self, name: str, *, default: float, count: int) -> list[float]:
        """A list of ``count`` numbers, or ``count`` times the default."""
        value = self.value(name, [default] * count)
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise SettingError(name, f"a list of {count} numbers, one for each channel", value)
        return [float(each) for each in value]

    def finish(self) -> None:
        """Refuse settings that were not taken."""
        for name in self._values:
            if name not in self._taken:
                raise SettingError(name, f"only {', '.join(sorted(self._taken))}", name)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
