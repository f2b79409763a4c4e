"""One suite over every backend: what `models.backend.Backend` promises."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.backend import Backend
from models.backends import BACKENDS, open_backend
from models.errors import ArtifactError, BackendError
from models.repository import open_version
from models.signature import check_outputs
from models.tensor import NUMPY_DTYPES, Array
from tests.models.making import identity_graph, tensor, write_version

MAX_BATCH_SIZE = 8
MISSING = "the torch extra is not installed"


def onnx_identity(datatype: str, shape: list[int]) -> bytes:
    return identity_graph(datatype, [name_or_size(axis, size) for axis, size in enumerate(shape)])


def onnx_sum_and_difference() -> bytes:
    from onnx import TensorProto, helper

    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 4]) for name in ("A", "B", "SUM", "DIFF")]
    nodes = [helper.make_node("Add", ["A", "B"], ["SUM"]), helper.make_node("Sub", ["A", "B"], ["DIFF"])]
    graph = helper.make_graph(nodes, "simple", infos[:2], infos[2:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def torch_identity(datatype: str, shape: list[int]) -> bytes:
    import torch

    from models.backends.torch import _DTYPES
    from tests.models.torch_programs import archive

    class Identity(torch.nn.Module):
        def forward(self, value: Any) -> Any:
            return {"OUT": value.clone()}

    example = torch.zeros([2 if size == -1 else size for size in shape], dtype=_DTYPES[datatype])
    axes = {axis: f"d{axis}" for axis, size in enumerate(shape) if size == -1}
    return archive(Identity(), (example,), shapes=(axes,))


def torch_sum_and_difference() -> bytes:
    import torch

    from tests.models.torch_programs import archive

    class Simple(torch.nn.Module):
        def forward(self, a: Any, b: Any) -> Any:
            return {"DIFF": a - b, "SUM": a + b}

    return archive(Simple(), (torch.zeros(2, 4), torch.zeros(2, 4)))


def name_or_size(axis: int, size: int) -> int | str:
    return f"d{axis}" if size == -1 else size


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How the suite makes a model for one backend."""

    backend: str
    artifact: str
    identity: Callable[[str, list[int]], bytes]
    sum_and_difference: Callable[[], bytes]
    unsupported: frozenset[str] = frozenset()
    parameters: dict[str, Any] = field(default_factory=dict)


ONNXRUNTIME = Kind(
    backend="onnxruntime",
    artifact="model.onnx",
    identity=onnx_identity,
    sum_and_difference=onnx_sum_and_difference,
)
TORCH = Kind(
    backend="torch",
    artifact="model.pt2",
    identity=torch_identity,
    sum_and_difference=torch_sum_and_difference,
    unsupported=frozenset({"BYTES"}),
)


def cuda_missing(backend: str) -> str:
    """Why a backend cannot run on CUDA here; "" if it can."""
    if backend == "onnxruntime":
        import onnxruntime

        present = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        return "" if present else "this build of onnxruntime has no CUDAExecutionProvider"
    if importlib.util.find_spec("torch") is None:
        return MISSING
    import torch

    return "" if torch.cuda.is_available() else "torch finds no CUDA device"


def kinds() -> Iterator[Any]:
    needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason=MISSING)
    yield pytest.param(ONNXRUNTIME, id="onnxruntime")
    yield pytest.param(TORCH, id="torch", marks=needs_torch)
    for kind in (ONNXRUNTIME, TORCH):
        missing = cuda_missing(kind.backend)
        on_cuda = Kind(
            backend=kind.backend,
            artifact=kind.artifact,
            identity=kind.identity,
            sum_and_difference=kind.sum_and_difference,
            unsupported=kind.unsupported,
            parameters={"device": "cuda"},
        )
        marks = [pytest.mark.gpu, pytest.mark.skipif(bool(missing), reason=missing)]
        yield pytest.param(on_cuda, id=f"{kind.backend}-cuda", marks=marks)


@pytest.fixture(params=kinds())
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def write(root: Path, kind: Kind, artifact: bytes, **changes: Any) -> Path:
    fields: dict[str, Any] = {"max_batch_size": MAX_BATCH_SIZE, "parameters": kind.parameters, **changes}
    return write_version(root, artifact, backend=kind.backend, artifact_name=kind.artifact, **fields)


