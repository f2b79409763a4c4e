from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shadow.accounting import Account, Accounting
from shadow.checkpoint import Retention
from shadow.checkpoint import compact as compact_chains
from shadow.distributions import (
    MOST_BLOCKS,
    Agreement,
    BatchKey,
    Blocks,
    Checkpoints,
    Distributions,
    Found,
    Pooled,
    Quantity,
    RatioKey,
    Ratios,
    Spread,
    Worst,
    beyond_noise,
    distributions,
    survey,
    wilson,
)
from shadow.errors import EvidenceError
from shadow.evidence import DELTA_EDGES, DeltaHistogram, LabelCells, Noise, StageSums
from shadow.labels import Label, LabelJoin
from shadow.pair import Answer, Arm, Pair, Status
from shadow.recorder import Recorder
from shadow.rows import SCHEMA, SIDES, compact, to_table
from shadow.slices import MAX_SLICES, OTHER
from shadow.store import chains, read_segment, segment_name, walk_chain
from shadow.sums import sums
from shadow.verify import evidence_at
from tests.shadow.builders import COMPARATOR, DEPLOYMENT, LIMITS, MEASURES, PARAMETERS, pair, pairs, write_chain
from tests.shadow.recorded import BEGAN_US, batch, record

some_numbers = st.lists(st.integers(0, 2**33), max_size=40)


