"""``understudy labels add``."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from serving.cli.rollout import ADMIN, Admin, Token
from serving.client import AdminClient
from serving.errors import ServingError

app = typer.Typer(no_args_is_help=True, help="Bring late ground truth.")
_AT_ONCE = 5_000
_DIGITS = 10
_FIELDS = ("request_id", "item", "label")


class LabelFileError(ServingError):
    """A label file that is wrong; names file, line and field."""


@app.command()
def add(
    file: Annotated[
        Path, typer.Argument(help="CSV with the header request_id,item,label, or JSON lines with these keys.")
    ],
    model: Annotated[str, typer.Option(help="The model that the requests were sent to.")],
    rollout: Annotated[
        str | None, typer.Option(help="A rollout by its deployment id; else the active one, or the last.")
    ] = None,
    admin: Admin = ADMIN,
    token: Token = None,
) -> None:
    """Hand labels to a model's rollout; they join their requests by id, before or after these arrive.

    A rollout that has ended takes them for labels_reopen_s, and its verdict is judged anew.
    """
    accepted = duplicates = 0
    rows = list(read_labels(file))
    with AdminClient(admin, token=token) as client:
        for start in range(0, len(rows), _AT_ONCE):
            result = client.add_labels(model, rows[start : start + _AT_ONCE], rollout=rollout)
            accepted, duplicates = accepted + result["accepted"], duplicates + result["duplicates"]
    print(f"{accepted} labels accepted, {duplicates} were there already")


def read_labels(file: Path) -> Iterator[dict[str, Any]]:
    """The labels of a file, checked.

    Raises:
        LabelFileError: the file cannot be read, or a line is wrong.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets begin their CSV with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise LabelFileError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    rows = _json_rows(file, text) if file.suffix in (".jsonl", ".json") else _csv_rows(file, text)
    for number, row in rows:
        yield _checked(file, number, row)


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if not {"request_id", "label"} <= set(names) <= set(_FIELDS):
            raise LabelFileError(f"{file}:1: expected the header request_id,item,label, got {','.join(names)!r}")
        for row in reader:
            if None in row:
                raise LabelFileError(f"{file}:{reader.line_num}: expected {len(names)} fields, got more")
            yield reader.line_num, row
    except csv.Error as error:
        raise LabelFileError(f"{file}:{reader.line_num + 1}: not CSV: {error}") from None


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise LabelFileError(f"{file}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise LabelFileError(f"{file}:{number}: expected an object with request_id, item and label")
        yield number, row


def _checked(file: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    request_id = row.get("request_id")
    if not isinstance(request_id, str) or not request_id:
        raise LabelFileError(f"{file}:{number}: request_id: expected a text, got {request_id!r}")
    whole = {}
    for field, default in (("item", "0"), ("label", "")):
        value = row.get(field, default)
        digits = str(value).strip()
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= _DIGITS):
            raise LabelFileError(f"{file}:{number}: {field}: expected a whole number from 0, got {value!r}")
        whole[field] = int(digits)
    return {"request_id": request_id, **whole}
