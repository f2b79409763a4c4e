import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from models.backends import open_backend
from models.memory import MemoryMeter
from models.reference import build
from models.reference.__main__ import main
from models.reference.digits import Split, load_split
from models.reference.leaking import LeakingBackend
from models.repository import ModelVersion, Repository
from models.schema_diff import diff
from models.tensor import Array

KEPT = Path(__file__).parents[2] / "examples" / "model_repository"
LEAKING = {"leaking": "models.reference.leaking:LeakingBackend"}


@pytest.fixture(scope="module")
def split() -> Split:
    return load_split()


@pytest.fixture(scope="module")
def scores(split: Split) -> dict[int, Array]:
    """Version → its answer to all test images."""
    return {number: _answer(number, split.test_images) for number in (1, 2, 3, 4)}


def _version(number: int) -> ModelVersion:
    return Repository(KEPT).open("digits", number)


def _answer(number: int, images: Array) -> Array:
    backend = open_backend(_version(number))
    backend.load()
    batches = [backend.run({"image": images[at : at + 32]})["scores"] for at in range(0, len(images), 32)]
    backend.close()
    return np.concatenate(batches)


def _accuracy(scores: Array, split: Split) -> float:
    return float((scores.argmax(axis=1) == split.test_labels).mean())


def test_no_image_is_on_both_sides_nor_twice_on_one(split: Split) -> None:
    train = [image.tobytes() for image in split.train_images]
    test = [image.tobytes() for image in split.test_images]
    assert len(set(train)) == len(train) == 797
    assert len(set(test)) == len(test) == 1000
    assert not set(train) & set(test)


def test_images_are_raw_pixels_and_every_digit_is_on_both_sides(split: Split) -> None:
    assert split.test_images.shape == (1000, 1, 8, 8)
    assert split.test_images.dtype == np.float32
    assert (split.test_images.min(), split.test_images.max()) == (0, 16)
    assert set(split.train_labels) == set(split.test_labels) == set(range(10))


