"""The summary as pictures, PNG and SVG: throughput of the closed loops, latency of the open one."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.errors import BenchmarkError
from benchmarks.peers.contract import Loop, Transport
from benchmarks.peers.summary import OURS, Row
from benchmarks.report import say
from benchmarks.workloads import WORKLOADS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS: Final = ("#0b5cad", "#76b900", "#8a5cc7", "#e07b39", "#c2385a", "#6f7782")
_UNLIKE: Final = 10
_WHISKERS: Final[dict[str, Any]] = {"linewidth": 0.8, "capsize": 1.5}
_WIDTH: Final = 0.8  # of the place that the bars of one load share
_STYLE: Final[Any] = {
    "svg.hashsalt": "understudy",  # the same figures make the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}


def plot(rows: Sequence[Row], titles: Mapping[str, str], folder: Path, name: str) -> list[Path]:
    """Write ``<name>_http``, ``<name>_grpc`` and ``<name>_open``, those that have rows; the files.

    Raises:
        BenchmarkError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise BenchmarkError("plots: expected matplotlib, which is in the extra 'bench'") from None
    mpl.use("Agg")
    written = []
    kinds: tuple[tuple[str, Loop, Transport, _Draw, str], ...] = (
        ("http", "closed", "http", _bars, "HTTP, closed loop"),
        ("grpc", "closed", "grpc", _bars, "gRPC, closed loop"),
        ("open", "open", "http", _lines, "HTTP, open loop"),
    )
    for suffix, loop, transport, draw, title in kinds:
        chosen = [row for row in rows if (row.load.loop, row.load.transport) == (loop, transport)]
        if chosen:
            with mpl.rc_context(_STYLE):
                figure = _figure(chosen, titles, draw, title)
                written += _save(figure, folder / f"{name}_{suffix}")
    return written


_Draw = Callable[["Axes", Sequence[Row], Mapping[str, str]], None]


def _figure(rows: Sequence[Row], titles: Mapping[str, str], draw: _Draw, title: str) -> "Figure":
    from matplotlib.figure import Figure

    workloads = list(dict.fromkeys(row.workload for row in rows))
    present = {row.server for row in rows}
    shown = {name: each for name, each in titles.items() if name in present}
    figure = Figure(figsize=(4.2 * len(workloads) + 0.6, 3.9), layout="constrained")
    for axes, workload in zip(figure.subplots(1, len(workloads), squeeze=False)[0], workloads, strict=True):
        draw(axes, [row for row in rows if row.workload == workload], shown)
        axes.set_title(WORKLOADS[workload].title, fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, fontsize=11)
    return figure


def _bars(axes: "Axes", rows: Sequence[Row], titles: Mapping[str, str]) -> None:
    """Requests per second by clients; whiskers are the range over the alternations."""
    amounts = sorted({row.load.amount for row in rows})
    width = _WIDTH / len(titles)
    for at, (name, title) in enumerate(titles.items()):
        found = {row.load.amount: row for row in rows if row.server == name}
        places = [index - _WIDTH / 2 + (at + 0.5) * width for index, each in enumerate(amounts) if each in found]
        shown = [found[each] for each in amounts if each in found]
        heights = [row.figures["requests_per_s"] for row in shown]
        below = [height - min(row.requests_per_s) for height, row in zip(heights, shown, strict=True)]
        above = [max(row.requests_per_s) - height for height, row in zip(heights, shown, strict=True)]
        colour = _COLOURS[at % len(_COLOURS)]
        axes.bar(places, heights, width, yerr=(below, above), label=title, color=colour, error_kw=_WHISKERS)
    logarithmic = _scale(axes, [row.figures["requests_per_s"] for row in rows])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.set_xticks(range(len(amounts)), [str(amount) for amount in amounts])
    axes.set_xlabel("clients")
    axes.set_ylabel("requests/s (log)" if logarithmic else "requests/s")


def _scale(axes: "Axes", heights: Sequence[float]) -> bool:
    """A logarithmic scale, from a power of ten, where bars are too unlike for a linear one."""
    if max(heights) < _UNLIKE * min(heights):
        return False
    axes.set_yscale("log")
    axes.set_ylim(bottom=10 ** math.floor(math.log10(min(heights))))
    return True


def _lines(axes: "Axes", rows: Sequence[Row], titles: Mapping[str, str]) -> None:
    """Median and 99th percentile of the latency by requests per second offered."""
    for at, (name, title) in enumerate(titles.items()):
        found = sorted((row for row in rows if row.server == name), key=lambda row: row.load.amount)
        colour = _COLOURS[at % len(_COLOURS)]
        offered = [row.load.amount for row in found]
        thick = 2.2 if name == OURS else 1.2
        axes.plot(offered, [row.figures["p99_ms"] for row in found], "o-", label=title, color=colour, linewidth=thick)
        axes.plot(offered, [row.figures["p50_ms"] for row in found], ":", color=colour, linewidth=thick)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(sorted({row.load.amount for row in rows}))
    axes.set_xlabel("requests/s offered")
    axes.set_ylabel("latency, ms (log): p99 solid, p50 dotted")


def _save(figure: "Figure", path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    figure.savefig(files[0], dpi=150)
    figure.savefig(files[1], metadata={"Date": None})
    for file in files:
        say(f"{file.name} written")
    return files
