"""What coverage is found to lack; and its promise, over rollouts whose mirror is overloaded now and then."""

from dataclasses import dataclass
from itertools import count
from math import log
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rollout.bounds import ODDS
from rollout.coverage import ALPHA, BURST, MARGIN, biased
from shadow.accounting import Account, Accounting, Company, Ledger
from shadow.cells import BUCKETS, Cell

MIX: Final = (0.5, 0.3, 0.15, 0.05)  # of batches by bucket
LARGEST: Final = 8  # items in a batch
LATE: Final = 10  # batches until it is known that one was mirrored; that it was shed is known at once


def ledger(*cells: tuple[int, str, int, int], batch: int = 1) -> Ledger:
    """Bucket, slice, items sampled and items mirrored; the rest was shed, all in batches of one size."""
    accounts = {
        Cell(bucket, name): Account(sampled=sampled, mirrored=mirrored, shed=sampled - mirrored)
        for bucket, name, sampled, mirrored in cells
    }
    company = {
        cell: Company(bucket=batch * account.sampled, slice=batch * account.sampled)
        for cell, account in accounts.items()
    }
    return Ledger(accounts, company)


# What is named


def test_a_size_that_is_hardly_mirrored_is_named_with_its_share_and_that_of_all() -> None:
    assert biased(ledger((3, "", 9000, 8000), (6, "", 1000, 120))) == (
        "requests of 1 MiB … 4 MiB: 12 % mirrored, 81.2 % over all"
    )


def test_a_slice_that_is_hardly_mirrored_is_named() -> None:
    lobby_and_gate = ledger((3, "lobby", 9000, 8000), (3, "gate", 1000, 120))
    assert biased(lobby_and_gate) == "slice gate: 12 % mirrored, 81.2 % over all"
    unnamed = ledger((3, "lobby", 9000, 8000), (3, "", 1000, 120))
    assert biased(unnamed) == "requests of no slice: 12 % mirrored, 81.2 % over all"


def test_of_several_the_worst_are_named_first_and_not_all() -> None:
    said = biased(ledger((0, "", 90_000, 81_000), *((each, "", 2000, 300 * each) for each in (4, 2, 1, 3))))
    assert said == (
        "requests of 1 KiB … 4 KiB: 15 % mirrored, requests of 4 KiB … 16 KiB: 30 % mirrored, "
        "requests of 16 KiB … 64 KiB: 45 % mirrored, 85.7 % over all"
    )


@pytest.mark.parametrize(
    "whole",
    [
        Ledger(),
        ledger((3, "", 1000, 100)),
        ledger((3, "", 1000, 0), (4, "", 1000, 0)),
        ledger((3, "", 1000, 1000), (4, "", 10, 10)),
        ledger((3, "", 1000, 800), (4, "", 2, 0)),
        ledger((3, "", 1_000_000, 800_000), (4, "", 1_000_000, 740_000)),
    ],
    ids=["nothing", "one kind alone", "nothing mirrored", "all mirrored", "two of a kind", "a little less"],
)
def test_nothing_is_named_where_nothing_is_proved_or_nothing_matters(whole: Ledger) -> None:
    assert biased(whole) is None


def test_what_is_pending_may_yet_be_mirrored() -> None:
    known = ledger((3, "", 9000, 8000)).cells
    waiting = Account(sampled=1000, shed=120, pending=880)
    assert biased(Ledger({**known, Cell(6, ""): waiting})) is None
    lost = Account(sampled=1000, shed=620, pending=380)
    assert biased(Ledger({**known, Cell(6, ""): lost})) is not None


def test_items_of_one_batch_are_one_piece_of_evidence() -> None:
    cells = (3, "", 9000, 7500), (4, "", 64, 0)
    assert biased(ledger(*cells, batch=1)) is not None
    assert biased(ledger(*cells, batch=32)) is None


@given(
    accounts=st.dictionaries(
        st.builds(Cell, st.integers(0, BUCKETS - 1), st.sampled_from(["", "gate", "lobby"])),
        st.builds(
            lambda *counts: Account(
                sampled=sum(counts), mirrored=counts[0], pending=counts[1], shed=counts[2], too_large=counts[3]
            ),
            *[st.integers(0, 10**9)] * 4,
        ),
    ),
    batch=st.integers(1, 64),
)
@settings(deadline=None)
def test_any_account_gives_one_line_or_none(accounts: dict[Cell, Account], batch: int) -> None:
    company = {
        cell: Company(bucket=batch * account.sampled, slice=batch * account.sampled)
        for cell, account in accounts.items()
    }
    said = biased(Ledger(accounts, company))
    assert said is None or (said.endswith(" over all") and "\n" not in said and "nan" not in said)


