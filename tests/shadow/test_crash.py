"""SIGKILL at any point leaves evidence that verifies, and nothing is counted twice."""

import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from shadow.evidence import LabelCells
from shadow.labels import LabelJoin
from shadow.store import Head, SegmentWriter
from shadow.verify import evidence_at, verify
from tests.shadow.builders import DEPLOYMENT, LIMITS, header
from tests.shadow.crash import LABELS

ROOT = Path(__file__).parents[2]


def tour(what: str, folder: Path) -> int:
    command = [sys.executable, "-m", "tests.shadow.crash", what, str(folder)]
    return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100).stdout)


def test_a_writer_killed_anywhere_leaves_a_chain_that_holds_and_goes_on(tmp_path: Path) -> None:
    tries = tour("store", tmp_path)
    assert tries > 20
    lengths = set()
    for number in range(tries):
        folder = tmp_path / str(number)
        reported = folder / "head.json"
        heads = {"router": Head(**orjson.loads(reported.read_bytes()))} if reported.exists() else {}
        found = verify(folder / "evidence", heads)
        assert found.problems == ()
        durable = found.chains[0].head if found.chains else None
        assert SegmentWriter(folder / "evidence", header()).head == durable
        lengths.add(durable.segments if durable else 0)
    assert lengths == {0, 1, 2, 3}


def test_a_label_join_killed_anywhere_counts_every_label_once(tmp_path: Path) -> None:
    tries = tour("labels", tmp_path)
    assert tries > 20
    for number in range(tries):
        folder = tmp_path / str(number) / "evidence"
        with LabelJoin(folder, DEPLOYMENT, LIMITS, within_s=60, clock=lambda: 1.0) as labels:
            labels.add(LABELS)  # whoever got no answer sends them again
            labels.advance()
            evidence, head = labels.snapshot()
            counts = labels.counts()
        assert head is not None
        # Baseline always says 0; the candidate says 1 for odd requests; the label of request n is n mod 3.
        assert evidence.stage(0).labels == LabelCells(both=2, neither=2)
        assert evidence.stage(1).labels == LabelCells(baseline_only=1, candidate_only=2, neither=1)
        assert (counts.accepted, counts.joined, counts.waiting) == (8, 8, 0)
        found = verify(folder, {"labels": head})
        assert found.problems == ()
        assert found.evidence == evidence


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.3])
def test_a_recorder_killed_while_it_records_has_durable_what_it_reported(tmp_path: Path, delay_s: float) -> None:
    command = [sys.executable, "-m", "tests.shadow.crash", "recorder", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(delay_s)
        process.kill()
        lines = [first, *(line for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n"))]
    reported = orjson.loads(lines[-1])
    head = Head(**reported["head"])
    found = verify(tmp_path, {"router": head})
    assert found.problems == ()
    assert evidence_at(tmp_path, [head]).to_json() == reported["evidence"]
