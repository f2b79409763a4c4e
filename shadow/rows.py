"""From pairs to rows: one row per item, as Parquet columns.

A pair is compacted as soon as it is offered: the outputs that the comparator reads are copied out of the receive
buffers, what is structurally wrong is found, and the rest is let go. Rows are made of many compact pairs at once,
column by column.

A side's outputs are kept as one list of float32 an item, in the order in which the comparator names them, and a word
for their layout: ``boxes:100,4;scores:100``. From both the comparator's arrays are had again, and anyone can compare
anew. An item with more values than ``KEPT_VALUES`` keeps its layout, and what the comparison gave, alone.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from math import prod
from typing import Any, Final, NamedTuple, Self, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.tensor import Array
from shadow.cells import PLAIN, Cell, cells_of
from shadow.comparators import DELTA_CAP, Comparator
from shadow.errors import EvidenceError, ShadowError
from shadow.evidence import LONGEST_US
from shadow.findings import find
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.slices import NONE

ARMS: Final = tuple(Arm)
TWIN: Final = "twin"
SIDES: Final = (*(str(arm) for arm in ARMS), TWIN)  # as their columns begin
STATUSES: Final = tuple(Status)
ERROR_CHARACTERS: Final = 200
KEPT_VALUES: Final = 4096  # of an item on a side; 16 KB
Layout: TypeAlias = tuple[tuple[int, ...], ...]  # an item's shape in each output of the comparator
Find: TypeAlias = Callable[[Answer, Answer, int], int]
_CODES: Final = {status: code for code, status in enumerate(STATUSES)}
_OK, _ABSENT, _REJECTED = _CODES[Status.OK], _CODES[Status.ABSENT], _CODES[Status.REJECTED]
_MALFORMED: Final = _CODES[Status.MALFORMED]
_REQUEST_BYTES: Final = 500  # what a compact request holds beside its scores, roughly
_SIZE: Final = re.compile(r"[0-9]{1,9}")
_MOST_VALUES: Final = 2**31 - 1  # that a list of Arrow holds

_WORD: Final = pa.dictionary(pa.int32(), pa.string())


def _side(name: str, *fields: tuple[str, pa.DataType, bool]) -> list[pa.Field]:
    return [pa.field(f"{name}_{field}", kind, nullable=nullable) for field, kind, nullable in fields]


_SIDE_FIELDS: Final = (
    ("status", _WORD, False),  # of the request
    ("error", pa.string(), True),  # short reason
    ("batch", _WORD, False),  # of the batch: ok when any of its requests is
    ("service_us", pa.int64(), True),  # of the batch, by the wall's clock
    ("service_cpu_us", pa.int64(), True),  # by the clock of the replica's thread
    ("service_gpu_us", pa.int64(), True),  # between CUDA events
    ("memory_bytes", pa.int64(), True),  # of the batch
    ("layout", _WORD, True),
    ("scores", pa.list_(pa.float32()), True),  # null too where the layout holds more than the kept values
    ("top1", pa.int32(), True),
)

SCHEMA: Final = pa.schema(
    [
        pa.field("at_unix_us", pa.int64(), nullable=False),
        pa.field("stage", pa.int32(), nullable=False),
        pa.field("batch", pa.int64(), nullable=False),  # running number in the chain, from 0
        pa.field("batch_rows", pa.int32(), nullable=False),  # of the batch as it ran, with what is no evidence
        pa.field("batch_row", pa.int32(), nullable=False),  # 0 on the batch's first row
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),  # index in the request
        pa.field("request_rows", pa.int32(), nullable=False),  # 0: an empty request, which has one row all the same
        pa.field("slice", _WORD, nullable=False),  # of the request; "" is none
        pa.field("primary", _WORD, nullable=False),
        pa.field("latency_us", pa.int64(), nullable=False),  # end to end, of the client's answer
        *_side("baseline", *_SIDE_FIELDS),
        *_side("candidate", *_SIDE_FIELDS),
        *_side(TWIN, *_SIDE_FIELDS),  # absent where no twin ran the batch
        pa.field("max_delta", pa.float64(), nullable=True),
        pa.field("mean_delta", pa.float64(), nullable=True),
        pa.field("measures", pa.list_(pa.float64()), nullable=True),  # in the comparator's order; NaN: does not apply
        pa.field("findings", pa.int32(), nullable=False),  # of the request, on its first row: bits of shadow.findings
        pa.field("twin_max_delta", pa.float64(), nullable=True),  # of the twin against the baseline: the noise
        pa.field("twin_mean_delta", pa.float64(), nullable=True),
        pa.field("twin_findings", pa.int32(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Scores:
    """What the comparator reads of one side, row by row.

    Row i has the layout ``layouts[codes[i]]``, or nothing to compare where its code is −1; ``values`` are those of all
    rows one after another. Read from evidence, a row whose values were not kept has the code −1, and in ``lost`` the
    number of values that its layout says it had.
    """

    layouts: tuple[Layout, ...]
    codes: NDArray[np.int64]
    values: NDArray[np.float32]
    lost: NDArray[np.int64]

    @classmethod
    def of(cls, layout: pa.Array, scores: pa.Array) -> Self:
        """The scores of a side's two columns.

        Raises:
            EvidenceError: a layout cannot be read, or a row does not have as many values as its layout says.
        """
        layouts = tuple(map(read_layout, layout.dictionary.to_pylist()))
        codes = layout.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
        there = scores.is_valid().to_numpy(zero_copy_only=False)
        lengths = scores.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        widths = _widths(layouts, codes)
        wrong = there & ((lengths != widths) | (codes < 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise EvidenceError(f"row {row}: scores: {lengths[row]} values, where its layout has {widths[row]}")
        values = scores.flatten().to_numpy(zero_copy_only=False)
        return cls(layouts, np.where(there, codes, -1), values, np.where(there, 0, widths))

    @property
    def widths(self) -> NDArray[np.int64]:
        """How many values each row has."""
        return _widths(self.layouts, self.codes)

    def columns(self, outputs: Sequence[str], kept_values: int) -> dict[str, pa.Array]:
        """The inverse of ``of``, without the values of rows that have more than ``kept_values``."""
        widths, there = self.widths, self.codes >= 0
        kept = there & (widths <= kept_values)
        values = self.values
        if not np.array_equal(kept, there):
            values, widths = values[np.repeat(kept, widths)], np.where(kept, widths, 0)
        words = pa.array([spell_layout(outputs, layout) for layout in self.layouts], pa.string())
        return {
            "layout": pa.DictionaryArray.from_arrays(pa.array(self.codes.astype(np.int32), mask=~there), words),
            "scores": _lists(widths, values, kept),
        }

    def arrays(self, rows: NDArray[np.intp], outputs: Sequence[str]) -> dict[str, Array]:
        """What the comparator is given of some rows, in ascending order and all of one layout."""
        layout = self.layouts[self.codes[rows[0]]]
        if len(rows) == len(self.codes):
            values = self.values
        else:
            chosen = np.zeros(len(self.codes), np.bool_)
            chosen[rows] = True
            values = self.values[np.repeat(chosen, self.widths)]
        if len(outputs) == 1:
            return {outputs[0]: values.reshape(len(rows), *layout[0])}
        matrix = values.reshape(len(rows), size_of(layout))
        edges = np.cumsum([prod(shape) for shape in layout])[:-1]
        parts = zip(outputs, layout, np.split(matrix, edges, axis=1), strict=True)
        return {name: part.reshape(len(rows), *shape) for name, shape, part in parts}


def _widths(layouts: Sequence[Layout], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many values each row has; 0 where its code is −1, which is the last of the sizes."""
    widths: NDArray[np.int64] = np.array([*map(size_of, layouts), 0], np.int64)[codes]
    return widths


