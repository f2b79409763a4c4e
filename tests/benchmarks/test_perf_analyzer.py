import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.perf_analyzer import Profile, installed

PRINTED = """*** Measurement Settings ***
  Batch size: 1
Request concurrency: 8
  Client:
    Request count: 6140
    Throughput: 3387.51 infer/sec
    Avg latency: 586 usec (standard deviation 157 usec)
    p50 latency: 566 usec
    p90 latency: 752 usec
    p95 latency: 820 usec
    p99 latency: 1020 usec
    Avg gRPC time: 570 usec ((un)marshal request/response 5 usec + response wait 565 usec)
  Server:
    Inference count: 6141
    Execution count: 3000
    Successful request count: 6142
    Avg request latency: 324 usec (overhead 130 usec + queue 141 usec + compute input 1 usec + compute infer 52 usec + compute output 3 usec)

Inferences/Second vs. Client Average Batch Latency
Concurrency: 8, throughput: 3387.51 infer/sec, latency 586 usec
"""  # noqa: E501


def test_what_it_prints_is_read() -> None:
    profile = Profile.from_output(PRINTED, 8)
    assert (profile.concurrency, profile.requests, profile.errors, profile.throughput) == (8, 6140, 0, 3387.51)
    assert (profile.mean_us, profile.p50_us, profile.p90_us, profile.p95_us, profile.p99_us) == (
        *(586, 566, 752, 820, 1020),
    )
    assert (profile.server_inferences, profile.server_executions, profile.server_successes) == (6141, 3000, 6142)
    assert profile.server_mean_us == {
        "request": 324,
        "queue": 141,
        "compute_input": 1,
        "compute_infer": 52,
        "compute_output": 3,
    }
    assert profile.to_json()["p99_us"] == 1020


def test_a_server_without_statistics_is_measured_by_its_clients_alone() -> None:
    profile = Profile.from_output(PRINTED.partition("  Server:")[0], 8)
    assert (profile.throughput, profile.sd_us) == (3387.51, 157)
    assert (profile.server_successes, profile.server_mean_us) == (0, {})


def test_a_missing_figure_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="Throughput"):
        Profile.from_output("Request count: 7", 1)


def test_where_it_was_not_fetched_there_is_none(tmp_path: object) -> None:
    from pathlib import Path

    assert installed(Path(str(tmp_path))) is None
