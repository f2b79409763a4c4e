"""Labels that come after a rollout's end, and what they make of its verdict."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from rollout.decision import Look
from rollout.entries import Entry, read_entries, verify_chain
from rollout.errors import RolloutError
from rollout.judge import judge
from rollout.judgement import Judgement, Verdict
from rollout.machine import State
from rollout.outcome import Outcome
from rollout.policy import Policy
from rollout.reopening import check_reopenings, turned_by_labels
from rollout.reports import load_report
from rollout.traffic import Head, Readiness, Route, Snapshot
from shadow.evidence import Evidence, LabelCells, StageSums
from shadow.labels import CHAIN, Label
from shadow.rows import compact, to_table
from shadow.store import SegmentWriter, segment_name
from shadow.verify import evidence_at
from tests.rollout.stage import (
    BASELINE,
    CANDIDATE,
    MODEL,
    STAGES,
    Crash,
    Stage,
    gate,
    head,
    judged,
    policy,
    snapshot,
)
from tests.shadow.builders import COMPARATOR, header, simple_pair

PAIRS = 12
DAY_S = 86_400.0


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def write_pairs(stage: Stage, deployment_id: str, segments: int = 3) -> Snapshot:
    """Twelve pairs on which the baseline says 0 and the candidate 1, as a router would have recorded them."""
    folder = stage.reports / deployment_id / "evidence"
    limits = policy().limits(0.01)
    writer = SegmentWriter(folder, header("router-1", deployment_id=deployment_id, limits=limits))
    each = PAIRS // segments
    for segment in range(segments):
        pairs = [simple_pair(f"r{segment * each + at}", candidate=1) for at in range(each)]
        writer.write(to_table([compact(pair, COMPARATOR) for pair in pairs], COMPARATOR, segment * each))
    assert writer.head is not None
    return replace(snapshot(), evidence=evidence_at(folder, [writer.head]), heads=(writer.head,))


def begun(stage: Stage) -> str:
    """A rollout in shadow with evidence that is really on disk."""
    deployment_id = stage.start()
    stage.traffic.snapshots[deployment_id] = write_pairs(stage, deployment_id)
    for _ in range(2):
        stage.tick(Verdict.HOLD)
    return deployment_id


def promoted(stage: Stage) -> str:
    deployment_id = begun(stage)
    for _ in range(6):
        stage.tick(Verdict.PASS)
    assert stage.state == State.PROMOTED
    return deployment_id


def rolled_back(stage: Stage, passes: int = 0) -> str:
    deployment_id = begun(stage)
    for _ in range(passes):
        stage.tick(Verdict.PASS)
    stage.tick(Verdict.FAIL)
    assert stage.state == State.ROLLED_BACK
    return deployment_id


def bring(stage: Stage, deployment_id: str, *numbers: int, label: int = 0) -> tuple[int, int]:
    """Labels of some of the pairs; how many were accepted, and how many were there already."""
    rows = [Label(request_id=f"r{number}", label=label) for number in numbers]
    result = stage.controller.add_labels(stage.controller.find(MODEL, deployment_id), rows)
    return result.accepted, result.duplicates


def late_entries(stage: Stage, deployment_id: str) -> list[Entry]:
    return [entry for entry in stage.journal.entries(deployment_id) if entry.get("reopening")]


def cells(entry: Entry) -> LabelCells:
    return Evidence.from_json(entry["evidence"]).total().labels


def test_labels_that_turn_a_promotion_into_a_rejection_reopen_it_and_move_nothing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    deployment_id = promoted(stage)
    before = stage.journal.entries(deployment_id)[-1]
    stage.traffic.calls.clear()
    assert bring(stage, deployment_id, *range(10)) == (10, 0)
    with caplog.at_level(logging.INFO):
        stage.tick(Verdict.FAIL)
    (entry,) = late_entries(stage, deployment_id)
    assert (entry["event"], entry["actor"], entry["state"]) == ("reopened", "labels", "promoted")
    (labels,) = [each for each in entry["heads"] if each["chain"] == CHAIN]
    assert entry["reopening"] == {
        "was": "GO",
        "now": "REJECT",
        "labels": 10,
        "joined": 10,
        "chain_head": labels["sha256"],
        "entry": entry["seq"],
    }
    assert cells(entry) == LabelCells(baseline_only=10)
    pairs = Evidence.from_json(before["evidence"])
    assert Evidence.from_json(entry["evidence"]).stage(0) == replace(pairs.stage(0), labels=cells(entry))
    assert "10 labels joined after the end" in entry["reason"]
    assert "version 2 still answers all clients" in entry["reason"]
    assert [record.levelno for record in caplog.records if entry["reason"] in record.message] == [logging.ERROR]
    assert stage.traffic.calls == []
    assert stage.controller.baseline(MODEL) == CANDIDATE


def test_a_reopened_verdict_is_shown_by_status_and_reports(stage: Stage) -> None:
    deployment_id = promoted(stage)
    assert stage.controller.status(MODEL).to_json()["reopened"] is None
    bring(stage, deployment_id, 1, 2)
    stage.tick(Verdict.FAIL)
    stage.restart()  # what is shown comes from the journal
    status = stage.controller.status(MODEL).to_json()
    assert (status["state"], status["outcome"], status["active"]) == ("promoted", "REJECT", False)
    assert status["verdict"].startswith("Execution Verdict: REJECT")
    assert (status["reopened"]["was"], status["reopened"]["now"], status["reopened"]["labels"]) == ("GO", "REJECT", 2)
    assert datetime.fromisoformat(status["reopened"]["at"]) > stage.clock.now().replace(year=2000)
    folder = stage.reports / deployment_id
    assert (folder / "deployment_verdict.md").read_text().splitlines()[-1] == status["verdict"]
    report = load_report(folder)
    assert report.anomalies[0].startswith("Reopened at ")
    assert [move.event for move in report.timeline][-2:] == ["pass_last", "reopened"]
    assert report.incident is None


def test_a_rollback_is_reported_as_it_was_though_its_verdict_is_reopened(stage: Stage) -> None:
    deployment_id = rolled_back(stage)
    before = load_report(stage.reports / deployment_id).incident
    bring(stage, deployment_id, 1)
    stage.tick(Verdict.PASS)
    assert before is not None
    assert load_report(stage.reports / deployment_id).incident == before


def test_where_the_verdict_stands_one_entry_a_minute_keeps_what_was_judged(stage: Stage) -> None:
    deployment_id = rolled_back(stage)
    bring(stage, deployment_id, 0)
    stage.tick(Verdict.HOLD)
    for number in (1, 2, 3):
        bring(stage, deployment_id, number)
        stage.tick(after_s=5)
    assert [entry["event"] for entry in late_entries(stage, deployment_id)] == ["labels"]
    stage.tick(after_s=60)
    first, second = late_entries(stage, deployment_id)
    assert (first["reopening"]["labels"], second["reopening"]["labels"], second["reopening"]["joined"]) == (1, 3, 4)
    assert (second["event"], second["reopening"]["was"], second["reopening"]["entry"]) == ("labels", "REJECT", None)
    stage.looks.clear()
    for _ in range(3):
        stage.tick(after_s=100)
    assert len(late_entries(stage, deployment_id)) == 2
    assert stage.looks == []


@pytest.mark.parametrize(
    ("passes", "verdict", "outcome"),
    [
        (0, Verdict.PASS, Outcome.SHADOW_ONLY),  # it would have gone on
        (5, Verdict.PASS, Outcome.GO),  # in the last stage
        (5, Verdict.HOLD, Outcome.REJECT),
        (5, Verdict.ERROR, Outcome.REJECT),
        (5, Verdict.FAIL, Outcome.REJECT),
    ],
)
def test_a_rejection_stands_until_health_is_proved(
    stage: Stage, passes: int, verdict: Verdict, outcome: Outcome, caplog: pytest.LogCaptureFixture
) -> None:
    deployment_id = rolled_back(stage, passes)
    bring(stage, deployment_id, 1)
    stage.tick(verdict)
    (entry,) = late_entries(stage, deployment_id)
    assert entry["reopening"]["now"] == outcome
    assert entry["event"] == ("labels" if outcome is Outcome.REJECT else "reopened")
    assert stage.controller.status(MODEL).conclusion.outcome is outcome
    assert (stage.route, stage.state) == (Route(model=MODEL, baseline=BASELINE), State.ROLLED_BACK)
    loud = [record for record in caplog.records if "reopened" in record.message]
    assert [record.levelno for record in loud] == ([] if outcome is Outcome.REJECT else [logging.WARNING])


def test_a_promotion_stands_until_harm_is_proved_and_again_when_it_is_disproved(stage: Stage) -> None:
    deployment_id = promoted(stage)
    for number, verdict in enumerate((Verdict.HOLD, Verdict.FAIL, Verdict.HOLD, Verdict.PASS)):
        bring(stage, deployment_id, number)
        stage.tick(verdict, after_s=61)
    outcomes = [(entry["event"], entry["reopening"]["now"]) for entry in late_entries(stage, deployment_id)]
    assert outcomes == [("labels", "GO"), ("reopened", "REJECT"), ("labels", "REJECT"), ("reopened", "GO")]
    assert stage.controller.status(MODEL).conclusion.outcome is Outcome.GO


@pytest.mark.parametrize("end", ["abort", "rollback"])
def test_what_a_person_ended_is_not_made_a_go_but_may_be_rejected(stage: Stage, end: str) -> None:
    deployment_id = begun(stage)
    getattr(stage.controller, end)(MODEL, actor="ada", reason="lunch")
    for number, verdict in enumerate((Verdict.PASS, Verdict.FAIL, Verdict.PASS)):
        bring(stage, deployment_id, number)
        stage.tick(verdict, after_s=61)
    outcomes = [entry["reopening"]["now"] for entry in late_entries(stage, deployment_id)]
    assert outcomes == ["SHADOW ONLY", "REJECT", "SHADOW ONLY"]


def test_a_reopened_promotion_does_not_undo_the_one_after_it(stage: Stage) -> None:
    first = promoted(stage)
    stage.clock.at_s += 10
    second = stage.start(3)
    stage.traffic.snapshots[second] = snapshot()
    for _ in range(8):
        stage.tick(Verdict.PASS)
    assert stage.controller.baseline(MODEL) == 3
    bring(stage, first, 1)
    stage.tick(Verdict.FAIL)
    (entry,) = late_entries(stage, first)
    assert "version 2 answers no clients any more, version 3 does" in entry["reason"]
    assert stage.controller.baseline(MODEL) == 3
    assert stage.route == Route(model=MODEL, baseline=3)
    assert stage.controller.status(MODEL).rollout.deployment_id == second


def test_the_rollouts_own_policy_judges_at_its_last_stage_and_after_its_time(stage: Stage) -> None:
    deployment_id = begun(stage)
    stage.tick(Verdict.FAIL, after_s=42)
    stage.clock.at_s += 1000
    stage.restart()
    bring(stage, deployment_id, 1)
    stage.looks.clear()
    stage.tick()
    assert stage.looks == [(0, 43.0)]


def test_labels_that_came_before_the_end_and_were_not_joined_are_not_lost(stage: Stage) -> None:
    deployment_id = rolled_back(stage)
    bring(stage, deployment_id, 1)
    stage.restart()
    stage.tick(Verdict.HOLD)
    (entry,) = late_entries(stage, deployment_id)
    assert entry["reopening"]["labels"] == 1


def test_labels_of_unknown_requests_change_nothing(stage: Stage) -> None:
    deployment_id = rolled_back(stage)
    assert bring(stage, deployment_id, 1000, 1001, 1000) == (2, 1)
    stage.tick(Verdict.PASS)
    assert late_entries(stage, deployment_id) == []
    assert bring(stage, deployment_id, 1000) == (1, 0)  # they were let go of


def test_too_late_is_one_clear_error(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    deployment_id = rolled_back(stage)
    stage.clock.at_s += DAY_S
    assert bring(stage, deployment_id, 1) == (1, 0)
    stage.tick(Verdict.PASS, after_s=1)
    assert len(late_entries(stage, deployment_id)) == 1  # it was in time
    with pytest.raises(RolloutError, match=r"labels were taken until 2026-11-22 02:30:18 UTC, too late"):
        bring(stage, deployment_id, 2)


def test_for_how_long_labels_are_taken_is_the_models_own(tmp_path: Path) -> None:
    stage = Stage(tmp_path, reopen_s={MODEL: 10.0})
    deployment_id = rolled_back(stage)
    stage.clock.at_s += 11
    with pytest.raises(RolloutError, match="too late"):
        bring(stage, deployment_id, 1)


def test_a_rollout_that_never_had_evidence_takes_no_labels(stage: Stage) -> None:
    deployment_id = stage.start()
    stage.controller.abort(MODEL, actor="ada")
    with pytest.raises(RolloutError, match="ended without evidence that labels could join"):
        bring(stage, deployment_id, 1)


def test_a_rollout_is_found_by_its_id_or_is_the_models_last(stage: Stage) -> None:
    first = promoted(stage)
    stage.clock.at_s += 10
    second = stage.start(3)
    assert stage.controller.find(MODEL).deployment_id == second
    assert stage.controller.find(MODEL, first).deployment_id == first
    for model, name in ((MODEL, "digits-9"), ("faces", first)):
        with pytest.raises(
            RolloutError, match=f"{model}: rollout: expected the id of one of its rollouts, got '{name}'"
        ):
            stage.controller.find(model, name)


def test_rows_that_were_changed_since_the_end_are_a_fault_and_no_verdict(stage: Stage) -> None:
    deployment_id = rolled_back(stage)
    path = stage.reports / deployment_id / "evidence" / segment_name("router-1", 2)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"r5", b"r6"))
    bring(stage, deployment_id, 1)
    stage.tick(Verdict.PASS)
    assert late_entries(stage, deployment_id) == []
    assert "router-1" in str(stage.controller.status(MODEL).fault)
    path.write_bytes(content)
    stage.tick(after_s=30)
    assert stage.controller.status(MODEL).fault is not None
    stage.tick(after_s=31)
    assert stage.controller.status(MODEL).fault is None
    assert [entry["reopening"]["labels"] for entry in late_entries(stage, deployment_id)] == [1]


@pytest.mark.parametrize("steps", range(3))
def test_a_crash_at_any_step_loses_no_label_and_reopens_once(stage: Stage, steps: int) -> None:
    deployment_id = rolled_back(stage)
    bring(stage, deployment_id, 1, 2, 3)
    stage.judgement = judged(Verdict.PASS)
    stage.traffic.fuse.left = steps
    with suppress(Crash):
        stage.tick()
    stage.traffic.fuse.left = None
    stage.restart()
    stage.tick()
    stage.tick()
    (entry,) = late_entries(stage, deployment_id)
    assert (entry["event"], entry["reopening"]["labels"]) == ("reopened", 3)
    exported = read_entries(stage.reports / deployment_id / "journal.jsonl")
    assert verify_chain(exported) == entry["hash"]
    assert "SHADOW ONLY" in (stage.reports / deployment_id / "deployment_verdict.md").read_text().splitlines()[-1]


def test_a_long_pass_takes_several_ticks_and_rests_afterwards(stage: Stage) -> None:
    deployment_id = rolled_back(stage)
    bring(stage, deployment_id, 11)
    stage.clock.cost_s = 0.1
    stage.tick(Verdict.HOLD)
    bring(stage, deployment_id, 5)
    assert late_entries(stage, deployment_id) == []
    stage.tick()
    assert late_entries(stage, deployment_id)[0]["reopening"]["joined"] == 1
    ended_s = stage.clock.at_s
    while stage.controller._late.busy() == []:
        stage.clock.at_s += 0.1
    assert stage.clock.at_s - ended_s > 9 * 0.3  # three segments, a tenth of a second each


# While it runs


def look(verdict: Verdict, lost: int, rows: int | None, **gates: Any) -> Look:
    found = Snapshot(
        evidence=Evidence({0: StageSums(labels=LabelCells(baseline_only=lost))}),
        heads=(head(), *([Head(chain=CHAIN, segments=1, rows=rows, sha256="ab" * 32)] if rows is not None else [])),
        accounting={},
    )
    judgement = judged(verdict, 0.9, gate(verdict, gate="compliance", **gates), gate(Verdict.FAIL, gate="error_rate"))
    return Look(readiness=Readiness.READY, why="", judgement=judgement, snapshot=found)


def by_losses(evidence: Evidence) -> Judgement:
    verdict = Verdict.FAIL if evidence.total().labels.baseline_only > 5 else Verdict.PASS
    return judged(verdict, 0.9, gate(verdict, gate="compliance"), gate(Verdict.FAIL, gate="error_rate"))


def test_a_gate_that_labels_turned_is_named_with_their_count_and_chain_head() -> None:
    said = turned_by_labels(look(Verdict.PASS, 2, 2), look(Verdict.FAIL, 9, 9), by_losses)
    assert said == (
        "7 labels joined since the last look (9 in all, chain head abababababab) turned compliance from PASS to FAIL"
    )
    assert turned_by_labels(look(Verdict.HOLD, 0, None), look(Verdict.FAIL, 9, 9), by_losses).startswith("9 labels")


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, look(Verdict.FAIL, 9, 9)),
        (look(Verdict.FAIL, 8, 8), look(Verdict.FAIL, 9, 9)),  # it failed before
        (look(Verdict.PASS, 8, 8), look(Verdict.FAIL, 9, 9)),  # it would fail without those labels
        (look(Verdict.PASS, 2, 2), look(Verdict.HOLD, 9, 9)),
        (look(Verdict.PASS, 2, 9), look(Verdict.FAIL, 9, 9)),  # no label joined
    ],
)
def test_no_gate_is_said_to_be_turned_by_labels_that_did_not(before: Look | None, now: Look) -> None:
    assert turned_by_labels(before, now, by_losses) == ""


def test_labels_of_earlier_stages_reach_the_next_look_and_the_entry_names_them(tmp_path: Path) -> None:
    stage = Stage(tmp_path, judge=judge)
    facts = {"name": "labelled", "min_requests": 0, "bake_s": 0.0, "budget_s": 3600.0, "on_budget": "roll_back"}
    deployment_id = stage.controller.start(
        MODEL,
        CANDIDATE,
        Policy.model_validate({**facts, "gates": {"compliance": {"mode": "binding"}}}),
        stages=STAGES,
        tolerance=0.01,
        actor="ada",
    )
    both = LabelCells(both=4000)
    for _ in range(3):
        stage.traffic.snapshots[deployment_id] = with_cells(both, 4000, 1)
        stage.tick()
    status = stage.controller.status(MODEL).rollout
    assert (status.position.state, status.position.stage) == (State.CANARY, 1)
    stage.tick()
    stage.traffic.snapshots[deployment_id] = with_cells(replace(both, baseline_only=2000), 6000, 2)
    stage.tick()
    entry = stage.journal.entries(deployment_id)[-1]
    assert (entry["event"], entry["state"]) == ("fail", "rolled_back")
    assert "2000 labels joined since the last look (6000 in all, chain head " in entry["reason"]
    assert entry["reason"].endswith("turned compliance from HOLD to FAIL")


def with_cells(labels: LabelCells, rows: int, segments: int) -> Snapshot:
    """Labelled pairs, all of the shadow stage."""
    joined = Head(chain=CHAIN, segments=segments, rows=rows, sha256=f"{segments:064x}")
    evidence = Evidence({0: replace(snapshot().evidence.stage(0), labels=labels)})
    return replace(snapshot(), evidence=evidence, heads=(joined, head()))


# What an auditor finds


def forged(entries: Sequence[Entry], **changes: Any) -> list[str]:
    last = {**entries[-1], "reopening": {**entries[-1]["reopening"], **changes}}
    return list(check_reopenings([*entries[:-1], last], STAGES))


def test_a_reopening_that_does_not_follow_from_its_judgement_and_labels_is_found(stage: Stage) -> None:
    deployment_id = promoted(stage)
    bring(stage, deployment_id, 1, 2)
    stage.tick(Verdict.FAIL)
    entries = stage.journal.entries(deployment_id)
    number = entries[-1]["seq"]
    assert forged(entries) == []
    for name, value, true in (("now", "GO", "REJECT"), ("was", "REJECT", "GO"), ("labels", 3, 2), ("joined", 3, 2)):
        said = f"journal: entry {number}: reopening: {name}: expected {true}, the entry says {value}"
        assert forged(entries, **{name: value}) == [said]
    (said,) = check_reopenings([*entries[:-1], {**entries[-1], "event": "labels"}], STAGES)
    assert said == f"journal: entry {number}: event: the verdict was GO and is REJECT"
    (said,) = check_reopenings([*entries[:-1], {**entries[-1], "heads": entries[-1]["heads"][1:]}], STAGES)
    assert "heads: expected one of the chain labels" in said
