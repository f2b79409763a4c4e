import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tensor import NUMPY_DTYPES, Array, Tensor, from_numpy
from serving.errors import InvalidArgumentError
from serving.protocol.classification import classify


def texts(datatype: str, array: Array, classes: int, labels: tuple[str, ...] = (), *, batched: bool = True) -> Array:
    return classify(from_numpy("x", datatype, array), classes, labels, batched=batched).numpy()


@given(st.lists(st.lists(st.integers(-3, 3), min_size=4, max_size=4), min_size=1, max_size=4), st.integers(1, 6))
def test_the_best_classes_come_first_and_ties_by_index(rows: list[list[int]], classes: int) -> None:
    for datatype in ("INT8", "FP32"):
        found = texts(datatype, np.array(rows), classes)
        assert found.shape == (len(rows), min(classes, 4))
        for row, line in zip(rows, found, strict=True):
            expected = sorted(range(4), key=lambda index: (-row[index], index))[:classes]
            assert line.tolist() == [f"{row[index]:f}:{index}".encode() for index in expected]


def test_labels_are_added_as_far_as_there_are_any() -> None:
    assert texts("FP32", np.array([[1.0, 2.0]]), 2, ("zero",)).tolist() == [[b"2.000000:1", b"1.000000:0:zero"]]


@pytest.mark.parametrize("datatype", ["UINT8", "UINT64", "INT64"])
def test_the_largest_integers_are_ordered_exactly(datatype: str) -> None:
    limit = int(np.iinfo(NUMPY_DTYPES[datatype]).max)
    found = texts(datatype, np.array([[0, limit - 1, limit]], NUMPY_DTYPES[datatype]), 3)
    assert [text.split(b":")[1] for text in found[0]] == [b"2", b"1", b"0"]


def test_the_smallest_integer_is_the_last() -> None:
    found = texts("INT8", np.array([[-128, 0, 127]]), 3)
    assert [text.split(b":")[1] for text in found[0]] == [b"2", b"1", b"0"]


def test_nan_comes_last() -> None:
    assert texts("FP32", np.array([[np.nan, 1.0, np.inf]]), 3).tolist() == [[b"inf:2", b"1.000000:1", b"nan:0"]]


def test_bools_and_halves_can_be_classified() -> None:
    assert texts("BOOL", np.array([[False, True]]), 1).tolist() == [[b"1.000000:1"]]
    assert texts("FP16", np.array([[0.5, 0.25]]), 1).tolist() == [[b"0.500000:0"]]
    bf16 = Tensor("x", "BF16", (1, 2), np.array([0x3F80, 0x4000], np.uint16).tobytes())
    assert classify(bf16, 1, (), batched=True).numpy().tolist() == [[b"2.000000:1"]]


def test_an_item_of_several_dimensions_is_one_row() -> None:
    assert texts("INT8", np.arange(12).reshape(2, 2, 3), 1).tolist() == [[b"5.000000:5"], [b"11.000000:5"]]


def test_a_model_without_batch_gives_one_row_without_batch() -> None:
    assert texts("INT8", np.array([1, 3, 2]), 2, batched=False).tolist() == [b"3.000000:1", b"2.000000:2"]
    assert texts("INT8", np.array([], np.int8), 2, batched=False).shape == (0,)


def test_bytes_cannot_be_classified() -> None:
    with pytest.raises(InvalidArgumentError, match="BYTES"):
        texts("BYTES", np.array([[b"a"]], dtype=object), 1)


def test_items_without_scores_keep_their_batch() -> None:
    assert texts("FP32", np.zeros((2, 0, 2)), 2).shape == (2, 0)
    assert texts("FP32", np.zeros((0, 2)), 2).shape == (0, 2)
