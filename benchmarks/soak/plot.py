"""The soak as a picture: each process's own memory over time, and how far it is from where it began."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from benchmarks.errors import BenchmarkError
from benchmarks.report import say
from benchmarks.soak.journal import Segment
from benchmarks.soak.verdict import LIMIT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FIRST: Final = 10  # samples after the warm-up, whose median is where a process began
_STYLE: Final[Any] = {
    "svg.hashsalt": "understudy",  # the same figures make the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def plot(segments: Sequence[Segment], folder: Path, name: str = "soak") -> None:
    """Write ``<name>.png`` and ``<name>.svg``.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchmarkError("plots: expected matplotlib, which is in the extra 'bench'") from None
    mpl.use("Agg")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 6.4), layout="constrained")
        held, changed = figure.subplots(2, 1, sharex=True)
        _draw(held, changed, segments)
        held.set_ylabel("own memory, MB")
        held.set_ylim(bottom=0)
        changed.set_ylabel("change since the warm-up, %")
        changed.axhline(100 * LIMIT, color="#c2385a", linestyle="--", linewidth=0.8)
        changed.set_ylim(-3, 3)
        changed.set_xlabel("minutes under load; shaded: warm-up")
        handles, labels = held.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    say(f"{name}.png and {name}.svg written")


def _draw(held: "Axes", changed: "Axes", segments: Sequence[Segment]) -> None:
    roles = dict.fromkeys(each.role for segment in segments for s in segment.samples for each in s.held if each.ours)
    began_s = 0.0
    for number, segment in enumerate(each for each in segments if each.samples):
        for axes in (held, changed):
            axes.axvspan(began_s / 60, (began_s + segment.warm_up_s) / 60, color="#6f7782", alpha=0.12, linewidth=0)
        for at, role in enumerate(roles):
            times, values = _series(segment, role)
            minutes = [(began_s + each) / 60 for each in times]
            held.plot(minutes, values, color=f"C{at}", linewidth=1.2, label=None if number else role)
            after = [value for time, value in zip(times, values, strict=True) if time >= segment.warm_up_s]
            if after:
                began = median(after[:_FIRST])
                changes = [100 * (value / began - 1) for value in values]
                changed.plot(minutes, changes, color=f"C{at}", linewidth=1.0)
        began_s += segment.samples[-1].at_s


def _series(segment: Segment, role: str) -> tuple[list[float], list[float]]:
    found = [(s.at_s, each.own_mb) for s in segment.samples for each in s.held if each.role == role]
    return [time for time, _ in found], [value for _, value in found]
