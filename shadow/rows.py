"""From pairs to rows: one row per item, as Parquet columns.

A pair is compacted as soon as it is offered: its scores are copied out of the receive buffers, the rest is let go.
Rows are made of many compact pairs at once, column by column.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.tensor import Array
from shadow.comparators import DELTA_CAP, Comparator, Comparison
from shadow.errors import ShadowError
from shadow.pair import Answer, Arm, Outcome, Pair, Status

ARMS: Final = tuple(Arm)
STATUSES: Final = tuple(Status)
ERROR_CHARACTERS: Final = 200
_CODES: Final = {status: code for code, status in enumerate(STATUSES)}
_OK, _ABSENT, _REJECTED = _CODES[Status.OK], _CODES[Status.ABSENT], _CODES[Status.REJECTED]
_REQUEST_BYTES: Final = 400  # what a compact request holds beside its scores, roughly

_WORD: Final = pa.dictionary(pa.int32(), pa.string())


def _side(name: str, *fields: tuple[str, pa.DataType, bool]) -> list[pa.Field]:
    return [pa.field(f"{name}_{field}", kind, nullable=nullable) for field, kind, nullable in fields]


_SIDE_FIELDS: Final = (
    ("status", _WORD, False),  # of the request
    ("error", pa.string(), True),  # short reason
    ("batch", _WORD, False),  # of the batch: ok when any of its requests is
    ("service_us", pa.int64(), True),  # of the batch
    ("memory_bytes", pa.int64(), True),  # of the batch
    ("scores", pa.list_(pa.float32()), True),
    ("top1", pa.int32(), True),
)

SCHEMA: Final = pa.schema(
    [
        pa.field("at_unix_us", pa.int64(), nullable=False),
        pa.field("stage", pa.int32(), nullable=False),
        pa.field("batch", pa.int64(), nullable=False),  # running number in the chain, from 0
        pa.field("batch_rows", pa.int32(), nullable=False),
        pa.field("batch_row", pa.int32(), nullable=False),  # 0 on the batch's first row
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),  # index in the request
        pa.field("request_rows", pa.int32(), nullable=False),  # 0: an empty request, which has one row all the same
        pa.field("primary", _WORD, nullable=False),
        pa.field("latency_us", pa.int64(), nullable=False),  # end to end, of the client's answer
        *_side("baseline", *_SIDE_FIELDS),
        *_side("candidate", *_SIDE_FIELDS),
        pa.field("max_delta", pa.float64(), nullable=True),
        pa.field("mean_delta", pa.float64(), nullable=True),
    ]
)


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of scores of different widths: row i has ``widths[i]`` of the values; width 0 is no scores at all."""

    widths: NDArray[np.int64]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, column: pa.Array) -> "Ragged":
        """The scores of a ``list<float32>`` column, null where there are none."""
        widths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return cls(widths, column.flatten().to_numpy(zero_copy_only=False))

    def column(self) -> pa.Array:
        """The inverse of ``of``."""
        offsets = np.concatenate(([0], np.cumsum(self.widths))).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(self.values), mask=pa.array(self.widths == 0))

    def matrix(self, rows: NDArray[np.bool_], width: int) -> NDArray[np.float32]:
        """The chosen rows, all of this width, as an array of shape [rows, width]."""
        values = self.values if rows.all() else self.values[np.repeat(rows, self.widths)]
        return values.reshape(-1, width)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactSide:
    """One side of a compact pair; the tuples have an entry per request."""

    statuses: tuple[int, ...]
    errors: tuple[str | None, ...]
    widths: tuple[int, ...]
    values: NDArray[np.float32]
    batch: int
    service_us: int | None
    memory_bytes: int | None

    @property
    def failures(self) -> list[str]:
        """What was said of the requests that it failed; an input that it rejected is not its failure."""
        return [text for text, code in zip(self.errors, self.statuses, strict=True) if text and code != _REJECTED]


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactPair:
    """A pair without its receive buffers: the scores of the compared output as float32, and the measures."""

    at_unix_us: int
    stage: int
    primary: int
    request_ids: tuple[str, ...]
    rows: tuple[int, ...]
    latencies_us: tuple[int, ...]
    baseline: CompactSide
    candidate: CompactSide

    @property
    def nbytes(self) -> int:
        """Roughly what it holds in memory."""
        return self.baseline.values.nbytes + self.candidate.values.nbytes + _REQUEST_BYTES * len(self.rows)

    def mirrored(self) -> dict[Status, int]:
        """Items by how they ended on the side that did not answer the client; those never run there are left out."""
        side = self.candidate if ARMS[self.primary] is Arm.BASELINE else self.baseline
        items: dict[Status, int] = {}
        for code, rows in zip(side.statuses, self.rows, strict=True):
            if code != _ABSENT:
                items[STATUSES[code]] = items.get(STATUSES[code], 0) + rows
        return items


