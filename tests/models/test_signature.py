import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import Malformation, MalformedOutputError
from models.signature import check_outputs
from models.spec import ModelSpec
from models.tensor import NUMPY_DTYPES, Array
from tests.models.making import document, tensor


def spec(*outputs: dict[str, Any], max_batch_size: int = 8) -> ModelSpec:
    return ModelSpec.from_json(
        {**document(outputs=list(outputs), max_batch_size=max_batch_size), "name": "model", "version": 1}
    )


def test_an_answer_as_declared_passes() -> None:
    declared = spec(tensor("scores", "FP32", [-1, 10]), tensor("boxes", "FP32", [-1, -1, 4]))
    answer = {"scores": np.zeros((3, 10), "<f4"), "boxes": np.zeros((3, 7, 4), "<f4")}
    check_outputs(declared, answer, 3)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ({}, Malformation.MISSING_OUTPUT, r"output 'scores': expected an array, found only nothing"),
        (
            {"Scores": np.zeros((3, 10), "<f4")},
            Malformation.MISSING_OUTPUT,
            r"output 'scores': expected an array, found only Scores",
        ),
        ({"scores": np.zeros((3, 10), "<f8")}, Malformation.DATATYPE, r"expected FP32, found float64"),
        ({"scores": np.zeros((3, 10), "<f2")}, Malformation.DATATYPE, r"expected FP32, found float16"),
        ({"scores": np.zeros((2, 10), "<f4")}, Malformation.SHAPE, r"expected shape \[3, 10\], found \[2, 10\]"),
        ({"scores": np.zeros((3, 9), "<f4")}, Malformation.SHAPE, r"expected shape \[3, 10\], found \[3, 9\]"),
        ({"scores": np.zeros(30, "<f4")}, Malformation.SHAPE, r"expected shape \[3, 10\], found \[30\]"),
        (
            {"scores": np.zeros((3, 10), "<f4"), "extra": np.zeros(3)},
            Malformation.EXTRA_OUTPUT,
            r"output 'extra': expected only scores, found an output that is not declared",
        ),
    ],
)
def test_a_malformed_answer_names_kind_output_expectation_and_finding(
    answer: dict[str, Array], kind: Malformation, message: str
) -> None:
    with pytest.raises(MalformedOutputError, match=message) as caught:
        check_outputs(spec(tensor("scores", "FP32", [-1, 10])), answer, 3)
    assert caught.value.kind is kind
    assert str(caught.value).startswith(f"{kind}: output ")


@given(kind=st.sampled_from(Malformation), output=st.text(), expected=st.text(), found=st.text())
def test_the_kind_can_be_read_from_the_text_alone_whatever_follows(
    kind: Malformation, output: str, expected: str, found: str
) -> None:
    assert Malformation.of(str(MalformedOutputError(kind, output, expected, found))) is kind


@pytest.mark.parametrize("text", ["", "wrong shape", "KeyError: 'wrong shape: '", "output 'y': expected an array"])
def test_a_text_that_no_check_wrote_names_no_kind(text: str) -> None:
    assert Malformation.of(text) is None


def test_rows_do_not_matter_to_a_model_without_batch_dimension() -> None:
    declared = spec(tensor("OUT", "INT64", [2, -1]), max_batch_size=0)
    check_outputs(declared, {"OUT": np.zeros((2, 5), "<i8")}, 99)
    with pytest.raises(MalformedOutputError, match=r"shape \[2, -1\]"):
        check_outputs(declared, {"OUT": np.zeros((3, 5), "<i8")}, 99)


@pytest.mark.parametrize("datatype", sorted(NUMPY_DTYPES))
def test_every_datatype_is_told_from_every_other(datatype: str) -> None:
    declared = spec(tensor("OUT", datatype, [-1]))
    for other, dtype in NUMPY_DTYPES.items():
        if other == datatype:
            check_outputs(declared, {"OUT": np.zeros(2, dtype)}, 2)
        else:
            with pytest.raises(MalformedOutputError):
                check_outputs(declared, {"OUT": np.zeros(2, dtype)}, 2)


def test_bytes_are_objects_or_text_and_bf16_is_raw_words() -> None:
    for array in (np.array([b"a", b"b"], object), np.array([b"a", b"b"]), np.array(["a", "b"])):
        check_outputs(spec(tensor("OUT", "BYTES", [-1])), {"OUT": array}, 2)
    check_outputs(spec(tensor("OUT", "BF16", [-1])), {"OUT": np.zeros(2, "<u2")}, 2)
    with pytest.raises(MalformedOutputError):
        check_outputs(spec(tensor("OUT", "BYTES", [-1])), {"OUT": np.zeros(2, "u1")}, 2)
    with pytest.raises(MalformedOutputError):
        check_outputs(spec(tensor("OUT", "BF16", [-1])), {"OUT": np.zeros(2, "<f2")}, 2)


def test_a_check_takes_microseconds() -> None:
    declared, answer = spec(tensor("scores", "FP32", [-1, 10])), {"scores": np.zeros((3, 10), "<f4")}
    best_s = min(_time_s(declared, answer) for _ in range(5))
    assert best_s / 1000 < 50e-6  # about 2 µs on a free core; room for a busy one


def _time_s(declared: ModelSpec, answer: dict[str, Array]) -> float:
    started_s = time.perf_counter()
    for _ in range(1000):
        check_outputs(declared, answer, 3)
    return time.perf_counter() - started_s
