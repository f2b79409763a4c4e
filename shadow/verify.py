"""Evidence recomputed from its raw rows: every chain walked, every difference, every sum, every join.

Trust starts from heads that were recorded elsewhere (database, journal): a chain must reach each of them with the same
bytes. Rows after the last recorded head are there because a router was ahead of the last decision; they are checked,
but no figure rests on them.

Rows that ``shadow.checkpoint`` deleted cannot be recomputed. Their sums are believed because the chain goes on from the
head beside them, and because an entry of the journal agrees with them: it says what they and the rows since add up to.

What a killed process took along is not wrong: it is counted (``shadow.losses``). What is missing otherwise is.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.tensor import Array
from shadow.accounting import Account
from shadow.comparators import COMPARATORS, open_comparator
from shadow.errors import EvidenceError
from shadow.evidence import Evidence, canonical
from shadow.labels import SCHEMA as LABEL_SCHEMA
from shadow.losses import ChainLoss, chain_losses
from shadow.pair import Status
from shadow.rows import SCHEMA as PAIR_SCHEMA
from shadow.rows import SIDES, TWIN, Scores, comparison_columns, measure_matrix
from shadow.store import (
    Checkpoint,
    Head,
    Header,
    Kind,
    Segment,
    chains,
    latest_checkpoint,
    read_segments,
    walk_chain,
)
from shadow.sums import label_sums, sums

SCHEMAS: Final = {Kind.PAIRS: PAIR_SCHEMA, Kind.LABELS: LABEL_SCHEMA}
_TOLERANCE: Final = 1e-9  # means and products of doubles depend on the order of their terms, and that on the machine
_ItemKey: TypeAlias = tuple[str, int]  # request id, item


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What one journal entry says of the evidence at its chain heads."""

    seq: int
    evidence: Mapping[str, Any]  # JSON of the sums
    heads: tuple[Head, ...]
    run_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """One chain on disk: its end, and how much of it the recorded heads vouch for."""

    head: Head
    kind: Kind
    recorded_segments: int
    later_rows: int  # after the last decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome: without ``problems`` everything claimed was recomputed, ``evidence`` being the sums at the heads."""

    evidence: Evidence = field(default_factory=Evidence)
    chains: tuple[ChainReport, ...] = ()
    claims: int = 0  # recomputed and found right
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    losses: tuple[ChainLoss, ...] = ()  # of the chains of pairs that hold; of those that wrote no segment as well

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def run_id(evidence: Evidence, heads: Iterable[Head]) -> str:
    """The name of one look at the evidence: the first 12 hex digits of the sha256 of its sums and chain heads."""
    ends = sorted([head.chain, head.segments, head.rows, head.sha256] for head in heads)
    return sha256(canonical({"evidence": evidence.to_json(), "heads": ends})).hexdigest()[:12]


def evidence_at(folder: Path, heads: Iterable[Head]) -> Evidence:
    """The sums at some chain heads: of the rows up to there, recomputed, and of the checkpoints before these rows.

    Raises:
        EvidenceError: the evidence is not what it was at these heads, or they lie before a checkpoint; names the file.
    """
    return sum((_chain_evidence(folder, head) for head in heads if head.segments), Evidence())


def _chain_evidence(folder: Path, head: Head) -> Evidence:
    total = Evidence()
    for part, found in _parts(folder, head.chain):
        total += part
        if found.segments > head.segments:
            raise EvidenceError(f"{folder}: chain {head.chain}: {_gone(head, found)}")
        if found.segments == head.segments:
            if found != head:
                raise EvidenceError(f"{folder}: chain {head.chain}: {_changed(head, found)}")
            return total
    raise EvidenceError(f"{folder}: chain {head.chain}: cut: {head.segments} segments were recorded")


def _parts(folder: Path, chain: str) -> Iterator[tuple[Evidence, Head]]:
    """The sums of a chain's checkpoint and of each of its segments, with the head after it."""
    if (checkpoint := latest_checkpoint(folder, chain)) is not None:
        yield checkpoint.evidence, checkpoint.head
    for segment, head in walk_chain(folder, chain):
        header = segment.header()
        yield table_evidence(header, segment.table(SCHEMAS[header.kind])), head


