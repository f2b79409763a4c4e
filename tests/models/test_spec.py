import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from models.errors import SpecError
from models.spec import ModelSpec, Resources, TensorSpec, load_spec
from models.tensor import DATATYPES
from tests.models.making import document, tensor


def load(directory: Path, fields: object) -> ModelSpec:
    (directory / "model.onnx").write_bytes(b"graph")
    text = fields if isinstance(fields, str) else yaml.safe_dump(fields)
    (directory / "model.yaml").write_text(text)
    return load_spec(directory, name="digits", version=3)


def test_a_right_model_yaml_becomes_a_spec(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n\n")
    spec = load(tmp_path, document(labels="labels.txt", parameters={"device": "cpu"}, provenance={"synthetic": False}))
    assert spec == ModelSpec(
        name="digits",
        version=3,
        backend="onnxruntime",
        artifact="model.onnx",
        sha256="0" * 64,
        max_batch_size=8,
        inputs=(TensorSpec(name="IN", datatype="FP32", shape=(-1, 3)),),
        outputs=(TensorSpec(name="OUT", datatype="FP32", shape=(-1, 3)),),
        labels=("cat", "dog"),
        parameters={"device": "cpu"},
        provenance={"synthetic": False},
    )


@pytest.mark.parametrize("datatype", sorted(DATATYPES))
def test_every_datatype_of_the_protocol_is_valid(tmp_path: Path, datatype: str) -> None:
    assert load(tmp_path, document(inputs=[tensor("IN", datatype, [-1])])).inputs[0].datatype == datatype


def test_a_model_without_batch_dimension_may_have_any_shape(tmp_path: Path) -> None:
    spec = load(tmp_path, document(max_batch_size=0, inputs=[tensor("a", "INT8", []), tensor("b", "INT8", [2, -1])]))
    assert [item.shape for item in spec.inputs] == [(), (2, -1)]


def test_declared_memory_is_read_as_sizes_are_in_the_configuration(tmp_path: Path) -> None:
    spec = load(tmp_path, document(resources={"memory": "1.5GiB", "gpu_memory": 3_000_000_000}))
    assert spec.resources == Resources(memory=3 << 29, gpu_memory=3_000_000_000)
    assert spec.to_json()["resources"] == {"memory": 3 << 29, "gpu_memory": 3_000_000_000}


def test_a_date_stays_text_and_so_can_travel_as_json(tmp_path: Path) -> None:
    text = yaml.safe_dump(document()) + "provenance: {created: 2026-01-31, at: 2026-01-31T12:00:00Z}\n"
    spec = load(tmp_path, text)
    assert spec.provenance == {"created": "2026-01-31", "at": "2026-01-31T12:00:00Z"}
    assert json.loads(json.dumps(spec.to_json())) == spec.to_json()


@pytest.mark.parametrize(
    ("changes", "field", "expected"),
    [
        ({"colour": "red"}, "colour", "one of backend, artifact"),
        ({"backend": 3}, "backend", "text"),
        ({"backend": None}, "backend", "a value"),
        ({"backend": " "}, "backend", "text"),
        ({"artifact": "absent.onnx"}, "artifact", "an existing file"),
        ({"artifact": "../model.onnx"}, "artifact", "inside the version's folder"),
        ({"artifact": "/etc/passwd"}, "artifact", "inside the version's folder"),
        ({"artifact": "."}, "artifact", "inside the version's folder"),
        ({"sha256": "abc"}, "sha256", "64 hex digits"),
        ({"sha256": None}, "sha256", "a value"),
        ({"max_batch_size": -1}, "max_batch_size", "at least 0"),
        ({"max_batch_size": True}, "max_batch_size", "an integer"),
        ({"max_batch_size": "8"}, "max_batch_size", "an integer"),
        ({"inputs": []}, "inputs", "at least one tensor"),
        ({"inputs": {"IN": "FP32"}}, "inputs", "at least one tensor"),
        ({"inputs": ["IN"]}, "inputs[0]", "a mapping"),
        ({"inputs": [{"name": "IN", "datatype": "FP32"}]}, "inputs[0].shape", "a value"),
        ({"inputs": [{**tensor("IN", "FP32", [-1]), "dtype": 1}]}, "inputs[0].dtype", "one of name, datatype, shape"),
        ({"inputs": [tensor("IN", "fp32", [-1])]}, "inputs[0].datatype", "one of BF16"),
        ({"inputs": [tensor("IN", "FP32", [3])]}, "inputs[0].shape", "-1 as the first (batch) dimension"),
        ({"inputs": [tensor("IN", "FP32", [])]}, "inputs[0].shape", "-1 as the first (batch) dimension"),
        ({"inputs": [tensor("IN", "FP32", [-1, 0])]}, "inputs[0].shape[1]", "a positive integer"),
        ({"inputs": [tensor("IN", "FP32", [-1, -2])]}, "inputs[0].shape[1]", "a positive integer"),
        ({"inputs": [{"name": "IN", "datatype": "FP32", "shape": 3}]}, "inputs[0].shape", "a list"),
        ({"inputs": [tensor("IN", "FP32", [-1]), tensor("IN", "FP32", [-1])]}, "inputs[1].name", "used once"),
        ({"outputs": [tensor("", "FP32", [-1])]}, "outputs[0].name", "text"),
        ({"labels": "absent.txt"}, "labels", "an existing file"),
        ({"labels": ["a"]}, "labels", "text"),
        ({"parameters": [1]}, "parameters", "a mapping"),
        ({"resources": "2GiB"}, "resources", "a mapping"),
        ({"resources": {"disk": 1}}, "resources.disk", "one of memory, gpu_memory"),
        ({"resources": {"memory": "2GiBi"}}, "resources.memory", "such as 2GiB"),
        ({"resources": {"memory": 0}}, "resources.memory", "at least one byte"),
        ({"resources": {"gpu_memory": -1}}, "resources.gpu_memory", "at least one byte"),
        ({"resources": {"gpu_memory": True}}, "resources.gpu_memory", "such as 2GiB"),
        ({"resources": {"gpu_memory": None}}, "resources.gpu_memory", "such as 2GiB"),
        ({"parameters": {"scale": float("inf")}}, "parameters.scale", "a finite number"),
        ({"provenance": "me"}, "provenance", "a mapping"),
    ],
)
def test_a_wrong_field_is_named_with_its_file_and_what_was_expected(
    tmp_path: Path, changes: dict[str, Any], field: str, expected: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, document(**changes))
    assert caught.value.field == field
    assert caught.value.file == tmp_path / "model.yaml"
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"cat\n\ndog\n", b"\xff\xfe"])
def test_a_labels_file_without_a_label_in_every_line_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(SpecError, match="labels"):
        load(tmp_path, document(labels="labels.txt"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "a mapping"),
        ("", "a mapping"),
        ("backend: [unclosed\n", "line"),
        ("backend: a\nbackend: b\n", "occurs twice"),
        ("backend: &x a\nartifact: *x\n", "alias"),
        ("1: a\n", "key must be text"),
        ("backend: !!python/object/apply:os.getcwd []\n", "constructor"),
        ("backend: !!binary aGVsbG8=\n", "text, a number"),
        ("\x00", "plain YAML"),
    ],
)
def test_yaml_that_is_not_a_mapping_of_plain_data_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        load(tmp_path, text)


