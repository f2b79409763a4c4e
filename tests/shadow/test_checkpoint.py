import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadow.accounting import Account
from shadow.checkpoint import Compacted, Retention, compact, overdue_rows
from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import canonical
from shadow.labels import CHAIN as LABELS
from shadow.labels import Label, LabelJoin
from shadow.pair import Pair
from shadow.rows import compact as compact_pair
from shadow.rows import to_table
from shadow.slices import MAX_SLICES
from shadow.store import Head, SegmentWriter, chains, latest_checkpoint, segment_name, walk_chain
from shadow.verify import Claim, Verification, evidence_at, run_id, verify
from tests.shadow.builders import COMPARATOR, DEPLOYMENT, LIMITS, header, pairs, simple_pair, write_chain

NOW_US = 2**51  # later than any row of ``pairs``
DAY_US = 86_400_000_000
ALL = Retention(labels_within_s=0)


def claim(folder: Path, heads: Sequence[Head], seq: int = 1) -> Claim:
    evidence = evidence_at(folder, heads)
    return Claim(seq=seq, evidence=evidence.to_json(), heads=tuple(heads), run_id=run_id(evidence, heads))


def shrink(folder: Path, heads: Sequence[Head], retention: Retention = ALL) -> tuple[Compacted, ...]:
    return compact(folder, heads, retention, now_unix_us=NOW_US)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def three(folder: Path) -> tuple[list[Head], list[Claim]]:
    """A chain of three segments, and an entry at each."""
    heads = write_chain(folder, [[simple_pair(name)] for name in "abc"])
    return heads, [claim(folder, [head], seq) for seq, head in enumerate(heads, start=1)]


