"""``understudy shadow report``: the distributions behind a rollout's figures, printed and drawn."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rollout.bounds import rate_above
from rollout.findings import established
from rollout.gates.text import e_value, number
from serving.cli.report import find_rollout
from serving.cli.shadow_plots import NoMatplotlibError, draw
from serving.cli.shadow_text import batch_rows, delta, growth, least_agreeing, share, short
from serving.cli.show import accounting_line
from shadow.distributions import (
    MOST_BLOCKS,
    WORST,
    Agreement,
    BatchKey,
    Blocks,
    Distributions,
    Pooled,
    Quantity,
    RatioKey,
    Ratios,
    Spread,
    Survey,
    beyond_noise,
    survey,
    wilson,
)
from shadow.evidence import DELTA_UNIT, DeltaHistogram, Evidence, LabelCells, StageSums
from shadow.findings import FINDINGS
from shadow.pair import Arm
from shadow.rows import ARMS, SIDES

_EVIDENCE: Final = "evidence"
_DRAWINGS: Final = "distributions"
_MOST_CASES: Final = 1000
_LISTED: Final = 25  # groups, in text
_WIDTH: Final = 120  # of text that is not for a terminal
_CLOCKS: Final = (Quantity.WALL, Quantity.CPU, Quantity.GPU)


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
    """Print and draw what the evidence of a rollout looks like.

    Differences of scores beside the noise floor, service time and memory by batch size, agreement by label and slice,
    and the worst items. Everything is counted anew from the raw rows; whether they are those that decisions rest on,
    'understudy evidence verify' says.
    """
    folder = find_evidence(rollout, reports)
    found = survey(folder, worst=worst)
    figures = document(found)
    if not as_json:
        show(figures)
    try:
        drawings = draw(found, figures, out or _beside(folder))
    except NoMatplotlibError as error:
        drawings = []
        typer.echo(f"understudy: {error}", err=True)
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
    root = Path(name) if Path(name).is_dir() else find_rollout(reports, name)
    return root / _EVIDENCE if (root / _EVIDENCE).is_dir() else root


def _beside(evidence: Path) -> Path:
    return (evidence.parent if evidence.resolve().name == _EVIDENCE else evidence) / _DRAWINGS


def document(found: Survey) -> dict[str, Any]:
    """All figures as plain JSON values; None where there is nothing to say.

    Times are in ms, memory in bytes, shares from 0 to 1; an entry of ``service`` or ``memory`` is of batches with
    ``from_rows`` to ``to_rows`` rows, one of ``labels``, ``slices`` or ``accuracy`` of a group, the rarest last.
    """
    total, seen, header = found.evidence.total(), found.distributions, found.header
    return {
        "deployment_id": header.deployment_id,
        "comparator": header.comparator,
        "output": header.output,
        "tolerance": header.limits.tolerance,
        "memory_limit_bytes": header.limits.memory_bytes,
        "chains": found.chains,
        "segments": found.segments,
        "rows": seen.rows,
        "first_at": _time(seen.span.first),
        "last_at": _time(seen.span.last),
        "requests": {
            "pairs": total.pairs,
            "candidate_only_failed": total.candidate_only_failed,
            "baseline_only_failed": total.baseline_only_failed,
        },
        "mirror": found.account.to_json(),
        "items": total.items,
        "agreement": total.agree / total.items if seen.named else None,
        "over_tolerance": total.delta_over,
        "findings": list(_findings(seen)),
        "delta": _deltas(total),
        "batches": {"all": seen.batches, "answered_by_candidate": seen.swapped},
        "service": [entry for clock in _CLOCKS for entry in _by_size(seen, clock, "ms", 1e-3)],
        "memory": list(_by_size(seen, Quantity.MEMORY, "bytes", 1.0)),
        "ratios": {str(quantity): _ratio(seen.ratio(quantity)) for quantity in Quantity},
        "trend": {side: _trend(blocks) for side, blocks in seen.memory.items()},
        "latency": list(_latency(found.evidence)),
        "labels": _groups("label", seen.labels, named=True),
        "slices": _groups("slice", seen.slices, named=seen.named > 0),
        "accuracy": _accuracy(seen.accuracy),
        "worst": [asdict(case) for case in seen.worst.cases],
    }


def _time(at_unix_us: int | None) -> str | None:
    """ISO 8601 in UTC; of any number at all."""
    return None if at_unix_us is None else f"{np.datetime_as_string(np.datetime64(at_unix_us, 'us'), unit='s')}Z"


def _findings(seen: Distributions) -> Iterator[dict[str, Any]]:
    """What was found; ``established`` where it is more than an accident, and more than what the twin shows.

    The twin ran a share of the batches: it is compared on its own requests, and the candidate also judged by all.
    """
    for finding in FINDINGS:
        counts = seen.findings.get(str(finding))
        if counts is None:
            continue
        known = established(finding, counts.candidate, 0, seen.looked)
        if known and counts.twin:
            known = established(finding, counts.beside, counts.twin, seen.looked_beside)
        yield {
            "finding": str(finding),
            "candidate": counts.candidate,
            "requests": seen.looked,
            "beside_twin": counts.beside,
            "twin": counts.twin,
            "twin_requests": seen.looked_beside,
            "established": known,
        }


def _deltas(total: StageSums) -> dict[str, Any]:
    """The distributions of the items' max |Δscore|, and what of the candidate's is beyond the twin's."""
    noise, beyond = total.noise, beyond_noise(total)
    return {
        "candidate": _delta(total.deltas, total.delta_max_e9, total.delta_sum_max_e9, total.delta_over),
        "twin": _delta(noise.deltas, noise.delta_max_e9, noise.delta_sum_max_e9, noise.delta_over),
        "beyond_noise": None if beyond is None else asdict(beyond),
    }


