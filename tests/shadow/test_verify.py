from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import Array
from shadow.accounting import Account
from shadow.comparators import COMPARATORS, open_comparator
from shadow.errors import EvidenceError
from shadow.evidence import Evidence, Limits, canonical
from shadow.labels import SCHEMA as LABEL_SCHEMA
from shadow.labels import Label, LabelJoin
from shadow.pair import Answer, Pair, Status
from shadow.rows import compact, to_table
from shadow.store import Head, Kind, SegmentWriter, segment_name
from shadow.sums import sums
from shadow.verify import Claim, evidence_at, run_id, verify
from tests.shadow.builders import (
    COMPARATOR,
    DEPLOYMENT,
    LIMITS,
    MEASURES,
    bad,
    header,
    ok,
    outcome,
    pair,
    pairs,
    simple_pair,
    write_chain,
)


def rows(*some: Pair) -> pa.Table:
    return to_table([compact(each, COMPARATOR) for each in some], COMPARATOR, 0)


def claim(folder: Path, heads: list[Head], seq: int = 1) -> Claim:
    evidence = evidence_at(folder, heads)
    return Claim(seq=seq, evidence=evidence.to_json(), heads=tuple(heads), run_id=run_id(evidence, heads))


def test_the_run_id_is_the_hash_of_sums_and_heads() -> None:
    head = Head(chain="router", segments=1, rows=2, sha256="ab")
    spelled = canonical({"evidence": {}, "heads": [["router", 1, 2, "ab"]]})
    assert run_id(Evidence(), [head]) == sha256(spelled).hexdigest()[:12]
    other = replace(head, chain="other")
    assert run_id(Evidence(), [head, other]) == run_id(Evidence(), [other, head])


@given(segments=st.lists(st.lists(pairs(), min_size=1, max_size=2), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_what_was_recorded_verifies_at_every_head(
    tmp_path_factory: pytest.TempPathFactory, segments: list[list[Pair]]
) -> None:
    folder = tmp_path_factory.mktemp("evidence")
    heads = write_chain(folder, segments)
    found = verify(folder, {"router": heads[-1]}, [claim(folder, [head]) for head in heads])
    assert found.problems == ()
    assert found.claims == len(heads)
    for index, head in enumerate(heads):
        expected = sum((sums(rows(*some), LIMITS, MEASURES) for some in segments[: index + 1]), Evidence())
        assert evidence_at(folder, [head]) == expected


def test_several_chains_add_up_and_rows_after_the_last_decision_are_reported(tmp_path: Path) -> None:
    one = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]], "one")
    two = write_chain(tmp_path, [[simple_pair("c")]], "two")
    write_chain(tmp_path, [[simple_pair("d")]], "three")
    found = verify(tmp_path, {"one": one[0], "two": two[0]})
    assert found.ok
    assert found.evidence.stage(0).pairs == 2
    later = {chain.head.chain: (chain.recorded_segments, chain.later_rows) for chain in found.chains}
    assert later == {"one": (1, 1), "two": (1, 0), "three": (0, 1)}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_flipped_byte_anywhere_is_found(tmp_path: Path, number: int) -> None:
    heads = write_chain(tmp_path, [[simple_pair(f"{n}", candidate=1)] for n in range(3)])
    path = tmp_path / segment_name("router", number)
    content = path.read_bytes()
    for position in range(0, len(content), 101):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        found = verify(tmp_path, {"router": heads[-1]})
        assert not found.ok, position
        assert any("router" in problem for problem in found.problems)
    path.write_bytes(content)
    assert verify(tmp_path, {"router": heads[-1]}).ok


def test_a_changed_segment_is_named(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])
    path = tmp_path / segment_name("router", 1)
    path.unlink()
    SegmentWriter(tmp_path / "other", header()).write(rows(simple_pair("forged")))
    (tmp_path / "other" / path.name).rename(path)
    found = verify(tmp_path, {"router": heads[-1]})
    assert found.problems[0] == f"{path}: its bytes are not those that router-000002.parquet was written after"
    with pytest.raises(EvidenceError, match=r"router-000001\.parquet"):
        evidence_at(tmp_path, [heads[-1]])