def table_evidence(header: Header, table: pa.Table) -> Evidence:
    """The sums of one segment's rows."""
    return label_sums(table) if header.kind is Kind.LABELS else sums(table, header.limits, header.measures)


def _changed(recorded: Head, found: Head) -> str:
    return f"changed: the head after segment {recorded.segments} was {recorded.sha256}, now {found.sha256}"


def _gone(recorded: Head, found: Head) -> str:
    return f"{recorded.segments} segments were recorded, but the first {found.segments} are a checkpoint now"


def verify(
    folder: Path,
    heads: Mapping[str, Head],
    claims: Sequence[Claim] = (),
    reported: Mapping[str, Account] | None = None,
) -> Verification:
    """Recompute the evidence of one rollout, and compare it with the recorded heads and with every claim.

    ``reported`` are the mirror's last accounts by chain, which tell what is lost of those that were not closed.

    Never raises for what is wrong with the evidence: all of it is in ``problems``, each naming its file.
    """
    audit = _Audit(folder)
    claimed = (head for claim in claims for head in claim.heads)
    anchors = [head for head in (*heads.values(), *claimed) if head.segments]
    audit.walk()
    audit.check_anchors(anchors)
    audit.recompute(anchors)
    right = sum(audit.check_claim(claim) for claim in claims)
    audit.check_checkpoints()
    losses = audit.losses(reported or {})
    return Verification(
        evidence=audit.evidence_at(heads.values()) or Evidence(),
        chains=audit.reports(anchors),
        claims=right,
        problems=tuple(dict.fromkeys(audit.problems)),
        notes=tuple(dict.fromkeys(audit.notes)),
        losses=losses,
    )


@dataclass(frozen=True, slots=True)
class _Chain:
    """What is known of one chain: the head after its checkpoint and each segment, by their numbers.

    ``header`` is that of all of them, without the place in the chain.
    """

    heads: Mapping[int, Head]
    end: Head  # after the last segment
    header: Header
    account: Account  # the mirror's, after the last segment
    checkpoint: Checkpoint | None

    @property
    def covered(self) -> int:
        """How many segments are a checkpoint."""
        return self.checkpoint.head.segments if self.checkpoint else 0


