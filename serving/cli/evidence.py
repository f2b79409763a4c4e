"""``understudy evidence``: recompute what a rollout's journal claims from the raw rows, and let go of old rows."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import isclose
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import orjson
import typer
from rich.console import Console
from rich.table import Table

from rollout.doubts import find_doubts
from rollout.entries import Entry, read_entries, verify_chain
from rollout.errors import RolloutError
from rollout.folder import JOURNAL_FILE
from rollout.journal import Anchors, anchors
from rollout.judge import judge
from rollout.judgement import Judgement, Verdict
from rollout.machine import TERMINAL
from rollout.policy import Policy
from rollout.reopening import check_reopenings
from rollout.status import plain
from rollout.traffic import Snapshot
from shadow.accounting import Account, Ledger
from shadow.checkpoint import LABELS_WITHIN_S, Compacted, Retention, compact, overdue_rows
from shadow.errors import EvidenceError
from shadow.evidence import DELTA_UNIT, ArmSums, Evidence, StageSums
from shadow.losses import OPEN_SEGMENT_S, ChainLoss, last_reported
from shadow.store import Head
from shadow.verify import Claim, Verification, verify

_LONG_S: Final = 1e12  # longer than any stage

app = typer.Typer(no_args_is_help=True, help="The raw evidence that decisions rest on.")


@app.callback()
def _group() -> None:
    """The raw evidence that decisions rest on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of the whole rollout, recomputed: ``value`` is None where nothing was observed."""

    name: str
    n: int
    value: float | None
    unit: str


@app.command("verify")
def verify_command(
    path: Annotated[Path, typer.Argument(help="A rollout's folder: <reports>/<deployment_id>.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    unanchored: Annotated[
        bool, typer.Option("--unanchored", help="Trust journal.jsonl alone: do without the database.")
    ] = False,
) -> None:
    """Recompute every figure of a rollout from its raw rows, and walk its hash chains.

    What killed processes took along is named and counted: by chain, the sampled items that are in no segment. That is
    no fault of the evidence, which never had them.

    Exit status: 0 all is as claimed, 1 something is not (or the database that vouches for it cannot be reached), 2 not
    a rollout's folder.
    """
    audited = _audit(path, anchored=not unanchored)
    if as_json:
        typer.echo(orjson.dumps(_as_json(audited), option=orjson.OPT_INDENT_2).decode())
    else:
        _show(audited)
    raise typer.Exit(0 if audited.found.ok else 1)


@app.command("compact")
def compact_command(
    path: Annotated[Path, typer.Argument(help="A rollout's folder: <reports>/<deployment_id>.")],
    keep_days: Annotated[
        float | None, typer.Option(min=0.0, help="Keep the rows of this many days; without it, rows of any age may go.")
    ] = None,
    keep_segments: Annotated[
        int | None, typer.Option(min=1, help="Keep this many segments of each chain up to its last recorded head.")
    ] = None,
    redact: Annotated[
        bool,
        typer.Option(
            "--redact", help="Keep no request id for longer than --keep-days, even if younger rows go with it."
        ),
    ] = False,
    labels_within_s: Annotated[
        float, typer.Option(min=0.0, help="The rollout's labels_within_s: rows that a label may still join stay.")
    ] = LABELS_WITHIN_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    unanchored: Annotated[
        bool, typer.Option("--unanchored", help="Trust journal.jsonl alone: do without the database.")
    ] = False,
) -> None:
    """Turn older segments into checkpoints, which keep their sums, and delete their rows, request ids included.

    First all evidence is verified; if it does not hold, nothing is touched. Afterwards `verify` names each checkpoint,
    and takes its sums as recorded.

    A segment cannot be redacted in its place: its bytes are in the hashes of the chain. So --redact deletes it as a
    whole, as soon as its oldest row is older than --keep-days. Each chain keeps the segment of its last recorded head,
    and what labels may still join; ids in these that are too old are counted in the output. evidence/labels.sqlite
    holds the ids of joined items; once a rollout has ended, that file can be deleted.

    Exit status: 0 done, 1 the evidence does not hold, 2 wrong use, or the disk failed.
    """
    if keep_days is not None and keep_segments is not None:
        raise typer.BadParameter("expected --keep-days or --keep-segments, got both")
    retention = Retention(
        keep_days=keep_days, keep_segments=keep_segments or 1, redact=redact, labels_within_s=labels_within_s
    )
    audited = _audit(path, anchored=not unanchored)
    if not audited.found.ok:
        _refuse(audited.found, as_json=as_json)
    now_unix_us = round(time.time() * 1e6)
    done = compact(path / "evidence", audited.heads, retention, now_unix_us=now_unix_us)
    limit_us = retention.limit_us(now_unix_us) if redact else None
    overdue = overdue_rows(path / "evidence", limit_us) if limit_us is not None else None
    if as_json:
        said = {"ok": True, "problems": [], "chains": [asdict(each) for each in done], "overdue_rows": overdue}
        typer.echo(orjson.dumps(said, option=orjson.OPT_INDENT_2).decode())
    else:
        _show_compacted(done, overdue)


def _refuse(found: Verification, *, as_json: bool) -> NoReturn:
    if as_json:
        said = {"ok": False, "problems": list(found.problems), "chains": [], "overdue_rows": None}
        typer.echo(orjson.dumps(said, option=orjson.OPT_INDENT_2).decode())
    else:
        console = Console(highlight=False, soft_wrap=True)
        for problem in found.problems:
            console.print(f"problem: {problem}", markup=False)
        console.print("evidence does NOT hold: nothing was compacted")
    raise typer.Exit(1)


def _show_compacted(done: Sequence[Compacted], overdue: int | None) -> None:
    console = Console(highlight=False, soft_wrap=True)
    chains = Table("chain", "segments in its checkpoint", "rows in it", "files deleted")
    for each in done:
        chains.add_row(each.chain, str(each.segments), str(each.rows), str(each.deleted_files))
    console.print(chains)
    if overdue is not None:
        console.print(f"rows older than --keep-days that had to stay, with their request ids: {overdue}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Audited:
    """A rollout's folder, verified; ``heads`` are those of the last entry that has any, ``ended`` is the rollout."""

    found: Verification
    entries: int
    heads: tuple[Head, ...]
    ended: bool