def size_of(layout: Layout) -> int:
    """How many values an item of a layout has."""
    return sum(map(prod, layout))


def spell_layout(outputs: Sequence[str], layout: Layout) -> str:
    """A layout as a word: ``boxes:100,4;scores:100``."""
    return ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in zip(outputs, layout, strict=True))


def read_layout(word: str) -> Layout:
    """The inverse of ``spell_layout``; names may hold colons.

    Raises:
        EvidenceError: it is not the word of a layout.
    """
    shapes = [part.rpartition(":")[2].split(",") for part in word.split(";")]
    if not all(_SIZE.fullmatch(size) for shape in shapes for size in shape):
        raise EvidenceError(f"layout: expected NAME:SIZE,…;…, got {word!r}")
    layout = tuple(tuple(map(int, shape)) for shape in shapes)
    if size_of(layout) > _MOST_VALUES:
        raise EvidenceError(f"layout: expected {_MOST_VALUES} values at most, got {word!r}")
    return layout


class CompactSide(NamedTuple):
    """One side of a compact pair; the tuples have an entry per request.

    A tuple, because one is made for every side of every mirrored batch: a frozen dataclass takes four times as long.
    """

    statuses: tuple[int, ...]
    errors: tuple[str | None, ...]
    layouts: tuple[Layout | None, ...]
    values: NDArray[np.float32]
    batch: int
    service_us: int | None = None
    service_cpu_us: int | None = None
    service_gpu_us: int | None = None
    memory_bytes: int | None = None

    @property
    def failures(self) -> list[str]:
        """What was said of the requests that it failed; an input that it rejected is not its failure."""
        return [text for text, code in zip(self.errors, self.statuses, strict=True) if text and code != _REJECTED]