class _Audit:
    """One run of ``verify``: gathers problems on its way."""

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._folder = folder
        self._chains: dict[str, _Chain] = {}  # those whose hashes hold
        self._broken: set[str] = set()  # the others
        self._sums: dict[tuple[str, int], Evidence] = {}  # by chain and number of segments
        self._labels = _LabelCheck(folder)
        self._lost: Counter[str] = Counter()  # by chain: rows that cannot be compared anew
        self._vouched: set[str] = set()  # chains whose sums, checkpoint included, an entry of the journal agrees with
        self._covered_claims = 0  # entries at a head before a checkpoint

    def walk(self) -> None:
        """Follow the hashes of every chain, which needs no look at the rows."""
        try:
            names = list(chains(self._folder))
        except EvidenceError as error:
            self.problems.append(str(error))
            return
        for name in names:
            try:
                self._walk(name)
            except EvidenceError as error:
                self.problems.append(str(error))
                self._broken.add(name)
        self._check_agreement()

    def _walk(self, name: str) -> None:
        checkpoint = latest_checkpoint(self._folder, name)
        heads: dict[int, Head] = {}
        constant: Header | None = None
        account = Account()
        for path, header, head in self._places(name, checkpoint):
            constant = constant or _constant(header)
            if _constant(header) != constant:
                raise EvidenceError(f"{path}: header: differs from the chain's first segment")
            if not header.account.balanced:
                raise EvidenceError(f"{path}: header: account: items do not add up to those sampled")
            heads[head.segments], account = head, header.account
        if constant is not None:
            self._chains[name] = _Chain(heads, heads[max(heads)], constant, account, checkpoint)

    def _places(self, name: str, checkpoint: Checkpoint | None) -> Iterator[tuple[Path, Header, Head]]:
        if checkpoint is not None:
            yield self._folder / checkpoint.name, checkpoint.header, checkpoint.head
        for segment, head in walk_chain(self._folder, name):
            yield segment.path, segment.header(), head

    def _check_agreement(self) -> None:
        """All chains are of one rollout and count by the same limits, and all pairs were compared in one way."""
        headers = [chain.header for chain in self._chains.values()]
        names = ", ".join(sorted(self._chains))
        if len({(header.deployment_id, header.limits) for header in headers}) > 1:
            self.problems.append(f"{self._folder}: chains {names}: expected one deployment_id and the same limits")
        if len({_comparing(header) for header in headers if header.kind is Kind.PAIRS}) > 1:
            self.problems.append(f"{self._folder}: chains {names}: expected pairs that one comparator compared")

    def check_anchors(self, anchors: Iterable[Head]) -> None:
        """Each recorded head must be on its chain; a chain that does not hold vouches for nothing."""
        for anchor in anchors:
            if (complaint := self._complaint(anchor)) is not None:
                self.problems.append(f"{self._folder}: chain {anchor.chain}: {complaint}")
                self._chains.pop(anchor.chain, None)
                self._broken.add(anchor.chain)

    def _complaint(self, anchor: Head) -> str | None:
        chain = self._chains.get(anchor.chain)
        if chain is None:
            return f"{anchor.segments} segments were recorded, none of which can be trusted now"
        if anchor.segments > chain.end.segments:
            return f"cut: {anchor.segments} segments were recorded, {chain.end.segments} are there"
        if chain.checkpoint is not None and anchor.segments < chain.covered:
            fits = anchor.rows <= chain.checkpoint.head.rows
            return None if fits else f"{anchor.rows} rows were recorded, {chain.checkpoint.name} has fewer"
        found = chain.heads.get(anchor.segments, chain.end)
        if found != anchor:
            return _changed(anchor, found)
        return None

    def recompute(self, anchors: Iterable[Head]) -> None:
        """Sum up the rows of every chain that holds, and check each row against its scores."""
        wanted = {(anchor.chain, anchor.segments) for anchor in anchors}
        checkpoints = {name: chain.checkpoint for name, chain in self._chains.items()}
        self._labels.covered = {name: made.batches for name, made in checkpoints.items() if made is not None}
        for name in sorted(self._chains, key=lambda name: self._chains[name].header.kind is Kind.PAIRS):
            self._recompute(name, wanted)  # labels come first, to be found again among the pairs
            self._note(name)
        self.problems += self._labels.leftover(self._broken)

    def _recompute(self, name: str, wanted: Collection[tuple[str, int]]) -> None:
        total, checkpoint = Evidence(), self._chains[name].checkpoint
        if checkpoint is not None:
            total = self._sums[name, checkpoint.head.segments] = checkpoint.evidence
        try:
            for segment in read_segments(self._folder, name):
                total += self._segment_sums(segment)
                if (name, segment.number) in wanted:
                    self._sums[name, segment.number] = total
        except EvidenceError as error:
            self.problems.append(str(error))

    def _note(self, name: str) -> None:
        """Say what of a chain could not be recomputed."""
        header, checkpoint = self._chains[name].header, self._chains[name].checkpoint
        if checkpoint is not None:
            rows = f"their sums ({checkpoint.head.rows} rows) are taken as recorded, not recomputed from rows"
            self.notes.append(f"chain {name}: segments 1…{checkpoint.head.segments} are a checkpoint: {rows}")
        if unseen := self._labels.unseen[name]:
            self.notes.append(f"chain {name}: {unseen} joined rows, whose pairs are in a checkpoint: not compared")
        if header.kind is Kind.PAIRS and header.comparator not in COMPARATORS:
            self.notes.append(f"chain {name}: comparator {header.comparator} is the user's: not recomputed")
        if lost := self._lost[name]:
            kept = f"which are kept up to {header.kept_values} values an item"
            self.notes.append(f"chain {name}: {lost} rows without scores, {kept}: not recomputed")

    def _segment_sums(self, segment: Segment) -> Evidence:
        header = segment.header()
        table = segment.table(SCHEMAS[header.kind])
        if header.kind is Kind.LABELS:
            self.problems += self._labels.expect(segment, table)
        else:
            rows = _Rows(table, header)
            self.problems += [f"{segment.path}: {complaint}" for complaint in rows.complaints()]
            self._lost[segment.chain] += rows.lost
            self.problems += self._labels.find(segment, table)
        return table_evidence(header, table)

    def check_claim(self, claim: Claim) -> bool:
        """Whether an entry's sums and name follow from the rows; what does not is a problem.

        An entry at a head before a checkpoint is not right or wrong, unless it has more than the checkpoint.
        """
        heads = [head for head in claim.heads if head.segments]
        later = [replace(head, segments=max(head.segments, self._covered(head.chain))) for head in heads]
        evidence, problem = self.evidence_at(later), ""
        if evidence is None:
            problem = "its evidence cannot be recomputed"
        elif later != heads:
            self._covered_claims += 1
            problem = _first_excess(evidence, claim)
        elif canonical(evidence.to_json()) != canonical(claim.evidence):
            problem = f"evidence: {_first_difference(evidence, claim)}"
        elif run_id(evidence, claim.heads) != claim.run_id:
            problem = f"run_id: expected {run_id(evidence, claim.heads)}"
        else:
            self._vouched.update(head.chain for head in heads)
            return True
        self.problems += [f"journal: entry {claim.seq}: {problem}"] if problem else []
        return False

    def _covered(self, name: str) -> int:
        return self._chains[name].covered if name in self._chains else 0

    def check_checkpoints(self) -> None:
        """Each checkpoint's sums must be part of what an entry of the journal says: its rows are gone."""
        for name, chain in self._chains.items():
            if chain.checkpoint is not None and name not in self._vouched:
                path = self._folder / chain.checkpoint.name
                self.problems.append(f"{path}: no entry of the journal agrees with its sums")
        if self._covered_claims:
            said = "journal: entries before a checkpoint, whose sums were not recomputed"
            self.notes.append(f"{said}: {self._covered_claims}")

    def losses(self, reported: Mapping[str, Account]) -> tuple[ChainLoss, ...]:
        """What is lost of each chain of pairs; one that does not hold has its own problem, and nothing is known of it.

        What is wrong with an account, or with a closing, is a problem.
        """
        pairs = {name: each for name, each in self._chains.items() if each.header.kind is Kind.PAIRS}
        durable = {name: (each.end, each.account) for name, each in pairs.items()}
        found, problems = chain_losses(self._folder, durable, reported, broken=self._broken)
        self.problems += problems
        return found

    def evidence_at(self, heads: Iterable[Head]) -> Evidence | None:
        """The recomputed sums at some heads; None where a chain does not hold."""
        parts = [self._sums.get((head.chain, head.segments)) for head in heads if head.segments]
        return sum((part for part in parts if part is not None), Evidence()) if None not in parts else None

    def reports(self, anchors: Sequence[Head]) -> tuple[ChainReport, ...]:
        """The chains that hold, by name."""
        return tuple(self._report(name, anchors) for name in sorted(self._chains))

    def _report(self, name: str, anchors: Sequence[Head]) -> ChainReport:
        chain = self._chains[name]
        recorded = max(
            (anchor for anchor in anchors if anchor.chain == name), key=lambda head: head.segments, default=None
        )
        return ChainReport(
            head=chain.end,
            kind=chain.header.kind,
            recorded_segments=recorded.segments if recorded else 0,
            later_rows=chain.end.rows - (recorded.rows if recorded else 0),
        )


