"""Ray Serve 2.60 as its documentation composes models: proxy → router deployment → model deployment, two hops.

Its documentation asks for ``@serve.batch`` with a short wait, for ``max_ongoing_requests`` above the batch size, and
for the access log to be off. Bodies and answers are bare FP32 bytes, which the ingress hands on without parsing.
"""

from typing import Final

from benchmarks.load import Request
from benchmarks.peers.contract import Peer
from benchmarks.peers.scores import raw_scores
from benchmarks.workloads import Workload


def _request(workload: Workload) -> Request:
    return Request(path="/", headers={"Content-Type": "application/octet-stream"}, body=workload.example.tobytes())


RAYSERVE: Final = Peer(
    name="rayserve",
    title="Ray Serve, two hops",
    ready_path="/-/healthz",
    request=_request,
    scores=raw_scores,
    settings={"batch_wait_s": 0.0, "max_ongoing_requests": 256},
    tried=(
        {"batch_wait_s": 0.0, "max_ongoing_requests": 256},
        {"batch_wait_s": 0.002, "max_ongoing_requests": 256},
        {"batch_wait_s": 0.01, "max_ongoing_requests": 256},
    ),
)
