"""Whether what was mirrored speaks for all that was sampled, or some size or slice of requests is missing from it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import log
from typing import Final

import numpy as np

from rollout.bounds import FloatArray, rate_above, rate_below
from rollout.gates.text import percent
from shadow.accounting import Account, Group, Ledger
from shadow.cells import BUCKETS, bucket_name
from shadow.slices import MAX_SLICES, NONE

ALPHA: Final = 0.01  # of ever finding a bias in a rollout that has none
MARGIN: Final = 0.1  # a share that is lower by less than a tenth of the overall one does not matter
BURST: Final = 1.5  # batches that follow each other share a fate: what they prove together counts that much less
NAMED: Final = 3  # of several that are under-represented
_SLICES: Final = MAX_SLICES + 2  # with those of other values, and of none
_POINTS: Final = 33  # between two shares, at which they are told apart


def biased(ledger: Ledger) -> str | None:
    """What is under-represented in the evidence, fit to print; None: nothing, as far as is proved.

    Of each bucket of sizes and of each slice, mirrored / settled items are compared with those of all other requests.
    One is named when its share is proved to be lower than theirs, and is below nine tenths of the overall one.

    Promise: where every request is mirrored with one and the same probability p, whatever came before,
    P(anything is ever named, however often one looks) ≤ ``ALPHA``. Proof:
    1. at p both F1 below p on the group and F1 above p on the rest are e-processes. An item multiplies one of the two:
       their product is an e-process as well;
    2. p is not known: a group's E is the least product over all rates, and so never more than that at p;
    3. a group is named at 2/``ALPHA`` times the number of buckets, or of slices, that there can be. By Ville's
       inequality all of them together are ever named with probability ≤ ``ALPHA``. ∎

    What is shed, is shed by whole batches, and several at a time. So counts are divided by a design effect: the mean
    size of the batch that an item travelled in, which is measured (``shadow.accounting.Company``), times ``BURST`` for
    neighbouring batches, which is a convention. An overload changes p for a while, but for every cell alike. This goes
    beyond the proof; a simulation of it keeps the promise (tests), as long as what comes does not depend on whether the
    mirror is overloaded. A camera that sends while it is, more than at other times, *is* under-represented, and named.

    Items that are pending may yet be mirrored: for the group they count as if they were.
    """
    total = ledger.total
    low = [group for group in _groups(ledger) if group.matters(total) and group.is_proved(total)]
    low.sort(key=lambda group: group.hopeful)
    said = [f"{group.name}: {percent(group.account.share)} mirrored" for group in low[:NAMED]]
    return f"{', '.join(said)}, {percent(total.share)} over all" if said else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """A bucket or a slice; ``squares`` and ``all_squares`` are Σ of squared items per batch, its own and of all."""

    name: str
    account: Account
    squares: int
    all_squares: int
    of: int  # how many of its kind there can be

    @property
    def hopeful(self) -> float:
        """Its share, if all that is pending is mirrored in the end."""
        return (self.account.mirrored + self.account.pending) / max(self.account.sampled, 1)

    def matters(self, total: Account) -> bool:
        """Whether it lacks as much as would matter."""
        return self.account.sampled > 0 and self.hopeful < (1 - MARGIN) * total.share

    def is_proved(self, total: Account) -> bool:
        """Whether its share is lower than that of the rest by more than chance."""
        mine = self.account
        rest_sampled, rest_settled = total.sampled - mine.sampled, total.settled - mine.settled
        rest_mirrored = total.mirrored - mine.mirrored
        if rest_settled <= 0 or self.hopeful >= rest_mirrored / rest_settled:
            return False
        effect = _design_effect(self.squares, mine.sampled)
        rest_effect = _design_effect(self.all_squares - self.squares, rest_sampled)
        rates = np.linspace(self.hopeful, rest_mirrored / rest_settled, _POINTS)
        kept = mine.mirrored + mine.pending
        below = rate_below(rates).log_e((kept / effect, (mine.sampled - kept) / effect))
        above = rate_above(rates).log_e((rest_mirrored / rest_effect, (rest_settled - rest_mirrored) / rest_effect))
        return _least_product(below, above) >= log(2 * self.of / ALPHA)


def _groups(ledger: Ledger) -> Iterator[_Group]:
    buckets, slices = ledger.by_bucket(), ledger.by_slice()
    bucket_squares, slice_squares = _squares(buckets.values()), _squares(slices.values())
    for bucket, group in buckets.items():
        yield _group(f"requests of {bucket_name(bucket)}", group, bucket_squares, BUCKETS)
    for name, group in slices.items():
        yield _group("requests of no slice" if name == NONE else f"slice {name}", group, slice_squares, _SLICES)


def _group(name: str, group: Group, all_squares: int, of: int) -> _Group:
    return _Group(name=name, account=group.account, squares=group.squares, all_squares=all_squares, of=of)


def _squares(groups: Iterable[Group]) -> int:
    return sum(group.squares for group in groups)


def _design_effect(squares: int, items: int) -> float:
    """As how many items one independent item counts."""
    return BURST * max(squares / items, 1.0)


def _least_product(below: FloatArray, above: FloatArray) -> float:
    """ln of the least product of two e-values over all rates, given ln of both at some rates, ascending.

    Half of each capital stays aside, so that neither can lose more than that. Between two rates the one that rises is
    at least what it is at the lower, the one that falls at least what it is at the upper.
    """
    rising, falling = np.logaddexp(below, 0.0) - log(2), np.logaddexp(above, 0.0) - log(2)
    return float(np.min(np.append(-log(2), rising) + np.append(falling, -log(2))))
