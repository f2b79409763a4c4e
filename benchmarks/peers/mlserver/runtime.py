"""The model as MLServer runs it."""

from typing import Any

import numpy as np
import onnxruntime as ort
from mlserver import MLModel  # type: ignore[import-not-found,unused-ignore]
from mlserver.codecs import Base64Codec, NumpyCodec  # type: ignore[import-not-found,unused-ignore]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found,unused-ignore]


class OnnxModel(MLModel):  # type: ignore[misc,unused-ignore]
    """An ONNX model with one input and one output; images as FP32 tensors or as base64 strings of their bytes."""

    async def load(self) -> bool:
        """Load the model with one thread, as Understudy's replicas do."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self.settings.parameters.uri
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]
        self._output = self._session.get_outputs()[0].name
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Scores of all rows."""
        (scores,) = self._session.run([self._output], {self._input.name: self._images(payload.inputs[0])})
        output = NumpyCodec.encode_output(self._output, scores)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])

    def _images(self, given: Any) -> Any:
        if given.datatype != "BYTES":
            return NumpyCodec.decode_input(given)
        rows = np.frombuffer(b"".join(Base64Codec.decode_input(given)), np.float32)
        return rows.reshape(-1, *self._input.shape[1:])