def _delta(deltas: DeltaHistogram, max_e9: int, sum_e9: int, over: int) -> dict[str, Any] | None:
    if not deltas.n:
        return None
    largest = max_e9 * DELTA_UNIT
    quantiles = {name: deltas.quantile(q) or 0.0 for name, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}
    return {
        "items": deltas.n,
        **{name: min(value, largest) for name, value in quantiles.items()},
        "max": largest,
        "mean": sum_e9 * DELTA_UNIT / deltas.n,
        "over_tolerance": over,
    }


def _by_size(seen: Distributions, quantity: Quantity, unit: str, scale: float) -> Iterator[dict[str, Any]]:
    for first in seen.sizes:
        sides = {side: _spread(seen.spreads.get(BatchKey(first, side, quantity)), unit, scale) for side in SIDES}
        if any(sides.values()):
            ratio = _ratio(seen.ratios.get(RatioKey(first, quantity), Ratios()))
            clock = {} if quantity is Quantity.MEMORY else {"clock": str(quantity)}
            yield {"from_rows": first, "to_rows": 2 * first - 1, **clock, **sides, "ratio": ratio}


def _spread(spread: Spread | None, unit: str, scale: float) -> dict[str, Any] | None:
    if spread is None or spread.mean is None:
        return None
    return {
        "n": spread.n,
        f"p50_{unit}": (spread.quantile(0.5) or 0.0) * scale,
        f"p95_{unit}": (spread.quantile(0.95) or 0.0) * scale,
        f"mean_{unit}": spread.mean * scale,
        f"max_{unit}": spread.largest * scale,
    }


def _ratio(ratios: Ratios) -> dict[str, Any] | None:
    """The median of candidate / twin over the batches that both ran."""
    return {"n": ratios.n, "p50": ratios.quantile(0.5)} if ratios.n else None


def _trend(blocks: Blocks) -> dict[str, Any]:
    trend = blocks.trend()
    signs = trend.rises, trend.falls
    return {
        "readings": trend.n,
        "blocks": len(trend.levels),
        "bytes_per_1000_batches": trend.slope,
        "standard_error": trend.error,
        "rises": trend.rises,
        "falls": trend.falls,
        "log_e_rising": float(rate_above(0.5).log_e(signs)) if any(signs) else None,
    }


