"""What is served and asked for: overhead alone (a tiny model), bytes moved (images), and work (a small network)."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import orjson
import yaml

from benchmarks.environment import ROOT
from benchmarks.load import Request
from benchmarks.mobilenet import CLASSES, mobilenet
from models.repository import write_hash
from models.tensor import Array

BASELINE: Final = 1
CANDIDATE: Final = 2
MAX_BATCH_SIZE: Final = 32
CNN_BATCH_SIZE: Final = 8  # an image of a larger batch costs no less, and its first waits for its last
_DIGITS: Final = ROOT / "examples" / "model_repository" / "digits" / "1"
_SEED: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A model, an input of it (a batch of one), and the load that it is measured under.

    Attributes:
        write: puts the model's versions, which are equal, into a folder.
        connections: numbers of clients in the closed loop.
        rates: requests a second in the open loop.
    """

    name: str
    title: str
    input: str
    output: str
    example: Array
    write: Callable[[Path], None]
    connections: tuple[int, ...]
    rates: tuple[int, ...]
    max_batch_size: int = MAX_BATCH_SIZE

    def request(self) -> Request:
        """The request in the protocol's binary form, its answer too."""
        return binary_request(self.name, self.input, self.example)


def binary_request(model: str, name: str, example: Array) -> Request:
    """An infer request of one FP32 tensor, binary both ways."""
    tensor = {
        "name": name,
        "datatype": "FP32",
        "shape": example.shape,
        "parameters": {"binary_data_size": example.nbytes},
    }
    header = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    return Request(
        path=f"/v2/models/{model}/infer",
        headers={
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(header)),
        },
        body=header + example.tobytes(),
    )


def json_request(model: str, name: str, example: Array) -> Request:
    """The same in JSON both ways."""
    tensor = {"name": name, "datatype": "FP32", "shape": example.shape, "data": example.ravel().tolist()}
    return Request(
        path=f"/v2/models/{model}/infer",
        headers={"Content-Type": "application/json"},
        body=orjson.dumps({"inputs": [tensor]}),
    )


def _write_digits(folder: Path) -> None:
    for version in (BASELINE, CANDIDATE):
        shutil.copytree(_DIGITS, folder / str(version))


def _write_images(folder: Path) -> None:
    _write_graph(folder, _pooling_graph(), scores=3, max_batch_size=MAX_BATCH_SIZE)


def _write_cnn(folder: Path) -> None:
    _write_graph(folder, mobilenet(), scores=CLASSES, max_batch_size=CNN_BATCH_SIZE)


def _write_graph(folder: Path, graph: bytes, *, scores: int, max_batch_size: int) -> None:
    """Both versions of a network that takes an image of 3 × 224 × 224."""
    for version in (BASELINE, CANDIDATE):
        directory = folder / str(version)
        directory.mkdir(parents=True)
        (directory / "model.onnx").write_bytes(graph)
        document = {
            "backend": "onnxruntime",
            "artifact": "model.onnx",
            "max_batch_size": max_batch_size,
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
            "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, scores]}],
            "provenance": {"dataset": "none", "synthetic": True},
        }
        (directory / "model.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        write_hash(directory)


def _pooling_graph() -> bytes:
    """The mean of each channel: reads every byte once and computes next to nothing."""
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["means"]),
            helper.make_node("Flatten", ["means"], ["scores"]),
        ],
        "channel_means",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def _noise(*shape: int) -> Array:
    return np.random.default_rng(_SEED).random(shape, dtype=np.float32)


WORKLOADS: Final[Mapping[str, Workload]] = {
    each.name: each
    for each in (
        Workload(
            name="digits",
            title="tiny model (digits, 256 B)",
            input="image",
            output="scores",
            example=np.round(_noise(1, 1, 8, 8) * np.float32(16)),
            write=_write_digits,
            connections=(1, 8, 64),
            rates=(200, 1000, 2000),
        ),
        Workload(
            name="images",
            title="602 KB images (3 × 224 × 224, channel means)",
            input="image",
            output="scores",
            example=_noise(1, 3, 224, 224),
            write=_write_images,
            connections=(1, 8, 32),
            rates=(50, 200, 600),
        ),
        Workload(
            name="cnn",
            title="10 ms network (MobileNet, 602 KB images)",
            input="image",
            output="scores",
            example=_noise(1, 3, 224, 224),
            write=_write_cnn,
            connections=(1, 8, 32),
            rates=(20, 40, 60),
            max_batch_size=CNN_BATCH_SIZE,
        ),
    )
}
