"""R2: the candidate's failures, against limits of their own."""

from typing import ClassVar, Self

from pydantic import model_validator

from rollout.gates.contract import Gate, Look, Reading, Share
from rollout.gates.rate import Rate
from rollout.gates.text import percent
from shadow.evidence import StageSums


class ErrorRate(Gate):
    """Failures (errors, timeouts, malformed answers) of all requests that the candidate was run on, mirrored or served.

    F1 both ways. H0 of harm: P(failure | past) ≤ ``roll_back_above``; of health: ≥ ``advance_below``.
    """

    requirement: ClassVar[str] = "R2"
    proves_harm: ClassVar[bool] = True

    advance_below: Share = 0.01
    roll_back_above: Share = 0.015

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.advance_below > self.roll_back_above:
            raise ValueError("advance_below must not exceed roll_back_above")
        return self

    def threshold(self) -> str:
        """Its limits, fit to print."""
        return f"< {percent(self.advance_below)} to advance, > {percent(self.roll_back_above)} rolls back"

    def read(self, look: Look) -> Reading:
        """Read one look."""
        return Rate(
            name="failure rate",
            counted="requests",
            bad=_failures,
            advance_below=self.advance_below,
            roll_back_above=self.roll_back_above,
        ).read(look)


def _failures(sums: StageSums) -> tuple[int, int]:
    return sums.candidate.failures, sums.candidate.requests
