"""The distributions of a rollout as pictures (PNG): differences, measures, service time, memory, agreement.

Needs matplotlib, which the service does not: it is imported when something is drawn.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil, floor, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serving.cli.shadow_text import batch_rows, delta, growth, least_agreeing, measured, share, short, size
from serving.errors import ServingError
from shadow.distributions import Survey
from shadow.evidence import DELTA_EDGES, MEASURE_BUCKETS, DeltaHistogram, Shares
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
_LIMIT_LINE: Final[Any] = {"color": _LIMIT, "linestyle": "-.", "linewidth": 1.2}  # no side is drawn so
_CLOCKS: Final = {"wall": "wall clock", "cpu": "CPU of the thread", "gpu": "GPU, between CUDA events"}
_SHORT_CLOCKS: Final = {"wall": "wall", "cpu": "CPU", "gpu": "GPU"}
_MOST_GROUPS: Final = 40
_FEW_DECADES: Final = 7
_NEAR: Final = 2.0  # times the largest reading: a limit beyond is not shown
_UNLIKE: Final = 10.0  # times as large: then a scale is logarithmic
_HEADROOM: Final = 1.18  # for what is written above the points
_ROTATED_HEADROOM: Final = 1.36
_ROWS: Final = "rows in the batch (batches)"
_MOST_WIDE: Final = 2  # panels beside each other under which a long line fits
_MOST_UPRIGHT: Final = 12  # sizes in all panels beside each other; of more, what is written stands on its end
STYLE: Final[Any] = {
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
    """Write ``delta.png``, ``measures.png``, ``service.png``, ``memory.png`` and ``agreement.png``, those that have
    something to show.

    ``figures`` are ``serving.cli.shadow_figures.document`` of what was found. The pictures are ``WIDTH_IN`` wide and
    ``HEIGHT_IN`` high at ``DPI``; those with groups are as high as these need.

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
    with mpl.rc_context(STYLE):
        for name, drawing in DRAWINGS.items():
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


def _of_rows(figures: Figures, what: str = "") -> str:
    """A further line of the title of what only rows can tell, where some of them are gone."""
    gone = figures["checkpoints"]
    if gone is None:
        return ""
    remaining = figures["rows"] - gone["rows"]
    return f"\n{what}of the {remaining:,} rows that remain of {figures['rows']:,}: the others are checkpoints"


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
        label = f"{_DELTA_TITLES[side]} ({histogram.n:,} items)"
        right.plot(DELTA_EDGES, seen, style, color=_COLOURS[side], linewidth=1.6, label=label)
    right.set_yscale("log")
    right.set_ylim(50 / max(each.n for each in shown.values()), 150)
    right.yaxis.set_major_formatter("{x:g}")
    left.set_ylabel("items, %")
    right.set_ylabel("items with as much or more, % (log)")
    low, high = _reach(shown.values(), figures["tolerance"])
    for axes in (left, right):
        _delta_axis(axes, low, high, figures["difference"])
        axes.axvline(figures["tolerance"], label=f"tolerance, {figures['tolerance']:g}", **_LIMIT_LINE)
        if (beyond := described["beyond_noise"]) is not None:
            label = f"noise floor, {delta(beyond['floor'])}"
            axes.axvline(beyond["floor"], color="black", linestyle=":", label=label)
    _legend(figure, right)
    return figure


_DELTA_TITLES: Final = {"candidate": "candidate", TWIN: "twin, the noise"}  # against the baseline