def checked(folder: Path, heads: Sequence[Head], claims: Sequence[Claim]) -> Verification:
    return verify(folder, {head.chain: head for head in heads}, claims)


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the checkpoint of ``router`` as a forger would, with the right sha256."""
    (path,) = folder.glob("router.checkpoint-*.json")
    value = orjson.loads(path.read_bytes())
    change(value)
    facts = {name: part for name, part in value.items() if name != "sha256"}
    path.write_bytes(canonical({**facts, "sha256": sha256(canonical(facts)).hexdigest()}))
    return path


@given(
    segments=st.lists(st.lists(pairs(), min_size=1, max_size=2), min_size=2, max_size=4),
    keep=st.integers(1, 4),
    then=st.integers(1, 4),
)
@settings(max_examples=25, deadline=None)
def test_compacting_at_any_segment_changes_neither_the_sums_nor_the_outcome(
    tmp_path_factory: pytest.TempPathFactory, segments: list[list[Pair]], keep: int, then: int
) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    heads = write_chain(folder, segments)
    claims = [claim(folder, [head], seq) for seq, head in enumerate(heads, start=1)]
    before = checked(folder, heads[-1:], claims)
    assert before.ok
    for kept in (keep, then):
        shrink(folder, heads[-1:], replace(ALL, keep_segments=kept))
    covered = max(0, len(heads) - min(keep, then))
    after = checked(folder, heads[-1:], claims)
    assert (after.problems, after.evidence, after.chains) == (before.problems, before.evidence, before.chains)
    assert after.claims == before.claims - max(0, covered - 1)
    for head, said in zip(heads, claims, strict=True):
        if head.segments >= covered:
            assert evidence_at(folder, [head]).to_json() == said.evidence
    assert [head for _, head in walk_chain(folder, "router")] == heads[covered:]


def test_a_checkpoint_holds_what_its_segments_did_and_takes_their_place(tmp_path: Path) -> None:
    writer = SegmentWriter(tmp_path, header())
    tables = [to_table([compact_pair(simple_pair(name), COMPARATOR)], COMPARATOR, n) for n, name in enumerate("abc")]
    accounts = [Account(sampled=n, mirrored=n) for n in (1, 2, 3)]
    heads = [writer.write(table, account) for table, account in zip(tables, accounts, strict=True)]
    expected = evidence_at(tmp_path, heads[1:2])
    assert shrink(tmp_path, heads[-1:]) == (Compacted(chain="router", segments=2, rows=2, deleted_files=2),)
    assert files(tmp_path) == ["router-000003.parquet", "router.checkpoint-000002.json"]
    found = latest_checkpoint(tmp_path, "router")
    assert found is not None
    assert (found.head, found.evidence, found.batches) == (heads[1], expected, 2)
    assert (found.header.account, found.header.number) == (accounts[1], 2)
    assert chains(tmp_path) == {"router": 3}


def test_verify_names_a_checkpoint_and_what_it_can_no_longer_recompute(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    found = checked(tmp_path, heads[-1:], claims)
    assert found.notes == (
        "chain router: segments 1…2 are a checkpoint: "
        "their sums (2 rows) are taken as recorded, not recomputed from rows",
        "journal: entries before a checkpoint, whose sums were not recomputed: 1",
    )
    assert (found.ok, found.claims) == (True, 2)  # at the checkpoint's head, and at the last


def test_a_second_compaction_starts_from_the_first(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:], replace(ALL, keep_segments=2))
    (done,) = shrink(tmp_path, heads[-1:])
    assert (done.segments, done.rows, done.deleted_files) == (2, 2, 2)  # segment 2, and the first checkpoint
    assert files(tmp_path) == ["router-000003.parquet", "router.checkpoint-000002.json"]
    assert checked(tmp_path, heads[-1:], claims).ok


def test_a_compaction_without_anything_to_do_leaves_all_as_it_is(tmp_path: Path) -> None:
    heads, _ = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert shrink(tmp_path, heads[-1:]) == (Compacted(chain="router", segments=2, rows=2, deleted_files=0),)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_the_segment_of_the_last_recorded_head_and_all_later_ones_stay(tmp_path: Path) -> None:
    heads, _ = three(tmp_path)
    write_chain(tmp_path, [[simple_pair("d")]], "unrecorded")
    shrink(tmp_path, heads[1:2])
    assert files(tmp_path) == [
        "router-000002.parquet",
        "router-000003.parquet",
        "router.checkpoint-000001.json",
        "unrecorded-000001.parquet",
    ]
    assert shrink(tmp_path, [Head(chain="router", segments=0, rows=0, sha256="")]) == ()


def test_a_writer_goes_on_after_a_checkpoint(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    writer = SegmentWriter(tmp_path, header())
    assert writer.head == heads[-1]
    last = writer.write(to_table([compact_pair(simple_pair("d"), COMPARATOR)], COMPARATOR, 3))
    assert (last.segments, last.rows) == (4, 4)
    claims.append(claim(tmp_path, [last], 4))
    assert claims[-1].evidence["0"]["pairs"] == 4
    assert checked(tmp_path, [last], claims).ok


class Stopped(BaseException):
    """The process dies here."""


def stopping_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Die before the n-th act that changes the disk or makes a change durable."""
    acts = count()

    def guarded(act: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            if next(acts) == step:
                raise Stopped
            return act(*arguments, **named)

        return run

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink")):
        patch.setattr(owner, name, guarded(getattr(owner, name)))


def survives(folder: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> bool:
    """Compact for the second time, stop before a step, look at what is there, and go on; False: it got to its end."""
    heads, claims = three(folder)
    shrink(folder, heads[-1:], replace(ALL, keep_segments=2))
    stopped = False
    with monkeypatch.context() as patch:
        stopping_at(patch, step)
        try:
            shrink(folder, heads[-1:])
        except Stopped:
            stopped = True
    for _ in range(2):
        found = checked(folder, heads[-1:], claims)
        assert (found.problems, found.evidence.to_json()) == ((), claims[-1].evidence)
        assert evidence_at(folder, heads[-1:]) == found.evidence
        shrink(folder, heads[-1:])
        assert files(folder) == ["router-000003.parquet", "router.checkpoint-000002.json"]
    return stopped


def test_a_crash_between_any_two_steps_loses_nothing_and_the_next_run_finishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    while survives(tmp_path / str(steps), monkeypatch, steps):
        steps += 1
    assert steps == 6  # file synced, renamed, folder synced, two files deleted, folder synced


def test_what_a_crash_left_of_a_checkpoint_is_deleted_by_the_next_run(tmp_path: Path) -> None:
    heads, _ = three(tmp_path)
    for name in (".router.checkpoint-000007.json.tmp", ".other.checkpoint-000007.json.tmp"):
        (tmp_path / name).write_bytes(b"half")
    shrink(tmp_path, heads[-1:])
    assert files(tmp_path) == [
        ".other.checkpoint-000007.json.tmp",
        "router-000003.parquet",
        "router.checkpoint-000002.json",
    ]


def test_a_changed_checkpoint_is_a_problem_that_names_it(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    path = tmp_path / "router.checkpoint-000002.json"
    content = path.read_bytes()
    for position in range(0, len(content), 37):
        changed = bytearray(content)
        changed[position] ^= 1
        path.write_bytes(changed)
        found = checked(tmp_path, heads[-1:], claims)
        assert any(problem.startswith(f"{path}: not a checkpoint of evidence") for problem in found.problems)
        with pytest.raises(EvidenceError, match=r"router\.checkpoint-000002\.json"):
            evidence_at(tmp_path, heads[-1:])


def more_pairs(value: dict[str, Any]) -> None:
    value["evidence"]["0"]["pairs"] += 1


def no_sums(value: dict[str, Any]) -> None:
    value["evidence"] = {}


def fewer_rows(value: dict[str, Any]) -> None:
    value["head"]["rows"] = 1


def another_head(value: dict[str, Any]) -> None:
    value["head"]["sha256"] = "0" * 64


def another_limit(value: dict[str, Any]) -> None:
    value["header"]["limits"]["tolerance"] = 9.0


def lost_items(value: dict[str, Any]) -> None:
    value["header"]["account"]["sampled"] = 5


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (more_pairs, "router.checkpoint-000002.json: no entry of the journal agrees with its sums"),
        (no_sums, "router.checkpoint-000002.json: no entry of the journal agrees with its sums"),
        (fewer_rows, "chain router: changed: the head after segment 3"),
        (another_head, "router.checkpoint-000002.json: its bytes are not those that router-000003.parquet was written"),
        (another_limit, "router-000003.parquet: header: differs from the chain's first segment"),
        (lost_items, "router.checkpoint-000002.json: header: account: items do not add up"),
    ],
)
def test_a_forged_checkpoint_is_found_though_its_own_hash_holds(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], complaint: str
) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    rewritten(tmp_path, change)
    found = checked(tmp_path, heads[-1:], claims)
    assert any(complaint in problem for problem in found.problems), found.problems


