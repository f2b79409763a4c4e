from dataclasses import dataclass, field
from threading import Thread

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.accounting import Account, Accounting, Company, Ledger
from shadow.cells import Cell, Items
from shadow.errors import ShadowError

MOVES = st.lists(
    st.tuples(st.sampled_from(["sample", "shed", "too_large", "mirrored", "timed_out", "failed"]), st.integers(0, 40)),
    max_size=60,
)


def play(accounting: Accounting, move: str, items: int | Items) -> None:
    if move in ("mirrored", "timed_out", "failed"):
        accounting.settle(**{move: items})  # type: ignore[arg-type]
    else:
        getattr(accounting, move)(items)


@given(moves=MOVES)
@settings(deadline=None)
def test_every_sampled_item_is_somewhere_after_any_sequence_of_moves(moves: list[tuple[str, int]]) -> None:
    accounting, pending = Accounting(), 0
    for move, items in moves:
        if move == "sample" or items <= pending:
            play(accounting, move, items)
            pending += items if move == "sample" else -items
        else:
            with pytest.raises(ShadowError, match="only"):
                play(accounting, move, items)
        account = accounting.snapshot()
        assert account.balanced
        assert account.pending == pending


ACCOUNTS = st.builds(Account, **{name: st.integers(0, 10**9) for name in Account().to_json()})


@given(a=ACCOUNTS, b=ACCOUNTS, c=ACCOUNTS)
@settings(deadline=None)
def test_accounts_add_up_in_any_order(a: Account, b: Account, c: Account) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Account() == a
    assert Account.from_json(a.to_json()) == a


def test_an_account_that_lost_an_item_is_not_balanced() -> None:
    assert Account(sampled=3, mirrored=2, pending=1).balanced
    assert not Account(sampled=3, mirrored=2).balanced
    assert not Account(sampled=1, mirrored=2, pending=-1).balanced


def test_two_threads_keep_the_account_balanced() -> None:
    accounting = Accounting()
    accounting.sample(20_000)

    def settle() -> None:
        for _ in range(10_000):
            accounting.settle(mirrored=1)

    thread = Thread(target=settle)
    thread.start()
    balanced = True
    for _ in range(10_000):
        accounting.shed(1)
        balanced &= accounting.snapshot().balanced
    thread.join()
    assert balanced
    assert accounting.snapshot() == Account(sampled=20_000, mirrored=10_000, shed=10_000)


@given(st.builds(Account, sampled=st.integers(0, 99), pending=st.integers(0, 99), failed=st.integers(0, 99)))
def test_of_a_mirror_that_is_gone_nothing_is_pending_and_nothing_is_forgotten(account: Account) -> None:
    left = account.abandoned()
    assert (left.pending, left.failed) == (0, account.failed + account.pending)
    assert left.balanced is account.balanced


# By cell

CELLS = st.builds(Cell, st.integers(0, 2), st.sampled_from(["", "gate"]))
LEDGERS = st.builds(
    Ledger,
    st.dictionaries(CELLS, ACCOUNTS, max_size=4),
    st.dictionaries(CELLS, st.builds(Company, bucket=st.integers(1, 10**9), slice=st.integers(1, 10**9)), max_size=4),
)
ENDS = ("shed", "too_large", "mirrored", "timed_out", "failed")


@dataclass
class Lane:
    """What may happen to batches, in any order: each is in one of the places, by its items in each cell."""

    waiting: list[dict[Cell, int]] = field(default_factory=list)  # at the router
    handed: list[dict[Cell, int]] = field(default_factory=list)  # at the shadow process
    router: Accounting = field(default_factory=Accounting)
    shadow: Accounting = field(default_factory=Accounting)
    whole: Accounting = field(default_factory=Accounting)

    def sample(self, batch: dict[Cell, int]) -> None:
        self.waiting.append(batch)
        for accounting in (self.router, self.whole):
            accounting.sample(batch)

    def hand_over(self) -> None:
        if self.waiting:
            self.handed.append(self.waiting.pop(0))
            self.shadow.sample(self.handed[-1])

    def end(self, how: str) -> None:
        """Of a batch that is handed over; what is too large never is, and the router sheds, too."""
        at_router = how == "too_large" or (how == "shed" and not self.handed)
        places = self.waiting if at_router else self.handed
        if places:
            batch = places.pop(0)
            for accounting in (self.router if at_router else self.shadow, self.whole):
                play(accounting, how, batch)


