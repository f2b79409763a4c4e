"""The distributions of a rollout as pictures (PNG): differences of scores, service time, memory, agreement.

Needs matplotlib, which the service does not: it is imported when something is drawn.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.cli.shadow_text import batch_rows, delta, growth, least_agreeing, share, short, size
from serving.errors import ServingError
from shadow.distributions import Survey
from shadow.evidence import DELTA_EDGES, DeltaHistogram
from shadow.rows import SIDES, TWIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_IN: Final = 10.0
HEIGHT_IN: Final = 4.4
DPI: Final = 150

_COLOURS: Final = {"baseline": "#6f7782", "candidate": "#0b5cad", TWIN: "#e07b39"}
_MARKERS: Final = {"baseline": "s", "candidate": "o", TWIN: "^"}
_TITLES: Final = {"baseline": "baseline, primary", "candidate": "candidate, mirrored", TWIN: "twin, mirrored"}
_PLACES: Final = {"baseline": -0.22, "candidate": 0.0, TWIN: 0.22}  # beside each other, at one batch size
_LIMIT: Final = "#c2385a"
_CLOCKS: Final = {"wall": "wall clock", "cpu": "CPU of the thread", "gpu": "GPU, between CUDA events"}
_SHORT_CLOCKS: Final = {"wall": "wall", "cpu": "CPU", "gpu": "GPU"}
_MOST_GROUPS: Final = 40
_FEW_DECADES: Final = 7
_NEAR: Final = 2.0  # times the largest reading: a limit beyond is not shown
_UNLIKE: Final = 10.0  # times as large: then a scale is logarithmic
_HEADROOM: Final = 1.18  # for what is written above the points
_STYLE: Final[Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "figure.titlesize": 10,
}

Figures: TypeAlias = Mapping[str, Any]


class NoMatplotlibError(ServingError):
    """Nothing can be drawn."""


def draw(found: Survey, figures: Figures, folder: Path) -> list[Path]:
    """Write ``delta.png``, ``service.png``, ``memory.png`` and ``agreement.png``, those that have something to show.

    ``figures`` are ``serving.cli.shadow_report.document`` of what was found. The pictures are ``WIDTH_IN`` wide and
    ``HEIGHT_IN`` high at ``DPI``; that of the agreement is as high as its groups need.

    Raises:
        NoMatplotlibError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise NoMatplotlibError("nothing is drawn: it needs matplotlib ('pip install matplotlib')") from None
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(_STYLE):
        for name, drawing in _DRAWINGS.items():
            figure = drawing(found, figures)
            if figure is not None:
                figure.savefig(folder / name, dpi=DPI)
                written.append(folder / name)
    return written


def _figure(title: str, height_in: float = HEIGHT_IN) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    figure.suptitle(title)
    return figure


def _legend(figure: "Figure", *panels: "Axes") -> None:
    """One for all panels; what has the same name in several is there once."""
    named = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=len(named), frameon=False)


# |Δscore|

_FIRST: Final = 7.5e-10  # where the bucket of what is less than 1e-9 begins, on a logarithmic axis
_NOTHING: Final = 1e-12  # %; what is less is a rounding error, and far below the axis
_PLACES_OF_DELTAS: Final = (_FIRST, *DELTA_EDGES, 1.3 * DELTA_EDGES[-1])


def _delta(found: Survey, figures: Figures) -> "Figure | None":
    total, described = found.evidence.total(), figures["delta"]
    if not total.deltas.n:
        return None
    figure = _figure(_delta_title(figures))
    sides = {"candidate": total.deltas, TWIN: total.noise.deltas}
    shown = {side: histogram for side, histogram in sides.items() if histogram.n}
    left, right = figure.subplots(1, 2)
    for side, histogram in shown.items():
        shares = _shares(histogram)
        filled: dict[str, Any] = {"fill": True, "alpha": 0.45} if side == "candidate" else {"linewidth": 1.6}
        left.stairs(100 * shares, _PLACES_OF_DELTAS, color=_COLOURS[side], **filled)
        tail = np.cumsum(shares[::-1])[::-1][1:]  # at each edge
        seen = np.maximum(100 * tail, _NOTHING)
        style = "-" if side == "candidate" else "--"
        right.plot(DELTA_EDGES, seen, style, color=_COLOURS[side], linewidth=1.6, label=_DELTA_TITLES[side])
    right.set_yscale("log")
    right.set_ylim(50 / max(each.n for each in shown.values()), 150)
    right.yaxis.set_major_formatter("{x:g}")
    left.set_ylabel("items, %")
    right.set_ylabel("items with as much or more, % (log)")
    low, high = _reach(shown.values(), figures["tolerance"])
    for axes in (left, right):
        _delta_axis(axes, low, high)
        axes.axvline(figures["tolerance"], color=_LIMIT, linestyle="--", linewidth=1, label="tolerance")
        if described["beyond_noise"] is not None:
            axes.axvline(described["beyond_noise"]["floor"], color="black", linestyle=":", label="noise floor")
    _legend(figure, right)
    return figure


