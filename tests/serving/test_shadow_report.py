"""``understudy shadow report`` on evidence that a real recorder has written."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner, Result

from rollout.errors import RolloutError
from serving.cli.shadow_plots import DPI, HEIGHT_IN, WIDTH_IN
from serving.cli.shadow_report import report
from shadow.errors import EvidenceError
from shadow.labels import Label, LabelJoin
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.store import segment_name
from tests.shadow.builders import DEPLOYMENT, LIMITS, bad
from tests.shadow.recorded import BEGAN_US, batch, record

app = typer.Typer()
app.command()(report)

SIZES = (1, 2, 4, 8)
EXPECTED = {
    "deployment_id": str,
    "comparator": str,
    "output": str,
    "tolerance": float,
    "memory_limit_bytes": int,
    "chains": int,
    "segments": int,
    "rows": int,
    "first_at": str,
    "last_at": str,
    "requests": {"pairs": int, "candidate_only_failed": int, "baseline_only_failed": int},
    "mirror": dict.fromkeys(("sampled", "mirrored", "pending", "shed", "too_large", "timed_out", "failed"), int),
    "items": int,
    "agreement": float,
    "over_tolerance": int,
    "findings": [
        {
            "finding": str,
            "candidate": int,
            "requests": int,
            "beside_twin": int,
            "twin": int,
            "twin_requests": int,
            "established": bool,
        }
    ],
    "delta": {
        side: {
            "items": int,
            "p50": float,
            "p90": float,
            "p99": float,
            "max": float,
            "mean": float,
            "over_tolerance": int,
        }
        for side in ("candidate", "twin")
    }
    | {"beyond_noise": {"floor": float, "items": int, "share": float}},
    "batches": {"all": int, "answered_by_candidate": int},
    "service": [
        {"from_rows": int, "to_rows": int, "clock": str, "ratio": {"n": int, "p50": float}}
        | {
            side: {"n": int, "p50_ms": float, "p95_ms": float, "mean_ms": float, "max_ms": float}
            for side in ("baseline", "candidate", "twin")
        }
    ],
    "memory": [
        {"from_rows": int, "to_rows": int, "ratio": {"n": int, "p50": float}}
        | {
            side: {"n": int, "p50_bytes": float, "p95_bytes": float, "mean_bytes": float, "max_bytes": float}
            for side in ("baseline", "candidate", "twin")
        }
    ],
    "ratios": {
        "wall": {"n": int, "p50": float},
        "cpu": {"n": int, "p50": float},
        "gpu": type(None),
        "memory": {"n": int, "p50": float},
    },
    "trend": {
        side: {
            "readings": int,
            "blocks": int,
            "bytes_per_1000_batches": float,
            "standard_error": float,
            "rises": int,
            "falls": int,
            "log_e_rising": (float, type(None)),
        }
        for side in ("candidate", "twin")
    },
    "latency": [{"stage": int, "side": str, "n": int, "p50_ms": float, "p95_ms": float, "p99_ms": float}],
    "labels": {
        "groups": [
            {
                "label": int,
                "items": int,
                "agreement": float,
                "low": float,
                "high": float,
                "over_tolerance": int,
                "max_delta": float,
            }
        ],
        "others": type(None),
    },
    "slices": {
        "groups": [
            {
                "slice": str,
                "items": int,
                "agreement": float,
                "low": float,
                "high": float,
                "over_tolerance": int,
                "max_delta": float,
            }
        ],
        "others": type(None),
    },
    "accuracy": {
        "groups": [
            {"label": int, "items": int}
            | {side: {"accuracy": float, "low": float, "high": float} for side in ("baseline", "candidate")}
        ],
        "others": type(None),
    },
    "worst": [
        {
            "max_delta": float,
            "twin_max_delta": float,
            "request_id": str,
            "item": int,
            "stage": int,
            "at_unix_us": int,
            "slice": str,
            "baseline_top1": int,
            "candidate_top1": int,
            "places": [int],
            "baseline_scores": [float],
            "candidate_scores": [float],
            "file": str,
            "row": int,
        }
    ],
    "drawings": [str],
}


def rehearsed(number: int) -> Pair:
    """A candidate 20 % slower than its twin that leaks 2 bytes a batch; every 50th batch, at the gate, it is wrong."""
    size, wrong = SIZES[number % len(SIZES)], number % 50 == 49
    times_ms = tuple((1.0 + 0.1 * (number % 7)) * size * factor for factor in (1.0, 1.5, 1.25))
    return batch(
        number,
        size,
        label=number % 3,
        answer=(number + 1) % 3 if wrong else None,
        delta=0.75 if wrong else 1e-5,
        noise=1e-6,
        times_ms=times_ms,
        memory=(100 * size, 200 * size + 2 * number, 150 * size),
        slice_name="gate" if number % 5 == 4 else "lobby",
    )


def odd_ones() -> list[Pair]:
    """A failure, a batch that the candidate answered, and an answer that is not a number."""
    nowhere = np.full((1, 3), np.nan, np.float32)
    broken = Outcome(answers=(Answer(status=Status.OK, outputs={"scores": nowhere}),))
    return [
        replace(batch(200), candidate=Outcome(answers=(bad(),))),
        batch(201, primary=Arm.CANDIDATE, stage=1),
        replace(batch(202, noise=0.0, memory=(100, 200, 150)), candidate=broken),
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rollout's folder, among others."""
    reports = tmp_path_factory.mktemp("service") / "reports"
    folder = reports / DEPLOYMENT
    some = [rehearsed(number) for number in range(200)]
    record(folder / "evidence", some[:120], [*some[120:], *odd_ones()])
    (folder / "journal.jsonl").touch()
    labels = [Label(request_id=f"{number}-0", label=number % 3) for number in range(0, 200, 7)]
    with LabelJoin(folder / "evidence", DEPLOYMENT, LIMITS, within_s=1e6, clock=lambda: BEGAN_US * 1e-6) as join:
        join.add(labels)
        join.advance()
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where matplotlib is not installed: nothing is drawn."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def figures(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = orjson.loads(result.stdout)
    return found