# The promise, by simulation


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of many rollouts in their order, each of one bucket: [runs, batches]."""

    sizes: NDArray[np.int64]
    buckets: NDArray[np.int64]
    lost: NDArray[np.bool_]

    def counts(self, bucket: int) -> tuple[NDArray[np.float64], ...]:
        """After each batch, of a bucket: items sampled, lost, and known to be mirrored; and Σ of squares."""
        mine = np.where(self.buckets == bucket, self.sizes, 0)
        sampled, squares = np.cumsum(mine, axis=1), np.cumsum(mine * mine, axis=1)
        lost, kept = np.cumsum(mine * self.lost, axis=1), np.cumsum(mine * ~self.lost, axis=1)
        known = np.pad(kept, ((0, 0), (LATE, 0)))[:, : kept.shape[1]]
        return tuple(each.astype(np.float64) for each in (sampled, lost, known, squares))


def simulate(rng: np.random.Generator, runs: int, batches: int, *, stay: float) -> Batches:
    """The mirror sheds 2 % of batches, and 70 % while it is overloaded: a quarter of the time, 20 batches at a time.

    A batch is of the bucket of the one before it with the probability ``stay``.
    """
    shape = (runs, batches)
    overloaded = np.zeros(shape, dtype=bool)
    begins, ends = rng.random(shape) < 1 / 60, rng.random(shape) < 1 / 20
    buckets, stays = rng.choice(len(MIX), shape, p=MIX), rng.random(shape) < stay
    for at in range(1, batches):
        overloaded[:, at] = np.where(overloaded[:, at - 1], ~ends[:, at], begins[:, at])
        buckets[:, at] = np.where(stays[:, at], buckets[:, at - 1], buckets[:, at])
    return Batches(
        sizes=rng.integers(1, LARGEST, shape, endpoint=True),
        buckets=buckets,
        lost=rng.random(shape) < np.where(overloaded, 0.7, 0.02),
    )


def could_be_named(batches: Batches) -> NDArray[np.bool_]:
    """The looks at which some bucket may be named at all: [runs, looks].

    The least product over all rates is at most that at the share of the rest, where no bet on the rest wins. On the
    group none wins more than the likelihood ratio of its share, nor more than the largest odds with every item lost.
    """
    every = [batches.counts(bucket) for bucket in range(len(MIX))]
    all_lost, all_known = (np.sum([each[at] for each in every], axis=0) for at in (1, 2))
    possible = np.zeros(batches.lost.shape, dtype=bool)
    with np.errstate(divide="ignore", invalid="ignore"):
        for sampled, lost, known, squares in every:
            mine = 1 - lost / sampled
            rest = (all_known - known) / (all_known - known + all_lost - lost)
            effect = BURST * np.maximum(squares / sampled, 1)
            most = np.minimum(sampled * _divergence(mine, rest), lost * log(max(ODDS))) / effect
            low = mine < (1 - MARGIN) * all_known / (all_known + all_lost)
            possible |= low & (mine < rest) & (most >= log(2 * BUCKETS / ALPHA))
    return possible


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kullback–Leibler, of coins; infinite where q is sure and wrong."""
    heads = np.where(p > 0, p * np.log(p / q), 0.0)
    tails = np.where(p < 1, (1 - p) * np.log((1 - p) / (1 - q)), 0.0)
    return np.asarray(heads + tails)


def ledger_after(batches: Batches, run: int, look: int) -> Ledger:
    """What is known after a look's batch."""
    seen = np.s_[run : run + 1, : look + 1]
    one = Batches(batches.sizes[seen], batches.buckets[seen], batches.lost[seen])
    accounts, company = {}, {}
    for bucket in range(len(MIX)):
        sampled, lost, known, squares = (int(each[0, -1]) for each in one.counts(bucket))
        cell = Cell(bucket, "")
        accounts[cell] = Account(sampled=sampled, mirrored=known, shed=lost, pending=sampled - lost - known)
        company[cell] = Company(bucket=squares, slice=squares)
    return Ledger(accounts, company)


@pytest.mark.parametrize("stay", [0.0, 2 / 3], ids=["sizes come at random", "each three at a time"])
def test_what_is_shed_without_bias_is_hardly_ever_called_biased(stay: float) -> None:
    """1000 rollouts of 600 batches, looked at after every batch: at most 1 % are ever held for nothing."""
    batches = simulate(np.random.default_rng(20261121), runs=1000, batches=600, stay=stay)
    possible = could_be_named(batches)
    named = 0
    for run in np.flatnonzero(possible.any(axis=1)):
        looks = np.flatnonzero(possible[run])
        named += any(biased(ledger_after(batches, int(run), int(look))) is not None for look in looks)
    assert named <= 0.01 * 1000


def items_until_named(rng: np.random.Generator, *, bucket: int, mirrored: float) -> int:
    """How many items of a bucket are sampled until it is named, of which this share is mirrored, of the rest 81 %."""
    accounting, items = Accounting(), 0
    for _ in count():
        cell = Cell(int(rng.choice(len(MIX), p=MIX)), "")
        batch = {cell: int(rng.integers(1, LARGEST, endpoint=True))}
        accounting.sample(batch)
        if rng.random() < (mirrored if cell.bucket == bucket else 0.81):
            accounting.settle(mirrored=batch)
        else:
            accounting.shed(batch)
        if cell.bucket != bucket:
            continue
        items += batch[cell]
        if biased(accounting.ledger()) is not None:
            break
    return items


@pytest.mark.parametrize(
    ("mirrored", "limit"), [(0.0, 100), (0.405, 500)], ids=["shed completely", "at half of the share"]
)
def test_a_bucket_that_is_mirrored_less_is_named_soon(mirrored: float, limit: int) -> None:
    rng = np.random.default_rng(7)
    needed = [items_until_named(rng, bucket=2, mirrored=mirrored) for _ in range(40)]
    assert np.quantile(needed, 0.8) <= limit
