"""The model as Triton's Python backend runs it, inside Triton's own process: one call for a batch of requests."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as triton  # type: ignore[import-not-found,unused-ignore]


class TritonPythonModel:
    """An ONNX model with one input and one output."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model with one thread, as Understudy's replicas do."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._output = self._session.get_outputs()[0].name

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer for each request, in order."""
        rows = [triton.get_input_tensor_by_name(request, self._input).as_numpy() for request in requests]
        batch = rows[0] if len(rows) == 1 else np.concatenate(rows)
        (scores,) = self._session.run([self._output], {self._input: batch})
        answers, at = [], 0
        for each in rows:
            tensor = triton.Tensor(self._output, scores[at : at + len(each)])
            answers.append(triton.InferenceResponse([tensor]))
            at += len(each)
        return answers
