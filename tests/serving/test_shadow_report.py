"""``understudy shadow report`` on evidence that a real recorder has written."""

import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import orjson
import pytest
import typer
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from typer.testing import CliRunner, Result

from models.tensor import Array
from rollout.errors import RolloutError
from serving.cli.shadow_figures import document
from serving.cli.shadow_plots import DPI, DRAWINGS, HEIGHT_IN, STYLE, WIDTH_IN
from serving.cli.shadow_report import report
from serving.errors import ServingError
from shadow.accounting import Accounting
from shadow.checkpoint import Retention, compact
from shadow.distributions import Survey, survey
from shadow.errors import EvidenceError
from shadow.exemplars import Exemplars, ExemplarSettings
from shadow.labels import Label, LabelJoin
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.recorder import Recorder
from shadow.rows import SCHEMA
from shadow.store import SegmentWriter, chains, segment_name, walk_chain
from tests.shadow.builders import DEPLOYMENT, LIMITS, bad, header
from tests.shadow.recorded import BEGAN_US, batch, record

app = typer.Typer()
app.command()(report)

SIZES = (1, 2, 4, 8)
EXPECTED = {
    "deployment_id": str,
    "comparator": str,
    "difference": str,
    "output": str,
    "tolerance": float,
    "memory_limit_bytes": int,
    "chains": int,
    "segments": int,
    "rows": int,
    "checkpoints": type(None),
    "rollout": type(None),
    "exemplars": type(None),
    "first_at": str,
    "last_at": str,
    "requests": {"pairs": int, "candidate_only_failed": int, "baseline_only_failed": int},
    "mirror": dict.fromkeys(("sampled", "mirrored", "pending", "shed", "too_large", "timed_out", "failed"), int),
    "items": int,
    "agreement": float,
    "over_tolerance": int,
    "measures": [
        {"measure": str, "low": float, "high": float, "agrees": str, "items": int, "mean": float, "bound": float}
    ],
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
    "all_batches": [
        {"from_rows": int, "to_rows": int}
        | {
            side: {
                "batches": int,
                "wall_mean_ms": float,
                "cpu_mean_ms": float,
                "gpu_mean_ms": type(None),
                "memory_readings": int,
                "memory_mean_bytes": float,
                "memory_max_bytes": int,
            }
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
                "measures": {
                    name: {"mean": float, "bound": float} for name in ("top_k_agreement", "kl_divergence", "top1_delta")
                },
            }
        ],
        "others": type(None),
    },
    "accuracy": {
        "all": {"items": int}
        | {side: {"accuracy": float, "low": float, "high": float} for side in ("baseline", "candidate")},
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
    assert list(sizes) == ["delta.png", "measures.png", "service.png", "memory.png", "agreement.png"]
    wide = round(WIDTH_IN * DPI)
    assert {sizes[name] for name in ("delta.png", "service.png", "memory.png")} == {(wide, round(HEIGHT_IN * DPI))}
    assert sizes["agreement.png"][0] == sizes["measures.png"][0] == wide


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
        "drawn: delta.png, measures.png, service.png, memory.png, agreement.png",
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
    assert len(value["drawings"]) == 5
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


# Checkpoints


def compacted(folder: Path) -> None:
    """What ``understudy evidence compact --keep-segments 1`` does."""
    evidence = folder / "evidence"
    heads = [[head for _, head in walk_chain(evidence, chain)][-1] for chain in chains(evidence)]
    compact(evidence, heads, Retention(labels_within_s=0), now_unix_us=2**51)


ROWS_ALONE = {"first_at", "last_at", "batches", "service", "memory", "ratios", "trend", "labels", "worst", "drawings"}


@pytest.mark.usefixtures("undrawn")
def test_what_follows_from_sums_is_the_same_after_rows_became_checkpoints(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "evidence", tmp_path / "evidence")
    before = figures(tmp_path)
    compacted(tmp_path)
    after = figures(tmp_path)
    assert after["checkpoints"] == {"chains": 1, "segments": 1, "rows": 450, "items": 450, "labelled_items": 0}
    differ = {name for name in before if before[name] != after[name]}
    assert differ <= ROWS_ALONE | {"checkpoints", "findings", "slices"}
    assert {"items", "agreement", "delta", "measures", "all_batches", "latency", "accuracy", "mirror"} <= {
        name for name in before if before[name] == after[name]
    }
    for (old,), (new,) in [(before["findings"], after["findings"])]:
        assert {**old, "beside_twin": None} == new
    for old, new in zip(before["slices"]["groups"], after["slices"]["groups"], strict=True):
        same = ("slice", "items", "agreement", "low", "high", "over_tolerance")
        assert [old[name] for name in same] == [new[name] for name in same]
    assert {group["slice"]: group["max_delta"] is None for group in after["slices"]["groups"]} == {
        "lobby": True,
        "gate": True,
        "": False,
    }
    assert sum(group["items"] for group in after["labels"]["groups"]) == after["items"] - 450


@pytest.mark.usefixtures("undrawn")
def test_the_text_says_which_part_is_from_checkpoints_and_what_is_missing(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "evidence", tmp_path / "evidence")
    compacted(tmp_path)
    result = run(tmp_path)
    assert result.exit_code == 0, result.output
    for part in (
        "753 rows in 3 segments",
        "checkpoints stand for 450 of the rows (450 items, 0 of them labelled; 1 segments)",
        "p50 / p95 (of the rows that remain)",
        "all batches, those of checkpoints too",
        "the worst items (of the rows that remain)",
    ):
        assert part in result.stdout, part


# Comparators without top-1 answers


def with_output(one: Pair, output: str, values: Sequence[Array]) -> Pair:
    """The same batch, with these outputs of the three sides for each of its items."""
    sides = [
        replace(side, answers=(Answer(status=Status.OK, outputs={output: value[None]}),) * len(one.rows))
        for side, value in zip((one.baseline, one.candidate, one.twin), values, strict=True)
        if side is not None
    ]
    return replace(one, baseline=sides[0], candidate=sides[1], twin=sides[2])


def record_other(folder: Path, comparator: str, output: str, values: Sequence[Array], **parameters: Any) -> None:
    """Four batches, at the gate and in the lobby, compared otherwise."""
    recorder = Recorder(
        folder / "evidence",
        "router",
        DEPLOYMENT,
        LIMITS,
        Accounting(),
        comparator=comparator,
        output=output,
        parameters=parameters,
    )
    for number in range(4):
        one = batch(number, 6, noise=0.0, slice_name=("gate", "lobby")[number % 2])
        assert recorder.offer(with_output(one, output, values))
    recorder.close()


def vectors() -> list[Array]:
    """At right angles, but for the twin's."""
    east, north = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    return [east, north, east]


def masks() -> list[Array]:
    """The candidate's covers half of the baseline's."""
    whole, half = np.zeros((8, 8), np.float32), np.zeros((8, 8), np.float32)
    whole[:4], half[:2] = 1, 1
    return [whole, half, whole]


OTHERS = {
    "embedding": ("vector", vectors(), {}),
    "segmentation": ("mask", masks(), {"classes": 2}),
}


@pytest.mark.parametrize(
    ("comparator", "expected"),
    [
        ("embedding", {"cosine_distance": 1.0, "neighbour_overlap": 1.0}),
        ("segmentation", {"pixel_agreement": 0.75}),
    ],
)
def test_a_comparator_without_answers_is_reported_by_what_it_measures(
    tmp_path: Path, comparator: str, expected: dict[str, float]
) -> None:
    output, values, parameters = OTHERS[comparator]
    record_other(tmp_path, comparator, output, values, **parameters)
    value = figures(tmp_path)
    assert (value["agreement"], value["labels"]["groups"]) == (None, [])
    means = {each["measure"]: each["mean"] for each in value["measures"]}
    assert {name: means[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for group in value["slices"]["groups"]:
        assert (group["agreement"], group["items"]) == (None, 12)
        assert {name: group["measures"][name]["mean"] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert [Path(path).name for path in value["drawings"]] == ["delta.png", "measures.png", "service.png", "memory.png"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("comparator", "difference", "headline"),
    [
        ("embedding", "cosine distance", "means: cosine_distance 1, "),
        ("segmentation", "1 − mean IoU", "means: mean_iou 0.5833, pixel_agreement 0.75"),
    ],
)
def test_its_text_has_names_of_its_own_and_no_answers(
    tmp_path: Path, comparator: str, difference: str, headline: str
) -> None:
    output, values, parameters = OTHERS[comparator]
    record_other(tmp_path, comparator, output, values, **parameters)
    text = run(tmp_path).stdout
    assert "top-1" not in text
    for part in (f"{difference} of an item", f"measures of {comparator}", "means by slice", headline):
        assert part in text, part


def test_what_most_items_do_not_exceed_is_a_bound_on_the_worse_side(found: dict[str, Any]) -> None:
    bounds = {each["measure"]: (each["mean"], each["bound"]) for each in found["measures"]}
    mean, bound = bounds["top1_delta"]
    assert 0 < mean < bound <= 2 / 64
    mean, bound = bounds["top_k_agreement"]
    assert 63 / 64 == bound <= 1


# The state of a rollout, and what is beside its evidence


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("state", "weight", "said"), [("canary", 5, "still running (canary, 5 %)"), ("promoted", 100, "")]
)
def test_a_rollout_that_is_still_running_is_called_so(tmp_path: Path, state: str, weight: int, said: str) -> None:
    record(tmp_path / "evidence", [batch(0)])
    (tmp_path / "journal.jsonl").write_bytes(orjson.dumps({"state": state, "weight": weight}) + b"\n")
    assert figures(tmp_path)["rollout"] == {"state": state, "weight": weight, "ended": not said}
    text = run(tmp_path).stdout
    assert (said or DEPLOYMENT) in text
    assert ("still running" in text) == bool(said)


@pytest.mark.usefixtures("undrawn")
def test_exemplars_that_were_lost_are_counted(tmp_path: Path) -> None:
    record(tmp_path / "evidence", [batch(0)])
    exemplars = Exemplars(tmp_path / "exemplars", ExemplarSettings(worst=2), "salt", lambda: BEGAN_US * 1e-6)
    assert "exemplars" not in run(tmp_path).stdout
    exemplars.note_lost("router", 7, 2)
    assert figures(tmp_path)["exemplars"] == {"worst": 0, "sample": 0, "nbytes": 0, "dropped": 7, "errors": 2}
    text = run(tmp_path / "evidence").stdout
    assert "exemplars: 0 of the worst and a sample of 0" in text
    assert "7 requests were dropped for want of time, and 2 attempts failed" in text


@pytest.mark.usefixtures("undrawn")
def test_a_rollout_that_has_recorded_no_row_yet_has_a_report(tmp_path: Path) -> None:
    SegmentWriter(tmp_path / "evidence", header()).write(SCHEMA.empty_table())
    assert (figures(tmp_path)["items"], figures(tmp_path)["first_at"]) == (0, None)
    text = run(tmp_path).stdout
    assert "0 rows in 1 segments of 1 chains\n" in text
    assert "None" not in text


def test_a_path_that_is_not_there_is_named_and_no_model_of_that_name_is_looked_for(tmp_path: Path) -> None:
    result = run(tmp_path / "nowhere")
    assert isinstance(result.exception, RolloutError)
    assert "nowhere: no such folder; expected a rollout's" in str(result.exception)


def test_a_folder_that_cannot_be_drawn_to_is_named(tmp_path: Path) -> None:
    record(tmp_path / "evidence", [batch(0)])
    (tmp_path / "file").touch()
    result = run(tmp_path, "--out", tmp_path / "file")
    assert isinstance(result.exception, ServingError)
    assert "file: cannot be drawn to" in str(result.exception)


def test_nothing_that_is_written_in_a_picture_overlaps_however_many_batch_sizes_there_are(tmp_path: Path) -> None:
    sizes = [1 << power for power in range(9)]
    one, *others = [timed_by_gpu(batch(at, size, noise=0.0), size) for at, size in enumerate(sizes)]
    record(tmp_path / "evidence", [one], others)
    compacted(tmp_path)
    found = survey(tmp_path / "evidence")
    for figure in drawn(found, document(found)):
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in written(figure)]
        crossing = [(one, other) for one, other in combinations(boxes, 2) if one.padded(-2).overlaps(other.padded(-2))]
        assert crossing == []


def timed_by_gpu(one: Pair, size: int) -> Pair:
    sides = {name: getattr(one, name) for name in ("baseline", "candidate", "twin")}
    return replace(one, **{name: replace(side, gpu_ms=float(size)) for name, side in sides.items()})


def drawn(found: Survey, value: dict[str, Any]) -> Iterator[Figure]:
    """All pictures, as they are before they are written."""
    with mpl.rc_context(STYLE):
        for drawing in DRAWINGS.values():
            figure = drawing(found, value)
            if figure is not None:
                yield figure


def written(figure: Figure) -> Iterator[Text]:
    """Titles, names of axes and of their ticks, legends: all that a reader reads."""
    unseen = {id(text) for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in out_of_sight(axis)}
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if text.get_visible() and text.get_text().strip() and id(text) not in unseen:
            yield text


def out_of_sight(axis: Axis) -> Iterator[Text]:
    """The names of ticks beyond the ends of an axis, which are there, but not drawn."""
    low, high = sorted(axis.get_view_interval())
    for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
        if not low <= tick.get_loc() <= high:
            yield tick.label1
