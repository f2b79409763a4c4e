from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import Evidence, LabelCells
from shadow.labels import AddResult, Label, LabelJoin
from shadow.pair import Pair, Status
from shadow.store import Head, read_segments, segment_name
from shadow.verify import evidence_at, verify
from tests.shadow.builders import DEPLOYMENT, LIMITS, bad, ok, outcome, pair, simple_pair, write_chain

WITHIN_S = 100.0


@dataclass
class Clock:
    now_s: float = 1.0

    def __call__(self) -> float:
        return self.now_s


def open_join(folder: Path, clock: Clock | None = None) -> LabelJoin:
    return LabelJoin(folder, DEPLOYMENT, LIMITS, within_s=WITHIN_S, clock=clock or Clock())


def cells(labels: LabelJoin, stage: int = 0) -> LabelCells:
    return labels.snapshot()[0].stage(stage).labels


def label(request_id: str, value: int, item: int = 0) -> Label:
    return Label(request_id=request_id, item=item, label=value)


@pytest.mark.parametrize(
    ("baseline", "candidate", "expected"),
    [
        (1, 1, LabelCells(both=1)),
        (1, 0, LabelCells(baseline_only=1)),
        (0, 1, LabelCells(candidate_only=1)),
        (0, 2, LabelCells(neither=1)),
    ],
)
@pytest.mark.parametrize("label_first", [True, False])
def test_a_label_finds_its_pair_in_either_order(
    tmp_path: Path, baseline: int, candidate: int, expected: LabelCells, label_first: bool
) -> None:
    with open_join(tmp_path) as labels:
        if label_first:
            labels.add([label("a", 1)])
            labels.advance()
        clock_steps_over_the_next_listing(labels)
        write_chain(tmp_path, [[simple_pair("a", baseline=baseline, candidate=candidate, stage=2)]])
        if not label_first:
            labels.add([label("a", 1)])
        labels.advance()
        assert cells(labels, 2) == expected
        evidence, head = labels.snapshot()
    assert head is not None
    assert evidence_at(tmp_path, [head]) == evidence == Evidence({2: evidence.stage(2)})


def clock_steps_over_the_next_listing(labels: LabelJoin) -> None:
    clock = labels._clock
    assert isinstance(clock, Clock)
    clock.now_s += 6


def test_items_of_one_request_have_labels_of_their_own(tmp_path: Path) -> None:
    answer = ok([1, 0, 0], [0, 1, 0], [0, 0, 1])
    write_chain(tmp_path, [[pair(outcome(answer), outcome(answer), ids=["a"], rows=[3])]])
    with open_join(tmp_path) as labels:
        assert labels.add([label("a", 2, item=2), label("a", 0, item=1)]) == AddResult(accepted=2, duplicates=0)
        labels.advance()
        assert cells(labels) == LabelCells(both=1, neither=1)


def test_a_second_label_for_an_item_is_a_counted_duplicate(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a", baseline=1, candidate=1)]])
    with open_join(tmp_path) as labels:
        assert labels.add([label("a", 1), label("a", 2)]) == AddResult(accepted=1, duplicates=1)
        labels.advance()
        assert labels.add([label("a", 2)]) == AddResult(accepted=0, duplicates=1)
        labels.advance()
        assert cells(labels) == LabelCells(both=1)
        assert (labels.counts().duplicates, labels.counts().joined) == (2, 1)


def test_the_first_pair_of_a_repeated_id_wins(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a", baseline=1)], [simple_pair("a", candidate=1)]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 1)])
        labels.advance()
        assert cells(labels) == LabelCells(baseline_only=1)
        write_chain(tmp_path, [[simple_pair("a", candidate=1)]], "later")
        clock_steps_over_the_next_listing(labels)
        labels.add([label("b", 1)])
        labels.advance()
        assert cells(labels) == LabelCells(baseline_only=1)
        assert labels.counts().repeated == 2


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (pair(outcome(ok([0, 1])), outcome(bad()), ids=["a"]), LabelCells(baseline_only=1)),
        (pair(outcome(ok([1, 0])), outcome(bad(Status.TIMEOUT)), ids=["a"]), LabelCells(neither=1)),
        (pair(outcome(ok([0, 1])), outcome(bad(Status.ABSENT)), ids=["a"]), LabelCells()),
        (pair(outcome(bad()), outcome(ok([0, 1])), ids=["a"]), LabelCells()),
        (pair(outcome(bad()), outcome(bad()), ids=["a"]), LabelCells()),
        (pair(outcome(ok([0, 1])), outcome(ok([float("nan"), 1])), ids=["a"]), LabelCells(baseline_only=1)),
    ],
)
def test_a_candidate_that_failed_did_not_satisfy_the_label_but_a_baseline_that_failed_gives_no_cell(
    tmp_path: Path, one: Pair, expected: LabelCells
) -> None:
    write_chain(tmp_path, [[one]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 1)])
        labels.advance()
        assert cells(labels) == expected


