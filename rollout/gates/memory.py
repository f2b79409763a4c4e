"""R4: the candidate's peak memory per batch."""

from typing import Annotated, ClassVar

from pydantic import Field

from rollout.gates.contract import Gate, Look, Reading
from rollout.gates.text import number
from shadow.evidence import StageSums

_MB = 1_000_000


class Memory(Gate):
    """Any reading over the limit is a breach: deterministic, with no e-value and no share of M.

    A reading counts wherever the gate's process bets (all stages where it binds). Healthy is a stage with at least
    ``min_readings`` readings and none over the limit: a replica that reports no memory never passes.
    """

    requirement: ClassVar[str] = "R4"
    proves_harm: ClassVar[bool] = False

    limit_bytes: Annotated[int, Field(gt=0)] = 500 * _MB
    min_readings: Annotated[int, Field(gt=0)] = 30

    def threshold(self) -> str:
        """Its limits, fit to print."""
        return f"≤ {self.limit_bytes / _MB:g} MB in every batch, over it rolls back"

    def read(self, look: Look) -> Reading:
        """Read one look."""
        arm = look.now.candidate
        over, readings = look.counted(_over)
        n, peak_mb = arm.memory_readings, arm.memory_max_bytes / _MB
        breach = (
            f"{over} of {readings} batches over {self.limit_bytes / _MB:g} MB, peak {number(self._peak_mb(look))} MB"
        )
        return Reading(
            n=n,
            counted="batches",
            finding=f"peak {number(peak_mb)} MB in {n} batches" if n else "no batches yet",
            healthy=n >= self.min_readings and arm.memory_over == 0,
            health=f"≤ {self.limit_bytes / _MB:g} MB in at least {self.min_readings} batches",
            missing=max(self.min_readings - n, 0) if n else None,
            unit="MB",
            estimate=peak_mb if n else None,
            breach=breach if over else None,
        )

    def _peak_mb(self, look: Look) -> float:
        peaks = [sums.candidate.memory_max_bytes for sums, bets in zip(look.sums, look.bets, strict=True) if bets]
        return max(peaks) / _MB


def _over(sums: StageSums) -> tuple[int, int]:
    return sums.candidate.memory_over, sums.candidate.memory_readings
