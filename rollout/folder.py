"""The files of a rollout's folder that are written whole: ``rollout.json`` and the reports."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from rollout.errors import JournalError

JOURNAL_FILE: Final = "journal.jsonl"
FACTS_FILE: Final = "rollout.json"
_NEEDED: Final = ("database", "deployment_id", "model", "baseline", "candidate", "stages", "started_at")


def read_facts(folder: Path) -> dict[str, Any]:
    """The content of ``rollout.json``: what was fixed when the rollout started, and where its database is.

    Raises:
        JournalError: the file is missing or is not what the controller wrote.
    """
    path = folder / FACTS_FILE
    try:
        facts = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise JournalError(f"{path}: expected a rollout's facts: {error}") from error
    for key in _NEEDED:
        if not isinstance(facts, dict) or key not in facts:
            raise JournalError(f"{path}: {key}: expected, missing")
    return dict(facts)


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``rollout.json``, whole or not at all."""
    content = orjson.dumps(facts, option=orjson.OPT_INDENT_2)
    write_atomically(folder / FACTS_FILE, content + b"\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by new content in one step: a reader, or a crash, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
