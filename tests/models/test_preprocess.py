"""Preprocess steps in a model.yaml, and over a batch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.backends import open_backend
from models.errors import ArtifactError, BackendError, RejectedInputError, SettingError, SpecError
from models.preprocess import Preprocess, open_preprocess
from models.repository import ModelVersion, open_version, write_hash
from models.schema_diff import diff
from models.spec import ModelSpec, StepSpec, TensorSpec, load_spec
from models.tensor import Array
from tests.models.making import identity_graph, tensor, write_version
from tests.models.pictures import encoded, noise

ROOT = Path(__file__).parents[2]
PICTURES = [tensor("picture", "BYTES", [-1, 1])]


def step(**changes: Any) -> dict[str, Any]:
    """A right ``image`` step of a model of 2 × 2 colours."""
    return {"kind": "image", "tensor": tensor("IN", "UINT8", [-1, 3, 2, 2]), "mode": "RGB", **changes}


def write(root: Path, steps: Any = None, *, inputs: Any = None, **changes: Any) -> Path:
    """A version that answers the pixels of its pictures."""
    fields = {
        "inputs": inputs or PICTURES,
        "outputs": [tensor("OUT", "UINT8", [-1, 3, 2, 2])],
        "preprocess": {"picture": step()} if steps is None else steps,
        **changes,
    }
    return write_version(root, identity_graph("UINT8", ["n", 3, 2, 2]), **fields)


def opened(root: Path, steps: Any = None, **changes: Any) -> ModelVersion:
    return open_version(write(root, steps, **changes))


def elements(*values: bytes) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(-1, 1)


# model.yaml


def test_a_step_is_read_and_written_as_json(tmp_path: Path) -> None:
    spec = opened(tmp_path, {"picture": step(resize="stretch")}).spec
    made = TensorSpec(name="IN", datatype="UINT8", shape=(-1, 3, 2, 2))
    settings = {"mode": "RGB", "resize": "stretch"}
    assert spec.preprocess == (StepSpec(input="picture", kind="image", tensor=made, settings=settings),)
    assert spec.inputs[0].datatype == "BYTES"
    assert spec.for_backend().inputs == (made,)
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize(
    ("steps", "field", "expected"),
    [
        ([], "preprocess", "a mapping"),
        ({"photo": step()}, "preprocess", "the names of inputs (picture)"),
        ({"picture": "image"}, "preprocess.picture", "a mapping"),
        ({"picture": {"kind": "image"}}, "preprocess.picture.tensor", "a value, missing"),
        ({"picture": step(kind=3)}, "preprocess.picture.kind", "text"),
        ({"picture": step(tensor="x")}, "preprocess.picture.tensor", "a mapping"),
        ({"picture": step(tensor=tensor("x", "FP", [-1]))}, "preprocess.picture.tensor.datatype", "one of BF16"),
        ({"picture": step(tensor=tensor("x", "FP32", [3]))}, "preprocess.picture.tensor.shape", "-1 as the first"),
        (
            {"picture": step(tensor=tensor("x", "FP32", [-1, 3, -1, 2]))},
            "preprocess.picture.tensor.shape",
            "fixed sizes within an item",
        ),
        ({"picture": step(mode="HSV")}, "preprocess.picture.mode", "one of L, RGB, BGR, got 'HSV'"),
        ({"picture": step(resise="stretch")}, "preprocess.picture.resise", "only "),
        ({"picture": step(tensor=tensor("x", "UINT8", [-1, 1, 2, 2]))}, "preprocess.picture.tensor.shape", "[-1, 3, H"),
    ],
)
def test_what_is_wrong_with_a_step_is_named_with_file_and_field(
    tmp_path: Path, steps: Any, field: str, expected: str
) -> None:
    folder = write(tmp_path, steps, hashed=False)
    with pytest.raises(SpecError) as caught:
        load_spec(folder, name="model", version=1)
    assert (caught.value.file, caught.value.field) == (folder / "model.yaml", field)
    assert expected in str(caught.value)
    with pytest.raises(SpecError, match="expected"):
        write_hash(folder)


@pytest.mark.parametrize(
    ("inputs", "batch", "expected"),
    [
        ([tensor("picture", "UINT8", [-1, 1])], 8, "BYTES of shape [-1] or [-1, 1]"),
        ([tensor("picture", "BYTES", [-1, 2])], 8, "BYTES of shape [-1] or [-1, 1]"),
        ([tensor("picture", "BYTES", [-1])], 0, "BYTES of shape [1]"),
        ([*PICTURES, tensor("IN", "FP32", [-1])], 8, "a name used once"),
    ],
)
def test_a_step_takes_one_element_of_bytes_for_each_item(
    tmp_path: Path, inputs: Any, batch: int, expected: str
) -> None:
    folder = write(tmp_path, inputs=inputs, max_batch_size=batch, hashed=False)
    with pytest.raises(SpecError) as caught:
        load_spec(folder, name="model", version=1)
    assert expected in str(caught.value)


def test_the_hash_covers_the_steps(tmp_path: Path) -> None:
    folder = write(tmp_path, {"picture": step(resize="stretch")})
    assert open_version(folder)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("mode: RGB", "mode: BGR"))
    with pytest.raises(ArtifactError):
        open_version(folder)


def test_a_changed_step_is_a_named_difference_that_breaks_no_client(tmp_path: Path) -> None:
    before = opened(tmp_path / "a").spec
    after = opened(tmp_path / "b", {"picture": step(mode="BGR", resize="stretch")}).spec
    found = diff(before, after)
    assert {each.field: (each.baseline, each.candidate) for each in found.differences} == {
        "preprocess.picture.mode": ("RGB", "BGR"),
        "preprocess.picture.resize": (None, "stretch"),
    }
    assert found.compatible
    assert 0 < found.drift < 1
    assert not diff(before, before).differences


def test_a_step_on_one_side_alone_is_a_difference(tmp_path: Path) -> None:
    with_step = opened(tmp_path / "a").spec
    without = opened(tmp_path / "b", {}).spec
    (found,) = diff(with_step, without).differences
    assert (found.field, found.baseline, found.candidate) == ("preprocess.picture", "present", "absent")
    assert found.compatible


# A batch


def test_the_backend_gets_what_the_step_makes(tmp_path: Path) -> None:
    version = opened(tmp_path)
    preprocess, backend = open_preprocess(version), open_backend(version)
    assert preprocess is not None
    backend.load()
    pictures = [noise(2, 2, seed=seed) for seed in range(3)]
    prepared = preprocess.run({"picture": elements(*map(encoded, pictures))}, (1, 2))
    answer = backend.run(prepared.inputs)["OUT"]
    assert (answer == np.stack(pictures).transpose(0, 3, 1, 2)).all()
    assert (prepared.rows, prepared.failures) == ((1, 2), {})


def test_a_model_without_steps_has_no_preprocessing(tmp_path: Path) -> None:
    plain = write_version(tmp_path, identity_graph("FP32", ["n", 3]))
    assert open_preprocess(open_version(plain)) is None


def test_a_model_without_batch_dimension_takes_one_picture(tmp_path: Path) -> None:
    version = opened(
        tmp_path,
        {"picture": step(tensor=tensor("IN", "UINT8", [1, 3, 2, 2]))},
        inputs=[tensor("picture", "BYTES", [1])],
        outputs=[tensor("OUT", "UINT8", [1, 3, 2, 2])],
        max_batch_size=0,
    )
    preprocess = open_preprocess(version)
    assert preprocess is not None
    pixels = noise(2, 2)
    prepared = preprocess.run({"picture": elements(encoded(pixels)).ravel()}, (1,))
    assert (prepared.inputs["IN"] == pixels.transpose(2, 0, 1)[None]).all()
    refused = preprocess.run({"picture": elements(b"?").ravel()}, (1,))
    assert (dict(refused.inputs), refused.rows, list(refused.failures)) == ({}, (), [0])


class Digits:
    """A user's step: text to a number."""

    def __init__(self, spec: StepSpec) -> None:
        if "base" not in spec.settings:
            raise SettingError("base", "a number")
        self._base = spec.settings["base"]

    def fill(self, element: bytes, row: Array) -> None:
        if not element:
            raise RejectedInputError("expected digits")
        row[...] = int(element, self._base)