def _audit(path: Path, *, anchored: bool) -> _Audited:
    """Verify a rollout's folder.

    Raises:
        EvidenceError: the folder has no journal.
    """
    if not (path / JOURNAL_FILE).is_file():
        raise EvidenceError(f"{path}: expected a rollout's folder with a {JOURNAL_FILE}")
    problems: list[str] = []
    known = _anchors(path, problems) if anchored else None  # before the files, which only ever grow
    entries = _entries(path, problems)
    claims = [claim for entry in entries if (claim := _claim(entry, problems)) is not None]
    if known is not None and known.last_hash not in {entry.get("hash") for entry in entries}:
        problems.append(f"{path / JOURNAL_FILE}: cut: the database's last entry {known.last_hash[:12]} is not in it")
    latest = {head.chain: head for claim in claims for head in claim.heads}
    heads = {name: _head(asdict(head)) for name, head in known.heads.items()} if known else latest
    reported = last_reported(_accounts(entry, problems) for entry in entries)
    found = verify(path / "evidence", heads, claims, reported)
    problems += _judgement_problems(entries)
    return _Audited(
        found=replace(found, problems=(*problems, *found.problems)),
        entries=len(entries),
        heads=claims[-1].heads if claims else (),
        ended=bool(entries) and entries[-1].get("state") in TERMINAL,
    )


def _anchors(path: Path, problems: list[str]) -> Anchors | None:
    try:
        return anchors(path)
    except RolloutError as error:
        problems.append(f"the database that vouches for this evidence cannot be read ({error}); see --unanchored")
        return None


def _entries(path: Path, problems: list[str]) -> list[Entry]:
    try:
        entries = read_entries(path / JOURNAL_FILE)
    except RolloutError as error:
        problems.append(str(error))
        return []
    try:
        verify_chain(entries)
    except RolloutError as error:
        problems.append(f"{path / JOURNAL_FILE}: {error}")
    return entries


