import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.environment import describe
from benchmarks.errors import BenchmarkError
from benchmarks.load import Request, Sample, Wrk, ask
from benchmarks.process import free_ports, running

REQUEST = Request(path="/odd", headers={"X-Quote": 'a "b" \\'}, body=bytes(range(256)))


class Odd(BaseHTTPRequestHandler):
    """Answers 200 to the right request on /odd, else 500."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        right = body == REQUEST.body and self.headers["X-Quote"] == REQUEST.headers["X-Quote"] and self.path == "/odd"
        self.send_response(200 if right else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is not installed")
def test_wrk_sends_body_and_headers_as_they_are_and_counts_what_failed(tmp_path: Path, url: str) -> None:
    wrk = Wrk(tmp_path)
    good = wrk.run(url, REQUEST, connections=2, seconds=1)
    assert good.failed == 0
    assert good.requests > 10
    assert good.requests_per_s == pytest.approx(good.requests, rel=0.3)
    assert 0 < good.p50_ms <= good.p99_ms
    bad = wrk.run(url, Request(path="/other", headers={}, body=b"x"), connections=2, seconds=1)
    assert bad.failed == bad.requests > 0


def test_without_wrk_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchmarkError, match="apt-get install wrk"):
        Wrk(tmp_path)


def test_an_output_without_a_summary_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match="unable to connect"):
        Sample.from_wrk("unable to connect\n", 1)


def test_an_answer_other_than_200_stops_the_benchmark(url: str) -> None:
    assert ask(url, REQUEST).status_code == 200
    with pytest.raises(BenchmarkError, match="expected 200, got 500"):
        ask(url, Request(path="/other", headers={}, body=b"x"))


def test_a_server_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", "raise SystemExit('the model is missing')"]
    with (
        pytest.raises(BenchmarkError, match="the model is missing"),
        running(command, ready_url=f"http://127.0.0.1:{port}", log=tmp_path / "log"),
    ):
        pytest.fail("it never was ready")


def test_nothing_of_a_server_s_processes_is_left(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    with (
        running(command, ready_url=f"http://127.0.0.1:{port}/", log=tmp_path / "log"),
        pytest.raises(BenchmarkError, match="expected 200, got 501"),  # it is there, and knows no POST
    ):
        ask(f"http://127.0.0.1:{port}", REQUEST)
    with pytest.raises(BenchmarkError, match="Connection refused"):
        ask(f"http://127.0.0.1:{port}", REQUEST)


def test_an_environment_names_commit_and_versions_but_no_machine() -> None:
    found = describe()
    assert len(found["commit"].partition("+")[0]) == 40
    assert found["versions"]["onnxruntime"]
    assert set(found["machine"]) == {"processor", "cores", "memory", "kernel", "autogroup", "load_average"}