class _LabelCheck:
    """Whether every joined row repeats a row of a pair, no item twice. Holds the joined rows in memory.

    ``covered`` are the batches by chain whose rows are in a checkpoint, where no joined row can be found again; of
    these ``unseen`` are counted, by the chain of the joined rows.
    """

    def __init__(self, folder: Path) -> None:
        self.covered: Mapping[str, int] = {}
        self.unseen: Counter[str] = Counter()
        self._folder = folder
        self._items: set[_ItemKey] = set()
        self._open: dict[tuple[str, int], dict[_ItemKey, tuple[str, Any]]] = {}  # source and batch → key → file, facts

    def expect(self, segment: Segment, table: pa.Table) -> list[str]:
        """Note joined rows that must be found among the pairs; returns problems."""
        problems = []
        for row in table.drop_columns(["label"]).to_pylist():
            key = row["request_id"], row["item"]
            if key in self._items:
                problems.append(f"{segment.path}: item {key[1]} of request {key[0]!r} is joined twice")
            self._items.add(key)
            if row["batch"] < self.covered.get(row["source"], 0):
                self.unseen[segment.chain] += 1
                continue
            batch = self._open.setdefault((row["source"], row["batch"]), {})
            batch[key] = segment.path.name, _facts(row)
        return problems

    def find(self, segment: Segment, table: pa.Table) -> list[str]:
        """Tick off the joined rows that are in a segment of pairs; returns problems."""
        batches = table["batch"].to_numpy()
        mine = [batch for source, batch in self._open if source == segment.chain]
        rows = np.flatnonzero(np.isin(batches, mine)) if mine else np.empty(0, np.int64)
        problems = []
        for row in table.select(_JOINED).take(pa.array(rows)).to_pylist():
            expected = self._open[segment.chain, row["batch"]].pop((row["request_id"], row["item"]), None)
            if expected is not None and expected[1] != _facts(row):
                problems.append(
                    f"{self._folder / expected[0]}: {_named(row)}: differs from its row in {segment.path.name}"
                )
            elif expected is not None and not _counts(row):
                problems.append(f"{self._folder / expected[0]}: {_named(row)}: not an item that both versions ran")
        return problems

    def leftover(self, broken: Collection[str]) -> list[str]:
        """Joined rows without a pair, as problems; chains that do not hold have their own problem."""
        return [
            f"{self._folder / name}: item {item} of request {request_id!r}: no such row in chain {source}"
            for (source, _), expected in self._open.items()
            for (request_id, item), (name, _) in expected.items()
            if source not in broken
        ]