def compact(pair: Pair, output: str) -> CompactPair:
    """Copy out of a pair what its rows need.

    An answer whose ``output`` is missing, not numeric or does not divide into the request's rows counts as malformed;
    an input that one side rejected and the other took, as the error of the side that rejected it.
    Scores are kept only where both sides ran: one alone is evidence for nothing.

    Raises:
        ValueError: the pair's tuples have different lengths.
    """
    return CompactPair(
        at_unix_us=pair.at_unix_us,
        stage=pair.stage,
        primary=ARMS.index(pair.primary),
        request_ids=tuple(map(_text, pair.request_ids)),
        rows=pair.rows,
        latencies_us=tuple(round(latency * 1000) for latency in pair.latencies_ms),
        baseline=_compact_side(pair.baseline, pair.candidate, pair.rows, output),
        candidate=_compact_side(pair.candidate, pair.baseline, pair.rows, output),
    )


def _compact_side(mine: Outcome, other: Outcome, rows: Sequence[int], output: str) -> CompactSide:
    statuses, errors, widths, parts = [], [], [], []
    for answer, opposite, count in zip(mine.answers, other.answers, rows, strict=True):
        code, error, scores = _CODES[answer.status], answer.error, None
        if code == _OK and count and opposite.status is not Status.ABSENT:
            scores, error = _scores(answer, output, count)
            code = _CODES[Status.MALFORMED] if scores is None else code
        elif code == _REJECTED and opposite.status is Status.OK:
            code = _CODES[Status.ERROR]
        statuses.append(code)
        errors.append(_text(error)[:ERROR_CHARACTERS] if error else None)
        widths.append(0 if scores is None else scores.size // count)
        if scores is not None:
            parts.append(scores)
    return CompactSide(
        statuses=tuple(statuses),
        errors=tuple(errors),
        widths=tuple(widths),
        values=_copied(parts),
        batch=_batch_status(statuses),
        service_us=None if mine.service_ms is None else round(mine.service_ms * 1000),
        memory_bytes=mine.peak_memory_bytes,
    )


def _copied(parts: Sequence[Array]) -> NDArray[np.float32]:
    """All values in one new array; doubles too large for float32 become infinite."""
    if not parts:
        return np.empty(0, np.float32)
    with np.errstate(over="ignore") if parts[0].itemsize > 4 else nullcontext():
        return np.concatenate(parts, axis=None, dtype=np.float32, casting="unsafe")


def _scores(answer: Answer, output: str, rows: int) -> tuple[Array | None, str]:
    """The answer's scores, or None and what is wrong with them."""
    scores = (answer.outputs or {}).get(output)
    if scores is None:
        return None, f"no output {output!r}"
    if scores.dtype.kind not in "fiub":
        return None, f"output {output!r} is not numeric"
    if not scores.size or scores.size % rows:
        return None, f"output {output!r} has {scores.size} values for {rows} rows"
    return scores, answer.error


def _batch_status(statuses: Iterable[int]) -> int:
    """OK when any request is; else the first that the model failed; else REJECTED, or ABSENT when none ran."""
    found = list(statuses)
    failed = (code for code in found if code not in (_ABSENT, _REJECTED))
    return _OK if _OK in found else next(failed, _REJECTED if _REJECTED in found else _ABSENT)


def _text(value: str) -> str:
    """Text that UTF-8 can hold: a client may send half a surrogate pair."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def to_table(pairs: Sequence[CompactPair], comparator: Comparator, first_batch: int) -> pa.Table:
    """The rows of some pairs, compared; batches are numbered from ``first_batch``.

    Raises:
        ShadowError: the comparator's arrays are not what its contract says.
    """
    request_rows = np.fromiter(chain.from_iterable(pair.rows for pair in pairs), dtype=np.int32)
    slots = np.maximum(request_rows, 1)  # an empty request has a row too
    requests = np.fromiter((len(pair.rows) for pair in pairs), dtype=np.int64, count=len(pairs))
    request = np.repeat(np.arange(len(slots)), slots)  # row → request
    batch = np.repeat(np.arange(len(pairs)), requests)[request]  # row → batch
    columns = {
        "at_unix_us": _each(pairs, "at_unix_us", batch),
        "stage": _each(pairs, "stage", batch).cast(pa.int32()),
        "batch": pa.array(batch + first_batch),
        "batch_rows": _ints([sum(pair.rows) for pair in pairs], batch),
        "batch_row": _position(batch),
        "request_id": _flat(pairs, "request_ids", pa.string()).take(pa.array(request)),
        "item": _position(request),
        "request_rows": pa.array(request_rows[request]),
        "primary": _words([pair.primary for pair in pairs], ARMS, batch),
        "latency_us": _flat(pairs, "latencies_us", pa.int64()).take(pa.array(request)),
        **_side_columns("baseline", [pair.baseline for pair in pairs], request, batch),
        **_side_columns("candidate", [pair.candidate for pair in pairs], request, batch),
    }
    columns |= comparison_columns(columns["baseline_scores"], columns["candidate_scores"], comparator)
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _side_columns(name: str, sides: Sequence[CompactSide], request: Array, batch: Array) -> dict[str, pa.Array]:
    widths = np.fromiter(chain.from_iterable(side.widths for side in sides), dtype=np.int64)
    scores = Ragged(widths[request], np.concatenate([side.values for side in sides]))
    return {
        f"{name}_status": _words(list(chain.from_iterable(side.statuses for side in sides)), STATUSES, request),
        f"{name}_error": _flat(sides, "errors", pa.string()).take(pa.array(request)),
        f"{name}_batch": _words([side.batch for side in sides], STATUSES, batch),
        f"{name}_service_us": _each(sides, "service_us", batch),
        f"{name}_memory_bytes": _each(sides, "memory_bytes", batch),
        f"{name}_scores": scores.column(),
    }


def _flat(owners: Sequence[Any], name: str, kind: pa.DataType) -> pa.Array:
    return pa.array(list(chain.from_iterable(getattr(owner, name) for owner in owners)), kind)


def _each(owners: Sequence[Any], name: str, rows: Array) -> pa.Array:
    return pa.array([getattr(owner, name) for owner in owners], pa.int64()).take(pa.array(rows))


def _ints(values: list[int], rows: Array) -> pa.Array:
    return pa.array(np.array(values, dtype=np.int32)[rows])


def _position(owner: Array) -> pa.Array:
    """The index of each row within its run of equal owners, which count up from 0 without gaps."""
    starts = np.searchsorted(owner, np.arange(owner[-1] + 1 if len(owner) else 0))
    return pa.array((np.arange(len(owner)) - starts[owner]).astype(np.int32))


def _words(codes: list[int], words: Sequence[str], rows: Array) -> pa.Array:
    indices = pa.array(np.array(codes, dtype=np.int32)[rows])
    return pa.DictionaryArray.from_arrays(indices, pa.array([str(word) for word in words]))


def comparison_columns(baseline: pa.Array, candidate: pa.Array, comparator: Comparator) -> dict[str, pa.Array]:
    """The columns that follow from the scores: both top-1, and the differences where both sides have scores.

    Raises:
        ShadowError: the comparator's arrays are not what its contract says.
    """
    left, right = Ragged.of(baseline), Ragged.of(candidate)
    size = len(left.widths)
    numbers = {name: np.zeros(size) for name in ("max_delta", "mean_delta", "baseline_top1", "candidate_top1")}
    for widths in sorted(set(zip(left.widths.tolist(), right.widths.tolist(), strict=True)) - {(0, 0)}):
        rows = (left.widths == widths[0]) & (right.widths == widths[1])
        comparison = _compare(left, right, rows, widths, comparator)
        for name, column in numbers.items():
            column[rows] = getattr(comparison, name)
    no_left, no_right = left.widths == 0, right.widths == 0
    return {
        "max_delta": pa.array(numbers["max_delta"], mask=no_left | no_right),
        "mean_delta": pa.array(numbers["mean_delta"], mask=no_left | no_right),
        "baseline_top1": pa.array(numbers["baseline_top1"].astype(np.int32), mask=no_left),
        "candidate_top1": pa.array(numbers["candidate_top1"].astype(np.int32), mask=no_right),
    }


def _compare(
    left: Ragged, right: Ragged, rows: NDArray[np.bool_], widths: tuple[int, int], comparator: Comparator
) -> Comparison:
    """Compare rows of one pair of widths; a side alone is compared with itself, for its top-1."""
    baseline = left.matrix(rows, widths[0]) if widths[0] else right.matrix(rows, widths[1])
    candidate = right.matrix(rows, widths[1]) if widths[1] else baseline
    found = comparator.compare({comparator.output: baseline}, {comparator.output: candidate})
    for name in ("max_delta", "mean_delta", "baseline_top1", "candidate_top1"):
        if np.shape(getattr(found, name)) != (len(baseline),):
            raise ShadowError(f"comparator: {name}: expected an array of shape [{len(baseline)}]")
    return Comparison(
        max_delta=np.fmin(found.max_delta, DELTA_CAP),
        mean_delta=np.fmin(found.mean_delta, DELTA_CAP),
        baseline_top1=found.baseline_top1,
        candidate_top1=found.candidate_top1,
    )
