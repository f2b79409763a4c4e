"""``understudy shadow report``: the distributions behind a rollout's figures, printed and drawn."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout.entries import read_entries
from rollout.errors import RolloutError
from rollout.folder import JOURNAL_FILE
from rollout.gates.text import e_value, number
from rollout.machine import TERMINAL
from serving.cli.report import find_rollout
from serving.cli.shadow_figures import MEASURE_QUANTILE, document
from serving.cli.shadow_plots import NoMatplotlibError, draw
from serving.cli.shadow_text import batch_rows, delta, growth, least_agreeing, measured, share, short, size
from serving.cli.show import accounting_line
from serving.errors import ServingError
from shadow.distributions import MOST_BLOCKS, WORST, survey
from shadow.exemplars import FOLDER, inventory
from shadow.rows import ARMS, SIDES

_EVIDENCE: Final = "evidence"
_DRAWINGS: Final = "distributions"
_MOST_CASES: Final = 1000
_LISTED: Final = 25  # groups, in text
_WIDTH: Final = 120  # of text that is not for a terminal


def report(
    rollout: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER_OR_DEPLOYMENT",
            help="A rollout's folder or the evidence in it, a deployment id, or a model's name (its latest rollout).",
        ),
    ],
    reports: Annotated[Path, typer.Option(help="The folder of all rollouts' folders.")] = Path("reports"),
    out: Annotated[
        Path | None, typer.Option(help="Where drawings go; else 'distributions' in the rollout's folder.")
    ] = None,
    worst: Annotated[int, typer.Option(min=0, max=_MOST_CASES, help="How many of the worst items are shown.")] = WORST,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Print and draw what the evidence of a rollout looks like, ended or still running.

    Differences beside the noise floor, what the comparator measures, service time and memory by batch size, agreement
    by label and slice, and the worst items. Everything is counted anew from the raw rows; whether they are those that
    decisions rest on, 'understudy evidence verify' says. Segments that 'understudy evidence compact' has turned into
    checkpoints count by their sums; what only their rows could tell is named as missing.
    """
    folder = find_evidence(rollout, reports)
    root = folder.parent if folder.resolve().name == _EVIDENCE else folder
    found = survey(folder, worst=worst)
    kept = inventory(root / FOLDER)
    figures = {**document(found), "rollout": _standing(root), "exemplars": None if kept is None else asdict(kept)}
    if not as_json:
        show(figures)
    try:
        drawings = draw(found, figures, out or root / _DRAWINGS)
    except NoMatplotlibError as error:
        drawings = []
        typer.echo(f"understudy: {error}", err=True)
    except OSError as error:
        raise ServingError(f"{out or root / _DRAWINGS}: cannot be drawn to: {error.strerror}; see --out") from error
    if as_json:
        files = {"drawings": [str(path) for path in drawings]}
        typer.echo(orjson.dumps({**figures, **files}, option=orjson.OPT_INDENT_2).decode())
    elif drawings:
        typer.echo(f"drawn: {', '.join(path.name for path in drawings)} in {drawings[0].parent}")


def find_evidence(name: str, reports: Path) -> Path:
    """The folder of evidence that a name stands for: of a folder, a deployment id or a model's latest rollout.

    Raises:
        RolloutError: there is no such folder, and no such rollout in ``reports``.
    """
    if os.sep in name and not Path(name).is_dir():
        raise RolloutError(f"{name}: no such folder; expected a rollout's, <reports>/<deployment_id>")
    root = Path(name) if Path(name).is_dir() else find_rollout(reports, name)
    return root / _EVIDENCE if (root / _EVIDENCE).is_dir() else root


def _standing(root: Path) -> dict[str, Any] | None:
    """How the rollout stands by its journal; None for evidence that no journal lies beside.

    Raises:
        JournalError: the journal is damaged.
    """
    entries = read_entries(root / JOURNAL_FILE) if (root / JOURNAL_FILE).is_file() else []
    if not entries:
        return None
    last = entries[-1]
    state, weight = last.get("state"), last.get("weight")
    return {"state": state, "weight": weight, "ended": state in TERMINAL}