USERS = {"digits": f"{__name__}:Digits"}
NUMBER = {"kind": "digits", "tensor": tensor("IN", "INT64", [-1]), "base": 16}


def numbers(root: Path, **changes: Any) -> ModelVersion:
    return opened(root, {"picture": {**NUMBER, **changes}}, inputs=[*PICTURES, tensor("other", "FP32", [-1])])


def test_requests_fail_alone_and_all_inputs_of_the_others_stay_together(tmp_path: Path) -> None:
    preprocess = open_preprocess(numbers(tmp_path), USERS)
    assert preprocess is not None
    inputs = {"picture": elements(b"a", b"b", b"", b"c", b"oops", b"d"), "other": np.arange(6, dtype=np.float32)}
    prepared = preprocess.run(inputs, (1, 2, 1, 1, 1))
    assert prepared.inputs["IN"].tolist() == [10, 12, 13]
    assert prepared.inputs["other"].tolist() == [0, 3, 5]
    assert prepared.rows == (1, 1, 1)
    assert str(prepared.failures[1]) == "input 'picture': item 1: expected digits"
    assert isinstance(prepared.failures[1], RejectedInputError)
    assert isinstance(prepared.failures[3], ValueError)
    assert set(prepared.failures) == {1, 3}
    assert set(inputs) == {"picture", "other"}, "what was given is left as it was"


