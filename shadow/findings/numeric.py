"""Floating point datatypes, and findings in their values: what is not a number, and whose bytes are swapped."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array

# Bits of coincidence that a proof takes. At some thirty hypotheses for each request, one is wrong with P < 1e-10.
PROOF_BITS: Final = 40

_AGREEMENT: Final = 0.25  # of the baseline's value: less than an octave, so that P ≤ 2^−(bits of the exponent)
_MOSTLY: Final = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Float:
    """A floating point datatype, and which grids of its numbers are coarse: those that say more than its own.

    Attributes:
        itemsize: bytes on the wire.
        mantissa_bits: stored ones, without the leading 1.
        coarse_bits: values that all have no more mantissa bits than these come from a smaller datatype; −1: there is
            none.
        fixed_point_bits: the k of the finest coarse 2^−k.
        decimals: the d of the finest coarse 10^−d.
        bare: numpy lacks it, and shows it as words of 16 bits: the upper half of an FP32.
    """

    itemsize: int
    exponent_bits: int
    mantissa_bits: int
    coarse_bits: int
    fixed_point_bits: int
    decimals: int
    bare: bool = False

    def read(self, array: Array) -> Array:
        """The values of an array of this datatype, as numpy knows them."""
        return (array.astype(np.uint32) << 16).view(np.float32) if self.bare else array


# FP16 may come from bfloat16, FP32 from either of them, FP64 from FP32.
HALF: Final = Float(itemsize=2, exponent_bits=5, mantissa_bits=10, coarse_bits=7, fixed_point_bits=8, decimals=2)
SINGLE: Final = Float(itemsize=4, exponent_bits=8, mantissa_bits=23, coarse_bits=10, fixed_point_bits=12, decimals=4)
DOUBLE: Final = Float(itemsize=8, exponent_bits=11, mantissa_bits=52, coarse_bits=23, fixed_point_bits=12, decimals=4)
BRAIN: Final = Float(
    itemsize=2, exponent_bits=8, mantissa_bits=7, coarse_bits=-1, fixed_point_bits=5, decimals=1, bare=True
)
FLOATS: Final[Mapping[int, Float]] = {each.itemsize: each for each in (HALF, SINGLE, DOUBLE)}


def not_a_number(before: Array, after: Array) -> bool:
    """Whether there is a NaN in ``after`` and none in ``before``, or an infinity and none there."""
    return any(bool(test(after).any()) and not bool(test(before).any()) for test in (np.isnan, np.isinf))


@np.errstate(all="ignore")
def byte_swapped(before: Array, after: Array, datatype: Float | None) -> bool:
    """Whether ``after`` agrees with ``before`` only once the bytes of its values are swapped.

    Floats (of ``datatype``) agree within a quarter of the baseline's value: an octave has one of 2^exponent bits
    patterns, so each different value that agrees is worth as many bits of proof. Integers (None) must be equal, and are
    worth all their bits. Most of the values that swapping changes must agree, and prove it together.
    """
    swapped = after.byteswap()
    if datatype is None:
        agrees, agreed = swapped == before, after == before
        bits = 8 * before.itemsize
    else:
        before, swapped, after = datatype.read(before), datatype.read(swapped), datatype.read(after)
        agrees, agreed = _agree(swapped, before), _agree(after, before)
        bits = datatype.exponent_bits
    told = (before != 0) & (swapped != after)
    hits = told & agrees & ~agreed
    if np.count_nonzero(hits) < max(_MOSTLY * np.count_nonzero(told), 1):
        return False
    return bool(np.unique(before[hits]).size * bits >= PROOF_BITS)


def _agree(values: Array, before: Array) -> NDArray[np.bool_]:
    """Within a quarter of ``before``; never where it is 0 or either is no number."""
    wide = before.astype(np.float64)
    agree: NDArray[np.bool_] = np.abs(values - wide) < _AGREEMENT * np.abs(wide)
    return agree


def trivial(fraction: Array) -> NDArray[np.bool_]:
    """Where ``np.frexp``'s fraction is of a 0 or a power of two: on every grid, and what a model answers by right."""
    size = np.abs(fraction)
    found: NDArray[np.bool_] = (size == 0) | (size == 0.5)
    return found
