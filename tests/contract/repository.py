"""The models of PROTOCOL.md's cases as a model repository: small ONNX graphs, and two backends that misbehave."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx
import yaml
from onnx import TensorProto, helper

from models.repository import write_hash

_OPSET: Final = 17
_IR: Final = 10
_ONNX_TYPES: Final[Mapping[str, int]] = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16,
    "BYTES": TensorProto.STRING,
}
IDENTITIES: Final[Mapping[str, str]] = {f"id_{name.lower()}": name for name in _ONNX_TYPES}
BACKENDS: Final[Mapping[str, str]] = {
    "raises": "tests.contract.misbehaving:Raises",
    "slow": "tests.contract.misbehaving:Slow",
}
SLOW_QUEUE: Final = 2  # requests of `slow` that may wait
LABELS: Final = ("a", "b", "c", "d", "e")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Model:
    name: str
    datatype: str
    shape: Sequence[int]
    max_batch_size: int = 0
    inputs: Sequence[str] = ("IN",)
    outputs: Sequence[str] = ("OUT",)
    nodes: Sequence[tuple[str, Sequence[str], str]] = (("Identity", ("IN",), "OUT"),)
    backend: str = "onnxruntime"
    labels: Sequence[str] = ()


_MODELS: Final = (
    *(_Model(name=name, datatype=datatype, shape=(-1,)) for name, datatype in IDENTITIES.items()),
    _Model(
        name="simple",
        datatype="INT32",
        shape=(-1, 16),
        max_batch_size=8,
        inputs=("INPUT0", "INPUT1"),
        outputs=("OUTPUT0", "OUTPUT1"),
        nodes=(("Add", ("INPUT0", "INPUT1"), "OUTPUT0"), ("Sub", ("INPUT0", "INPUT1"), "OUTPUT1")),
    ),
    _Model(name="fixed", datatype="FP32", shape=(-1, 3, 4), max_batch_size=8),
    _Model(name="nobatch2d", datatype="FP32", shape=(2, 2)),
    _Model(name="cls", datatype="FP32", shape=(-1, 5), max_batch_size=8, labels=LABELS),
    _Model(name="raises", datatype="FP32", shape=(-1, 4), max_batch_size=8, backend="raises"),
    _Model(name="slow", datatype="FP32", shape=(-1, 4), max_batch_size=1, backend="slow"),
)
NAMES: Final = tuple(model.name for model in _MODELS)


def write_repository(path: Path) -> Path:
    """Write every model, version 1, signed; returns ``path``."""
    for model in _MODELS:
        directory = path / model.name / "1"
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(_graph(model).SerializeToString())
        if model.labels:
            (directory / "labels.txt").write_text("\n".join(model.labels) + "\n")
        (directory / "model.yaml").write_text(yaml.safe_dump(_document(model), sort_keys=False))
        write_hash(directory)
    return path


def _graph(model: _Model) -> onnx.ModelProto:
    def values(names: Sequence[str]) -> list[onnx.ValueInfoProto]:
        return [_value(name, _ONNX_TYPES[model.datatype], model.shape) for name in names]

    nodes = [helper.make_node(operator, list(inputs), [output]) for operator, inputs, output in model.nodes]
    graph = helper.make_graph(nodes, model.name, values(model.inputs), values(model.outputs))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)


def _value(name: str, kind: int, shape: Sequence[int]) -> onnx.ValueInfoProto:
    make: Callable[..., onnx.ValueInfoProto] = helper.make_tensor_value_info
    return make(name, kind, ["n" if size == -1 else size for size in shape])


def _document(model: _Model) -> dict[str, Any]:
    def tensors(names: Sequence[str]) -> list[dict[str, Any]]:
        return [{"name": name, "datatype": model.datatype, "shape": list(model.shape)} for name in names]

    document: dict[str, Any] = {
        "backend": model.backend,
        "artifact": "model.onnx",
        "max_batch_size": model.max_batch_size,
        "inputs": tensors(model.inputs),
        "outputs": tensors(model.outputs),
    }
    return document | {"labels": "labels.txt"} if model.labels else document
