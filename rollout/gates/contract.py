"""What a gate is: limits from the policy, and a way to read one look at the evidence.

A gate *is* its part of the policy: a frozen pydantic model with its limits as fields, so that a wrong limit is refused
by the name under which it stands in the file, and what the journal keeps of a policy is enough to judge again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import log
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rollout.bounds import Interval, Process, log_mix_stages
from shadow.evidence import StageSums

Share = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[int, Field(ge=0, le=100)]  # the candidate's share of traffic, in percent
Counts = Callable[[StageSums], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The evidence of a rollout at one look, as one gate is to see it.

    ``sums`` and ``weights`` (the candidate's share of traffic in percent) are by stage, ``stage`` is the present one.
    ``bets`` says at which stages the gate's harm process bets: fixed for the whole rollout, so that merging stays
    valid, and so that what was seen while a gate only advised never rolls anything back.
    """

    sums: tuple[StageSums, ...]
    weights: tuple[int, ...]
    stage: int
    bets: tuple[bool, ...]
    alpha: float
    beta: float

    @property
    def now(self) -> StageSums:
        """The sums of the present stage: what health is proved with."""
        return self.sums[self.stage]

    @property
    def in_shadow(self) -> bool:
        """Whether the candidate answers no client at this stage."""
        return self.weights[self.stage] == 0

    @property
    def log_health(self) -> float:
        """ln of the e-value at which health is proved: ln(1/β)."""
        return -log(self.beta)

    def log_e_harm(self, process: Process, counts: Counts) -> float:
        """ln E of a process over the whole rollout, mixed over stages by F9."""
        by_stage = np.array([counts(sums) for sums in self.sums]) * np.array(self.bets)[:, None]
        since = by_stage[::-1].cumsum(axis=0)[::-1]
        log_e = process.log_e(since)
        return float(log_mix_stages(log_e[0], log_e))

    def counted(self, counts: Counts) -> tuple[int, ...]:
        """The counts that harm rests on: of all stages at which it bets."""
        each = [counts(sums) for sums, bets in zip(self.sums, self.bets, strict=True) if bets]
        return tuple(sum(column) for column in zip(*each, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a gate makes of a look. ``n``, ``estimate`` and ``interval`` (1 − α) are of the present stage.

    ``missing`` is how many more of what it counts it needs to be healthy; None: not at the present rate, or no data.
    """

    n: int
    counted: str  # what n counts: "requests"
    finding: str  # fit to print: "0.3 % (3 of 1000 requests)"
    healthy: bool
    health: str  # what health claims, fit to print: "failure rate < 1 %"
    missing: int | None
    unit: str = ""  # of estimate and interval
    estimate: float | None = None
    interval: Interval | None = None
    log_e_health: float | None = None
    log_e_harm: float | None = None
    harm: str = ""  # what harm claims, and the counts over the rollout that it rests on
    breach: str | None = None  # a deterministic breach, fit to print


class Mode(StrEnum):
    """Whether a gate decides, or is only reported."""

    BINDING = "binding"
    ADVISORY = "advisory"


class Gate(BaseModel, ABC):
    """The contract: name a requirement, print the limits, read a look. One file, one line in ``GATES``, one test.

    Every gate's part of the policy says when it binds; its limits are the further fields that it declares.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    requirement: ClassVar[str]  # the row of REQUIREMENTS.md: "R2"
    proves_harm: ClassVar[bool]  # whether its readings carry log_e_harm, and so a share of M

    mode: Annotated[Mode, Field(strict=False)] = Mode.BINDING
    stages: Annotated[list[Weight], Field(min_length=1)] | None = None  # weights where it binds; it advises elsewhere

    @abstractmethod
    def threshold(self) -> str:
        """Its limits, fit to print."""

    @abstractmethod
    def read(self, look: Look) -> Reading:
        """Read one look. Without data: not healthy, and no harm. Never raises on sums that are possible."""

    def binds_at(self, weight: int) -> bool:
        """Whether it decides at the stage of this weight."""
        return self.mode is Mode.BINDING and (self.stages is None or weight in self.stages)

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        if self.mode is Mode.ADVISORY and self.stages is not None:
            raise ValueError("stages says where a gate binds, but its mode is advisory")
        return self
