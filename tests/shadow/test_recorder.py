import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.spec import TensorSpec
from shadow.accounting import Account, Accounting
from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import Evidence
from shadow.pair import Arm, Pair, Status
from shadow.recorder import Recorder
from shadow.rows import SCHEMA, compact, to_table
from shadow.store import SegmentWriter, read_closing, read_segment, segment_name
from shadow.sums import sums
from shadow.verify import evidence_at, verify
from tests.shadow.builders import (
    COMPARATOR,
    DEPLOYMENT,
    LIMITS,
    MEASURES,
    PARAMETERS,
    bad,
    ok,
    outcome,
    pair,
    pairs,
    simple_pair,
)
from tests.shadow.comparators_for_tests import POISON

NEVER_S = 3600.0
COMPARATORS = "tests.shadow.comparators_for_tests"


@contextmanager
def recording(folder: Path, accounting: Accounting, **options: Any) -> Iterator[Recorder]:
    given = {"parameters": PARAMETERS, "flush_interval_s": NEVER_S, **options}
    recorder = Recorder(folder, "router", DEPLOYMENT, LIMITS, accounting, **given)
    try:
        yield recorder
    finally:
        recorder.close()


def offer(recorder: Recorder, accounting: Accounting, one: Pair) -> bool:
    """Offer as the mirror's lane does."""
    other = one.of(one.primary.other)
    items = sum(
        rows for rows, answer in zip(one.rows, other.answers, strict=True) if answer.status is not Status.ABSENT
    )
    accounting.sample(items)
    taken = recorder.offer(one)
    if not taken:
        accounting.shed(items)
    return taken


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    return true()


@given(some=st.lists(pairs(), max_size=5))
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_what_was_offered_is_what_counts_and_every_item_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, some: list[Pair]
) -> None:
    folder, accounting = tmp_path_factory.mktemp("evidence"), Accounting()
    with recording(folder, accounting) as recorder:
        for one in some:
            assert offer(recorder, accounting, one)
            recorder.flush()
        found = recorder.snapshot()
    compacts = [compact(one, COMPARATOR) for one in some]
    assert found.evidence == (sums(to_table(compacts, COMPARATOR, 0), LIMITS, MEASURES) if some else Evidence())
    assert found.errors == 0
    account = accounting.snapshot()
    assert account.balanced
    assert account.pending == account.shed == 0
    if found.head is not None:
        assert found.head.rows == sum(max(rows, 1) for one in some for rows in one.rows)
        assert evidence_at(folder, [found.head]) == found.evidence


def test_nothing_counts_before_it_is_durable(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting) as recorder:
        offer(recorder, accounting, simple_pair())
        before = recorder.snapshot()
        assert (before.evidence, before.head) == (Evidence(), None)
        assert accounting.snapshot() == Account(sampled=1, pending=1)
        recorder.flush()
        after = recorder.snapshot()
        assert after.evidence.stage(0).pairs == 1
        assert after.head is not None
        assert (tmp_path / segment_name("router", 1)).exists()
        assert accounting.snapshot() == Account(sampled=1, mirrored=1)


def test_a_segment_says_the_account_with_its_own_rows_in_it(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting) as recorder:
        for one in (simple_pair(), pair(candidate=outcome(bad(Status.TIMEOUT)), baseline=outcome(ok([1, 0])))):
            offer(recorder, accounting, one)
        accounting.sample(2)  # on their way
        recorder.flush()
        written = read_segment(tmp_path, "router", 1).header().account
        assert written == accounting.snapshot() == Account(sampled=4, mirrored=1, timed_out=1, pending=2)


def test_items_settle_by_their_end_on_the_side_that_did_not_answer(tmp_path: Path) -> None:
    accounting = Accounting()
    good, two = ok([1, 0], [1, 0]), [2, 2, 2, 2, 2]
    mirrored = outcome(good, bad(Status.TIMEOUT), bad(Status.ERROR), bad(Status.MALFORMED), bad(Status.ABSENT))
    with recording(tmp_path, accounting) as recorder:
        offer(recorder, accounting, pair(outcome(*[good] * 5), mirrored, rows=two))
        offer(recorder, accounting, pair(mirrored, outcome(*[good] * 5), rows=two, primary=Arm.CANDIDATE))
        offer(recorder, accounting, pair(outcome(good), outcome(bad()), rows=[2], primary=Arm.CANDIDATE))
        recorder.flush()
        assert accounting.snapshot() == Account(sampled=18, mirrored=6, timed_out=4, failed=8)


