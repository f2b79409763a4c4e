"""The mirror's account: where every sampled item went, over all and by cell.

Always: sampled = mirrored + pending + shed + too_large + timed_out + failed, in items (batch rows).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from threading import Lock
from typing import Any, Final, Self, TypeVar

from shadow.cells import PLAIN, Cell, Items
from shadow.errors import ShadowError

_Key = TypeVar("_Key", int, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The account at one moment, in items. Accounts of several mirrors add up."""

    sampled: int = 0  # chosen to be mirrored
    mirrored: int = 0  # recorded, and the other side answered
    pending: int = 0  # on their way: in the lane, at the other version, or not yet durable
    shed: int = 0  # dropped by our own budget: evidence for nothing
    too_large: int = 0  # over the lane's limit in bytes by themselves
    timed_out: int = 0  # recorded, and the other side did not answer in time
    failed: int = 0  # recorded, and the other side failed; or lost by a fault of the recorder, or with its process

    def __add__(self, other: "Account") -> "Account":
        return Account(**{name: getattr(self, name) + getattr(other, name) for name in _COUNTS})

    def abandoned(self) -> "Account":
        """The account of a mirror whose process is gone: what was on its way is lost."""
        return replace(self, pending=0, failed=self.failed + self.pending)

    def ends(self) -> "Account":
        """What became here of items that another process sampled and handed over: to be added to its account.

        There they count as pending, so that here what has ended is taken off again: ``pending`` is negative. Whoever
        adds must have the ends before the account that they belong to, or it may know too little to be balanced.
        """
        return replace(self, sampled=0, pending=self.pending - self.sampled)

    @property
    def settled(self) -> int:
        """Sampled items that have ended, one way or another."""
        return self.sampled - self.pending

    @property
    def share(self) -> float:
        """The share of the settled items that was mirrored; 0 where none is settled."""
        return self.mirrored / self.settled if self.settled else 0.0

    @property
    def balanced(self) -> bool:
        """Whether every sampled item is somewhere, and none is twice."""
        sampled, *ends = [getattr(self, name) for name in _COUNTS]
        return bool(sampled == sum(ends)) and min(sampled, *ends) >= 0

    def to_json(self) -> dict[str, int]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, int]) -> Self:
        """The inverse of ``to_json``."""
        return cls(**value)


_COUNTS: Final = tuple(each.name for each in fields(Account))


@dataclass(frozen=True, slots=True, kw_only=True)
class Company:
    """How a cell's items travelled: a batch shares one fate, and so its items are not as many independent ones.

    Over all sampled batches, each of the cell's items with the number of its batch's items in the same bucket, and
    in the same slice. Added up over the cells of a bucket (or slice), that is Σ of its squared items per batch, and
    divided by its items the mean size of the batch that an item was in: the design effect of sampling whole batches.
    Source: Kish, Survey Sampling (1965).
    """

    bucket: int = 0
    slice: int = 0

    def __add__(self, other: "Company") -> "Company":
        return Company(bucket=self.bucket + other.bucket, slice=self.slice + other.slice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Some cells put together; ``squares`` are Σ of its squared items per sampled batch."""

    account: Account
    squares: int

    def __add__(self, other: "Group") -> "Group":
        return Group(account=self.account + other.account, squares=self.squares + other.squares)


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account by cell, and how the sampled items travelled. Ledgers of several mirrors add up."""

    cells: Mapping[Cell, Account] = field(default_factory=dict)
    company: Mapping[Cell, Company] = field(default_factory=dict)

    def __add__(self, other: "Ledger") -> "Ledger":
        cells, company = dict(self.cells), dict(self.company)
        for cell, account in other.cells.items():
            cells[cell] = cells[cell] + account if cell in cells else account
        for cell, more in other.company.items():
            company[cell] = company[cell] + more if cell in company else more
        return Ledger(cells, company)

    @property
    def total(self) -> Account:
        """The account over all cells."""
        return sum(self.cells.values(), Account())

    @property
    def balanced(self) -> bool:
        """Whether every cell's account is."""
        return all(account.balanced for account in self.cells.values())

    def abandoned(self) -> "Ledger":
        """As ``Account.abandoned``, cell by cell."""
        return Ledger({cell: account.abandoned() for cell, account in self.cells.items()}, self.company)

    def ends(self) -> "Ledger":
        """As ``Account.ends``, cell by cell. How the items travelled is known to the process that sampled them."""
        return Ledger({cell: account.ends() for cell, account in self.cells.items()})

    def by_bucket(self) -> dict[int, Group]:
        """The buckets that have been sampled, of all slices."""
        return _grouped((cell.bucket, self._group(cell, self._company(cell).bucket)) for cell in sorted(self.cells))

    def by_slice(self) -> dict[str, Group]:
        """The slices that have been sampled, of all buckets."""
        return _grouped((cell.slice, self._group(cell, self._company(cell).slice)) for cell in sorted(self.cells))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, short: slice → bucket → the account's seven counts and the two of the company."""
        value: dict[str, dict[str, list[int]]] = {}
        for cell in sorted(self.cells):
            account, company = self.cells[cell], self._company(cell)
            counts = [getattr(account, name) for name in _COUNTS]
            value.setdefault(cell.slice, {})[str(cell.bucket)] = [*counts, company.bucket, company.slice]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, Sequence[int]]]) -> Self:
        """The inverse of ``to_json``."""
        cells, company = {}, {}
        for name, buckets in value.items():
            for bucket, counts in buckets.items():
                *account, in_bucket, in_slice = counts
                cell = Cell(int(bucket), name)
                cells[cell] = Account(**dict(zip(_COUNTS, account, strict=True)))
                if in_bucket or in_slice:
                    company[cell] = Company(bucket=in_bucket, slice=in_slice)
        return cls(cells, company)

    def _company(self, cell: Cell) -> Company:
        return self.company.get(cell, _ALONE)

    def _group(self, cell: Cell, squares: int) -> Group:
        return Group(account=self.cells[cell], squares=squares)


