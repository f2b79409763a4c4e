from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.accounting import Account, Accounting
from shadow.errors import ShadowError

MOVES = st.lists(
    st.tuples(st.sampled_from(["sample", "shed", "too_large", "mirrored", "timed_out", "failed"]), st.integers(0, 40)),
    max_size=60,
)


def play(accounting: Accounting, move: str, items: int) -> None:
    if move in ("mirrored", "timed_out", "failed"):
        accounting.settle(**{move: items})
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
