"""What holds for every comparator: the contract, and how one is opened."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tensor import Array
from shadow.comparators import COMPARATORS, DELTA_CAP, Comparator, Comparison, Measure, open_comparator
from shadow.comparators.classification import Classification
from shadow.errors import ShadowError
from tests.shadow.comparators_for_tests import Neighbours

CUSTOM = "tests.shadow.comparators_for_tests"
PARAMETERS: Mapping[str, Mapping[str, Any]] = {"segmentation": {"classes": 3}, "classification": {"k": 2}}
KINDS = sorted(COMPARATORS)


def opened(kind: str) -> Comparator:
    return open_comparator(kind, "scores", PARAMETERS.get(kind))


def outputs(kind: str, generator: np.random.Generator, n: int) -> dict[str, Array]:
    """Outputs of n items as a sane model of this kind would give them, all numbers different."""
    if kind == "segmentation":
        return {"scores": generator.integers(0, 3, (n, 7, 5)).astype(np.float32)}
    if kind == "detection":
        corners = generator.random((n, 6, 4), np.float32)
        corners[..., 2:] += corners[..., :2]
        return {
            "boxes": corners,
            "scores": generator.random((n, 6), np.float32),
            "classes": generator.integers(0, 4, (n, 6)).astype(np.float32),
        }
    values = generator.random((n, 12), np.float32)
    return {"scores": values / values.sum(axis=1, keepdims=True)}


def changed(outputs: dict[str, Array], generator: np.random.Generator) -> dict[str, Array]:
    """The same of another model: some numbers exchanged between items."""
    order = generator.permutation(len(next(iter(outputs.values()))))
    some = generator.random(len(order)) < 0.7
    return {name: np.where(some.reshape(-1, *[1] * (a.ndim - 1)), a[order], a) for name, a in outputs.items()}


def figures(found: Comparison) -> dict[str, Array]:
    named = {name: getattr(found, name) for name in ("max_delta", "mean_delta", "baseline_top1", "candidate_top1")}
    return {**named, **found.measures}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8))
@settings(deadline=None, max_examples=25)
def test_outputs_agree_fully_with_themselves(kind: str, seed: int, n: int) -> None:
    comparator = opened(kind)
    side = outputs(kind, np.random.default_rng(seed), n)
    found = comparator.compare(side, side)
    assert found.max_delta.tolist() == found.mean_delta.tolist() == [0.0] * n
    assert found.baseline_top1.tolist() == found.candidate_top1.tolist()
    for measure in comparator.measures:
        best = measure.low if measure.agrees == "low" else measure.high
        values = found.measures[measure.name]
        assert (np.isnan(values) | (values == best)).all(), measure.name


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8))
@settings(deadline=None, max_examples=25)
def test_items_in_another_order_give_the_same_figures_in_that_order(kind: str, seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    left = outputs(kind, generator, n)
    right, order = changed(left, generator), generator.permutation(n)
    comparator = opened(kind)
    there = figures(comparator.compare(left, right))
    ordered = [{name: array[order] for name, array in side.items()} for side in (left, right)]
    for name, values in figures(comparator.compare(*ordered)).items():
        np.testing.assert_array_equal(values, there[name][order], err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_differences_are_the_same_either_way_round(kind: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    left = outputs(kind, generator, 6)
    right = changed(left, generator)
    comparator = opened(kind)
    there, back = comparator.compare(left, right), comparator.compare(right, left)
    np.testing.assert_allclose(there.max_delta, back.max_delta, rtol=0, atol=1e-12)
    np.testing.assert_allclose(there.mean_delta, back.mean_delta, rtol=0, atol=1e-12)
    assert there.baseline_top1.tolist() == back.candidate_top1.tolist()
    asymmetric = {"kl_divergence", "top1_delta", "ndcg", "kendall"}
    for measure in comparator.measures:
        if measure.name not in asymmetric:
            one, other = there.measures[measure.name], back.measures[measure.name]
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-12, err_msg=measure.name)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**32 - 1), junk=st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -1.0, 0.5, 1e-45]))
@settings(deadline=None, max_examples=40)
def test_no_number_at_all_breaks_a_comparator_or_leaves_its_bounds(kind: str, seed: int, junk: float) -> None:
    generator = np.random.default_rng(seed)
    left = outputs(kind, generator, 5)
    right = changed(left, generator)
    for side in (left, right):
        for array in side.values():
            array[generator.random(array.shape) < generator.choice([0.0, 0.1, 1.0])] = junk
    found = opened(kind).compare(left, right)
    for delta in (found.max_delta, found.mean_delta):
        assert ((delta >= 0) & (delta <= DELTA_CAP)).all()
    for values in figures(found).values():
        assert values.shape == (5,)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"detection"}))  # to which another number of boxes is no other shape
def test_sides_of_different_shapes_differ_infinitely(kind: str) -> None:
    left = outputs(kind, np.random.default_rng(1), 3)
    right = {name: np.concatenate((array, array), axis=1) for name, array in left.items()}
    comparator = opened(kind)
    found = comparator.compare(left, right)
    assert found.max_delta.tolist() == found.mean_delta.tolist() == [DELTA_CAP] * 3
    for measure in comparator.measures:
        values = found.measures[measure.name]
        assert (np.isnan(values) | (values == measure.worst)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_registered_comparator_opens_and_reads_the_output(kind: str) -> None:
    comparator = open_comparator(kind, "logits", PARAMETERS.get(kind))
    assert "logits" in comparator.outputs
    assert len({measure.name for measure in comparator.measures}) == len(comparator.measures) > 0


def test_a_users_comparator_is_named_by_import_path() -> None:
    assert isinstance(open_comparator("shadow.comparators.classification:Classification", "scores"), Classification)
    mine = open_comparator(f"{CUSTOM}:Neighbours", "scores", {"beside": "ids"})
    assert isinstance(mine, Neighbours)
    assert mine.outputs == ("scores", "ids")


@pytest.mark.parametrize("kind", ["nonsense", "no.such.module:Name", "shadow.comparators:Missing"])
def test_an_unknown_comparator_is_refused_by_name(kind: str) -> None:
    with pytest.raises(ShadowError, match=rf"comparator\.kind: .*{kind}"):
        open_comparator(kind, "scores")


@pytest.mark.parametrize(
    ("kind", "parameters", "complaint"),
    [
        ("classification", {"radius": 3}, "comparator.parameters: classification: .*'radius'"),
        ("classification", {"output": "x"}, "comparator.parameters"),
        ("classification", {"k": 0}, r"comparator\.parameters\.k: expected a whole number from 1, got 0"),
        ("classification", {"k": True}, r"parameters\.k: .* got True"),
        ("classification", {"k": 2.0}, r"parameters\.k: .* got 2\.0"),
        ("classification", {"logits": 1}, r"parameters\.logits: expected true or false, got 1"),
        ("embedding", {"k": "5"}, r"parameters\.k: .* got '5'"),
        ("ranking", {"k": -1}, r"parameters\.k"),
        ("detection", {"iou": 0}, r"parameters\.iou: expected a number from 0\.01 to 1, got 0"),
        ("detection", {"iou": float("nan")}, r"parameters\.iou"),
        ("detection", {"threshold": 2}, r"parameters\.threshold: expected a number from 0 to 1, got 2"),
        ("detection", {"boxes": ""}, r"parameters\.boxes: expected a name, got ''"),
        ("detection", {"boxes": "scores"}, r"outputs: expected names without ';'"),
        ("segmentation", {}, "either classes, .* or axis"),
        ("segmentation", {"classes": 3, "axis": 0}, "either classes, .* or axis"),
        ("segmentation", {"axis": 3}, r"parameters\.axis: expected one of \[0, 1, 2, -1\], got 3"),
        ("segmentation", {"classes": 3, "distance": -1}, r"parameters\.distance"),
        (f"{CUSTOM}:Fragile", {}, r"cannot open .*Fragile': RuntimeError\('no scores'\)"),
        (f"{CUSTOM}:Neighbours", {}, "missing a required .*argument: 'beside'"),
        (f"{CUSTOM}:Neighbours", {"beside": "a;b"}, r"outputs: expected names without ';', got \('scores', 'a;b'\)"),
        (f"{CUSTOM}:Unmeasured", {}, r"measures: expected different measures, got \('accuracy',\)"),
        (f"{CUSTOM}:Measure", {}, "comparator.parameters"),
        ("classification", {"k": {1, 2}}, r"comparator\.parameters: expected plain JSON values"),
    ],
)
def test_a_wrong_parameter_or_comparator_is_refused_by_name(
    kind: str, parameters: Mapping[str, Any], complaint: str
) -> None:
    with pytest.raises(ShadowError, match=complaint):
        open_comparator(kind, "scores", parameters)


@pytest.mark.parametrize(
    "facts", [{"name": ""}, {"low": 1.0}, {"low": 2.0}, {"high": float("inf")}, {"low": float("nan")}, {"agrees": "x"}]
)
def test_a_measure_needs_a_name_and_room_between_its_ends(facts: dict[str, Any]) -> None:
    with pytest.raises(ShadowError, match="comparator: measure"):
        Measure(**{"name": "m", **facts})
