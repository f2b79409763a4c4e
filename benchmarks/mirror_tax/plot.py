"""The open loop as a picture: by load, how much longer answers take, and how much of the load is mirrored."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.errors import BenchmarkError
from benchmarks.mirror_tax.figures import LATENCY_GOAL, SHARE, SHARE_GOALS, Row
from benchmarks.mirror_tax.loads import Mode, Part
from benchmarks.report import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE: Final[Any] = {
    "svg.hashsalt": "understudy",  # the same figures make the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
}
_GOAL: Final = "#333333"


def plot(rows: Sequence[Row], folder: Path, name: str = "mirror_tax") -> None:
    """Write ``<name>.png`` and ``<name>.svg``, if anything was measured in the open loop with a well-behaved candidate.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    chosen = [row for row in rows if row.load.part in (Part.LOAD, Part.CANARY)]
    if not chosen:
        return
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise BenchmarkError("plots: expected matplotlib, which is in the extra 'bench'") from None
    mpl.use("Agg")
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.0, 4.4), layout="constrained")
        ratios, shares = figure.subplots(1, 2)
        _draw(ratios, shares, chosen)
        handles, labels = ratios.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=150)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    say(f"{name}.png and {name}.svg written")


def _draw(ratios: "Axes", shares: "Axes", rows: Sequence[Row]) -> None:
    settings = dict.fromkeys((row.load.workload, row.load.weight) for row in rows)
    for number, (workload, weight) in enumerate(settings):
        mine = sorted((row for row in rows if (row.load.workload, row.load.weight) == (workload, weight)), key=_share)
        label = f"{workload}, weight {weight}%" if weight else f"{workload}, in shadow"
        colour = f"C{number}"
        for name, style in (("p50_ms", "o:"), ("p99_ms", "o-")):
            values = [row.figures[f"{name}/{Mode.OFF}"].value for row in mine]
            ratios.plot([100 * _share(row) for row in mine], values, style, color=colour, linewidth=1.4)
        ratios.plot([], [], "o-", color=colour, label=label)
        mirrored = [row for row in mine if SHARE in row.figures]
        values = [100 * row.figures[SHARE].value for row in mirrored]
        shares.plot([100 * _share(row) for row in mirrored], values, "o-", color=colour, linewidth=1.4)
    ratios.axhline(LATENCY_GOAL.bound, color=_GOAL, linestyle="--", linewidth=0.8)
    ratios.set_ylabel("latency, on / off: p99 solid, p50 dotted")
    loads, bounds = [100 * share for share in SHARE_GOALS], [100 * goal.bound for goal in SHARE_GOALS.values()]
    shares.plot(loads, bounds, color=_GOAL, linestyle="none", marker="_", markersize=24)
    shares.set_ylabel("mirrored, %")
    shares.set_ylim(0, 104)
    for axes in (ratios, shares):
        axes.set_xlabel("load, % of saturation; dashes: goals")
        axes.set_xticks([100 * share for share in sorted({_share(row) for row in rows})])


def _share(row: Row) -> float:
    return row.load.share
