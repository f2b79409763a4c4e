"""``understudy profile``: the arithmetic of its table, and what it says where something is missing."""

import json
import math
import os
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from models.errors import UnderstudyError
from serving import cli
from serving.board import Notice, families_of
from serving.cli import flamegraph
from serving.cli import profile as profile_command
from serving.cli.breakdown import Spread, breakdowns, read_stages
from serving.cli.flamegraph import FlamegraphError, recording
from serving.cli.profile import ScrapeError, observe, scrape
from serving.config import Config, load_config
from serving.directory import Process
from serving.stages import BUCKETS_S, STAGES, Histogram, Stages, Timing
from serving.telemetry import AllRouters, MetricsServer
from tests.serving.control_room import Office, door
from tests.serving.doubler import MODEL
from tests.serving.test_cli import write_config

values = st.lists(st.floats(1e-7, 30, allow_nan=False), min_size=1, max_size=60)
shares = st.floats(0.001, 1)


def spread_of(seconds: Sequence[float]) -> Spread:
    histogram = Histogram(BUCKETS_S)
    for each in seconds:
        histogram.observe(each)
    bounds, cumulative = zip(*((float(bound), count) for bound, count in histogram.cumulative()), strict=True)
    return Spread(bounds=bounds, cumulative=cumulative, sum_s=histogram.sum)


@given(seconds=values, share=shares)
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_stands_for(seconds: list[float], share: float) -> None:
    true = sorted(seconds)[math.ceil(share * len(seconds)) - 1]
    found = spread_of(seconds).quantile(share)
    at = bisect_left(BUCKETS_S, true)
    lower, upper = (0.0, *BUCKETS_S, BUCKETS_S[-1])[at], (*BUCKETS_S, BUCKETS_S[-1])[at]
    assert lower * (1 - 1e-9) <= found <= upper * (1 + 1e-9)


@given(seconds=values, one=shares, other=shares)
def test_quantiles_rise_with_their_share(seconds: list[float], one: float, other: float) -> None:
    spread = spread_of(seconds)
    low, high = sorted((one, other))
    assert spread.quantile(low) <= spread.quantile(high) * (1 + 1e-9)


@given(before=values, since=values)
def test_what_came_since_is_what_was_not_there_before(before: list[float], since: list[float]) -> None:
    fresh = spread_of(before + since).plus(spread_of(before), -1)
    assert (fresh.bounds, fresh.cumulative) == (spread_of(since).bounds, spread_of(since).cumulative)
    assert fresh.sum_s == pytest.approx(sum(since), abs=1e-6)
    assert fresh.mean_s == pytest.approx(sum(since) / len(since), abs=1e-6)


def test_of_nothing_every_figure_is_zero() -> None:
    nothing = spread_of([])
    assert (nothing.count, nothing.mean_s, nothing.quantile(0.99)) == (0, 0.0, 0.0)


class Routers:
    """Routers' counts, served as a server serves them."""

    def __init__(self, *names: str) -> None:
        self.stages = {name: Stages() for name in names}

    def answer(self, router: str, version: int, milliseconds: Sequence[float], count: int = 1) -> None:
        """Requests with decode, queue and compute of so many milliseconds."""
        decode, queue, compute = (each / 1000 for each in milliseconds)
        timing = Timing(0.0, decoded=decode, started=decode + queue, compute_us=round(compute * 1e6))
        timing.replied = timing.resumed = timing.started + compute
        for _ in range(count):
            self.stages[router].observe(MODEL, version, timing, timing.resumed)

    def registry(self) -> CollectorRegistry:
        registry = CollectorRegistry()
        registry.register(AllRouters(self._notices))
        return registry

    def page(self) -> str:
        return generate_latest(self.registry()).decode()

    def _notices(self) -> list[Notice]:
        return [Notice(router=name, families=families_of(each.collect())) for name, each in self.stages.items()]