_ALONE: Final = Company()


def _grouped(members: Iterable[tuple[_Key, Group]]) -> dict[_Key, Group]:
    groups: dict[_Key, Group] = {}
    for key, group in members:
        groups[key] = groups[key] + group if key in groups else group
    return groups


class Accounting:
    """The running account of one mirror lane and its recorder.

    Every move takes items by cell, or a number of items of one cell. The lane's loop thread calls ``sample``, ``shed``
    and ``too_large``; the recorder's thread calls ``settle`` once the rows are durable. One lock makes each move, and
    each ``snapshot``, whole; it is held for a few additions only.

    An item must end in the cell in which it was sampled. Where two processes share an account, the one that is handed
    items samples them as they come, and what became of them is ``ledger().ends()``.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows: dict[Cell, list[int]] = {}  # counts of the cell, at the places below
        self._total = [0] * _ACCOUNT_WIDTH  # the same over all cells: a lane asks with every batch

    def sample(self, items: int | Items, cell: Cell = PLAIN) -> None:
        """Items of one batch are chosen to be mirrored: they are pending from now on."""
        if isinstance(items, int):
            items = {cell: items}
        if len(items) == 1:
            ((where, count),) = items.items()
            with self._lock:
                self._note_sampled(where, count, count, count)
            return
        in_bucket: Counter[int] = Counter()
        in_slice: Counter[str] = Counter()
        for where, count in items.items():
            in_bucket[where.bucket] += count
            in_slice[where.slice] += count
        with self._lock:
            for where, count in items.items():
                self._note_sampled(where, count, in_bucket[where.bucket], in_slice[where.slice])

    def shed(self, items: int | Items, cell: Cell = PLAIN) -> None:
        """Pending items are dropped, for want of room or time of our own."""
        self._end(((_SHED, items),), cell)

    def too_large(self, items: int | Items, cell: Cell = PLAIN) -> None:
        """Pending items are dropped because their batch alone exceeds the lane."""
        self._end(((_TOO_LARGE, items),), cell)

    def settle(
        self,
        *,
        mirrored: int | Items = 0,
        timed_out: int | Items = 0,
        failed: int | Items = 0,
        cell: Cell = PLAIN,
    ) -> None:
        """Pending items have ended: how, on the side that did not answer the client."""
        self._end(((_MIRRORED, mirrored), (_TIMED_OUT, timed_out), (_FAILED, failed)), cell)

    def snapshot(self) -> Account:
        """The account over all cells now; always balanced."""
        with self._lock:
            total = tuple(self._total)
        return _account(total)

    def offered(self) -> tuple[int, int, int]:
        """Of the account now what the lane itself knows: items sampled, shed and too large."""
        with self._lock:
            return self._total[_SAMPLED], self._total[_SHED], self._total[_TOO_LARGE]

    def ledger(self) -> Ledger:
        """The account by cell now; always balanced."""
        with self._lock:
            rows = {cell: tuple(row) for cell, row in self._rows.items()}
        return Ledger(
            {cell: _account(row) for cell, row in rows.items()},
            {cell: Company(bucket=row[_BUCKET], slice=row[_SLICE]) for cell, row in rows.items()},
        )

    def _note_sampled(self, cell: Cell, count: int, in_bucket: int, in_slice: int) -> None:
        row = self._rows.get(cell)
        if row is None:
            row = self._rows[cell] = [0] * _WIDTH
        row[_SAMPLED] += count
        self._total[_SAMPLED] += count
        row[_BUCKET] += count * in_bucket
        row[_SLICE] += count * in_slice

    def _end(self, ends: Iterable[tuple[int, int | Items]], cell: Cell) -> None:
        """Move pending items to their ends: all of them, or, where there are not so many, none."""
        moves = [
            (where, end, count)
            for end, items in ends
            for where, count in ({cell: items} if isinstance(items, int) else items).items()
            if count
        ]
        with self._lock:
            leaving: dict[Cell, int] = {}
            for where, _, count in moves:
                leaving[where] = leaving.get(where, 0) + count
            for where, count in leaving.items():
                pending = _pending(self._rows[where]) if where in self._rows else 0
                if count > pending:
                    raise ShadowError(f"the mirror's account: {count} items end, but only {pending} are pending")
            for where, end, count in moves:
                self._rows[where][end] += count
                self._total[end] += count


_SAMPLED, _MIRRORED, _SHED, _TOO_LARGE, _TIMED_OUT, _FAILED, _BUCKET, _SLICE = range(8)
_WIDTH: Final = 8
_ACCOUNT_WIDTH: Final = 6


def _pending(row: Sequence[int]) -> int:
    return row[_SAMPLED] - row[_MIRRORED] - row[_SHED] - row[_TOO_LARGE] - row[_TIMED_OUT] - row[_FAILED]


def _account(row: Sequence[int]) -> Account:
    return Account(
        sampled=row[_SAMPLED],
        mirrored=row[_MIRRORED],
        pending=_pending(row),
        shed=row[_SHED],
        too_large=row[_TOO_LARGE],
        timed_out=row[_TIMED_OUT],
        failed=row[_FAILED],
    )
