import json
import logging
import socket
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.errors import LaunchError
from serving.telemetry import Metrics, MetricsServer, Outcome, log_event, log_to_file

LOGGER = logging.getLogger("understudy.test")


Read = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Read]:
    """Gives what has been logged since the test began."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []  # pytest's own handlers must survive `force`
    path = tmp_path / "logs" / "process.jsonl"
    listener = log_to_file(path)

    def read() -> list[dict[str, Any]]:
        listener.stop()
        return [json.loads(line) for line in path.read_text().splitlines()]

    yield read
    root.handlers, root.level = before, level
    for handler in listener.handlers:
        handler.close()


def test_an_event_is_one_line_of_json_with_its_fields(written: Read) -> None:
    log_event(LOGGER, "weight changed", deployment_id="d", model="m", version=2, request_id='x\n"')
    (event,) = written()
    assert event.pop("ts").endswith("+00:00")
    assert event == {
        "level": "info",
        "logger": "understudy.test",
        "event": "weight changed",
        "deployment_id": "d",
        "model": "m",
        "version": 2,
        "request_id": 'x\n"',
    }


def test_an_exception_is_within_the_line(written: Read) -> None:
    try:
        raise ValueError("why")
    except ValueError:
        log_event(LOGGER, "failed", logging.ERROR, exc_info=True)
    (event,) = written()
    assert "ValueError: why" in event["exception"]
    assert event["level"] == "error"


def test_other_libraries_records_are_lines_of_json_too(written: Read) -> None:
    logging.getLogger("uvicorn.error").warning("Invalid %s", "request")
    assert [event["event"] for event in written()] == ["Invalid request"]


def test_what_json_cannot_hold_is_shown_all_the_same(written: Read) -> None:
    log_event(LOGGER, "odd", path="\udcff", value={1, 2}, big=2**70)
    (event,) = written()
    assert (event["path"], event["value"], event["big"]) == ("\udcff", "{1, 2}", 2**70)


def test_events_below_the_level_are_left_out(written: Read) -> None:
    log_event(LOGGER, "detail", logging.DEBUG)
    assert written() == []


def test_a_disk_that_hangs_costs_lines_and_never_time(tmp_path: Path) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    root.handlers = []
    listener = log_to_file(tmp_path / "process.jsonl")
    (file,) = listener.handlers
    file.acquire()  # as a write that does not return
    try:
        for number in range(12_000):
            log_event(LOGGER, "event", number=number)
    finally:
        file.release()
        listener.stop()
        root.handlers, root.level = before, level
        file.close()
    assert 10_000 <= len((tmp_path / "process.jsonl").read_text().splitlines()) < 12_000


def test_requests_are_counted_by_outcome_and_timed() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    answers: tuple[tuple[Outcome, float], ...] = (("ok", 0.004), ("ok", 0.2), ("error", 7.0), ("rejected", 0.001))
    for outcome, seconds in answers:
        metrics.observe("m", 2, outcome, seconds)
    labels = {"model": "m", "version": "2"}
    assert registry.get_sample_value("understudy_requests_total", labels | {"outcome": "ok"}) == 2
    assert registry.get_sample_value("understudy_requests_total", labels | {"outcome": "error"}) == 1
    assert registry.get_sample_value("understudy_requests_total", labels | {"outcome": "rejected"}) == 1
    assert registry.get_sample_value("understudy_request_seconds_count", labels) == 4
    assert registry.get_sample_value("understudy_request_seconds_sum", labels) == pytest.approx(7.205)
    assert registry.get_sample_value("understudy_request_seconds_bucket", labels | {"le": "0.005"}) == 2


def test_the_rollout_s_figures_are_shown() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.set_mirror("m", {"sampled": 5, "shed": 2})
    metrics.set_mirror("m", {"sampled": 7, "shed": 2})
    metrics.set_weight("m", 20)
    metrics.count_fallback("m")
    metrics.set_queue("m", 1, 3)
    model = {"model": "m"}
    assert registry.get_sample_value("understudy_mirror_items", model | {"outcome": "sampled"}) == 7
    assert registry.get_sample_value("understudy_mirror_items", model | {"outcome": "shed"}) == 2
    assert registry.get_sample_value("understudy_candidate_weight_percent", model) == 20
    assert registry.get_sample_value("understudy_fallbacks_total", model) == 1
    assert registry.get_sample_value("understudy_queue_depth", model | {"version": "1"}) == 3


def test_prometheus_reads_the_endpoint_until_it_stops() -> None:
    registry = CollectorRegistry()
    Metrics(registry).observe("m", 1, "ok", 0.1)
    server = MetricsServer("127.0.0.1", 0, registry)
    server.start()
    url = f"http://127.0.0.1:{server.port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as response:
        families = {family.name for family in text_string_to_metric_families(response.read().decode())}
    assert {"understudy_requests", "understudy_request_seconds"} <= families
    server.stop()
    server.stop()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)


def test_a_metrics_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"127\.0\.0\.1:{port}"):
            MetricsServer("127.0.0.1", port, CollectorRegistry()).start()
