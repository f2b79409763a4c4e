"""LitServe 0.2.19, tuned by its own documentation.

Its documentation asks for ``fast_queue`` above 100 requests a second, one worker per core on a CPU, several API servers
as processes, batching with a short timeout, and logs off. Of what was tried on two cores (``tried``), one worker behind
two API servers without batching was the best at 64 clients: a tiny model gains less from a batch than the wait for it
costs. Images travel as base64 in JSON, its documented form: its ``Request`` type reads JSON and forms alone.
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
    body = orjson.dumps({"image": base64.b64encode(workload.example.tobytes()).decode()})
    return Request(path="/predict", headers={"Content-Type": "application/json"}, body=body)


def _scores(body: bytes) -> Array:
    return np.array(orjson.loads(body)["scores"], np.float32)


LITSERVE: Final = Peer(
    name="litserve",
    title="LitServe",
    ready_path="/health",
    request=_request,
    scores=_scores,
    settings={"fast_queue": True, "workers": 1, "api_servers": 2, "max_batch_size": 1, "batch_timeout_s": 0.0},
    tried=(
        {"fast_queue": False, "workers": 1, "api_servers": 1, "max_batch_size": 1, "batch_timeout_s": 0.0},
        {"fast_queue": True, "workers": 1, "api_servers": 1, "max_batch_size": 1, "batch_timeout_s": 0.0},
        {"fast_queue": True, "workers": 1, "api_servers": 2, "max_batch_size": 1, "batch_timeout_s": 0.0},
        {"fast_queue": True, "workers": 2, "api_servers": 2, "max_batch_size": 1, "batch_timeout_s": 0.0},
        {"fast_queue": True, "workers": 1, "api_servers": 1, "max_batch_size": 32, "batch_timeout_s": 0.002},
        {"fast_queue": True, "workers": 1, "api_servers": 2, "max_batch_size": 32, "batch_timeout_s": 0.002},
    ),
)