def test_the_thread_flushes_by_itself(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting, flush_interval_s=0.01) as recorder:
        offer(recorder, accounting, simple_pair())
        assert eventually(lambda: recorder.snapshot().head is not None)


def test_many_rows_are_flushed_before_the_interval_is_over(tmp_path: Path) -> None:
    accounting = Accounting()
    answers = type(bad())(status=Status.OK, outputs={"scores": np.zeros((6000, 2), np.float32)})
    with recording(tmp_path, accounting) as recorder:
        for _ in range(3):
            offer(recorder, accounting, pair(outcome(answers), outcome(answers), rows=[6000]))
        assert eventually(lambda: recorder.snapshot().head is not None)


def paced(folder: Path, accounting: Accounting, now_s: list[float]) -> AbstractContextManager[Recorder]:
    return recording(folder, accounting, flush_interval_s=0.005, clock=lambda: now_s[0])


def segments(recorder: Recorder) -> int:
    head = recorder.snapshot().head
    return head.segments if head is not None else 0


def test_a_young_recorder_writes_at_once_and_an_old_one_gathers_for_three_seconds(tmp_path: Path) -> None:
    accounting, now_s = Accounting(), [0.0]
    with paced(tmp_path, accounting, now_s) as recorder:
        offer(recorder, accounting, simple_pair("a"))
        assert eventually(lambda: segments(recorder) == 1)
        now_s[0] = 3600.0
        recorder.flush()
        offer(recorder, accounting, simple_pair("b"))
        now_s[0] += 2.9
        time.sleep(0.1)
        assert segments(recorder) == 1
        now_s[0] += 0.1
        assert eventually(lambda: segments(recorder) == 2)


def test_an_hour_of_light_load_makes_a_file_every_three_seconds_at_most(tmp_path: Path) -> None:
    now_s, written = [0.0], 0
    with recording(tmp_path, Accounting(), clock=lambda: now_s[0]) as recorder:
        for now_s[0] in range(1, 3601):
            if recorder.due:
                recorder.flush()
                written += 1
    assert 1100 < written < 1300


def test_a_failure_of_the_candidate_does_not_wait_for_company(tmp_path: Path) -> None:
    accounting, now_s = Accounting(), [0.0]
    with paced(tmp_path, accounting, now_s) as recorder:
        now_s[0] = 3600.0
        recorder.flush()
        offer(recorder, accounting, pair(candidate=outcome(bad(Status.ERROR)), baseline=outcome(ok([1, 0]))))
        assert eventually(lambda: segments(recorder) == 1)


def test_many_rows_do_not_wait_for_more(tmp_path: Path) -> None:
    accounting, now_s = Accounting(), [0.0]
    answers = type(bad())(status=Status.OK, outputs={"scores": np.zeros((2048, 2), np.float32)})
    with paced(tmp_path, accounting, now_s) as recorder:
        now_s[0] = 3600.0
        recorder.flush()
        offer(recorder, accounting, pair(outcome(answers), outcome(answers), rows=[2048]))
        assert eventually(lambda: segments(recorder) == 1)


def test_close_makes_the_rest_durable_and_refuses_more(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting) as recorder:
        offer(recorder, accounting, simple_pair())
    assert recorder.snapshot().evidence.stage(0).pairs == 1
    assert not recorder.offer(simple_pair())
    recorder.close()
    assert accounting.snapshot() == Account(sampled=1, mirrored=1)


def test_offers_beyond_the_bounds_are_refused(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting, max_pending_pairs=2) as recorder:
        assert [offer(recorder, accounting, simple_pair()) for _ in range(4)] == [True, True, False, False]
        recorder.flush()
        assert offer(recorder, accounting, simple_pair())
    assert accounting.snapshot() == Account(sampled=5, mirrored=3, shed=2)


def test_scores_that_do_not_fit_the_bytes_are_refused(tmp_path: Path) -> None:
    accounting = Accounting()
    large = type(bad())(status=Status.OK, outputs={"scores": np.zeros((10, 1000), np.float32)})
    with recording(tmp_path, accounting, max_pending_bytes=100_000) as recorder:
        assert offer(recorder, accounting, pair(outcome(large), outcome(large), rows=[10]))
        assert not offer(recorder, accounting, pair(outcome(large), outcome(large), rows=[10]))
    assert accounting.snapshot() == Account(sampled=20, mirrored=10, shed=10)


