import os
import random
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.environment import describe
from benchmarks.errors import BenchmarkError
from benchmarks.process import free_ports, wait_until
from benchmarks.soak.__main__ import Plan, document, render
from benchmarks.soak.callers import Stream, over_grpc, over_http
from benchmarks.soak.generator import Tally, Window, closed_loop, offering
from benchmarks.soak.journal import FILE, Journal, Sample, Segment
from benchmarks.soak.plot import plot
from benchmarks.soak.processes import Held, disk, held_below
from benchmarks.soak.verdict import Growth, breaches, growths, median_slope
from benchmarks.workloads import WORKLOADS
from serving.dataplane import DataPlane
from tests.contract.local_engine import Endpoint, LocalEngine, served

PLAN = Plan(load=0.7, sample=0.1, interval_s=10.0, warm_up_s=100.0)
INTERVAL_S = 10.0


def held(role: str, own_mb: float, pid: int = 7) -> Held:
    return Held(role=role, pid=pid, own_mb=own_mb, pss_mb=own_mb + 9, shared_mb=1.0, threads=4, files=20)


def window(answered: int = 10, **failed: int) -> Window:
    tally = Tally(offered=answered + sum(failed.values()), failed=Counter(failed), latencies=Counter({3: answered}))
    return Window(seconds=INTERVAL_S, cpu_s=1.0, streams={"digits over HTTP": tally})


def segment(memory: Sequence[float], role: str = "router", warm_up_s: float = 0.0, pids: Sequence[int] = ()) -> Segment:
    samples = [
        Sample(
            at_s=INTERVAL_S * (number + 1),
            window=window(),
            held=[held(role, own_mb, pids[number] if pids else 7)],
            disk={".parquet": 1000 * (number + 1), "files": number + 1},
        )
        for number, own_mb in enumerate(memory)
    ]
    return Segment(environment=describe(), capacity=100.0, rate=70.0, warm_up_s=warm_up_s, samples=samples)


def growth_of(*segments: Segment) -> Growth:
    (found,) = growths(segments)
    return found


# The verdict


def test_memory_that_wanders_around_a_level_is_flat_and_a_leak_of_two_percent_is_not() -> None:
    noise = random.Random(1)
    level = [100 + noise.uniform(-0.4, 0.4) for _ in range(360)]
    leak = [each + 2 * number / 360 for number, each in enumerate(level)]
    assert growth_of(segment(level)).flat
    found = growth_of(segment(leak))
    assert not found.flat
    assert found.slope == pytest.approx(0.02, abs=0.002)
    assert found.tenths == pytest.approx(0.018, abs=0.003)


def test_a_jump_late_in_the_run_is_seen_by_its_tenths_though_the_median_slope_misses_it() -> None:
    found = growth_of(segment([100.0] * 90 + [105.0] * 10))
    assert found.slope == 0
    assert found.tenths == pytest.approx(0.05)
    assert not found.flat


def test_what_happens_in_the_warm_up_counts_for_nothing() -> None:
    found = growth_of(segment([50.0] * 9 + [100.0] * 40, warm_up_s=95.0))
    assert (found.own_mb, found.slope, found.tenths) == (100.0, 0.0, 0.0)


def test_segments_are_not_compared_with_each_other_but_their_slopes_count_over_the_whole_time() -> None:
    first = [100 + number * 0.01 for number in range(101)]
    second = [200 + number * 0.01 for number in range(101)]
    found = growth_of(segment(first), segment(second))
    assert found.own_mb == pytest.approx(150.5, abs=50)
    assert found.slope * found.own_mb == pytest.approx(2.0), "0.01 MB in each of 200 intervals"


def test_a_process_that_ended_and_came_again_is_not_flat() -> None:
    found = growth_of(segment([100.0] * 20, pids=[7] * 10 + [8] * 10))
    assert (found.ends, found.flat) == (1, False)


def test_processes_of_ray_s_own_are_shown_but_break_no_bound() -> None:
    leak = [100.0 + number for number in range(50)]
    found = growths([segment(leak, role="ray raylet")])
    assert not found[0].flat
    lines = breaches(found, {}, 500, 500)
    assert lines == ["no process was seen in 10 samples after the warm-up"]


def test_failed_requests_a_leak_and_a_run_that_is_too_short_are_told_each_in_a_line() -> None:
    found = growths([segment([100.0 + number for number in range(50)])])
    lines = breaches(found, {"HTTP: 503, 9 bytes": 2}, 490, 500)
    assert [line.partition(":")[0] for line in lines[:1]] == ["router"]
    assert lines[1] == "requests failed (HTTP: 503, 9 bytes: 2); expected none"
    assert lines[2] == "measured for 490 s after the warm-up, expected 500 s"


def test_the_median_slope_is_not_moved_by_a_fifth_of_outliers() -> None:
    times = list(range(50))
    values = [0.5 * time + (1000 if time % 5 == 0 else 0) for time in times]
    assert median_slope([(times, values)]) == pytest.approx(0.5, abs=0.05)


# The journal