def test_no_pair_is_read_before_the_first_label(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    (tmp_path / segment_name("router", 1)).write_bytes(b"damaged")
    with open_join(tmp_path) as labels:
        labels.advance()
        labels.add([label("a", 1)])
        with pytest.raises(EvidenceError, match=r"router-000001\.parquet"):
            labels.advance()


@pytest.mark.parametrize(("late_s", "joined"), [(WITHIN_S - 1, 1), (WITHIN_S + 1, 0)])
def test_a_label_counts_within_the_window_after_its_pair(tmp_path: Path, late_s: float, joined: int) -> None:
    write_chain(tmp_path, [[simple_pair("a", at_unix_us=1_000_000)]])
    with open_join(tmp_path, Clock(1.0 + late_s)) as labels:
        labels.add([label("a", 0)])
        labels.advance()
        assert labels.counts().joined == joined


@pytest.mark.parametrize(("early_s", "joined"), [(WITHIN_S - 1, 1), (WITHIN_S + 1, 0)])
def test_a_label_counts_within_the_window_before_its_pair(tmp_path: Path, early_s: float, joined: int) -> None:
    clock = Clock(1000.0)
    with open_join(tmp_path, clock) as labels:
        labels.add([label("a", 0)])
        clock.now_s += early_s
        write_chain(tmp_path, [[simple_pair("a", at_unix_us=round(clock.now_s * 1e6))]])
        labels.advance()
        assert labels.counts().joined == joined


def test_what_waits_too_long_expires_and_is_counted(tmp_path: Path) -> None:
    clock = Clock(1.0)
    write_chain(tmp_path, [[simple_pair("unlabelled", at_unix_us=1_000_000)]])
    with open_join(tmp_path, clock) as labels:
        labels.add([label("unknown", 1)])
        labels.advance()
        assert (labels.counts().waiting, labels.counts().expired, labels.counts().unlabelled) == (1, 0, 0)
        clock.now_s += WITHIN_S + 1
        labels.advance()
        counts = labels.counts()
        assert (counts.waiting, counts.expired, counts.unlabelled) == (0, 1, 1)
        labels.add([label("unlabelled", 0)])
        labels.advance()
        assert labels.counts().joined == 0


def test_an_old_label_waits_until_all_pairs_are_read(tmp_path: Path) -> None:
    clock = Clock(50.0)
    write_chain(tmp_path, [[simple_pair(name)] for name in "abc"])
    with open_join(tmp_path, clock) as labels:
        labels.add([label("c", 0)])
        clock.now_s += WITHIN_S + 1
        for _ in range(4):
            labels.advance(max_segments=1)
        assert (labels.counts().joined, labels.counts().expired) == (1, 0)


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a"), simple_pair("b")]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 0), label("later", 0)])
        labels.advance()
        before = labels.snapshot()
    with open_join(tmp_path) as labels:
        assert labels.snapshot() == before
        labels.add([label("b", 0)])
        labels.advance()
        assert cells(labels) == LabelCells(both=2)
        assert labels.counts().waiting == 1


def test_a_lost_database_does_not_make_anything_count_twice(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a"), simple_pair("b")]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 0)])
        labels.advance()
    for file in tmp_path.glob("labels.sqlite*"):
        file.unlink()
    with open_join(tmp_path) as labels:
        assert labels.add([label("a", 0), label("b", 0)]) == AddResult(accepted=1, duplicates=1)
        labels.advance()
        assert cells(labels) == LabelCells(both=2)


def test_a_chain_shorter_than_what_was_joined_is_refused(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 0)])
        labels.advance()
    (tmp_path / segment_name("labels", 1)).unlink()
    with pytest.raises(EvidenceError, match="chain labels has 0 segments, but 1 were written"):
        open_join(tmp_path)


