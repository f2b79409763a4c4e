"""``understudy shadow replay`` on exemplars of the digits model."""

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import orjson
import pytest

from models.repository import Repository
from models.tensor import from_numpy
from serving import cli
from shadow.exemplars import FOLDER, Exemplar, Exemplars, ExemplarSettings, read
from shadow.replay import LocalModel
from tests.shadow.builders import DEPLOYMENT, bad, simple_pair, write_chain

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIG = EXAMPLES / "digits.yaml"
REGRESSED, REQUESTS = 4, 12
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rollout's folder with evidence, and exemplars of what version 1 answered."""
    folder = tmp_path_factory.mktemp("reports") / DEPLOYMENT
    write_chain(folder / "evidence", [[simple_pair()]])
    random = np.random.default_rng(7)
    exemplars = Exemplars(folder / FOLDER, ExemplarSettings(worst=REQUESTS), "salt")
    with LocalModel(Repository(EXAMPLES / "model_repository").open("digits", 1)) as baseline:
        for number in range(REQUESTS):
            image = random.integers(0, 17, (1, 1, 8, 8)).astype(np.float32)
            one = Exemplar(
                request_id=f"request-{number}",
                deployment_id=DEPLOYMENT,
                chain="router",
                model="digits",
                baseline_version=1,
                candidate_version=REGRESSED,
                stage=0,
                at_unix_us=1_000_000 + number,
                rows=1,
                max_delta=0.5,
                inputs=(from_numpy("image", "FP32", image),),
                baseline=bad(),
                candidate=bad(),
            )
            (answer,) = baseline.answers([one])
            exemplars.keep(replace(one, baseline=answer))
    assert exemplars.fault is None
    return folder


