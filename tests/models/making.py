"""Makes small model versions for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from onnx import TensorProto, helper

from models.repository import write_hash

ONNX_TYPES: Mapping[str, int] = {
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


def tensor(name: str, datatype: str, shape: Sequence[int]) -> dict[str, Any]:
    """One entry of ``inputs`` or ``outputs``."""
    return {"name": name, "datatype": datatype, "shape": list(shape)}


def identity_graph(datatype: str, shape: Sequence[int | str], *, source: str = "IN", target: str = "OUT") -> bytes:
    """An ONNX graph that answers its input."""
    element = ONNX_TYPES[datatype]
    graph = helper.make_graph(
        [helper.make_node("Identity", [source], [target])],
        "identity",
        [helper.make_tensor_value_info(source, element, list(shape))],
        [helper.make_tensor_value_info(target, element, list(shape))],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    return bytes(model.SerializeToString())


def document(**changes: Any) -> dict[str, Any]:
    """A right ``model.yaml`` of an identity model, with ``changes``."""
    return {
        "backend": "onnxruntime",
        "artifact": "model.onnx",
        "sha256": "0" * 64,
        "max_batch_size": 8,
        "inputs": [tensor("IN", "FP32", [-1, 3])],
        "outputs": [tensor("OUT", "FP32", [-1, 3])],
        **changes,
    }


def write_version(
    root: Path,
    artifact: bytes,
    *,
    version: int = 1,
    files: Mapping[str, bytes] | None = None,
    hashed: bool = True,
    artifact_name: str = "model.onnx",
    **changes: Any,
) -> Path:
    """Write ``root``/model/``version`` and return its folder."""
    fields = document(artifact=artifact_name, **changes)
    directory = root / "model" / str(version)
    directory.mkdir(parents=True)
    (directory / artifact_name).write_bytes(artifact)
    for name, content in (files or {}).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (directory / "model.yaml").write_text(yaml.safe_dump(fields, sort_keys=False))
    if hashed:
        write_hash(directory)
    return directory