_DELTA_TITLES: Final = {"candidate": "candidate against baseline", TWIN: "twin against baseline: noise"}


def _delta_title(figures: Figures) -> str:
    candidate, twin, beyond = (figures["delta"][name] for name in ("candidate", "twin", "beyond_noise"))
    title = (
        f"max |Δscore| of {candidate['items']:,} items: p99 {delta(candidate['p99'])}, max {delta(candidate['max'])}"
    )
    noise = "no twin ran" if twin is None else f"noise p99 {delta(twin['p99'])}, max {delta(twin['max'])}"
    over = f"{figures['over_tolerance']:,} items over the tolerance of {figures['tolerance']:g}"
    more = "" if beyond is None else f"{share(beyond['share'])} beyond the noise floor, "
    return f"{title}; {noise}\n{more}{over}"


def _shares(histogram: DeltaHistogram) -> NDArray[np.float64]:
    """The share of the items in each bucket."""
    counts = [histogram.counts.get(bucket, 0) for bucket in range(len(DELTA_EDGES) + 1)]
    return np.array(counts, np.float64) / histogram.n


def _reach(histograms: Iterable[DeltaHistogram], tolerance: float) -> tuple[float, float]:
    """The ends of the axis: all that was seen, and the tolerance, with a bucket on either side."""
    buckets = [bucket for histogram in histograms for bucket in histogram.counts]
    low, high = (
        _PLACES_OF_DELTAS[max(min(buckets) - 1, 0)],
        _PLACES_OF_DELTAS[min(max(buckets) + 2, len(DELTA_EDGES) + 1)],
    )
    if tolerance <= 0:
        return low, high
    return max(min(low, tolerance / 2), _FIRST), max(high, tolerance * 2)


def _delta_axis(axes: "Axes", low: float, high: float) -> None:
    first, last = ceil(log10(low)), floor(log10(high))
    step = ceil((last - first + 1) / _FEW_DECADES) or 1
    decades = [power for power in range(last, first - 1, -step) if power > -9]
    places, names = [10.0**power for power in decades], [f"1e{power}" if power else "1" for power in decades]
    if low <= _FIRST:
        places, names = [*places, (_FIRST * DELTA_EDGES[0]) ** 0.5], [*names, "< 1e-9"]
    axes.set_xscale("log")
    axes.set_xticks(places, names)
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    axes.set_xlabel("max |Δscore| of an item (log)")


# Service time and memory, by batch size


def _service(found: Survey, figures: Figures) -> "Figure | None":
    entries = figures["service"]
    clocks = [clock for clock in _CLOCKS if any(entry["clock"] == clock for entry in entries)]
    if not clocks:
        return None
    figure = _figure(_service_title(figures, clocks))
    panels = figure.subplots(1, len(clocks), squeeze=False)[0]
    for axes, clock in zip(panels, clocks, strict=True):
        _draw_sizes(axes, [entry for entry in entries if entry["clock"] == clock], "ms", 1.0)
        axes.set_title(_CLOCKS[clock])
        axes.set_ylabel(f"ms a batch{_logarithmic(axes)}: p50, whisker to p95")
    _legend(figure, panels[0])
    return figure


def _service_title(figures: Figures, clocks: Sequence[str]) -> str:
    ratios = {clock: figures["ratios"][clock] for clock in clocks}
    said = [f"{_SHORT_CLOCKS[clock]} × {ratio['p50']:.2f}" for clock, ratio in ratios.items() if ratio is not None]
    if not said:
        return "Service time by batch size; no twin ran, and the baseline has another priority than the candidate"
    n = max(ratio["n"] for ratio in ratios.values() if ratio is not None)
    return f"Service time, candidate / twin in the same batch: {', '.join(said)} (medians of {n:,} batches)"


