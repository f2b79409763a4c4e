import dataclasses
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from benchmarks import perf_analyzer
from benchmarks.errors import BenchmarkError
from benchmarks.load import Request, Sample
from benchmarks.peers import PEERS
from benchmarks.peers.__main__ import CACHE, side_by_side
from benchmarks.peers.bench import Bench, Plan
from benchmarks.peers.contract import Load, Measure, Peer, Settings
from benchmarks.peers.environment import installed
from benchmarks.peers.journal import Journal, Run
from benchmarks.peers.mlserver.protobuf import model_config
from benchmarks.peers.plots import plot
from benchmarks.peers.scores import raw_scores
from benchmarks.peers.served import PeerServer, Raw, Understudy
from benchmarks.peers.summary import over_raw, render, summarise
from benchmarks.workloads import WORKLOADS, Workload

NEEDS_WRK = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is not installed")
LONE = Load(loop="closed", transport="http", amount=1)
MANY = Load(loop="closed", transport="http", amount=64)
OFFERED = Load(loop="open", transport="http", amount=100)
TITLES = {"understudy": "Understudy", "raw": "the model alone", "plain": "Plain"}


def plain_request(workload: Workload) -> Request:
    headers = {"Content-Type": "application/octet-stream"}
    return Request(path="/", headers=headers, body=workload.example.tobytes())


class PlainPeer(Peer):
    @property
    def server(self) -> Path:
        return Path(__file__).with_name("plain_peer.py")


def plain(*, wrong: bool = False) -> PeerServer:
    peer = PlainPeer(
        name="plain",
        title="Plain",
        ready_path="/",
        request=plain_request,
        scores=raw_scores,
        settings={"wrong": wrong},
        tried=(),
    )
    return PeerServer(peer=peer, python=Path(sys.executable))


def sample(requests_per_s: float, p50_ms: float = 1.0, failed: int = 0) -> Sample:
    return Sample(
        connections=64,
        requests=1,
        failed=failed,
        requests_per_s=requests_per_s,
        mean_ms=p50_ms,
        sd_ms=0.1,
        p50_ms=p50_ms,
        p90_ms=2 * p50_ms,
        p99_ms=3 * p50_ms,
    )


def run(round_: int, server: str, load: Load, found: Sample) -> Run:
    return Run(round=round_, workload="digits", server=server, load=load, settings={}, sample=found, commit="c")


def runs_of(load: Load, **rates: tuple[float, ...]) -> list[Run]:
    return [run(at, name, load, sample(rate)) for name, each in rates.items() for at, rate in enumerate(each)]


class Counted:
    """A contender that measures nothing, and gives up after so many measurements."""

    name = title = "counted"

    def __init__(self, most: int) -> None:
        self.left, self.starts = most, 0

    def takes(self, load: Load) -> bool:
        return load.transport == "http"

    def settings(self, workload: Workload) -> Settings:
        return {}

    @contextmanager
    def running(self, workload: Workload, folder: Path) -> Iterator[Measure]:
        self.starts += 1
        yield self._measure

    def _measure(self, load: Load, seconds: float) -> Sample:
        if self.left == 0:
            raise BenchmarkError("broken")
        self.left -= 1
        return sample(100 * load.amount)


# Figures


def test_a_ratio_is_that_of_the_medians_with_the_range_of_the_alternations_beside_it() -> None:
    rows = summarise(runs_of(MANY, understudy=(10.0, 30.0, 80.0), plain=(5.0, 10.0, 20.0)))
    (peer,) = [row for row in rows if row.server == "plain"]
    assert (peer.ratio, peer.ratios, peer.runs) == (3.0, (2.0, 3.0, 4.0), 3)
    assert "| Plain | 3.00 (2.00 … 4.00) |" in render(rows, TITLES)


def test_what_is_added_to_the_model_alone_is_read_off_a_lone_client_and_the_most_clients() -> None:
    single, batched = (Load(loop="direct", transport="none", amount=rows) for rows in (1, 32))
    runs = [
        run(0, "raw", single, sample(1000, p50_ms=1.0)),
        run(0, "raw", batched, sample(4000, p50_ms=8.0)),
        run(0, "understudy", LONE, sample(700, p50_ms=1.5)),
        run(0, "understudy", MANY, sample(3000, p50_ms=20.0)),
    ]
    (added,) = over_raw(summarise(runs))
    assert (added.p50_ms, added.p99_ms, added.share) == (0.5, 1.5, 0.75)


def test_an_open_loop_has_latencies_and_no_ratio_and_says_what_failed() -> None:
    runs = [run(0, name, OFFERED, sample(90, failed=2)) for name in ("understudy", "plain")]
    rows = summarise(runs)
    assert all(row.ratio is None for row in rows)
    assert "90 (1.00 / 2.00 / 3.00, 2 failed)" in render(rows, TITLES)


def test_plots_are_drawn_of_what_there_is_and_are_the_same_each_time(tmp_path: Path) -> None:
    rows = summarise([*runs_of(MANY, understudy=(10.0, 30.0), plain=(5.0,)), *runs_of(OFFERED, plain=(90.0,))])
    files = plot(rows, TITLES, tmp_path, "peers")
    assert [file.name for file in files] == [
        f"peers_{kind}.{form}" for kind in ("http", "open") for form in ("png", "svg")
    ]
    before = [file.read_bytes() for file in files]
    plot(rows, TITLES, tmp_path, "peers")
    assert [file.read_bytes() for file in files] == before


