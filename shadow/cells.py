"""What requests are told apart by in the mirror's account: how large they are, and which slice they belong to."""

from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Final, NamedTuple

from shadow.slices import NONE

BUCKETS: Final = 10
_KIBIBYTE_BITS: Final = 10
_UNITS: Final = ("KiB", "MiB", "GiB")
_UNIT: Final = 1024


class Cell(NamedTuple):
    """Where a request is counted: the bucket of its payload's size, and its slice. Bounded: 10 buckets × 66 slices."""

    bucket: int
    slice: str


Items = Mapping[Cell, int]  # batch rows by cell
PLAIN: Final = Cell(0, NONE)  # of all, where nothing is told apart


def bucket_of(nbytes: int) -> int:
    """The bucket of a payload's size in bytes: powers of 4.

    Bucket 0 is below 1 KiB, bucket b holds 4^(b − 1) KiB ≤ size < 4^b KiB, and the last one, 9, all from 64 MiB on.
    """
    return min(((nbytes >> _KIBIBYTE_BITS).bit_length() + 1) >> 1, BUCKETS - 1)


def bucket_name(bucket: int) -> str:
    """A bucket, fit to print: "under 1 KiB", "1 MiB … 4 MiB", "64 MiB and more"."""
    if bucket == 0:
        return f"under {_size(1)}"
    if bucket == BUCKETS - 1:
        return f"{_size(4 ** (bucket - 1))} and more"
    return f"{_size(4 ** (bucket - 1))} … {_size(4**bucket)}"


def cells_of(sizes: Sequence[int], slices: Sequence[str]) -> tuple[Cell, ...]:
    """Where each request of a batch is counted: by its payload in bytes and its slice; ``slices`` may be empty."""
    return tuple([Cell(bucket_of(nbytes), name) for nbytes, name in zip(sizes, slices or repeat(NONE), strict=False)])


def items_by_cell(sizes: Sequence[int], slices: Sequence[str], rows: Sequence[int]) -> dict[Cell, int]:
    """A batch's items by cell: payload in bytes, slice and batch rows of each request; ``slices`` may be empty."""
    items: dict[tuple[int, str], int] = {}  # made cells of in the end: of a batch there are few, and they cost most
    for nbytes, name, count in zip(sizes, slices or repeat(NONE), rows, strict=False):
        where = bucket_of(nbytes), name
        items[where] = items.get(where, 0) + count
    return {Cell(*where): count for where, count in items.items()}


def _size(kibibytes: int) -> str:
    power = 0
    while kibibytes >= _UNIT:
        kibibytes, power = kibibytes // _UNIT, power + 1
    return f"{kibibytes} {_UNITS[power]}"
