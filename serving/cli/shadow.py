"""``understudy shadow``: what was rehearsed, looked at offline."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from models.repository import Repository
from serving.cli.shadow_report import report
from serving.config import Config, load_config
from shadow.errors import EvidenceError
from shadow.evidence import DELTA_UNIT, StageSums
from shadow.exemplars import FOLDER, Exemplar, read
from shadow.replay import LocalModel, Replayed, Yardstick, mean_delta, recorded_yardstick, replay

_EVIDENCE: Final = "evidence"

app = typer.Typer(no_args_is_help=True, help="What was rehearsed, looked at offline.")


app.command("report")(report)


@app.callback()
def _group() -> None:
    """What was rehearsed, looked at offline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A replay: what was run, by which yardstick, and what came of it."""

    model: str
    candidate: int
    baseline: int
    baseline_again: bool
    yardstick: Yardstick
    found: Replayed


@app.command("replay")
def replay_command(
    folder: Annotated[
        Path, typer.Argument(help="A rollout's folder, <reports>/<deployment_id>, or the evidence in it.")
    ],
    candidate: Annotated[int, typer.Option(min=1, help="The version to run.", show_default=False)],
    config: Annotated[Path, typer.Option(help="The configuration, which says where models are.")] = Path(
        "examples/digits.yaml"
    ),
    model: Annotated[str | None, typer.Option(help="The model; else the one that was recorded.")] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="How many rows may share a batch; in batches of 1 results are reproducible.")
    ] = 1,
    rerun_baseline: Annotated[
        bool, typer.Option("--rerun-baseline", help="Run the baseline again, too: the noise floor of this machine.")
    ] = False,
    comparator: Annotated[
        str | None, typer.Option(help="Kind or import path of a comparator; else the one of the evidence.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="The output to compare; else that of the evidence.")] = None,
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Of an item's max |Δscore|; else that of the evidence.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:
    """Run a rollout's exemplars through another version, and compare with what the baseline had answered.

    Exit status: 0 done, 1 an item is over the tolerance, the version failed what the baseline had answered, or there
    was nothing to compare, 2 wrong use.
    """
    settings = load_config(config)
    root = folder.parent if folder.name == _EVIDENCE else folder
    exemplars = _exemplars(root)
    yardstick = _yardstick(root / _EVIDENCE, comparator, output, tolerance)
    run = _run(settings, exemplars, yardstick, candidate, model=model, again=rerun_baseline, batch_size=batch_size)
    if as_json:
        typer.echo(orjson.dumps(_as_json(run), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(run)
    raise typer.Exit(0 if run.found.ok else 1)


def _exemplars(root: Path) -> Iterator[Exemplar]:
    """The exemplars of a rollout, of which there is at least one."""
    if not root.is_dir():
        raise EvidenceError(f"{root}: expected a rollout's folder, <reports>/<deployment_id>")
    found = read(root / FOLDER) if (root / FOLDER).is_dir() else iter(())
    first = next(found, None)
    if first is None:
        raise EvidenceError(
            f"{root / FOLDER}: no exemplars were recorded; mirror.exemplars in the configuration has them kept"
        )
    return chain([first], found)


def _yardstick(evidence: Path, comparator: str | None, output: str | None, tolerance: float | None) -> Yardstick:
    """What the evidence was compared with, but for what is said otherwise; another comparator has no parameters."""
    recorded = recorded_yardstick(evidence)
    if recorded is None:
        if output is None:
            raise EvidenceError(f"{evidence}: no segment says what was compared; say it with --output")
        recorded = Yardstick(output=output)
    chosen: dict[str, Any] = {"comparator": comparator, "output": output, "tolerance": tolerance}
    changes = {name: value for name, value in chosen.items() if value is not None}
    if changes.get("comparator", recorded.comparator) != recorded.comparator:
        changes["parameters"] = {}
    return replace(recorded, **changes)


def _run(
    settings: Config,
    exemplars: Iterator[Exemplar],
    yardstick: Yardstick,
    candidate: int,
    *,
    model: str | None,
    again: bool,
    batch_size: int,
) -> Run:
    if str(settings.directory) not in sys.path:  # where the user's own backends and comparators are imported from
        sys.path.append(str(settings.directory))
    first = next(exemplars)
    name, baseline = model or first.model, first.baseline_version
    repository = Repository(settings.repository)

    def opened(version: int) -> LocalModel:
        return LocalModel(repository.open(name, version), settings.backends, settings.preprocess)

    with ExitStack() as stack:
        mine = stack.enter_context(opened(candidate))
        theirs = stack.enter_context(opened(baseline)) if again else None
        found = replay(chain([first], exemplars), mine, yardstick, baseline=theirs, batch_size=batch_size)
    return Run(
        model=name, candidate=candidate, baseline=baseline, baseline_again=again, yardstick=yardstick, found=found
    )


def _figures(total: StageSums, named: int, yardstick: Yardstick) -> dict[str, Any]:
    """What a version's answers come to, beside the recorded ones; None where there is nothing to say."""
    items = total.items
    measures = {each.name: each for each in yardstick.open().measures}
    return {
        "items": items,
        "agreement": total.agree / items if items and named else None,
        "max_delta": total.delta_max_e9 * DELTA_UNIT if items else None,
        "mean_delta": mean_delta(total),
        "over_tolerance": total.delta_over,
        "errors": total.candidate.errors,
        "malformed": total.candidate.malformed,
        "findings": dict(total.findings),
        "measures": {name: found.mean(measures[name]) for name, found in total.measures.items()},
    }


