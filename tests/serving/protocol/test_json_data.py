import json
import math
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tensor import NUMPY_DTYPES, Tensor, from_numpy, to_numpy
from serving.errors import InvalidArgumentError
from serving.protocol.json_data import decode_data, encode_data, parse

INTEGERS = sorted(name for name, dtype in NUMPY_DTYPES.items() if dtype.kind in "iu")


def written(tensor: Tensor) -> bytes:
    return orjson.dumps(encode_data(tensor), option=orjson.OPT_SERIALIZE_NUMPY)


@given(st.sampled_from(INTEGERS), st.data())
def test_integers_go_in_exactly_or_not_at_all(datatype: str, data: st.DataObject) -> None:
    limits = np.iinfo(NUMPY_DTYPES[datatype])
    values = data.draw(st.lists(st.integers(limits.min - 2, limits.max + 2), min_size=1, max_size=4))
    if all(limits.min <= value <= limits.max for value in values):
        wire = decode_data("x", datatype, (len(values),), len(values), values)
        assert to_numpy(datatype, (len(values),), wire).tolist() == values
        assert json.loads(written(Tensor("x", datatype, (len(values),), wire))) == values
    else:
        with pytest.raises(InvalidArgumentError, match=datatype):
            decode_data("x", datatype, (len(values),), len(values), values)


@given(st.lists(st.floats(width=32), max_size=5), st.sampled_from(["FP32", "FP64"]))
def test_floats_come_back_as_they_went_in(values: list[float], datatype: str) -> None:
    wire = decode_data("x", datatype, (len(values),), len(values), values)
    text = written(Tensor("x", datatype, (len(values),), wire))
    back = np.array(json.loads(text), NUMPY_DTYPES[datatype])
    assert b"null" not in text
    np.testing.assert_array_equal(back, np.array(values, NUMPY_DTYPES[datatype]))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=3))
def test_nested_and_flat_data_are_the_same(shape: list[int]) -> None:
    count = math.prod(shape)
    array = np.arange(count, dtype=np.int16).reshape(shape)
    nested = decode_data("x", "INT16", tuple(shape), count, array.tolist())
    assert nested == decode_data("x", "INT16", tuple(shape), count, array.ravel().tolist()) == array.tobytes()


def test_a_finite_number_beyond_fp32_is_refused_and_infinity_is_not() -> None:
    with pytest.raises(InvalidArgumentError, match="range of FP32"):
        decode_data("x", "FP32", (1,), 1, [1e39])
    assert decode_data("x", "FP32", (1,), 1, [math.inf]) == np.float32(np.inf).tobytes()


def test_an_unaligned_output_is_written() -> None:
    wire = memoryview(b"x" + np.array([1.5, -2.5]).tobytes())[1:]
    assert written(Tensor("x", "FP64", (2,), wire)) == b"[1.5,-2.5]"


def test_an_output_of_any_shape_is_written_flat() -> None:
    assert json.loads(written(from_numpy("x", "INT32", np.arange(6).reshape(2, 3)))) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"nan",
        b'"\xff"',
        b'["NaN", "\xff"]',
        b'["NaN", "\\ud800"]',
        b"[NaN, 1e400]",
        b"[NaN, " + b"9" * 400 + b"]",
        b"[NaN]x",
        b"[" * 100_000,
        b"[" * 100_000 + b"NaN",
        b"[NaN" + b",[" * 500 + b"]" * 501,
        b"[NaN, " + b"9" * 5000 + b"]",
    ],
    ids=lambda text: repr(text[:40]),
)
def test_what_is_no_json_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="malformed JSON"):
        parse(memoryview(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[NaN]", [math.nan]),
        (b"[-Infinity, 18446744073709551615]", [-math.inf, 2**64 - 1]),
        (b"[Infinity, 36893488147419103232]", [math.inf, 2.0**65]),
        (b'"NaN"', "NaN"),
    ],
)
def test_bare_non_finite_numbers_are_read(text: bytes, expected: Any) -> None:
    assert repr(parse(memoryview(text))) == repr(expected)


@pytest.mark.parametrize("datatype", ["INT32", "BOOL", "FP32", "FP64", "BYTES"])
@pytest.mark.parametrize("count", [16 * 1024, 16 * 1024 + 1, 50_000])
def test_a_large_output_is_written_like_a_small_one(datatype: str, count: int) -> None:
    numbers = np.arange(count) % 2 if datatype == "BOOL" else np.arange(count) / 7
    values = np.array([f"é{n}" for n in range(count)], object) if datatype == "BYTES" else numbers
    array = values if datatype == "BYTES" else values.astype(NUMPY_DTYPES[datatype])
    tensor = from_numpy("y", datatype, array)
    assert np.array(json.loads(written(tensor)), array.dtype).tolist() == array.tolist()
    if datatype.startswith("FP"):
        array[count // 2] = np.nan
        back = json.loads(written(from_numpy("y", datatype, array)))
        assert np.array_equal(np.array(back, array.dtype), array, equal_nan=True)
