"""LitServe with an ONNX model; runs in an environment of its own and imports nothing of ours."""

import argparse
import base64
import json
from typing import Any

import litserve as ls  # type: ignore[import-not-found,unused-ignore]
import numpy as np
import onnxruntime as ort


class OnnxApi(ls.LitAPI):  # type: ignore[misc,unused-ignore]
    """One image per request: base64 of its FP32 bytes; answered with its scores."""

    def __init__(self, model: str, **options: Any) -> None:
        super().__init__(**options)
        self._model = model

    def setup(self, device: str) -> None:
        """Load the model with one thread, as Understudy's replicas do."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(self._model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]

    def decode_request(self, request: dict[str, str]) -> Any:
        """The image as an array of one row."""
        return np.frombuffer(base64.b64decode(request["image"]), np.float32).reshape(1, *self._input.shape[1:])

    def batch(self, inputs: list[Any]) -> Any:
        """Rows joined."""
        return np.concatenate(inputs)

    def predict(self, images: Any) -> Any:
        """Scores of all rows."""
        return self._session.run(None, {self._input.name: images})[0]

    def unbatch(self, output: Any) -> list[Any]:
        """Rows apart."""
        return list(output)

    def encode_response(self, scores: Any) -> dict[str, list[float]]:
        """The scores as JSON takes them."""
        return {"scores": scores.ravel().tolist()}


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    options, _ = parser.parse_known_args()
    settings = options.settings
    api = OnnxApi(options.model, max_batch_size=settings["max_batch_size"], batch_timeout=settings["batch_timeout_s"])
    server = ls.LitServer(
        api, accelerator="cpu", workers_per_device=settings["workers"], fast_queue=settings["fast_queue"]
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=settings["api_servers"],
        log_level="warning",
        access_log=False,
        pretty_logs=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
