from typing import Any

from serving.statistics import Statistics, total


def recorded(statistics: Statistics, **facts: Any) -> None:
    defaults = {"requests": 1, "rows": 1, "total_ns": 10, "queue_ns": 1, "input_ns": 2, "infer_ns": 3, "output_ns": 4}
    statistics.record("m", 1, **defaults | facts)


def test_a_version_that_answered_nothing_has_zeros_everywhere() -> None:
    entry = Statistics().of("m", 3)
    assert (entry["name"], entry["version"], entry["last_inference"]) == ("m", "3", 0)
    assert entry["inference_count"] == entry["execution_count"] == 0
    assert entry["batch_stats"] == entry["memory_usage"] == []
    assert all(each == {"count": 0, "ns": 0} for each in entry["inference_stats"].values())
    assert set(entry["inference_stats"]) == {
        *("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    }


def test_a_batch_counts_once_as_an_execution_and_for_each_of_its_requests_and_rows() -> None:
    statistics = Statistics(clock=lambda: 5_000_999)
    recorded(statistics, requests=3, rows=5, total_ns=300, queue_ns=30)
    entry = statistics.of("m", 1)
    assert (entry["inference_count"], entry["execution_count"], entry["last_inference"]) == (5, 1, 5)
    stats = entry["inference_stats"]
    assert stats["success"] == {"count": 3, "ns": 300}
    assert stats["queue"] == {"count": 3, "ns": 30}
    assert stats["compute_input"] == {"count": 3, "ns": 6}  # each of the three waited for all of it
    assert stats["compute_infer"] == {"count": 3, "ns": 9}
    assert stats["compute_output"] == {"count": 3, "ns": 12}


def test_batches_are_also_counted_by_their_size() -> None:
    statistics = Statistics()
    for rows, infer_ns in ((8, 100), (1, 10), (8, 200)):
        recorded(statistics, rows=rows, infer_ns=infer_ns)
    first, second = statistics.of("m", 1)["batch_stats"]
    assert (first["batch_size"], first["compute_infer"]) == (1, {"count": 1, "ns": 10})
    assert (second["batch_size"], second["compute_infer"]) == (8, {"count": 2, "ns": 300})
    assert second["compute_input"] == {"count": 2, "ns": 4}


def test_failures_are_no_inferences() -> None:
    statistics = Statistics()
    statistics.record_failure("m", 1, total_ns=7)
    entry = statistics.of("m", 1)
    assert entry["inference_stats"]["fail"] == {"count": 1, "ns": 7}
    assert entry["inference_count"] == entry["execution_count"] == entry["inference_stats"]["success"]["count"] == 0


def test_versions_are_counted_apart() -> None:
    statistics = Statistics()
    recorded(statistics)
    assert statistics.of("m", 2)["inference_count"] == 0
    assert statistics.of("n", 1)["inference_count"] == 0


def test_what_several_routers_counted_adds_up_to_what_one_would_have_counted() -> None:
    clock = iter(range(1_000_000, 100_000_000, 1_000_000))
    routers, alone = [Statistics(clock=lambda: now) for _ in range(3)], Statistics(clock=lambda: now)
    for number in range(12):
        now = next(clock)
        for statistics in (routers[number % 2], alone):  # the third has answered nothing
            recorded(statistics, requests=1 + number % 3, rows=2 + number % 4, infer_ns=number)
            statistics.record_failure("m", 1, total_ns=7)
    assert total(statistics.of("m", 1) for statistics in routers) == alone.of("m", 1)
    assert total([alone.of("m", 1)]) == alone.of("m", 1)


def test_all_that_was_counted_can_be_told_at_once() -> None:
    statistics = Statistics()
    recorded(statistics)
    statistics.record_failure("m", 2, total_ns=7)
    assert statistics.all() == [statistics.of("m", 1), statistics.of("m", 2)]