def test_a_chain_written_anew_from_start_to_end_is_found_by_its_heads(tmp_path: Path) -> None:
    heads = write_chain(tmp_path / "real", [[simple_pair("a")], [simple_pair("b")]])
    write_chain(tmp_path / "forged", [[simple_pair("a")], [simple_pair("c")]])
    found = verify(tmp_path / "forged", {"router": heads[-1]})
    assert "chain router: changed: the head after segment 2 was" in found.problems[0]


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_cut_tail_is_found(tmp_path: Path, kept: int) -> None:
    heads = write_chain(tmp_path, [[simple_pair(name)] for name in "abc"])
    for number in range(kept + 1, 4):
        (tmp_path / segment_name("router", number)).unlink()
    found = verify(tmp_path, {"router": heads[-1]})
    expected = f"cut: 3 segments were recorded, {kept} are there" if kept else "none of which can be trusted"
    assert expected in found.problems[0]


def test_a_head_in_an_entry_alone_is_an_anchor_too(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])
    entry = claim(tmp_path, heads[-1:])
    (tmp_path / segment_name("router", 2)).unlink()
    found = verify(tmp_path, {"router": heads[0]}, [entry])
    assert any("cut" in problem for problem in found.problems)
    assert found.claims == 0


def test_a_claim_that_does_not_follow_from_the_rows_names_the_figure(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")]])
    right = claim(tmp_path, heads)
    inflated = evidence_at(tmp_path, heads) + evidence_at(tmp_path, heads)
    wrong = replace(right, seq=7, evidence=inflated.to_json())
    renamed = replace(right, seq=8, run_id="0" * 12)
    found = verify(tmp_path, {"router": heads[-1]}, [right, wrong, renamed])
    assert found.claims == 1
    assert found.problems[0].startswith("journal: entry 7: evidence: stage.0.")
    assert "the rows give 1, the entry says 2" in found.problems[0]
    assert found.problems[1] == f"journal: entry 8: run_id: expected {right.run_id}"


def test_no_evidence_and_no_claims_is_nothing_wrong(tmp_path: Path) -> None:
    assert verify(tmp_path / "nothing", {}).ok
    assert verify(tmp_path / "nothing", {}, [claim(tmp_path, [])]).claims == 1


def with_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    index = table.schema.get_field_index(name)
    return table.set_column(index, table.schema.field(index), pa.array(values, table.schema.field(index).type))


def spoil_delta(table: pa.Table) -> pa.Table:
    return with_column(table, "max_delta", [0.5] * table.num_rows)


def spoil_mean(table: pa.Table) -> pa.Table:
    return with_column(table, "mean_delta", [0.5] * table.num_rows)


def spoil_top1(table: pa.Table) -> pa.Table:
    return with_column(table, "candidate_top1", [2] * table.num_rows)


def drop_scores(table: pa.Table) -> pa.Table:
    return with_column(table, "candidate_scores", [None] * table.num_rows)


def with_words(table: pa.Table, name: str, word: str | None) -> pa.Table:
    index = table.schema.get_field_index(name)
    words = pa.array([word] * table.num_rows, pa.string()).dictionary_encode()
    return table.set_column(index, table.schema.field(index), words)


def drop_layout(table: pa.Table) -> pa.Table:
    return with_words(drop_scores(table), "candidate_layout", None)


def spoil_layout(table: pa.Table) -> pa.Table:
    return with_words(table, "candidate_layout", "scores:4")


def nonsense_layout(table: pa.Table) -> pa.Table:
    return with_words(table, "candidate_layout", "three")


def spoil_measures(table: pa.Table) -> pa.Table:
    return with_column(table, "measures", [[0.5] * len(MEASURES)] * table.num_rows)


def forget_measures(table: pa.Table) -> pa.Table:
    return with_column(table, "measures", [None] * table.num_rows)


def spoil_twin(table: pa.Table) -> pa.Table:
    return with_column(table, "twin_max_delta", [0.5] * table.num_rows)


def spoil_twin_batch(table: pa.Table) -> pa.Table:
    return with_words(table, "twin_batch", "error")


def spoil_batch(table: pa.Table) -> pa.Table:
    return with_words(table, "candidate_batch", "error")


def cut_batch(table: pa.Table) -> pa.Table:
    return table.slice(1)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_delta, "row 0: max_delta: does not follow from the scores"),
        (spoil_mean, "row 0: mean_delta: does not follow from the scores"),
        (spoil_top1, "row 0: candidate_top1: does not follow from the scores"),
        (drop_scores, "row 0: candidate_scores: expected just where there are 4096 values or less"),
        (drop_layout, "row 0: candidate_scores: expected just where two versions ran and this one is ok"),
        (spoil_layout, "row 0: scores: 3 values, where its layout has 4"),
        (nonsense_layout, "layout: expected NAME:SIZE,…;…, got 'three'"),
        (spoil_measures, "row 0: measures: does not follow from the scores"),
        (forget_measures, "row 0: measures: does not follow from the scores"),
        (spoil_twin, "row 0: twin_max_delta: does not follow from the scores"),
        (spoil_twin_batch, "row 0: twin_batch: expected ok just when a request of the batch is"),
        (spoil_batch, "row 0: candidate_batch: expected ok just when a request of the batch is"),
        (cut_batch, "row 0: batch_row: expected a batch's first row"),
    ],
)
def test_rows_that_contradict_themselves_are_found_though_the_hashes_hold(
    tmp_path: Path, spoil: Callable[[pa.Table], pa.Table], complaint: str
) -> None:
    side = outcome(ok([1, 0, 0]), ok([0, 1, 0]))
    honest = rows(pair(side, side, twin=side))
    head = SegmentWriter(tmp_path, header()).write(spoil(honest))
    found = verify(tmp_path, {"router": head})
    assert any(f"router-000001.parquet: {complaint}" in problem for problem in found.problems), found.problems