def _claim(entry: Entry, problems: list[str]) -> Claim | None:
    """What an entry claims of the evidence; None for one without."""
    if not entry.get("heads"):
        return None
    try:
        heads = tuple(_head(head) for head in entry["heads"])
        return Claim(seq=entry["seq"], evidence=entry["evidence"], heads=heads, run_id=entry["run_id"])
    except (KeyError, TypeError) as error:
        problems.append(f"journal: entry {entry.get('seq')}: {error}: missing or malformed")
        return None


def _accounts(entry: Entry, problems: list[str]) -> dict[str, Account]:
    """The mirror's account by chain, as an entry has it; nothing in one without."""
    try:
        return {chain: Account.from_json(account) for chain, account in (entry.get("accounts") or {}).items()}
    except (AttributeError, TypeError) as error:
        problems.append(f"journal: entry {entry.get('seq')}: accounts: {error}: missing or malformed")
        return {}


def _head(value: dict[str, Any]) -> Head:
    return Head(**{name: value[name] for name in ("chain", "segments", "rows", "sha256")})


_FIGURES: Final = ("n", "finding", "estimate", "log_e_harm", "log_e_health", "breach")


def _judgement_problems(entries: Sequence[Entry]) -> Iterator[str]:
    """Judge the sums of every entry again; time aside, a judgement is a pure function of sums, policy and stage."""
    if not entries or "rollout" not in entries[0]:
        return
    try:
        policy = Policy.model_validate(entries[0]["rollout"]["policy"])
        stages = tuple(entries[0]["rollout"]["stages"])
        for before, entry in pairwise(entries):
            if entry.get("judgement") and entry.get("evidence") is not None:
                again = plain(_judged_again(policy, entry, stage=before["stage"], stages=stages)) or {}
                yield from (
                    f"journal: entry {entry['seq']}: {each}" for each in _differences(entry["judgement"], again)
                )
        yield from check_reopenings(entries, stages)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"journal: judgements cannot be recomputed: {str(error).splitlines()[0]}"


def _judged_again(policy: Policy, entry: Entry, *, stage: int, stages: tuple[int, ...]) -> Judgement:
    """The judgement of an entry's sums and coverage, as if their stage had lasted for as long as it must."""
    evidence = Evidence.from_json(entry["evidence"])
    snapshot = Snapshot(
        evidence=evidence, heads=(), accounting={}, coverage=Ledger.from_json(entry.get("coverage") or {})
    )
    doubts = find_doubts(policy, snapshot, stage=stage, stages=stages, elapsed_s=_LONG_S)
    return judge(policy, evidence, stage=stage, stages=stages, elapsed_s=_LONG_S, doubts=doubts)


