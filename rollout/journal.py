"""The durable state of all rollouts: a database in which a rollout's row and its journal entry change together.

SQLite (WAL, every commit synced) on one node, PostgreSQL beyond; nothing here is particular to either but the
pragmas. One controller writes: ``take_epoch`` ends the right of all earlier ones, and every write checks, in its own
transaction, that this right still holds.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import orjson
from sqlalchemy import ColumnElement, Connection, create_engine, insert, select, update
from sqlalchemy.engine import RowMapping

from rollout.database import (
    BASELINES,
    EPOCH,
    HEADS,
    JOURNAL,
    ROLLOUTS,
    SCHEMA,
    changed,
    open_engine,
    resolve_url,
    translated,
)
from rollout.entries import GENESIS, Entry, entry_hash, export, read_entries, seal, verify_chain
from rollout.errors import JournalError, RolloutError, StaleControllerError
from rollout.folder import FACTS_FILE, read_facts
from rollout.machine import Position, State, weight
from rollout.outcome import Conclusion, conclude
from rollout.traffic import Head
from shadow.evidence import canonical

__all__ = [
    "GENESIS",
    "Anchors",
    "Entry",
    "Journal",
    "Rollout",
    "anchors",
    "entry_hash",
    "export",
    "read_entries",
    "verify_chain",
]

_START: Final = Position(state=State.LOADING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One rollout as the database holds it. The fields up to ``started_at`` never change."""

    deployment_id: str
    model: str
    baseline: int
    candidate: int
    policy: Mapping[str, Any]  # its JSON, frozen at the start
    stages: tuple[int, ...]  # weights in percent
    tolerance: float
    salt: str
    facts: Mapping[str, Any]  # of both versions, for the report
    started_at: datetime
    position: Position = _START
    entered_at: datetime  # when it reached this position
    event: str = "start"  # that led to this position
    reason: str = ""
    confidence: float = 0.0  # of the judgement that it was reached on
    seq: int = 0  # of its last journal entry
    hash: str = GENESIS  # of that entry
    settled: bool = False  # ended, and all that follows from its end is done

    @property
    def weight(self) -> int:
        """The candidate's share of the clients' requests, in percent."""
        return weight(self.position, self.stages)

    @property
    def conclusion(self) -> Conclusion:
        """What its last move comes to."""
        return conclude(self.position.state, self.event, self.reason, self.confidence)

    def to_json(self) -> dict[str, Any]:
        """What was fixed at the start: the facts for ``rollout.json`` and for the first journal entry."""
        return {
            "deployment_id": self.deployment_id,
            "model": self.model,
            "baseline": self.baseline,
            "candidate": self.candidate,
            "policy": dict(self.policy),
            "stages": list(self.stages),
            "tolerance": self.tolerance,
            "salt": self.salt,
            "started_at": stamp(self.started_at),
            "facts": dict(self.facts),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchors:
    """What the database knows of a rollout's files: where its evidence and its journal reach at least."""

    heads: dict[str, Head]
    last_hash: str


class Journal:
    """The database of one service. Reading is free; writing needs ``take_epoch`` first."""

    def __init__(self, url: str, *, relative_to: Path | None = None) -> None:
        """Open the database and make its tables where they are missing.

        Args:
            url: SQLAlchemy's form: ``sqlite:///file`` or ``postgresql+psycopg://…``.
            relative_to: the folder that a relative SQLite path starts from; the working directory when None.

        Raises:
            JournalError: the URL is wrong or the database cannot be opened.
        """
        self._url = resolve_url(url, relative_to or Path())
        self._epoch: int | None = None
        self._engine = open_engine(self._url)
        with translated(self._url):
            SCHEMA.create_all(self._engine)

    def close(self) -> None:
        """Let go of all connections."""
        self._engine.dispose()

    def url_from(self, folder: Path) -> str:
        """The database's URL for a file in ``folder``: no password, an SQLite path relative to the folder."""
        url = self._url.set(password=None)
        if url.get_backend_name() == "sqlite" and url.database is not None:
            url = url.set(database=os.path.relpath(url.database, folder.resolve()))
        return url.render_as_string()

    # Fencing

    @property
    def epoch(self) -> int:
        """The epoch that this journal writes under; 0 before ``take_epoch``."""
        return self._epoch or 0

    def take_epoch(self) -> int:
        """Become the only writer: every journal that took an epoch before is refused from now on."""
        with translated(self._url), self._engine.begin() as connection:
            if not changed(connection, update(EPOCH).values(value=EPOCH.c.value + 1)):
                connection.execute(insert(EPOCH).values(id=1, value=1))
            self._epoch = connection.execute(select(EPOCH.c.value)).scalar_one()
        return self._epoch

    def check_epoch(self) -> None:
        """Raise StaleControllerError if a newer controller has taken over."""
        with translated(self._url), self._engine.connect() as connection:
            if connection.execute(select(EPOCH.c.value)).scalar() != self._epoch:
                raise self._stale()

    def _stale(self) -> StaleControllerError:
        return StaleControllerError(f"epoch {self._epoch} is over: another controller has taken the database")

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """One transaction of the epoch's owner. The update, not a read, so that the row stays locked until commit."""
        with translated(self._url), self._engine.begin() as connection:
            mine = update(EPOCH).where(EPOCH.c.value == self._epoch).values(value=EPOCH.c.value)
            if self._epoch is None or not changed(connection, mine):
                raise self._stale()
            yield connection

    # Writing

    def create(self, rollout: Rollout, body: Entry, *, ends: tuple[Rollout, Entry] | None = None) -> Rollout:
        """Begin a rollout; in the same transaction end the one that it supersedes.

        Args:
            rollout: as it starts.
            body: of its first entry.
            ends: the active rollout of the model at its last position, and the body of its last entry.

        Raises:
            RolloutError: the model has another active rollout.
            StaleControllerError: the epoch is over.
        """
        with self._write() as connection:
            if ends is not None:
                self._put(connection, *ends)
            other = select(ROLLOUTS.c.deployment_id).where(ROLLOUTS.c.active_model == rollout.model)
            if (active := connection.execute(other).scalar()) is not None:
                raise RolloutError(f"{rollout.model}: the rollout {active} is active")
            return self._insert(connection, rollout, body)

    def record(self, rollout: Rollout, body: Entry, *, heads: Iterable[Head] = ()) -> Rollout:
        """Write a rollout's row, an entry, and the evidence heads it rests on, all or nothing; promotion counts too.

        Args:
            rollout: the row as it shall be; its ``seq`` and ``hash`` are those of the entry before.
            body: of the entry.
            heads: the chains' ends.

        Raises:
            StaleControllerError: the epoch is over, or someone else has written to this rollout.
        """
        with self._write() as connection:
            written = self._put(connection, rollout, body)
            self._put_heads(connection, rollout.deployment_id, heads)
            if rollout.position.state is State.PROMOTED:
                promoted = update(BASELINES).where(BASELINES.c.model == rollout.model)
                connection.execute(promoted.values(version=rollout.candidate))
        return written

    def annotate(self, rollout: Rollout, body: Entry, *, heads: Iterable[Head] = ()) -> Rollout:
        """Add an entry to a rollout that has ended, and the heads it rests on, all or nothing; no baseline changes.

        The arguments are those of ``record``; another rollout's promotion may have come since.

        Raises:
            StaleControllerError: the epoch is over, or someone else has written to this rollout.
        """
        with self._write() as connection:
            written = self._put(connection, rollout, body)
            self._put_heads(connection, rollout.deployment_id, heads)
        return written

    def save_heads(self, deployment_id: str, heads: Iterable[Head]) -> None:
        """Write down how far the evidence reaches, so that a tail cut off later is noticed."""
        with self._write() as connection:
            self._put_heads(connection, deployment_id, heads)

    def settle(self, deployment_id: str) -> None:
        """Note that all that follows from a rollout's end is done."""
        with self._write() as connection:
            mine = update(ROLLOUTS).where(ROLLOUTS.c.deployment_id == deployment_id)
            connection.execute(mine.values(settled=True))

    def _insert(self, connection: Connection, rollout: Rollout, body: Entry) -> Rollout:
        connection.execute(insert(ROLLOUTS).values(**rollout.to_json(), **_moving(rollout)))
        known = select(BASELINES.c.version).where(BASELINES.c.model == rollout.model)
        if connection.execute(known).first() is None:
            connection.execute(insert(BASELINES).values(model=rollout.model, version=rollout.baseline))
        return self._put(connection, rollout, body)

    def _put(self, connection: Connection, rollout: Rollout, body: Entry) -> Rollout:
        entry = seal(body, seq=rollout.seq + 1, prev=rollout.hash)
        written = replace(rollout, seq=entry["seq"], hash=entry["hash"])
        mine = update(ROLLOUTS).where(
            ROLLOUTS.c.deployment_id == rollout.deployment_id, ROLLOUTS.c.hash == rollout.hash
        )
        if not changed(connection, mine.values(**_moving(written))):
            raise StaleControllerError(f"{rollout.deployment_id}: someone else wrote entry {entry['seq']} first")
        row = {key: entry[key] for key in ("seq", "prev", "hash")}
        text = canonical(entry).decode()
        connection.execute(insert(JOURNAL).values(deployment_id=rollout.deployment_id, entry=text, **row))
        return written

    def _put_heads(self, connection: Connection, deployment_id: str, heads: Iterable[Head]) -> None:
        for head in heads:
            values = {"segments": head.segments, "rows": head.rows, "sha256": head.sha256}
            mine = update(HEADS).where(HEADS.c.deployment_id == deployment_id, HEADS.c.chain == head.chain)
            if not changed(connection, mine.values(**values)):
                row = {"deployment_id": deployment_id, "chain": head.chain, **values}
                connection.execute(insert(HEADS).values(**row))

    # Reading

    def unsettled(self) -> list[Rollout]:
        """All rollouts that still need the controller, oldest first."""
        return self._rollouts(ROLLOUTS.c.settled.is_(False))

    def active(self, model: str) -> Rollout | None:
        """The model's rollout that has not ended, if there is one."""
        return next(iter(self._rollouts(ROLLOUTS.c.active_model == model)), None)

    def rollouts(self, model: str) -> list[Rollout]:
        """All rollouts of a model, oldest first."""
        return self._rollouts(ROLLOUTS.c.model == model)

    def rollout(self, deployment_id: str) -> Rollout | None:
        """One rollout, if it is known."""
        return next(iter(self._rollouts(ROLLOUTS.c.deployment_id == deployment_id)), None)

    def ended_since(self, at: datetime) -> list[Rollout]:
        """All rollouts that ended at this time or later, and from whose end nothing more follows; oldest first."""
        return self._rollouts(ROLLOUTS.c.settled.is_(True) & (ROLLOUTS.c.entered_at >= stamp(at)))

    def entry(self, deployment_id: str, seq: int) -> Entry | None:
        """One entry of a rollout's journal, if it is there."""
        one = select(JOURNAL.c.entry).where(JOURNAL.c.deployment_id == deployment_id, JOURNAL.c.seq == seq)
        with translated(self._url), self._engine.connect() as connection:
            text = connection.execute(one).scalar()
        return None if text is None else orjson.loads(text)

    def entries(self, deployment_id: str, *, after: int = 0) -> list[Entry]:
        """A rollout's journal, from the entry that follows ``after``."""
        mine = select(JOURNAL.c.entry).where(JOURNAL.c.deployment_id == deployment_id, JOURNAL.c.seq > after)
        with translated(self._url), self._engine.connect() as connection:
            return [orjson.loads(text) for text in connection.execute(mine.order_by(JOURNAL.c.seq)).scalars()]

    def heads(self, deployment_id: str) -> dict[str, Head]:
        """The recorded end of each of a rollout's evidence chains, by chain."""
        with translated(self._url), self._engine.connect() as connection:
            return _read_heads(connection, deployment_id)

    def baselines(self) -> dict[str, int]:
        """The baseline of every model that has had a rollout."""
        with translated(self._url), self._engine.connect() as connection:
            return {row.model: row.version for row in connection.execute(select(BASELINES))}

    def _rollouts(self, condition: ColumnElement[bool]) -> list[Rollout]:
        query = select(ROLLOUTS).where(condition).order_by(ROLLOUTS.c.started_at, ROLLOUTS.c.deployment_id)
        with translated(self._url), self._engine.connect() as connection:
            return [_rollout(row) for row in connection.execute(query).mappings()]


def anchors(folder: Path) -> Anchors:
    """What the database that ``folder/rollout.json`` names knows of the rollout in this folder.

    Raises:
        JournalError: the file is wrong, the database cannot be reached, or it does not know the rollout.
    """
    facts = read_facts(folder)
    url, deployment_id = resolve_url(str(facts["database"]), folder), str(facts["deployment_id"])
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise JournalError(f"{folder / FACTS_FILE}: database: expected a file at {url.database}, there is none")
    engine = create_engine(url)
    last = select(JOURNAL.c.hash).where(JOURNAL.c.deployment_id == deployment_id)
    try:
        with translated(url), engine.connect() as connection:
            last_hash = connection.execute(last.order_by(JOURNAL.c.seq.desc()).limit(1)).scalar()
            heads = _read_heads(connection, deployment_id)
    finally:
        engine.dispose()
    if last_hash is None:
        raise JournalError(f"{folder / FACTS_FILE}: deployment_id: the database does not know {deployment_id}")
    return Anchors(heads=heads, last_hash=last_hash)


def _moving(rollout: Rollout) -> dict[str, Any]:
    position = rollout.position
    return {
        "active_model": None if position.ended else rollout.model,
        "state": position.state.value,
        "stage": position.stage,
        "target": position.target,
        "entered_at": stamp(rollout.entered_at),
        "event": rollout.event,
        "reason": rollout.reason,
        "confidence": rollout.confidence,
        "seq": rollout.seq,
        "hash": rollout.hash,
        "settled": rollout.settled,
    }


def _rollout(row: RowMapping) -> Rollout:
    fixed = ("deployment_id", "model", "baseline", "candidate", "policy", "tolerance", "salt", "facts")
    return Rollout(
        **{key: row[key] for key in (*fixed, "event", "reason", "confidence", "seq", "hash", "settled")},
        stages=tuple(row["stages"]),
        started_at=datetime.fromisoformat(row["started_at"]),
        entered_at=datetime.fromisoformat(row["entered_at"]),
        position=Position(state=State(row["state"]), stage=row["stage"], target=row["target"]),
    )


def stamp(at: datetime) -> str:
    """A point in time as ISO 8601 in UTC to the microsecond: as text these sort as the times do."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def _read_heads(connection: Connection, deployment_id: str) -> dict[str, Head]:
    rows = connection.execute(select(HEADS).where(HEADS.c.deployment_id == deployment_id))
    return {row.chain: Head(chain=row.chain, segments=row.segments, rows=row.rows, sha256=row.sha256) for row in rows}
