"""MLServer 1.7.1 with a custom runtime (it has none for ONNX), tuned by its own documentation.

Its documentation asks for adaptive batching with values found by experiment (``tried``), for no worker processes where
a model is light (``parallel_workers`` 0), and for ``debug`` off, which turns its access log off as well. Over HTTP it
knows no binary form: an image travels as one base64 string of its FP32 bytes, a content type of MLServer's own, because
numbers in JSON cost more. Over gRPC it takes raw tensors like everybody else. uvloop is held at 0.21: with newer ones
its worker processes do not start.
"""

import base64
from typing import Final

import orjson

from benchmarks.load import Request
from benchmarks.peers.contract import Peer
from benchmarks.peers.scores import json_scores
from benchmarks.workloads import Workload


def _request(workload: Workload) -> Request:
    tensor = {
        "name": workload.input,
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(workload.example.tobytes()).decode()],
    }
    return Request(
        path=f"/v2/models/{workload.name}/infer",
        headers={"Content-Type": "application/json"},
        body=orjson.dumps({"inputs": [tensor]}),
    )


MLSERVER: Final = Peer(
    name="mlserver",
    title="MLServer",
    ready_path="/v2/health/ready",
    request=_request,
    scores=json_scores,
    grpc=True,
    settings={"workers": 0, "max_batch_time_s": 0.0005},
    tried=(
        {"workers": 0, "max_batch_time_s": 0.0005},
        {"workers": 0, "max_batch_time_s": 0.001},
        {"workers": 0, "max_batch_time_s": 0.005},
        {"workers": 1, "max_batch_time_s": 0.001},
    ),
)
