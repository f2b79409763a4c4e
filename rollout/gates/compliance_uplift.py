"""R5, the uplift: the candidate's compliance@1 must be better than the baseline's by a given share of it."""

from math import isinf
from typing import ClassVar

from rollout.bounds import Interval, ratio_above, ratio_interval
from rollout.gates.contract import Gate, Look, Positive, Reading
from rollout.gates.text import percent, signed
from shadow.evidence import StageSums


class ComplianceUplift(Gate):
    """Healthy when "uplift > ``uplift``, relative to the baseline" is proved by F3.

    That its lower bound is above 0 follows: each factor of F3 falls as the ratio grows, so E against "no better than
    the baseline" (ratio 1) is never smaller than E against "not better by ``uplift``". There is no harm process: an
    uplift that is not there is no harm. Harm to compliance is what the gate ``compliance`` proves, and an uplift that
    is never proved ends with the stage's budget. The conflict rate, the share of compared items on which the two
    versions' top-1 answers differ, is reported beside it.
    """

    requirement: ClassVar[str] = "R5"
    proves_harm: ClassVar[bool] = False

    uplift: Positive = 0.1

    def threshold(self) -> str:
        """Its limits, fit to print."""
        return f"uplift > {percent(self.uplift)} relative and lower bound > 0 to advance"

    def read(self, look: Look) -> Reading:
        """Read one look."""
        cells = _cells(look.now)
        certify = ratio_above(1 + self.uplift)
        log_e = float(certify.log_e(cells))
        n = sum(cells)
        return Reading(
            n=n,
            counted="labelled items",
            finding=_finding(look.now) if n else "no labelled items yet",
            healthy=log_e >= look.log_health,
            health=f"uplift > {percent(self.uplift)} relative",
            missing=certify.missing(cells, look.log_health),
            unit="%",
            estimate=_uplift(cells),
            interval=_interval(cells, look.alpha),
            log_e_health=log_e,
        )


def _cells(sums: StageSums) -> tuple[int, int, int, int]:
    """The kinds of F3."""
    cells = sums.labels
    return cells.both, cells.baseline_only, cells.candidate_only, cells.neither


def _uplift(cells: tuple[int, int, int, int]) -> float | None:
    """Percent, relative to the baseline; None where the baseline was never right."""
    both, baseline_only, candidate_only, _ = cells
    baseline = both + baseline_only
    return 100 * (candidate_only - baseline_only) / baseline if baseline else None


def _interval(cells: tuple[int, int, int, int], alpha: float) -> Interval | None:
    """Percent; None where the labels do not bound it from above yet."""
    low, high = ratio_interval(*cells, alpha)
    return None if isinf(high) else (100 * (low - 1), 100 * (high - 1))


def _finding(sums: StageSums) -> str:
    both, baseline_only, candidate_only, _ = cells = _cells(sums)
    n, uplift = sum(cells), _uplift(cells)
    change = "baseline never right" if uplift is None else f"{signed(uplift)} % relative"
    rates = f"{percent((both + baseline_only) / n)} → {percent((both + candidate_only) / n)}"
    conflicts = percent(1 - sums.agree / sums.items) if sums.items else "unknown"
    return f"{change} ({rates} of {n} labelled items), conflict rate {conflicts}"
