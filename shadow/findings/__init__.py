"""Structural findings: what a mean |Δ| hides. A bit for each kind that one request of a pair shows.

A finding is a fact about one request, and no verdict: ``rollout.findings`` says when there are enough of them.

* *Missing or extra output*, *datatype*, *shape*: the candidate's answer against the baseline's, or as the candidate's
  replica refused it. Sizes of axes that the baseline declares variable may differ.
* *Encoding*: BYTES that hold the baseline's text in another character set, damaged, or in another base64 or JSON form;
  numbers that agree with the baseline's only after their bytes are swapped.
* *Not a number*: NaN where the baseline's output has none, or infinity where it has none.
* *Precision*: values on a coarser grid than the baseline's (``shadow.findings.grids``).
* *Constant*: one value, or one row, where the baseline's differ; or the same answer to different requests, for which a
  ``Finder`` remembers a bounded number of answers.

The rules are such that an honest candidate shows none of these, whatever its scores. What any model answers by right
(0, 1, a power of two, shares of a few votes, one class for most pictures) proves nothing; a coincidence of numbers must
have a probability below 1e-10 for each request.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Final

import numpy as np

from models.errors import Malformation
from models.signature import BYTES_KINDS
from models.spec import TensorSpec
from models.tensor import Array
from shadow.findings.constants import constant_numbers, constant_words
from shadow.findings.grids import coarser
from shadow.findings.numeric import (
    BRAIN,
    FLOATS,
    Float,
    byte_swapped,
    not_a_number,
)
from shadow.findings.repeats import Repeats
from shadow.findings.text import encoded_otherwise
from shadow.pair import Answer, Status


class Finding(StrEnum):
    """What is wrong with the form of an answer."""

    MISSING_OUTPUT = "missing output"
    EXTRA_OUTPUT = "extra output"
    DATATYPE = "datatype"
    SHAPE = "shape"
    ENCODING = "encoding"
    NOT_A_NUMBER = "not a number"
    PRECISION = "precision"
    CONSTANT = "constant"


# The order of the bits. Evidence on disk holds them: append only.
FINDINGS: Final[tuple[Finding, ...]] = (
    Finding.MISSING_OUTPUT,
    Finding.EXTRA_OUTPUT,
    Finding.DATATYPE,
    Finding.SHAPE,
    Finding.ENCODING,
    Finding.NOT_A_NUMBER,
    Finding.PRECISION,
    Finding.CONSTANT,
)

_BITS: Final[Mapping[Finding, int]] = {finding: 1 << place for place, finding in enumerate(FINDINGS)}
_MISSING, _EXTRA, _DATATYPE, _SHAPE, _ENCODING, _NAN, _PRECISION, _CONSTANT = (_BITS[finding] for finding in FINDINGS)
_REFUSED: Final[Mapping[Malformation, int]] = {
    Malformation.MISSING_OUTPUT: _MISSING,
    Malformation.EXTRA_OUTPUT: _EXTRA,
    Malformation.DATATYPE: _DATATYPE,
    Malformation.SHAPE: _SHAPE,
}


def named(mask: int) -> tuple[Finding, ...]:
    """The findings of a mask, in the order of ``FINDINGS``; bits beyond it, of a later release, are left out."""
    return tuple(finding for finding, bit in _BITS.items() if mask & bit)


def find(baseline: Answer, candidate: Answer, rows: int) -> int:
    """The findings in one request, as a mask; a function of the two answers alone.

    Args:
        baseline: its answer; unless it is OK, there is nothing to hold the candidate against, and nothing is found.
        candidate: its answer; OK, or MALFORMED with the error's text as the replica wrote it.
        rows: the batch rows of the request.

    Answers hold whatever two models said, so arrays of any content are taken. They are not changed or kept.
    """
    return _Search({}, None).run(baseline, candidate, rows)


class Finder:
    """``find`` for the requests of one rollout in a row: it knows what is declared, and what was answered before.

    ``declared`` are the baseline's outputs: an axis of size −1 may differ between the sides, and BF16, which numpy
    shows as bare words, is read as what it is. Without them every axis must agree.

    The memory of past answers (``Repeats``) is bounded, and the same requests in the same order give the same masks.
    But it is the recorder's own: routers that share the traffic each remember theirs, and what sets the bit is not in
    the evidence's rows as a whole. The masks themselves are, and sums are verified against them.
    """

    def __init__(self, declared: Iterable[TensorSpec] = ()) -> None:
        self._search = _Search({tensor.name: tensor for tensor in declared}, {})

    def find(self, baseline: Answer, candidate: Answer, rows: int) -> int:
        """The findings in the next request; see the function of this name."""
        return self._search.run(baseline, candidate, rows)


class _Search:
    """Looks through answers; with ``repeats`` (by output) also for the same answer to different requests."""

    __slots__ = ("_brain", "_free", "_repeats")

    def __init__(self, declared: Mapping[str, TensorSpec], repeats: dict[str, Repeats] | None) -> None:
        self._free = {
            name: frozenset(axis for axis, size in enumerate(tensor.shape) if size == -1)
            for name, tensor in declared.items()
        }
        self._brain = frozenset(name for name, tensor in declared.items() if tensor.datatype == "BF16")
        self._repeats = repeats

    def run(self, baseline: Answer, candidate: Answer, rows: int) -> int:
        if baseline.status is not Status.OK:
            return 0
        if candidate.status is not Status.OK:
            return _refused(candidate)
        before, after = baseline.outputs or {}, candidate.outputs or {}
        mask = 0
        if before.keys() != after.keys():
            mask = _MISSING * bool(before.keys() - after.keys()) | _EXTRA * bool(after.keys() - before.keys())
        for name, array in before.items():
            other = after.get(name)
            if other is not None:
                mask |= self._compare(name, array, other, rows)
        return mask

    def _compare(self, name: str, before: Array, after: Array, rows: int) -> int:
        kind = before.dtype.kind
        if before.dtype != after.dtype and not (kind in BYTES_KINDS and after.dtype.kind in BYTES_KINDS):
            return _DATATYPE
        if before.shape != after.shape:
            unlike = not _fits(before.shape, after.shape, self._free.get(name, frozenset()))
            return _SHAPE * unlike | _NAN * (kind == "f" and not_a_number(before, after))
        if kind in BYTES_KINDS:
            return _texts(before, after, rows)
        if kind == "f":
            return self._floats(name, FLOATS[before.dtype.itemsize], before, after, rows)
        if name in self._brain and before.itemsize == BRAIN.itemsize:
            return self._floats(name, BRAIN, before, after, rows)
        return _integers(before, after, rows)

    def _floats(self, name: str, datatype: Float, before: Array, after: Array, rows: int) -> int:
        left, right = before.tobytes(), after.tobytes()
        if left == right:
            return 0
        if _may_be_swapped(left, right, before.itemsize) and byte_swapped(before, after, datatype):
            return _ENCODING
        before, after = datatype.read(before), datatype.read(after)
        if not np.isfinite(after).all():
            return _NAN * not_a_number(before, after)  # which spoils whatever else could be said of the values
        mask = _PRECISION * coarser(before, after, datatype)
        if _may_be_constant(right, rows, datatype.itemsize) and constant_numbers(before, after, rows, datatype):
            return mask | _CONSTANT
        if self._repeats is None:
            return mask
        repeats = self._repeats.get(name)
        if repeats is None:
            repeats = self._repeats[name] = Repeats(datatype)
        return mask | _CONSTANT * repeats.add(before, after, rows)


def _refused(candidate: Answer) -> int:
    """What the candidate's replica said of an answer that does not fit its own declaration."""
    kind = Malformation.of(candidate.error) if candidate.status is Status.MALFORMED else None
    return 0 if kind is None else _REFUSED[kind]


