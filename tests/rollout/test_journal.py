import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.entries import GENESIS, append, entry_hash, export, read_entries, seal, verify_chain
from rollout.errors import JournalError, RolloutError, StaleControllerError
from rollout.folder import read_facts, write_facts
from rollout.journal import Journal, Rollout, anchors
from rollout.machine import Position, State
from tests.rollout.stage import BASELINE, CANDIDATE, MODEL, STAGES, START, head


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal("sqlite:///understudy.db", relative_to=tmp_path)
    opened.take_epoch()
    yield opened
    opened.close()


def rollout(deployment_id: str = "digits-2-a", **changes: object) -> Rollout:
    plain = Rollout(
        deployment_id=deployment_id,
        model=MODEL,
        baseline=BASELINE,
        candidate=CANDIDATE,
        policy={"name": "improvement"},
        stages=STAGES,
        tolerance=0.001,
        salt="salt",
        facts={},
        started_at=START,
        entered_at=START,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def body(event: str = "judgement") -> dict[str, object]:
    return {"event": event, "reason": "because", "judgement": None}


def chain(count: int) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = []
    for seq in range(1, count + 1):
        entries.append(dict(seal(body(), seq=seq, prev=str(entries[-1]["hash"]) if entries else GENESIS)))
    return entries


# Entries and their chain


def test_a_chain_as_written_verifies_and_gives_its_last_hash() -> None:
    entries = chain(5)
    assert verify_chain(entries) == entries[-1]["hash"]
    assert verify_chain([]) == GENESIS


@given(st.integers(0, 4), st.sampled_from(["event", "reason", "prev", "hash", "seq", "judgement"]), st.text())
def test_a_changed_value_anywhere_is_found(index: int, key: str, value: str) -> None:
    entries = chain(5)
    entries[index][key] = value
    with pytest.raises(JournalError, match=rf"entry {index + 1}\b"):
        verify_chain(entries)


@given(st.integers(0, 3))
def test_a_dropped_entry_is_found(index: int) -> None:
    entries = chain(5)
    del entries[index]
    with pytest.raises(JournalError, match=f"expected entry {index + 1}, found {index + 2}"):
        verify_chain(entries)


def test_a_recalculated_hash_breaks_the_link_to_the_next_entry() -> None:
    entries = chain(3)
    entries[1]["reason"] = "forged"
    entries[1]["hash"] = entry_hash(entries[1])
    with pytest.raises(JournalError, match="entry 3: prev"):
        verify_chain(entries)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text()))
def test_an_entry_read_back_from_its_file_has_the_hash_that_it_was_written_with(values: dict[str, object]) -> None:
    entry = seal(values, seq=1, prev=GENESIS)
    assert verify_chain([orjson.loads(orjson.dumps(entry))]) == entry["hash"]


# The exported file


def test_the_export_grows_with_the_database_and_repeats_nothing(tmp_path: Path) -> None:
    path, entries = tmp_path / "deep" / "journal.jsonl", chain(4)
    for count in (2, 2, 4, 4):
        export(path, entries[:count])
        assert read_entries(path) == entries[:count]


@given(st.integers(0, 400), st.integers(1, 4))
def test_a_file_cut_anywhere_is_mended_from_the_database(
    tmp_path_factory: pytest.TempPathFactory, cut: int, count: int
) -> None:
    path, entries = tmp_path_factory.mktemp("cut") / "journal.jsonl", chain(4)
    append(path, entries[:count])
    path.write_bytes(path.read_bytes()[:cut])
    export(path, entries)
    assert read_entries(path) == entries


def test_a_file_that_holds_another_entry_is_left_alone_and_reported(tmp_path: Path) -> None:
    path, entries = tmp_path / "journal.jsonl", chain(3)
    append(path, [*entries[:1], {**entries[1], "hash": "forged"}])
    before = path.read_bytes()
    with pytest.raises(JournalError, match="entry 2 is not the database's"):
        export(path, entries)
    assert path.read_bytes() == before


def test_a_file_that_is_ahead_of_the_database_is_reported(tmp_path: Path) -> None:
    append(tmp_path / "journal.jsonl", chain(3))
    with pytest.raises(JournalError, match="entry 3 is not the database's"):
        export(tmp_path / "journal.jsonl", chain(2))


@pytest.mark.parametrize("line", [b"{half", b"[1]", b""])
def test_a_line_that_is_no_entry_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "journal.jsonl").write_bytes(b'{"seq":1}\n' + line + b"\n")
    with pytest.raises(JournalError, match="line 2"):
        read_entries(tmp_path / "journal.jsonl")


