"""Journal entries: what one holds, how each carries the hash of the one before, and their file ``journal.jsonl``.

An entry is plain JSON. Its ``hash`` is the sha256 of the canonical JSON of all its other keys, of which ``prev`` is
the hash of the entry before, so that no entry can be changed, dropped or put in between without breaking the chain.
The database is the truth; the file is an export of it.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeAlias

import orjson

from rollout.errors import JournalError
from shadow.evidence import canonical
from shadow.store import sync_folder

Entry: TypeAlias = Mapping[str, Any]

GENESIS: Final = "0" * 64  # ``prev`` of a first entry


def seal(body: Entry, *, seq: int, prev: str) -> Entry:
    """A body as the entry at its place in the chain, with its hash; in the very values that a reader will get."""
    entry: dict[str, Any] = orjson.loads(canonical({**body, "seq": seq, "prev": prev}))
    return {**entry, "hash": entry_hash(entry)}


def entry_hash(entry: Entry) -> str:
    """The sha256, in hex, of the canonical JSON of an entry without its ``hash``."""
    return sha256(canonical({key: value for key, value in entry.items() if key != "hash"})).hexdigest()


def verify_chain(entries: Iterable[Entry]) -> str:
    """Walk the chain from its first entry; returns the last entry's hash.

    Raises:
        JournalError: names the first entry that is changed, missing or out of place.
    """
    prev, expected = GENESIS, 1
    for entry in entries:
        if entry.get("seq") != expected:
            raise JournalError(f"journal: expected entry {expected}, found {entry.get('seq')!r}")
        if entry.get("prev") != prev:
            raise JournalError(f"journal: entry {expected}: prev is not the hash of the entry before")
        if entry.get("hash") != entry_hash(entry):
            raise JournalError(f"journal: entry {expected}: its content does not match its hash")
        prev, expected = str(entry["hash"]), expected + 1
    return prev


def read_entries(path: Path) -> list[Entry]:
    """The entries of a ``journal.jsonl``, a last line without its end left out: it was never finished.

    Raises:
        JournalError: the file is missing, or a finished line is not a JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise JournalError(f"{path}: expected a journal: {error.strerror}") from error
    return [_parse(path, number, line) for number, line in enumerate(lines, start=1)]


def _parse(path: Path, number: int, line: bytes) -> Entry:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise JournalError(f"{path}: line {number}: expected JSON: {error}") from error
    if not isinstance(entry, dict):
        raise JournalError(f"{path}: line {number}: expected a JSON object")
    return entry


def export(path: Path, entries: Sequence[Entry]) -> None:
    """Bring the file up to the database's entries: a half line is cut, the missing tail appended, then fsync.

    Raises:
        JournalError: the file holds an entry that the database does not; it is left as it is, as evidence.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    written = _cut_half_line(path)
    for number, entry in enumerate(written, start=1):
        if number > len(entries) or entry.get("hash") != entries[number - 1]["hash"]:
            raise JournalError(f"{path}: entry {number} is not the database's")
    missing = entries[len(written) :]
    if missing:
        append(path, missing)


def append(path: Path, entries: Iterable[Entry]) -> None:
    """Add entries to the end of the file, durably."""
    with path.open("ab") as file:
        file.write(b"".join(canonical(entry) + b"\n" for entry in entries))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def _cut_half_line(path: Path) -> list[Entry]:
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return read_entries(path)
