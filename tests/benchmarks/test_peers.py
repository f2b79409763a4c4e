import shutil
import sys
from pathlib import Path

import orjson
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.load import Request, Sample
from benchmarks.peers import PEERS
from benchmarks.peers.__main__ import OURS, OURS_JSON, Bench, Run, compare, render, side_by_side
from benchmarks.peers.contract import Peer
from models.tensor import Array

NEEDS_WRK = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is not installed")


def plain_request(example: Array) -> Request:
    return Request(path="/", headers={"Content-Type": "application/octet-stream"}, body=example.tobytes())


def plain_peer(*, wrong: bool = False) -> Peer:
    return Peer(
        name="plain",
        requirements=(),
        server=Path(__file__).with_name("plain_peer.py"),
        ready_path="/",
        request=plain_request,
        scores=orjson.loads,
        settings={"wrong": wrong},
        tried=(),
    )


def run(round_: int, server: str, requests_per_s: float) -> Run:
    sample = Sample(connections=64, requests=1, failed=0, requests_per_s=requests_per_s, p50_ms=1, p99_ms=2)
    return Run(round=round_, server=server, settings=None, sample=sample)


def test_the_ratio_is_that_of_the_medians_with_the_range_of_the_alternations_beside_it() -> None:
    rates = {OURS: (10.0, 30.0, 80.0), OURS_JSON: (5.0, 15.0, 20.0), "plain": (5.0, 10.0, 20.0)}
    runs = [run(at, name, rate) for name, each in rates.items() for at, rate in enumerate(each)]
    (row,) = compare(runs, "plain")
    assert (row["ratio"], row["ratio_json"], row["ratios"]) == (3.0, 1.5, [2.0, 3.0, 4.0])
    assert "| 3.0 (2.0 … 4.0) | 1.5 |" in render([row], "plain")


def test_every_peer_pins_what_it_installs_and_has_tried_the_settings_it_is_measured_with() -> None:
    for name, peer in PEERS.items():
        assert peer.name == name
        assert peer.server.is_file()
        assert all("==" in requirement for requirement in peer.requirements)
        assert peer.settings in peer.tried


@NEEDS_WRK
def test_a_peer_that_answers_wrongly_is_not_measured(tmp_path: Path) -> None:
    bench = Bench(tmp_path, seconds=1, connections=(2,))
    peer = plain_peer(wrong=True)
    with pytest.raises(BenchmarkError, match="expected the scores"):
        bench.measure_peer(0, peer, Path(sys.executable), peer.settings)
    assert bench.runs == []


@pytest.mark.end_to_end
@NEEDS_WRK
def test_both_are_measured_by_turns_with_the_same_clients(tmp_path: Path) -> None:
    bench = Bench(tmp_path, seconds=1, connections=(8,))
    document, markdown = side_by_side(bench, plain_peer(), Path(sys.executable), alternations=1)
    assert [each.server for each in bench.runs] == [OURS, OURS_JSON, "plain"]
    (row,) = document["summary"]
    assert all(each.sample.failed == 0 and each.sample.requests > 0 for each in bench.runs)
    assert row["ratio"] > 0
    assert "times plain" in markdown