def test_a_breakdown_sums_all_routers_and_counts_only_the_interval() -> None:
    routers = Routers("a", "gone")
    routers.answer("a", 1, (100, 100, 100), count=50)
    routers.answer("a", 2, (1, 1, 1))
    routers.answer("gone", 1, (1, 1, 1), count=7)
    before = read_stages(routers.page())
    del routers.stages["gone"]
    routers.stages["fresh"] = Stages()
    routers.answer("a", 1, (1, 2, 5), count=30)
    routers.answer("fresh", 1, (1, 6, 5), count=10)
    (found,) = breakdowns(before, read_stages(routers.page()), seconds=4.0)
    assert (found.model, found.version, found.requests, list(found.stages)) == (MODEL, "1", 40, list(STAGES))
    shown = found.to_json()
    assert shown["requests_per_s"] == 10
    assert shown["mean_s"] == pytest.approx(0.009)
    assert shown["stages"]["queue"]["mean_s"] == pytest.approx(0.003)
    assert shown["stages"]["compute"]["share"] == pytest.approx(5 / 9)
    assert sum(stage["share"] for stage in shown["stages"].values()) == pytest.approx(1)
    assert 0.0025 < shown["stages"]["queue"]["p90_s"] <= 0.01
    assert found.stages["unexplained"].mean_s == pytest.approx(0, abs=1e-6)


def test_versions_that_answered_nothing_are_left_out() -> None:
    routers = Routers("a")
    routers.answer("a", 1, (1, 1, 1))
    page = read_stages(routers.page())
    assert breakdowns(page, page, 1.0) == []
    assert breakdowns({}, {}, 1.0) == []


# The command


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_config(write_config(tmp_path))


def at(config: Config, **ports: int) -> Config:
    return config.model_copy(update={"server": config.server.model_copy(update=ports)})


@contextmanager
def metrics(routers: Routers) -> Iterator[int]:
    """The routers' metrics at a real port."""
    server = MetricsServer("127.0.0.1", 0, routers.registry())
    server.start()
    try:
        yield server.port
    finally:
        server.stop()


def command(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, ["profile", *map(str, arguments)])