def test_a_folder_without_model_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"model\.yaml.*to exist"):
        load_spec(tmp_path, name="digits", version=1)


names = st.text(min_size=1).filter(str.strip)
tensors = st.builds(
    TensorSpec,
    name=names,
    datatype=st.sampled_from(sorted(DATATYPES)),
    shape=st.lists(st.integers(-1, 9).filter(bool), max_size=4).map(lambda rest: (-1, *rest)),
)
unique_tensors = st.lists(tensors, min_size=1, max_size=3, unique_by=lambda item: item.name).map(tuple)
specs = st.builds(
    ModelSpec,
    name=names,
    version=st.integers(1, 10**9),
    backend=names,
    artifact=names,
    sha256=st.just("ab" * 32),
    max_batch_size=st.integers(0, 64),
    inputs=unique_tensors,
    outputs=unique_tensors,
    labels=st.lists(names, max_size=3).map(tuple),
    parameters=st.dictionaries(names, st.integers(), max_size=2),
    resources=st.builds(Resources, memory=st.integers(0, 1 << 50), gpu_memory=st.integers(0, 1 << 50)),
    provenance=st.dictionaries(names, names, max_size=2),
)


@given(spec=specs)
def test_a_spec_survives_the_way_through_json(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@pytest.mark.parametrize("changes", [{"version": 0}, {"labels": "x"}, {"labels": [1]}, {"name": None}, {"extra": 1}])
def test_a_wrong_schema_in_json_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=next(iter(changes))):
        ModelSpec.from_json({**document(), "name": "digits", "version": 1, **changes})


def test_a_schema_that_is_no_mapping_is_refused() -> None:
    with pytest.raises(SpecError, match="a mapping"):
        ModelSpec.from_json([1])