def _latency(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """From end to end, of what each version answered to clients, by the rollout's stages."""
    for stage in sorted(evidence.stages):
        sums = evidence.stage(stage)
        for side, arm in zip(ARMS, (sums.baseline, sums.candidate), strict=True):
            if arm.latency.n:
                quantiles = {f"p{round(100 * q)}_ms": arm.latency.quantile_ms(q) for q in (0.5, 0.95, 0.99)}
                yield {"stage": stage, "side": str(side), "n": arm.latency.n, **quantiles}


def _groups(name: str, pooled: Pooled[Any, Agreement], *, named: bool) -> dict[str, Any]:
    return {
        "groups": [
            {name: label, **_agreement(each, named=named)}
            for label, each in sorted(pooled.by_label.items(), key=lambda group: (-group[1].items, group[0]))
        ],
        "others": None if pooled.others is None else _agreement(pooled.others, named=named),
    }


def _agreement(group: Agreement, *, named: bool) -> dict[str, Any]:
    lower, upper = wilson(group.agree, group.items)
    return {
        "items": group.items,
        "agreement": group.agree / group.items if named else None,
        "low": lower if named else None,
        "high": upper if named else None,
        "over_tolerance": group.over,
        "max_delta": group.max_delta,
    }


def _accuracy(pooled: Pooled[int, LabelCells]) -> dict[str, Any]:
    return {
        "groups": [
            {"label": label, **_right(cells)}
            for label, cells in sorted(pooled.by_label.items(), key=lambda group: (-group[1].n, group[0]))
        ],
        "others": None if pooled.others is None else _right(pooled.others),
    }


def _right(cells: LabelCells) -> dict[str, Any]:
    """The share of labelled items that each side had right, with its interval."""
    right = {Arm.BASELINE: cells.both + cells.baseline_only, Arm.CANDIDATE: cells.both + cells.candidate_only}
    sides = {str(side): {"accuracy": count / cells.n, **_interval(count, cells.n)} for side, count in right.items()}
    return {"items": cells.n, **sides}


def _interval(count: int, n: int) -> dict[str, float]:
    lower, upper = wilson(count, n)
    return {"low": lower, "high": upper}


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
    yield from _service_lines(figures)
    yield from _memory_lines(figures)
    yield from _latency_lines(figures["latency"])
    yield from _group_lines("label, the baseline's top-1", "label", figures["labels"])
    yield from _group_lines("slice", "slice", figures["slices"])
    yield from _accuracy_lines(figures["accuracy"])
    yield from _worst_lines(figures["worst"])


def _summary_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    requests, output = figures["requests"], figures["output"]
    yield (
        f"{figures['deployment_id']}: {figures['rows']:,} rows in {figures['segments']:,} segments of "
        f"{figures['chains']} chains, from {figures['first_at']} to {figures['last_at']}"
    )
    yield (
        f"{figures['items']:,} items compared by {figures['comparator']} of {output}: top-1 agreement "
        f"{share(figures['agreement'])}, {figures['over_tolerance']:,} over the tolerance of {figures['tolerance']:g}"
    )
    yield (
        f"{requests['pairs']:,} requests with an end on both sides: {requests['candidate_only_failed']:,} that only "
        f"the candidate failed, {requests['baseline_only_failed']:,} that only the baseline failed"
    )
    yield f"mirror (items): {accounting_line(figures['mirror'])}"


def _finding_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    found = figures["findings"]
    if not found:
        yield f"\nno structural findings in {figures['requests']['pairs']:,} requests"
        return
    table = _table("structural findings (requests)", "", "candidate", "where the twin ran", "twin", "")
    for each in found:
        candidate = f"{each['candidate']:,} of {each['requests']:,}"
        beside = f"{each['beside_twin']:,} of {each['twin_requests']:,}"
        verdict = "established" if each["established"] else "not established"
        _row(table, each["finding"], candidate, beside, f"{each['twin']:,}", verdict)
    yield table


_DELTA_LINES: Final = ("p50", "p90", "p99", "max", "mean")


def _delta_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    deltas = figures["delta"]
    sides = [deltas["candidate"], deltas["twin"]]
    if not any(sides):
        return
    table = _table("max |Δscore| of an item", "", "candidate", "twin: noise")
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


def _service_lines(figures: Mapping[str, Any]) -> Iterator[str | Table]:
    entries = figures["service"]
    if not entries:
        return
    table = _table("service time of a batch, ms: p50 / p95", "rows", "clock", *SIDES, "candidate / twin", "batches")
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
    table = _table("peak memory of a batch, MB: p50 / p95 / max", "rows", *SIDES, "candidate / twin", "batches")
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


def _latency_lines(entries: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    if entries:
        table = _table("latency from end to end, ms", "stage", "answered by", "n", "p50", "p95", "p99")
        for each in entries:
            quantiles = (number(each[name]) for name in ("p50_ms", "p95_ms", "p99_ms"))
            _row(table, str(each["stage"]), each["side"], f"{each['n']:,}", *quantiles)
        yield table


def _group_lines(title: str, key: str, found: Mapping[str, Any]) -> Iterator[str | Table]:
    groups = found["groups"]
    if not groups or (key == "slice" and len(groups) == 1 and not groups[0][key]):
        return
    named = groups[0]["agreement"] is not None
    shown = least_agreeing(groups, _LISTED) if named else groups[:_LISTED]
    table = _table(f"top-1 agreement by {title}", key, "items", "agreement", "95 %", "over tolerance", "max |Δscore|")
    for each in shown:
        _row(table, short(each[key]), *_agreement_cells(each))
    if found["others"] is not None:
        _row(table, "all others", *_agreement_cells(found["others"]))
    yield table
    if len(shown) < len(groups):
        yield f"{len(shown)} of {len(groups):,}: those that agree least; --json has all"


def _agreement_cells(group: Mapping[str, Any]) -> Iterable[str]:
    interval = "–" if group["agreement"] is None else f"{share(group['low'])} … {share(group['high'])}"
    counts = f"{group['over_tolerance']:,}", delta(group["max_delta"])
    return (f"{group['items']:,}", share(group["agreement"]), interval, *counts)


def _accuracy_lines(found: Mapping[str, Any]) -> Iterator[str | Table]:
    groups = found["groups"]
    if groups:
        table = _table("accuracy by true label", "label", "items", *map(str, ARMS))
        for each in groups[:_LISTED]:
            _row(table, str(each["label"]), *_accuracy_cells(each))
        if found["others"] is not None:
            _row(table, "all others", *_accuracy_cells(found["others"]))
        yield table
        if len(groups) > _LISTED:
            yield f"{_LISTED} of {len(groups):,}: the most frequent; --json has all"


def _accuracy_cells(group: Mapping[str, Any]) -> Iterable[str]:
    sides = (group[str(side)] for side in ARMS)
    spelled = (f"{share(each['accuracy'])} ({share(each['low'])} … {share(each['high'])})" for each in sides)
    return (f"{group['items']:,}", *spelled)


def _worst_lines(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if cases:
        yield "\nthe worst items"
    for rank, case in enumerate(cases, start=1):
        of_slice = f", slice {short(case['slice'])}" if case["slice"] else ""
        noise = "" if case["twin_max_delta"] is None else f" (twin {delta(case['twin_max_delta'])})"
        yield (
            f"{rank:3}. max |Δscore| {delta(case['max_delta'])}{noise}: request {case['request_id']!r} item "
            f"{case['item']}{of_slice}, top-1 {_answer(case['baseline_top1'])} → {_answer(case['candidate_top1'])}"
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