def test_the_repository_kept_here_is_what_training_gives(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0
    assert "every byte agrees" in capsys.readouterr().out


def test_a_changed_byte_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "repository"
    assert main(["--path", str(path)]) == 0
    assert main(["--path", str(path), "--check"]) == 0
    (path / "digits" / "2" / "model.onnx").write_bytes(b"other")
    (path / "digits" / "3" / "labels.txt").unlink()
    (path / "digits" / "4" / "stray").write_bytes(b"")
    (path / "digits-image" / "1" / "model.yaml").write_bytes(b"")
    (tmp_path / "digit.png").unlink()
    assert main(["--path", str(path), "--check"]) == 1
    printed = capsys.readouterr().out
    for name in ("2/model.onnx", "3/labels.txt", "4/stray", "digits-image/1/model.yaml", "digit.png"):
        assert f"{name}: differs" in printed


def test_an_empty_repository_is_different(tmp_path: Path) -> None:
    assert main(["--path", str(tmp_path / "repository"), "--check"]) == 1


def test_the_recorded_accuracy_is_what_the_graphs_reach(scores: dict[int, Array], split: Split) -> None:
    for number, answer in scores.items():
        recorded = _version(number).spec.provenance["test_accuracy"]
        assert _accuracy(answer, split) == pytest.approx(recorded, abs=0.002)


def test_scores_are_probabilities(scores: dict[int, Array]) -> None:
    for answer in scores.values():
        assert answer.dtype == np.float32
        assert np.allclose(answer.sum(axis=1), 1, atol=1e-5)
        assert answer.min() >= 0


def test_the_baseline_is_modest(scores: dict[int, Array], split: Split) -> None:
    assert 0.75 <= _accuracy(scores[1], split) <= 0.82


def test_the_better_one_is_better_by_far_more_than_a_tenth(scores: dict[int, Array], split: Split) -> None:
    assert _accuracy(scores[2], split) >= 0.95
    assert _accuracy(scores[2], split) >= 1.15 * _accuracy(scores[1], split)
    assert np.corrcoef(scores[1].ravel(), scores[2].ravel())[0, 1] < 0.95


def test_the_better_one_needs_the_picture(split: Split) -> None:
    blank = _answer(2, np.zeros_like(split.test_images))
    assert _accuracy(blank, split) < 0.2


def test_the_equivalent_one_agrees_within_a_thousandth_but_not_exactly(scores: dict[int, Array]) -> None:
    difference = np.abs(scores[3] - scores[1])
    assert 0 < difference.max() < 1e-3
    assert (scores[3].argmax(axis=1) == scores[1].argmax(axis=1)).mean() > 0.998


def test_the_regressed_one_is_clearly_worse_yet_plausible(scores: dict[int, Array], split: Split) -> None:
    regressed = _accuracy(scores[4], split)
    assert 0.4 < regressed < _accuracy(scores[1], split) - 0.05
    answers = np.bincount(scores[4].argmax(axis=1), minlength=10)
    assert (answers > 0).sum() >= 8


def test_every_candidate_has_the_baselines_schema() -> None:
    baseline = _version(1).spec
    for number in (2, 3, 4, 5):
        assert diff(baseline, _version(number).spec).compatible


def test_the_provenance_traces_to_a_real_data_set() -> None:
    for number in (1, 2, 3, 4, 5):
        provenance = _version(number).spec.provenance
        assert provenance["synthetic"] is False
        assert provenance["run_id"]
        assert len(provenance["dataset_sha256"]) == 64
        assert (provenance["train_images"], provenance["test_images"]) == (797, 1000)


def test_the_slow_and_leaking_one_breaks_both_gates_but_not_the_machine() -> None:
    parameters = _version(5).spec.parameters
    assert parameters["delay_ms"] > 505
    assert 500e6 < parameters["leak_limit_bytes"] <= 1 << 30
    assert parameters["leak_limit_bytes"] // parameters["leak_bytes"] > 500e6 // parameters["leak_bytes"]


def _small_leak(**parameters: int) -> LeakingBackend:
    version = _version(5)
    return LeakingBackend(replace(version, spec=replace(version.spec, parameters=parameters)))


def test_the_leak_is_real_and_ends_at_its_limit() -> None:
    # In a process of its own: what earlier tests freed would be handed out again, and the process would not grow.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        peaks = fresh.submit(_leak_peaks_mib).result()
    if peaks is not None:
        assert peaks[0] >= 14
        assert peaks[3] >= 60
        assert peaks[5] < 96
        assert peaks[-1] < 48


def _leak_peaks_mib() -> list[int] | None:
    """The peak of each of six batches, and once more after the model is closed; None where there is no meter."""
    images = load_split().test_images[:4]
    backend = _small_leak(leak_bytes=16 << 20, leak_limit_bytes=64 << 20, delay_ms=0)
    backend.load()
    peaks = []
    with MemoryMeter() as meter:
        meter.mark_loaded()
        for _ in range(6):
            meter.reset()
            answer = backend.run({"image": images})["scores"]
            peaks.append(meter.peak_bytes())
        assert np.array_equal(answer, _answer(2, images))
        backend.close()
        backend.close()
        meter.reset()
        peaks.append(meter.peak_bytes())
    return None if None in peaks else [(peak or 0) >> 20 for peak in peaks]


def test_the_slow_one_takes_its_time(split: Split) -> None:
    backend = _small_leak(leak_bytes=0, delay_ms=60)
    backend.load()
    started_s = time.monotonic()
    backend.run({"image": split.test_images[:1]})
    assert time.monotonic() - started_s >= 0.06
    backend.close()


def test_who_trained_it_is_read_from_the_repository(tmp_path: Path) -> None:
    path = tmp_path / "repository"
    build.write_repository(path, trained_with={"numpy": "1", "onnx": "2.0", "scikit-learn": "3.0.0"})
    assert build.recorded_trainers(path) == {"numpy": "1", "onnx": "2.0", "scikit-learn": "3.0.0"}
    assert build.recorded_trainers(tmp_path / "absent") is None
