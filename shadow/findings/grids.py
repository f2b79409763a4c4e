"""Precision: do the candidate's values lie on a coarser grid than the baseline's?

A grid is what a smaller datatype leaves of values (float16, bfloat16: few bits of mantissa), or rounding to decimals,
or fixed-point arithmetic (multiples of 2^−k). By chance a value lies on a grid with probability (baseline's spacing) /
(grid's spacing), the spacing being that of the numbers which the baseline does answer around there: for FP32 values on
the grid of float16 2^−13 each, 2^−13m for m of them. A finding takes 40 bits in all: P < 1e-10 for each request, as
some thirty grids are tried.

What counts: a value that is no 0 and no power of two, once; where the baseline's own is off the grid by a sixteenth of
its spacing at least, so that float noise around round numbers is no loss; and not the largest of the last axis, for the
probabilities of a row sum to one, and the last follows from the others. Every value of the candidate must be on the
grid. Too few values prove nothing: one probability is not enough, nor are two classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import frexp, log2
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.tensor import Array
from shadow.findings.numeric import PROOF_BITS, Float, trivial

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]
_HEAD: Final = 16  # values, spread over the output, of which one off all grids ends the search
_VALUES: Final = 4096  # that are looked at closely; whole rows, spread over the output
_OFF: Final = 1 / 16  # of a grid's spacing
_NEAR_BITS: Final = log2(3)  # a decimal may be the nearest number or one of its neighbours: three of them
_LARGE: Final = 1e15  # on every grid
_DOUBLE_BITS: Final = 53
_PARTS: Final = np.arange(1, 1001)[:, None]  # n of the lattices k/n that a baseline may answer on, as votes do
_MEMBERS: Final = 16  # values that show a lattice; the others must be on it too
_FINER_DIGITS: Final = 4  # decimals that are no such lattice
_DIGITS_PER_BIT: Final = 0.3


def coarser(before: Array, after: Array, datatype: Float) -> bool:
    """Whether ``after`` is on a coarser grid than ``before``: the same shape and datatype, ``after`` all finite."""
    return _may_be_coarse(after, datatype) and _is_coarser(before, after, datatype)


def _may_be_coarse(after: Array, datatype: Float) -> bool:
    """Whether no value of a few lies off all grids: the one test that nearly every answer comes to."""
    flat = after.reshape(-1)
    stride = max(flat.size // _HEAD, 1)
    head = flat[: _HEAD * stride : stride].tolist()
    return not any(_is_off(value, datatype) for value in head)


def _is_off(value: float, datatype: Float) -> bool:
    if not 0 < abs(value) < _LARGE or (value * 2.0**datatype.fixed_point_bits).is_integer():
        return False
    decimal = value * 10.0**datatype.decimals
    if abs(decimal - round(decimal)) <= abs(decimal) * 2.0**-datatype.mantissa_bits:
        return False
    return not (frexp(value)[0] * 2.0 ** (datatype.coarse_bits + 1)).is_integer()


@np.errstate(all="ignore")
def _is_coarser(before: Array, after: Array, datatype: Float) -> bool:
    origin, values = values_of(before), values_of(after)
    counted = ~trivial(np.frexp(values)[0])
    if values.shape[1] > 1:
        counted[np.arange(len(values)), np.abs(values).argmax(axis=1)] = False
    if not counted.any():
        return False
    for grid, lost_bits in _coarse_grids(values, datatype):
        told = np.unique(np.abs(values[counted & grid.misses(origin)]))
        if told.size:
            bits = np.log2(grid.spacing(told) / own_grid(origin, datatype).spacing(told)) - lost_bits
            if float(np.maximum(bits, 0).sum()) >= PROOF_BITS:
                return True
    return False


def values_of(array: Array) -> _Floats:
    """Some rows of the last axis as float64 [rows, values]; 0 for what is not finite."""
    rows = array.reshape(-1, array.shape[-1] if array.ndim else 1)
    part = rows[:: -(-rows.size // _VALUES), :_VALUES].astype(np.float64)
    part[~np.isfinite(part)] = 0
    return part


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Numbers with at most ``mantissa_bits`` bits after the leading one that are multiples of ``step``, too."""

    mantissa_bits: int
    step: float

    def spacing(self, values: _Floats) -> _Floats:
        """The distance to the next number of the grid, at each value."""
        _, exponent = np.frexp(values)
        spacing: _Floats = np.maximum(np.ldexp(1.0, exponent - 1 - self.mantissa_bits), self.step)
        return spacing

    def misses(self, values: _Floats) -> NDArray[np.bool_]:
        """Where values are off the grid by more than noise."""
        spacing = self.spacing(values)
        off: NDArray[np.bool_] = np.abs(values - np.rint(values / spacing) * spacing) >= _OFF * spacing
        return off


