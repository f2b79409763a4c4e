"""``understudy profile``: where requests spend their time, and what the processes do meanwhile."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import orjson
import typer
from rich.console import Console
from rich.table import Table

from serving.cli.breakdown import QUANTILES, Breakdown, Key, Spread, breakdowns, read_stages
from serving.cli.flamegraph import FlamegraphError, Recording, recording
from serving.client import AdminClient, AdminError
from serving.config import Config, load_config
from serving.errors import ServingError

_SCRAPE_S = 10.0
_ADMIN_S = 5.0
_MOST_S = 600


class ScrapeError(ServingError):
    """The metrics cannot be had; names their address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What was found in ``seconds``; ``problems`` say which flamegraphs are missing, a line each."""

    seconds: float
    versions: Sequence[Breakdown]
    flamegraphs: Sequence[Path]
    problems: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "seconds": self.seconds,
            "versions": [each.to_json() for each in self.versions],
            "flamegraphs": list(map(str, self.flamegraphs)),
            "problems": list(self.problems),
        }


def profile(
    config: Annotated[Path, typer.Argument(help="The configuration of a server that runs on this machine.")],
    seconds: Annotated[int, typer.Option(min=1, max=_MOST_S, help="How long to look.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Where flamegraphs go; else profile-<time>.")] = None,
    no_flamegraph: Annotated[bool, typer.Option("--no-flamegraph", help="Only the table.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Print how long requests spend in each stage, and save a flamegraph of each router and model replica.

    Exit status 1 if no request was answered meanwhile.
    """
    settings = load_config(config)
    folder = None if no_flamegraph else out or Path(f"profile-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
    found = observe(settings, seconds, folder)
    if json:
        print(orjson.dumps(found.to_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(found)
    if not found.versions:
        raise typer.Exit(1)


def observe(config: Config, seconds: int, folder: Path | None) -> Profile:
    """Look at a running server for some seconds; without a ``folder`` no flamegraphs are made.

    Raises:
        ScrapeError: its metrics cannot be had.
    """
    problems: list[str] = []
    with ExitStack() as stack:
        before, since = scrape(config), time.monotonic()
        recordings: list[Recording] = []
        if folder is not None:
            try:
                recordings = stack.enter_context(_recording(config, folder, seconds))
            except (AdminError, FlamegraphError) as error:
                problems.append(str(error))
        time.sleep(seconds)
        after, elapsed_s = scrape(config), time.monotonic() - since
        flamegraphs = list(_finished(recordings, problems))
    return Profile(
        seconds=elapsed_s,
        versions=breakdowns(before, after, elapsed_s),
        flamegraphs=flamegraphs,
        problems=problems,
    )


def scrape(config: Config) -> Mapping[Key, Spread]:
    """The histograms of all stages as they stand.

    Raises:
        ScrapeError: nobody answers at the metrics' port, or not with metrics.
    """
    url = f"{config.server.url(config.server.metrics_port)}/metrics"
    try:
        answer = httpx.get(url, timeout=_SCRAPE_S, trust_env=False)
    except httpx.HTTPError as error:
        raise ScrapeError(f"{url}: is the server running? {error}") from None
    try:
        return read_stages(answer.raise_for_status().text)
    except (httpx.HTTPStatusError, ValueError, KeyError):
        what = f"{answer.status_code} {answer.headers.get('content-type', '')}".rstrip()
        raise ScrapeError(f"{url}: expected the metrics of a server, got {what}") from None


def _recording(config: Config, folder: Path, seconds: int) -> AbstractContextManager[list[Recording]]:
    server = config.server
    url = server.url(server.admin_port)
    with AdminClient(url, token=server.admin_token, timeout_s=_ADMIN_S) as client:
        try:
            processes = client.processes()
        except AdminError as error:
            raise AdminError(f"no flamegraphs: {error}") from None
    return recording(processes, folder, seconds)


def _finished(recordings: Sequence[Recording], problems: list[str]) -> Iterator[Path]:
    for each in recordings:
        try:
            yield each.finish()
        except FlamegraphError as error:
            problems.append(str(error))


def _show(found: Profile) -> None:
    console = Console(highlight=False)
    for version in found.versions:
        console.print(_table(version))
    if found.versions:
        console.print("Milliseconds; quantiles are interpolated in the histograms' buckets.", style="dim")
    else:
        print(f"no request was answered in these {found.seconds:.0f} s", file=sys.stderr)
    for path in found.flamegraphs:
        print(path)
    for problem in found.problems:
        print(problem, file=sys.stderr)


def _table(version: Breakdown) -> Table:
    title = (
        f"{version.model} {version.version}: {version.requests} requests, {version.requests / version.seconds:.1f}/s"
    )
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    table.add_column("stage")
    for column in ("share", "mean", *(f"p{100 * each:.0f}" for each in QUANTILES)):
        table.add_column(column, justify="right", min_width=8)
    for stage, spread in version.stages.items():
        times = (spread.mean_s, *map(spread.quantile, QUANTILES))
        table.add_row(stage, f"{version.share(stage):.1%}", *(f"{1000 * each:.3f}" for each in times))
    table.add_row("whole", "100.0%", f"{1000 * version.mean_s:.3f}", style="bold")
    return table
