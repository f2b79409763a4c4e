import pytest

from benchmarks.slo import MIN_REQUESTS, Limits, Meter, Window, capacity, climbs_on, judge, report, rises

LIMITS = Limits()


def window(rate: float, *, users: int = 20, seconds: float = 2.0, ms: float = 10.0, failed: int = 0) -> Window:
    return Window(users=users, seconds=seconds, latencies_ms=(ms,) * round(rate * seconds), failed=failed)


def verdicts(offered: Window | None, *steps: Window, limits: Limits = LIMITS) -> list[bool]:
    return [finding.met for finding in judge(offered, steps, limits)]


def test_a_service_within_all_objectives_meets_them() -> None:
    assert verdicts(window(150), window(300)) == [True, True, True]


def test_each_objective_is_breached_by_its_own_measure_alone() -> None:
    assert verdicts(window(150, ms=500.0), window(300)) == [False, True, True]
    assert verdicts(window(150, failed=4), window(300)) == [True, False, True]
    assert verdicts(window(150), window(99)) == [True, True, False]


def test_the_limits_themselves_are_too_slow_too_faulty_and_enough() -> None:
    offered = Window(users=1, seconds=1, latencies_ms=(499.9,) * 990, failed=10)
    assert verdicts(offered, window(100)) == [True, False, True]


def test_capacity_is_not_the_offered_load() -> None:
    assert verdicts(window(5_000), window(50))[2] is False
    assert verdicts(window(60), window(5_000))[2] is True


def test_what_was_not_measured_is_a_breach() -> None:
    assert verdicts(None) == [False, False, False]
    few = Window(users=1, seconds=1, latencies_ms=(1.0,) * (MIN_REQUESTS - 1))
    assert verdicts(few, window(300)) == [False, False, True]
    assert report(None, (), LIMITS).count("not measured") == 3


def test_requests_that_all_failed_have_no_latency_and_breach_all() -> None:
    nothing = Window(users=4, seconds=2, latencies_ms=(), failed=1_000)
    assert nothing.p95_ms is None
    assert verdicts(nothing, nothing) == [False, False, False]


def test_quick_refusals_do_not_improve_the_latency() -> None:
    meter = Meter()
    meter.open(2, 10.0)
    for _ in range(100):
        meter.add(600.0, failed=False)
        meter.add(0.1, failed=True)
    seen = meter.close(14.0)
    assert seen is not None
    assert (seen.p95_ms, seen.error_rate, seen.rate, seen.users) == (600.0, 0.5, 25.0, 2)


def test_a_percentile_is_never_below_what_was_seen() -> None:
    seen = Window(users=1, seconds=1, latencies_ms=(1.0,) * 9 + (900.0,))
    assert seen.p95_ms == 900.0


def test_only_what_ends_while_a_window_is_open_counts() -> None:
    meter = Meter()
    assert meter.close(1.0) is None
    meter.add(1.0, failed=False)
    meter.open(3, 5.0)
    meter.add(2.0, failed=False)
    first = meter.close(6.0)
    meter.add(3.0, failed=True)
    assert first == Window(users=3, seconds=1.0, latencies_ms=(2.0,))
    meter.open(4, 7.0)
    second = meter.close(8.0)
    assert second is not None
    assert second.requests == 0


def test_capacity_is_the_best_step_that_keeps_the_objectives() -> None:
    slow, faulty = window(900, users=64, ms=501.0), window(800, users=32, failed=100)
    steps = [window(100, users=4), window(400, users=8), window(390, users=16), faulty, slow]
    best = capacity(steps, LIMITS)
    assert best is not None
    assert (best.users, best.rate) == (8, 400)
    assert capacity([slow, faulty], LIMITS) is None
    assert "no step within R1 and R2" in report(window(150), [slow], LIMITS)


@pytest.mark.parametrize(
    ("rates", "rising"),
    [
        ([], True),
        ([100], True),
        ([100, 90], True),
        ([100, 104, 104], False),
        ([100, 90, 120], True),
        ([9, 120, 99], True),
    ],
)
def test_a_climb_goes_on_until_two_steps_brought_nothing(rates: list[float], rising: bool) -> None:
    steps = [window(rate) for rate in rates]
    assert rises(steps) is rising
    assert climbs_on(steps, LIMITS) is rising


def test_a_climb_ends_at_the_first_step_outside_the_objectives() -> None:
    assert climbs_on([window(100), window(200, ms=600)], LIMITS) is False
    assert climbs_on([window(100), window(200, failed=50)], LIMITS) is False


def test_the_report_shows_targets_measures_and_steps() -> None:
    steps = [window(300, users=4), window(700, users=8)]
    lines = report(window(150), steps, Limits(capacity=800)).splitlines()
    assert lines[1].split() == ["R1", "p95", "latency", "<", "500", "ms", "10.0", "ms", "met"]
    assert lines[3].split()[-3:] == ["700.0", "requests/s", "BREACH"]
    assert lines[4].startswith("offered load: 150.0 requests/s from 20 users in 2.0 s, p95 10.0 ms, 0 of 300 failed")
    assert [line.startswith("closed loop:") for line in lines[5:7]] == [True, True]
    assert lines[7] == "the climb ended for want of time: the capacity is at least this"