def test_the_table_is_printed_though_the_admin_door_is_closed(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routers = Routers("a")

    def load(_: float) -> None:
        routers.answer("a", 1, (1, 2, 5), count=8)

    monkeypatch.setattr("serving.cli.profile.time.sleep", load)
    with metrics(routers) as port:
        monkeypatch.setattr(profile_command, "load_config", lambda _: at(config, metrics_port=port, admin_port=1))
        ended = command(tmp_path / "config.yaml", "--out", tmp_path / "out")
        assert ended.exit_code == 0
        assert f"{MODEL} 1: 8 requests" in ended.stdout
        assert [line.split()[0] for line in ended.stdout.splitlines()[2:11]] == [*STAGES, "whole"]
        assert "62.5%" in ended.stdout
        assert "interpolated" in ended.stdout
        assert ended.stderr.startswith("no flamegraphs: http://127.0.0.1:1: is the server running?")
        shown = json.loads(command(tmp_path / "config.yaml", "--json", "--no-flamegraph").stdout)
        assert (shown["versions"][0]["requests"], shown["flamegraphs"], shown["problems"]) == (8, [], [])


def test_no_request_meanwhile_is_said_with_exit_status_1(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routers = Routers("a")
    routers.answer("a", 1, (1, 1, 1))
    with metrics(routers) as port:
        monkeypatch.setattr(profile_command, "load_config", lambda _: at(config, metrics_port=port))
        ended = command(tmp_path / "config.yaml", "--seconds", 1, "--no-flamegraph")
    assert (ended.exit_code, ended.stdout, ended.stderr) == (1, "", "no request was answered in these 1 s\n")


@pytest.mark.parametrize(
    "arguments", [(), ("c", "--seconds", "0"), ("c", "--seconds", "601"), ("c", "--seconds", "soon"), ("c", "d")]
)
def test_wrong_use_is_exit_status_2(arguments: tuple[str, ...]) -> None:
    assert command(*arguments).exit_code == 2


def test_a_configuration_or_a_server_that_is_not_there_is_named(config: Config, tmp_path: Path) -> None:
    missing = command(tmp_path / "none.yaml").exception
    assert isinstance(missing, UnderstudyError)
    assert str(missing) == f"{tmp_path}/none.yaml: cannot be read: No such file or directory"
    absent = command(tmp_path / "config.yaml").exception
    assert isinstance(absent, ScrapeError)
    assert str(absent).startswith(f"http://127.0.0.1:{config.server.metrics_port}/metrics: is the server running?")
    assert "\n" not in str(absent)


def test_a_port_without_our_metrics_is_named(config: Config, office: Office) -> None:
    with (
        door(office) as url,
        pytest.raises(ScrapeError, match=r"expected the metrics of a server, got 404 application/json$"),
    ):
        scrape(at(config, metrics_port=int(url.rpartition(":")[2])))


# Flamegraphs

BUSY = "def thinks():\n    while True: sum(range(1000))\nprint('busy', flush=True)\nthinks()"
IDLE = "import time\nprint('idle', flush=True)\ntime.sleep(60)"


@contextmanager
def python(code: str) -> Iterator[int]:
    """A Python process that runs some code; its pid."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline()
        yield child.pid
    finally:
        child.kill()
        child.communicate()


def gone() -> int:
    """The pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_each_process_is_drawn_or_it_is_said_why_not(tmp_path: Path) -> None:
    said = []
    with python(BUSY) as busy, python(IDLE) as idle:
        replica = Process(role="replica", pid=busy, model=MODEL, version=1, priority="normal")
        others = [Process(role="router", pid=idle), Process(role="router", pid=gone())]
        with recording([replica, *others], tmp_path / "out", 1) as recordings:
            try:
                drawn = recordings[0].finish()
            except FlamegraphError as error:
                assert "may not attach" in str(error)
                pytest.skip(str(error))
            for each in recordings[1:]:
                with pytest.raises(FlamegraphError) as raised:
                    each.finish()
                said.append(str(raised.value))
        assert Path(f"/proc/{busy}").exists()
    assert drawn.name == f"m-1-normal-{busy}.svg"
    assert "<svg" in drawn.read_text()
    assert "thinks" in drawn.read_text()
    assert said == [
        f"router-{others[0].pid}: no flamegraph: it was idle in every sample",
        f"router-{others[1].pid}: no flamegraph: it has ended",
    ]
    assert list((tmp_path / "out").iterdir()) == [drawn]


def test_what_is_observed_no_longer_leaves_no_spy_behind(tmp_path: Path) -> None:
    with python(BUSY) as busy, recording([Process(role="router", pid=busy)], tmp_path, 600) as recordings:
        assert recordings[0].spy.poll() is None
    assert recordings[0].spy.poll() is not None


def test_py_spy_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "py-spy").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "py-spy").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(flamegraph, "_LATE_S", -0.5)
    mine = Process(role="router", pid=os.getpid())
    with (
        recording([mine], tmp_path / "out", 1) as recordings,
        pytest.raises(FlamegraphError, match="no flamegraph: py-spy did not end within"),
    ):
        recordings[0].finish()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Permission Denied: Try running again with elevated permissions by going 'sudo env'", "py-spy may not attach"),
        ("Error: Operation not permitted (os error 1)\n\nStack backtrace:\n  0: x", "py-spy may not attach"),
        ("Error: Failed to find python version from target process\n\nStack backtrace:", "Failed to find python"),
        ("", "py-spy failed without a word"),
    ],
)
def test_what_py_spy_says_becomes_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, why: str
) -> None:
    (tmp_path / "said").write_text(said)
    (tmp_path / "py-spy").write_text(f"#!/bin/sh\ncat {tmp_path}/said >&2\nexit 1\n")
    (tmp_path / "py-spy").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    process = Process(role="router", pid=os.getpid())
    with recording([process], tmp_path / "out", 1) as recordings, pytest.raises(FlamegraphError) as raised:
        recordings[0].finish()
    assert str(raised.value).startswith(f"{process.name}: no flamegraph: {why}")
    assert "\n" not in str(raised.value)


def test_without_py_spy_or_a_folder_there_is_one_line_and_the_rest_goes_on(
    config: Config, office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.cli.profile.time.sleep", lambda _: None)
    routers = Routers("a")
    with metrics(routers) as port, door(office) as url:
        settings = at(config, metrics_port=port, admin_port=int(url.rpartition(":")[2]))
        found = observe(settings, 1, tmp_path / "config.yaml" / "below")
        assert found.problems == [
            f"{tmp_path}/config.yaml/below: expected a folder for the flamegraphs: Not a directory"
        ]
        monkeypatch.setattr("serving.cli.flamegraph.shutil.which", lambda *_, **__: None)
        found = observe(settings, 1, tmp_path / "out")
        assert found.problems == ["no flamegraphs: py-spy is not installed: it comes with the extra 'profile'"]
    assert (list(found.versions), list(found.flamegraphs)) == ([], [])
    assert not (tmp_path / "out").exists()


def test_the_address_of_a_door_is_one_that_this_machine_can_use(config: Config) -> None:
    for host, url in (("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")):
        assert config.server.model_copy(update={"host": host}).url(80) == f"http://{url}:80"