@pytest.mark.parametrize("changes", [{"limits": Limits(tolerance=9.0)}, {"deployment_id": "another"}])
def test_chains_must_agree_on_rollout_and_limits(tmp_path: Path, changes: dict[str, object]) -> None:
    write_chain(tmp_path, [[simple_pair("a")]], "one")
    SegmentWriter(tmp_path, header("two", **changes)).write(rows(simple_pair("b")))
    assert "expected one deployment_id and the same limits" in verify(tmp_path, {}).problems[0]


def test_a_chain_must_keep_its_limits(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    SegmentWriter(tmp_path, header(limits=Limits(tolerance=9.0))).write(rows(simple_pair("b")))
    assert "router-000002.parquet: header: differs" in verify(tmp_path, {}).problems[0]


def test_an_account_that_lost_items_is_found(tmp_path: Path) -> None:
    SegmentWriter(tmp_path, header()).write(rows(simple_pair("a")), Account(sampled=3, mirrored=1))
    assert "account: items do not add up" in verify(tmp_path, {}).problems[0]


def test_a_users_comparator_is_noted_and_not_run(tmp_path: Path) -> None:
    chain = SegmentWriter(tmp_path, header(comparator="no.such:Thing"))
    found = verify(tmp_path, {"router": chain.write(spoil_delta(rows(simple_pair("a"))))})
    assert found.ok
    assert found.notes == ("chain router: comparator no.such:Thing is the user's: not recomputed",)


def joined(folder: Path) -> Head:
    write_chain(folder, [[simple_pair("a"), simple_pair("b", candidate=1)]])
    with LabelJoin(folder, DEPLOYMENT, LIMITS, within_s=60, clock=lambda: 1.0) as labels:
        labels.add([Label(request_id="a", label=0), Label(request_id="b", label=1)])
        labels.advance()
        head = labels.snapshot()[1]
    assert head is not None
    return head


def test_joined_labels_are_found_again_among_the_pairs(tmp_path: Path) -> None:
    head = joined(tmp_path)
    found = verify(tmp_path, {"labels": head})
    assert found.ok
    assert found.evidence.total().labels.both == 1
    assert found.evidence.total().labels.candidate_only == 1


def forged_labels(**changes: object) -> pa.Table:
    row = {
        "at_unix_us": 1_000_000,
        "stage": 0,
        "request_id": "a",
        "item": 0,
        "label": 0,
        "baseline_top1": 0,
        "candidate_top1": 0,
        "source": "router",
        "batch": 0,
    }
    columns = {name: pa.array([value]) for name, value in {**row, **changes}.items()}
    columns["source"] = columns["source"].dictionary_encode()
    cast = [columns[field.name].cast(field.type) for field in LABEL_SCHEMA]
    return pa.table(cast, schema=LABEL_SCHEMA)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"candidate_top1": 2}, "item 0 of request 'a': differs from its row in router-000001.parquet"),
        ({"stage": 3}, "item 0 of request 'a': differs from its row in router-000001.parquet"),
        ({"request_id": "zz"}, "item 0 of request 'zz': no such row in chain router"),
        ({"batch": 9}, "item 0 of request 'a': no such row in chain router"),
        ({"source": "nowhere"}, "item 0 of request 'a': no such row in chain nowhere"),
    ],
)
def test_a_forged_join_is_found(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    writer = SegmentWriter(tmp_path, header("labels", kind=Kind.LABELS, comparator="", output=""))
    found = verify(tmp_path, {"labels": writer.write(forged_labels(**changes))})
    assert any(problem.endswith(complaint) for problem in found.problems), found.problems


def test_an_item_joined_twice_is_found(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    writer = SegmentWriter(tmp_path, header("labels", kind=Kind.LABELS, comparator="", output=""))
    writer.write(forged_labels())
    found = verify(tmp_path, {"labels": writer.write(forged_labels())})
    assert any("is joined twice" in problem for problem in found.problems)


def test_a_join_with_an_item_that_the_candidate_never_ran_is_found(tmp_path: Path) -> None:
    never = pair(outcome(ok([1, 0, 0])), outcome(bad(type(bad().status).ABSENT)), ids=["a"])
    write_chain(tmp_path, [[never]])
    writer = SegmentWriter(tmp_path, header("labels", kind=Kind.LABELS, comparator="", output=""))
    head = writer.write(forged_labels(candidate_top1=None, baseline_top1=0))
    found = verify(tmp_path, {"labels": head})
    assert found.problems != ()


def test_damage_in_the_tail_after_the_last_decision_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])
    path = tmp_path / segment_name("router", 2)
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    generator = np.random.default_rng(1)
    for _ in range(60):
        damaged = content.copy()
        damaged[generator.integers(0, len(content), 8)] ^= generator.integers(1, 255, 8, dtype=np.uint8)
        path.write_bytes(damaged.tobytes())
        assert verify(tmp_path, {"router": heads[0]}).evidence in (Evidence(), evidence_of("a"))


