import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest

from benchmarks import open_loop
from benchmarks.errors import BenchmarkError
from benchmarks.load import Request
from benchmarks.open_loop import offer
from benchmarks.process import free_ports

REQUEST = Request(path="/right", headers={"X-Key": "1"}, body=bytes(range(256)) * 400)


class Server(BaseHTTPRequestHandler):
    """Answers 200 to the right request, else 500; stalls where it is told to."""

    protocol_version = "HTTP/1.1"
    stall: ClassVar[threading.Lock]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        right = (self.path, self.headers["X-Key"], body) == (REQUEST.path, "1", REQUEST.body)
        with self.stall:
            self.send_response(200 if right else 500)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"yes")

    def log_message(self, *_: object) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the load breaks its connections when it is done


@contextmanager
def serving() -> Iterator[str]:
    Server.stall = threading.Lock()
    with Quiet(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_requests_arrive_as_they_are_and_at_the_rate_that_is_asked_for() -> None:
    with serving() as url:
        found = offer(url, REQUEST, rate=200, seconds=1, seed=0)
    assert found.failed == 0
    assert 150 < found.requests < 250
    assert found.requests_per_s == pytest.approx(found.requests, rel=0.1)
    assert 0 < found.p50_ms <= found.p90_ms <= found.p99_ms
    assert found.mean_ms > 0 < found.sd_ms


def test_answers_other_than_2xx_are_failures() -> None:
    with serving() as url, pytest.raises(BenchmarkError, match="was answered: too slow"):
        offer(url, Request(path="/wrong", headers={}, body=b""), rate=50, seconds=0.5, seed=0)


def test_a_stall_counts_for_all_who_came_meanwhile() -> None:
    with serving() as url:

        def stall() -> None:
            with Server.stall:
                time.sleep(0.5)

        thread = threading.Timer(0.3, stall)
        thread.start()
        found = offer(url, REQUEST, rate=100, seconds=1, seed=0, connections=4)
        thread.join()
    assert found.failed == 0
    assert found.p90_ms > 300, "half of the time somebody who was due had to wait, for 0.25 s on average"


def test_what_is_not_answered_in_time_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_loop, "GRACE_S", 0.2)
    with serving() as url:
        timer = threading.Timer(0.4, Server.stall.acquire)
        timer.start()
        found = offer(url, REQUEST, rate=50, seconds=0.8, seed=0)
        timer.join()
        Server.stall.release()
    assert 0 < found.failed < found.requests


def test_a_server_that_is_not_there_is_an_error() -> None:
    (port,) = free_ports(1)
    with pytest.raises(BenchmarkError, match="refused"):
        offer(f"http://127.0.0.1:{port}", REQUEST, rate=20, seconds=0.2, seed=0)


def test_the_same_seed_offers_the_same_requests() -> None:
    with serving() as url:
        first, second = (offer(url, REQUEST, rate=100, seconds=0.3, seed=7) for _ in range(2))
    assert first.requests == second.requests