_FACTS: Final = ("at_unix_us", "stage", "baseline_top1", "candidate_top1")
_JOINED: Final = ["request_id", "item", "batch", "baseline_status", "candidate_status", *_FACTS]


def _facts(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in _FACTS)


def _named(row: Mapping[str, Any]) -> str:
    return f"item {row['item']} of request {row['request_id']!r}"


def _counts(row: Mapping[str, Any]) -> bool:
    return bool(row["baseline_status"] == Status.OK and row["candidate_status"] != Status.ABSENT)


def _constant(header: Header) -> Header:
    return replace(header, number=0, previous="", account=Account())


@dataclass(slots=True)
class _Rows:
    """The rows of one segment of pairs, looked at by themselves."""

    table: pa.Table
    header: Header
    lost: int = 0  # rows that say less than can be compared anew, because their values were not kept

    def complaints(self) -> list[str]:
        """What is wrong with them; counts those that are ``lost``."""
        try:
            return list(self._complaints())
        except EvidenceError as error:
            return [str(error)]

    def _complaints(self) -> Iterator[str]:
        texts = {name: pc.cast(self.table[name], pa.string()).to_numpy() for name in _STATUSES}
        scores = {side: Scores.of(self._column(f"{side}_layout"), self._column(f"{side}_scores")) for side in SIDES}
        for side, beside in _BESIDE.items():
            ran_beside = np.logical_or.reduce([texts[f"{other}_status"] != Status.ABSENT for other in beside])
            yield from self._check_scores(side, (texts[f"{side}_status"] == Status.OK) & ran_beside, scores[side])
            yield from self._check_batches(side, texts)
        if self.header.comparator in COMPARATORS:
            yield from self._check_comparison(scores)

    def _column(self, name: str) -> pa.Array:
        return self.table[name].combine_chunks()

    def _check_scores(self, side: str, due: Array, scores: Scores) -> Iterator[str]:
        """A layout is there just where two sides ran and this one is OK, its values where they are not too many."""
        due = due & (self.table["request_rows"].to_numpy() > 0)
        have = (scores.codes >= 0) | (scores.lost > 0)
        if (due != have).any():
            row = int(np.argmax(due != have))
            yield f"row {row}: {side}_scores: expected just where two versions ran and this one is ok"
        most = self.header.kept_values
        wrong = (scores.widths > most) | ((scores.lost > 0) & (scores.lost <= most))
        if wrong.any():
            yield f"row {int(np.argmax(wrong))}: {side}_scores: expected just where there are {most} values or less"

    def _check_batches(self, side: str, texts: Mapping[str, Array]) -> Iterator[str]:
        """A batch is OK just when a request is."""
        starts = np.flatnonzero(self.table["batch_row"].to_numpy() == 0)
        if not self.table.num_rows:
            return
        if not len(starts) or starts[0] != 0:
            yield "row 0: batch_row: expected a batch's first row"
            return
        any_ok = np.logical_or.reduceat(texts[f"{side}_status"] == Status.OK, starts)
        said_ok = texts[f"{side}_batch"][starts] == Status.OK
        if (any_ok != said_ok).any():
            row = int(starts[np.argmax(any_ok != said_ok)])
            yield f"row {row}: {side}_batch: expected ok just when a request of the batch is"

    def _check_comparison(self, scores: Mapping[str, Scores]) -> Iterator[str]:
        """All that the comparator said follows from the scores, where these were kept."""
        lost = {side: found.lost > 0 for side, found in scores.items()}
        pairs, noise = lost["baseline"] | lost["candidate"], lost["baseline"] | lost[TWIN]
        self.lost = int(np.count_nonzero(pairs | noise))
        try:
            comparator = open_comparator(self.header.comparator, self.header.output, self.header.parameters)
            recomputed = comparison_columns(scores, self.table["batch"].to_numpy(), comparator)
        except Exception as error:  # noqa: BLE001 - rows that someone made up may break a comparator in any way
            yield f"the comparison cannot be recomputed: {error}"
            return
        if comparator.measures != self.header.measures:
            yield "header: measures: expected those of the comparator"
            return
        for name, column in recomputed.items():
            differs = self._differs(name, column) & ~(noise if name.startswith(TWIN) else pairs)
            if differs.any():
                yield f"row {int(np.argmax(differs))}: {name}: does not follow from the scores"

    def _differs(self, name: str, recomputed: pa.Array) -> Array:
        """In which rows a column is not what it should be."""
        columns = self._column(name), recomputed
        there, other = (column.is_valid().to_numpy(zero_copy_only=False) for column in columns)
        if name == "measures":
            left, right = (measure_matrix(column, len(self.header.measures)) for column in columns)
            same = ((left == right) | (np.isnan(left) & np.isnan(right)) | _close(left, right)).all(axis=1)
        else:
            left, right = (column.fill_null(0).to_numpy(zero_copy_only=False) for column in columns)
            same = left == right if name.endswith("top1") else _close(left, right)
        differs: Array = (there != other) | (there & ~same)
        return differs


