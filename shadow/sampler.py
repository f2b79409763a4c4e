"""Which requests are mirrored: chosen from ids, keys, slices and time alone, so never by an answer."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import isfinite
from typing import Final, Literal

from shadow.errors import ShadowError

_SPAN: Final = 1 << 64
_KEYS: Final = 4096  # whose draw is remembered: keys come again, and a draw costs a hash
_WHOLE: Final = tuple(range(size) for size in range(257))  # all positions of a batch, made beforehand
_MINUTE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How much is mirrored; the modes compose.

    ``fraction`` of the batches is drawn by their first request's id, or, by key, that share of the routing keys: a
    key is in or out for the whole rollout. Of each slice in ``floor_per_minute`` at least so many requests a minute
    are taken, whatever was drawn. ``max_rps`` bounds the requests taken, a second, floors included.

    Raises:
        ShadowError: a field is wrong; named as in the configuration, ``mirror.<field>``.
    """

    fraction: float = 1.0
    by: Literal["request", "key"] = "request"
    floor_per_minute: Mapping[str, float] = field(default_factory=dict)
    max_rps: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.fraction <= 1:
            raise ShadowError(f"mirror.sample: expected a fraction from 0 to 1, got {self.fraction!r}")
        if self.by not in ("request", "key"):
            raise ShadowError(f"mirror.by: expected request or key, got {self.by!r}")
        for name, floor in self.floor_per_minute.items():
            if not (floor >= 1 and isfinite(floor)):
                raise ShadowError(f"mirror.floor_per_minute.{name}: expected at least 1 request, got {floor!r}")
        if self.max_rps is None:
            return
        if not (self.max_rps > 0 and isfinite(self.max_rps)):
            raise ShadowError(f"mirror.max_rps: expected requests a second, above 0, got {self.max_rps!r}")
        least = sum(self.floor_per_minute.values()) / _MINUTE_S
        if self.max_rps < least:
            raise ShadowError(
                f"mirror.max_rps: expected at least {least:g}, what the floors take together, got {self.max_rps!r}"
            )


class Sampler:
    """Chooses, batch by batch, the requests that are to be evidence; for one rollout, whose salt it is given.

    A draw is a salted hash: the same salt and id give the same choice on every router and in every run, and what a
    smaller fraction takes, a larger one takes too. A batch is mirrored when it holds a chosen request. It then runs
    whole, as it ran first, but only the chosen requests are evidence and in the account.

    Floor and cap are allowances that come back evenly. A floor's holds a minute's worth: of any two minutes in a row
    it takes at least its number of the slice, or all that came in the second. The cap's holds a second's worth, and a
    batch is taken as long as it is not overdrawn, however large the batch: what is large is not taken less often. In
    any time t it lets through max_rps · (t + 1 s) requests, one batch and what the floors have saved up. What a floor
    is owed goes before everything else; floors and cap shift the mix of slices in the evidence, never by an answer.

    Not thread-safe: it belongs to one router's event loop. ``clock`` is monotonic, in seconds.
    """

    def __init__(self, settings: Sampling, salt: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._bound = round(settings.fraction * _SPAN)
        self._salt = blake2b(salt.encode(), digest_size=16).digest()
        self._by_key = settings.by == "key"
        self._takes_key = lru_cache(maxsize=_KEYS)(self._is_drawn)
        self._clock = clock
        now = clock()
        self._floors = {
            name: _Allowance(floor / _MINUTE_S, floor, now) for name, floor in settings.floor_per_minute.items()
        }
        self._cap = None if settings.max_rps is None else _Allowance(settings.max_rps, max(settings.max_rps, 1.0), now)
        self._unlimited = self._cap is None and not self._floors

    def choose(self, request_ids: Sequence[str], keys: Sequence[str], slices: Sequence[str]) -> Sequence[int] | None:
        """The positions of a batch's requests that are to be evidence, ascending; a ``range`` is all of them.

        Args:
            request_ids: of the batch's requests, in their order; at least one.
            keys: their routing keys.
            slices: their slices; empty where there are none.

        Returns:
            None: the batch is not mirrored.
        """
        drawn = self._draw(request_ids, keys)
        return drawn if self._unlimited else self._limit(drawn, slices)

    def _draw(self, request_ids: Sequence[str], keys: Sequence[str]) -> Sequence[int] | None:
        if self._bound == _SPAN:
            return _whole(len(request_ids))
        if self._bound == 0:
            return None
        if not self._by_key:
            return _whole(len(request_ids)) if self._is_drawn(request_ids[0]) else None
        takes = self._takes_key
        chosen = [at for at, key in enumerate(keys) if takes(key)]
        return _whole(len(keys)) if len(chosen) == len(keys) else chosen or None

    def _is_drawn(self, name: str) -> bool:
        text = name.encode(errors="surrogatepass")
        return int.from_bytes(blake2b(text, key=self._salt, digest_size=8).digest()) < self._bound

    def _limit(self, drawn: Sequence[int] | None, slices: Sequence[str]) -> Sequence[int] | None:
        """What is left of a draw under the cap, and what the floors add to it."""
        now = self._clock()
        owed = self._owed(slices, now) if self._floors else []
        if self._cap is not None and self._cap.left(now) <= 0:
            drawn = None
        chosen = _both(drawn, owed)
        if self._cap is not None and chosen is not None:
            self._cap.spend(len(chosen))
        return chosen

    def _owed(self, slices: Sequence[str], now: float) -> list[int]:
        """The positions that the floors take; what was drawn anyway counts for them, too."""
        owed = []
        for at, name in enumerate(slices):
            floor = self._floors.get(name)
            if floor is not None and floor.left(now) >= 1:
                floor.spend(1)
                owed.append(at)
        return owed


class _Allowance:
    """Requests that may be taken: they come back at an even rate, up to a most. It starts full."""

    __slots__ = ("_at", "_left", "_most", "_per_s")

    def __init__(self, per_s: float, most: float, now: float) -> None:
        self._per_s, self._most = per_s, most
        self._left, self._at = most, now

    def left(self, now: float) -> float:
        """What it holds; negative when it is overdrawn."""
        self._left = min(self._left + (now - self._at) * self._per_s, self._most)
        self._at = now
        return self._left

    def spend(self, requests: int) -> None:
        self._left -= requests


def _whole(size: int) -> range:
    return _WHOLE[size] if size < len(_WHOLE) else range(size)


def _both(drawn: Sequence[int] | None, owed: list[int]) -> Sequence[int] | None:
    if drawn is None:
        return owed or None
    if not owed or type(drawn) is range:  # a range is the whole batch already
        return drawn
    return sorted({*drawn, *owed})