def test_a_missing_journal_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"journal\.jsonl: expected a journal"):
        read_entries(tmp_path / "journal.jsonl")


# The database


def test_a_rollout_comes_back_as_it_was_written(journal: Journal) -> None:
    written = journal.create(rollout(facts={"notes": ["a"]}), body("start"))
    assert journal.active(MODEL) == written
    assert (written.seq, written.hash) == (1, journal.entries(written.deployment_id)[0]["hash"])


def test_row_and_entry_change_together(journal: Journal) -> None:
    started = journal.create(rollout(), body("start"))
    moved = replace(started, position=Position(state=State.STAGING, target=3), reason="ready")
    written = journal.record(moved, body("loaded"), heads=[head()])
    assert journal.rollout(started.deployment_id) == written
    assert verify_chain(journal.entries(started.deployment_id)) == written.hash
    assert journal.heads(started.deployment_id) == {"router-1": head()}


def test_a_write_that_fails_half_way_leaves_nothing(journal: Journal) -> None:
    started = journal.create(rollout(), body("start"))
    unwritable = replace(head(), segments=None)  # type: ignore[arg-type]
    with pytest.raises(JournalError):
        journal.record(replace(started, reason="lost"), body(), heads=[unwritable])
    assert journal.rollout(started.deployment_id) == started
    assert len(journal.entries(started.deployment_id)) == 1


def test_a_model_has_one_active_rollout(journal: Journal) -> None:
    journal.create(rollout(), body("start"))
    with pytest.raises(RolloutError, match="digits-2-a is active"):
        journal.create(rollout("digits-2-b"), body("start"))
    assert [each.deployment_id for each in journal.rollouts(MODEL)] == ["digits-2-a"]


def test_superseding_ends_the_one_and_begins_the_other_in_one_step(journal: Journal) -> None:
    first = journal.create(rollout(), body("start"))
    ended = replace(first, position=Position(state=State.SUPERSEDED))
    second = journal.create(rollout("digits-2-b"), body("start"), ends=(ended, body("supersede")))
    assert journal.active(MODEL) == second
    assert [each.deployment_id for each in journal.unsettled()] == ["digits-2-a", "digits-2-b"]


def test_promotion_changes_the_baseline_in_the_same_step(journal: Journal) -> None:
    started = journal.create(rollout(), body("start"))
    assert journal.baselines() == {MODEL: BASELINE}
    journal.record(replace(started, position=Position(state=State.PROMOTED, stage=4)), body("pass_last"))
    assert journal.baselines() == {MODEL: CANDIDATE}
    assert journal.active(MODEL) is None


def test_a_settled_rollout_needs_the_controller_no_more(journal: Journal) -> None:
    started = journal.create(rollout(), body("start"))
    journal.settle(started.deployment_id)
    assert journal.unsettled() == []


def test_a_head_is_kept_per_chain_and_follows_it(journal: Journal) -> None:
    journal.save_heads("digits-2-a", [head("one"), head("two")])
    journal.save_heads("digits-2-a", [head("one", 2)])
    assert journal.heads("digits-2-a") == {"one": head("one", 2), "two": head("two")}


def test_every_epoch_is_higher_than_the_one_before(journal: Journal, tmp_path: Path) -> None:
    assert journal.epoch == 1
    other = Journal("sqlite:///understudy.db", relative_to=tmp_path)
    assert (other.epoch, other.take_epoch(), other.epoch) == (0, 2, 2)
    other.close()


def test_a_stale_controller_can_write_nothing(journal: Journal, tmp_path: Path) -> None:
    started = journal.create(rollout(), body("start"))
    other = Journal("sqlite:///understudy.db", relative_to=tmp_path)
    other.take_epoch()
    for write in (
        journal.check_epoch,
        lambda: journal.record(started, body()),
        lambda: journal.create(rollout("digits-2-b"), body("start")),
        lambda: journal.save_heads(started.deployment_id, [head()]),
        lambda: journal.settle(started.deployment_id),
    ):
        with pytest.raises(StaleControllerError, match="epoch 1 is over"):
            write()
    assert other.rollout(started.deployment_id) == started
    assert other.heads(started.deployment_id) == {}
    other.close()


