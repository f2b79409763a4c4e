"""Rollouts' folders kept up to what the database holds, so that a rollout can be read and verified without it."""

from pathlib import Path

from rollout.entries import append, export
from rollout.folder import FACTS_FILE, JOURNAL_FILE, write_facts
from rollout.journal import Journal, Rollout


class Exporter:
    """Writes ``rollout.json`` once and ``journal.jsonl`` as it grows."""

    def __init__(self, journal: Journal, reports: Path) -> None:
        self._journal, self._reports = journal, reports
        self._exported: dict[str, int] = {}  # the last entry that is known to be in the file

    def folder(self, rollout: Rollout) -> Path:
        """The rollout's folder."""
        return self._reports / rollout.deployment_id

    def export(self, rollout: Rollout) -> None:
        """Bring the folder up to the database.

        Raises:
            JournalError: the file holds what the database does not.
            OSError: it cannot be written; the next call mends what this one left.
        """
        folder, deployment_id = self.folder(rollout), rollout.deployment_id
        if not (folder / FACTS_FILE).exists():
            write_facts(folder, {"database": self._journal.url_from(folder), **rollout.to_json()})
        # A write that fails half-way leaves nothing remembered: the next one reconciles the file with the database.
        exported = self._exported.pop(deployment_id, None)
        if exported is None:
            export(folder / JOURNAL_FILE, self._journal.entries(deployment_id))
        elif exported < rollout.seq:
            append(folder / JOURNAL_FILE, self._journal.entries(deployment_id, after=exported))
        self._exported[deployment_id] = rollout.seq
