"""A small MobileNet with seeded weights: a network that costs about 10 ms an image on one core.

The architecture is that of MobileNetV1 (Howard et al., 2017, table 1), a quarter wider, with batch normalisation
folded into the convolutions. The weights are noise: it recognises nothing, but computes what a trained one would.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from models.tensor import Array

SIZE: Final = 224
CLASSES: Final = 1000
WIDTH: Final = 1.25
_SEED: Final = 0
_STEM: Final = 32
# Output channels and stride of each depthwise-separable block, at full width.
_BLOCKS: Final = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)


@dataclass(slots=True)
class _Graph:
    """Nodes and weights as they are added; ``last`` is the name of the newest tensor."""

    last: str = "image"
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    noise: np.random.Generator = field(default_factory=lambda: np.random.default_rng(_SEED))

    def add(self, operator: str, *operands: str, output: str | None = None, **attributes: Any) -> None:
        from onnx import helper

        name = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, [self.last, *operands], [name], **attributes))
        self.last = name

    def weight(self, values: Array) -> str:
        from onnx import numpy_helper

        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def random(self, *shape: int) -> Array:
        """Noise of the spread that keeps the size of activations (He et al., 2015)."""
        fan_in = int(np.prod(shape[1:]))
        return self.noise.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2 / fan_in))

    def convolve(self, channels: int, from_channels: int, *, kernel: int, stride: int, groups: int = 1) -> None:
        kernels = self.weight(self.random(channels, from_channels // groups, kernel, kernel))
        bias = self.weight(np.zeros(channels, np.float32))
        pad = kernel // 2
        self.add("Conv", kernels, bias, strides=[stride] * 2, pads=[pad] * 4, group=groups, kernel_shape=[kernel] * 2)
        self.add("Relu")


def mobilenet(width: float = WIDTH) -> bytes:
    """The network as ONNX: ``image`` FP32 [batch, 3, 224, 224] → ``scores`` FP32 [batch, 1000], a softmax."""
    from onnx import TensorProto, helper

    graph = _Graph()
    channels = int(_STEM * width)
    graph.convolve(channels, 3, kernel=3, stride=2)
    for full, stride in _BLOCKS:
        graph.convolve(channels, channels, kernel=3, stride=stride, groups=channels)
        graph.convolve(int(full * width), channels, kernel=1, stride=1)
        channels = int(full * width)
    graph.add("GlobalAveragePool")
    graph.add("Flatten")
    graph.add("Gemm", graph.weight(graph.random(CLASSES, channels)), transB=1)
    graph.add("Softmax", output="scores", axis=1)
    value = helper.make_tensor_value_info
    whole = helper.make_graph(
        graph.nodes,
        "mobilenet",
        [value("image", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [value("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        graph.weights,
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