_BESIDE: Final = {"baseline": ("candidate", TWIN), "candidate": ("baseline",), TWIN: ("baseline",)}
_STATUSES: Final = tuple(f"{side}_{name}" for side in SIDES for name in ("status", "batch"))


def _comparing(header: Header) -> bytes:
    """What pairs were compared with."""
    measures = [asdict(measure) for measure in header.measures]
    return canonical([header.comparator, header.output, header.parameters, measures, header.kept_values])


def _close(left: Array, right: Array) -> Array:
    close: Array = np.abs(left - right) <= _TOLERANCE
    return close


def _first_difference(evidence: Evidence, claim: Claim) -> str:
    """The first figure that differs, by its path."""
    found, claimed = dict(_leaves(evidence.to_json())), dict(_leaves(claim.evidence))
    for path in sorted({*found, *claimed}):
        if found.get(path, 0) != claimed.get(path, 0):
            return f"{path}: the rows give {found.get(path, 0)}, the entry says {claimed.get(path, 0)}"
    return "spelled differently"


def _first_excess(most: Evidence, claim: Claim) -> str:
    """The first figure of an entry that is more than it can have been, by its path; "" where none is.

    Sums only grow; but a slice's name may be pooled with others later, and its sums with it.
    """
    found = dict(_leaves(most.to_json()))
    for path, said in _leaves(claim.evidence):
        if ".slices." not in path and not (isinstance(said, int) and said <= found.get(path, 0)):
            return f"evidence: {path}: the checkpoint has {found.get(path, 0)}, the entry before it says {said}"
    return ""


def _leaves(value: Any, path: str = "stage") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}")
    else:
        yield path, value
