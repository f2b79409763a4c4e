"""``understudy evidence verify`` on a rollout that a real controller judged from really recorded evidence."""

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from rollout.controller import Controller, Tools
from rollout.entries import GENESIS, Entry, seal
from rollout.journal import Journal
from rollout.policy import load_policy
from rollout.traffic import Snapshot
from serving.cli.evidence import app
from serving.config import Rollout
from shadow.accounting import Account, Accounting
from shadow.checkpoint import Retention
from shadow.errors import EvidenceError, ShadowError
from shadow.pair import Pair
from shadow.recorder import Recorder
from shadow.store import Head, segment_name
from tests.rollout.stage import BASELINE, CANDIDATE, MODEL, STAGES, Clock, FakeTraffic
from tests.shadow.builders import bad, ok, outcome, pair, simple_pair

LIMIT_NOTE_S = 61.0


@contextmanager
def recording(reports: Path, deployment_id: str) -> Iterator[Recorder]:
    limits = load_policy("equivalence", reports).limits(1e-3)
    folder = reports / deployment_id / "evidence"
    recorder = Recorder(folder, "router", deployment_id, limits, Accounting(), flush_interval_s=3600)
    try:
        yield recorder
    finally:
        recorder.close()


def seen(recorder: Recorder) -> Snapshot:
    recorder.flush()
    found = recorder.snapshot()
    assert found.head is not None
    return Snapshot(evidence=found.evidence, heads=(found.head,), accounting={})


