from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models.tensor import NUMPY_DTYPES, decode_bytes, encode_bytes, from_numpy, to_numpy

arrays = st.sampled_from(sorted(NUMPY_DTYPES)).flatmap(
    lambda name: st.tuples(
        st.just(name), hnp.arrays(NUMPY_DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    )
)


@given(case=arrays)
def test_an_array_survives_the_way_through_its_wire_bytes(case: tuple[str, np.ndarray[Any, Any]]) -> None:
    datatype, array = case
    tensor = from_numpy("x", datatype, array)
    assert len(tensor.data) == array.nbytes
    back = tensor.numpy()
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


@given(elements=st.lists(st.binary(max_size=9), max_size=5))
def test_bytes_survive_the_way_through_the_wire(elements: list[bytes]) -> None:
    assert decode_bytes(encode_bytes([*elements])) == elements
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    assert from_numpy("x", "BYTES", array).numpy().tolist() == elements


def test_other_byte_orders_and_strides_are_copied_into_the_wire_form() -> None:
    array = np.arange(6, dtype=">i4").reshape(2, 3).T
    assert from_numpy("x", "INT32", array).numpy().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_the_array_is_a_view_of_the_wire_bytes() -> None:
    data = bytearray(8)
    view = to_numpy("FP32", (2,), data)
    data[:4] = np.float32(2).tobytes()
    assert view.tolist() == [2, 0]


def test_bf16_is_shown_as_raw_words() -> None:
    assert to_numpy("BF16", (2,), b"\x80\x3f\x00\x40").tolist() == [0x3F80, 0x4000]


@pytest.mark.parametrize("data", [b"\x05\x00\x00\x00abc", b"\x01\x00\x00", b"\xff\xff\xff\xff"])
def test_a_bytes_element_that_runs_past_the_end_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="past the end"):
        decode_bytes(data)


def test_data_that_does_not_make_up_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="reshape"):
        to_numpy("FP32", (3,), bytes(8))
