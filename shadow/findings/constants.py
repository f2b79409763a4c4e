"""Findings in arrays that are always the same, where the baseline's differ."""

from typing import Final

import numpy as np

from models.tensor import Array
from shadow.findings.grids import own_grid, values_of
from shadow.findings.numeric import PROOF_BITS, Float, trivial

# The share of the largest value by which two answers differ beyond noise, that of half precision included.
MATERIAL: Final = 0.01

_SATURATED: Final = 0.5  # the same share, beside values that are all 0 or all 1
_VARIED: Final = 5  # different values of the baseline, before it is strange that the candidate has one that is common
_RICH_BITS: Final = 32  # of an answer, that nothing else is given by chance
_LOOKED_AT: Final = 65_536  # words of an output


@np.errstate(all="ignore")
def constant_numbers(before: Array, after: Array, rows: int, datatype: Float) -> bool:
    """Whether all values of ``after``, or all its rows, are the same, where those of ``before`` differ beyond noise.

    That m values are equal by chance has a probability of (spacing / range)^(m−1) of the baseline's, and takes 40 bits:
    three of FP32, but more where the values are shares of a few votes. A saturated 0 or 1 is strange only where the
    baseline has five different values, and they differ by half of the largest: many scores are saturated by right. For
    that reason equal rows prove something only when they are rich in bits.
    """
    flat = after.reshape(-1)
    if bool((flat == flat[0]).all()):
        return _is_strange(before.reshape(-1), flat, datatype)
    if rows < 2 or after.shape[:1] != (rows,) or not bool((after == after[:1]).all()):
        return False
    return rich(after[:1], datatype) and differ(before.min(axis=0), before.max(axis=0), datatype)


def _is_strange(before: Array, flat: Array, datatype: Float) -> bool:
    """Whether one value stands where the baseline's values are."""
    low, high = before.min(), before.max()
    if trivial(np.frexp(flat[:1])[0])[0]:
        return bool(np.unique(before).size >= _VARIED) and differ(low, high, datatype, _SATURATED)
    values = values_of(before)
    spacing = own_grid(values, datatype).spacing(np.abs(values).max(keepdims=True))
    bits = (flat.size - 1) * np.log2((high - low) / spacing)
    return bool(bits.max() >= PROOF_BITS) and differ(low, high, datatype)


def constant_words(before: Array, after: Array, rows: int) -> bool:
    """The same for classes and texts, of which two that differ are often equal: one where the baseline has five."""
    flat, origin = after.reshape(-1)[:_LOOKED_AT], before.reshape(-1)[:_LOOKED_AT]
    if flat.size < _VARIED:
        return False
    if bool((flat == flat[0]).all()):
        return len(set(origin.tolist())) >= _VARIED
    if rows < _VARIED or after.shape[:1] != (rows,) or not bool((after == after[:1]).all()):
        return False
    return len({tuple(row.reshape(-1)[:_LOOKED_AT].tolist()) for row in before}) >= _VARIED


def differ(left: Array, right: Array, datatype: Float, share: float = MATERIAL) -> bool:
    """Whether two answers of one shape differ beyond noise: by a share of the largest value, itself no underflow."""
    largest = max(float(np.abs(left).max()), float(np.abs(right).max()))
    smallest = 2.0 ** (datatype.mantissa_bits + 2 - 2 ** (datatype.exponent_bits - 1))  # normal, over its precision
    return largest > smallest and bool(np.abs(np.subtract(left, right, dtype=np.float64)).max() > share * largest)


@np.errstate(all="ignore")
def rich(after: Array, datatype: Float) -> bool:
    """Whether an answer has so many bits that no other is the same by chance.

    The bits of a value say how far it is, in steps of the coarsest grid that holds the answer, from 0 and from the next
    power of two: where scores saturate, and where shares of a few votes are, there are few answers.
    """
    values = values_of(after)
    told = np.unique(np.abs(values))
    fraction, exponent = np.frexp(told)
    away = np.ldexp(np.minimum(fraction - 0.5, 1 - fraction), exponent)  # fractions are from 0.5 to 1
    bits = np.log2(away / own_grid(values, datatype).spacing(told))
    return bool(np.fmax(bits, 0).sum() >= _RICH_BITS)
