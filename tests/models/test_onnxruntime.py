from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.backends import open_backend
from models.errors import ArtifactError, BackendError
from models.repository import open_version
from tests.models.making import identity_graph, tensor, write_version


def graph_with_external_data(folder: Path) -> dict[str, bytes]:
    """``OUT`` = ``IN`` + 1, with the ones in a file of their own."""
    ones = numpy_helper.from_array(np.ones(3, "<f4"), "ones")
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in ("IN", "OUT")]
    graph = helper.make_graph([helper.make_node("Add", ["IN", "ones"], ["OUT"])], "g", infos[:1], infos[1:], [ones])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def external(tmp_path: Path) -> Path:
    files = graph_with_external_data(tmp_path / "made")
    assert set(files) == {"model.onnx", "weights.bin"}
    return write_version(tmp_path, files["model.onnx"], files={"weights.bin": files["weights.bin"]})


def test_external_data_belongs_to_the_model(external: Path) -> None:
    backend = open_backend(open_version(external))
    backend.load()
    assert backend.run({"IN": np.zeros((2, 3), "<f4")})["OUT"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_external_data_that_changes_after_opening_refuses_to_load(external: Path) -> None:
    backend = open_backend(open_version(external))
    (external / "weights.bin").write_bytes(np.zeros(3, "<f4").tobytes())
    with pytest.raises(ArtifactError, match=r"weights\.bin"):
        backend.load()


def test_a_graph_with_a_fixed_batch_cannot_be_declared_as_variable(tmp_path: Path) -> None:
    backend = open_backend(open_version(write_version(tmp_path, identity_graph("FP32", [1, 3]))))
    with pytest.raises(BackendError, match=r"declared with shape \[-1, 3\], the graph has \[1, 3\]"):
        backend.load()


def test_an_input_that_is_not_declared_is_named(tmp_path: Path) -> None:
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", 3]) for name in ("IN", "MORE", "OUT")]
    graph = helper.make_graph([helper.make_node("Add", ["IN", "MORE"], ["OUT"])], "g", infos[:2], infos[2:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    backend = open_backend(open_version(write_version(tmp_path, model.SerializeToString())))
    with pytest.raises(BackendError, match="the graph needs MORE, which is not declared"):
        backend.load()


def test_text_that_a_graph_makes_comes_back_as_utf8(tmp_path: Path) -> None:
    names = numpy_helper.from_array(np.array(["cat", "Löwe"], dtype=object), "names")
    index = helper.make_tensor_value_info("IN", TensorProto.INT64, ["b"])
    name = helper.make_tensor_value_info("OUT", TensorProto.STRING, ["b"])
    graph = helper.make_graph([helper.make_node("Gather", ["names", "IN"], ["OUT"])], "g", [index], [name], [names])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    described: dict[str, Any] = {"inputs": [tensor("IN", "INT64", [-1])], "outputs": [tensor("OUT", "BYTES", [-1])]}
    backend = open_backend(open_version(write_version(tmp_path, model.SerializeToString(), **described)))
    backend.load()
    found = backend.run({"IN": np.array([1, 0], dtype="<i8")})
    assert found["OUT"].tolist() == ["Löwe".encode(), b"cat"]


def test_loading_and_running_print_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backend = open_backend(open_version(write_version(tmp_path, identity_graph("FP32", ["b", 3]))))
    backend.load()
    backend.run({"IN": np.zeros((2, 3), "<f4")})
    assert capfd.readouterr() == ("", "")
