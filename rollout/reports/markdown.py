"""A report for people: what went wrong comes first, the verdict line last."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from rollout.reports.incident import Incident
from rollout.reports.report import NO_POSTERIOR, MatrixRow, Report, SloRow
from shadow.accounting import Account


def deployment_verdict(report: Report) -> str:
    """The whole report; its last line is the verdict."""
    sections = [
        f"# {report.title}",
        f"Deployment `{report.deployment_id}` · state {report.state} · policy {report.policy}",
        _section("Anomalies", bullets(report.anomalies)),
        *([_section("Incident", _incident(report.incident))] if report.incident else []),
        _section("Summary", report.summary),
        _section("Service level objectives", _slos(report)),
        _section("Release matrix", matrix_table(report.matrix)),
        _section("Stages", _timeline(report)),
        _section("Mirror accounting (items)", _accounting(report.accounting)),
        _section("Artifacts", _facts(report.facts)),
        *([_section("Notes", bullets(report.notes))] if report.notes else []),
        _section("Verdict", f"{report.conclusion.rationale}\n\n{NO_POSTERIOR}"),
        f"Journal head: `{report.journal_hash}`",
        report.conclusion.line,
    ]
    return "\n\n".join(sections) + "\n"


def release_matrix(report: Report) -> str:
    """The release matrix as a document of its own."""
    sections = [f"# Release matrix: {report.deployment_id}", matrix_table(report.matrix), report.conclusion.line]
    return "\n\n".join(sections) + "\n"


def matrix_table(rows: Iterable[MatrixRow]) -> str:
    """The release matrix."""
    header = ("axis", "threshold", "finding", "CI", "verified by", "evidence", "decision")
    return table(
        header,
        [
            (row.axis, row.threshold, row.finding, _range(row), row.verified_by, row.evidence, row.decision)
            for row in rows
        ],
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; in its place a line that says so when there is nothing to show."""
    if not rows:
        return "Nothing was judged."
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def bullets(lines: Iterable[str]) -> str:
    """A list; "None." when it is empty."""
    return "\n".join(f"- {_cell(line)}" for line in lines) or "None."


def _cell(value: object) -> str:
    """One line, in which neither a model's message nor a person's reason can break the table."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")


def _section(title: str, content: str) -> str:
    return f"## {title}\n\n{content}"


def _range(row: MatrixRow | SloRow) -> str:
    if row.interval is None:
        return "–"
    low, high = row.interval
    return f"[{low:.4g}, {high:.4g}] {row.unit}".rstrip()


def _slos(report: Report) -> str:
    header = ("objective", "target", "observed", "CI95", "status", "trend", "evidence")
    return table(
        header,
        [
            (row.objective, row.target, row.observed, _range(row), row.status, row.trend, row.evidence)
            for row in report.slos
        ],
    )


def _timeline(report: Report) -> str:
    header = ("at (UTC)", "event", "to", "weight %", "after", "by", "why", "evidence")
    return table(
        header,
        [
            (
                move.at[:19],
                move.event,
                move.state,
                move.weight,
                f"{move.held_s:.0f} s",
                move.actor,
                move.reason,
                move.evidence or "–",
            )
            for move in report.timeline
        ],
    )


def _incident(incident: Incident) -> str:
    lines = [
        f"Rolled back at {incident.at} by `{incident.trigger}`, at {incident.weight} % of the traffic, "
        f"{incident.after_s:.0f} s after that stage began.",
        f"Root cause: {_cell(incident.root_cause)}",
        "Deciding gates:\n\n" + bullets(incident.gates),
        "The candidate's most frequent errors:\n\n" + bullets(incident.errors),
        f"Evidence: {incident.evidence or 'none'}",
    ]
    return "\n\n".join(lines)


def _accounting(counts: Mapping[str, int]) -> str:
    names = [each.name for each in fields(Account) if each.name in counts]
    return table(names, [[counts[name] for name in names]]) if counts else "Nothing was sampled."


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [(side, key, _flat(value)) for side in facts for key, value in dict(facts[side]).items()]
    return table(("version", "fact", "value"), rows) if rows else "Nothing is known of the artifacts."


def _flat(value: object) -> str:
    """A nested fact on one line."""
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_flat(item)}" for key, item in value.items())
    return str(value)