class CompactPair(NamedTuple):
    """A pair without its receive buffers: what the comparator reads as float32, the findings, and the measures."""

    at_unix_us: int
    stage: int
    primary: int
    request_ids: tuple[str, ...]
    rows: tuple[int, ...]
    ran_rows: int
    latencies_us: tuple[int, ...]
    slices: tuple[str, ...]  # empty: none
    cells: tuple[Cell, ...]  # where each request is counted; empty: all in one
    baseline: CompactSide
    candidate: CompactSide
    twin: CompactSide | None
    findings: tuple[int, ...]
    twin_findings: tuple[int, ...]  # empty: none

    @property
    def nbytes(self) -> int:
        """Roughly what it holds in memory."""
        values = self.baseline.values.nbytes + self.candidate.values.nbytes
        return values + (self.twin.values.nbytes if self.twin else 0) + _REQUEST_BYTES * len(self.rows)

    def mirrored(self) -> Iterator[tuple[Status, Cell, int]]:
        """Items by how they ended on the side that did not answer the client; those never run there are left out."""
        side = self.candidate if ARMS[self.primary] is Arm.BASELINE else self.baseline
        for code, cell, rows in zip(side.statuses, self.cells or repeat(PLAIN), self.rows, strict=False):
            if code != _ABSENT:
                yield STATUSES[code], cell, rows


def compact(pair: Pair, comparator: Comparator, *, find: Find = find, find_noise: Find = find) -> CompactPair:
    """Copy out of a pair what its rows need.

    An answer without an output that the comparator reads, or with one that is not numeric or does not divide into the
    request's rows, counts as malformed; an input that one side rejected and the other took, as the error of the side
    that rejected it. Scores are kept only where two sides ran: one alone is evidence for nothing.

    Args:
        pair: the pair.
        comparator: what its rows will be compared with.
        find: the mask of what is structurally wrong with the candidate's answer to a request (``shadow.findings``).
        find_noise: the same, asked of the twin's answer.

    Raises:
        ValueError: the pair's tuples have different lengths.
    """
    baseline, candidate, twin = pair.baseline, pair.candidate, pair.twin
    outputs, may_be_empty = comparator.outputs, bool(getattr(comparator, "may_be_empty", False))
    if pair.slices and len(pair.slices) != len(pair.rows):
        raise ValueError(f"{len(pair.slices)} slices for {len(pair.rows)} requests")
    return CompactPair(
        at_unix_us=pair.at_unix_us,
        stage=pair.stage,
        primary=ARMS.index(pair.primary),
        request_ids=tuple(map(_text, pair.request_ids)),
        rows=pair.rows,
        ran_rows=pair.ran_rows or sum(pair.rows),
        latencies_us=tuple(round(latency * 1000) for latency in pair.latencies_ms),
        slices=tuple(map(_text, pair.slices)) if any(pair.slices) else (),
        cells=cells_of(pair.sizes, pair.slices) if pair.sizes else (),
        baseline=_compact_side(baseline, candidate, pair.rows, outputs, may_be_empty, other=twin),
        candidate=_compact_side(candidate, baseline, pair.rows, outputs, may_be_empty),
        twin=None if twin is None else _compact_side(twin, baseline, pair.rows, outputs, may_be_empty),
        findings=tuple(map(find, baseline.answers, candidate.answers, pair.rows)),
        twin_findings=() if twin is None else tuple(map(find_noise, baseline.answers, twin.answers, pair.rows)),
    )


