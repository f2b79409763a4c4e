"""The model as BentoML runs it; what varies comes through the environment, which server.py fills."""

import base64
import json
import os

import bentoml  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import onnxruntime as ort

_OPTIONS = json.loads(os.environ["PEER_OPTIONS"])


@bentoml.service(  # type: ignore[misc,unused-ignore]
    workers=_OPTIONS["workers"],
    traffic={"timeout": 30},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class OnnxService:
    """Images as base64 of their FP32 bytes; answered with their scores."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(_OPTIONS["model"], options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]

    @bentoml.api(  # type: ignore[misc,untyped-decorator,unused-ignore]
        batchable=True, max_batch_size=_OPTIONS["max_batch_size"], max_latency_ms=_OPTIONS["max_latency_ms"]
    )
    def predict(self, images: list[str]) -> list[list[float]]:
        """Scores of all images."""
        rows = np.frombuffer(b"".join(map(base64.b64decode, images)), np.float32)
        scores: list[list[float]] = self._session.run(
            None, {self._input.name: rows.reshape(-1, *self._input.shape[1:])}
        )[0].tolist()
        return scores
