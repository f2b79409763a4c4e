"""Reports of a rollout, made from its folder alone: they can be written again after the server is gone."""

from pathlib import Path
from typing import Final

import orjson

from rollout.entries import read_entries, verify_chain
from rollout.errors import JournalError
from rollout.folder import JOURNAL_FILE, read_facts, write_atomically
from rollout.reports.incident import error_messages
from rollout.reports.markdown import deployment_verdict, release_matrix
from rollout.reports.report import Report, deployment_report
from shadow.errors import EvidenceError
from shadow.store import Header, pairs_header

__all__ = ["Report", "deployment_report", "load_report", "write_reports"]

VERDICT_FILE: Final = "deployment_verdict.md"
REPORT_FILE: Final = "report.json"
MATRIX_FILE: Final = "release/release_matrix.md"
SLO_FILE: Final = "metrics/slo_report.json"


def load_report(folder: Path) -> Report:
    """The report of the rollout in this folder, from ``journal.jsonl``, ``rollout.json`` and the raw evidence.

    Raises:
        JournalError: a file is missing or wrong, or the journal's chain does not hold.
    """
    entries = read_entries(folder / JOURNAL_FILE)
    if not entries:
        raise JournalError(f"{folder / JOURNAL_FILE}: expected at least one entry")
    verify_chain(entries)
    evidence = folder / "evidence"
    return deployment_report(entries, read_facts(folder), error_messages(evidence), _header(evidence))


def _header(evidence: Path) -> Header | None:
    """What the pairs were compared with; None where no evidence can be read: a report is written all the same."""
    try:
        return pairs_header(evidence)
    except EvidenceError:
        return None


def write_reports(folder: Path) -> Report:
    """Write all reports of the rollout in this folder beside its journal; returns what they say.

    Raises:
        JournalError: as ``load_report``.
    """
    report = load_report(folder)
    slos = {
        "deployment_id": report.deployment_id,
        "slos": report.to_json()["slos"],
        "verdict": report.conclusion.line,
    }
    write_atomically(folder / REPORT_FILE, _json(report.to_json()))
    write_atomically(folder / SLO_FILE, _json(slos))
    write_atomically(folder / MATRIX_FILE, release_matrix(report).encode())
    write_atomically(folder / VERDICT_FILE, deployment_verdict(report).encode())
    return report


def _json(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"