def _compact_side(
    mine: Outcome,
    opposite: Outcome,
    rows: Sequence[int],
    outputs: Sequence[str],
    may_be_empty: bool,
    *,
    other: Outcome | None = None,
) -> CompactSide:
    """One side beside the opposite one; with the ``other`` side too, which is as good to be compared with."""
    statuses, errors, layouts = [], [], []
    parts: list[Array] = []
    others = opposite.answers if other is None else other.answers
    for answer, against, beside, count in zip(mine.answers, opposite.answers, others, rows, strict=True):
        code, error, layout = _CODES[answer.status], answer.error, None
        if code == _OK:
            if count and not (against.status is Status.ABSENT and beside.status is Status.ABSENT):
                scores, layout, error = _read(answer, outputs, count, may_be_empty)
                code = _MALFORMED if layout is None else code
                parts += scores
        elif code == _REJECTED and (against.status is Status.OK or beside.status is Status.OK):
            code = _CODES[Status.ERROR]
        statuses.append(code)
        errors.append(_text(error)[:ERROR_CHARACTERS] if error else None)
        layouts.append(layout)
    return CompactSide(
        statuses=tuple(statuses),
        errors=tuple(errors),
        layouts=tuple(layouts),
        values=_copied(parts),
        batch=_batch_status(statuses),
        service_us=_microseconds(mine.service_ms),
        service_cpu_us=_microseconds(mine.cpu_ms),
        service_gpu_us=_microseconds(mine.gpu_ms),
        memory_bytes=mine.peak_memory_bytes,
    )


def _microseconds(milliseconds: float | None) -> int | None:
    return None if milliseconds is None else min(round(milliseconds * 1000), LONGEST_US)


def _copied(parts: Sequence[Array]) -> NDArray[np.float32]:
    """All values in one new array; doubles too large for float32 become infinite."""
    if not parts:
        return np.empty(0, np.float32)
    if len(parts) == 1 and parts[0].itemsize <= 4:
        return parts[0].astype(np.float32, order="C").ravel()
    with np.errstate(over="ignore"):
        return np.concatenate(parts, axis=None, dtype=np.float32, casting="unsafe")


def _read(
    answer: Answer, outputs: Sequence[str], rows: int, may_be_empty: bool
) -> tuple[Sequence[Array], Layout | None, str]:
    """The answer's scores, item after item, and their layout; or no layout, and what is wrong with them."""
    there = answer.outputs or {}
    arrays, shapes = [], []
    for name in outputs:
        array = there.get(name)
        if array is None:
            return (), None, f"no output {name!r}"
        if array.dtype.kind not in "fiub":
            return (), None, f"output {name!r} is not numeric"
        shape = _item_shape(array, rows)
        if shape is None or not (array.size or may_be_empty):
            return (), None, f"output {name!r} has {array.size} values for {rows} rows"
        arrays.append(array)
        shapes.append(shape)
    if len(arrays) > 1:
        with np.errstate(over="ignore"):
            items = [array.reshape(rows, prod(shape)) for array, shape in zip(arrays, shapes, strict=True)]
            arrays = [np.concatenate(items, axis=1, dtype=np.float32, casting="unsafe")]
    return arrays, tuple(shapes), answer.error


