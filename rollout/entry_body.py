"""What a journal entry says before it is sealed: the position, who acts and why, and the look that it rests on."""

from dataclasses import asdict
from datetime import UTC, datetime

from rollout.decision import Look
from rollout.entries import Entry
from rollout.folder import JOURNAL_FILE
from rollout.journal import Rollout
from rollout.status import plain
from shadow.verify import run_id


def entry_body(rollout: Rollout, *, at: datetime, event: str, reason: str, actor: str, look: Look | None) -> Entry:
    """The body of an entry on a rollout at its position; without a look, or a snapshot in it, there are no figures."""
    snapshot = look.snapshot if look else None
    return {
        "at": at.astimezone(UTC).isoformat(),
        "deployment_id": rollout.deployment_id,
        "event": event,
        "state": rollout.position.state.value,
        "stage": rollout.position.stage,
        "weight": rollout.weight,
        "actor": actor,
        "reason": reason,
        "judgement": plain(look.judgement) if look else None,
        "evidence": snapshot.evidence.to_json() if snapshot else None,
        "heads": [asdict(head) for head in snapshot.heads] if snapshot else [],
        "run_id": run_id(snapshot.evidence, snapshot.heads) if snapshot else None,
        "accounting": dict(snapshot.accounting) if snapshot else None,
        "coverage": snapshot.coverage.to_json() if snapshot else None,
        "accounts": {name: each.to_json() for name, each in snapshot.accounts.items()} if snapshot else {},
        "reasons": dict(snapshot.reasons) if snapshot else {},
        "file": f"{rollout.deployment_id}/{JOURNAL_FILE}",
    }