def _delta_title(figures: Figures) -> str:
    candidate, twin, beyond = (figures["delta"][name] for name in ("candidate", "twin", "beyond_noise"))
    title = (
        f"{figures['difference']} from the baseline, {candidate['items']:,} items: p99 {delta(candidate['p99'])}, "
        f"max {delta(candidate['max'])}"
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


def _delta_axis(axes: "Axes", low: float, high: float, name: str) -> None:
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
    axes.set_xlabel(f"{name} of an item (log)")


# What the comparator measures


def _measures(found: Survey, figures: Figures) -> "Figure | None":
    """A panel for each measure: all items, and below it the slices, where there are any."""
    measures = figures["measures"]
    if not measures:
        return None
    slices = [group for group in figures["slices"]["groups"] if group["measures"]][:_MOST_GROUPS]
    slices = slices if len(slices) > 1 else []
    height_in = HEIGHT_IN + (1.2 + 0.21 * len(slices) if slices else 0.0)
    figure = _figure(_measures_title(figures, sliced=bool(slices)), height_in)
    ratios = [HEIGHT_IN - 1.0, 0.8 + 0.21 * len(slices)] if slices else [1.0]
    rows = figure.subplots(len(ratios), len(measures), squeeze=False, height_ratios=ratios)
    total = found.evidence.total()
    for axes, measure in zip(rows[0], measures, strict=True):
        _draw_measure(axes, measure, total.measures[measure["measure"]].shares)
    for axes, measure in zip(rows[1] if slices else (), measures, strict=bool(slices)):
        _draw_slices(axes, slices, measure, named=axes is rows[1][0])
    rows[0][0].set_ylabel("items, % (log)")
    _legend(figure, *rows[0], *(rows[1] if slices else ()))
    return figure


def _measures_title(figures: Figures, *, sliced: bool) -> str:
    title = f"What {figures['comparator']} measures of {figures['items']:,} items"
    return title + (_of_rows(figures, "slices: ") if sliced else "")


def _draw_measure(axes: "Axes", measure: Figures, shares: Shares) -> None:
    """All items in 64 buckets; the axis reaches from full agreement to the worst that was seen."""
    counts = np.array([shares.counts.get(bucket, 0) for bucket in range(MEASURE_BUCKETS)], np.float64)
    edges = np.linspace(measure["low"], measure["high"], MEASURE_BUCKETS + 1)
    least = 50 / measure["items"]
    percent = np.maximum(100 * counts / measure["items"], least)
    axes.stairs(percent, edges, baseline=least, fill=True, color=_COLOURS["candidate"], alpha=0.45)
    axes.axvline(measure["mean"], color="black", linestyle=":", label="mean")
    axes.axvline(
        measure["bound"],
        color=_COLOURS["candidate"],
        linestyle="--",
        linewidth=1,
        label="95 % of the items agree as much",
    )
    axes.set_yscale("log")
    axes.set_ylim(least, 150)
    axes.yaxis.set_major_formatter("{x:g}")
    _measure_axis(axes, measure, [*edges[:-1][counts > 0].tolist(), *edges[1:][counts > 0].tolist()])
    axes.set_title(f"{measure['measure']}: mean {measured(measure['mean'])}")
    axes.set_xlabel(f"{measure['measure']}; full agreement: {measure[measure['agrees']]:g}")


def _measure_axis(axes: "Axes", measure: Figures, seen: Sequence[float]) -> None:
    """From full agreement to the worst that was seen, with some room."""
    best = measure[measure["agrees"]]
    low, high = min(best, *seen), max(best, *seen)
    room = 0.04 * (high - low)
    axes.set_xlim(low - room, high + room)


def _draw_slices(axes: "Axes", slices: Sequence[Figures], measure: Figures, *, named: bool) -> None:
    """A line for each slice, the largest first: the mean, and what 95 % of its items agree as much as."""
    of = {at: group["measures"].get(measure["measure"]) for at, group in enumerate(slices)}
    shown = {at: each for at, each in of.items() if each is not None}
    if shown:
        means = np.array([each["mean"] for each in shown.values()])
        bounds = np.array([each["bound"] for each in shown.values()])
        reach = np.maximum([means - bounds, bounds - means], 0.0)
        style: Any = {"fmt": "o", "color": _COLOURS["candidate"], "markersize": 4, "linewidth": 1, "capsize": 2}
        axes.errorbar(means, list(shown), xerr=reach, label="mean of a slice, whisker to 95 % of its items", **style)
        _measure_axis(axes, measure, [*means.tolist(), *bounds.tolist()])
    axes.axvline(measure["mean"], color="black", linestyle=":")
    names = [f"{short(group['slice'])}  ({group['items']:,})" for group in slices] if named else [""] * len(slices)
    axes.set_yticks(range(len(slices)), names)
    axes.set_ylim(len(slices) - 0.4, -0.6)
    axes.set_xlabel(measure["measure"])
    if named:
        axes.set_ylabel("slice (items)")


# Service time and memory, by batch size


def _service(found: Survey, figures: Figures) -> "Figure | None":
    entries = figures["service"]
    clocks = [clock for clock in _CLOCKS if any(entry["clock"] == clock for entry in entries)]
    if not clocks:
        return None
    figure = _figure(_service_title(figures, clocks))
    panels = figure.subplots(1, len(clocks), squeeze=False)[0]
    for axes, clock in zip(panels, clocks, strict=True):
        _draw_sizes(axes, [entry for entry in entries if entry["clock"] == clock], "ms", 1.0, panels=len(clocks))
        axes.set_title(_CLOCKS[clock])
        axes.set_ylabel(f"ms a batch{_logarithmic(axes)}: p50, whisker to p95")
    _legend(figure, panels[0])
    return figure


def _service_title(figures: Figures, clocks: Sequence[str]) -> str:
    ratios = {clock: figures["ratios"][clock] for clock in clocks}
    said = [f"{_SHORT_CLOCKS[clock]} × {ratio['p50']:.2f}" for clock, ratio in ratios.items() if ratio is not None]
    if not said:
        title = "Service time by batch size; no twin ran, and the baseline has another priority than the candidate"
        return title + _of_rows(figures)
    n = max(ratio["n"] for ratio in ratios.values() if ratio is not None)
    title = f"Service time, candidate / twin in the same batch: {', '.join(said)} (medians of {n:,} batches)"
    return title + _of_rows(figures)


def _memory(found: Survey, figures: Figures) -> "Figure | None":
    entries = figures["memory"]
    if not entries:
        return None
    figure = _figure(_memory_title(figures))
    left, right = figure.subplots(1, 2)
    _draw_sizes(left, entries, "bytes", 1e-6, panels=2)
    largest = max(entry[side]["max_bytes"] for entry in entries for side in SIDES if entry[side] is not None)
    limit = figures["memory_limit_bytes"]
    if 0 < limit <= _NEAR * largest:
        left.axhline(limit / 1e6, label=f"limit, {size(limit)}", **_LIMIT_LINE)
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
    return (f"{title}\nper 1000 batches: {', '.join(slopes)}" if slopes else title) + _of_rows(figures)


def _draw_trends(axes: "Axes", found: Survey) -> None:
    """A point for each block of time, and the line through all of them.

    Sides run unlike numbers of batches in the same time: their runs lie on each other as shares of the whole.
    """
    for side, blocks in found.distributions.memory.items():
        trend, colour = blocks.trend(), _COLOURS[side]
        batches, levels = np.array(trend.batches), np.array(trend.levels)
        run = 100 * batches / trend.n
        axes.plot(run, levels / 1e6, _MARKERS[side], color=colour, markersize=4, alpha=0.6, markeredgewidth=0)
        if trend.slope is not None:
            line = trend.mean + trend.slope / 1000 * (batches - trend.middle)
            axes.plot(run, line / 1e6, color=colour, linewidth=1.6, linestyle="-" if side != TWIN else "--")
    axes.margins(y=0.25)
    axes.ticklabel_format(axis="both", style="plain", useOffset=False)
    axes.set_title("over the run, at about equal batch size; least squares")
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the batches that the side ran")
    axes.set_ylabel("MB a batch: means of blocks of time")


def _draw_sizes(axes: "Axes", entries: Sequence[Figures], unit: str, scale: float, *, panels: int) -> None:
    """The median and p95 of each side at each batch size; above, how the candidate compares with the twin."""
    heights, rotated = [], len(entries) * panels > _MOST_UPRIGHT
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
    _scale(axes, heights, _ROTATED_HEADROOM if rotated else _HEADROOM)
    text: Any = {"ha": "center", "va": "top", "fontsize": 8, "rotation": 90 if rotated else 0}
    for place, entry in enumerate(entries):
        if entry["ratio"] is not None:
            axes.text(place, 0.99, f"× {entry['ratio']['p50']:.2f}", transform=axes.get_xaxis_transform(), **text)
    between = " " if rotated else "\n"
    names = [f"{batch_rows(entry)}{between}({_most_batches(entry):,})" for entry in entries]
    axes.set_xticks(range(len(entries)), names, rotation=text["rotation"])
    axes.set_xlim(-0.6, len(entries) - 0.4)
    axes.grid(visible=False, axis="x")
    then = "\n" if panels > _MOST_WIDE else "; "
    axes.set_xlabel(f"{_ROWS}{then}above: candidate / twin" if _any_ratio(entries) else _ROWS)


def _most_batches(entry: Figures) -> int:
    """How many batches the side ran that ran the most."""
    return max(int(entry[side]["n"]) for side in SIDES if entry[side] is not None)


def _any_ratio(entries: Sequence[Figures]) -> bool:
    return any(entry["ratio"] is not None for entry in entries)


def _scale(axes: "Axes", heights: Sequence[float], headroom: float) -> None:
    """From zero, or logarithmic where heights are too unlike for that; with room for a line of text on top."""
    low, high = min(heights), max(heights)
    if low > 0 and high > _UNLIKE * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.5, high * (high / low) ** (headroom - 1) * 1.2)
        _plain_ticks(axes)
    else:
        axes.set_ylim(0, headroom * high or 1.0)


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
        _draw_shares(axes, others, color=_COLOURS["candidate"], fmt="o", label="label or slice")
        _draw_shares(axes, lower, color=_LIMIT, fmt="D", label="one whose interval is below that")
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
    title = f"{title}; lowest: {', '.join(lowest)}" if lowest else title
    return title + _of_rows(figures, "labels: ")


DRAWINGS: Final[Mapping[str, Callable[[Survey, Figures], "Figure | None"]]] = {
    "delta.png": _delta,
    "measures.png": _measures,
    "service.png": _service,
    "memory.png": _memory,
    "agreement.png": _agreement,
}
