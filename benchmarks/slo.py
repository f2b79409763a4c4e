"""The service level objectives of a load test: p95 latency (R1), error rate (R2), throughput as capacity (R3).

Plain arithmetic over what clients saw; knows no load generator. What was measured too little to say is a breach.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

MIN_REQUESTS: Final = 100  # fewer resolve neither 1 % of errors nor a 95th percentile
MIN_GAIN: Final = 0.05  # of throughput; less than this is the noise of a window
NOT_MEASURED: Final = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The objectives: latency in milliseconds, errors as a share of all requests, capacity in requests a second."""

    p95_ms: float = 500.0
    error_rate: float = 0.01
    capacity: float = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What ``users`` clients saw in some seconds.

    Attributes:
        latencies_ms: of the good answers alone: a refusal is quick, and must not make a service look fast.
        failed: requests without a good answer.
    """

    users: int
    seconds: float
    latencies_ms: tuple[float, ...]
    failed: int = 0

    @property
    def requests(self) -> int:
        """All that ended in the window."""
        return len(self.latencies_ms) + self.failed

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies_ms) / self.seconds if self.seconds else 0.0

    @property
    def p95_ms(self) -> float | None:
        """The 95th percentile, as one of the latencies seen; None without an answer."""
        return float(np.percentile(self.latencies_ms, 95, method="higher")) if self.latencies_ms else None

    @property
    def error_rate(self) -> float | None:
        """Failed requests as a share of all; None without a request."""
        return self.failed / self.requests if self.requests else None

    def meets(self, limits: Limits) -> bool:
        """Whether latency and errors are within the objectives."""
        p95_ms, error_rate = self.p95_ms, self.error_rate
        return p95_ms is not None and p95_ms < limits.p95_ms and (error_rate or 0.0) < limits.error_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the verdict."""

    slo: str
    target: str
    measured: str
    met: bool


class Meter:
    """Collects what clients see while a window is open; ``now`` is any monotonic time in seconds."""

    def __init__(self) -> None:
        self._users = 0
        self._since: float | None = None
        self._latencies_ms: list[float] = []
        self._failed = 0

    def open(self, users: int, now: float) -> None:
        """Begin a window; what an earlier one saw is forgotten."""
        self._users, self._since, self._latencies_ms, self._failed = users, now, [], 0

    def add(self, latency_ms: float, *, failed: bool) -> None:
        """A request has ended; it counts where a window is open."""
        if self._since is None:
            return
        if failed:
            self._failed += 1
        else:
            self._latencies_ms.append(latency_ms)

    def close(self, now: float) -> Window | None:
        """End the window; None where none was open."""
        if self._since is None:
            return None
        seconds, self._since = now - self._since, None
        return Window(users=self._users, seconds=seconds, latencies_ms=tuple(self._latencies_ms), failed=self._failed)


def rises(steps: Sequence[Window]) -> bool:
    """Whether one of the last two steps brought more than the best before them; one alone may be noise."""
    if len(steps) <= 2:
        return True
    before = max(step.rate for step in steps[:-2])
    return max(step.rate for step in steps[-2:]) > before * (1 + MIN_GAIN)


def climbs_on(steps: Sequence[Window], limits: Limits) -> bool:
    """Whether more users may still bring more throughput within the objectives."""
    return all(step.meets(limits) for step in steps[-1:]) and rises(steps)


def capacity(steps: Sequence[Window], limits: Limits) -> Window | None:
    """The step with the highest throughput of those that were within the objectives; None where none was."""
    return max((step for step in steps if step.meets(limits)), key=lambda step: step.rate, default=None)


def judge(offered: Window | None, steps: Sequence[Window], limits: Limits) -> tuple[Finding, ...]:
    """Latency and errors under the offered load, capacity from the steps."""
    if offered is None or offered.requests < MIN_REQUESTS:
        offered = None
    return (_latency(offered, limits), _errors(offered, limits), _capacity(steps, limits))


def _latency(offered: Window | None, limits: Limits) -> Finding:
    p95_ms = offered.p95_ms if offered else None
    return Finding(
        slo="R1 p95 latency",
        target=f"< {limits.p95_ms:g} ms",
        measured=NOT_MEASURED if p95_ms is None else f"{p95_ms:.1f} ms",
        met=p95_ms is not None and p95_ms < limits.p95_ms,
    )


def _errors(offered: Window | None, limits: Limits) -> Finding:
    error_rate = offered.error_rate if offered else None
    return Finding(
        slo="R2 error rate",
        target=f"< {limits.error_rate:.3%}",
        measured=NOT_MEASURED if error_rate is None else f"{error_rate:.3%}",
        met=error_rate is not None and error_rate < limits.error_rate,
    )


def _capacity(steps: Sequence[Window], limits: Limits) -> Finding:
    best = capacity(steps, limits)
    if best is not None:
        measured = f"{best.rate:.1f} requests/s"
    else:
        measured = "no step within R1 and R2" if steps else NOT_MEASURED
    return Finding(
        slo="R3 capacity",
        target=f">= {limits.capacity:g} requests/s",
        measured=measured,
        met=best is not None and best.rate >= limits.capacity,
    )


def report(offered: Window | None, steps: Sequence[Window], limits: Limits) -> str:
    """The verdict as a table, and below it what it rests on: the load that was offered, and each step of the climb."""
    findings = judge(offered, steps, limits)
    rows = [("SLO", "target", "measured", "verdict")]
    rows += [(each.slo, each.target, each.measured, "met" if each.met else "BREACH") for each in findings]
    lines = [f"{slo:<16}{target:<20}{measured:<26}{verdict}" for slo, target, measured, verdict in rows]
    if offered is not None:
        lines.append(f"offered load: {_line(offered)}")
    lines += [f"closed loop:  {_line(step)}" for step in steps]
    if steps and climbs_on(steps, limits):
        lines.append("the climb ended for want of time: the capacity is at least this")
    return "\n".join(lines)


def _line(window: Window) -> str:
    p95 = "-" if window.p95_ms is None else f"{window.p95_ms:.1f} ms"
    answers = f"{window.rate:.1f} requests/s from {window.users} users in {window.seconds:.1f} s"
    return f"{answers}, p95 {p95}, {window.failed} of {window.requests} failed"
