"""The mirror's account: where every sampled item went.

Always: sampled = mirrored + pending + shed + too_large + timed_out + failed, in items (batch rows).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Self

from shadow.errors import ShadowError


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account at one moment, in items. Accounts of several mirrors add up."""

    sampled: int = 0  # chosen to be mirrored
    mirrored: int = 0  # recorded, and the other side answered
    pending: int = 0  # on their way: in the lane, at the other version, or not yet durable
    shed: int = 0  # dropped by our own budget: evidence for nothing
    too_large: int = 0  # over the lane's limit in bytes by themselves
    timed_out: int = 0  # recorded, and the other side did not answer in time
    failed: int = 0  # recorded, and the other side failed; or lost by a fault of the recorder, or with its process

    def __add__(self, other: "Account") -> "Account":
        mine, theirs = self.to_json(), other.to_json()
        return Account(**{name: mine[name] + theirs[name] for name in mine})

    def abandoned(self) -> "Account":
        """The account of a mirror whose process is gone: what was on its way is lost."""
        return replace(self, pending=0, failed=self.failed + self.pending)

    @property
    def balanced(self) -> bool:
        """Whether every sampled item is somewhere, and none is twice."""
        ends = self.mirrored + self.pending + self.shed + self.too_large + self.timed_out + self.failed
        return self.sampled == ends and min(self.to_json().values()) >= 0

    def to_json(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, int]) -> Self:
        """The inverse of ``to_json``."""
        return cls(**value)


class Accounting:
    """The running account of one mirror lane and its recorder.

    The lane's loop thread calls ``sample``, ``shed`` and ``too_large``; the recorder's thread calls ``settle`` once the
    rows are durable. One lock makes each move, and each ``snapshot``, whole; it is held for a few additions only.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._sampled = self._mirrored = self._shed = self._too_large = self._timed_out = self._failed = 0

    def sample(self, items: int) -> None:
        """Items are chosen to be mirrored: they are pending from now on."""
        with self._lock:
            self._sampled += items

    def shed(self, items: int) -> None:
        """Pending items are dropped, for want of room or time of our own."""
        with self._lock:
            self._take(items)
            self._shed += items

    def too_large(self, items: int) -> None:
        """Pending items are dropped because their batch alone exceeds the lane."""
        with self._lock:
            self._take(items)
            self._too_large += items

    def settle(self, *, mirrored: int = 0, timed_out: int = 0, failed: int = 0) -> None:
        """Pending items have ended: how, on the side that did not answer the client."""
        with self._lock:
            self._take(mirrored + timed_out + failed)
            self._mirrored += mirrored
            self._timed_out += timed_out
            self._failed += failed

    def snapshot(self) -> Account:
        """The account now; always balanced."""
        with self._lock:
            return Account(
                sampled=self._sampled,
                mirrored=self._mirrored,
                pending=self._pending,
                shed=self._shed,
                too_large=self._too_large,
                timed_out=self._timed_out,
                failed=self._failed,
            )

    @property
    def _pending(self) -> int:
        return self._sampled - self._mirrored - self._shed - self._too_large - self._timed_out - self._failed

    def _take(self, items: int) -> None:
        if items > self._pending:
            raise ShadowError(f"the mirror's account: {items} items end, but only {self._pending} are pending")
