"""A backend's ``parameters`` of ``model.yaml``, read strictly: a typing error must not fall back to a default."""

from collections.abc import Mapping, Sequence
from typing import Any

from models.errors import BackendError


class Parameters:
    """Takes parameters one by one; ``finish`` refuses what nobody took. ``owner`` is named in errors."""

    def __init__(self, owner: str, values: Mapping[str, Any]) -> None:
        self._owner, self._values = owner, values
        self._taken: list[str] = []

    def choice(self, name: str, options: Sequence[str], *, default: str) -> str:
        """One of ``options``.

        Raises:
            BackendError: another value.
        """
        value = self._take(name, default)
        if value not in options:
            raise self._error(name, f"one of {', '.join(options)}", value)
        return str(value)

    def integer(self, name: str, *, default: int, minimum: int) -> int:
        """An integer of at least ``minimum``.

        Raises:
            BackendError: another value.
        """
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self._error(name, f"an integer of at least {minimum}", value)
        return value

    def finish(self) -> None:
        """Refuse parameters that were not taken.

        Raises:
            BackendError: naming the first unknown parameter and the known ones.
        """
        for name, value in self._values.items():
            if name not in self._taken:
                raise self._error(name, f"only {', '.join(sorted(self._taken))}", value)

    def _take(self, name: str, default: object) -> object:
        self._taken.append(name)
        return self._values.get(name, default)

    def _error(self, name: str, expected: str, found: object) -> BackendError:
        return BackendError(f"{self._owner}: parameters.{name}: expected {expected}, got {found!r}")