def loaded(directory: Path) -> Backend:
    backend = open_backend(open_version(directory))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runtime's own deprecations
        backend.load()
    return backend


def write_identity(root: Path, kind: Kind, datatype: str = "FP32", shape: tuple[int, ...] = (-1, 3)) -> Path:
    described: dict[str, Any] = {"inputs": [tensor("IN", datatype, shape)], "outputs": [tensor("OUT", datatype, shape)]}
    return write(root, kind, kind.identity(datatype, list(shape)), **described)


def write_simple(root: Path, kind: Kind) -> Path:
    described: dict[str, Any] = {
        "inputs": [tensor("A", "FP32", [-1, 4]), tensor("B", "FP32", [-1, 4])],
        "outputs": [tensor("SUM", "FP32", [-1, 4]), tensor("DIFF", "FP32", [-1, 4])],
    }
    return write(root, kind, kind.sum_and_difference(), **described)


def samples(datatype: str, rows: int) -> Array:
    if datatype == "BYTES":
        array = np.empty((rows, 3), dtype=object)
        array.reshape(-1)[:] = [b"", b"\xff\x00", "é✓".encode()] * rows
        return array
    if datatype == "BF16":
        return np.tile(np.array([0x3F80, 0x7F80, 0x0001], "<u2"), (rows, 1))
    if datatype == "BOOL":
        return np.tile(np.array([True, False, True]), (rows, 1))
    dtype = NUMPY_DTYPES[datatype]
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.tile(np.array([limits.min, 1, limits.max], dtype), (rows, 1))


def test_every_registered_backend_is_in_this_suite() -> None:
    assert {ONNXRUNTIME.backend, TORCH.backend} == set(BACKENDS)


def test_declared_outputs_come_by_name_whatever_their_order(tmp_path: Path, kind: Kind) -> None:
    backend = loaded(write_simple(tmp_path, kind))
    a, b = np.arange(8, dtype="<f4").reshape(2, 4), np.ones((2, 4), "<f4")
    found = backend.run({"B": b, "A": a})
    assert set(found) == {"SUM", "DIFF"}
    assert np.array_equal(found["SUM"], a + b)
    assert np.array_equal(found["DIFF"], a - b)


def test_a_batch_may_have_any_size_up_to_the_largest(tmp_path: Path, kind: Kind) -> None:
    directory = write_identity(tmp_path, kind)
    backend = loaded(directory)
    for rows in range(1, MAX_BATCH_SIZE + 1):
        batch = np.random.default_rng(rows).random((rows, 3), dtype=np.float32)
        found = backend.run({"IN": batch})
        check_outputs(open_version(directory).spec, found, rows)
        assert np.array_equal(found["OUT"], batch)


@pytest.mark.parametrize("datatype", [*sorted(NUMPY_DTYPES), "BF16", "BYTES"])
def test_every_value_of_every_datatype_comes_back_exactly(tmp_path: Path, kind: Kind, datatype: str) -> None:
    if datatype in kind.unsupported:
        with pytest.raises(BackendError, match=f"datatype {datatype} is not known"):
            open_backend(
                open_version(
                    write(
                        tmp_path,
                        kind,
                        b"",
                        inputs=[tensor("IN", datatype, [-1])],
                        outputs=[tensor("OUT", datatype, [-1])],
                    )
                )
            )
        return
    directory = write_identity(tmp_path, kind, datatype)
    backend = loaded(directory)
    batch = samples(datatype, 2)
    found = backend.run({"IN": batch})
    check_outputs(open_version(directory).spec, found, 2)
    assert found["OUT"].tolist() == batch.tolist()


def test_a_read_only_batch_is_taken_as_it_is(tmp_path: Path, kind: Kind) -> None:
    backend = loaded(write_identity(tmp_path, kind))
    batch = np.frombuffer(np.arange(6, dtype="<f4").tobytes(), "<f4").reshape(2, 3)
    assert np.array_equal(backend.run({"IN": batch})["OUT"], batch)


