"""What the router itself does for mirroring: it yields to clients, and counts what it does not hand over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.mirror import Yielding

BATCHES = 2000


def admitted(pressure: float = 0.0, busy: float = 0.0) -> float:
    """The share that is admitted, in the long run, of batches one a millisecond, such a share of which had others
    waiting behind, by an event loop that works for such a share of the time.
    """
    now, passed = 0.0, 0
    yielding = Yielding(lambda: busy * now)
    owed = 0.0
    for number in range(2 * BATCHES):
        now = number / 1000
        owed += pressure
        waiting = owed >= 1
        owed -= waiting
        yielding.note(waiting, now)
        passed += yielding.admits() and number >= BATCHES
    return passed / BATCHES


@pytest.mark.parametrize("pressure", [0.0, 0.2, 0.45])
def test_while_replicas_idle_now_and_then_all_is_admitted(pressure: float) -> None:
    assert admitted(pressure) == 1.0


def test_where_work_always_waits_a_trickle_is_admitted_and_no_more() -> None:
    assert 0.01 <= admitted(1.0) <= 0.03


def test_the_less_replicas_idle_the_less_is_admitted() -> None:
    shares = [admitted(pressure) for pressure in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)]
    assert shares == sorted(shares, reverse=True)
    assert 0.3 < shares[2] < 0.8


@pytest.mark.parametrize("busy", [0.0, 0.3, 0.69])
def test_while_the_event_loop_has_time_all_is_admitted(busy: float) -> None:
    assert admitted(busy=busy) == 1.0


def test_a_full_event_loop_admits_a_trickle_though_no_work_waits_for_replicas() -> None:
    assert 0.01 <= admitted(busy=1.0) <= 0.03


def test_the_fuller_the_event_loop_the_less_is_admitted() -> None:
    shares = [admitted(busy=busy) for busy in (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)]
    assert shares == sorted(shares, reverse=True)
    assert 0.3 < shares[2] < 0.8


@given(st.lists(st.booleans(), max_size=300))
def test_what_is_saved_up_in_quiet_times_is_not_spent_in_a_burst(history: list[bool]) -> None:
    yielding = Yielding()
    for waiting in history:
        yielding.note(waiting, 0.0)
    for _ in range(400):
        yielding.note(True, 0.0)
    assert sum(yielding.admits() for _ in range(100)) <= 5