# Going on


def test_a_run_that_was_cut_off_measures_what_is_missing_and_nothing_twice(tmp_path: Path) -> None:
    plan = Plan(rounds=2, seconds=1, workloads=("digits",), connections=(1, 8), loops=("closed",))
    path = tmp_path / "journal.jsonl"
    first = Counted(3)
    problems = Bench(plan=plan, contenders=[first], journal=Journal(path, {}), commit=str).run()
    assert problems == ["round 2, digits, counted: broken"]
    assert first.starts == 3, "the second alternation was tried twice"
    with path.open("ab") as file:
        file.write(b'{"round": 1, "workl')  # the process was killed while it wrote
    second, journal = Counted(9), Journal(path, {})
    assert Bench(plan=plan, contenders=[second], journal=journal, commit=str).run() == []
    assert (second.left, second.starts) == (8, 1)
    assert len(Journal(path, {}).runs) == len({each.key for each in journal.runs}) == 4
    journal.close()
    assert not path.exists()


def test_the_runs_of_another_plan_are_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path / "journal.jsonl", {"rounds": 5})
    with pytest.raises(BenchmarkError, match="--fresh discards them"):
        Journal(tmp_path / "journal.jsonl", {"rounds": 6})


def test_each_alternation_begins_with_another_contender(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    turned = [dataclasses.replace(plain(), peer=dataclasses.replace(plain().peer, name=name)) for name in names]
    bench = Bench(
        plan=Plan(rounds=3, seconds=1), contenders=turned, journal=Journal(tmp_path / "journal", {}), commit=str
    )
    assert ["".join(each.name for each in bench.turns(number)) for number in range(4)] == ["abc", "bca", "cab", "abc"]


# Peers


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_a_peer_pins_what_it_installs_and_has_tried_the_settings_it_is_measured_with(peer: Peer) -> None:
    assert PEERS[peer.name] is peer
    assert peer.server.is_file()
    assert all("==" in requirement for requirement in peer.requirements)
    assert "onnxruntime==1.31.1" in peer.requirements, "every server runs the model with the same version"
    assert all(peer.settings_for(name) in peer.tried for name in WORKLOADS)


def test_the_answers_that_mlserver_lacks_are_the_messages_that_triton_defines() -> None:
    service = pytest.importorskip("tritonclient.grpc.service_pb2", reason="tritonclient's gRPC part is not installed")
    model = {
        "name": "digits",
        "max_batch_size": 32,
        "inputs": [{"name": "image", "shape": [-1, 3, 224, 224]}],
        "outputs": [{"name": "scores", "shape": [-1, 1000]}],
    }
    config = service.ModelConfigResponse.FromString(model_config(model)).config
    assert (config.name, config.max_batch_size) == ("digits", 32)
    assert (list(config.input[0].dims), list(config.output[0].dims)) == ([3, 224, 224], [1000])


@pytest.mark.end_to_end
@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_a_peer_answers_as_the_model_does_over_every_transport(peer: Peer, tmp_path: Path) -> None:
    python = installed(peer, CACHE.absolute())
    if python is None:
        pytest.skip(f"{peer.title} is not installed; `make peers` does it")
    server = PeerServer(peer=peer, python=python)
    with server.running(WORKLOADS["digits"], tmp_path) as measure:  # its answer over HTTP was checked
        if peer.grpc and perf_analyzer.installed():
            assert measure(Load(loop="closed", transport="grpc", amount=1), 1).requests > 10


@NEEDS_WRK
def test_a_peer_that_answers_wrongly_is_not_measured(tmp_path: Path) -> None:
    plan = Plan(rounds=1, seconds=1, workloads=("digits",), loops=("closed",), connections=(2,))
    journal = Journal(tmp_path / "journal.jsonl", {})
    (problem,) = Bench(plan=plan, contenders=[plain(wrong=True)], journal=journal, commit=str).run()
    assert "expected the scores" in problem
    assert journal.runs == []


@pytest.mark.end_to_end
@NEEDS_WRK
def test_all_are_measured_by_turns_and_the_result_is_written(tmp_path: Path) -> None:
    plan = Plan(
        rounds=1,
        seconds=1,
        workloads=("digits",),
        transports=("http",),
        loops=("closed",),
        connections=(8,),
    )
    journal = Journal(tmp_path / "journal.jsonl", {})
    bench = Bench(plan=plan, contenders=[Understudy(), Raw(), plain()], journal=journal, commit=str)
    assert side_by_side(bench, tmp_path, "smoke") == 0
    document = orjson.loads((tmp_path / "smoke.json").read_bytes())
    measured = [(each["server"], each["load"]["loop"]) for each in document["runs"]]
    served = [("plain", "closed"), ("raw", "direct"), ("raw", "direct"), ("understudy", "closed")]
    assert sorted(measured) == served
    assert all(each["sample"]["requests"] > 0 == each["sample"]["failed"] for each in document["runs"])
    (ratio,) = [row["ratio"] for row in document["summary"]["rows"] if row["ratio"]]
    assert ratio > 0
    assert "times the other's" in (tmp_path / "smoke.md").read_text(encoding="utf-8")
    assert (tmp_path / "smoke_http.png").read_bytes().startswith(b"\x89PNG")