def _columns(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """The figures of each version that was run."""
    found = run.found
    columns = [(f"candidate {run.candidate}", _figures(found.sums, found.named, run.yardstick))]
    if run.baseline_again:
        noise = found.sums.of_twin()
        columns.append((f"baseline {run.baseline} again", _figures(noise, found.named, run.yardstick)))
    return columns


def _as_json(run: Run) -> dict[str, Any]:
    figures = [each for _, each in _columns(run)]
    return {
        "ok": run.found.ok,
        "model": run.model,
        "candidate": run.candidate,
        "baseline": run.baseline,
        **asdict(run.yardstick),
        "requests": run.found.requests,
        "unanswered": run.found.unanswered,
        "figures": figures[0],
        "baseline_again": figures[1] if run.baseline_again else None,
        "worst": [asdict(each) for each in run.found.worst],
        "failures": [asdict(each) for each in run.found.failures],
    }


def _show(run: Run) -> None:
    console, found, columns = Console(highlight=False), run.found, _columns(run)
    table = _plain_table(f"{run.model}: {found.requests} recorded requests", "", *(name for name, _ in columns))
    for name, values in _lines([figures for _, figures in columns], run.yardstick.tolerance):
        table.add_row(name, *values)
    console.print(table)
    if found.unanswered:
        console.print(f"{found.unanswered} of the requests have no recorded answer of the baseline to compare with")
    if found.worst:
        console.print()
        console.print(_worst(found))
    for failure in found.failures:
        line = f"{failure.request_id}: {failure.status}: {failure.error}"
        console.print(line, markup=False, soft_wrap=True)
    console.print(_verdict(found, run.yardstick.tolerance))


def _lines(columns: list[dict[str, Any]], tolerance: float) -> Iterator[tuple[str, list[str]]]:
    yield "items compared", [str(each["items"]) for each in columns]
    if any(each["agreement"] is not None for each in columns):
        yield "top-1 agreement", [_percent(each["agreement"]) for each in columns]
    yield "max |Δscore|", [_number(each["max_delta"]) for each in columns]
    yield "mean |Δscore|", [_number(each["mean_delta"]) for each in columns]
    yield f"items over {tolerance:g}", [str(each["over_tolerance"]) for each in columns]
    yield "errors", [str(each["errors"]) for each in columns]
    yield "malformed answers", [str(each["malformed"]) for each in columns]
    for finding in dict.fromkeys(name for each in columns for name in each["findings"]):
        yield f"finding: {finding}", [str(each["findings"].get(finding, 0)) for each in columns]
    for measure in columns[0]["measures"]:
        yield f"mean {measure}", [_number(each["measures"].get(measure)) for each in columns]


def _worst(found: Replayed) -> Table:
    table = _plain_table("the worst", "request", "item", "max |Δ|", "recorded", "top-1")
    for each in found.worst:
        deltas = _number(each.max_delta), _number(each.recorded_delta)
        answers = f"{_answer(each.baseline_top1)} → {_answer(each.candidate_top1)}"
        table.add_row(escape(each.request_id), str(each.item), *deltas, answers)
    return table


def _verdict(found: Replayed, tolerance: float) -> str:
    if found.ok:
        return f"all {found.sums.items} items within {tolerance:g}"
    if not found.sums.items and not found.sums.candidate_only_failed:
        return "nothing could be compared"
    return f"{found.sums.delta_over} items over {tolerance:g}, {found.sums.candidate_only_failed} requests failed"


def _plain_table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _answer(top1: int) -> str:
    return "–" if top1 < 0 else str(top1)
