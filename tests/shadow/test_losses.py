"""What a killed process took along is counted, by chain: never too little, and exactly where a chain was closed."""

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.accounting import Account, Accounting
from shadow.errors import EvidenceError
from shadow.losses import OPEN_SEGMENT_S, ChainLoss, chain_losses, last_reported
from shadow.recorder import Recorder
from shadow.store import Head, SegmentWriter, closings, read_closing, segment_name
from shadow.verify import verify
from tests.shadow.builders import DEPLOYMENT, LIMITS, header, simple_pair, write_chain
from tests.shadow.test_verify import rows

HEAD = Head(chain="router", segments=1, rows=1, sha256="ab" * 32)


def written(folder: Path, *accounts: Account) -> SegmentWriter:
    """A chain with a segment of one row for each account."""
    writer = SegmentWriter(folder, header())
    for number, account in enumerate(accounts):
        writer.write(rows(simple_pair(str(number))), account)
    return writer


moves = st.lists(
    st.tuples(st.sampled_from(["sample", "shed", "too_large", "mirror", "write", "report"]), st.integers(1, 5)),
    max_size=40,
)


@given(moves=moves, closes=st.booleans())
@settings(deadline=None)
def test_no_sampled_item_that_an_account_knows_of_goes_uncounted(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[str, int]], closes: bool
) -> None:
    """A life with an end at any moment: what is not written counts as lost, wherever it was."""
    accounting, ready = Accounting(), 0  # ``ready``: run on both sides, and not written yet
    durable, reported = Account(), Account()
    for move, items in moves:
        waiting = accounting.snapshot().pending - ready
        if move == "sample":
            accounting.sample(items)
        elif move in ("shed", "too_large"):
            getattr(accounting, move)(min(items, waiting))
        elif move == "mirror":
            ready += min(items, waiting)
        elif move == "write":
            accounting.settle(mirrored=ready)
            durable, ready = accounting.snapshot(), 0
        else:
            reported = accounting.snapshot()
    folder = tmp_path_factory.mktemp("evidence")
    end = accounting.snapshot()
    if closes:
        writer = written(folder, end)
        writer.close(end)
        assert writer.head is not None
        known = {"router": (writer.head, end)}
    else:
        known = {"router": (HEAD, durable)}
    (loss,), problems = chain_losses(folder, known, {"router": reported})
    assert problems == ()
    assert loss.closed is closes
    if closes:
        assert (loss.sampled, loss.lost) == (end.sampled, end.pending)
    else:
        truth = end.sampled - end.shed - end.too_large - end.mirrored
        assert loss.sampled == max(durable.sampled, reported.sampled)
        assert truth <= loss.lost + (end.sampled - loss.sampled)  # but for what no account ever told
        assert loss.lost == truth or end not in (durable, reported)


def test_a_chain_that_was_not_closed_lost_what_its_last_report_knows_and_no_segment_has(tmp_path: Path) -> None:
    written(tmp_path, Account(sampled=5, mirrored=1, pending=4), Account(sampled=9, mirrored=3, pending=5, shed=1))
    reported = Account(sampled=20, mirrored=1, shed=2, failed=17)  # abandoned: its process is gone
    found = verify(tmp_path, {}, reported={"router": reported})
    assert found.ok
    assert found.losses == (ChainLoss(chain="router", closed=False, sampled=20, lost=15),)


def test_without_a_report_the_last_segment_tells_what_was_on_its_way(tmp_path: Path) -> None:
    written(tmp_path, Account(sampled=9, mirrored=3, pending=5, shed=1))
    assert verify(tmp_path, {}).losses == (ChainLoss(chain="router", closed=False, sampled=9, lost=5),)


def test_a_chain_that_wrote_nothing_lost_all_that_was_reported(tmp_path: Path) -> None:
    found = verify(tmp_path / "nothing", {}, reported={"router": Account(sampled=7, pending=6, too_large=1)})
    assert found.ok
    assert found.losses == (ChainLoss(chain="router", closed=False, sampled=7, lost=6),)


def test_of_a_closed_chain_only_what_came_too_late_is_lost(tmp_path: Path) -> None:
    writer = written(tmp_path, Account(sampled=9, mirrored=3, pending=6))
    writer.close(Account(sampled=12, mirrored=3, shed=7, pending=2))
    found = verify(tmp_path, {})
    assert found.ok
    assert found.losses == (ChainLoss(chain="router", closed=True, sampled=12, lost=2),)


