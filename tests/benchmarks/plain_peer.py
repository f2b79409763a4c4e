"""A peer of the standard library alone: FP32 bytes in, FP32 bytes out."""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import onnxruntime as ort


def handler_of(session: Any, wrong: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(b"ok")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            image = np.frombuffer(body, np.float32).reshape(1, 1, 8, 8)
            scores = session.run(None, {"image": image})[0] + np.float32(wrong)
            self._reply(scores.tobytes())

        def _reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    options, _ = parser.parse_known_args()
    model = ort.InferenceSession(options.model, providers=["CPUExecutionProvider"])
    handler = handler_of(model, options.settings["wrong"])
    ThreadingHTTPServer(("127.0.0.1", options.port), handler).serve_forever()
