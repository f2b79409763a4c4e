"""perf_analyzer (case 35), where ``make perf_analyzer`` fetched it."""

import httpx
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.perf_analyzer import Protocol, installed, run
from tests.contract.local_engine import Endpoint

pytestmark = pytest.mark.skipif(
    installed() is None, reason="perf_analyzer is not installed; make perf_analyzer fetches it"
)
REQUESTS, CONCURRENCY = 300, 2


def address(endpoint: Endpoint, protocol: Protocol) -> str:
    return endpoint.address if protocol == "http" else endpoint.grpc_address


def inferences(endpoint: Endpoint) -> int:
    (entry,) = httpx.get(f"{endpoint.url}/v2/models/simple/stats").json()["model_stats"]
    return int(entry["inference_count"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_ends_well_and_its_counts_agree_with_the_server_s(endpoint: Endpoint, protocol: Protocol) -> None:
    before = inferences(endpoint)
    profile = run(address(endpoint, protocol), protocol, "simple", CONCURRENCY, request_count=REQUESTS)
    assert (profile.requests, profile.errors) == (REQUESTS, 0)
    assert inferences(endpoint) - before == REQUESTS
    # It asks for the statistics while its first and last requests are under way.
    assert profile.server_inferences == profile.server_successes
    assert abs(profile.server_inferences - REQUESTS) <= CONCURRENCY
    assert profile.throughput > 0
    assert 0 < profile.p50_us <= profile.p90_us <= profile.p99_us
    assert profile.mean_us >= profile.server_mean_us["request"] >= profile.server_mean_us["compute_infer"] > 0


def test_a_stream_and_batches_are_measured_too(endpoint: Endpoint) -> None:
    profile = run(
        endpoint.grpc_address,
        "grpc",
        "simple",
        CONCURRENCY,
        batch_size=4,
        request_count=REQUESTS,
        options=["--streaming"],
    )
    assert profile.requests == REQUESTS
    assert abs(profile.server_inferences - 4 * REQUESTS) <= 4 * CONCURRENCY


def test_a_model_that_is_not_served_is_an_error(endpoint: Endpoint) -> None:
    with pytest.raises(BenchmarkError, match="perf_analyzer: ended with status"):
        run(endpoint.grpc_address, "grpc", "nope", 1, request_count=10)