def evidence_of(name: str) -> Evidence:
    return sums(rows(simple_pair(name)), LIMITS, MEASURES)


def test_chains_must_be_compared_in_one_way(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]], "one")
    SegmentWriter(tmp_path, header("two", parameters={"k": 1})).write(rows(simple_pair("b")))
    assert "chains one, two: expected pairs that one comparator compared" in verify(tmp_path, {}).problems[0]


def test_rows_whose_values_were_too_many_to_keep_are_noted_and_not_recomputed(tmp_path: Path) -> None:
    some = [pair(outcome(ok(range(width))), outcome(ok(range(width)))) for width in (3, 8, 8)]
    table = to_table([compact(each, COMPARATOR) for each in some], COMPARATOR, 0, kept_values=4)
    writer = SegmentWriter(tmp_path, header(kept_values=4))
    found = verify(tmp_path, {"router": writer.write(table)})
    assert found.ok
    assert found.notes == (
        "chain router: 2 rows without scores, which are kept up to 4 values an item: not recomputed",
    )
    changed = with_column(table, "max_delta", [0.5, 0.0, 0.0])
    found = verify(tmp_path, {"router": writer.write(changed)})
    assert any("row 0: max_delta: does not follow" in problem for problem in found.problems)


def test_values_kept_beyond_the_bound_are_found(tmp_path: Path) -> None:
    head = SegmentWriter(tmp_path, header(kept_values=2)).write(rows(simple_pair("a")))
    said = "row 0: baseline_scores: expected just where there are 2 values or less"
    assert any(said in problem for problem in verify(tmp_path, {"router": head}).problems)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"parameters": {"radius": 1}}, "the comparison cannot be recomputed: comparator.parameters: classification"),
        ({"comparator": "detection"}, "the comparison cannot be recomputed"),
        ({"measures": tuple(reversed(MEASURES))}, "header: measures: expected those of the comparator"),
    ],
)
def test_a_header_that_does_not_go_with_its_rows_is_found(
    tmp_path: Path, changes: dict[str, object], complaint: str
) -> None:
    head = SegmentWriter(tmp_path, header("router", **changes)).write(rows(simple_pair("a")))
    found = verify(tmp_path, {"router": head})
    assert any(complaint in problem for problem in found.problems), found.problems