def test_a_chain_in_which_nothing_was_recorded_can_be_closed(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, header()).close(Account(sampled=3, shed=3))
    found = verify(tmp_path, {})
    assert found.ok
    assert found.losses == (ChainLoss(chain="router", closed=True, sampled=3, lost=0),)


def test_a_tail_cut_off_a_closed_chain_is_found_though_no_head_was_recorded(tmp_path: Path) -> None:
    account = Account(sampled=2, mirrored=2)
    written(tmp_path, account, account).close(account)
    (tmp_path / segment_name("router", 2)).unlink()
    found = verify(tmp_path, {})
    assert any("cut: the chain had 2 segments when it was closed, 1 are there" in each for each in found.problems)
    assert found.losses == ()


def test_a_segment_missing_in_the_middle_is_no_loss_but_a_problem(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")], [simple_pair("c")]])
    (tmp_path / segment_name("router", 2)).unlink()
    found = verify(tmp_path, {}, reported={"router": Account(sampled=3, pending=3)})
    assert any(segment_name("router", 2) in problem for problem in found.problems)
    assert found.losses == ()


def test_a_chain_that_goes_on_after_it_was_closed_is_a_problem(tmp_path: Path) -> None:
    writer = written(tmp_path, Account())
    writer.close(Account())
    writer.write(rows(simple_pair("later")))
    assert any("expected that of the chain's last segment, 2" in problem for problem in verify(tmp_path, {}).problems)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b'"shed":1', b'"shed":2'), (b'"segments":1', b'"segments":0'), (b"{", b"["), (b'"head"', b'"tail"')],
)
def test_a_closing_that_was_changed_is_a_problem(tmp_path: Path, before: bytes, after: bytes) -> None:
    written(tmp_path, Account()).close(Account(sampled=1, shed=1))
    path = tmp_path / "router.closed.json"
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    assert any(f"{path}: not the closing of a chain" in problem for problem in verify(tmp_path, {}).problems)


def test_a_closing_under_another_chains_name_is_a_problem(tmp_path: Path) -> None:
    written(tmp_path, Account()).close(Account())
    (tmp_path / "router.closed.json").rename(tmp_path / "other.closed.json")
    assert any("it is the closing of chain router" in problem for problem in verify(tmp_path, {}).problems)


def test_accounts_that_do_not_add_up_are_problems(tmp_path: Path) -> None:
    writer = written(tmp_path, Account(sampled=4, mirrored=4))
    found = verify(tmp_path, {}, reported={"router": Account(sampled=4, mirrored=5)})
    assert "chain router: reported account: items do not add up to those sampled" in found.problems
    found = verify(tmp_path, {}, reported={"router": Account(sampled=4, shed=4)})
    assert "chain router: account: 4 items more have ended than were sampled" in found.problems
    writer.close(Account(sampled=4))
    assert any("items do not add up" in problem for problem in verify(tmp_path, {}).problems)


def test_what_a_closing_says_is_read_back(tmp_path: Path) -> None:
    account = Account(sampled=2, mirrored=1, pending=1)
    writer = written(tmp_path, account)
    writer.close(account)
    assert list(closings(tmp_path)) == ["router"]
    found = read_closing(tmp_path, "router")
    assert (found.head, found.account) == (writer.head, account)
    with pytest.raises(EvidenceError, match=r"other\.closed\.json: cannot be read"):
        read_closing(tmp_path, "other")
    assert orjson.loads((tmp_path / "router.closed.json").read_bytes())["head"]["segments"] == 1


def test_the_report_that_knows_of_the_most_items_counts() -> None:
    early, late = Account(sampled=5, pending=5), Account(sampled=8, pending=8)
    restarted = replace(early, pending=0, failed=5)  # a control process that restarted knows what the disk told it
    assert last_reported([{"a": early}, {"a": late, "b": early}, {"a": restarted}]) == {"a": late, "b": early}


def test_what_waits_is_written_within_the_time_that_is_stated(tmp_path: Path) -> None:
    """However old a recorder is, and however little waits; it looks each second."""
    now_s = 0.0
    recorder = Recorder(
        tmp_path, "router", DEPLOYMENT, LIMITS, Accounting(), flush_interval_s=3600, clock=lambda: now_s
    )
    try:
        now_s = 1e6
        assert recorder.offer(simple_pair())
        recorder.flush()
        assert recorder.offer(simple_pair("b"))
        assert not recorder.due
        now_s += OPEN_SEGMENT_S - 1.0
        assert recorder.due
    finally:
        recorder.close()
