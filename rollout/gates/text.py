"""How gates spell numbers."""

from math import exp, log

from rollout.bounds import Interval


def percent(share: float) -> str:
    """A share as a percentage: 0.015 → "1.5 %"."""
    return f"{number(100 * share)} %"


def number(value: float) -> str:
    """Three digits, and no exponent where a person would write none: "0.123", "61.5", "1234"."""
    return f"{value:.3g}" if abs(value) < _THOUSAND else f"{value:.0f}"


def signed(value: float) -> str:
    """A change: "+3.2", "−1"; the minus is the one of typography."""
    return f"{value:+.3g}".replace("-", "−")


def e_value(log_e: float) -> str:
    """An e-value given by its ln: "23.1", "1234"; beyond a million either way as a power of ten."""
    return number(exp(log_e)) if abs(log_e) < _MILLION else f"10^{log_e / log(10):.0f}"


def span(interval: Interval, unit: str) -> str:
    """An interval: "0.12 … 0.83 %"."""
    return f"{number(interval[0])} … {number(interval[1])} {unit}"


def duration(seconds: float) -> str:
    """About how long, in the unit a person would use: "40 s", "7.5 min", "3.2 h"."""
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    if seconds < _HOUR_S:
        return f"{seconds / _MINUTE_S:.3g} min"
    return f"{seconds / _HOUR_S:.3g} h"


_THOUSAND = 999.5
_MILLION = log(1e6)
_MINUTE_S = 60.0
_HOUR_S = 3600.0
