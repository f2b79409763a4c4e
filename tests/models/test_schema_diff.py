import json
from typing import Any

import pytest
from hypothesis import given

from models.schema_diff import SchemaDiff, diff
from models.spec import ModelSpec
from tests.models.making import document, tensor
from tests.models.test_spec import specs


def spec(**changes: Any) -> ModelSpec:
    return ModelSpec.from_json({**document(**changes), "name": "model", "version": 1})


def changed(**changes: Any) -> SchemaDiff:
    before = {
        "inputs": [tensor("image", "UINT8", [-1, 3, 224]), tensor("mask", "BOOL", [-1])],
        "outputs": [tensor("scores", "FP32", [-1, 10]), tensor("boxes", "FP32", [-1, -1, 4])],
        "labels": ["cat", "dog"],
    }
    return diff(spec(**before), spec(**{**before, **changes}))


@given(spec=specs)
def test_a_spec_does_not_differ_from_itself(spec: ModelSpec) -> None:
    found = diff(spec, spec)
    assert found.differences == ()
    assert found.compatible
    assert found.drift == 0


@given(a=specs, b=specs)
def test_the_drift_lies_between_0_and_1_and_is_1_when_incompatible(a: ModelSpec, b: ModelSpec) -> None:
    found = diff(a, b)
    assert 0 <= found.drift <= 1
    assert (found.drift == 1) or found.compatible
    assert len(found.differences) <= found.compared


IMAGE, MASK = tensor("image", "UINT8", [-1, 3, 224]), tensor("mask", "BOOL", [-1])
SCORES, BOXES = tensor("scores", "FP32", [-1, 10]), tensor("boxes", "FP32", [-1, -1, 4])


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"inputs": [IMAGE]}, "inputs.mask", "removed"),
        ({"inputs": [IMAGE, MASK, tensor("more", "BOOL", [-1])]}, "inputs.more", "clients do not send it"),
        ({"inputs": [tensor("image", "FP32", [-1, 3, 224]), MASK]}, "inputs.image.datatype", "bytes mean"),
        ({"inputs": [tensor("image", "UINT8", [-1, 1, 224]), MASK]}, "inputs.image.shape", "3 became 1"),
        ({"inputs": [tensor("image", "UINT8", [-1, 224]), MASK]}, "inputs.image.shape", "another rank"),
        ({"outputs": [SCORES]}, "outputs.boxes", "removed"),
        ({"outputs": [tensor("scores", "FP16", [-1, 10]), BOXES]}, "outputs.scores.datatype", "bytes mean"),
        ({"outputs": [tensor("scores", "FP32", [-1, -1]), BOXES]}, "outputs.scores.shape", "10 became variable"),
        ({"max_batch_size": 4}, "max_batch_size", "cannot take the batches"),
        ({"max_batch_size": 0}, "max_batch_size", "batch dimension"),
        ({"labels": ["dog", "cat"]}, "labels", "another class"),
        ({"labels": []}, "labels", "another class"),
        ({"artifact": "model.pkl"}, "serialisation", "unpickled"),
        ({"artifact": "model.pth"}, "serialisation", "unpickled"),
    ],
)
def test_what_can_break_a_client_or_a_mirrored_batch_is_incompatible(
    changes: dict[str, Any], field: str, reason: str
) -> None:
    found = changed(**changes)
    assert not found.compatible
    assert found.drift == 1
    difference = next(item for item in found.differences if item.field == field)
    assert not difference.compatible
    assert reason in difference.reason


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"inputs": [tensor("image", "UINT8", [-1, 3, -1]), MASK]}, "inputs.image.shape"),
        ({"inputs": [MASK, IMAGE]}, "inputs.order"),
        ({"outputs": [SCORES, tensor("boxes", "FP32", [-1, 100, 4])]}, "outputs.boxes.shape"),
        ({"outputs": [SCORES, BOXES, tensor("mask", "BOOL", [-1])]}, "outputs.mask"),
        ({"max_batch_size": 64}, "max_batch_size"),
        ({"backend": "torch"}, "backend"),
        ({"artifact": "model.pt2"}, "serialisation"),
        ({"parameters": {"device": "cuda"}}, "parameters"),
    ],
)
def test_what_no_client_can_notice_is_compatible(changes: dict[str, Any], field: str) -> None:
    found = changed(**changes)
    assert [item.field for item in found.differences] == [field]
    assert found.compatible
    assert 0 < found.drift < 0.2


def test_an_input_that_was_variable_may_not_become_fixed() -> None:
    before, after = spec(inputs=[tensor("a", "FP32", [-1, -1])]), spec(inputs=[tensor("a", "FP32", [-1, 7])])
    assert not diff(before, after).compatible
    assert diff(after, before).compatible


def test_labels_for_classes_that_had_none_are_compatible() -> None:
    assert diff(spec(), spec(labels=["cat"])).compatible


def test_the_diff_can_be_printed_as_json() -> None:
    printed = json.loads(json.dumps(changed(max_batch_size=4).to_json()))
    assert printed["compatible"] is False
    assert printed["differences"][0] == {
        "field": "max_batch_size",
        "baseline": 8,
        "candidate": 4,
        "compatible": False,
        "reason": "cannot take the batches that the baseline takes",
    }
