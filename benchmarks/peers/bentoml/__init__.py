"""BentoML 1.4.39, tuned by its own documentation.

Its documentation asks for adaptive batching (``batchable``) with a bound on latency, for as many workers as there are
cores; access log, metrics and tracing are off. A batchable method takes a list, and from outside only JSON or a form
carries one: an image travels as base64 of its FP32 bytes.
"""

import base64
from typing import Final

import numpy as np
import orjson

from benchmarks.load import Request
from benchmarks.peers.contract import Peer
from benchmarks.workloads import Workload
from models.tensor import Array


def _request(workload: Workload) -> Request:
    body = orjson.dumps({"images": [base64.b64encode(workload.example.tobytes()).decode()]})
    return Request(path="/predict", headers={"Content-Type": "application/json"}, body=body)


def _scores(body: bytes) -> Array:
    return np.array(orjson.loads(body)[0], np.float32)


BENTOML: Final = Peer(
    name="bentoml",
    title="BentoML",
    ready_path="/readyz",
    request=_request,
    scores=_scores,
    settings={"workers": 2, "max_latency_ms": 1000},
    tried=(
        {"workers": 1, "max_latency_ms": 1000},
        {"workers": 2, "max_latency_ms": 1000},
        {"workers": 1, "max_latency_ms": 100},
    ),
)