def test_a_pair_of_another_rollout_is_refused(tmp_path: Path) -> None:
    with recording(tmp_path, Accounting()) as recorder:
        assert not recorder.offer(replace(simple_pair(), deployment_id="another"))


def test_swallows_a_pair_that_makes_no_sense(tmp_path: Path) -> None:
    with recording(tmp_path, Accounting()) as recorder:
        assert not recorder.offer(replace(simple_pair(), rows=(1, 1)))
        found = recorder.snapshot()
    assert found.errors == 1
    assert found.fault is not None
    assert "a pair that cannot be recorded" in found.fault


def test_a_pair_that_the_comparator_cannot_compare_is_lost_alone_and_counted(tmp_path: Path) -> None:
    accounting = Accounting()
    poison = pair(outcome(ok([POISON, 0])), outcome(ok([1, 0])))
    with recording(tmp_path, accounting, comparator=f"{COMPARATORS}:Poisoned") as recorder:
        for one in (simple_pair("a"), poison, simple_pair("b")):
            assert offer(recorder, accounting, one)
        recorder.flush()
        found = recorder.snapshot()
        assert (found.evidence.stage(0).pairs, found.errors) == (2, 1)
        assert found.fault == "the comparator failed: RuntimeError('poison')"
        assert accounting.snapshot() == Account(sampled=3, mirrored=2, failed=1)
        offer(recorder, accounting, simple_pair("c"))
        recorder.flush()
        assert recorder.snapshot().fault == found.fault  # what is lost stays lost
        assert recorder.snapshot().errors == 1
    assert verify(tmp_path, {}).ok


def test_a_comparator_that_breaks_its_contract_is_a_fault(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting, comparator=f"{COMPARATORS}:Short") as recorder:
        offer(recorder, accounting, simple_pair())
        recorder.flush()
        found = recorder.snapshot()
    assert (found.evidence, found.head, found.errors) == (Evidence(), None, 1)
    assert "max_delta: expected an array of shape [1]" in str(found.fault)
    assert accounting.snapshot() == Account(sampled=1, failed=1)


def test_rows_that_the_disk_refuses_are_kept_and_tried_again(tmp_path: Path) -> None:
    accounting = Accounting()
    blocker = tmp_path / f".{segment_name('router', 1)}.tmp"
    with recording(tmp_path, accounting) as recorder:
        blocker.mkdir()
        offer(recorder, accounting, simple_pair("a"))
        recorder.flush()
        found = recorder.snapshot()
        assert (found.evidence, found.head, found.errors) == (Evidence(), None, 1)
        assert "evidence cannot be written" in str(found.fault)
        assert accounting.snapshot() == Account(sampled=1, pending=1)
        blocker.rmdir()
        offer(recorder, accounting, simple_pair("b"))
        recorder.flush()
        assert (recorder.snapshot().evidence.stage(0).pairs, recorder.snapshot().fault) == (2, None)
    assert accounting.snapshot() == Account(sampled=2, mirrored=2)


def test_what_the_disk_refuses_at_the_end_is_counted_as_failed(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting, max_pending_pairs=1) as recorder:
        (tmp_path / f".{segment_name('router', 1)}.tmp").mkdir()
        assert offer(recorder, accounting, simple_pair("a"))
        recorder.flush()
        assert not offer(recorder, accounting, simple_pair("b"))
    assert accounting.snapshot() == Account(sampled=2, failed=1, shed=1)


def test_an_account_that_does_not_add_up_does_not_lose_evidence(tmp_path: Path) -> None:
    with recording(tmp_path, Accounting()) as recorder:
        assert recorder.offer(simple_pair())  # never sampled
        recorder.flush()
        found = recorder.snapshot()
    assert found.evidence.stage(0).pairs == 1
    assert "account" in str(found.fault)


def test_an_offer_does_not_wait_for_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writing, go_on = Event(), Event()
    accounting = Accounting()

    def slow(descriptor: int) -> None:
        writing.set()
        go_on.wait(10)

    with recording(tmp_path, accounting, flush_interval_s=0.01) as recorder:
        monkeypatch.setattr("shadow.store.os.fsync", slow)
        offer(recorder, accounting, simple_pair("a"))
        assert writing.wait(10)
        started = time.monotonic()
        assert offer(recorder, accounting, simple_pair("b"))
        assert recorder.snapshot().head is None
        assert time.monotonic() - started < 1
        go_on.set()
    assert accounting.snapshot() == Account(sampled=2, mirrored=2)