def _fits(before: tuple[int, ...], after: tuple[int, ...], free: frozenset[int]) -> bool:
    """The same rank, and the same sizes but on free axes."""
    return len(before) == len(after) and all(
        size == other or axis in free for axis, (size, other) in enumerate(zip(before, after, strict=True))
    )


def _texts(before: Array, after: Array, rows: int) -> int:
    left, right = before.ravel().tolist(), after.ravel().tolist()
    if left == right:
        return 0
    return _ENCODING * encoded_otherwise(left, right) | _CONSTANT * constant_words(before, after, rows)


def _integers(before: Array, after: Array, rows: int) -> int:
    left, right = before.tobytes(), after.tobytes()
    if left == right:
        return 0
    swapped = _may_be_swapped(left, right, before.itemsize) and byte_swapped(before, after, None)
    constant = _may_be_constant(right, rows, before.itemsize) and constant_words(before, after, rows)
    return _ENCODING * swapped | _CONSTANT * constant


def _may_be_swapped(left: bytes, right: bytes, itemsize: int) -> bool:
    """Whether the first and the last value begin with the byte that the baseline's (little-endian) end with."""
    return itemsize > 1 and right[:1] == left[itemsize - 1 : itemsize] and right[-itemsize:][:1] == left[-1:]


def _may_be_constant(values: bytes, rows: int, itemsize: int) -> bool:
    """Whether the first value is the last, or the first row is."""
    row = len(values) // rows if rows > 1 else itemsize
    return values[:itemsize] == values[-itemsize:] or values[:row] == values[-row:]
