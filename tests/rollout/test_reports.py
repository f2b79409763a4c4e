import shutil
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.entries import read_entries
from rollout.errors import JournalError
from rollout.folder import read_facts
from rollout.judgement import Verdict
from rollout.machine import Event, State
from rollout.outcome import Outcome, conclude, shorten, verdict_line
from rollout.reports import deployment_report, load_report, write_reports
from rollout.reports.incident import error_messages
from rollout.reports.markdown import table
from rollout.reports.report import NO_POSTERIOR, Report
from shadow.comparators import Measure
from shadow.evidence import Evidence, MeasureSums, StageSums
from shadow.rows import SCHEMA
from shadow.store import SegmentWriter
from tests.rollout.stage import MODEL, Stage, gate, judged
from tests.shadow.builders import header

FILES = ("deployment_verdict.md", "report.json", "release/release_matrix.md", "metrics/slo_report.json")


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def rolled_back(stage: Stage, weight: int = 20) -> Path:
    folder = stage.reports / stage.reach(weight)
    write_errors(folder, ["CUDA out of memory"] * 3 + ["bad shape | [3, 8]\nsecond line"] + [None] * 6)
    stage.judgement = judged(
        Verdict.FAIL,
        0.999,
        gate(Verdict.HOLD, gate="latency", requirement="R1", log_e_harm=0.4, reason="12 more batches"),
        gate(Verdict.FAIL, gate="score_delta", binding=False, reason="42 of 100 over 0.001"),
        gate(Verdict.FAIL),
    )
    stage.tick(after_s=42)
    return folder


def write_errors(folder: Path, errors: list[str | None]) -> None:
    (folder / "evidence").mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table({"candidate_error": pa.array(errors)}), folder / "evidence" / "r-000001.parquet")


def promoted(stage: Stage) -> Path:
    folder = stage.reports / stage.reach(100)
    stage.judgement = judged(Verdict.PASS, 0.974)
    stage.tick()
    return folder


# What a rollout comes to


def test_a_promoted_candidate_is_go_with_the_confidence_of_its_last_judgement(stage: Stage) -> None:
    report = load_report(promoted(stage))
    assert report.conclusion.line == "Execution Verdict: GO — confidence = 0.97"


@pytest.mark.parametrize(
    ("state", "event", "outcome"),
    [
        (State.PROMOTED, Event.PASS_LAST, Outcome.GO),
        (State.PROMOTED, Event.PROMOTE_LAST, Outcome.GO),
        (State.ROLLED_BACK, Event.FAIL, Outcome.REJECT),
        (State.ROLLED_BACK, Event.EXHAUSTED, Outcome.PAUSE_AND_FIX),
        (State.ROLLED_BACK, Event.LOAD_FAILED, Outcome.PAUSE_AND_FIX),
        (State.PAUSED, Event.STALLED, Outcome.PAUSE_AND_FIX),
        (State.ROLLED_BACK, Event.ROLL_BACK, Outcome.SHADOW_ONLY),
        (State.ABORTED, Event.ABORT, Outcome.SHADOW_ONLY),
        (State.SUPERSEDED, Event.SUPERSEDE, Outcome.SHADOW_ONLY),
        (State.LOADING, "start", Outcome.SHADOW_ONLY),
        (State.SHADOW, Event.LOADED, Outcome.SHADOW_ONLY),
        (State.CANARY, Event.PASS, Outcome.SHADOW_ONLY),
    ],
)
def test_the_outcome_follows_from_how_the_rollout_ended(state: State, event: str, outcome: Outcome) -> None:
    assert conclude(state, event, "because", 0.5).outcome is outcome


@given(st.floats(0, 0.999))
def test_a_printed_confidence_never_claims_more_than_was_proved(confidence: float) -> None:
    printed = float(verdict_line(Outcome.GO, confidence).rsplit(" ", 1)[1])
    assert confidence - 0.01 < printed <= confidence + 1e-9
    assert printed < 1


@given(st.text())
def test_a_rationale_has_at_most_25_words(text: str) -> None:
    shortened = shorten(text).split()
    assert len([word for word in shortened if word != "…"]) <= 25


# The report


def test_the_last_line_of_the_report_is_the_verdict(stage: Stage) -> None:
    folder = rolled_back(stage)
    lines = (folder / "deployment_verdict.md").read_text().splitlines()
    assert lines[-1] == "Execution Verdict: REJECT — confidence = 0.99"
    assert lines[0] == "# Deployment verdict: digits version 2 against baseline 1"


