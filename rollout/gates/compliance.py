"""R5, the drop: the candidate's compliance@1 must not fall behind the baseline's."""

from typing import Annotated, ClassVar

from pydantic import Field

from rollout.bounds import mean_above, mean_interval
from rollout.gates.contract import Gate, Look, Reading
from rollout.gates.text import signed
from shadow.evidence import StageSums


class Compliance(Gate):
    """Labelled items: does the top-1 answer satisfy the label? Paired, so only items on which the two differ weigh.

    F2 on D ∈ {−1, 0, 1}. Harm proves "drop > ``drop_points``", health proves "drop < ``drop_points``", each by its own
    process: not having proved a drop is no proof that there is none.
    """

    requirement: ClassVar[str] = "R5"
    proves_harm: ClassVar[bool] = True

    drop_points: Annotated[float, Field(gt=0, lt=100)] = 2.0

    def threshold(self) -> str:
        """Its limits, fit to print."""
        return f"drop < {self.drop_points:g} points to advance, > {self.drop_points:g} points rolls back"

    def read(self, look: Look) -> Reading:
        """Read one look."""
        drop = self.drop_points / 100
        counts = _gains(look.now)
        certify = mean_above(-drop)
        log_e = float(certify.log_e(counts))
        plus, minus, n = counts[0], counts[1], sum(counts)
        low, high = mean_interval(*counts, look.alpha)
        change = 100 * (plus - minus) / n if n else None
        return Reading(
            n=n,
            counted="labelled items",
            finding=f"{signed(change)} points (gained {plus}, lost {minus} of {n} labelled items)"
            if change is not None
            else "no labelled items yet",
            healthy=log_e >= look.log_health,
            health=f"drop < {self.drop_points:g} points",
            missing=certify.missing(counts, look.log_health),
            unit="points",
            estimate=change,
            interval=(100 * low, 100 * high) if n else None,
            log_e_health=log_e,
            log_e_harm=look.log_e_harm(mean_above(drop), _losses),
            harm=self._harm(look),
        )

    def _harm(self, look: Look) -> str:
        lost, gained, equal = look.counted(_losses)
        return (
            f"drop > {self.drop_points:g} points: lost {lost}, gained {gained} of {lost + gained + equal} "
            "labelled items over the rollout"
        )


def _gains(sums: StageSums) -> tuple[int, int, int]:
    """(plus, minus, zero) of candidate − baseline."""
    cells = sums.labels
    return cells.candidate_only, cells.baseline_only, cells.both + cells.neither


def _losses(sums: StageSums) -> tuple[int, int, int]:
    """(plus, minus, zero) of baseline − candidate."""
    plus, minus, zero = _gains(sums)
    return minus, plus, zero