def _memory(found: Survey, figures: Figures) -> "Figure | None":
    entries = figures["memory"]
    if not entries:
        return None
    figure = _figure(_memory_title(figures))
    left, right = figure.subplots(1, 2)
    _draw_sizes(left, entries, "bytes", 1e-6)
    largest = max(entry[side]["max_bytes"] for entry in entries for side in SIDES if entry[side] is not None)
    limit = figures["memory_limit_bytes"]
    if 0 < limit <= _NEAR * largest:
        left.axhline(limit / 1e6, color=_LIMIT, linestyle="--", linewidth=1, label=f"limit, {size(limit)}")
        left.set_ylim(top=max(left.get_ylim()[1], _HEADROOM * limit / 1e6))
    left.set_ylabel(f"MB a batch{_logarithmic(left)}: p50, whisker to p95")
    left.set_title("by batch size")
    _draw_trends(right, found)
    _legend(figure, left)
    return figure


def _memory_title(figures: Figures) -> str:
    largest = [entry["candidate"]["max_bytes"] for entry in figures["memory"] if entry["candidate"] is not None]
    limit = size(figures["memory_limit_bytes"])
    title = (
        f"Peak memory of a batch, candidate: {size(max(largest))} at most, the limit is {limit}"
        if largest
        else "Memory"
    )
    slopes = [
        f"{side} {growth(trend['bytes_per_1000_batches'], trend['standard_error'])}"
        for side, trend in figures["trend"].items()
    ]
    return f"{title}\nper 1000 batches: {', '.join(slopes)}" if slopes else title


def _draw_trends(axes: "Axes", found: Survey) -> None:
    """A point for each block of time, and the line through all of them."""
    for side, blocks in found.distributions.memory.items():
        trend, colour = blocks.trend(), _COLOURS[side]
        batches, levels = np.array(trend.batches), np.array(trend.levels)
        axes.plot(batches, levels / 1e6, _MARKERS[side], color=colour, markersize=3, alpha=0.5, markeredgewidth=0)
        if trend.slope is not None:
            line = trend.mean + trend.slope / 1000 * (batches - trend.middle)
            axes.plot(batches, line / 1e6, color=colour, linewidth=1.6, linestyle="-" if side != TWIN else "--")
    axes.margins(y=0.25)
    axes.ticklabel_format(axis="both", style="plain", useOffset=False)
    axes.set_title("over the run, at about equal batch size; least squares")
    axes.set_xlabel("batches that the side ran so far")
    axes.set_ylabel("MB a batch: means of blocks of time")


def _draw_sizes(axes: "Axes", entries: Sequence[Figures], unit: str, scale: float) -> None:
    """The median and p95 of each side at each batch size; above, how the candidate compares with the twin."""
    heights = []
    for side in SIDES:
        shown = [(place, entry[side]) for place, entry in enumerate(entries) if entry[side] is not None]
        if not shown:
            continue
        places = [place + _PLACES[side] for place, _ in shown]
        middles = np.array([spread[f"p50_{unit}"] for _, spread in shown]) * scale
        tops = np.array([spread[f"p95_{unit}"] for _, spread in shown]) * scale
        heights += [*middles.tolist(), *tops.tolist()]
        reach = [np.zeros(len(shown)), tops - middles]
        style: dict[str, Any] = {"fmt": _MARKERS[side], "color": _COLOURS[side], "label": _TITLES[side]}
        axes.errorbar(places, middles, yerr=reach, markersize=5, linewidth=1.2, capsize=2.5, **style)
    _scale(axes, heights)
    for place, entry in enumerate(entries):
        if entry["ratio"] is not None:
            above = f"× {entry['ratio']['p50']:.2f}"
            axes.text(place, 0.99, above, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=8)
    axes.set_xticks(range(len(entries)), [batch_rows(entry) for entry in entries])
    axes.set_xlim(-0.6, len(entries) - 0.4)
    axes.grid(visible=False, axis="x")
    axes.set_xlabel("rows in the batch; above: candidate / twin" if _any_ratio(entries) else "rows in the batch")


def _any_ratio(entries: Sequence[Figures]) -> bool:
    return any(entry["ratio"] is not None for entry in entries)


def _scale(axes: "Axes", heights: Sequence[float]) -> None:
    """From zero, or logarithmic where heights are too unlike for that; with room for a line of text on top."""
    low, high = min(heights), max(heights)
    if low > 0 and high > _UNLIKE * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * (high / low) ** (_HEADROOM - 1) * 1.2)
        _plain_ticks(axes)
    else:
        axes.set_ylim(0, _HEADROOM * high or 1.0)