def text_for_a_count(value: dict[str, Any]) -> None:
    value["evidence"]["0"]["pairs"] = "many"


def table_for_a_count(value: dict[str, Any]) -> None:
    value["evidence"]["0"]["pairs"] = {}


def table_in_a_table(value: dict[str, Any]) -> None:
    value["evidence"]["0"]["findings"] = {"missing_output": {}}


def unknown_sum(value: dict[str, Any]) -> None:
    value["evidence"]["0"]["luck"] = 1


def list_for_sums(value: dict[str, Any]) -> None:
    value["evidence"] = []


def text_for_rows(value: dict[str, Any]) -> None:
    value["head"]["rows"] = "2"


def another_number(value: dict[str, Any]) -> None:
    value["head"]["segments"] = value["header"]["number"] = 3


def no_header(value: dict[str, Any]) -> None:
    del value["header"]


@pytest.mark.parametrize(
    "change",
    [
        text_for_a_count,
        table_for_a_count,
        table_in_a_table,
        unknown_sum,
        list_for_sums,
        text_for_rows,
        another_number,
        no_header,
    ],
)
def test_a_malformed_checkpoint_is_a_problem_not_a_crash(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    path = rewritten(tmp_path, change)
    assert checked(tmp_path, heads[-1:], claims).problems[0].startswith(f"{path}: ")


def test_an_entry_before_the_checkpoint_that_says_more_than_it_is_a_problem(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    inflated = replace(claims[0], evidence=claims[2].evidence)
    found = checked(tmp_path, heads[-1:], [inflated, *claims[1:]])
    (problem,) = found.problems
    assert problem.startswith("journal: entry 1: evidence: stage.0.")
    assert problem.endswith("the checkpoint has 2, the entry before it says 3")
    longer = replace(claims[0], heads=(replace(heads[0], rows=7),))
    assert "7 rows were recorded" in checked(tmp_path, heads[-1:], [longer, *claims[1:]]).problems[0]


def test_an_entry_before_the_checkpoint_may_name_a_slice_that_was_pooled_since(tmp_path: Path) -> None:
    def sliced(names: Sequence[str]) -> list[Pair]:
        return [replace(simple_pair(name), slices=(name,)) for name in names]

    late = sliced([f"z{number}" for number in range(2)])
    early = sliced([f"a{number}" for number in range(MAX_SLICES)])
    heads = write_chain(tmp_path, [late, early, [simple_pair("a")]])
    claims = [claim(tmp_path, [head], seq) for seq, head in enumerate(heads, start=1)]
    assert "z0" in claims[0].evidence["0"]["slices"]
    assert "z0" not in claims[1].evidence["0"]["slices"]
    shrink(tmp_path, heads[-1:])
    assert checked(tmp_path, heads[-1:], claims).problems == ()


def test_sums_before_a_checkpoint_are_gone_and_asking_for_them_says_so(tmp_path: Path) -> None:
    heads, _ = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    with pytest.raises(EvidenceError, match="1 segments were recorded, but the first 2 are a checkpoint now"):
        evidence_at(tmp_path, heads[:1])


def test_a_segment_that_no_checkpoint_covers_is_missing_still(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair(name)] for name in "abcd"])
    claims = [claim(tmp_path, heads[-1:])]
    shrink(tmp_path, heads[-1:], replace(ALL, keep_segments=2))
    (tmp_path / segment_name("router", 3)).unlink()
    assert "router-000003.parquet: cannot be read" in checked(tmp_path, heads[-1:], claims).problems[0]


