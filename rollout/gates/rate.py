"""A rate against limits by F1: what the gates for errors, latency and score differences share."""

from dataclasses import dataclass

from rollout.bounds import rate_above, rate_below, rate_interval
from rollout.gates.contract import Counts, Look, Reading
from rollout.gates.text import percent
from shadow.evidence import StageSums


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What is counted, of what, and the limits: health certifies a rate below one, harm proves a rate above the other.

    ``bad`` counts (bad, n) with 0 ≤ bad ≤ n.
    """

    name: str  # "failure rate"
    counted: str  # "requests"
    bad: Counts
    advance_below: float
    roll_back_above: float

    def kinds(self, sums: StageSums) -> tuple[int, ...]:
        """(bad, good): the kinds of F1."""
        bad, n = self.bad(sums)
        return bad, n - bad

    def log_e_harm(self, look: Look) -> float:
        """ln E that the rate is above its limit, over the whole rollout."""
        return look.log_e_harm(rate_above(self.roll_back_above), self.kinds)

    def harm(self, look: Look) -> str:
        """The claim of harm, and the counts that it rests on."""
        bad, good = look.counted(self.kinds)
        return f"{self.name} > {percent(self.roll_back_above)}: {bad} of {bad + good} {self.counted} over the rollout"

    def read(self, look: Look) -> Reading:
        """The reading of a gate that consists of this rate alone."""
        bad, n = self.bad(look.now)
        certify = rate_below(self.advance_below)
        log_e = float(certify.log_e((bad, n - bad)))
        low, high = rate_interval(bad, n, look.alpha)
        return Reading(
            n=n,
            counted=self.counted,
            finding=f"{percent(bad / n)} ({bad} of {n} {self.counted})" if n else f"no {self.counted} yet",
            healthy=log_e >= look.log_health,
            health=f"{self.name} < {percent(self.advance_below)}",
            missing=certify.missing((bad, n - bad), look.log_health),
            unit="%",
            estimate=100 * bad / n if n else None,
            interval=(100 * low, 100 * high) if n else None,
            log_e_health=log_e,
            log_e_harm=self.log_e_harm(look),
            harm=self.harm(look),
        )