def traffic_of(number: int) -> list[Pair]:
    """Good pairs at first, then a candidate that fails every request."""
    if number < 3:
        return [simple_pair(f"{number}-{index}") for index in range(50)]
    return [pair(outcome(ok([1, 0, 0])), outcome(bad(), service_ms=None)) for _ in range(50)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a rollout that was rolled back, beside its database."""
    root = tmp_path_factory.mktemp("service")
    clock, traffic = Clock(), FakeTraffic()
    with closing(Journal("sqlite:///understudy.db", relative_to=root)) as journal:
        controller = Controller(
            journal=journal,
            reports=root / "reports",
            traffic=traffic,
            baselines={MODEL: BASELINE},
            tools=Tools(monotonic=clock.monotonic, now=clock.now),
        )
        policy = load_policy("equivalence", root)
        name = controller.start(MODEL, CANDIDATE, policy, stages=STAGES, tolerance=1e-3, actor="test")
        with recording(root / "reports", name) as recorder:
            for number in range(6):
                for one in traffic_of(number):
                    assert recorder.offer(replace(one, deployment_id=name))
                traffic.snapshots[name] = seen(recorder)
                controller.tick()
                clock.at_s += LIMIT_NOTE_S
    return root / "reports" / name


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(finished.parents[1], tmp_path / "service")
    return tmp_path / "service" / "reports" / finished.name


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def problems(folder: Path, *options: str) -> list[str]:
    result = run(folder, "--json", *options)
    said: list[str] = orjson.loads(result.stdout)["problems"]
    assert result.exit_code == (1 if said else 0)
    return said


def rewrite(folder: Path, entries: list[dict[str, object]]) -> None:
    """Write a journal anew whose own chain holds, as a forger would."""
    sealed: list[Entry] = []
    for seq, entry in enumerate(entries, start=1):
        body = {key: value for key, value in entry.items() if key != "hash"}
        sealed.append(seal(body, seq=seq, prev=str(sealed[-1]["hash"]) if sealed else GENESIS))
    (folder / "journal.jsonl").write_bytes(b"".join(orjson.dumps(entry) + b"\n" for entry in sealed))


def read(folder: Path) -> list[dict[str, object]]:
    return [orjson.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]


def test_an_honest_rollout_verifies_with_every_figure_recomputed(folder: Path) -> None:
    result = run(folder, "--json")
    assert result.exit_code == 0
    found = orjson.loads(result.stdout)
    last = [entry for entry in read(folder) if entry["heads"]][-1]
    assert found["problems"] == []
    assert found["recomputed_entries"] == len([entry for entry in read(folder) if entry["heads"]]) >= 3
    assert found["evidence"] == last["evidence"]
    metrics = {metric["name"]: metric for metric in found["metrics"]}
    assert metrics["top-1 agreement"]["value"] == 100
    assert metrics["candidate errors"]["n"] == metrics["baseline errors"]["n"] >= 200
    assert metrics["candidate errors"]["value"] > 20
    assert metrics["baseline errors"]["value"] == 0


def test_says_it_in_words_too(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 0
    assert "candidate errors" in result.stdout
    assert "evidence holds" in result.stdout


def test_a_flipped_byte_in_the_rows_is_found(folder: Path) -> None:
    path = folder / "evidence" / segment_name("router", 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert any("router-000002.parquet" in problem for problem in problems(folder))
    assert "does NOT hold" in run(folder).stdout


def test_a_tail_cut_off_is_found(folder: Path) -> None:
    for path in sorted((folder / "evidence").glob("router-*.parquet"))[2:]:
        path.unlink()
    assert any("cut: " in problem for problem in problems(folder))


def test_a_changed_entry_is_found(folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"actor":"test"', b'"actor":"nobody"'))
    assert any("entry 1: its content does not match its hash" in problem for problem in problems(folder))


def test_a_journal_cut_at_its_end_is_found(folder: Path) -> None:
    path = folder / "journal.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert any("cut: the database's last entry" in problem for problem in problems(folder))


def test_sums_that_do_not_follow_from_the_rows_are_found_though_the_journal_was_sealed_anew(folder: Path) -> None:
    entries = read(folder)
    claimed = next(entry for entry in entries if entry["heads"])
    sums = claimed["evidence"]
    assert isinstance(sums, dict)
    sums["0"]["pairs"] += 1
    rewrite(folder, entries)
    said = problems(folder, "--unanchored")
    assert f"journal: entry {claimed['seq']}: evidence: stage.0.pairs: the rows give 100, the entry says 101" in said
    assert any("cut: the database's last entry" in problem for problem in problems(folder))


def test_a_figure_that_does_not_follow_from_the_sums_is_found(folder: Path) -> None:
    entries = read(folder)
    judged = [entry for entry in entries if entry["judgement"] and entry["heads"]][-1]
    judgement = judged["judgement"]
    assert isinstance(judgement, dict)
    gate = next(gate for gate in judgement["gates"] if gate["gate"] == "error_rate")
    gate["estimate"] = 0.0
    rewrite(folder, entries)
    said = problems(folder, "--unanchored")
    assert any(f"entry {judged['seq']}: gate error_rate: estimate: the sums give" in problem for problem in said)


def test_a_heads_list_that_is_malformed_is_a_problem(folder: Path) -> None:
    entries = read(folder)
    next(entry for entry in entries if entry["heads"])["heads"] = [{"chain": "router"}]
    rewrite(folder, entries)
    assert any("missing or malformed" in problem for problem in problems(folder, "--unanchored"))


def test_without_its_database_nothing_vouches_for_the_evidence(folder: Path) -> None:
    for file in folder.parents[1].glob("understudy.db*"):
        file.unlink()
    assert any("database that vouches for this evidence cannot be read" in problem for problem in problems(folder))
    assert problems(folder, "--unanchored") == []


def test_a_folder_without_a_journal_is_wrong_use(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert isinstance(result.exception, EvidenceError)
    assert "expected a rollout's folder with a journal.jsonl" in str(result.exception)


def test_rows_after_the_last_decision_are_reported_and_fine(folder: Path) -> None:
    last = max((folder / "evidence").glob("router-*.parquet"))
    number = int(last.stem.rpartition("-")[2])
    entries = [entry for entry in read(folder) if _segments(entry) < number]
    rewrite(folder, entries)
    found = orjson.loads(run(folder, "--json", "--unanchored").stdout)
    assert found["problems"] == []
    assert found["chains"][0]["later_rows"] > 0


def with_accounts(folder: Path, *accounts: object) -> None:
    """Give the journal's last entries these accounts by chain."""
    entries = read(folder)
    for entry, account in zip(entries[-len(accounts) :], accounts, strict=True):
        entry["accounts"] = account
    rewrite(folder, entries)


def without_closing(folder: Path) -> None:
    """As if the writer of the pairs had been killed."""
    (folder / "evidence" / "router.closed.json").unlink()


def test_what_a_killed_process_took_along_is_named_and_counted_and_is_no_problem(folder: Path) -> None:
    latest = Account(sampled=1200, shed=100, pending=1100).to_json()
    restarted = Account(sampled=7, failed=7).to_json()
    without_closing(folder)
    with_accounts(folder, {"router": latest, "gone": restarted}, {"router": restarted})
    assert problems(folder, "--unanchored") == []
    loss = orjson.loads(run(folder, "--json", "--unanchored").stdout)["loss"]
    assert (loss["sampled"], loss["lost"], loss["open_segment_s"]) == (1207, 1107, 4)
    assert [(each["chain"], each["closed"], each["lost"]) for each in loss["chains"]] == [
        ("gone", False, 7),
        ("router", False, 1100),
    ]
    said = run(folder, "--unanchored").stdout
    assert "chain router: ended without closing; 1,100 of 1,200 sampled items are in no segment" in said
    assert "counted loss: 1,107 of 1,207 sampled items" in said


def test_while_a_rollout_goes_on_a_chain_may_still_be_written_to(folder: Path) -> None:
    without_closing(folder)
    with_accounts(folder, {"router": Account(sampled=4, pending=4).to_json()})
    rewrite(folder, [*read(folder)[:-1], {**read(folder)[-1], "state": "shadow"}])
    assert "not closed: still written to, or its writer was killed; 4 of 4" in run(folder, "--unanchored").stdout


@pytest.mark.parametrize("accounts", [["router"], {"router": {"sampled": 1, "stolen": 1}}, {"router": 3}])
def test_accounts_that_are_malformed_are_a_problem(folder: Path, accounts: object) -> None:
    with_accounts(folder, accounts)
    assert any("accounts: " in problem and "malformed" in problem for problem in problems(folder, "--unanchored"))


def _segments(entry: dict[str, object]) -> int:
    heads = entry["heads"]
    assert isinstance(heads, list)
    return max((Head(**head).segments for head in heads), default=0)


def compacted(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(app, ["compact", str(folder), "--json", *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, orjson.loads(result.stdout)


def evidence_files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "evidence").iterdir())


def test_what_was_compacted_verifies_to_the_same_figures(folder: Path) -> None:
    before = orjson.loads(run(folder, "--json").stdout)
    last = max(map(_segments, read(folder)))
    assert last > 2
    status, said = compacted(folder)
    assert (status, said["problems"], said["overdue_rows"]) == (0, [], None)
    assert said["chains"][0]["segments"] == said["chains"][0]["deleted_files"] == last - 1
    assert f"router.checkpoint-{last - 1:06}.json" in evidence_files(folder)
    assert segment_name("router", 1) not in evidence_files(folder)
    after = orjson.loads(run(folder, "--json").stdout)
    assert after["problems"] == []
    assert (after["evidence"], after["metrics"], after["chains"]) == (
        before["evidence"],
        before["metrics"],
        before["chains"],
    )
    assert 0 < after["recomputed_entries"] < before["recomputed_entries"]
    assert any(f"segments 1…{last - 1} are a checkpoint" in note for note in after["notes"])


def test_says_in_words_what_was_compacted(folder: Path) -> None:
    rows = orjson.loads(run(folder, "--json").stdout)["chains"][0]["head"]["rows"]
    left = rows - 50 * (max(map(_segments, read(folder))) - 1)  # from the segment of the last recorded head on
    result = CliRunner().invoke(app, ["compact", str(folder), "--keep-days", "1", "--redact"])
    assert result.exit_code == 0
    assert "router" in result.stdout
    assert f"had to stay, with their request ids: {left}\n" in result.stdout


def test_evidence_that_does_not_hold_is_left_as_it_is(folder: Path) -> None:
    path = folder / "evidence" / segment_name("router", 2)
    path.write_bytes(path.read_bytes()[:-1])
    before = evidence_files(folder)
    status, said = compacted(folder)
    assert status == 1
    assert any("router-000002.parquet" in problem for problem in said["problems"])
    assert "nothing was compacted" in CliRunner().invoke(app, ["compact", str(folder)]).stdout
    assert evidence_files(folder) == before


def test_nothing_is_compacted_without_the_database_that_vouches_for_it_unless_told_to(folder: Path) -> None:
    for file in folder.parents[1].glob("understudy.db*"):
        file.unlink()
    assert compacted(folder)[0] == 1
    assert compacted(folder, "--unanchored")[0] == 0
    assert problems(folder, "--unanchored") == []


@pytest.mark.parametrize("options", [["--keep-days", "1", "--keep-segments", "2"], ["--redact"], ["--keep-segments=0"]])
def test_a_retention_that_contradicts_itself_is_wrong_use(folder: Path, options: list[str]) -> None:
    before = evidence_files(folder)
    result = CliRunner().invoke(app, ["compact", str(folder), *options])
    assert result.exit_code == 2 or isinstance(result.exception, ShadowError)
    assert evidence_files(folder) == before


def test_rows_that_labels_may_join_stay_for_as_long_as_the_configuration_says_by_default() -> None:
    assert Rollout.model_fields["labels_within_s"].default == Retention().labels_within_s