def test_a_write_that_fails_loses_nothing(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 0)])
        blocker = tmp_path / f".{segment_name('labels', 1)}.tmp"
        blocker.mkdir()
        with pytest.raises(EvidenceError, match=r"labels cannot be stored: .*directory"):
            labels.advance()
        assert labels.snapshot() == (Evidence(), None)
        blocker.rmdir()
        labels.advance()
        assert cells(labels) == LabelCells(both=1)


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"request_id": "", "label": 0}, "request_id"),
        ({"request_id": "a", "label": -1}, "label"),
        ({"request_id": "a", "label": 2**31}, "label"),
        ({"request_id": "a", "label": 0, "item": -1}, "item"),
    ],
)
def test_a_label_out_of_range_names_its_field(facts: dict[str, object], field: str) -> None:
    with pytest.raises(ShadowError, match=f"{field}: expected"):
        Label(**facts)  # type: ignore[arg-type]


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("label"), st.sampled_from("abcd"), st.integers(0, 2)),
        st.tuples(st.just("pair"), st.sampled_from("abcd"), st.integers(0, 2)),
        st.tuples(st.just("advance"), st.just(""), st.just(0)),
        st.tuples(st.just("restart"), st.just(""), st.just(0)),
    ),
    max_size=12,
)


@given(actions=ACTIONS)
@settings(max_examples=25, deadline=None)
def test_in_any_order_of_arrival_every_item_counts_once_with_its_first_pair_and_label(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, str, int]]
) -> None:
    folder, clock = tmp_path_factory.mktemp("evidence"), Clock()
    first_label: dict[str, int] = {}
    first_pair: dict[str, int] = {}
    labels = open_join(folder, clock)
    for number, (action, name, value) in enumerate(actions):
        if action == "label":
            labels.add([label(name, value)])
            first_label.setdefault(name, value)
        elif action == "pair":
            write_chain(folder, [[simple_pair(name, baseline=value)]], f"chain-{number:02}")
            first_pair.setdefault(name, value)
        elif action == "advance":
            clock.now_s += 6
            labels.advance()
        else:
            labels.close()
            labels = open_join(folder, clock)
    clock.now_s += 6
    labels.advance()
    evidence, head = labels.snapshot()
    labels.close()
    both = first_label.keys() & first_pair.keys()
    assert evidence.total().labels.n == len(both)
    assert sum(segment.rows() for segment in read_segments(folder, "labels")) == len(both)
    right = sum(first_pair[name] == first_label[name] for name in both)
    assert evidence.total().labels.both + evidence.total().labels.baseline_only == right
    if head is not None:
        assert evidence_at(folder, [head]) == evidence


def test_no_pair_is_joined_that_the_evidence_at_hand_does_not_hold_yet(tmp_path: Path) -> None:
    with open_join(tmp_path) as labels:
        labels.add([label("a", 1), label("b", 1)])
        chain = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])[-1].chain
        labels.advance(within={chain: 1})
        assert cells(labels).n == 1
        labels.advance(within={})
        assert cells(labels).n == 1
        labels.advance(within={chain: 2})
        assert cells(labels).n == 2


# Labels of a rollout that has ended


def finish(labels: LabelJoin, heads: Sequence[Head]) -> int:
    """A whole pass; returns how often it paused."""
    return sum(1 for _ in labels.complete(heads))


def test_after_the_end_a_label_joins_whatever_the_age_of_its_pair(tmp_path: Path) -> None:
    clock = Clock()
    (head,) = write_chain(tmp_path, [[simple_pair("a", baseline=1), simple_pair("b")]])
    with open_join(tmp_path, clock) as labels:
        labels.add([label("z", 1)])
        clock.now_s += 50 * WITHIN_S
        labels.advance()  # lets go of what waits, pairs included
        labels.add([label("a", 1), label("a", 0)])
        labels.advance()
        assert labels.counts().joined == 0
        finish(labels, [head])
        assert cells(labels) == LabelCells(baseline_only=1)
        assert (labels.counts().waiting, labels.counts().duplicates) == (0, 1)
        evidence, joined = labels.snapshot()
    assert joined is not None
    assert verify(tmp_path, {"router": head, "labels": joined}).problems == ()
    assert evidence_at(tmp_path, [joined]) == evidence