def _differences(said: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """Which figures of a judgement do not follow from its sums."""
    waited = said["verdict"] == Verdict.HOLD and found["verdict"] == Verdict.PASS  # for its time
    if said["verdict"] != found["verdict"] and not waited:
        yield f"verdict: the sums give {found['verdict']}, the entry says {said['verdict']}"
    if not _same(said["log_m"], found["log_m"]):
        yield f"log_m: the sums give {found['log_m']}, the entry says {said['log_m']}"
    gates = {gate["gate"]: gate for gate in found["gates"]}
    for gate in said["gates"]:
        for figure in _FIGURES:
            again = gates[gate["gate"]][figure]
            if not _same(gate[figure], again):
                yield f"gate {gate['gate']}: {figure}: the sums give {again}, the entry says {gate[figure]}"


def _same(left: object, right: object) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return isclose(left, right, rel_tol=1e-9, abs_tol=1e-9)
    return left == right


def metrics(total: StageSums) -> Iterator[Metric]:
    """The reported figures of both versions, from the sums alone."""
    yield from _arm_metrics("baseline", total.baseline)
    yield from _arm_metrics("candidate", total.candidate)
    yield _share("top-1 agreement", total.agree, total.items)
    yield _share("|Δscore| over tolerance", total.delta_over, total.items)
    mean = total.delta_sum_max_e9 * DELTA_UNIT / total.items if total.items else None
    yield Metric(name="mean of max |Δscore|", n=total.items, value=mean, unit="")
    cells = total.labels
    yield _share("baseline compliance@1", cells.both + cells.baseline_only, cells.n)
    yield _share("candidate compliance@1", cells.both + cells.candidate_only, cells.n)
    yield _share("conflicts among labelled", cells.baseline_only + cells.candidate_only, cells.n)


def _arm_metrics(name: str, arm: ArmSums) -> Iterator[Metric]:
    yield _share(f"{name} errors", arm.failures, arm.requests)
    yield Metric(name=f"{name} service p95", n=arm.service.n, value=arm.service.quantile_ms(0.95), unit="ms")
    yield _share(f"{name} batches over target", arm.service_over_target, arm.batches)
    yield Metric(name=f"{name} end-to-end p95", n=arm.latency.n, value=arm.latency.quantile_ms(0.95), unit="ms")
    yield _share(f"{name} answers over target", arm.answers_over_target, arm.answers)
    largest = arm.memory_max_bytes / 1e6 if arm.memory_readings else None
    yield Metric(name=f"{name} peak memory per batch", n=arm.memory_readings, value=largest, unit="MB")


def _share(name: str, count: int, n: int) -> Metric:
    return Metric(name=name, n=n, value=100 * count / n if n else None, unit="%")


def _as_json(audited: _Audited) -> dict[str, Any]:
    found = audited.found
    return {
        "ok": found.ok,
        "journal_entries": audited.entries,
        "recomputed_entries": found.claims,
        "problems": list(found.problems),
        "notes": list(found.notes),
        "chains": [asdict(chain) for chain in found.chains],
        "loss": {
            "sampled": _sampled(found.losses),
            "lost": _lost(found.losses),
            "open_segment_s": OPEN_SEGMENT_S,
            "chains": [asdict(each) for each in found.losses],
        },
        "metrics": [asdict(metric) for metric in metrics(found.evidence.total())],
        "evidence": found.evidence.to_json(),
    }


def _sampled(losses: Iterable[ChainLoss]) -> int:
    return sum(each.sampled for each in losses)


def _lost(losses: Iterable[ChainLoss]) -> int:
    return sum(each.lost for each in losses)


def _loss_lines(losses: Sequence[ChainLoss], *, ended: bool) -> Iterator[str]:
    """What is lost of each chain, and over all. Nothing tells a writer that lives from one that was killed."""
    cut_short = "ended without closing" if ended else "not closed: still written to, or its writer was killed"
    for each in losses:
        items = f"{each.lost:,} of {each.sampled:,} sampled items"
        if not each.closed:
            yield f"chain {each.chain}: {cut_short}; {items} are in no segment"
        elif each.lost:
            yield f"chain {each.chain}: closed; {items} were on their way and are in no segment"
    yield (
        f"counted loss: {_lost(losses):,} of {_sampled(losses):,} sampled items. A process that is killed takes along"
        f" at most its open segment ({OPEN_SEGMENT_S:g} s of answers) and what it had in hand"
    )


def _show(audited: _Audited) -> None:
    found, entries = audited.found, audited.entries
    console = Console(highlight=False, soft_wrap=True)
    chains = Table("chain", "segments", "rows", "head", "after the last decision")
    for chain in found.chains:
        head = chain.head
        later = f"{chain.later_rows} rows" if chain.later_rows else "–"
        chains.add_row(head.chain, str(head.segments), str(head.rows), head.sha256[:12], later)
    console.print(chains)
    figures = Table("metric, recomputed", "value", "n")
    for metric in metrics(found.evidence.total()):
        value = "no data" if metric.value is None else f"{metric.value:.6g} {metric.unit}".rstrip()
        figures.add_row(metric.name, value, str(metric.n))
    console.print(figures)
    console.print(f"journal: {entries} entries; the sums of {found.claims} recomputed from raw rows and found equal")
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    for line in _loss_lines(found.losses, ended=audited.ended):
        console.print(line, markup=False)
    for problem in found.problems:
        console.print(f"problem: {problem}", markup=False)
    console.print("evidence holds" if found.ok else "evidence does NOT hold")
