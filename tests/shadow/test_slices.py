from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadow.errors import ShadowError
from shadow.slices import MAX_SLICES, Slices

CAMERAS = Slices("camera", ["lobby", "gate", "7", "true", "0.5"])


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"camera": "gate"}, "gate"),
        ({"camera": "roof"}, "other"),
        ({"camera": ""}, "other"),
        ({"camera": 7}, "7"),
        ({"camera": True}, "true"),
        ({"camera": 1}, "other"),
        ({"camera": 0.5}, "0.5"),
        ({"camera": ["gate"]}, "other"),
        ({"camera": None}, ""),
        ({"priority": 1}, ""),
        ({}, ""),
    ],
)
def test_a_request_belongs_to_the_slice_that_its_parameter_names(parameters: dict[str, Any], name: str) -> None:
    assert CAMERAS.of(parameters) == name


@given(
    parameters=st.dictionaries(
        st.sampled_from(["camera", "", "x"]), st.text() | st.integers() | st.booleans() | st.floats() | st.none()
    )
)
def test_clients_cannot_make_more_slices_than_are_declared(parameters: dict[str, Any]) -> None:
    assert CAMERAS.of(parameters) in {*CAMERAS.names, "other", ""}
    assert Slices().of(parameters) == ""


@pytest.mark.parametrize(
    ("parameter", "values", "problem"),
    [
        ("", ["lobby"], "slices.parameter: expected the name of a request's parameter, got none"),
        ("camera", [], "slices.values: expected 1 to 64 values of camera, got 0"),
        ("camera", [str(each) for each in range(MAX_SLICES + 1)], "slices.values: expected 1 to 64 values of camera"),
        ("camera", ["lobby", "other"], "slices.values: 'other' stands for what is not declared"),
        ("camera", [""], "slices.values: '' stands for what is not declared"),
        ("camera", ["a", "b", "a"], "slices.values: expected different values, got ['a', 'b', 'a']"),
    ],
)
def test_a_declaration_that_is_wrong_is_refused_by_its_name(parameter: str, values: list[str], problem: str) -> None:
    with pytest.raises(ShadowError) as caught:
        Slices(parameter, values)
    assert str(caught.value).startswith(problem)