def check_form(value: Any, form: Any, path: str = "") -> None:
    """All keys are there and no others; every value has its type; a list's entries all have one form."""
    if isinstance(form, dict):
        assert isinstance(value, dict), path
        assert value.keys() == form.keys(), path
        for key, part in form.items():
            check_form(value[key], part, f"{path}.{key}")
    elif isinstance(form, list):
        assert isinstance(value, list), path
        assert value, path
        for at, part in enumerate(value):
            check_form(part, form[0], f"{path}[{at}]")
    else:
        assert isinstance(value, (int, float) if form is float else form), f"{path}: {value!r}"


def without_odd_ones(value: dict[str, Any]) -> dict[str, Any]:
    """None is a value of its own where a side did not run: those entries are looked at elsewhere."""
    worst = [case for case in value["worst"] if case["twin_max_delta"] is not None and case["max_delta"] < 1]
    return {**value, "worst": worst}


@pytest.fixture(scope="module")
def found(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return figures(finished, "--out", tmp_path_factory.mktemp("drawings"))


def test_the_json_has_its_documented_form(found: dict[str, Any]) -> None:
    check_form(without_odd_ones(found), EXPECTED)


def test_the_summary_counts_what_was_recorded(found: dict[str, Any]) -> None:
    items = sum(SIZES) * 50 + 2
    assert (found["deployment_id"], found["chains"], found["segments"]) == (DEPLOYMENT, 2, 3)
    assert found["rows"] == found["mirror"]["sampled"] == items + 1
    assert (found["mirror"]["mirrored"], found["mirror"]["failed"]) == (items, 1)
    assert found["items"] == items
    assert found["requests"] == {"pairs": items + 1, "candidate_only_failed": 1, "baseline_only_failed": 0}
    wrong = [rehearsed(number) for number in range(49, 200, 50)]
    disagree = sum(len(one.rows) for one in wrong) + 1  # and the one that is not a number
    assert found["agreement"] == pytest.approx(1 - disagree / items)
    assert found["over_tolerance"] == disagree
    assert found["batches"] == {"all": 203, "answered_by_candidate": 1}


def test_one_finding_is_shown_but_not_established(found: dict[str, Any]) -> None:
    (finding,) = found["findings"]
    assert (finding["finding"], finding["candidate"], finding["twin"]) == ("not a number", 1, 0)
    assert not finding["established"]


def test_the_candidates_differences_stand_beside_those_of_its_twin(found: dict[str, Any]) -> None:
    deltas = found["delta"]
    assert deltas["candidate"]["p50"] == pytest.approx(1e-5, rel=0.35)
    assert deltas["candidate"]["max"] == 100
    assert deltas["twin"]["max"] == pytest.approx(1e-6, rel=0.1)
    assert deltas["twin"]["over_tolerance"] == 0
    assert deltas["beyond_noise"]["items"] == found["items"] - 1  # all but the one that the candidate answered


def test_service_time_is_compared_with_the_twin_at_each_batch_size_and_by_each_clock(found: dict[str, Any]) -> None:
    assert {(entry["from_rows"], entry["clock"]) for entry in found["service"]} == {
        (size, clock) for size in SIZES for clock in ("wall", "cpu")
    }
    for entry in found["service"]:
        assert entry["ratio"]["p50"] == pytest.approx(1.2, rel=0.006)
        assert entry["baseline"]["p50_ms"] < entry["twin"]["p50_ms"] < entry["candidate"]["p50_ms"]
    slowest = next(entry for entry in found["service"] if (entry["from_rows"], entry["clock"]) == (8, "wall"))
    assert slowest["candidate"]["n"] == 50
    assert slowest["candidate"]["max_ms"] == pytest.approx(1.6 * 8 * 1.5)
    assert found["ratios"]["cpu"]["n"] == 200


def test_a_leak_shows_in_the_candidates_trend_and_not_in_the_twins(found: dict[str, Any]) -> None:
    leak, steady = found["trend"]["candidate"], found["trend"]["twin"]
    assert leak["bytes_per_1000_batches"] == pytest.approx(2000, rel=0.02)
    assert leak["standard_error"] < 20
    assert leak["rises"] > 40
    assert leak["falls"] == 0
    assert leak["log_e_rising"] > 20
    assert steady["bytes_per_1000_batches"] == pytest.approx(0, abs=1e-6)
    assert (steady["rises"], steady["falls"], steady["log_e_rising"]) == (0, 0, None)


def test_agreement_is_lower_at_the_gate_and_the_rarest_come_last(found: dict[str, Any]) -> None:
    slices = {group["slice"]: group for group in found["slices"]["groups"]}
    assert slices["gate"]["agreement"] == pytest.approx(130 / 150)
    assert slices["lobby"]["agreement"] == 1
    assert slices["gate"]["high"] < slices["lobby"]["low"]
    for name in ("labels", "slices", "accuracy"):
        items = [group["items"] for group in found[name]["groups"]]
        assert items == sorted(items, reverse=True)


def test_the_worst_items_come_first_with_the_file_and_the_row(found: dict[str, Any], finished: Path) -> None:
    deltas = [case["max_delta"] for case in found["worst"]]
    assert len(deltas) == 10
    assert deltas == sorted(deltas, reverse=True)
    assert found["worst"][0]["request_id"] == "202-0"
    assert all((finished / "evidence" / case["file"]).is_file() for case in found["worst"])
    assert found["worst"][1]["slice"] == "gate"


def test_the_pictures_are_images_of_their_size(found: dict[str, Any]) -> None:
    sizes = {}
    for path in map(Path, found["drawings"]):
        with Image.open(path) as image:
            image.verify()
            assert image.format == "PNG"
            sizes[path.name] = image.size
    assert list(sizes) == ["delta.png", "service.png", "memory.png", "agreement.png"]
    wide = round(WIDTH_IN * DPI)
    assert {sizes[name] for name in ("delta.png", "service.png", "memory.png")} == {(wide, round(HEIGHT_IN * DPI))}
    assert sizes["agreement.png"][0] == wide


def test_the_text_says_what_the_json_says(finished: Path, tmp_path: Path) -> None:
    result = run(finished, "--out", tmp_path, "--worst", 2)
    assert result.exit_code == 0, result.output
    for part in (
        f"{DEPLOYMENT}: ",
        "not a number",
        "not established",
        "beyond the noise floor",
        "service time of a batch",
        "candidate: memory per 1000 batches +2 ",
        "accuracy by true label",
        "request '202-0' item 0",
        "drawn: delta.png, service.png, memory.png, agreement.png",
    ):
        assert part in result.stdout, part
    assert "  3. max" not in result.stdout


def test_a_rollout_is_found_by_its_id_and_drawn_beside_its_evidence(finished: Path) -> None:
    result = run(DEPLOYMENT, "--reports", finished.parent)
    assert result.exit_code == 0, result.output
    assert (finished / "distributions" / "delta.png").is_file()


@pytest.mark.usefixtures("undrawn")
def test_the_folder_of_the_evidence_itself_will_do(finished: Path) -> None:
    value = figures(finished / "evidence", "--worst", 0)
    assert (value["deployment_id"], value["worst"]) == (DEPLOYMENT, [])


@pytest.mark.usefixtures("undrawn")
def test_without_matplotlib_the_text_is_printed_and_one_line_says_what_is_missing(
    finished: Path, tmp_path: Path
) -> None:
    result = run(finished, "--out", tmp_path / "drawings")
    assert result.exit_code == 0
    assert "top-1 agreement" in result.stdout
    assert result.stderr == "understudy: nothing is drawn: it needs matplotlib ('pip install matplotlib')\n"
    assert not (tmp_path / "drawings").exists()
    assert figures(finished, "--out", tmp_path / "drawings")["drawings"] == []


def test_evidence_of_one_failed_request_is_enough_for_a_report(tmp_path: Path) -> None:
    record(tmp_path, [replace(batch(0), candidate=Outcome(answers=(bad(),)))])
    value = figures(tmp_path)
    assert (value["items"], value["agreement"], value["delta"]["candidate"]) == (0, None, None)
    assert value["requests"]["candidate_only_failed"] == 1
    assert [Path(path).name for path in value["drawings"]] == ["service.png", "memory.png"]
    assert run(tmp_path).exit_code == 0


def test_without_a_twin_the_report_says_that_there_is_no_noise_floor(tmp_path: Path) -> None:
    record(tmp_path, [batch(number, 2, label=number % 3, delta=1e-6) for number in range(9)])
    value = figures(tmp_path)
    assert value["delta"]["twin"] is None
    assert value["delta"]["beyond_noise"] is None
    assert {entry["ratio"] for entry in value["service"]} == {None}
    assert len(value["drawings"]) == 4
    assert "there is no noise floor" in run(tmp_path).stdout


@pytest.mark.usefixtures("undrawn")
def test_a_request_id_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    record(tmp_path, [replace(batch(0, delta=0.25), request_ids=("\x1b[2J[bold]",))])
    assert "'\\x1b[2J[bold]'" in run(tmp_path).stdout


def test_a_name_that_is_no_folder_and_no_rollout_is_refused(tmp_path: Path) -> None:
    result = run("nobody", "--reports", tmp_path)
    assert isinstance(result.exception, RolloutError)
    assert result.stdout == ""


def test_a_folder_without_evidence_and_damaged_evidence_are_refused_in_one_line(tmp_path: Path) -> None:
    record(tmp_path / "damaged", [batch(0)], [batch(1)])
    path = tmp_path / "damaged" / segment_name("router", 1)
    path.write_bytes(path.read_bytes()[:-7])
    for folder, said in ((tmp_path, "no evidence"), (tmp_path / "damaged", path.name)):
        result = run(folder)
        assert isinstance(result.exception, EvidenceError)
        assert said in str(result.exception)
        assert "\n" not in str(result.exception)
