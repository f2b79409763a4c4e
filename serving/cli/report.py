"""``understudy report``: written from a rollout's folder alone, with or without a running server."""

from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.markdown import Markdown

from rollout.errors import RolloutError
from rollout.folder import JOURNAL_FILE, read_facts
from rollout.reports import VERDICT_FILE, write_reports


def report(
    model: Annotated[str, typer.Argument(help="A model's name (its latest rollout) or a deployment id.")],
    reports: Annotated[Path, typer.Option(help="The folder of all rollouts' folders.")] = Path("reports"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Write a rollout's reports (Markdown and JSON) beside its evidence, and print the verdict."""
    folder = find_rollout(reports, model)
    written = write_reports(folder)
    if json:
        print(orjson.dumps(written.to_json(), option=orjson.OPT_INDENT_2).decode())
        return
    text = (folder / VERDICT_FILE).read_text(encoding="utf-8").rstrip()
    body, _, verdict = text.rpartition("\n")
    console = Console()
    console.print(Markdown(body)) if console.is_terminal else print(body)
    print(f"\nwritten to {folder}")
    print(verdict)


def find_rollout(reports: Path, name: str) -> Path:
    """The folder of a deployment id, or of a model's latest rollout.

    Raises:
        RolloutError: there is none.
    """
    if (reports / name / JOURNAL_FILE).is_file():
        return reports / name
    found = [path.parent for path in reports.glob(f"*/{JOURNAL_FILE}") if read_facts(path.parent)["model"] == name]
    if not found:
        raise RolloutError(
            f"{reports}: expected the folder of a rollout of {name!r} (choose the folder with --reports)"
        )
    return max(found, key=lambda folder: (str(read_facts(folder)["started_at"]), folder.name))