def _plain_ticks(axes: "Axes") -> None:
    """1, 2, 5, 10, …: there may be less than a decade."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _logarithmic(axes: "Axes") -> str:
    return " (log)" if axes.get_yscale() == "log" else ""


# Agreement, by label and slice


def _agreement(found: Survey, figures: Figures) -> "Figure | None":
    if figures["agreement"] is None:
        return None
    panels = list(_panels(figures))
    most = max((len(groups) for _, groups, _ in panels), default=0)
    if not most:
        return None
    figure = _figure(_agreement_title(figures), height_in=max(3.4, 1.7 + 0.21 * most))
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, groups, key) in zip(drawn, panels, strict=True):
        _draw_groups(axes, groups, key, figures["agreement"])
        axes.set_ylim(most - 0.4, -0.6)  # rows are as high in every panel
        axes.set_title(title)
    _legend(figure, *drawn)
    return figure


def _panels(figures: Figures) -> Iterator[tuple[str, list[dict[str, Any]], str]]:
    """Title, groups and the name of what they have in common; of true labels only the most frequent."""
    for key, title in (
        ("label", "top-1 agreement by the baseline's label"),
        ("slice", "top-1 agreement by slice"),
    ):
        groups = figures[f"{key}s"]["groups"]
        if len(groups) > 1 or (groups and key == "label"):
            shown = least_agreeing(groups, _MOST_GROUPS)
            cut = f"\nthe {len(shown)} of {len(groups):,} that agree least" if len(shown) < len(groups) else ""
            yield title + cut, shown, key
    right = figures["accuracy"]["groups"]
    if right:
        cut = f"\nthe {_MOST_GROUPS} of {len(right):,} that are most frequent" if len(right) > _MOST_GROUPS else ""
        yield f"accuracy by true label{cut}", right[:_MOST_GROUPS], "label"


def _draw_groups(axes: "Axes", groups: Sequence[Figures], key: str, overall: float) -> None:
    """A line for each group, the largest first: its share with the 95 % interval."""
    if "agreement" in groups[0]:
        axes.axvline(100 * overall, color="black", linestyle=":", linewidth=1, label="all items")
        intervals = {at: (group["agreement"], group["low"], group["high"]) for at, group in enumerate(groups)}
        lower = {at: each for at, each in intervals.items() if each[2] < overall}
        others = {at: each for at, each in intervals.items() if at not in lower}
        _draw_shares(axes, others, color=_COLOURS["candidate"], fmt="o", label="group")
        _draw_shares(axes, lower, color=_LIMIT, fmt="D", label="group whose interval is below that")
    else:
        for side, shift in (("baseline", -0.16), ("candidate", 0.16)):
            right = [(group[side]["accuracy"], group[side]["low"], group[side]["high"]) for group in groups]
            shifted = {at + shift: each for at, each in enumerate(right)}
            _draw_shares(axes, shifted, color=_COLOURS[side], fmt=_MARKERS[side], label=f"accuracy, {side}")
    axes.set_yticks(range(len(groups)), [f"{short(group[key])}  ({group['items']:,})" for group in groups])
    least, _ = axes.get_xlim()
    axes.set_xlim(least, 100 + 0.03 * (100 - least))
    axes.set_xlabel("%, with 95 % interval (Wilson)")
    axes.set_ylabel(f"{key} (items)")


def _draw_shares(axes: "Axes", intervals: Mapping[Any, tuple[float, float, float]], **style: Any) -> None:
    """Shares with the ends of their intervals, by height."""
    if intervals:
        shares, lows, highs = 100 * np.array(list(intervals.values())).T
        reach = np.maximum([shares - lows, highs - shares], 0.0)  # a rounding error may be less
        axes.errorbar(shares, list(intervals), xerr=reach, markersize=4, linewidth=1, capsize=2, **style)


def _agreement_title(figures: Figures) -> str:
    title = f"Top-1 agreement {share(figures['agreement'])} of {figures['items']:,} items"
    lowest = []
    for key in ("label", "slice"):
        groups = figures[f"{key}s"]["groups"]
        if len(groups) > 1:
            group = min(groups, key=lambda each: each["high"])
            lowest.append(f"{key} {short(group[key])}: {share(group['agreement'])}")
    return f"{title}; lowest: {', '.join(lowest)}" if lowest else title


_DRAWINGS: Final[Mapping[str, Callable[[Survey, Figures], "Figure | None"]]] = {
    "delta.png": _delta,
    "service.png": _service,
    "memory.png": _memory,
    "agreement.png": _agreement,
}