@pytest.mark.parametrize("kind", sorted(set(COMPARATORS) - {"segmentation"}))
def test_what_every_comparator_said_is_recomputed(tmp_path: Path, kind: str) -> None:
    comparator = open_comparator(kind, "scores")
    generator = np.random.default_rng(7)

    def answer(boxes: int) -> Answer:
        scores = generator.random((6, boxes), np.float32)
        corners = generator.random((6, boxes, 4), np.float32)
        outputs: dict[str, Array] = {"scores": scores, "boxes": corners, "classes": np.ones((6, boxes))}
        return Answer(status=Status.OK, outputs=outputs)

    some = [pair(outcome(answer(9)), outcome(answer(9)), rows=[6], twin=outcome(answer(8))) for _ in range(3)]
    table = to_table([compact(each, comparator) for each in some], comparator, 0)
    changes: dict[str, Any] = {"comparator": kind, "parameters": {}, "measures": comparator.measures}
    facts = header(**changes)
    head = SegmentWriter(tmp_path, facts).write(table)
    found = verify(tmp_path, {"router": head})
    assert found.problems == found.notes == ()
    assert found.evidence == sums(table, LIMITS, comparator.measures)
    assert {*found.evidence.stage(0).measures} <= {measure.name for measure in comparator.measures}
    spoiled = with_column(table, "measures", [[0.123] * len(comparator.measures)] * table.num_rows)
    head = SegmentWriter(tmp_path / "spoiled", facts).write(spoiled)
    assert any("measures: does not follow" in problem for problem in verify(tmp_path / "spoiled", {}).problems)


def test_heads_and_claims_without_segments_ask_for_nothing(tmp_path: Path) -> None:
    nothing = Head(chain="router", segments=0, rows=0, sha256="")
    assert evidence_at(tmp_path, [nothing]) == Evidence()
    found = verify(tmp_path, {"router": nothing}, [claim(tmp_path, [nothing])])
    assert (found.problems, found.claims) == ((), 1)


def test_a_recorded_head_with_a_number_that_no_segment_has_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    heads = write_chain(tmp_path, [[simple_pair("a")]])
    found = verify(tmp_path, {"router": replace(heads[0], segments=-1)})
    assert "chain router: changed" in found.problems[0]