def test_a_journal_without_an_epoch_only_reads(tmp_path: Path) -> None:
    reader = Journal("sqlite:///understudy.db", relative_to=tmp_path)
    with pytest.raises(StaleControllerError):
        reader.create(rollout(), body("start"))
    assert reader.rollouts(MODEL) == []
    reader.close()


def test_writing_on_top_of_an_entry_that_one_has_not_seen_is_refused(journal: Journal) -> None:
    started = journal.create(rollout(), body("start"))
    journal.record(started, body())
    with pytest.raises(StaleControllerError, match="someone else wrote entry 2"):
        journal.record(started, body())


def test_the_database_survives_power_loss_by_its_settings(journal: Journal) -> None:
    with journal._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "no url", "sqlite:////no/such/folder/db"])
def test_a_database_that_cannot_be_used_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(JournalError, match=r"^database") as refusal:
        Journal(url)
    assert "\n" not in str(refusal.value)


# Anchors


def test_anchors_are_found_from_the_folder_alone_even_after_all_has_moved(journal: Journal, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    inside = Journal("sqlite:///understudy.db", relative_to=here)
    inside.take_epoch()
    started = inside.record(inside.create(rollout(), body("start")), body(), heads=[head()])
    folder = here / "reports" / started.deployment_id
    write_facts(folder, {"database": inside.url_from(folder), **started.to_json()})
    inside.close()
    moved = here.rename(tmp_path / "there") / "reports" / started.deployment_id
    assert (anchors(moved).heads, anchors(moved).last_hash) == ({"router-1": head()}, started.hash)


def test_anchors_without_their_database_say_so_and_make_none(journal: Journal, tmp_path: Path) -> None:
    write_facts(tmp_path / "r", {"database": "sqlite:///gone.db", **rollout().to_json()})
    with pytest.raises(JournalError, match=r"expected a file at .*gone\.db"):
        anchors(tmp_path / "r")
    assert not (tmp_path / "r" / "gone.db").exists()


def test_anchors_of_a_rollout_that_the_database_does_not_know_say_so(journal: Journal, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    write_facts(folder, {"database": journal.url_from(folder), **rollout("unknown").to_json()})
    with pytest.raises(JournalError, match="does not know unknown"):
        anchors(folder)


def test_facts_without_a_needed_key_name_it(tmp_path: Path) -> None:
    (tmp_path / "rollout.json").write_bytes(b'{"database": "sqlite:///x.db"}')
    with pytest.raises(JournalError, match=r"rollout\.json: deployment_id: expected"):
        read_facts(tmp_path)


def test_no_password_leaves_the_process(tmp_path: Path) -> None:
    journal = Journal("sqlite:///understudy.db", relative_to=tmp_path)
    journal._url = journal._url.set(drivername="postgresql", username="u", password="secret", host="h")
    assert "secret" not in journal.url_from(tmp_path)
    journal.close()


# A real kill

WRITER = """
import sys
from pathlib import Path
from rollout.judgement import Verdict
from tests.rollout.stage import Stage
stage = Stage(Path(sys.argv[1]))
print("ready", flush=True)
segments = 1
while True:
    if stage.journal.active("digits") is None:
        stage.start(candidate=max(stage.journal.baselines().values(), default=1) + 1)
    for verdict in (Verdict.HOLD, Verdict.ERROR, Verdict.PASS):
        stage.tick(verdict)
"""


def test_a_controller_killed_at_any_moment_leaves_a_journal_that_verifies_and_goes_on(tmp_path: Path) -> None:
    random, moves = Random(5), 0
    for _ in range(4):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(random.uniform(0.05, 0.5))
        finally:
            writer.kill()
            writer.communicate()
        moves = _check_after_kill(tmp_path, at_least=moves)
    assert moves > 10


def _check_after_kill(folder: Path, *, at_least: int) -> int:
    journal, count = Journal(f"sqlite:///{folder / 'understudy.db'}"), 0
    known = journal.rollouts(MODEL)
    assert sum(not each.position.ended for each in known) <= 1
    for each in known:
        entries = journal.entries(each.deployment_id)
        assert verify_chain(entries) == each.hash
        assert (entries[-1]["state"], entries[-1]["stage"]) == (each.position.state, each.position.stage)
        file = folder / "reports" / each.deployment_id / "journal.jsonl"
        written = read_entries(file) if file.exists() else []
        assert written == entries[: len(written)]
        export(file, entries)
        assert read_entries(file) == entries
        count += len(entries)
    journal.close()
    assert count >= at_least
    return count