def own_grid(values: _Floats, datatype: Float) -> Grid:
    """The coarsest grid, of any that models answer on, that holds all the baseline's values."""
    mantissa_bits, lowest = _extent(values)
    return Grid(mantissa_bits=mantissa_bits, step=max(2.0**lowest, _lattice(values, datatype)))


def _coarse_grids(values: _Floats, datatype: Float) -> Iterator[tuple[Grid, float]]:
    """The coarse grids that hold all values, and the bits of proof that each value on one is short of."""
    mantissa_bits, lowest = _extent(values)
    few, fixed = mantissa_bits <= datatype.coarse_bits, lowest >= -datatype.fixed_point_bits
    if few or fixed:
        bits = mantissa_bits if few else datatype.mantissa_bits
        yield Grid(mantissa_bits=bits, step=2.0**lowest if fixed else 0.0), 0.0
    for digits in range(datatype.decimals + 1):
        if _is_multiple(values, 10.0**digits, datatype).all():
            yield Grid(mantissa_bits=datatype.mantissa_bits, step=10.0**-digits), _NEAR_BITS
            return


def _extent(values: _Floats) -> tuple[int, int]:
    """The mantissa bits of the value with the most, and the exponent of the lowest bit of all; (0, 0) of zeros."""
    fraction, exponent = np.frexp(values[values != 0])
    if not fraction.size:
        return 0, 0
    whole: _Ints = np.abs(np.ldexp(fraction, _DOUBLE_BITS)).astype(np.int64)
    _, place = np.frexp((whole & -whole).astype(np.float64))  # of the lowest bit, from 1
    lowest = exponent + place - 1 - _DOUBLE_BITS
    return int((exponent - 1 - lowest).max()), int(lowest.min())


def _lattice(values: _Floats, datatype: Float) -> float:
    """The step of the lattice k/n, or of the decimals, that holds all values; 0 where none does."""
    members = np.unique(values)
    members = members[:: -(-members.size // _MEMBERS)]
    parts = _PARTS[_is_multiple(members[-1:], _PARTS, datatype).all(axis=1)]  # one value rules most of them out
    parts = parts[_is_multiple(members, parts, datatype).all(axis=1)]
    if parts.size and _is_multiple(values, n := float(parts[0, 0]), datatype).all():
        return 1 / n
    digits = range(_FINER_DIGITS, int(datatype.mantissa_bits * _DIGITS_PER_BIT) + 1)
    return next((10.0**-each for each in digits if _is_multiple(values, 10.0**each, datatype).all()), 0.0)


def _is_multiple(values: _Floats, n: float | _Ints, datatype: Float) -> NDArray[np.bool_]:
    """Where a value is k/n for an integer k, or a neighbour of that in its datatype."""
    _, exponent = np.frexp(values)
    unit = np.ldexp(1.0, exponent - 1 - datatype.mantissa_bits)
    found: NDArray[np.bool_] = np.abs(values - np.rint(values * n) / n) <= unit
    return found
