"""Is a process's memory flat? Pure: from samples to growth, and to what breaks a bound."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Final

import numpy as np

from benchmarks.soak.generator import Tally
from benchmarks.soak.journal import Segment
from benchmarks.soak.processes import Held

LIMIT: Final = 0.01
_MIN_SAMPLES: Final = 10  # of a segment after its warm-up, fewer say nothing
_TENTHS: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """How a process changed after the warm-up.

    Attributes:
        own_mb: the median of its own memory.
        slope: growth by the median slope (Theil and Sen's) over all that was measured, as a share of ``own_mb``;
            pairs of samples of different segments are not compared.
        tenths: the last tenth's median against the first's, as a share of it, in the longest segment.
        ends: how often it ended within a segment, to be replaced or not.
    """

    role: str
    ours: bool
    own_mb: float
    slope: float
    tenths: float
    pss_mb: float
    shared_mb: float
    threads: tuple[int, int]
    files: tuple[int, int]
    ends: int

    @property
    def flat(self) -> bool:
        """Whether it stayed within LIMIT by both measures, as one and the same process."""
        return max(self.slope, self.tenths) <= LIMIT and not self.ends


def growths(segments: Sequence[Segment]) -> list[Growth]:
    """Of each process that any segment saw throughout; ours first."""
    long = [each for each in segments if len(each.measured) >= _MIN_SAMPLES]
    roles = dict.fromkeys(held.role for each in long for held in each.measured[0].held)
    found = [_growth(role, long) for role in roles]
    return sorted(found, key=lambda each: not each.ours)


def breaches(found: Sequence[Growth], failed: Mapping[str, int], measured_s: float, wanted_s: float) -> list[str]:
    """What was to hold and did not, a line each."""
    lines = [
        f"{each.role}: own memory grew by {each.slope:.2%} by slope, {each.tenths:.2%} between the first and the last "
        f"tenth, and it ended {each.ends} times; expected at most {LIMIT:.0%} and none"
        for each in found
        if each.ours and not each.flat
    ]
    if failed:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in failed.items())
        lines.append(f"requests failed ({kinds}); expected none")
    if measured_s < wanted_s:
        lines.append(f"measured for {measured_s:.0f} s after the warm-up, expected {wanted_s:.0f} s")
    if not any(each.ours for each in found):
        lines.append(f"no process was seen in {_MIN_SAMPLES} samples after the warm-up")
    return lines


def answers(segments: Sequence[Segment]) -> dict[str, Tally]:
    """What came of the requests of each stream in all segments, their warm-up too."""
    total: dict[str, Tally] = {}
    for each in (sample for segment in segments for sample in segment.samples):
        for name, tally in each.window.streams.items():
            total.setdefault(name, Tally()).add(tally)
    return total


def failures(total: Mapping[str, Tally]) -> dict[str, int]:
    """How many requests failed, by kind."""
    return dict(sum((each.failed for each in total.values()), Counter[str]()))


def median_slope(series: Sequence[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Theil and Sen's slope of some series of times and values: the median over all pairs within each."""
    slopes = []
    for times, values in series:
        x, y = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
        first, second = np.triu_indices(len(x), k=1)
        slopes.append((y[second] - y[first]) / (x[second] - x[first]))
    return float(np.median(np.concatenate(slopes)))


def to_json(growth: Growth) -> dict[str, Any]:
    """Plain values, with the judgement."""
    return {**asdict(growth), "flat": growth.flat}


def _growth(role: str, segments: Sequence[Segment]) -> Growth:
    tracks = [track for each in segments if (track := list(_track(role, each)))]
    series = [([at for at, _ in track], [held.own_mb for _, held in track]) for track in tracks]
    everything = [held for track in tracks for _, held in track]
    own_mb = median(held.own_mb for held in everything)
    measured_s = sum(times[-1] - times[0] for times, _ in series)
    slope = median_slope(series) if measured_s else 0.0
    return Growth(
        role=role,
        ours=everything[0].ours,
        own_mb=own_mb,
        slope=slope * measured_s / own_mb,
        tenths=_tenths(max((values for _, values in series), key=len)),
        pss_mb=median(held.pss_mb for held in everything),
        shared_mb=median(held.shared_mb for held in everything),
        threads=(everything[0].threads, everything[-1].threads),
        files=(everything[0].files, everything[-1].files),
        ends=sum(_ends(role, each) for each in segments),
    )


def _track(role: str, segment: Segment) -> Iterator[tuple[float, Held]]:
    for sample in segment.measured:
        for held in sample.held:
            if held.role == role:
                yield sample.at_s, held


def _ends(role: str, segment: Segment) -> int:
    seen = {held.pid for _, held in _track(role, segment)}
    now = {each.pid for each in segment.samples[-1].held if each.role == role}
    return len(seen - now)


def _tenths(values: Sequence[float]) -> float:
    size = max(1, len(values) // _TENTHS)
    first, last = median(values[:size]), median(values[-size:])
    return (last - first) / first
