"""When findings are reported, and the promise of that by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.findings import LEAST, SCHEMA, TOLERATED_RATE, established, reported
from shadow.evidence import ArmSums, Evidence, Noise, StageSums
from shadow.findings import FINDINGS, Finding

BY_RATE = [finding for finding in FINDINGS if finding not in SCHEMA]
RUNS = 1000


@pytest.mark.parametrize("finding", FINDINGS)
def test_two_occurrences_are_never_enough(finding: Finding) -> None:
    assert not any(established(finding, count, 0, n) for n in (2, 3, 10**6) for count in (0, 1, 2))


@pytest.mark.parametrize("finding", sorted(SCHEMA))
def test_a_schema_that_does_not_match_is_reported_from_three_occurrences_however_rare(finding: Finding) -> None:
    assert established(finding, LEAST, 0, 10**8)
    assert not established(finding, LEAST, 1, 10**8)


@pytest.mark.parametrize("finding", BY_RATE)
def test_other_findings_are_reported_when_they_are_frequent(finding: Finding) -> None:
    assert established(finding, 3, 0, 3)
    assert established(finding, 20, 0, 2000)
    assert not established(finding, 20, 0, 20_000)


@pytest.mark.parametrize("finding", FINDINGS)
def test_what_the_twin_shows_as_often_is_the_environments(finding: Finding) -> None:
    assert not established(finding, 500, 500, 1000)
    assert established(finding, 500, 5, 1000)


@given(
    finding=st.sampled_from(FINDINGS), count=st.integers(0, 300), twin_count=st.integers(0, 300), more=st.integers(0, 9)
)
def test_more_findings_never_take_a_report_back_and_more_of_the_twin_never_make_one(
    finding: Finding, count: int, twin_count: int, more: int
) -> None:
    n = 10_000
    if established(finding, count, twin_count, n):
        assert established(finding, count + more, twin_count, n)
    if established(finding, count, twin_count + more, n):
        assert established(finding, count, twin_count, n)


@pytest.mark.parametrize(("count", "twin_count", "n"), [(4, 0, 3), (0, 4, 3), (-1, 0, 3), (0, -1, 3)])
def test_counts_that_cannot_be_are_refused(count: int, twin_count: int, n: int) -> None:
    with pytest.raises(ValueError, match="precision: "):
        established(Finding.PRECISION, count, twin_count, n)


def test_a_tolerable_rate_is_hardly_ever_reported_however_often_one_looks() -> None:
    """At the tolerated rate itself; looked at whenever a finding is added, which is when a report can begin."""
    rng = np.random.default_rng(20261121)
    false = 0
    for _ in range(RUNS):
        at = np.flatnonzero(rng.random(20_000) < TOLERATED_RATE)
        false += any(established(Finding.CONSTANT, count + 1, 0, int(n) + 1) for count, n in enumerate(at))
    assert false <= 5  # α says 1 of 1000; more than 5 then has a probability of 6e-4


def test_a_twin_that_shows_it_as_often_is_hardly_ever_outvoted() -> None:
    rng = np.random.default_rng(7)
    false = 0
    for _ in range(RUNS // 5):
        mine = np.cumsum(rng.random(200) < 0.5)
        counts = zip(mine.tolist(), (np.arange(1, 201) - mine).tolist(), strict=True)
        false += any(established(Finding.PRECISION, count, twin, 1000) for count, twin in counts if twin)
    assert false <= 2  # α says 0.2 of 200


def test_a_rollout_names_the_kinds_that_its_candidate_shows_and_its_twin_does_not() -> None:
    sums = StageSums(
        pairs=2000,
        findings={Finding.PRECISION: 40, Finding.NOT_A_NUMBER: 40, Finding.SHAPE: 2},
        twin=ArmSums(requests=200),
        noise=Noise(findings={Finding.NOT_A_NUMBER: 4}),
    )
    assert reported(Evidence({0: sums})) == (f"{Finding.PRECISION}: 2 % (40 of 2000 requests)",)


def test_a_rollout_without_evidence_or_findings_names_nothing() -> None:
    assert reported(Evidence()) == ()
    assert reported(Evidence({0: StageSums(pairs=1000)})) == ()
