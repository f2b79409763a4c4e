import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.errors import RolloutError
from rollout.machine import (
    REFUSALS,
    REFUSED,
    TERMINAL,
    TRANSITIONS,
    Event,
    Position,
    State,
    check_stages,
    diagram,
    precise,
    step,
    weight,
)

STAGES = (0, 5, 20, 50, 100)
EVERY = list(product(State, Event))


@pytest.mark.parametrize(("state", "event"), EVERY)
def test_every_event_is_either_allowed_or_refused_in_every_state(state: State, event: Event) -> None:
    assert ((state, event) in TRANSITIONS) is not ((state, event) in REFUSED)


def test_no_refusal_is_listed_twice() -> None:
    assert sum(len(events) for _, _, events in REFUSALS) == len(REFUSED)


def test_nothing_leaves_a_state_that_ends_a_rollout() -> None:
    assert not [state for state, _ in TRANSITIONS if state in TERMINAL]


def test_every_active_state_can_be_left_by_hand_at_any_time() -> None:
    for state in set(State) - TERMINAL:
        for event in (Event.ABORT, Event.ROLL_BACK, Event.SUPERSEDE):
            assert TRANSITIONS[state, event] in TERMINAL


def test_harm_rolls_back_wherever_there_is_evidence() -> None:
    for state in (State.SHADOW, State.STAGING, State.CANARY, State.PAUSED):
        assert TRANSITIONS[state, Event.FAIL] is State.ROLLED_BACK


def test_a_rollout_that_passes_everything_goes_through_all_stages_in_order() -> None:
    position, weights = Position(state=State.LOADING), []
    for event in (Event.LOADED, Event.PASS, Event.LOADED, *[Event.PASS] * 4):
        position = step(position, event, STAGES)
        weights.append(weight(position, STAGES))
    assert position.state is State.PROMOTED
    assert weights == [0, 0, 5, 20, 50, 100, 100]


def test_staging_remembers_the_weight_that_a_person_asked_for() -> None:
    staged = step(Position(state=State.SHADOW), Event.PROMOTE, STAGES, to=50)
    assert (staged.state, staged.stage, staged.target, weight(staged, STAGES)) == (State.STAGING, 0, 3, 0)
    assert weight(step(staged, Event.LOADED, STAGES), STAGES) == 50


def test_pausing_keeps_the_weight_and_resuming_returns_to_it() -> None:
    paused = step(Position(state=State.CANARY, stage=2), Event.PAUSE, STAGES)
    assert weight(paused, STAGES) == 20
    assert step(paused, Event.RESUME, STAGES) == Position(state=State.CANARY, stage=2)


def test_a_rollout_paused_in_shadow_resumes_in_shadow() -> None:
    paused = step(Position(state=State.STAGING, target=2), Event.PAUSE, STAGES)
    assert step(paused, Event.RESUME, STAGES) == Position(state=State.SHADOW)


@pytest.mark.parametrize("to", [5, 20, 33, 0, 101])
def test_promoting_to_no_later_stage_is_refused_naming_the_later_ones(to: int) -> None:
    with pytest.raises(RolloutError, match=rf"cannot promote to {to} %: expected one of \[50, 100\]"):
        step(Position(state=State.CANARY, stage=2), Event.PROMOTE, STAGES, to=to)


def test_promoting_beyond_the_last_stage_with_a_weight_is_refused() -> None:
    with pytest.raises(RolloutError, match="the last stage has been reached"):
        step(Position(state=State.CANARY, stage=4), Event.PROMOTE, STAGES, to=100)


@pytest.mark.parametrize(
    "stages", [(), (0,), (0, 5), (5, 100), (0, 50, 20, 100), (0, 20, 20, 100), (0, 100, 200), (-5, 0, 100)]
)
def test_stages_that_do_not_rise_from_0_to_100_are_refused(stages: tuple[int, ...]) -> None:
    with pytest.raises(RolloutError, match="rise from 0 to 100"):
        check_stages(stages)


def test_stages_may_be_as_few_as_shadow_and_all() -> None:
    assert check_stages([0, 100]) == (0, 100)


positions = st.builds(
    lambda state, stage: Position(
        state=state,
        stage=0 if state in (State.LOADING, State.SHADOW, State.STAGING) else stage,
        target=1 if state is State.STAGING else None,
    ),
    st.sampled_from(State),
    st.integers(1, len(STAGES) - 1),
)


@given(positions, st.sampled_from(Event))
def test_a_step_goes_where_the_table_says_or_is_refused_with_its_reason(position: Position, event: Event) -> None:
    key = (position.state, precise(position, event, STAGES))
    if key in REFUSED:
        with pytest.raises(RolloutError) as refusal:
            step(position, event, STAGES)
        assert REFUSED[key] in str(refusal.value)
    else:
        assert step(position, event, STAGES).state is TRANSITIONS[key]


@given(positions, st.sampled_from(Event))
def test_only_passing_promoting_and_staged_replicas_raise_the_weight(position: Position, event: Event) -> None:
    try:
        reached = step(position, event, STAGES)
    except RolloutError:
        return
    if weight(reached, STAGES) > weight(position, STAGES):
        assert event in (Event.PASS, Event.PROMOTE, Event.PASS_LAST, Event.PROMOTE_LAST) or (
            event is Event.LOADED and position.state is State.STAGING
        )


def test_the_diagram_shows_every_transition() -> None:
    lines = diagram().splitlines()
    for (state, event), following in TRANSITIONS.items():
        arrow = next(line for line in lines if line.strip().startswith(f"{state} --> {following}: "))
        assert event in arrow.split(": ")[1].split(", ")


def test_the_module_prints_its_diagram() -> None:
    printed = subprocess.run([sys.executable, "-m", "rollout.machine"], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == diagram()