def test_of_two_steps_each_request_fails_once(tmp_path: Path) -> None:
    version = opened(
        tmp_path,
        {"a": NUMBER, "b": {**NUMBER, "tensor": tensor("B", "INT64", [-1])}},
        inputs=[tensor("a", "BYTES", [-1, 1]), tensor("b", "BYTES", [-1, 1])],
    )
    preprocess = open_preprocess(version, USERS)
    assert isinstance(preprocess, Preprocess)
    prepared = preprocess.run({"a": elements(b"1", b"", b"3"), "b": elements(b"", b"", b"f")}, (1, 1, 1))
    assert {name: array.tolist() for name, array in prepared.inputs.items()} == {"IN": [3], "B": [15]}
    assert [str(prepared.failures[at]) for at in (0, 1)] == ["input 'b': expected digits", "input 'a': expected digits"]


@pytest.mark.parametrize(
    ("extra", "changes", "expected"),
    [
        ({}, {}, "unknown preprocess step 'digits'; known are image"),
        ({"digits": "nowhere.at_all:Digits"}, {}, "preprocess 'digits': cannot import nowhere.at_all:Digits"),
        ({"digits": f"{__name__}:Absent"}, {}, f"preprocess 'digits': {__name__} has no Absent"),
        ({"digits": "Digits"}, {}, "expected an import path `package.module:Class`"),
        ({"digits": f"{__name__}:NUMBER"}, {}, "to be a class, found dict"),
        ({"digits": "builtins:int"}, {}, "builtins:int failed to build: TypeError"),
        ({"image": f"{__name__}:Digits"}, {}, "preprocess: image: the name of a built-in step"),
    ],
)
def test_a_step_that_cannot_be_opened_says_why(
    tmp_path: Path, extra: dict[str, str], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(BackendError) as caught:
        open_preprocess(numbers(tmp_path, **changes), extra)
    assert expected in str(caught.value)


def test_a_setting_that_a_users_step_refuses_is_named_with_file_and_field(tmp_path: Path) -> None:
    version = numbers(tmp_path, base=None)
    del version.spec.preprocess[0].settings["base"]  # type: ignore[attr-defined]  # a mapping is a dict here
    with pytest.raises(SpecError) as caught:
        open_preprocess(version, USERS)
    assert (caught.value.file, caught.value.field) == (version.directory / "model.yaml", "preprocess.picture.base")


def test_without_pillow_all_but_decoding_works_and_the_error_says_what_to_install(tmp_path: Path) -> None:
    folder = write(tmp_path)
    script = f"""
import sys
from pathlib import Path
sys.modules["PIL"] = None
import serving.replica, serving.router, serving.dataserver
from models.errors import BackendError
from models.preprocess import open_preprocess
from models.repository import open_version
try:
    open_preprocess(open_version(Path({str(folder)!r})))
except BackendError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "preprocess 'image': cannot import" in done.stdout
    assert done.stdout.rstrip().endswith("; install pillow")
