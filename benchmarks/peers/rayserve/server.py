"""Ray Serve with an ONNX model behind a router; runs in an environment of its own and imports nothing of ours."""

import argparse
import json
import logging
import signal
import threading
from typing import Any

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response


class Model:
    """The second hop: FP32 bytes in batches."""

    def __init__(self, model: str) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0]

    async def predict(self, images: list[bytes]) -> list[bytes]:
        """Scores of all images."""
        rows = np.frombuffer(b"".join(images), np.float32).reshape(-1, *self._input.shape[1:])
        return [scores.tobytes() for scores in self._session.run(None, {self._input.name: rows})[0]]


class Router:
    """The first hop: HTTP to a handle."""

    def __init__(self, model: Any) -> None:
        self._model = model

    async def __call__(self, request: Request) -> Response:
        """The scores of one image."""
        return Response(await self._model.predict.remote(await request.body()))


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-batch-size", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    options, _ = parser.parse_known_args()
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=options.port), logging_config=quiet)
    serve.run(_application(options), logging_config=quiet)
    stopped.wait()
    serve.shutdown()  # type: ignore[no-untyped-call,unused-ignore]
    ray.shutdown()


def _application(options: argparse.Namespace) -> Any:
    wait_s = options.settings["batch_wait_s"]
    batched = serve.batch(max_batch_size=options.max_batch_size, batch_wait_timeout_s=wait_s)(Model.predict)
    model = type("BatchedModel", (Model,), {"predict": batched})
    shared = {
        "ray_actor_options": {"num_cpus": 0.5},
        "max_ongoing_requests": options.settings["max_ongoing_requests"],
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 1,
    }
    return serve.deployment(**shared)(Router).bind(serve.deployment(**shared)(model).bind(options.model))


if __name__ == "__main__":
    main()