def test_anomalies_come_before_figures(stage: Stage) -> None:
    folder = rolled_back(stage)
    text = (folder / "deployment_verdict.md").read_text()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        "Anomalies",
        "Incident",
        "Summary",
        "Service level objectives",
        "Release matrix",
        "Stages",
        "Mirror accounting (items)",
        "Artifacts",
        "Notes",
        "Verdict",
    ]
    assert NO_POSTERIOR in text
    assert "359 distinct test images" in text
    assert "| candidate | backend | onnxruntime |" in text


def test_a_rollback_is_an_incident_with_the_gate_the_numbers_and_the_errors_that_caused_it(stage: Stage) -> None:
    report = load_report(rolled_back(stage))
    incident = report.incident
    assert incident is not None
    assert (incident.trigger, incident.weight, incident.after_s) == ("fail", 20, 42.0)
    assert incident.root_cause == "error_rate says FAIL"
    assert incident.gates == (
        "error_rate (R2): 7 % (7 of 100); limit < 1 % to advance, > 1.5 % rolls back; error_rate says FAIL",
    )
    assert incident.errors == ("3 × CUDA out of memory", "1 × bad shape | [3, 8]\nsecond line")
    assert incident.evidence == report.matrix[0].evidence
    assert "Advisory gate score_delta fails: 42 of 100 over 0.001" in report.anomalies


def test_harm_that_only_all_gates_together_prove_names_those_that_weighed_most(stage: Stage) -> None:
    folder = stage.reports / stage.reach(5)
    stage.judgement = judged(
        Verdict.FAIL,
        0.96,
        gate(Verdict.HOLD, gate="latency", log_e_harm=3.0),
        gate(Verdict.HOLD, gate="memory", log_e_harm=-1.0),
        gate(Verdict.HOLD, log_e_harm=3.4),
    )
    stage.tick()
    incident = load_report(folder).incident
    assert incident is not None
    assert [line.split(" ")[0] for line in incident.gates] == ["error_rate", "latency"]


def test_a_candidate_that_was_never_judged_still_gets_its_report(stage: Stage) -> None:
    folder = stage.reports / stage.start()
    stage.controller.abort(MODEL, actor="ada", reason="wrong model")
    report = load_report(folder)
    assert (report.slos, report.matrix, report.incident) == ((), (), None)
    assert report.conclusion.line == "Execution Verdict: SHADOW ONLY — confidence = 0.00"
    assert "ada: abort at 2026-11-21T02:30:15+00:00: wrong model" in report.anomalies
    assert "Nothing was judged." in (folder / "deployment_verdict.md").read_text()


def test_a_running_rollout_can_be_reported_at_any_time(stage: Stage) -> None:
    folder = stage.reports / stage.reach(5)
    report = write_reports(folder)
    assert "is still running (canary, 5 %)" in report.summary
    assert report.conclusion.outcome is Outcome.SHADOW_ONLY


def test_the_summary_gives_the_figures_and_stays_short(stage: Stage) -> None:
    report = load_report(rolled_back(stage))
    assert "The candidate failed 0 of 10 requests; 9 of 10 compared items have the same top-1 answer" in report.summary
    assert len(report.summary.split()) <= 200


def test_the_summary_gives_measures_where_the_comparator_names_no_answers(stage: Stage) -> None:
    folder = rolled_back(stage)
    measures = (Measure("cosine_distance", high=2.0, agrees="low"), Measure("neighbour_overlap"))
    values = {"cosine_distance": [0.5, 0.25], "neighbour_overlap": [np.nan, np.nan]}
    found = {each.name: MeasureSums.of(np.array(values[each.name]), each) for each in measures}
    evidence = Evidence({0: StageSums(items=2, measures={name: each for name, each in found.items() if each.n})})
    entries = [{**entry, "evidence": evidence.to_json()} for entry in read_entries(folder / "journal.jsonl")]
    embedding = header(comparator="embedding", output="vector", measures=measures)
    summary = deployment_report(entries, read_facts(folder), {}, embedding).summary
    assert "2 items were compared by embedding (means: cosine_distance 0.375)" in summary
    assert "top-1" not in summary


def test_a_summary_tells_by_the_evidence_itself_what_was_compared(stage: Stage) -> None:
    folder = stage.reports / stage.reach(5)
    SegmentWriter(folder / "evidence", header(comparator="segmentation")).write(SCHEMA.empty_table())
    assert "10 items were compared by segmentation;" in load_report(folder).summary


