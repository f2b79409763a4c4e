"""Progress, tables and result files of the benchmarks."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

RESULTS: Final = Path(__file__).parent / "results"


def say(text: str) -> None:
    """Show progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; every column but the first is aligned to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def origin(environment: Mapping[str, Any]) -> str:
    """Where a result comes from, in one line."""
    machine, versions = environment["machine"], environment["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    commit, _, changes = environment["commit"].partition("+")
    tree = f"commit {commit[:12]}{' with changes' if changes else ''}"
    where = f"{machine['cores']} cores of {machine['processor']}, load average before {machine['load_average'][0]:g}"
    return f"{environment['at']}, {tree}, {where}; {named}."


def write(folder: Path, name: str, document: Mapping[str, Any], markdown: str = "") -> None:
    """Write ``<name>.json`` and, where there is any, ``<name>.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
    if markdown:
        (folder / f"{name}.md").write_text(markdown + "\n", encoding="utf-8")