def test_every_incarnation_needs_a_chain_of_its_own(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting) as recorder:
        offer(recorder, accounting, simple_pair())
    with pytest.raises(EvidenceError, match="chain router exists already"), recording(tmp_path, accounting):
        pass


def test_an_unknown_comparator_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ShadowError, match="nonsense"), recording(tmp_path, Accounting(), comparator="nonsense"):
        pass


def test_a_measure_that_the_comparator_leaves_out_is_a_fault(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting, comparator=f"{COMPARATORS}:Silent") as recorder:
        offer(recorder, accounting, simple_pair())
        recorder.flush()
        assert "measure top_k_agreement: expected an array of shape [1]" in str(recorder.snapshot().fault)


def test_a_parameter_that_the_comparator_does_not_have_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ShadowError, match="radius"), recording(tmp_path, Accounting(), parameters={"radius": 3}):
        pass


def test_what_is_wrong_with_the_form_of_an_answer_is_in_the_evidence(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting) as recorder:
        offer(recorder, accounting, pair(outcome(ok([0.3, 0.7])), outcome(ok([float("nan"), 0.7]))))
        recorder.flush()
        found = recorder.snapshot()
    assert found.evidence.stage(0).findings == {"not a number": 1}
    assert found.head is not None
    assert evidence_at(tmp_path, [found.head]) == found.evidence


def test_one_answer_to_many_questions_is_found_across_requests_and_apart_for_the_twin(tmp_path: Path) -> None:
    accounting, generator = Accounting(), np.random.default_rng(1)
    same = ok(generator.random(10).tolist())
    with recording(tmp_path, accounting) as recorder:
        for _ in range(20):
            good = outcome(ok(generator.random(10).tolist()))
            offer(recorder, accounting, pair(good, outcome(same), twin=good))
        recorder.flush()
        stage = recorder.snapshot().evidence.stage(0)
    assert stage.findings["constant"] > 10
    assert stage.noise.findings == {}


def test_outputs_declared_variable_may_differ_in_size(tmp_path: Path) -> None:
    accounting, declared = Accounting(), TensorSpec(name="scores", datatype="FP32", shape=(-1, -1))
    for options, findings in (({}, {"shape": 1}), ({"declared": [declared]}, {})):
        with recording(tmp_path / str(len(options)), accounting, **options) as recorder:
            offer(recorder, accounting, pair(outcome(ok([0.3, 0.7])), outcome(ok([0.3, 0.5, 0.2]))))
            recorder.flush()
            assert recorder.snapshot().evidence.stage(0).findings == findings


def test_large_items_are_compared_but_not_kept(tmp_path: Path) -> None:
    accounting = Accounting()
    with recording(tmp_path, accounting, kept_values=4) as recorder:
        offer(recorder, accounting, pair(outcome(ok(range(8))), outcome(ok(range(8)))))
        recorder.flush()
        found = recorder.snapshot()
    table = read_segment(tmp_path, "router", 1).table(SCHEMA)
    assert (table["baseline_scores"].null_count, found.evidence.stage(0).agree) == (1, 1)


def test_a_recorder_that_ends_in_order_closes_its_chain_with_the_account_at_its_end(tmp_path: Path) -> None:
    accounting = Accounting()
    recorder = Recorder(tmp_path, "router", DEPLOYMENT, LIMITS, accounting, flush_interval_s=3600)
    accounting.sample(3)
    assert recorder.offer(simple_pair())
    recorder.close()
    closing = read_closing(tmp_path, "router")
    assert closing.head == recorder.snapshot().head
    assert closing.account == accounting.snapshot() == Account(sampled=3, mirrored=1, pending=2)


def test_a_chain_that_cannot_be_closed_is_a_fault_that_reaches_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: SegmentWriter, account: Account) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(SegmentWriter, "close", refuse)
    recorder = Recorder(tmp_path, "router", DEPLOYMENT, LIMITS, Accounting(), flush_interval_s=3600)
    recorder.close()
    assert recorder.snapshot().fault == "the chain cannot be closed: no space left on device"
