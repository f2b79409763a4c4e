"""What the gates say, and what follows: the seam between gates and controller."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a gate, or all of them together, say. Undecided (HOLD) and broken (ERROR) never advance a rollout."""

    PASS = "PASS"
    HOLD = "HOLD"
    ERROR = "ERROR"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doubt:
    """Why a verdict is not to be acted on, though the gates reached it: PASS becomes HOLD.

    With ``over_fail`` so does FAIL by e-values; what was seen with certainty, a deterministic breach, stays FAIL.
    """

    reason: str  # fit to print, one line
    over_fail: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate's reading of the evidence at one look.

    An e-gate reports natural logarithms of its e-values: ``log_e_harm`` (F9-mixed over the whole rollout) and
    ``log_e_health`` (of this stage alone); a deterministic gate reports ``breach``. ``missing_requests`` is how many
    more of its observations it expects to need before it can pass (None: unknown, or nothing is missing).
    """

    gate: str  # its name in the policy: error_rate
    requirement: str  # R2
    binding: bool
    verdict: Verdict
    threshold: str  # fit to print: "< 1 % to advance, > 1.5 % rolls back"
    finding: str  # fit to print: "0.3 % (3 of 1000)"
    reason: str  # fit to print, one line: why this verdict, with a HOLD what is missing
    n: int  # observations it rests on
    estimate: float | None = None
    interval: tuple[float, float] | None = None
    log_e_harm: float | None = None
    log_e_health: float | None = None
    breach: bool = False
    missing_requests: int | None = None
    unit: str = ""  # of estimate and interval: "%", "ms", "MB", "points"
    counted: str = "requests"  # what n and missing_requests count


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """All gates merged. FAIL: roll back. PASS: every binding gate is healthy at this stage. Else wait.

    ``log_m`` is the ln of the merged harm e-value M over the binding e-gates. ``confidence`` belongs to the verdict:
    1 − 1/M for FAIL by e-values (.999 for a deterministic breach), 1 − max 1/E_health for PASS, capped at .999; for
    HOLD and ERROR the smaller of what is proved of either, 0 when nothing is.
    """

    verdict: Verdict
    gates: tuple[GateResult, ...]
    log_m: float
    confidence: float
    reason: str
