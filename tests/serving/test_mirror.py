"""What the router itself does for mirroring: it yields to clients, and counts what it does not hand over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.mirror import Yielding

BATCHES = 2000


def admitted(pressure: float) -> float:
    """The share that is admitted, in the long run, where so many batches of a thousand had others waiting behind."""
    yielding, passed = Yielding(), 0
    owed = 0.0
    for number in range(2 * BATCHES):
        owed += pressure
        waiting = owed >= 1
        owed -= waiting
        yielding.note(waiting)
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


@given(st.lists(st.booleans(), max_size=300))
def test_what_is_saved_up_in_quiet_times_is_not_spent_in_a_burst(history: list[bool]) -> None:
    yielding = Yielding()
    for waiting in history:
        yielding.note(waiting)
    for _ in range(400):
        yielding.note(True)
    assert sum(yielding.admits() for _ in range(100)) <= 5