def test_without_its_checkpoint_the_first_segment_is_missing(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    (tmp_path / "router.checkpoint-000002.json").unlink()
    assert "router-000001.parquet: cannot be read" in checked(tmp_path, heads[-1:], claims).problems[0]


def test_a_tail_cut_off_down_to_the_checkpoint_is_found(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    (tmp_path / segment_name("router", 3)).unlink()
    assert "cut: 3 segments were recorded, 2 are there" in checked(tmp_path, heads[-1:], claims).problems[0]


def aged(folder: Path, *days: Sequence[float]) -> list[Head]:
    """A segment of rows of these ages for each."""
    ages = [[simple_pair(f"{day}", at_unix_us=NOW_US - round(day * DAY_US)) for day in some] for some in days]
    return write_chain(folder, ages)


@pytest.mark.parametrize(
    ("retention", "covered"),
    [
        (Retention(), 3),
        (Retention(labels_within_s=6 * 86_400), 1),
        (Retention(keep_days=7.5), 1),
        (Retention(keep_days=4.5), 2),
        (Retention(keep_days=30), 0),
        (Retention(keep_days=0), 3),
        (Retention(keep_days=7.5, redact=True), 2),
        (Retention(keep_days=4.5, redact=True), 3),
        (Retention(keep_days=4.5, redact=True, labels_within_s=6 * 86_400), 1),
        (Retention(keep_segments=3), 1),
        (Retention(keep_segments=9), 0),
    ],
)
def test_what_stays_is_decided_by_age_by_number_and_by_labels_that_may_come(
    tmp_path: Path, retention: Retention, covered: int
) -> None:
    heads = aged(tmp_path, (9, 8), (8, 5), (5, 4), (3,))
    claims = [claim(tmp_path, heads[-1:])]
    (done,) = shrink(tmp_path, heads[-1:], retention)
    assert done.segments == covered
    assert checked(tmp_path, heads[-1:], claims).ok


def test_a_row_that_a_label_may_still_join_stays(tmp_path: Path) -> None:
    within = Retention(labels_within_s=900)
    for age_s, covered in ((900, 0), (901, 1)):
        heads = aged(tmp_path / str(age_s), (age_s / 86_400,), (0,))
        assert shrink(tmp_path / str(age_s), heads[-1:], within)[0].segments == covered


def test_rows_too_old_that_had_to_stay_are_counted(tmp_path: Path) -> None:
    heads = aged(tmp_path, (9, 8), (8, 5), (6, 4))
    limit_us = NOW_US - 5 * DAY_US
    assert overdue_rows(tmp_path, limit_us) == 4
    shrink(tmp_path, heads[-1:], Retention(keep_days=5, redact=True))
    assert overdue_rows(tmp_path, limit_us) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"keep_segments": 0},
        {"keep_days": -1.0},
        {"keep_days": float("nan")},
        {"labels_within_s": float("inf")},
        {"redact": True},
    ],
)
def test_a_retention_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ShadowError, match="retention: "):
        Retention(**values)


