"""The models as ONNX graphs: ``image`` FP32 [batch, 1, 8, 8], raw pixels 0…16, to ``scores`` FP32 [batch, 10].

Normalisation is part of each graph, so that a wrong one is part of the model too.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.reference.train import CLASSES, WHITE, Weights, pixel_weights
from models.tensor import Array

_OPSET: Final = 17
_IR_VERSION: Final = 8


def baseline(weights: Weights) -> bytes:
    """Sees the image as 4 × 4 grey squares."""
    nodes = [
        helper.make_node("Div", ["image", "white"], ["normalised"]),
        helper.make_node("AveragePool", ["normalised"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
    ]
    layer = weights.baseline
    return _serialise("baseline", nodes, {"white": _white(), "weights": layer.weights, "bias": layer.bias})


def equivalent(weights: Weights) -> bytes:
    """The baseline made faster: one fused layer, its weights kept in half precision."""
    nodes = [
        helper.make_node("Cast", ["half_weights"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["logits"]),
    ]
    half = pixel_weights(weights).astype(np.float16)
    return _serialise("equivalent", nodes, {"half_weights": half, "bias": weights.baseline.bias})


def better(weights: Weights) -> bytes:
    """Sees every pixel, through random rectified features."""
    return _serialise(
        "better",
        [helper.make_node("Div", ["image", "white"], ["normalised"]), *_two_layers("normalised")],
        {"white": _white(), **_two_layer_weights(weights)},
    )


def regressed(weights: Weights) -> bytes:
    """The better model without its normalisation: trained on 0…1, fed with 0…16."""
    return _serialise("regressed", _two_layers("image"), _two_layer_weights(weights))


def _two_layers(image: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Flatten", [image], ["flat"]),
        helper.make_node("Gemm", ["flat", "feature_weights", "feature_bias"], ["features"]),
        helper.make_node("Relu", ["features"], ["rectified"]),
        helper.make_node("Gemm", ["rectified", "weights", "bias"], ["logits"]),
    ]


def _two_layer_weights(weights: Weights) -> dict[str, Array]:
    return {
        "feature_weights": weights.features.weights,
        "feature_bias": weights.features.bias,
        "weights": weights.better.weights,
        "bias": weights.better.bias,
    }


def _white() -> Array:
    return np.array(WHITE, dtype=np.float32)


def _serialise(name: str, nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array]) -> bytes:
    graph = helper.make_graph(
        [*nodes, helper.make_node("Softmax", ["logits"], ["scores"], axis=-1)],
        f"digits_{name}",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(np.ascontiguousarray(array), key) for key, array in constants.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="understudy",
        ir_version=_IR_VERSION,
        opset_imports=[helper.make_opsetid("", _OPSET)],
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))
