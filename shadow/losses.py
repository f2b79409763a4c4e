"""What a killed process took along: sampled items of which no durable segment tells, counted by chain.

A chain's items are known from three sides: the account in its last segment, that of its closing if it was closed, and
the last one that its router reported, which the journal keeps. Each counts from the chain's start, so that the largest
number of sampled items is the latest. Of these are lost all that were not shed, and did not end in a segment.
What was shed last by a process that was killed may not have been told: it is taken for lost, never the other way round.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shadow.accounting import Account
from shadow.errors import EvidenceError
from shadow.store import Closing, Head, closings, read_closing

# Of what has been answered, longer than this nothing waits to be written: a recorder gathers for 3 s and looks each
# second. Where other work leaves it no time, its bounds are the limit: 8192 batches, 256 MiB.
OPEN_SEGMENT_S: Final = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLoss:
    """Of one chain: whether it was closed, and how many of its sampled items are in no segment and were not shed."""

    chain: str
    closed: bool
    sampled: int  # as far as any account tells
    lost: int


def chain_losses(
    folder: Path,
    durable: Mapping[str, tuple[Head, Account]],
    reported: Mapping[str, Account],
    *,
    broken: Collection[str] = (),
) -> tuple[tuple[ChainLoss, ...], tuple[str, ...]]:
    """The losses of all chains, by name, and what is wrong with what is said of them.

    Args:
        folder: of the evidence.
        durable: by chain, the head after its last segment, and the account in that.
        reported: by chain, the last account that was reported of it; of a chain that wrote no segment as well.
        broken: chains of which nothing can be said.
    """
    try:
        closed = frozenset(closings(folder))
    except EvidenceError as error:
        return (), (str(error),)
    found, problems = [], []
    for chain in sorted({*durable, *reported, *closed}.difference(broken)):
        try:
            closing = _closing(folder, chain, durable.get(chain)) if chain in closed else None
            found.append(_loss(chain, durable.get(chain), closing, reported.get(chain, Account())))
        except EvidenceError as error:
            problems.append(str(error))
    return tuple(found), tuple(problems)


def _closing(folder: Path, chain: str, durable: tuple[Head, Account] | None) -> Closing:
    closing = read_closing(folder, chain)
    path, segments, there = folder / closing.name, closing.head.segments, durable[0].segments if durable else 0
    if segments > there:
        raise EvidenceError(f"{path}: cut: the chain had {segments} segments when it was closed, {there} are there")
    if durable is not None and closing.head != durable[0]:
        raise EvidenceError(f"{path}: head: expected that of the chain's last segment, {there}")
    return closing


def _loss(chain: str, durable: tuple[Head, Account] | None, closing: Closing | None, reported: Account) -> ChainLoss:
    if not reported.balanced:
        raise EvidenceError(f"chain {chain}: reported account: items do not add up to those sampled")
    written = closing.account if closing is not None else durable[1] if durable is not None else Account()
    known = (written, reported)
    sampled = max(each.sampled for each in known)
    dropped = max(each.shed for each in known) + max(each.too_large for each in known)
    lost = sampled - dropped - _ended(written)
    if lost < 0:
        raise EvidenceError(f"chain {chain}: account: {-lost} items more have ended than were sampled")
    return ChainLoss(chain=chain, closed=closing is not None, sampled=sampled, lost=lost)


def _ended(account: Account) -> int:
    """Items that are in a segment, or are known to be in none by a fault of the recorder."""
    return account.mirrored + account.timed_out + account.failed


def last_reported(accounts: Iterable[Mapping[str, Account]]) -> dict[str, Account]:
    """Of each chain the account that knows of the most sampled items: a control process that restarts knows less."""
    last: dict[str, Account] = {}
    for each in accounts:
        for chain, account in each.items():
            if chain not in last or account.sampled >= last[chain].sampled:
                last[chain] = account
    return last