def _item_shape(array: Array, rows: int) -> tuple[int, ...] | None:
    """The shape of one row of an output: of all of it, where a model without batch dimension gave it for one row."""
    shape = array.shape
    if shape[:1] == (rows,):
        return shape[1:] or (1,)
    if rows == 1:
        return shape or (1,)
    return (array.size // rows,) if array.size % rows == 0 else None


def _batch_status(statuses: Sequence[int]) -> int:
    """OK when any request is; else the first that the model failed; else REJECTED, or ABSENT when none ran."""
    if _OK in statuses:
        return _OK
    failed = (code for code in statuses if code not in (_ABSENT, _REJECTED))
    return next(failed, _REJECTED if _REJECTED in statuses else _ABSENT)


def _text(value: str) -> str:
    """Text that UTF-8 can hold: a client may send half a surrogate pair."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def to_table(
    pairs: Sequence[CompactPair], comparator: Comparator, first_batch: int, *, kept_values: int = KEPT_VALUES
) -> pa.Table:
    """The rows of some pairs, compared; batches are numbered from ``first_batch``.

    Raises:
        ShadowError: the comparator's arrays are not what its contract says.
    """
    facts = _by_field(pairs)
    request_rows = np.fromiter(chain.from_iterable(facts["rows"]), dtype=np.int32)
    slots = np.maximum(request_rows, 1)  # an empty request has a row too
    requests = np.fromiter(map(len, facts["rows"]), dtype=np.int64)
    request = np.repeat(np.arange(len(slots)), slots)  # row → request
    batch = np.repeat(np.arange(len(pairs)), requests)[request]  # row → batch
    item = _position(request)
    sides = {
        "baseline": _Sides(_by_field(facts["baseline"]), request, batch),
        "candidate": _Sides(_by_field(facts["candidate"]), request, batch),
        TWIN: _twins(facts["twin"], requests, request, batch),
    }
    scores = {name: side.scores() for name, side in sides.items()}
    columns = {
        "at_unix_us": _each(facts["at_unix_us"], batch),
        "stage": _ints(facts["stage"], batch),
        "batch": pa.array(batch + first_batch),
        "batch_rows": _ints(facts["ran_rows"], batch),
        "batch_row": pa.array(_position(batch)),
        "request_id": _flat(facts["request_ids"], pa.string(), request),
        "item": pa.array(item),
        "request_rows": pa.array(request_rows[request]),
        "slice": _slices(facts["slices"], requests, request),
        "primary": _words(facts["primary"], ARMS, batch),
        "latency_us": _flat(facts["latencies_us"], pa.int64(), request),
        "findings": _masks(facts["findings"], requests, request, item),
        "twin_findings": _masks(facts["twin_findings"], requests, request, item),
    }
    for name, side in sides.items():
        found = side.columns() | scores[name].columns(comparator.outputs, kept_values)
        columns |= {f"{name}_{field}": column for field, column in found.items()}
    columns |= comparison_columns(scores, batch, comparator)
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)


def _by_field(owners: Sequence[NamedTuple]) -> dict[str, tuple[Any, ...]]:
    """What all of them have in each field; one pass for all fields, and one that runs in C."""
    return dict(zip(owners[0]._fields, zip(*owners, strict=True), strict=True))


@dataclass(frozen=True, slots=True)
class _Sides:
    """One side of some pairs, by field; which request and which batch of theirs each row is of."""

    facts: Mapping[str, tuple[Any, ...]]
    request: Array
    batch: Array

    def scores(self) -> Scores:
        layouts: list[Layout | None] = list(chain.from_iterable(self.facts["layouts"]))
        known = tuple(layout for layout in dict.fromkeys(layouts) if layout is not None)
        places: dict[Layout | None, int] = {layout: place for place, layout in enumerate(known)}
        places[None] = -1
        codes = np.fromiter(map(places.__getitem__, layouts), np.int64)
        values = np.concatenate(self.facts["values"])
        return Scores(known, codes[self.request], values, np.zeros(len(self.request), np.int64))

    def columns(self) -> dict[str, pa.Array]:
        facts, request, batch = self.facts, self.request, self.batch
        return {
            "status": _words(list(chain.from_iterable(facts["statuses"])), STATUSES, request),
            "error": _flat(facts["errors"], pa.string(), request),
            "batch": _words(facts["batch"], STATUSES, batch),
            "service_us": _each(facts["service_us"], batch),
            "service_cpu_us": _each(facts["service_cpu_us"], batch),
            "service_gpu_us": _each(facts["service_gpu_us"], batch),
            "memory_bytes": _each(facts["memory_bytes"], batch),
        }


def _twins(twins: Sequence[CompactSide | None], requests: Array, request: Array, batch: Array) -> _Sides:
    if not any(twins):
        return _Sides(_by_field([_absent(1)]), np.zeros_like(request), np.zeros_like(batch))  # one does for all rows
    sides = [twin or _absent(count) for twin, count in zip(twins, requests.tolist(), strict=True)]
    return _Sides(_by_field(sides), request, batch)


def _absent(requests: int) -> CompactSide:
    """A side that never ran a batch."""
    nothing = (None,) * requests
    return CompactSide(
        statuses=(_ABSENT,) * requests,
        errors=nothing,
        layouts=nothing,
        values=np.empty(0, np.float32),
        batch=_ABSENT,
    )


def _flat(values: Iterable[Iterable[Any]], kind: pa.DataType, rows: Array) -> pa.Array:
    return pa.array(list(chain.from_iterable(values)), kind).take(pa.array(rows))


def _each(values: Sequence[int | None], rows: Array) -> pa.Array:
    return pa.array(values, pa.int64()).take(pa.array(rows))


def _ints(values: Sequence[int], rows: Array) -> pa.Array:
    return pa.array(np.array(values, dtype=np.int32)[rows])


def _masks(masks: Sequence[tuple[int, ...]], requests: Array, request: Array, item: Array) -> pa.Array:
    """The mask of each request, on its first row."""
    if not any(map(any, masks)):
        return pa.array(np.zeros(len(request), np.int32))
    each = np.fromiter(chain.from_iterable(_filled(masks, 0, requests)), np.int32)
    return pa.array(np.where(item == 0, each[request], 0).astype(np.int32))


def _slices(names: Sequence[tuple[str, ...]], requests: Array, request: Array) -> pa.Array:
    if not any(names):
        return _words([0], (NONE,), np.zeros_like(request))
    each = list(chain.from_iterable(_filled(names, NONE, requests)))
    return pa.array(each, pa.string()).dictionary_encode().take(pa.array(request))


def _filled(each: Sequence[tuple[Any, ...]], nothing: Any, requests: Array) -> Iterator[tuple[Any, ...]]:
    """One for every request; a pair with none has ``nothing`` for each of its requests."""
    for some, count in zip(each, requests.tolist(), strict=True):
        yield some or (nothing,) * count


def _position(owner: Array) -> NDArray[np.int32]:
    """The index of each row within its run of equal owners, which count up from 0 without gaps."""
    starts = np.searchsorted(owner, np.arange(owner[-1] + 1 if len(owner) else 0))
    position: NDArray[np.int32] = (np.arange(len(owner)) - starts[owner]).astype(np.int32)
    return position


def _words(codes: Sequence[int], words: Sequence[str], rows: Array) -> pa.Array:
    indices = pa.array(np.array(codes, dtype=np.int32)[rows])
    return pa.DictionaryArray.from_arrays(indices, pa.array([str(word) for word in words]))


def _lists(widths: Array, values: Array, there: NDArray[np.bool_]) -> pa.Array:
    """A column of lists: of as many values as ``widths`` says, null where they are not ``there``."""
    offsets = np.concatenate(([0], np.cumsum(widths))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=pa.array(~there))


def comparison_columns(
    scores: Mapping[str, Scores], batch: NDArray[np.int64], comparator: Comparator
) -> dict[str, pa.Array]:
    """The columns that follow from the sides' scores: top-1 of each, and where two have scores what differs.

    ``batch`` is the number of each row's batch, ascending.

    Raises:
        ShadowError: the comparator's arrays are not what its contract says.
    """
    baseline, candidate, twin = (scores[name] for name in SIDES)
    pairs, noise = _Compared.of(baseline, candidate, batch, comparator), _Compared.none(baseline, comparator)
    if (twin.codes >= 0).any():
        noise = _Compared.of(baseline, twin, batch, comparator)
    return {
        "max_delta": pairs.column("max_delta"),
        "mean_delta": pairs.column("mean_delta"),
        "measures": pairs.measure_column(),
        "baseline_top1": pairs.top1_column("baseline_top1", baseline),
        "candidate_top1": pairs.top1_column("candidate_top1", candidate),
        "twin_max_delta": noise.column("max_delta"),
        "twin_mean_delta": noise.column("mean_delta"),
        "twin_top1": noise.top1_column("candidate_top1", twin),
    }


_FIGURES: Final = ("max_delta", "mean_delta", "baseline_top1", "candidate_top1")


@dataclass(frozen=True, slots=True)
class _Compared:
    """Two sides compared, row by row; ``both`` are the rows where both have scores."""

    both: NDArray[np.bool_]
    figures: Mapping[str, NDArray[np.float64]]
    measures: NDArray[np.float64]  # [rows, measures]

    @classmethod
    def none(cls, scores: Scores, comparator: Comparator) -> Self:
        """Nothing compared: what ``of`` begins with."""
        n = len(scores.codes)
        measures = np.full((n, len(comparator.measures)), np.nan)
        return cls(np.zeros(n, np.bool_), {name: np.zeros(n) for name in _FIGURES}, measures)

    @classmethod
    def of(cls, left: Scores, right: Scores, batch: NDArray[np.int64], comparator: Comparator) -> Self:
        """Compare rows of equal layouts together; a side alone is compared with itself, for its top-1."""
        empty = cls.none(left, comparator)
        result = cls((left.codes >= 0) & (right.codes >= 0), empty.figures, empty.measures)
        layouts = (left.codes + 1) * (len(right.layouts) + 1) + right.codes + 1  # 0: no side has scores
        for layout in np.unique(layouts).tolist():
            rows = np.flatnonzero(layouts == layout)
            for some in _groups(rows, batch, comparator) if layout else ():
                result._compare(left, right, some, comparator)
        return result

    def _compare(self, left: Scores, right: Scores, rows: NDArray[np.intp], comparator: Comparator) -> None:
        sides = [side.arrays(rows, comparator.outputs) for side in (left, right) if side.codes[rows[0]] >= 0]
        found = comparator.compare(sides[0], sides[-1])
        n = len(rows)
        for name, figures in self.figures.items():
            values = _shaped(getattr(found, name), name, n)
            figures[rows] = np.fmin(values, DELTA_CAP) if name.endswith("delta") else values
        for at, measure in enumerate(comparator.measures if len(sides) > 1 else ()):
            values = _shaped(found.measures.get(measure.name, ()), f"measure {measure.name}", n)
            self.measures[rows, at] = np.clip(values, measure.low, measure.high)

    def column(self, name: str) -> pa.Array:
        """A figure where both sides have scores."""
        return pa.array(self.figures[name], mask=~self.both)

    def top1_column(self, name: str, side: Scores) -> pa.Array:
        """A side's top-1 where it has scores."""
        return pa.array(self.figures[name].astype(np.int32), mask=side.codes < 0)

    def measure_column(self) -> pa.Array:
        """All measures where both sides have scores."""
        n = self.measures.shape[1]
        there = self.both & bool(n)
        return _lists(np.where(there, n, 0), self.measures[there].ravel(), there)


def _shaped(values: Any, name: str, n: int) -> Array:
    if np.shape(values) != (n,):
        raise ShadowError(f"comparator: {name}: expected an array of shape [{n}]")
    array: Array = np.asarray(values)
    return array


def _groups(rows: NDArray[np.intp], batch: NDArray[np.int64], comparator: Comparator) -> Sequence[NDArray[np.intp]]:
    """Rows to be compared together: all at once, or batch by batch where the comparator needs it."""
    if not getattr(comparator, "by_batch", False):
        return [rows]
    return np.split(rows, np.flatnonzero(np.diff(batch[rows])) + 1)


def measure_matrix(column: pa.Array, count: int) -> NDArray[np.float64]:
    """The measures of each row, shape [rows, count]; NaN where it has none.

    Raises:
        EvidenceError: a row has another number of them.
    """
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    there = column.is_valid().to_numpy(zero_copy_only=False)
    if (lengths != np.where(there, count, 0)).any():
        raise EvidenceError(f"measures: expected {count} values, or none, in every row")
    values = np.full((len(column), count), np.nan)
    values[there] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, count) if count else 0.0
    return values