def ints(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def table_of(some: Sequence[Pair]) -> pa.Table:
    return to_table([compact(one, COMPARATOR) for one in some], COMPARATOR, 0) if some else SCHEMA.empty_table()


@given(some_numbers, some_numbers)
def test_spreads_of_parts_add_up_to_that_of_the_whole(left: list[int], right: list[int]) -> None:
    assert Spread.of(ints(left)) + Spread.of(ints(right)) == Spread.of(ints(left + right))


@given(some_numbers.filter(bool), st.sampled_from([0.01, 0.5, 0.9, 0.95, 1.0]))
def test_a_quantile_is_at_most_one_percent_too_high_and_never_over_the_largest(values: list[int], q: float) -> None:
    exact = sorted(values)[max(int(np.ceil(q * len(values))) - 1, 0)]
    found = Spread.of(ints(values)).quantile(q)
    assert found is not None
    assert exact - 1e-6 * exact <= found <= min(1.0101 * max(exact, 1), max(values)) + 1e-6


def test_what_was_never_measured_has_no_mean_and_no_quantile() -> None:
    assert (Spread().mean, Spread().quantile(0.5), Ratios().quantile(0.5)) == (None, None, None)


def test_the_ratio_of_equals_is_exactly_one_and_any_other_half_a_percent_off_at_most() -> None:
    assert Ratios.of(ints([7, 0, 10**10]), ints([7, 0, 10**10])).quantile(0.5) == 1.0
    found = Ratios.of(ints([150, 300, 450]), ints([100, 100, 100]))
    assert [found.quantile(q) for q in (0.3, 0.5, 1.0)] == [
        pytest.approx(1.5, rel=0.005),
        pytest.approx(3.0, rel=0.005),
        pytest.approx(4.5, rel=0.005),
    ]


@pytest.mark.parametrize(
    ("count", "n", "expected"),
    [
        (8, 10, (0.49016, 0.94331)),  # R: prop.test(8, 10, correct = FALSE)
        (0, 10, (0.0, 0.27753)),
        (10, 10, (0.72247, 1.0)),
        (0, 0, (0.0, 1.0)),
    ],
)
def test_wilsons_interval_has_its_known_values(count: int, n: int, expected: tuple[float, float]) -> None:
    assert wilson(count, n) == pytest.approx(expected, abs=1e-4)


@given(st.integers(1, 10**9), st.floats(0, 1))
def test_a_share_is_always_within_its_interval(n: int, part: float) -> None:
    count = round(part * n)
    lower, upper = wilson(count, n)
    assert 0 <= lower <= count / n + 1e-12
    assert count / n - 1e-12 <= upper <= 1


# The trend of memory


def blocks(readings: Sequence[tuple[int, int, int]]) -> Blocks:
    """Of readings as (time in seconds, batch size, bytes)."""
    at_s, sizes, values = (ints(column) for column in zip(*readings, strict=True)) if readings else (ints([]),) * 3
    return Blocks.of(at_s * 1_000_000, sizes, values)


some_readings = st.lists(
    st.tuples(st.integers(-(2**20), 2**20), st.sampled_from([1, 2, 4, 1 << 30]), st.integers(0, 2**33)), max_size=30
)


@given(some_readings, some_readings, some_readings)
def test_blocks_of_parts_add_up_to_those_of_the_whole_in_any_grouping(
    first: list[tuple[int, int, int]], second: list[tuple[int, int, int]], third: list[tuple[int, int, int]]
) -> None:
    whole = blocks(first + second + third)
    assert (blocks(first) + blocks(second)) + blocks(third) == whole
    assert blocks(third) + (blocks(second) + blocks(first)) == whole
    assert len({cell.block for cell in whole.cells}) <= MOST_BLOCKS
    assert sum(reading.n for reading in whole.cells.values()) == len(first + second + third)


def test_blocks_are_two_seconds_wide_and_grow_only_when_there_are_too_many() -> None:
    assert blocks([(0, 1, 10), (1, 1, 20), (2 * MOST_BLOCKS - 1, 1, 30)]).exponent == 1
    wide = blocks([(0, 1, 10), (1, 1, 20), (2 * MOST_BLOCKS, 1, 30)])
    assert wide.exponent == 2
    assert sorted(reading.n for reading in wide.cells.values()) == [1, 2]


def test_slope_error_and_signs_are_those_computed_by_hand() -> None:
    trend = blocks([(0, 4, 0), (2, 4, 2000), (4, 4, 1000), (6, 4, 3000)]).trend()
    # x: 0.5 … 3.5; Sxx = 5, Sxy = 4000; residuals −300, 900, −900, 300 with 2 degrees of freedom
    assert trend.slope == pytest.approx(800_000)
    assert trend.error == pytest.approx(1000 * (1_800_000 / 2 / 5) ** 0.5)
    assert (trend.rises, trend.falls, trend.n) == (2, 0, 4)  # 0 → 1000, 2000 → 3000
    assert trend.batches == (0.5, 1.5, 2.5, 3.5)
    assert trend.levels == (0, 2000, 1000, 3000)
    assert (trend.middle, trend.mean) == (2, 1500)


def test_a_leak_of_so_much_a_batch_is_its_slope() -> None:
    trend = blocks([(second, 2, 10_000 + 100 * second) for second in range(1000)]).trend()
    assert trend.slope == pytest.approx(100_000)
    assert trend.error == pytest.approx(0, abs=1e-3)
    assert (trend.rises, trend.falls) == (250, 0)


def test_larger_batches_in_the_course_of_a_run_are_no_leak() -> None:
    growing = [(second, 8 if second >= 40 else 1, 8000 if second >= 40 else 1000) for second in range(80)]
    mixed = [(second, size, 1000 * size) for second in range(80) for size in (1, 2, 4)[: 1 + second // 30]]
    for readings in (growing, mixed):
        trend = blocks(readings).trend()
        assert (trend.rises, trend.falls) == (0, 0)
        assert trend.slope == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("readings", [[], [(0, 1, 5)], [(0, 1, 5), (9, 2, 6)]])
def test_too_few_blocks_have_no_trend(readings: list[tuple[int, int, int]]) -> None:
    trend = blocks(readings).trend()
    assert (trend.slope, trend.error) == (None, None)


# Groups


some_groups = st.dictionaries(st.integers(0, 30), st.builds(Agreement, items=st.integers(1, 9)), max_size=12)


@given(st.lists(some_groups, max_size=4), st.randoms(use_true_random=False))
def test_labels_beyond_the_bound_are_pooled_in_any_order(parts: list[dict[int, Agreement]], random: Random) -> None:
    pooled = [Pooled.of(5, part) for part in parts]
    shuffled = [*pooled]
    random.shuffle(shuffled)
    found: Pooled[int, Agreement] = reduce(add, pooled, Pooled(5))
    assert reduce(add, shuffled, Pooled(5)) == found
    labels = sorted({label for part in parts for label in part})
    assert sorted(found.by_label) == labels[:5]
    assert (found.others is not None) == (len(labels) > 5)
    everyone = [*found.by_label.values(), *([found.others] if found.others else [])]
    assert sum(each.items for each in everyone) == sum(each.items for part in parts for each in part.values())


# Rows


@given(st.lists(pairs(), max_size=3), st.lists(pairs(), max_size=3))
@settings(max_examples=40, deadline=None)
def test_distributions_of_parts_add_up_to_those_of_all_rows(left: list[Pair], right: list[Pair]) -> None:
    tables = [table_of(left), table_of(right)]
    parts = distributions(tables[0], "a", LIMITS) + distributions(tables[1], "b", LIMITS)
    whole = distributions(pa.concat_tables(tables).combine_chunks(), "ab", LIMITS)
    assert replace(parts, worst=Worst()) == replace(whole, worst=Worst())
    assert [case.max_delta for case in parts.worst.cases] == [case.max_delta for case in whole.worst.cases]
    assert parts + Distributions() == parts


@given(st.lists(pairs(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_what_is_also_in_the_sums_is_the_same_there(some: list[Pair]) -> None:
    table = table_of([replace(one, primary=Arm.BASELINE) for one in some])
    total, found = sums(table, LIMITS, MEASURES).total(), distributions(table, "a", LIMITS)
    assert sum(each.items for each in found.labels.by_label.values()) == found.named <= total.items
    assert sum(each.agree for each in found.labels.by_label.values()) == total.agree
    assert sum(each.items for each in found.slices.by_label.values()) == total.items
    assert sum(each.over for each in found.slices.by_label.values()) == total.delta_over
    assert {name: each.candidate for name, each in found.findings.items() if each.candidate} == total.findings
    assert all(each.twin <= total.noise.findings.get(name, 0) for name, each in found.findings.items())
    assert (found.looked, found.batches) == (total.pairs, len(some))
    for size, by_side in total.sizes.items():
        for side in SIDES:
            batches = getattr(by_side, side)
            wall = found.spreads.get(BatchKey(size, side, Quantity.WALL), Spread())
            memory = found.spreads.get(BatchKey(size, side, Quantity.MEMORY), Spread())
            assert (wall.n, wall.total) == (batches.batches, batches.wall_us)
            assert (memory.n, memory.largest) == (batches.memory_readings, batches.memory_max_bytes)


def test_times_and_memory_are_told_apart_by_batch_size_and_side() -> None:
    some = [
        batch(0, 1, noise=0.0, times_ms=(1.0, 3.0, 2.0), memory=(10, 30, 20)),
        batch(1, 5, noise=0.0, times_ms=(4.0, 12.0, 8.0), memory=(40, 120, 80)),
        batch(2, 7, times_ms=(6.0, 18.0, 0.0), memory=(60, 180, 0)),
    ]
    found = distributions(table_of(some), "a", LIMITS)
    assert found.sizes == [1, 4]
    wall = {key: (spread.n, spread.total) for key, spread in found.spreads.items() if key.quantity is Quantity.WALL}
    assert wall == {
        (1, "baseline", "wall"): (1, 1000),
        (1, "candidate", "wall"): (1, 3000),
        (1, "twin", "wall"): (1, 2000),
        (4, "baseline", "wall"): (2, 10_000),
        (4, "candidate", "wall"): (2, 30_000),
        (4, "twin", "wall"): (1, 8000),
    }
    assert found.spreads[BatchKey(4, "candidate", Quantity.CPU)].largest == 9000
    assert found.spreads[BatchKey(4, "candidate", Quantity.MEMORY)].largest == 180
    assert not [key for key in found.spreads if key.quantity is Quantity.GPU]
    ratio = found.ratios[RatioKey(4, Quantity.WALL)]
    assert ratio.n == 1
    assert ratio.quantile(0.5) == pytest.approx(1.5, rel=0.005)
    assert found.ratio(Quantity.WALL).n == 2
    assert {side: each.trend().n for side, each in found.memory.items()} == {"candidate": 3, "twin": 2}


def test_batches_that_the_candidate_answered_have_other_priorities_and_are_left_out() -> None:
    some = [batch(0, times_ms=(1.0, 9.0, 1.0)), batch(1, times_ms=(1.0, 2.0, 1.0), primary=Arm.CANDIDATE)]
    found = distributions(table_of(some), "a", LIMITS)
    assert (found.batches, found.swapped) == (2, 1)
    assert found.spreads[BatchKey(1, "candidate", Quantity.WALL)].total == 9000
    assert sum(group.items for group in found.labels.by_label.values()) == 2


def test_agreement_is_counted_by_the_baselines_answer_and_by_slice() -> None:
    some = [
        batch(0, 4, label=0, slice_name="lobby"),
        batch(1, 2, label=2, slice_name="gate", answer=1, delta=0.75),
        batch(2, 1, label=2, slice_name="gate", delta=0.25),
    ]
    found = distributions(table_of(some), "a", LIMITS)
    quarter, three = pytest.approx(0.25, abs=1e-6), pytest.approx(0.75, abs=1e-6)
    assert found.labels.by_label[0] == Agreement(items=4, agree=4, over=0, max_delta=0.0)
    twos = found.labels.by_label[2]
    assert (twos.items, twos.agree, twos.over) == (3, 1, 3)
    assert twos.max_delta == three
    assert sorted(found.slices.by_label) == ["gate", "lobby"]
    assert found.slices.by_label["gate"] == twos
    assert [case.max_delta for case in found.worst.cases[:3]] == [three, three, quarter]


def test_a_finding_of_the_candidate_is_set_beside_the_twin_on_its_own_requests() -> None:
    def not_a_number(one: Pair) -> Pair:
        answers = (Answer(status=Status.OK, outputs={"scores": np.full((1, 3), np.nan, np.float32)}),)
        return replace(one, candidate=replace(one.candidate, answers=answers))

    some = [not_a_number(batch(0)), not_a_number(batch(1, noise=0.0)), batch(2, noise=0.0), batch(3)]
    found = distributions(table_of(some), "a", LIMITS)
    assert found.findings == {"not a number": Found(candidate=2, beside=1, twin=0)}
    assert (found.looked, found.looked_beside) == (4, 2)


def test_the_worst_item_is_found_with_its_row_and_the_scores_that_differ_most(tmp_path: Path) -> None:
    quiet = [batch(number, 3, noise=1e-6) for number in range(4)]
    planted = batch(9, 2, label=1, answer=2, delta=0.75, noise=1e-6, slice_name="gate")
    record(tmp_path, quiet, [*quiet, planted])
    found = survey(tmp_path, worst=3).distributions.worst
    case = found.cases[0]
    assert (found.most, len(found.cases)) == (3, 3)
    assert (case.request_id, case.item, case.slice, case.stage) == ("9-0", 0, "gate", 0)
    assert (case.baseline_top1, case.candidate_top1) == (1, 2)
    assert case.max_delta == pytest.approx(0.75, abs=1e-6)
    assert case.twin_max_delta == pytest.approx(1e-6, rel=0.1)
    assert case.places[0] == 2
    assert (case.baseline_scores[0], case.candidate_scores[0]) == pytest.approx((0.1, 0.85))
    assert case.file == segment_name("router", 2)
    row = read_segment(tmp_path, "router", 2).table(SCHEMA).slice(case.row, 1).to_pylist()[0]
    assert (row["request_id"], row["item"], row["max_delta"]) == (case.request_id, case.item, case.max_delta)


def test_sides_with_different_numbers_of_scores_show_the_first_of_each() -> None:
    left = pair_of_scores([0.5, 0.25], [0.5, 0.25, 0.125])
    case = distributions(table_of([left]), "a", LIMITS).worst.cases[0]
    assert (case.places, case.baseline_scores, case.candidate_scores) == ((0, 1), (0.5, 0.25), (0.5, 0.25))


def test_a_score_that_is_not_a_number_differs_most() -> None:
    case = distributions(table_of([pair_of_scores([0.5, 0.25], [0.0, np.nan])]), "a", LIMITS).worst.cases[0]
    assert case.places == (1, 0)


def pair_of_scores(left: Sequence[float], right: Sequence[float]) -> Pair:
    sides = [
        replace(
            batch(0).baseline,
            answers=(Answer(status=Status.OK, outputs={"scores": np.array([scores], np.float32)}),),
        )
        for scores in (left, right)
    ]
    return pair(*sides)


# The noise floor


def noisy(candidate: Sequence[float], twin: Sequence[float]) -> StageSums:
    return StageSums(
        items=len(candidate),
        deltas=DeltaHistogram.of(np.array(candidate)),
        noise=Noise(items=len(twin), deltas=DeltaHistogram.of(np.array(twin))),
    )


def test_what_is_beyond_the_twins_99th_percentile_is_beyond_noise() -> None:
    twin = [1e-7] * 990 + [1e-4] * 10
    found = beyond_noise(noisy([1e-7] * 80 + [1.5e-7] * 10 + [1e-3] * 10, twin))
    assert found is not None
    assert (found.items, found.share) == (20, 0.2)
    assert found.floor == next(edge for edge in DELTA_EDGES if edge > 1e-7)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=300))
def test_the_twin_in_the_candidates_place_is_beyond_noise_in_one_percent_at_most(deltas: list[float]) -> None:
    found = beyond_noise(noisy(deltas, deltas))
    assert found is not None
    assert found.share <= 0.01


def test_without_a_twin_there_is_no_noise_floor() -> None:
    assert beyond_noise(noisy([0.1], [])) is None
    assert beyond_noise(noisy([], [0.1])) is None


# A folder


def test_a_survey_adds_up_all_segments_of_all_chains(tmp_path: Path) -> None:
    record(tmp_path, [batch(number, 2, noise=1e-6) for number in range(3)], [batch(3, 2)], chain="router-a")
    record(tmp_path, [batch(number, 1, primary=Arm.CANDIDATE, stage=1) for number in range(5)], chain="router-b")
    found = survey(tmp_path)
    assert (found.chains, found.segments, found.distributions.rows) == (2, 3, 13)
    assert found.header.deployment_id == DEPLOYMENT
    assert found.account == Account(sampled=13, mirrored=13)
    assert found.evidence.total().items == 13
    assert found.evidence.stage(1).pairs == 5
    assert (found.distributions.span.first, found.distributions.span.last) == (BEGAN_US, BEGAN_US + 4_000_000)


def test_late_labels_say_who_was_right_by_true_class(tmp_path: Path) -> None:
    record(tmp_path, [batch(0, label=0), batch(1, label=0, answer=1, delta=0.75), batch(2, label=1)])
    labels = [Label(request_id=f"{number}-0", label=label) for number, label in ((0, 0), (1, 0), (2, 2))]
    with LabelJoin(tmp_path, DEPLOYMENT, LIMITS, within_s=1e6, clock=lambda: BEGAN_US * 1e-6) as join:
        join.add(labels)
        join.advance()
        evidence, head = join.snapshot()
    found = survey(tmp_path)
    assert found.distributions.accuracy.by_label == {
        0: LabelCells(both=1, baseline_only=1),
        2: LabelCells(neither=1),
    }
    assert head is not None
    assert found.evidence.total().labels == evidence_at(tmp_path, [head]).total().labels == evidence.total().labels


@pytest.mark.parametrize("name", ["nothing", "missing"])
def test_a_folder_without_evidence_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(EvidenceError, match=f"{name}: no evidence"):
        survey(tmp_path / name)


def test_a_segment_whose_bytes_were_changed_is_named(tmp_path: Path) -> None:
    record(tmp_path, [batch(0)], [batch(1)])
    path = tmp_path / segment_name("router", 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match=path.name):
        survey(tmp_path)


def test_chains_of_two_deployments_are_not_mixed(tmp_path: Path) -> None:
    write_chain(tmp_path, [[batch(0)]], "router-a")
    record_elsewhere(tmp_path)
    with pytest.raises(EvidenceError, match=r"router-b-000001.parquet: of deployment another"):
        survey(tmp_path)


def record_elsewhere(folder: Path) -> None:
    recorder = Recorder(folder, "router-b", "another", LIMITS, Accounting(), parameters=PARAMETERS)
    recorder.offer(replace(batch(0), deployment_id="another"))
    recorder.close()


def test_chains_that_were_compared_otherwise_are_not_mixed(tmp_path: Path) -> None:
    record(tmp_path, [batch(0)], chain="router-a")
    limits = replace(LIMITS, tolerance=0.5)
    recorder = Recorder(tmp_path, "router-b", DEPLOYMENT, limits, Accounting(), parameters=PARAMETERS)
    recorder.offer(batch(0))
    recorder.close()
    with pytest.raises(EvidenceError, match=r"router-b-000001.parquet: header: limits or comparator"):
        survey(tmp_path)


# Checkpoints


def compacted(folder: Path, keep: int = 1) -> None:
    """What ``understudy evidence compact`` does, keeping so many segments of each chain."""
    heads = [[head for _, head in walk_chain(folder, chain)][-1] for chain in chains(folder)]
    compact_chains(folder, heads, Retention(keep_segments=keep, labels_within_s=0), now_unix_us=2**51)


@given(
    segments=st.lists(st.lists(pairs(), min_size=1, max_size=2), min_size=2, max_size=4),
    keep=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_what_became_checkpoints_still_counts_in_all_that_follows_from_sums(
    tmp_path_factory: pytest.TempPathFactory, segments: list[list[Pair]], keep: int
) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    write_chain(folder, segments)
    before = survey(folder)
    compacted(folder, keep)
    after = survey(folder)
    gone = max(len(segments) - keep, 0)
    assert (after.evidence, after.account, after.chains) == (before.evidence, before.account, before.chains)
    assert (after.segments, after.checkpoints.segments) == (len(segments) - gone, gone)
    assert after.distributions.rows + after.checkpoints.rows == before.distributions.rows
    counts = [
        {name: (each.items, each.agree, each.over) for name, each in found.by_slice.items()}
        for found in (before, after)
    ]
    assert counts[0] == counts[1]


@given(st.lists(pairs(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_without_checkpoints_slices_are_those_of_the_rows_and_their_measures_add_up_to_all(
    tmp_path_factory: pytest.TempPathFactory, some: list[Pair]
) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    write_chain(folder, [some])
    found = survey(folder)
    assert found.checkpoints == Checkpoints()
    assert found.by_slice == found.distributions.slices.by_label
    measured = reduce(add, found.by_slice.values(), Agreement())
    assert measured.measures == found.evidence.total().measures


def test_slices_beyond_the_bound_are_one_however_they_came(tmp_path: Path) -> None:
    names = [f"slice-{number:03}" for number in range(MAX_SLICES + 9)]
    write_chain(tmp_path, [[batch(at, delta=0.5 if at else 0.25, slice_name=name)] for at, name in enumerate(names)])
    found = survey(tmp_path).by_slice
    assert sorted(found) == [OTHER, *names[:MAX_SLICES]]
    assert (found[OTHER].items, found[OTHER].over) == (9, 9)
    assert found[OTHER].max_delta == pytest.approx(0.5, abs=1e-6)


def test_a_chain_that_is_compacted_while_it_is_read_is_not_counted_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_chain(tmp_path, [[batch(0)], [batch(1)]])
    compacted(tmp_path)
    monkeypatch.setattr("shadow.distributions.latest_checkpoint", lambda folder, chain: None)
    with pytest.raises(EvidenceError, match="chain router was compacted while it was read: run this again"):
        survey(tmp_path)


def test_a_checkpoint_of_another_deployment_is_not_mixed_in(tmp_path: Path) -> None:
    write_chain(tmp_path, [[batch(0)]], "router-a")
    recorder = Recorder(tmp_path, "router-b", "another", LIMITS, Accounting(), parameters=PARAMETERS)
    for number in range(2):
        recorder.offer(replace(batch(number), deployment_id="another"))
        recorder.flush()
    recorder.close()
    compacted(tmp_path)
    with pytest.raises(EvidenceError, match=r"router-b.checkpoint-000001.json: of deployment another"):
        survey(tmp_path)
