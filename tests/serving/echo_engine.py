"""The smallest engine: answers OUT with IN, at once, and remembers what it was asked."""

import asyncio
from collections.abc import Mapping

from models.spec import ModelSpec, TensorSpec
from models.tensor import Tensor
from serving.protocol.messages import InferRequest, InferResponse
from serving.statistics import Statistics


def spec_of(version: int, *, labels: tuple[str, ...] = (), max_batch_size: int = 4) -> ModelSpec:
    return ModelSpec(
        name="m",
        version=version,
        backend="onnxruntime",
        artifact="model.onnx",
        sha256="0" * 64,
        max_batch_size=max_batch_size,
        inputs=(TensorSpec(name="IN", datatype="FP32", shape=(-1, 2)),),
        outputs=(TensorSpec(name="OUT", datatype="FP32", shape=(-1, 2)),),
        labels=labels,
    )


class EchoEngine:
    """One model, ``m``; ``answering`` is the version that answers what is not pinned."""

    def __init__(self, *specs: ModelSpec, answering: int = 1) -> None:
        self.specs = {spec.version: spec for spec in specs or (spec_of(1),)}
        self.answering = answering
        self.is_ready = True
        self.failure: Exception | None = None
        self.release: asyncio.Event | None = None
        self.seen: list[InferRequest] = []
        self.statistics = Statistics()

    def models(self) -> Mapping[str, Mapping[int, ModelSpec]]:
        return {"m": self.specs}

    def default_version(self, model: str) -> int:
        return 1

    def ready(self, model: str, version: int | None) -> bool:
        return self.is_ready

    async def infer(self, request: InferRequest) -> InferResponse:
        self.seen.append(request)
        if self.release is not None:
            await self.release.wait()
        if self.failure is not None:
            raise self.failure
        tensor = request.inputs["IN"]
        outputs = {"OUT": Tensor("OUT", tensor.datatype, tensor.shape, tensor.data)}
        return InferResponse(model="m", version=request.version or self.answering, outputs=outputs)