def labelled(folder: Path) -> list[Head]:
    """Two segments of pairs in each of two chains, and a segment of joined labels for each of the two."""
    ends = [write_chain(folder, [[simple_pair(f"{chain}0")], [simple_pair(f"{chain}1")]], chain) for chain in "pq"]
    with LabelJoin(folder, DEPLOYMENT, LIMITS, within_s=60, clock=lambda: 1.0) as join:
        for number in range(2):
            join.add([Label(request_id=f"{chain}{number}", label=0) for chain in "pq"])
            join.advance()
        labels = join.snapshot()[1]
    assert labels is not None
    assert labels.segments == 2
    return [ends[0][-1], ends[1][-1], labels]


def test_joined_labels_go_once_all_their_pairs_have(tmp_path: Path) -> None:
    heads = labelled(tmp_path)
    claims = [claim(tmp_path, heads)]
    done = {each.chain: each.segments for each in shrink(tmp_path, heads)}
    assert done == {"p": 1, "q": 1, LABELS: 1}
    found = checked(tmp_path, heads, claims)
    assert (found.problems, found.claims) == ((), 1)
    assert found.evidence.total().labels.both == 4
    assert evidence_at(tmp_path, heads) == found.evidence


def test_joined_labels_stay_while_a_pair_of_theirs_does_and_those_without_are_counted(tmp_path: Path) -> None:
    heads = labelled(tmp_path)
    claims = [claim(tmp_path, heads)]
    assert [each.chain for each in shrink(tmp_path, [heads[0]])] == ["p"]
    done = {each.chain: each.segments for each in shrink(tmp_path, heads, replace(ALL, keep_segments=2))}
    assert done == {"p": 1, "q": 0, LABELS: 0}
    found = checked(tmp_path, heads, claims)
    assert (found.problems, found.claims) == ((), 1)
    assert f"chain {LABELS}: 1 joined rows, whose pairs are in a checkpoint: not compared" in found.notes


def test_a_disk_that_refuses_leaves_every_segment(tmp_path: Path) -> None:
    heads, claims = three(tmp_path)
    (tmp_path / ".router.checkpoint-000002.json.tmp").mkdir()
    with pytest.raises(EvidenceError, match="cannot be compacted: Is a directory"):
        shrink(tmp_path, heads[-1:])
    assert checked(tmp_path, heads[-1:], claims).claims == 3


def test_evidence_that_does_not_hold_is_not_compacted(tmp_path: Path) -> None:
    heads, _ = three(tmp_path)
    forged = SegmentWriter(tmp_path / "forged", header())
    forged.write(to_table([compact_pair(simple_pair("x"), COMPARATOR)], COMPARATOR, 0))
    (tmp_path / "forged" / segment_name("router", 1)).rename(tmp_path / segment_name("router", 1))
    before = files(tmp_path)
    with pytest.raises(EvidenceError, match=r"router-000001\.parquet: its bytes are not those"):
        shrink(tmp_path, heads[-1:])
    assert files(tmp_path) == before


def test_a_join_that_starts_anew_keeps_the_sums_of_its_checkpoint(tmp_path: Path) -> None:
    heads = labelled(tmp_path)
    shrink(tmp_path, heads)
    with LabelJoin(tmp_path, DEPLOYMENT, LIMITS, within_s=60, clock=lambda: 1.0) as join:
        evidence, head = join.snapshot()
        assert (head, join.counts().joined) == (heads[-1], 4)
        assert join.add([Label(request_id="p0", label=0)]).duplicates == 1
    assert evidence.total().labels.both == 4
    assert evidence == evidence_at(tmp_path, heads[-1:])


@pytest.mark.parametrize("within", [None, {"router": 3}])
def test_a_first_label_that_comes_after_a_compaction_joins_what_is_left(
    tmp_path: Path, within: dict[str, int] | None
) -> None:
    heads, _ = three(tmp_path)
    shrink(tmp_path, heads[-1:])
    with LabelJoin(tmp_path, DEPLOYMENT, LIMITS, within_s=60, clock=lambda: 1.0) as join:
        join.add([Label(request_id=name, label=0) for name in "ac"])
        for _ in range(2):
            join.advance(within=within)
        assert (join.counts().joined, join.counts().waiting) == (1, 1)