def test_a_run_that_is_cut_off_goes_on_with_another_segment(tmp_path: Path) -> None:
    plan = {"load": 0.7}
    journal = Journal(tmp_path, plan)
    first = segment([], warm_up_s=10.0)
    journal.begin(first)
    for sample in segment([100.0, 101.0]).samples:
        journal.add(sample)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"sample": {"at_s": 3')  # it was killed while it wrote
    again = Journal(tmp_path, plan)
    assert again.segments == journal.segments
    assert again.measured_s == 10.0
    again.begin(segment([], warm_up_s=10.0))
    again.add(segment([100.0]).samples[0])
    assert [len(each.samples) for each in Journal(tmp_path, plan).segments] == [2, 1]


def test_the_samples_of_another_plan_are_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path, {"load": 0.7})
    with pytest.raises(BenchmarkError, match="another's; --fresh"):
        Journal(tmp_path, {"load": 0.8})


def test_a_result_names_what_was_measured_and_what_broke_and_is_drawn(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    memory = [100.0 + 0.1 * number for number in range(60)]
    journal.segments += [segment(memory, warm_up_s=100.0)]
    result = document(journal, PLAN, 500.0)
    assert (result["measured_s"], result["longest_s"], result["failed_requests"]) == (500.0, 500.0, {})
    assert result["disk"]["files"] == {"end": 60, "per_hour": pytest.approx(360)}
    markdown = render(result)
    assert "| router | 103.4 | +4.84% | +4.55% |" in markdown
    assert "BREACH: router: own memory grew by 4.84% by slope" in markdown
    plot(journal.segments, tmp_path)
    assert (tmp_path / "soak.png").stat().st_size > 10_000
    assert "minutes under load" in (tmp_path / "soak.svg").read_text()


# The load


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    repository = tmp_path_factory.mktemp("repository")
    for name in ("digits", "images"):
        WORKLOADS[name].write(repository / name)
    engine = LocalEngine(repository, {}, {})
    with served(DataPlane(engine)) as running:
        yield running
    engine.close()


def streams_of(endpoint: Endpoint) -> list[Stream]:
    digits, images = WORKLOADS["digits"], WORKLOADS["images"]
    return [
        over_http(digits, endpoint.address, 0.5),
        over_grpc(digits, endpoint.grpc_address, 0.2),
        over_http(images, endpoint.address, 0.2),
        over_grpc(images, endpoint.grpc_address, 0.1),
    ]


def test_a_closed_loop_sends_the_mix_over_both_transports(endpoint: Endpoint) -> None:
    found = closed_loop(streams_of(endpoint), clients=4, seconds=1.0)
    assert not found.failed
    offered = [each.offered for each in found.streams.values()]
    assert sum(offered) == found.answered > 100
    shares = [each / sum(offered) for each in offered]
    assert shares == pytest.approx([0.5, 0.2, 0.2, 0.1], abs=0.1)
    assert all(0 < each.quantile_ms(0.5) <= each.quantile_ms(0.99) < 1000 for each in found.streams.values())


def test_a_rate_is_held_from_window_to_window(endpoint: Endpoint) -> None:
    with offering(streams_of(endpoint), rate=100, window_s=0.5) as windows:
        found = [next(windows) for _ in range(3)]
    assert [sum(each.offered for each in one.streams.values()) for one in found] == pytest.approx([50] * 3, abs=5)
    assert all(not each.failed for each in found)
    assert all(0 < each.cpu_s < each.seconds for each in found)


class Failing(BaseHTTPRequestHandler):
    """Refuses every third request and breaks every fifth's connection."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[int] = 0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        Failing.asked += 1
        if Failing.asked % 5 == 0:
            self.close_connection = True
            return
        self.send_response(503 if Failing.asked % 3 == 0 else 200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"yes")

    def log_message(self, *_: object) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


@contextmanager
def failing() -> Iterator[str]:
    with Quiet(("127.0.0.1", 0), Failing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_every_failure_is_counted_by_its_kind() -> None:
    (port,) = free_ports(1)
    nobody = f"127.0.0.1:{port}"
    digits = WORKLOADS["digits"]
    with failing() as address:
        streams = [over_http(digits, address, 0.8), over_http(digits, nobody, 0.1), over_grpc(digits, nobody, 0.1)]
        found = closed_loop(streams, clients=16, seconds=1.0)
    assert set(found.failed) == {
        "HTTP: 503, 3 bytes",
        "HTTP: connection lost",
        "HTTP: ConnectionRefusedError",
        "gRPC: UNAVAILABLE",
    }
    offered = sum(each.offered for each in found.streams.values())
    assert offered == found.answered + found.failed.total()


# The processes


def test_memory_that_a_child_takes_and_files_that_it_opens_are_seen_and_shared_memory_is_apart() -> None:
    program = (
        "import mmap, sys; own = b'x' * 50_000_000; files = [open('/dev/null') for _ in range(9)];"
        "shared = mmap.mmap(-1, 30_000_000); shared.write(b'y' * 30_000_000); del own; own = bytearray(40_000_000);"
        "print('serving.cli', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        (found,) = [each for each in held_below(os.getpid()) if each.pid == child.pid]
        child.communicate()
    assert (found.role, found.ours) == ("launcher", True)
    assert 40 < found.own_mb < 60
    assert 30 <= found.shared_mb < 35
    assert found.files >= 12
    wait_until(lambda: not any(each.pid == child.pid for each in held_below(os.getpid())), timeout_s=5, what="gone")


def test_disk_counts_bytes_by_ending(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.parquet").write_bytes(b"12345")
    (tmp_path / "b.parquet").write_bytes(b"123")
    (tmp_path / "log").write_bytes(b"1")
    assert disk(tmp_path) == {".parquet": 8, "other": 1, "files": 3}
    shutil.rmtree(tmp_path / "deep")
    assert disk(tmp_path)[".parquet"] == 3