def test_after_the_end_a_label_that_no_row_is_its_own_is_expired_by_one_pass(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("later")]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 0), label("a", 0, item=1), label("nobody", 0), label("later", 0)])
        finish(labels, heads[:1])
        counts = labels.counts()
        assert (counts.joined, counts.expired, counts.waiting) == (1, 3, 0)
        assert finish(labels, []) == 0


def test_labels_that_come_during_a_pass_wait_for_the_next(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])
    with open_join(tmp_path) as labels:
        labels.add([label("b", 0)])
        walk = labels.complete(heads[-1:])
        next(walk)
        labels.add([label("a", 0), label("nobody", 0)])
        assert list(walk) == [None]
        assert (labels.counts().joined, labels.counts().waiting) == (1, 2)
        finish(labels, heads[-1:])
        assert (labels.counts().joined, labels.counts().waiting, labels.counts().expired) == (2, 0, 1)


def test_a_pass_that_is_given_up_has_joined_nothing_and_lost_no_label(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])
    with open_join(tmp_path) as labels:
        labels.add([label("a", 0), label("b", 0)])
        next(labels.complete(heads[-1:]))
    with open_join(tmp_path) as labels:
        assert labels.snapshot() == (Evidence(), None)
        finish(labels, heads[-1:])
        assert labels.counts().joined == 2


@pytest.mark.parametrize("spoil", ["changed", "cut", "another"])
def test_nothing_joins_rows_that_are_not_what_they_were_at_the_end(tmp_path: Path, spoil: str) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])
    end = replace(heads[-1], sha256="0" * 64) if spoil == "another" else heads[-1]
    last = tmp_path / segment_name("router", 2)
    if spoil == "changed":
        last.write_bytes(last.read_bytes().replace(b"b", b"c", 1))
    elif spoil == "cut":
        last.unlink()
    with open_join(tmp_path) as labels:
        labels.add([label("a", 0)])
        with pytest.raises(EvidenceError, match="router"):
            finish(labels, [end])
        assert labels.snapshot()[1] is None
        assert labels.counts().waiting == 1


def test_a_join_that_was_written_but_not_marked_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (head,) = write_chain(tmp_path, [[simple_pair("a")]])

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with open_join(tmp_path) as labels, monkeypatch.context() as dying:
        dying.setattr(LabelJoin, "_mark", die)
        labels.add([label("a", 0)])
        with pytest.raises(KeyboardInterrupt):
            finish(labels, [head])
    with open_join(tmp_path) as labels:
        finish(labels, [head])
        assert (labels.counts().joined, labels.counts().waiting) == (1, 0)
        assert cells(labels) == LabelCells(both=1)


@settings(max_examples=25, deadline=None)
@given(
    answers=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=12),
    truth=st.lists(st.integers(0, 2), min_size=12, max_size=12),
    late=st.sets(st.integers(0, 11)),
    per_segment=st.integers(1, 5),
)
def test_it_makes_no_difference_whether_labels_come_before_or_after_the_end(
    tmp_path_factory: pytest.TempPathFactory,
    answers: list[tuple[int, int]],
    truth: list[int],
    late: set[int],
    per_segment: int,
) -> None:
    folder = tmp_path_factory.mktemp("either")
    pairs = [simple_pair(f"{at}", baseline=left, candidate=right) for at, (left, right) in enumerate(answers)]
    heads = write_chain(folder, [pairs[at : at + per_segment] for at in range(0, len(pairs), per_segment)])
    expected = LabelCells()
    for (left, right), true in zip(answers, truth, strict=False):
        expected += LabelCells(
            both=int(left == right == true),
            baseline_only=int(left == true != right),
            candidate_only=int(right == true != left),
            neither=int(true not in (left, right)),
        )
    with open_join(folder) as labels:
        for came_late in (False, True):
            labels.add([label(f"{at}", truth[at]) for at in range(len(pairs)) if (at in late) is came_late])
            if not came_late:
                labels.advance()
        finish(labels, heads[-1:])
        assert cells(labels) == expected