def test_an_answer_outlives_the_batches_after_it(tmp_path: Path, kind: Kind) -> None:
    backend = loaded(write_identity(tmp_path, kind))
    first = backend.run({"IN": np.ones((2, 3), "<f4")})["OUT"]
    backend.run({"IN": np.zeros((2, 3), "<f4")})
    backend.close()
    assert first.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_a_model_without_batch_dimension_runs(tmp_path: Path, kind: Kind) -> None:
    described: dict[str, Any] = {"inputs": [tensor("IN", "FP32", [2, 2])], "outputs": [tensor("OUT", "FP32", [2, 2])]}
    directory = write(tmp_path, kind, kind.identity("FP32", [2, 2]), max_batch_size=0, **described)
    batch = np.ones((2, 2), "<f4")
    assert np.array_equal(loaded(directory).run({"IN": batch})["OUT"], batch)


def test_a_wrong_artifact_is_a_backend_error(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(BackendError, match=str(tmp_path)):
        loaded(write(tmp_path, kind, b"this is no model"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": [tensor("IN", "FP16", [-1, 3])]}, "inputs: IN: declared as FP16"),
        ({"inputs": [tensor("IN", "FP32", [-1])]}, "inputs: IN: declared with shape"),
        ({"inputs": [tensor("IN", "FP32", [-1, 4])]}, "inputs: IN: declared with shape"),
        ({"outputs": [tensor("OTHER", "FP32", [-1, 3])]}, "outputs: OTHER is not in the"),
        ({"outputs": [tensor("OUT", "INT32", [-1, 3])]}, "outputs: OUT: declared as INT32"),
        ({"inputs": [tensor("IN", "FP32", [-1, 3]), tensor("MORE", "FP32", [-1, 3])]}, "inputs: "),
    ],
)
def test_a_model_that_is_not_what_was_declared_does_not_load(
    tmp_path: Path, kind: Kind, change: dict[str, Any], message: str
) -> None:
    described: dict[str, Any] = {"inputs": [tensor("IN", "FP32", [-1, 3])], "outputs": [tensor("OUT", "FP32", [-1, 3])]}
    directory = write(tmp_path, kind, kind.identity("FP32", [-1, 3]), **{**described, **change})
    with pytest.raises(BackendError, match=message):
        loaded(directory)


def test_a_changed_byte_between_opening_and_loading_refuses_to_load(tmp_path: Path, kind: Kind) -> None:
    directory = write_identity(tmp_path, kind)
    backend = open_backend(open_version(directory))
    artifact = directory / kind.artifact
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="refusing to load"):
        backend.load()


def test_a_batch_that_does_not_fit_is_a_backend_error_and_the_next_one_runs(tmp_path: Path, kind: Kind) -> None:
    backend = loaded(write_identity(tmp_path, kind))
    for wrong in ({"IN": np.zeros((2, 4), "<f4")}, {}):
        with pytest.raises(BackendError):
            backend.run(wrong)
    assert backend.run({"IN": np.ones((1, 3), "<f4")})["OUT"].tolist() == [[1, 1, 1]]


def test_running_before_load_and_after_close_is_a_backend_error(tmp_path: Path, kind: Kind) -> None:
    directory = write_identity(tmp_path, kind)
    batch = {"IN": np.zeros((1, 3), "<f4")}
    with pytest.raises(BackendError, match="not loaded"):
        open_backend(open_version(directory)).run(batch)
    backend = loaded(directory)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="not loaded"):
        backend.run(batch)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"device": "tpu"}, r"parameters\.device: expected one of cpu"),
        ({"threads": 4}, r"parameters\.threads: expected only"),
        ({"intra_op_threads": 0}, r"parameters\.intra_op_threads: expected an integer of at least 1"),
        ({"device": "cpu", "precision": "fp16"}, r"parameters\.precision: expected one of fp32"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, kind: Kind, parameters: dict[str, Any], message: str) -> None:
    directory = write(tmp_path, kind, b"", parameters=parameters)
    with pytest.raises(BackendError, match=message):
        open_backend(open_version(directory))


@pytest.mark.parametrize("backend", [ONNXRUNTIME, TORCH], ids=lambda kind: kind.backend)
def test_a_device_that_is_not_there_is_an_error_and_never_the_cpu(tmp_path: Path, backend: Kind) -> None:
    if not cuda_missing(backend.backend):
        pytest.skip("CUDA is there")
    if cuda_missing(backend.backend) == MISSING:
        pytest.skip(MISSING)
    directory = write(tmp_path, backend, backend.identity("FP32", [-1, 3]), parameters={"device": "cuda"})
    with pytest.raises(BackendError, match=r"parameters\.device: cuda"):
        loaded(directory)