def test_every_metric_carries_evidence_that_is_found_in_the_journal(stage: Stage) -> None:
    folder = rolled_back(stage)
    report = load_report(folder)
    references = {row.evidence for row in report.slos} | {row.evidence for row in report.matrix}
    assert len(references) == 1
    file, run_id = references.pop().split("#")
    assert f'"run_id":"{run_id}"' in (stage.reports / file).read_text()


def test_an_objective_says_target_observed_interval_status_and_trend(stage: Stage) -> None:
    folder = stage.reports / stage.reach(5)
    for estimate in (0.02, 0.01):
        stage.judgement = judged(Verdict.HOLD, 0.5, gate(Verdict.HOLD, estimate=estimate, interval=(0.001, 0.02)))
        stage.tick(after_s=61)
    row = load_report(folder).slos[0]
    assert (row.target, row.observed, row.status) == (
        "< 1 % to advance, > 1.5 % rolls back",
        "7 % (7 of 100)",
        "undecided",
    )
    assert row.interval == (0.001, 0.02)
    assert row.trend == "falling (0.07 → 0.01)"


def test_the_timeline_has_every_move_and_how_long_each_position_was_held(stage: Stage) -> None:
    report = load_report(rolled_back(stage))
    assert [(move.event, move.weight) for move in report.timeline] == [
        ("start", 0),
        ("loaded", 0),
        ("pass", 0),
        ("loaded", 5),
        ("pass", 20),
        ("fail", 0),
    ]
    assert report.timeline[-1].held_s == 42.0


def test_restarts_and_broken_evidence_are_anomalies(stage: Stage) -> None:
    folder = stage.reports / stage.reach(5)
    stage.tick(Verdict.ERROR)
    stage.restart()
    anomalies = load_report(folder).anomalies
    assert "Evidence or gates were broken at 1 looks; last: error_rate says ERROR" in anomalies
    assert any(line.startswith("The controller was restarted 1 times") for line in anomalies)
    assert "Of 10 sampled items not compared: 1 shed" in anomalies


def test_a_report_can_be_made_again_from_the_folder_alone(stage: Stage, tmp_path: Path) -> None:
    folder = rolled_back(stage)
    before = {name: (folder / name).read_bytes() for name in FILES}
    stage.journal.close()
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    for path in (tmp_path / "understudy.db", *(elsewhere / name for name in FILES)):
        path.unlink()
    write_reports(elsewhere)
    assert {name: (elsewhere / name).read_bytes() for name in FILES} == before


def test_the_json_files_say_what_the_report_says(stage: Stage) -> None:
    folder = rolled_back(stage)
    report: Report = load_report(folder)
    written = orjson.loads((folder / "report.json").read_bytes())
    assert written == orjson.loads(orjson.dumps(report.to_json()))
    assert written["verdict"] == report.conclusion.line
    slos = orjson.loads((folder / "metrics/slo_report.json").read_bytes())
    assert slos["slos"] == written["slos"]


def test_the_release_matrix_is_a_document_of_its_own(stage: Stage) -> None:
    folder = rolled_back(stage)
    lines = (folder / "release/release_matrix.md").read_text().splitlines()
    assert lines[2] == "| axis | threshold | finding | CI | verified by | evidence | decision |"
    assert lines[4].startswith(
        "| latency (R1) | < 1 % to advance, > 1.5 % rolls back | 7 % (7 of 100) | [0.03, 0.14] |"
    )
    assert lines[-1] == "Execution Verdict: REJECT — confidence = 0.99"


def test_a_forged_journal_makes_no_report(stage: Stage) -> None:
    folder = rolled_back(stage)
    path = folder / "journal.jsonl"
    path.write_text(path.read_text().replace('"verdict":"FAIL"', '"verdict":"PASS"'))
    with pytest.raises(JournalError, match="its content does not match its hash"):
        load_report(folder)


def test_a_folder_without_a_rollout_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"journal\.jsonl: expected a journal"):
        load_report(tmp_path)


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_no_text_of_a_model_or_a_person_breaks_a_table(cells: list[str]) -> None:
    header = [str(number) for number in range(len(cells))]
    lines = table(header, [cells]).split("\n")
    assert len(lines) == 3
    assert lines[2].replace("\\|", "").count("|") == len(cells) + 1


def test_evidence_without_errors_or_without_the_column_gives_no_messages(tmp_path: Path) -> None:
    write_errors(tmp_path, [None, None])
    parquet.write_table(pa.table({"label": [1, 2]}), tmp_path / "evidence" / "labels-000001.parquet")
    assert error_messages(tmp_path / "evidence") == {}
    assert error_messages(tmp_path / "nowhere") == {}
