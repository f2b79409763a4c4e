"""The tables, and how they are opened: the one file that knows which database it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.sql.dml import UpdateBase

from rollout.errors import JournalError

_CACHE_KIB: Final = 256  # of pages; the default's 2 MiB for each connection would fill with entries never read again
SCHEMA: Final = MetaData()
ROLLOUTS: Final = Table(
    "rollouts",
    SCHEMA,
    Column("deployment_id", String, primary_key=True),
    Column("model", String, nullable=False, index=True),
    # The model's name while the rollout is active, else NULL: the database itself refuses a second active one.
    Column("active_model", String, unique=True),
    Column("baseline", Integer, nullable=False),
    Column("candidate", Integer, nullable=False),
    Column("policy", JSON, nullable=False),
    Column("stages", JSON, nullable=False),
    Column("tolerance", Float, nullable=False),
    Column("salt", String, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("started_at", String, nullable=False),
    Column("state", String, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("target", Integer),
    Column("entered_at", String, nullable=False),
    Column("event", String, nullable=False),
    Column("reason", String, nullable=False),
    Column("confidence", Float, nullable=False),
    Column("seq", Integer, nullable=False),
    Column("hash", String, nullable=False),
    Column("settled", Boolean, nullable=False),
)
JOURNAL: Final = Table(
    "journal",
    SCHEMA,
    Column("deployment_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("prev", String, nullable=False),
    Column("hash", String, nullable=False),
    Column("entry", Text, nullable=False),
)
HEADS: Final = Table(
    "heads",
    SCHEMA,
    Column("deployment_id", String, primary_key=True),
    Column("chain", String, primary_key=True),
    Column("segments", Integer, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("sha256", String, nullable=False),
)
BASELINES: Final = Table(
    "baselines",
    SCHEMA,
    Column("model", String, primary_key=True),
    Column("version", Integer, nullable=False),
)
EPOCH: Final = Table(
    "epoch",
    SCHEMA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("value", Integer, nullable=False),
)


def resolve_url(url: str, folder: Path) -> URL:
    """A database's URL with the path of an SQLite file made absolute, starting from ``folder``.

    Raises:
        JournalError: it is no URL, or names an SQLite database that would be gone with its process.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise JournalError(f"database: expected a URL like sqlite:///understudy.db, got {url!r}") from error
    if parsed.get_backend_name() != "sqlite":
        return parsed
    if not parsed.database or parsed.database == ":memory:":
        raise JournalError(f"database: expected a file, as in sqlite:///understudy.db, got {url!r}")
    return parsed.set(database=str((folder / parsed.database).resolve()))


def open_engine(url: URL) -> Engine:
    """Connections to the database; on SQLite readers do not wait for the writer, and each commit is on disk."""
    if url.get_backend_name() != "sqlite":
        return create_engine(url, pool_pre_ping=True)
    engine = create_engine(url, connect_args={"timeout": 30})
    event.listen(engine, "connect", _make_durable)
    return engine


def _make_durable(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    cursor.close()


@contextmanager
def translated(url: URL) -> Iterator[None]:
    """The database's errors as ours, without its password."""
    try:
        yield
    except SQLAlchemyError as error:
        what = str(error).splitlines()[0]
        raise JournalError(f"database {url.render_as_string()}: {what}") from error


def changed(connection: Connection, statement: UpdateBase) -> bool:
    """Carry out an update; whether it met any row."""
    return connection.execute(statement).rowcount > 0
