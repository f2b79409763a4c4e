"""Which batches of zeros a model is warmed up with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backends import open_backend
from models.repository import open_version
from models.signature import check_outputs
from models.spec import ModelSpec, StepSpec, TensorSpec
from models.warm_up import batch_sizes, zeros
from tests.models.making import ONNX_TYPES, identity_graph, tensor, write_version


def spec_of(*inputs: TensorSpec, max_batch_size: int = 8, **fields: Any) -> ModelSpec:
    return ModelSpec(
        name="m",
        version=1,
        backend="b",
        artifact="a",
        sha256="0" * 64,
        max_batch_size=max_batch_size,
        inputs=inputs,
        outputs=inputs,
        **fields,
    )


@pytest.mark.parametrize(
    ("declared", "limit", "own", "sizes"),
    [
        (None, 32, 8, (1, 8)),
        (None, 4, 8, (1, 4)),
        (None, 1, 8, (1,)),
        ((), 32, 8, ()),
        ((4, 2), 32, 8, (4, 2)),
        ((1, 8, 32), 32, 8, (1, 8)),
        (None, 32, 0, (1,)),
        ((4, 8), 32, 0, (1,)),
        ((), 32, 0, ()),
    ],
)
def test_sizes_are_the_declared_ones_or_one_and_the_largest_that_is_batched(
    declared: tuple[int, ...] | None, limit: int, own: int, sizes: tuple[int, ...]
) -> None:
    assert batch_sizes(spec_of(max_batch_size=own), declared, limit=limit) == sizes


@given(declared=st.none() | st.lists(st.integers(1, 64)).map(tuple), limit=st.integers(1, 64), own=st.integers(0, 64))
def test_no_batch_of_the_warm_up_is_larger_than_one_of_clients_or_comes_twice(
    declared: tuple[int, ...] | None, limit: int, own: int
) -> None:
    sizes = batch_sizes(spec_of(max_batch_size=own), declared, limit=limit)
    assert all(1 <= size <= max(1, min(limit, own)) for size in sizes)
    assert len(set(sizes)) == len(sizes)


@pytest.mark.parametrize("datatype", sorted(ONNX_TYPES))
def test_a_model_of_any_datatype_runs_on_its_zeros(tmp_path: Path, datatype: str) -> None:
    version = open_version(
        write_version(
            tmp_path,
            identity_graph(datatype, ["n", 3]),
            inputs=[tensor("IN", datatype, [-1, 3])],
            outputs=[tensor("OUT", datatype, [-1, 3])],
        )
    )
    backend = open_backend(version)
    backend.load()
    for rows in (1, 8):
        inputs = zeros(version.spec, rows)
        assert inputs["IN"].shape == (rows, 3)
        assert not any(inputs["IN"].ravel().tolist())
        check_outputs(version.spec, backend.run(inputs), rows)
    backend.close()


def test_variable_sizes_other_than_the_batch_are_one() -> None:
    spec = spec_of(TensorSpec(name="x", datatype="FP32", shape=(-1, 3, -1, -1)))
    assert zeros(spec, 4)["x"].shape == (4, 3, 1, 1)


def test_a_model_without_a_batch_dimension_gets_its_own_shape() -> None:
    spec = spec_of(TensorSpec(name="x", datatype="INT64", shape=(2, 2)), max_batch_size=0)
    assert zeros(spec, 1)["x"].tolist() == [[0, 0], [0, 0]]


def test_where_pictures_are_decoded_the_zeros_are_what_the_artifact_takes() -> None:
    made = TensorSpec(name="image", datatype="FP32", shape=(-1, 1, 8, 8))
    picture = TensorSpec(name="picture", datatype="BYTES", shape=(-1,))
    spec = spec_of(picture, preprocess=(StepSpec(input="picture", kind="image", tensor=made),))
    found = zeros(spec, 2)
    assert list(found) == ["image"]
    assert np.array_equal(found["image"], np.zeros((2, 1, 8, 8), np.float32))
