"""The life of a rollout: every transition is one row of one table, and ``step`` is a pure function of it.

``python -m rollout.machine`` prints the diagram that ARCHITECTURE.md shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Final

from rollout.errors import RolloutError


class State(StrEnum):
    """Where a rollout stands. A paused one keeps its weight and its evidence: only harm, or a person, moves it."""

    LOADING = "loading"  # the candidate's shadow replicas, at the lowest priority
    SHADOW = "shadow"  # mirrored, weight 0
    STAGING = "staging"  # fresh replicas at normal priority; still mirrored, weight 0
    CANARY = "canary"  # the candidate answers its share of the clients, up to all of them
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"


class Event(StrEnum):
    """What can happen to a rollout; the ``_LAST`` and ``_SHADOW`` forms are the same event at that position."""

    LOADED = "loaded"  # the replicas waited for are ready
    LOAD_FAILED = "load_failed"  # they never will be, or were lost for good
    PASS = "pass"  # every binding gate is healthy at this stage
    PASS_LAST = "pass_last"  # … and no stage is left
    FAIL = "fail"  # harm is proved
    EXHAUSTED = "exhausted"  # the stage's budget ended undecided, and the policy rolls back
    STALLED = "stalled"  # … and the policy pauses
    PAUSE = "pause"
    RESUME = "resume"
    RESUME_SHADOW = "resume_shadow"
    PROMOTE = "promote"  # a person raises the weight
    PROMOTE_LAST = "promote_last"
    ABORT = "abort"
    ROLL_BACK = "roll_back"
    SUPERSEDE = "supersede"


TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    (State.LOADING, Event.LOADED): State.SHADOW,
    (State.LOADING, Event.LOAD_FAILED): State.ROLLED_BACK,
    (State.LOADING, Event.ABORT): State.ABORTED,
    (State.LOADING, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.LOADING, Event.SUPERSEDE): State.SUPERSEDED,
    (State.SHADOW, Event.PASS): State.STAGING,
    (State.SHADOW, Event.PROMOTE): State.STAGING,
    (State.SHADOW, Event.PAUSE): State.PAUSED,
    (State.SHADOW, Event.STALLED): State.PAUSED,
    (State.SHADOW, Event.FAIL): State.ROLLED_BACK,
    (State.SHADOW, Event.EXHAUSTED): State.ROLLED_BACK,
    (State.SHADOW, Event.LOAD_FAILED): State.ROLLED_BACK,
    (State.SHADOW, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.SHADOW, Event.ABORT): State.ABORTED,
    (State.SHADOW, Event.SUPERSEDE): State.SUPERSEDED,
    (State.STAGING, Event.LOADED): State.CANARY,
    (State.STAGING, Event.PAUSE): State.PAUSED,
    (State.STAGING, Event.FAIL): State.ROLLED_BACK,
    (State.STAGING, Event.LOAD_FAILED): State.ROLLED_BACK,
    (State.STAGING, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.STAGING, Event.ABORT): State.ABORTED,
    (State.STAGING, Event.SUPERSEDE): State.SUPERSEDED,
    (State.CANARY, Event.PASS): State.CANARY,
    (State.CANARY, Event.PROMOTE): State.CANARY,
    (State.CANARY, Event.PASS_LAST): State.PROMOTED,
    (State.CANARY, Event.PROMOTE_LAST): State.PROMOTED,
    (State.CANARY, Event.PAUSE): State.PAUSED,
    (State.CANARY, Event.STALLED): State.PAUSED,
    (State.CANARY, Event.FAIL): State.ROLLED_BACK,
    (State.CANARY, Event.EXHAUSTED): State.ROLLED_BACK,
    (State.CANARY, Event.LOAD_FAILED): State.ROLLED_BACK,
    (State.CANARY, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.CANARY, Event.ABORT): State.ABORTED,
    (State.CANARY, Event.SUPERSEDE): State.SUPERSEDED,
    (State.PAUSED, Event.RESUME): State.CANARY,
    (State.PAUSED, Event.RESUME_SHADOW): State.SHADOW,
    (State.PAUSED, Event.FAIL): State.ROLLED_BACK,
    (State.PAUSED, Event.LOAD_FAILED): State.ROLLED_BACK,
    (State.PAUSED, Event.ROLL_BACK): State.ROLLED_BACK,
    (State.PAUSED, Event.ABORT): State.ABORTED,
    (State.PAUSED, Event.SUPERSEDE): State.SUPERSEDED,
}

TERMINAL: Final = frozenset({State.PROMOTED, State.ROLLED_BACK, State.ABORTED, State.SUPERSEDED})

_NOT_PAUSED: Final = (Event.RESUME, Event.RESUME_SHADOW)
_JUDGED: Final = (Event.PASS, Event.PASS_LAST, Event.EXHAUSTED, Event.STALLED)
_PROMOTIONS: Final = (Event.PROMOTE, Event.PROMOTE_LAST)

REFUSALS: Final[Sequence[tuple[State, str, Sequence[Event]]]] = (
    (State.LOADING, "it has no evidence while it loads", (*_JUDGED, Event.FAIL)),
    (State.LOADING, "it is still loading; wait, or abort it", (Event.PAUSE, *_PROMOTIONS)),
    (State.LOADING, "it is not paused", _NOT_PAUSED),
    (State.SHADOW, "its replicas are ready already", (Event.LOADED,)),
    (State.SHADOW, "the shadow stage is never the last", (Event.PASS_LAST, Event.PROMOTE_LAST)),
    (State.SHADOW, "it is not paused", _NOT_PAUSED),
    (State.STAGING, "it has passed the shadow stage already", _JUDGED),
    (State.STAGING, "its replicas are being readied for the next stage already", _PROMOTIONS),
    (State.STAGING, "it is not paused", _NOT_PAUSED),
    (State.CANARY, "its replicas are ready already", (Event.LOADED,)),
    (State.CANARY, "it is not paused", _NOT_PAUSED),
    (State.PAUSED, "it is paused and does not move by itself", (*_JUDGED, Event.LOADED)),
    (State.PAUSED, "it is paused; resume it first", _PROMOTIONS),
    (State.PAUSED, "it is paused already", (Event.PAUSE,)),
    *((state, f"it has ended: {state}", tuple(Event)) for state in sorted(TERMINAL)),
)

REFUSED: Final[Mapping[tuple[State, Event], str]] = {
    (state, event): reason for state, reason, events in REFUSALS for event in events
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A rollout's state and the index of its stage; while staging, the index of the stage it is staged for."""

    state: State
    stage: int = 0
    target: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing can happen to the rollout any more."""
        return self.state in TERMINAL


def check_stages(stages: Sequence[int]) -> tuple[int, ...]:
    """The weights in percent, if they can be a rollout's stages.

    Raises:
        RolloutError: they do not rise from 0 to 100.
    """
    rising = all(low < high for low, high in pairwise(stages))
    if len(stages) < 2 or stages[0] != 0 or stages[-1] != 100 or not rising:
        raise RolloutError(f"stages: expected weights that rise from 0 to 100, got {list(stages)}")
    return tuple(stages)


def weight(position: Position, stages: Sequence[int]) -> int:
    """The candidate's share of the clients' requests, in percent."""
    match position.state:
        case State.CANARY | State.PAUSED:
            return stages[position.stage]
        case State.PROMOTED:
            return 100
        case _:
            return 0


def precise(position: Position, event: Event, stages: Sequence[int]) -> Event:
    """The form of an event that belongs to this position: ``PASS`` of the last stage is ``PASS_LAST``."""
    if event is Event.RESUME and position.stage == 0:
        return Event.RESUME_SHADOW
    if position.stage == len(stages) - 1:
        return {Event.PASS: Event.PASS_LAST, Event.PROMOTE: Event.PROMOTE_LAST}.get(event, event)
    return event


def step(position: Position, event: Event, stages: Sequence[int], *, to: int | None = None) -> Position:
    """Where an event leads.

    Args:
        position: where the rollout stands.
        event: what happened; put into its precise form here.
        stages: the rollout's weights in percent.
        to: the weight that a promotion shall reach; the next stage's when None.

    Raises:
        RolloutError: the event cannot happen here, or ``to`` is no later stage.
    """
    event = precise(position, event, stages)
    state = TRANSITIONS.get((position.state, event))
    if state is None:
        raise RolloutError(f"cannot {event}: {REFUSED[position.state, event]}")
    match event:
        case Event.PASS | Event.PROMOTE:
            reached = _later_stage(position, stages, to)
            staged = state is State.STAGING
            return Position(
                state=state, stage=position.stage if staged else reached, target=reached if staged else None
            )
        case Event.LOADED if position.target is not None:
            return Position(state=state, stage=position.target)
        case _:
            if to is not None:
                raise RolloutError(f"cannot {event} to {to} %: the last stage has been reached")
            return Position(state=state, stage=position.stage)


def _later_stage(position: Position, stages: Sequence[int], to: int | None) -> int:
    if to is None:
        return position.stage + 1
    later = list(stages[position.stage + 1 :])
    if to not in later:
        raise RolloutError(f"cannot promote to {to} %: expected one of {later}")
    return stages.index(to)


def diagram() -> str:
    """The table as a mermaid state diagram: one arrow for each pair of states, labelled with its events."""
    arrows: dict[tuple[State, State], list[Event]] = {}
    for (state, event), following in TRANSITIONS.items():
        arrows.setdefault((state, following), []).append(event)
    lines = ["stateDiagram-v2", f"    [*] --> {State.LOADING}"]
    lines += [f"    {a} --> {b}: {', '.join(events)}" for (a, b), events in arrows.items()]
    lines += [f"    {state} --> [*]" for state in State if state in TERMINAL]
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram())
