"""Triton Inference Server 2.51 from nvidia-pytriton's wheel: the Python backend, tuned by its own documentation.

The wheel carries the server and its Python backend alone, so the model runs in ONNX Runtime inside a Python stub, with
the session that Understudy's replicas open. Its documentation asks for dynamic batching without a delay to begin with,
and for more instances where they help; with two cores a second instance takes from the server what it gives the model.
Requests travel in the protocol's binary form.
"""

from typing import Final

from benchmarks.peers.contract import Peer
from benchmarks.peers.scores import binary_scores
from benchmarks.workloads import Workload

TRITON: Final = Peer(
    name="triton",
    title="Triton, Python backend",
    ready_path="/v2/health/ready",
    request=Workload.request,
    scores=binary_scores,
    grpc=True,
    settings={"instances": 1, "max_queue_delay_us": 0, "http_threads": 8},
    tried=(
        {"instances": 1, "max_queue_delay_us": 0, "http_threads": 8},
        {"instances": 1, "max_queue_delay_us": 0, "http_threads": 2},
        {"instances": 1, "max_queue_delay_us": 100, "http_threads": 8},
        {"instances": 2, "max_queue_delay_us": 0, "http_threads": 8},
        {"instances": 2, "max_queue_delay_us": 0, "http_threads": 2},
    ),
)