@pytest.fixture
def rollout(recorded: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(recorded, tmp_path / DEPLOYMENT))


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command with its arguments; exit status, standard output, standard error."""
    monkeypatch.setattr(sys, "path", [*sys.path])  # the command adds the configuration's folder

    def run(*arguments: object, config: Path = CONFIG) -> tuple[int, str, str]:
        given = ["understudy", "shadow", "replay", *map(str, arguments), "--config", str(config)]
        monkeypatch.setattr(sys, "argv", given)
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        status = caught.value.code
        assert isinstance(status, int)
        return (status, *capsys.readouterr())

    return run


def refused(ended: tuple[int, str, str]) -> str:
    """The one line of a command that was used wrongly."""
    status, out, err = ended
    assert (status, out) == (2, "")
    assert err.startswith("understudy: ")
    assert err.count("\n") == 1
    return err.removeprefix("understudy: ").rstrip()


def test_the_baseline_as_candidate_is_within_any_tolerance(recorded: Path, replay: Run) -> None:
    status, out, err = replay(recorded, "--candidate", 1, "--json")
    assert (status, err) == (0, "")
    said = orjson.loads(out)
    assert (said["ok"], said["model"], said["baseline"], said["candidate"]) == (True, "digits", 1, 1)
    assert (said["requests"], said["unanswered"], said["failures"]) == (REQUESTS, 0, [])
    figures = said["figures"]
    assert (figures["items"], figures["agreement"], figures["over_tolerance"]) == (REQUESTS, 1.0, 0)
    assert figures["max_delta"] == figures["mean_delta"] == 0.0
    assert figures["measures"]["top_k_agreement"] == 1.0
    assert said["baseline_again"] is None


def test_it_is_compared_as_the_evidence_was_unless_said_otherwise(recorded: Path, replay: Run) -> None:
    said = orjson.loads(replay(recorded, "--candidate", 1, "--json")[1])
    assert (said["comparator"], said["output"], said["parameters"]) == ("classification", "scores", {"k": 2})
    assert said["tolerance"] == 1e-3
    changed = orjson.loads(
        replay(recorded, "--candidate", 1, "--json", "--comparator", "embedding", "--tolerance", "0.5")[1]
    )
    assert (changed["comparator"], changed["output"], changed["parameters"]) == ("embedding", "scores", {})
    assert changed["tolerance"] == 0.5
    assert changed["figures"]["agreement"] is None


def test_a_regressed_candidate_is_exit_status_1_and_the_worst_items_are_named(recorded: Path, replay: Run) -> None:
    status, out, _ = replay(recorded, "--candidate", REGRESSED, "--rerun-baseline", "--json")
    assert status == 1
    said = orjson.loads(out)
    assert said["figures"]["over_tolerance"] > REQUESTS / 2
    assert said["baseline_again"]["items"] == REQUESTS
    assert said["baseline_again"]["over_tolerance"] == 0
    assert len(said["worst"]) == 10
    assert said["worst"][0]["max_delta"] == pytest.approx(said["figures"]["max_delta"], abs=1e-9)
    assert {each["request_id"] for each in said["worst"]} <= {f"request-{number}" for number in range(REQUESTS)}


def test_says_it_in_words_too(recorded: Path, replay: Run) -> None:
    status, out, _ = replay(recorded, "--candidate", REGRESSED, "--rerun-baseline")
    assert status == 1
    for text in ("candidate 4", "baseline 1 again", "top-1 agreement", "items over 0.001", "request-", "0 requests"):
        assert text in out
    status, out, _ = replay(recorded, "--candidate", 1)
    assert status == 0
    assert f"all {REQUESTS} items within 0.001" in out


def test_the_evidence_in_the_rollouts_folder_stands_for_it(recorded: Path, replay: Run) -> None:
    assert replay(recorded / "evidence", "--candidate", 1)[0] == 0


def test_batches_may_be_shared(recorded: Path, replay: Run) -> None:
    status, out, _ = replay(recorded, "--candidate", 1, "--batch-size", 8, "--json")
    assert status == 0
    assert orjson.loads(out)["figures"]["items"] == REQUESTS


def test_a_candidate_that_fails_is_exit_status_1_and_says_why(rollout: Path, replay: Run) -> None:
    (exemplar, *_) = read(rollout / FOLDER)
    others = (replace(exemplar.inputs[0], name="no such input"),)
    shutil.rmtree(rollout / FOLDER)
    Exemplars(rollout / FOLDER, ExemplarSettings(worst=1), "salt").keep(replace(exemplar, inputs=others))
    status, out, _ = replay(rollout, "--candidate", 1)
    assert status == 1
    assert f"{exemplar.request_id}: error: " in out
    assert "1 requests failed" in out


def test_without_an_answer_of_the_baseline_nothing_is_compared(rollout: Path, replay: Run) -> None:
    (exemplar, *_) = read(rollout / FOLDER)
    shutil.rmtree(rollout / FOLDER)
    Exemplars(rollout / FOLDER, ExemplarSettings(worst=1), "salt").keep(replace(exemplar, baseline=bad()))
    status, out, _ = replay(rollout, "--candidate", 1)
    assert status == 1
    assert "1 of the requests have no recorded answer" in out
    assert "nothing could be compared" in out


# Wrong use


def test_without_exemplars_it_says_how_they_are_kept(rollout: Path, replay: Run) -> None:
    for path in (rollout / FOLDER).iterdir():
        path.unlink()
    assert "no exemplars were recorded; mirror.exemplars" in refused(replay(rollout, "--candidate", 1))
    (rollout / FOLDER).rmdir()
    assert "no exemplars were recorded; mirror.exemplars" in refused(replay(rollout, "--candidate", 1))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, replay: Run) -> None:
    assert "nothing: expected a rollout's folder" in refused(replay(tmp_path / "nothing", "--candidate", 1))


def test_a_damaged_exemplar_is_named(rollout: Path, replay: Run) -> None:
    path = max((rollout / FOLDER).iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    assert path.name in refused(replay(rollout, "--candidate", 1))


def test_without_evidence_the_output_must_be_said(rollout: Path, replay: Run) -> None:
    shutil.rmtree(rollout / "evidence")
    assert "say it with --output" in refused(replay(rollout, "--candidate", 1))
    assert replay(rollout, "--candidate", 1, "--output", "scores")[0] == 0


def test_a_version_or_model_that_is_not_there_is_one_line(recorded: Path, replay: Run) -> None:
    assert "no version 77" in refused(replay(recorded, "--candidate", 77))
    assert "no model 'faces'" in refused(replay(recorded, "--candidate", 1, "--model", "faces"))
    assert "cannot be read" in refused(replay(recorded, "--candidate", 1, config=recorded / "none.yaml"))


def test_a_version_whose_files_were_changed_is_not_loaded(recorded: Path, tmp_path: Path, replay: Run) -> None:
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    artifact = tmp_path / "examples" / "model_repository" / "digits" / "1" / "model.onnx"
    artifact.write_bytes(artifact.read_bytes() + b"\0")
    line = refused(replay(recorded, "--candidate", 1, config=tmp_path / "examples" / "digits.yaml"))
    assert "sha256 mismatch" in line


def test_a_wrong_comparator_is_one_line(recorded: Path, replay: Run) -> None:
    assert "comparator.kind" in refused(replay(recorded, "--candidate", 1, "--comparator", "astrology"))
