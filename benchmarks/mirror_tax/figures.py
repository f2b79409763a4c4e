"""What follows from the alternations: medians, the ratios of what was measured side by side, and their goals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from types import MappingProxyType
from typing import Any, Final, Self

from benchmarks.mirror_tax.journal import Alternation, Measured
from benchmarks.mirror_tax.loads import MODES, Load, Mode, Part

SHARE: Final = "mirrored"
ACCOUNTED: Final = "accounted"
# Where a sampled item ends that is not pending.
ENDS: Final = ("mirrored", "shed", "too_large", "timed_out", "failed")
_SAMPLE_FIGURES: Final = ("requests_per_s", "p50_ms", "p99_ms")
_CLOSED: Final = ("requests_per_s",)
_OPEN: Final = ("p50_ms", "p99_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound that a figure must not be below, or not above."""

    bound: float
    at_least: bool

    def missed_by(self, value: float) -> float:
        """How far a value is on the wrong side; 0 where it is not."""
        return max(self.bound - value if self.at_least else value - self.bound, 0.0)

    @property
    def sign(self) -> str:
        """≥ or ≤."""
        return "≥" if self.at_least else "≤"


THROUGHPUT_GOAL: Final = Goal(bound=0.95, at_least=True)
LATENCY_GOAL: Final = Goal(bound=1.05, at_least=False)
ACCOUNTED_GOAL: Final = Goal(bound=1.0, at_least=True)
SHARE_GOALS: Final[Mapping[float, Goal]] = MappingProxyType(
    {
        0.3: Goal(bound=0.99, at_least=True),
        0.5: Goal(bound=0.70, at_least=True),
        0.7: Goal(bound=0.30, at_least=True),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The median over the rounds, their range, and the goal; None where there is no goal."""

    value: float
    low: float
    high: float
    goal: Goal | None

    @classmethod
    def of(cls, values: Sequence[float], goal: Goal | None) -> Self:
        """The figure of at least one round's values."""
        return cls(value=median(values), low=min(values), high=max(values), goal=goal)

    @property
    def missed_by(self) -> float:
        """How far the median is from its goal; 0 where it is met, or where there is none."""
        return 0.0 if self.goal is None else self.goal.missed_by(self.value)

    @property
    def met(self) -> bool:
        """Whether there is a goal, and it is met."""
        return self.goal is not None and not self.missed_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All rounds of one load.

    Attributes:
        medians: by mode, of requests_per_s, p50_ms, p99_ms, and of the share of the cores that was busy.
        figures: ``<figure>/<mode>`` is that of mirroring by that of another mode, a median of the rounds' own ratios,
            but ``<figure>/beside`` that beside other work of the lowest class by that of no rollout; ``mirrored`` the
            share of the sampled items that the candidate ran too; ``accounted`` of the answered ones that have ended in
            the account.
        account: the items of all rounds; ``answered`` the requests that they came of.
        ended: how rollouts ended meanwhile, each way once.
    """

    load: Load
    rounds: int
    medians: Mapping[str, Mapping[str, float]]
    figures: Mapping[str, Figure]
    account: Mapping[str, int]
    answered: int
    failed: int
    ended: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The row as plain values, with each figure's verdict."""
        figures = {name: {**asdict(each), "missed_by": each.missed_by} for name, each in self.figures.items()}
        return {**asdict(self), "load": {**asdict(self.load), "part": self.load.part.value}, "figures": figures}


def summarise(alternations: Iterable[Alternation], batch_ms: Mapping[str, float]) -> list[Row]:
    """One row for each load, in the order in which they were first measured.

    ``batch_ms`` is how long a workload's largest batch takes. In canary the 99th percentile may be longer by as much:
    who answers clients is never interrupted, so one of them may wait for what was begun before.
    """
    by_load: dict[Load, list[Alternation]] = {}
    for each in alternations:
        by_load.setdefault(each.load, []).append(each)
    return [_row(load, rounds, batch_ms.get(load.workload, 0.0)) for load, rounds in by_load.items()]


def missed(rows: Iterable[Row]) -> list[tuple[Row, str]]:
    """The figures that miss their goals."""
    return [(row, name) for row in rows for name, figure in row.figures.items() if figure.missed_by]


def count_goals(rows: Iterable[Row]) -> int:
    """How many figures have a goal."""
    return sum(figure.goal is not None for row in rows for figure in row.figures.values())


def _row(load: Load, rounds: Sequence[Alternation], batch_ms: float) -> Row:
    mirrored = [each.by_mode[Mode.ON] for each in rounds]
    accounts = [each.account for each in mirrored if each.account is not None]
    return Row(
        load=load,
        rounds=len(rounds),
        medians={mode.value: _medians([each.by_mode[mode] for each in rounds]) for mode in MODES[load.part]},
        figures={**_ratios(load, rounds, batch_ms), **_mirrored(load, accounts), **_accounted(load, mirrored)},
        account={name: sum(each[name] for each in accounts) for name in next(iter(accounts), {})},
        answered=sum(each.answered for each in mirrored),
        failed=sum(each.failed for one in rounds for each in one.by_mode.values()),
        ended=tuple(dict.fromkeys(each.ended for each in mirrored if each.ended)),
    )


def _medians(measured: Sequence[Measured]) -> dict[str, float]:
    figures = {name: median(getattr(each.sample, name) for each in measured) for name in _SAMPLE_FIGURES}
    return {**figures, "busy": median(each.busy for each in measured)}


def _ratios(load: Load, rounds: Sequence[Alternation], batch_ms: float) -> dict[str, Figure]:
    if load.part is Part.SIZES:
        return {}
    names, goal = (_OPEN, LATENCY_GOAL) if load.share else (_CLOSED, THROUGHPUT_GOAL)
    others = [mode for mode in MODES[load.part] if mode is not Mode.ON]
    return {
        f"{name}/{other}": Figure.of(
            [_ratio(each, name, other, batch_ms) for each in rounds], None if other is Mode.BESIDE else goal
        )
        for name in names
        for other in others
    }


def _ratio(alternation: Alternation, name: str, other: Mode, batch_ms: float) -> float:
    allowance_ms = batch_ms if alternation.load.weight and name == "p99_ms" else 0.0
    pair = (Mode.BESIDE, Mode.PLAIN) if other is Mode.BESIDE else (Mode.ON, other)
    mine, theirs = (getattr(alternation.by_mode[mode].sample, name) for mode in pair)
    return float((mine - allowance_ms) / theirs)


def _mirrored(load: Load, accounts: Iterable[Mapping[str, int]]) -> dict[str, Figure]:
    shares = [each["mirrored"] / each["sampled"] for each in accounts if each["sampled"]]
    has_goal = load.part in (Part.LOAD, Part.CANARY)
    return {SHARE: Figure.of(shares, SHARE_GOALS.get(load.share) if has_goal else None)} if shares else {}


def _accounted(load: Load, mirrored: Iterable[Measured]) -> dict[str, Figure]:
    """Every answered request is sampled: as many items must have ended, and more is as wrong as less."""
    if load.part is not Part.SIZES:
        return {}
    ends = [(sum(each.account[end] for end in ENDS), each.answered) for each in mirrored if each.account]
    shares = [min(pair) / max(pair) for pair in ends]
    return {ACCOUNTED: Figure.of(shares, ACCOUNTED_GOAL)} if shares else {}