STEPS = st.lists(
    st.dictionaries(CELLS, st.integers(0, 9), min_size=1, max_size=3) | st.sampled_from(["hand over", *ENDS]),
    max_size=40,
)


@given(steps=STEPS)
@settings(deadline=None)
def test_the_routers_part_and_the_shadow_processs_part_are_the_whole_at_any_moment(
    steps: list[dict[Cell, int] | str],
) -> None:
    lane = Lane()
    for step in steps:
        if isinstance(step, dict):
            lane.sample(step)
        elif step == "hand over":
            lane.hand_over()
        else:
            lane.end(step)
        whole = lane.router.ledger() + lane.shadow.ledger().ends()
        assert whole == lane.whole.ledger()
        assert whole.balanced
        assert whole.total == lane.router.snapshot() + lane.shadow.snapshot().ends() == lane.whole.snapshot()


@given(a=LEDGERS, b=LEDGERS, c=LEDGERS)
@settings(deadline=None)
def test_ledgers_add_up_in_any_order_and_grouping(a: Ledger, b: Ledger, c: Ledger) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Ledger() == a
    assert (a + b).total == a.total + b.total


@given(ledger=LEDGERS)
@settings(deadline=None)
def test_a_ledger_is_read_back_from_json_as_it_was(ledger: Ledger) -> None:
    known = Ledger(ledger.cells, {cell: ledger.company[cell] for cell in ledger.company if cell in ledger.cells})
    assert Ledger.from_json(orjson.loads(orjson.dumps(known.to_json()))) == known


@given(ledger=LEDGERS)
@settings(deadline=None)
def test_groups_are_the_ledger_by_one_of_its_edges(ledger: Ledger) -> None:
    for groups in (ledger.by_bucket(), ledger.by_slice()):
        assert sum((group.account for group in groups.values()), Account()) == ledger.total
    assert set(ledger.by_bucket()) == {cell.bucket for cell in ledger.cells}
    assert set(ledger.by_slice()) == {cell.slice for cell in ledger.cells}


@given(batches=st.lists(st.dictionaries(CELLS, st.integers(1, 9), min_size=1, max_size=6), max_size=20))
@settings(deadline=None)
def test_the_squares_of_a_group_are_those_of_its_items_in_each_batch(batches: list[dict[Cell, int]]) -> None:
    accounting = Accounting()
    for batch in batches:
        accounting.sample(batch)
    ledger = accounting.ledger()
    for bucket, group in ledger.by_bucket().items():
        mine = (sum(count for cell, count in batch.items() if cell.bucket == bucket) for batch in batches)
        assert group.squares == sum(items * items for items in mine)
    for name, group in ledger.by_slice().items():
        mine = (sum(count for cell, count in batch.items() if cell.slice == name) for batch in batches)
        assert group.squares == sum(items * items for items in mine)


def test_an_item_cannot_end_in_a_cell_in_which_it_was_not_sampled() -> None:
    accounting = Accounting()
    accounting.sample(3, Cell(1, "gate"))
    with pytest.raises(ShadowError, match="3 items end, but only 0 are pending"):
        accounting.shed(3, Cell(2, "gate"))
    assert accounting.ledger().cells == {Cell(1, "gate"): Account(sampled=3, pending=3)}


def test_a_move_of_which_one_cell_is_impossible_moves_nothing() -> None:
    accounting = Accounting()
    accounting.sample({Cell(1, ""): 3, Cell(2, ""): 1})
    with pytest.raises(ShadowError, match="only 1 are pending"):
        accounting.settle(mirrored={Cell(1, ""): 3, Cell(2, ""): 2})
    assert accounting.snapshot() == Account(sampled=4, pending=4)


@given(ledger=LEDGERS)
@settings(deadline=None)
def test_of_a_ledger_that_nobody_keeps_any_more_nothing_is_pending(ledger: Ledger) -> None:
    left = ledger.abandoned()
    assert left.total == ledger.total.abandoned()
    assert left.balanced is ledger.balanced


def test_the_share_mirrored_is_of_what_has_ended() -> None:
    assert Account(sampled=10, mirrored=3, pending=5, shed=2).share == 0.6
    assert Account(sampled=4, pending=4).share == 0.0