def show(figures: Mapping[str, Any]) -> None:
    """Print all figures of ``document``."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    for part in _parts(figures):
        if isinstance(part, str):
            console.print(part, markup=False, soft_wrap=True)
        else:
            console.print(part)


def _parts(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    yield from _summary_lines(figures)
    yield from _finding_lines(figures)
    yield from _delta_lines(figures)
    yield from _measure_lines(figures)
    yield from _service_lines(figures)
    yield from _memory_lines(figures)
    yield from _all_batches_lines(figures)
    yield from _latency_lines(figures["latency"])
    yield from _group_lines(f"label, the baseline's top-1{_of_rows(figures)}", "label", figures)
    yield from _group_lines("slice", "slice", figures)
    yield from _accuracy_lines(figures)
    yield from _worst_lines(figures)


def _of_rows(figures: Mapping[str, Any]) -> str:
    """What is added to the title of a table that only rows can fill."""
    return "" if figures["checkpoints"] is None else " (of the rows that remain)"


def _summary_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    requests = figures["requests"]
    yield (
        f"{figures['deployment_id']}: {figures['rows']:,} rows in {figures['segments']:,} segments of "
        f"{figures['chains']} chains{_span(figures)}"
    )
    standing = figures["rollout"]
    if standing is not None and not standing["ended"]:
        yield f"still running ({standing['state']}, {standing['weight']} %): the figures are of what is recorded so far"
    yield from _checkpoint_lines(figures)
    yield (
        f"{figures['items']:,} items compared by {figures['comparator']} of {figures['output']}: {_headline(figures)}, "
        f"{figures['over_tolerance']:,} over the tolerance of {figures['tolerance']:g}"
    )
    yield (
        f"{requests['pairs']:,} requests with an end on both sides: {requests['candidate_only_failed']:,} that only "
        f"the candidate failed, {requests['baseline_only_failed']:,} that only the baseline failed"
    )
    yield f"mirror (items): {accounting_line(figures['mirror'])}"
    yield from _exemplar_lines(figures["exemplars"])


def _span(figures: Mapping[str, Any]) -> str:
    if figures["first_at"] is None:
        return ""
    span = f"from {figures['first_at']} to {figures['last_at']}"
    return f", {span}" if figures["checkpoints"] is None else f"; those that remain are {span}"


def _checkpoint_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    gone = figures["checkpoints"]
    if gone is not None:
        yield (
            f"checkpoints stand for {gone['rows']:,} of the rows ({gone['items']:,} items, {gone['labelled_items']:,} "
            f"of them labelled; {gone['segments']:,} segments)"
        )
        yield "  by their sums they count in all that follows but what is said to be of the rows that remain:"
        yield "  percentiles of time and memory, candidate / twin, trends, figures by label, and the worst items"


def _headline(figures: Mapping[str, Any]) -> str:
    """What two versions have in common: answers, or, where there are none, the means of what is measured."""
    if figures["agreement"] is not None or not figures["measures"]:
        return f"top-1 agreement {share(figures['agreement'])}"
    means = [f"{each['measure']} {measured(each['mean'])}" for each in figures["measures"]]
    return f"means: {', '.join(means)}"


def _exemplar_lines(kept: Mapping[str, Any] | None) -> Iterator[str]:
    if kept is None:
        return
    yield f"exemplars: {kept['worst']:,} of the worst and a sample of {kept['sample']:,}, {size(kept['nbytes'])}"
    if kept["dropped"] or kept["errors"]:
        yield (
            f"  not all: {kept['dropped']:,} requests were dropped for want of time, and {kept['errors']:,} attempts "
            "failed; the log of the shadow process says why"
        )


def _finding_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    found = figures["findings"]
    if not found:
        yield f"\nno structural findings in {figures['requests']['pairs']:,} requests"
        return
    table = _table("structural findings (requests)", "", "candidate", "where the twin ran", "twin", "")
    for each in found:
        candidate = f"{each['candidate']:,} of {each['requests']:,}"
        beside = "–" if each["beside_twin"] is None else f"{each['beside_twin']:,} of {each['twin_requests']:,}"
        twin = f"{each['twin']:,} of {each['twin_requests']:,}"
        verdict = "established" if each["established"] else "not established"
        _row(table, each["finding"], candidate, beside, twin, verdict)
    yield table


_DELTA_LINES: Final = ("p50", "p90", "p99", "max", "mean")


def _delta_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    deltas = figures["delta"]
    sides = [deltas["candidate"], deltas["twin"]]
    if not any(sides):
        return
    table = _table(f"{figures['difference']} of an item", "", "candidate", "twin: noise")
    _row(table, "items", *("–" if side is None else f"{side['items']:,}" for side in sides))
    for name in _DELTA_LINES:
        _row(table, name, *(delta(side and side[name]) for side in sides))
    _row(table, "over tolerance", *("–" if side is None else f"{side['over_tolerance']:,}" for side in sides))
    yield table
    beyond = deltas["beyond_noise"]
    if beyond is None:
        yield "no twin ran: there is no noise floor"
    else:
        floor = f"the noise floor, {delta(beyond['floor'])} (the twin's p99)"
        yield f"beyond {floor}: {beyond['items']:,} items, {share(beyond['share'])}"


def _measure_lines(figures: Mapping[str, Any]) -> Iterator[Table]:
    if figures["measures"]:
        most = f"{100 * MEASURE_QUANTILE:.0f} % of the items"
        table = _table(f"measures of {figures['comparator']}", "", "items", "mean", most, "full agreement")
        for each in figures["measures"]:
            sign = "≤" if each["agrees"] == "low" else "≥"
            bound = f"{sign} {measured(each['bound'])}"
            _row(
                table, each["measure"], f"{each['items']:,}", measured(each["mean"]), bound, f"{each[each['agrees']]:g}"
            )
        yield table


def _service_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    entries = figures["service"]
    if not entries:
        return
    title = f"service time of a batch, ms: p50 / p95{_of_rows(figures)}"
    table = _table(title, "rows", "clock", *SIDES, "candidate / twin", "batches")
    for entry in entries:
        cells = [_pair_of(entry[side], "ms", 1.0) for side in SIDES]
        _row(table, batch_rows(entry), entry["clock"], *cells, _median(entry["ratio"]), _counts(entry))
    yield table
    batches = figures["batches"]
    if batches["answered_by_candidate"]:
        yield (
            f"times and memory: without the {batches['answered_by_candidate']:,} of {batches['all']:,} batches that "
            "the candidate answered, where priorities are the other way round"
        )


def _memory_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    entries = figures["memory"]
    if not entries:
        return
    title = f"peak memory of a batch, MB: p50 / p95 / max{_of_rows(figures)}"
    table = _table(title, "rows", *SIDES, "candidate / twin", "batches")
    for entry in entries:
        cells = [_triple_of(entry[side]) for side in SIDES]
        _row(table, batch_rows(entry), *cells, _median(entry["ratio"]), _counts(entry))
    yield table
    for side, trend in figures["trend"].items():
        slope = growth(trend["bytes_per_1000_batches"], trend["standard_error"])
        yield f"{side}: memory per 1000 batches {slope}, at about equal batch size, over {trend['readings']:,} batches"
        if trend["log_e_rising"] is not None:
            yield (
                f"{' ' * len(side)}  later blocks of time higher {trend['rises']}, lower {trend['falls']}: e-value of "
                f"a rise {e_value(trend['log_e_rising'])} ({trend['blocks']} blocks, {MOST_BLOCKS} at most)"
            )


def _all_batches_lines(figures: Mapping[str, Any]) -> Iterator[Table]:
    """Where rows are gone: what sums tell of all batches, those that the candidate answered among them."""
    if figures["checkpoints"] is None or not figures["all_batches"]:
        return
    columns = ("side", "batches", "wall, ms", "CPU, ms", "GPU, ms", "memory, MB", "largest, MB")
    table = _table("all batches, those of checkpoints too, whoever answered: means", "rows", *columns)
    for entry in figures["all_batches"]:
        for side in SIDES:
            if (sums := entry[side]) is not None:
                times = (_plain(sums[f"{clock}_mean_ms"]) for clock in ("wall", "cpu", "gpu"))
                memory = (_plain(sums[f"memory_{name}_bytes"], 1e-6) for name in ("mean", "max"))
                _row(table, batch_rows(entry), side, f"{sums['batches']:,}", *times, *memory)
    yield table


def _plain(value: float | None, scale: float = 1.0) -> str:
    return "–" if value is None else number(value * scale)


def _latency_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    if entries:
        table = _table("latency from end to end, ms", "stage", "answered by", "n", "p50", "p95", "p99")
        for each in entries:
            quantiles = (number(each[name]) for name in ("p50_ms", "p95_ms", "p99_ms"))
            _row(table, str(each["stage"]), each["side"], f"{each['n']:,}", *quantiles)
        yield table


def _group_lines(title: str, key: str, figures: Mapping[str, Any]) -> Iterator[str | Table]:
    found = figures[f"{key}s"]
    groups = found["groups"]
    if not groups or (key == "slice" and len(groups) == 1 and not groups[0][key]):
        return
    named = groups[0]["agreement"] is not None
    shown = least_agreeing(groups, _LISTED) if named else groups[:_LISTED]
    common = ("over tolerance", _largest(figures))
    if named:
        table = _table(f"top-1 agreement by {title}", key, "items", "agreement", "95 %", *common)
    else:
        means = [each["measure"] for each in figures["measures"]]
        table = _table(f"means by {title}{_of_measures(figures)}", key, "items", *means, *common)
    for each in shown:
        _row(table, short(each[key]), *_group_cells(each, figures))
    if found["others"] is not None:
        _row(table, "all others", *_group_cells(found["others"], figures))
    yield table
    if len(shown) < len(groups):
        order = "those that agree least" if named else "the most frequent"
        yield f"{len(shown)} of {len(groups):,}: {order}; --json has all"


def _largest(figures: Mapping[str, Any]) -> str:
    name: str = figures["difference"]
    return name if name.startswith("max ") else f"largest {name}"


def _of_measures(figures: Mapping[str, Any]) -> str:
    return "" if figures["checkpoints"] is None else " (counts of all, means of the rows that remain)"


def _group_cells(group: Mapping[str, Any], figures: Mapping[str, Any]) -> Iterable[str]:
    counts = f"{group['over_tolerance']:,}", delta(group["max_delta"])
    if group["agreement"] is None:
        found = (group["measures"].get(each["measure"]) for each in figures["measures"])
        return (f"{group['items']:,}", *(measured(each and each["mean"]) for each in found), *counts)
    interval = f"{share(group['low'])} … {share(group['high'])}"
    return (f"{group['items']:,}", share(group["agreement"]), interval, *counts)


def _accuracy_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    found = figures["accuracy"]
    groups = found["groups"]
    if found["all"] is None:
        return
    table = _table(f"accuracy by true label{_of_rows(figures)}", "label", "items", *map(str, ARMS))
    for each in groups[:_LISTED]:
        _row(table, str(each["label"]), *_accuracy_cells(each))
    if found["others"] is not None:
        _row(table, "all others", *_accuracy_cells(found["others"]))
    everything = "all" if figures["checkpoints"] is None else "all, checkpoints too"
    _row(table, everything, *_accuracy_cells(found["all"]))
    yield table
    if len(groups) > _LISTED:
        yield f"{_LISTED} of {len(groups):,}: the most frequent; --json has all"


def _accuracy_cells(group: Mapping[str, Any]) -> Iterable[str]:
    sides = (group[str(side)] for side in ARMS)
    spelled = (f"{share(each['accuracy'])} ({share(each['low'])} … {share(each['high'])})" for each in sides)
    return (f"{group['items']:,}", *spelled)


def _worst_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    cases = figures["worst"]
    if cases:
        yield f"\nthe worst items{_of_rows(figures)}"
    for rank, case in enumerate(cases, start=1):
        of_slice = f", slice {short(case['slice'])}" if case["slice"] else ""
        noise = "" if case["twin_max_delta"] is None else f" (twin {delta(case['twin_max_delta'])})"
        answers = (_answer(case[f"{side}_top1"]) for side in ARMS)
        top1 = "" if figures["agreement"] is None else f", top-1 {' → '.join(answers)}"
        yield (
            f"{rank:3}. {figures['difference']} {delta(case['max_delta'])}{noise}: request {case['request_id']!r} item "
            f"{case['item']}{of_slice}{top1}"
        )
        scores = zip(case["places"], case["baseline_scores"], case["candidate_scores"], strict=True)
        values = ", ".join(f"{place}: {left:.4g} → {right:.4g}" for place, left, right in scores)
        yield f"     {case['file']} row {case['row']}; scores {values or 'not kept'}"


def _pair_of(spread: Mapping[str, Any] | None, unit: str, scale: float) -> str:
    if spread is None:
        return "–"
    return " / ".join(number(spread[f"{name}_{unit}"] * scale) for name in ("p50", "p95"))


def _triple_of(spread: Mapping[str, Any] | None) -> str:
    return "–" if spread is None else f"{_pair_of(spread, 'bytes', 1e-6)} / {number(spread['max_bytes'] / 1e6)}"


def _median(ratio: Mapping[str, Any] | None) -> str:
    return "–" if ratio is None else f"{ratio['p50']:.2f} ({ratio['n']:,})"


def _counts(entry: Mapping[str, Any]) -> str:
    return " ".join("–" if entry[side] is None else f"{entry[side]['n']:,}" for side in SIDES)


def _answer(top1: int | None) -> str:
    return "–" if top1 is None or top1 < 0 else str(top1)


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim"
    )
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    table.add_row(*(Text(cell) for cell in cells))
