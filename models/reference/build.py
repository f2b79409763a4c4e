"""Writes the digits models as a model repository, and a picture to ask them about; the same bytes each time."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Final

import numpy as np
import yaml

from models.document import read_document
from models.errors import SpecError
from models.reference import graphs
from models.reference.digits import SEED, Split, load_split
from models.reference.picture import INK, draw
from models.reference.train import CLASSES, Weights, baseline_accuracy, better_accuracy, train
from models.repository import write_hash
from models.spec import MODEL_FILE

MODEL: Final = "digits"
IMAGE_MODEL: Final = "digits-image"
PICTURE: Final = "digit.png"  # beside the repository
PICTURED: Final = 4  # of the test images: a zero that the baseline takes for a six
BASELINE, BETTER, EQUIVALENT, REGRESSED, SLOW_AND_LEAKING = 1, 2, 3, 4, 5
_TRAINERS: Final = ("numpy", "onnx", "scikit-learn")
_DATASET: Final = "UCI Optical Recognition of Handwritten Digits, as in scikit-learn's load_digits"
_PIXELS: Final = "inputs:  [{name: image, datatype: FP32, shape: [-1, 1, 8, 8]}]  # ink per pixel, 0..16\n"
_PICTURES: Final = f"""\
inputs:  [{{name: picture, datatype: BYTES, shape: [-1, 1]}}]
preprocess:
  picture:
    kind: image
    tensor: {{name: image, datatype: FP32, shape: [-1, 1, 8, 8]}}  # ink per pixel, 0..16
    mode: L
    resize: stretch
    filter: box
    invert: true
    divide_by: {INK}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    version: int
    title: str
    artifact: bytes
    accuracy: float
    backend: str = "onnxruntime"
    parameters: str = "{}"
    model: str = MODEL
    inputs: str = _PIXELS


def write_repository(path: Path, *, trained_with: Mapping[str, str] | None = None) -> None:
    """Train the digits models and write ``path``/digits/1…5, ``path``/digits-image/1 and, beside it, ``digit.png``.

    ``trained_with`` (package → version) goes into the provenance in place of the packages installed here.
    """
    split = load_split()
    provenance = _provenance(split, trained_with or {name: installed_version(name) for name in _TRAINERS})
    for entry in _entries(train(split), split):
        directory = path / entry.model / str(entry.version)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "model.onnx").write_bytes(entry.artifact)
        (directory / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(CLASSES)), encoding="utf-8")
        (directory / MODEL_FILE).write_text(_model_yaml(entry, provenance), encoding="utf-8")
        write_hash(directory)
    picture = draw(split.test_images[PICTURED], f"{_DATASET}; one of the test images of models.reference")
    path.resolve().with_name(PICTURE).write_bytes(picture)


def recorded_trainers(path: Path) -> dict[str, str] | None:
    """The packages, with versions, that the repository at ``path`` says it was trained with; None if it does not."""
    try:
        document = read_document(path / MODEL / str(BASELINE) / MODEL_FILE)
        return {name: str(document["provenance"]["trained_with"][name]) for name in _TRAINERS}
    except (SpecError, KeyError, TypeError):
        return None


def _entries(weights: Weights, split: Split) -> list[_Entry]:
    images, labels = split.test_images, split.test_labels
    modest = baseline_accuracy(weights, images, labels)
    good = better_accuracy(weights, images, labels)
    return [
        _Entry(
            version=BASELINE,
            title="The baseline, modest on purpose: it sees 4 x 4 grey squares.",
            artifact=graphs.baseline(weights),
            accuracy=modest,
        ),
        _Entry(
            version=BETTER,
            title="Better: it sees every pixel, through random rectified features.",
            artifact=graphs.better(weights),
            accuracy=good,
        ),
        _Entry(
            version=EQUIVALENT,
            title="Equivalent to the baseline, made faster: one fused layer with weights in half precision.",
            artifact=graphs.equivalent(weights),
            accuracy=modest,
        ),
        _Entry(
            version=REGRESSED,
            title="Regressed: the better model without its normalisation, trained on 0..1 and fed with 0..16.",
            artifact=graphs.regressed(weights),
            accuracy=better_accuracy(weights, images, labels, white=1.0),
        ),
        _Entry(
            version=SLOW_AND_LEAKING,
            title="Slow and leaking: the better model in a backend that keeps memory and takes its time.",
            artifact=graphs.better(weights),
            accuracy=good,
            backend="leaking",
            parameters="{leak_bytes: 41943040, leak_limit_bytes: 1073741824, delay_ms: 530}",
        ),
        _Entry(
            version=1,
            title="The better model, asked with pictures: JPEG or PNG, black ink on white paper.",
            artifact=graphs.better(weights),
            accuracy=good,
            model=IMAGE_MODEL,
            inputs=_PICTURES,
        ),
    ]


def _provenance(split: Split, trained_with: Mapping[str, str]) -> dict[str, object]:
    digest = hashlib.sha256()
    for array in (split.train_images, split.train_labels, split.test_images, split.test_labels):
        digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
    return {
        "run_id": f"models.reference-seed-{SEED}",
        "dataset": _DATASET,
        "dataset_sha256": digest.hexdigest(),
        "synthetic": False,
        "train_images": len(split.train_images),
        "test_images": len(split.test_images),
        "seed": SEED,
        "trained_with": dict(trained_with),
    }


def _model_yaml(entry: _Entry, provenance: Mapping[str, object]) -> str:
    details = {**provenance, "test_accuracy": round(entry.accuracy, 4)}
    described = yaml.safe_dump({"provenance": details}, sort_keys=False, width=120)
    return (
        f"# {entry.title}\n"
        "# Written by `python -m models.reference`.\n"
        f"backend: {entry.backend}\n"
        "artifact: model.onnx\n"
        f"sha256: {'0' * 64}\n"
        "max_batch_size: 32\n"
        f"{entry.inputs}"
        f"outputs: [{{name: scores, datatype: FP32, shape: [-1, {CLASSES}]}}]  # softmax\n"
        "labels: labels.txt\n"
        f"parameters: {entry.parameters}\n"
        f"{described}"
    )
