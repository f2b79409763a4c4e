"""The rows as Markdown: every figure beside its goal."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.mirror_tax.figures import (
    ACCOUNTED,
    ENDS,
    LATENCY_GOAL,
    SHARE,
    THROUGHPUT_GOAL,
    Figure,
    Row,
    count_goals,
    missed,
)
from benchmarks.mirror_tax.loads import MODES, Mode, Part
from benchmarks.report import origin, table

_MODES: Final[Mapping[Mode, str]] = {
    Mode.PLAIN: "no rollout",
    Mode.BESIDE: "beside idle-class work",
    Mode.OFF: "off",
    Mode.ON: "on",
}
_NAMES: Final[Mapping[str, str]] = {"requests_per_s": "requests/s", "p50_ms": "p50", "p99_ms": "p99"}
_FORMATS: Final[Mapping[str, str]] = {SHARE: ".1%", ACCOUNTED: ".3%"}  # one item of thousands must not be rounded off
_HEADINGS: Final[Mapping[Part, str]] = {
    Part.SATURATION: "Throughput at saturation, in shadow",
    Part.LOAD: "Latency by load, in shadow",
    Part.CANARY: "Latency by load, in canary",
    Part.FAULTS: "Latency beside a candidate that does not behave",
    Part.SIZES: "Where mirrored images end",
}


def render(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The result as Markdown; ``document`` is what goes into the JSON file."""
    parts = ["# What mirroring costs the clients", origin(document["environment"]), _how(document)]
    for part, heading in _HEADINGS.items():
        mine = [row for row in rows if row.load.part is part]
        if mine:
            parts += [f"## {heading}", *_TABLES[part](mine)]
    return "\n\n".join([*parts, "## Goals", _verdict(rows)])


def _how(document: Mapping[str, Any]) -> str:
    settings = document["settings"]
    commits = ", ".join(commit[:12] for commit in document["commits"])
    text = (
        f"Medians over {settings['rounds']} rounds (and their range), {settings['seconds']:g} s for each load in each "
        f"mode, after {settings['lead_in_s']:g} s of the same; measured at commit {commits}. Each mode is a model of "
        "its own in one service, all with the same artifact for baseline and candidate: *on* has a rollout of which "
        "everything is mirrored, *off* one of which nothing is, *no rollout* none; *beside idle-class work* is no "
        "rollout either, but each core has a process of the lowest scheduling class that counts: what the kernel "
        "charges for whatever fills idle time, be it mirroring or not. A ratio is the median of the rounds' own. "
        "*Mirrored* is the share of the sampled items that the candidate ran as well, once nothing was "
        "pending any more: what still waited when a load ended is in it, the lane's bound at most."
    )
    saturation = "; ".join(f"{name} {rate:.0f}/s" for name, rate in document["saturation"].items())
    if saturation:
        text += (
            f" Loads are shares of what the open loop gets answered at most while nothing is mirrored: {saturation}."
        )
    return text


def _saturation(rows: Sequence[Row]) -> list[str]:
    modes = MODES[Part.SATURATION]
    header = ["load", *(f"{_MODES[mode]}: requests/s" for mode in modes), *_ratio_header(rows), "mirrored"]
    body = [
        [
            row.load.title,
            *(f"{row.medians[mode.value]['requests_per_s']:.0f}" for mode in modes),
            *_ratio_cells(row),
            _share_cell(row),
        ]
        for row in rows
    ]
    return [table(header, body)]


def _latency(rows: Sequence[Row]) -> list[str]:
    modes = MODES[rows[0].load.part]
    names = " / ".join(_MODES[mode] for mode in modes)
    header = ["load", f"{names}: p50 ms", "p99 ms", "cores busy", *_ratio_header(rows), "mirrored", "failed requests"]
    body = [
        [
            row.load.title,
            *(" / ".join(f"{row.medians[mode.value][name]:.2f}" for mode in modes) for name in ("p50_ms", "p99_ms")),
            " / ".join(f"{row.medians[mode.value]['busy']:.0%}" for mode in modes),
            *_ratio_cells(row),
            _share_cell(row),
            str(row.failed),
        ]
        for row in rows
    ]
    return [table(header, body), *(f"{row.load.title}: {reason}" for row in rows for reason in row.ended)]


def _canary(rows: Sequence[Row]) -> list[str]:
    return [
        "Off and on have the same weight. The p99 that is judged is less than the one measured by one full batch of "
        "the model alone.",
        *_latency(rows),
    ]


def _sizes(rows: Sequence[Row]) -> list[str]:
    header = ["load", "answered", "sampled", *ENDS, "pending", "answered requests accounted for"]
    body = [
        [
            row.load.title,
            str(row.answered),
            *(str(row.account.get(name, 0)) for name in ("sampled", *ENDS, "pending")),
            _cell(ACCOUNTED, row.figures[ACCOUNTED]) if ACCOUNTED in row.figures else "–",
        ]
        for row in rows
    ]
    return [table([each.replace("_", " ") for each in header], body)]


_TABLES: Final = {
    Part.SATURATION: _saturation,
    Part.LOAD: _latency,
    Part.CANARY: _canary,
    Part.FAULTS: _latency,
    Part.SIZES: _sizes,
}


def _ratio_names(row: Row) -> list[str]:
    return [name for name in row.figures if "/" in name]


def _ratio_header(rows: Sequence[Row]) -> list[str]:
    goal = LATENCY_GOAL if rows[0].load.share else THROUGHPUT_GOAL
    bound = f" ({goal.sign} {goal.bound:g})"
    return [_in_words(name) + (bound if rows[0].figures[name].goal else "") for name in _ratio_names(rows[0])]


def _in_words(name: str) -> str:
    figure, _, other = name.partition("/")
    if not other:
        return figure
    pair = (Mode.BESIDE, Mode.PLAIN) if other == Mode.BESIDE else (Mode.ON, Mode(other))
    return f"{_NAMES.get(figure, figure)} {' / '.join(_MODES[mode] for mode in pair)}"


def _ratio_cells(row: Row) -> list[str]:
    return [_cell(name, row.figures[name]) for name in _ratio_names(row)]


def _share_cell(row: Row) -> str:
    figure = row.figures.get(SHARE)
    if figure is None:
        return "–"
    goal = "" if figure.goal is None else f" ({figure.goal.sign} {figure.goal.bound:.0%})"
    return _cell(SHARE, figure) + goal


def _cell(name: str, figure: Figure) -> str:
    value, low, high = (_number(name, each) for each in (figure.value, figure.low, figure.high))
    return f"{value} ({low} … {high}){_verdict_of(name, figure)}"


def _verdict_of(name: str, figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return ", met" if figure.met else f", **missed by {_number(name, figure.missed_by)}**"


def _number(name: str, value: float) -> str:
    return format(value, _FORMATS.get(name, ".3f"))


def _verdict(rows: Sequence[Row]) -> str:
    misses = missed(rows)
    goals = count_goals(rows)
    lines = [f"- {row.load.part}: {row.load.title}: {_miss(name, row.figures[name])}" for row, name in misses]
    return f"{goals - len(misses)} of {goals} goals are met." + "".join(f"\n{line}" for line in ("", *lines) if misses)


def _miss(name: str, figure: Figure) -> str:
    return f"{_in_words(name)} {_number(name, figure.value)}, missed by {_number(name, figure.missed_by)}"
