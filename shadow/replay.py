"""Exemplars run again, offline: what another version makes of recorded inputs, beside what the baseline answered.

The versions run in this process, one batch after the other. What they answer goes the way of live pairs: the same rows,
the same comparator, the same sums. Where the baseline is run again as well, it stands where its twin stood: what it
differs by from its own recorded answers is the noise floor of this machine.
"""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa

from models.backends import open_backend
from models.errors import MalformedOutputError, RejectedInputError
from models.preprocess import open_preprocess
from models.repository import ModelVersion
from models.signature import check_outputs
from models.spec import ModelSpec
from models.tensor import Array, from_numpy
from shadow.comparators import Comparator, open_comparator
from shadow.errors import ShadowError
from shadow.evidence import DELTA_UNIT, Evidence, Limits, StageSums
from shadow.exemplars import Exemplar
from shadow.findings import Finder
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.rows import compact, to_table
from shadow.store import pairs_header
from shadow.sums import sums

LISTED: Final = 10  # of the worst items, and of the failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Yardstick:
    """What answers are compared with: what ``open_comparator`` takes, and the tolerance of an item's max |Δscore|."""

    comparator: str = "classification"
    output: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = Limits().tolerance

    def open(self) -> Comparator:
        """Its comparator.

        Raises:
            ShadowError: there is none of that name, or a parameter of it is wrong.
        """
        return open_comparator(self.comparator, self.output, self.parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One item that was compared; ``recorded_delta`` is its request's max |Δscore| when it was live."""

    request_id: str
    item: int
    max_delta: float
    recorded_delta: float
    baseline_top1: int
    candidate_top1: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One request that the candidate failed, and the baseline had answered."""

    request_id: str
    status: Status
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What came of a replay. ``sums`` are as live evidence has them: ``noise`` is of the baseline, run again.

    ``unanswered`` are the requests that the baseline has no recorded answer to, ``named`` the compared items whose
    baseline named a top-1 answer at all; ``worst`` and ``failures`` are the first ten.
    """

    requests: int = 0
    unanswered: int = 0
    named: int = 0
    sums: StageSums = field(default_factory=StageSums)
    worst: tuple[Difference, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether items were compared, none is over the tolerance, and none that the baseline answered has failed."""
        return self.sums.items > 0 and not self.sums.delta_over and not self.sums.candidate_only_failed

    def __add__(self, other: "Replayed") -> "Replayed":
        return Replayed(
            requests=self.requests + other.requests,
            unanswered=self.unanswered + other.unanswered,
            named=self.named + other.named,
            sums=self.sums + other.sums,
            worst=tuple(heapq.nlargest(LISTED, (*self.worst, *other.worst), key=lambda each: each.max_delta)),
            failures=(*self.failures, *other.failures)[:LISTED],
        )


class LocalModel:
    """A model's version in this process, its files verified; a context that loads it and frees it again.

    ``backends`` and ``steps`` are the user's own, by name.

    Raises:
        models.errors.ModelError: there is no such backend or step, or the artifact cannot be loaded.
    """

    def __init__(
        self,
        version: ModelVersion,
        backends: Mapping[str, str] | None = None,
        steps: Mapping[str, str] | None = None,
    ) -> None:
        self.spec: ModelSpec = version.spec
        self._preprocess = open_preprocess(version, steps)
        self._backend = open_backend(version, backends)

    def __enter__(self) -> Self:
        try:
            self._backend.load()
        except BaseException:
            self._backend.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backend.close()

    def answers(self, batch: Sequence[Exemplar]) -> list[Answer]:
        """What it makes of a batch; where that fails, of each request alone: who is at fault fails alone."""
        if len(batch) > 1:
            try:
                return self._run(batch)
            except Exception:  # noqa: BLE001 - a user's backend may raise anything, and says it again below
                return [self._answer(each) for each in batch]
        return [self._answer(each) for each in batch]

    def _answer(self, exemplar: Exemplar) -> Answer:
        try:
            return self._run([exemplar])[0]
        except RejectedInputError as error:
            return Answer(status=Status.REJECTED, error=str(error))
        except MalformedOutputError as error:
            return Answer(status=Status.MALFORMED, error=str(error))
        except Exception as error:  # noqa: BLE001 - a user's backend may raise anything: that is its answer
            return Answer(status=Status.ERROR, error=f"{type(error).__name__}: {error}")

    def _run(self, batch: Sequence[Exemplar]) -> list[Answer]:
        rows = [each.rows for each in batch]
        inputs: Mapping[str, Array] = _stacked(batch)
        if self._preprocess is not None:
            prepared = self._preprocess.run(inputs, rows)
            for failure in prepared.failures.values():
                raise failure
            inputs = prepared.inputs
        outputs = self._backend.run(inputs)
        check_outputs(self.spec, outputs, sum(rows))
        arrays = {each.name: from_numpy(each.name, each.datatype, outputs[each.name]) for each in self.spec.outputs}
        return list(_split({name: tensor.numpy() for name, tensor in arrays.items()}, rows))


def recorded_yardstick(evidence: Path) -> Yardstick | None:
    """What a rollout's pairs were compared with, as its segments say; None where there are none.

    Raises:
        EvidenceError: a segment is damaged.
    """
    header = pairs_header(evidence)
    if header is None:
        return None
    return Yardstick(
        comparator=header.comparator,
        output=header.output,
        parameters=header.parameters,
        tolerance=header.limits.tolerance,
    )


def replay(
    exemplars: Iterable[Exemplar],
    candidate: LocalModel,
    yardstick: Yardstick,
    *,
    baseline: LocalModel | None = None,
    batch_size: int = 1,
) -> Replayed:
    """Run exemplars again, in batches of ``batch_size`` rows at most, and compare with what the baseline had answered.

    A request that was kept twice, as one of the worst and for the sample, is run once. Memory is that of one batch.

    Args:
        exemplars: in the order in which they are to be run.
        candidate: the version that runs them.
        yardstick: what is compared, and by what.
        baseline: the baseline's version, where that is to be run again as well.
        batch_size: rows that share a batch; a request with more runs alone.

    Raises:
        ShadowError: there is no such comparator, or it fails.
    """
    models = [candidate] if baseline is None else [candidate, baseline]
    most_rows = min(batch_size, *(max(each.spec.max_batch_size, 1) for each in models))
    comparison = _Comparison(yardstick, candidate.spec)
    total = Replayed()
    for batch in _batches(_distinct(exemplars), most_rows):
        again = None if baseline is None else baseline.answers(batch)
        total += comparison.of(batch, candidate.answers(batch), again)
    return total


class _Comparison:
    """Compares batch by batch, as a recorder does."""

    def __init__(self, yardstick: Yardstick, spec: ModelSpec) -> None:
        self._comparator = yardstick.open()
        self._limits = Limits(tolerance=yardstick.tolerance)
        self._finder, self._noise_finder = Finder(spec.outputs), Finder(spec.outputs)

    def of(self, batch: Sequence[Exemplar], answers: Sequence[Answer], again: Sequence[Answer] | None) -> Replayed:
        pair = Pair(
            deployment_id=batch[0].deployment_id,
            stage=0,
            at_unix_us=batch[0].at_unix_us,
            primary=Arm.BASELINE,
            request_ids=tuple(each.request_id for each in batch),
            rows=tuple(each.rows for each in batch),
            latencies_ms=(0.0,) * len(batch),
            baseline=Outcome(answers=tuple(each.baseline for each in batch)),
            candidate=Outcome(answers=tuple(answers)),
            twin=None if again is None else Outcome(answers=tuple(again)),
        )
        table = self._compared(pair)
        differences = list(_differences(batch, table))
        found: Evidence = sums(table, self._limits, self._comparator.measures)
        return Replayed(
            requests=len(batch),
            unanswered=sum(each.baseline.status is not Status.OK for each in batch),
            named=sum(each.baseline_top1 >= 0 for each in differences),
            sums=found.total(),
            worst=tuple(heapq.nlargest(LISTED, differences, key=lambda each: each.max_delta)),
            failures=tuple(_failures(table))[:LISTED],
        )

    def _compared(self, pair: Pair) -> pa.Table:
        find, find_noise = self._finder.find, self._noise_finder.find
        try:
            return to_table(
                [compact(pair, self._comparator, find=find, find_noise=find_noise)], self._comparator, first_batch=0
            )
        except ShadowError:
            raise
        except Exception as error:  # comparators may be the user's
            raise ShadowError(f"the comparator failed: {error!r}") from error


def mean_delta(total: StageSums) -> float | None:
    """The mean over the compared items of their mean |Δscore|; None where there are none."""
    return total.delta_sum_mean_e9 * DELTA_UNIT / total.items if total.items else None


def _distinct(exemplars: Iterable[Exemplar]) -> Iterator[Exemplar]:
    seen: set[tuple[str, str, int]] = set()
    for each in exemplars:
        key = each.chain, each.request_id, each.at_unix_us
        if key not in seen:
            seen.add(key)
            yield each


def _batches(exemplars: Iterable[Exemplar], most_rows: int) -> Iterator[list[Exemplar]]:
    """Consecutive exemplars whose inputs are of the same layout, together."""
    batch: list[Exemplar] = []
    for each in exemplars:
        rows = sum(other.rows for other in batch) + each.rows
        if batch and (rows > most_rows or _layout(each) != _layout(batch[0])):
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch


def _layout(exemplar: Exemplar) -> list[tuple[str, str, tuple[int, ...]]]:
    return sorted((tensor.name, tensor.datatype, tensor.shape[1:]) for tensor in exemplar.inputs)


def _stacked(batch: Sequence[Exemplar]) -> dict[str, Array]:
    if len(batch) == 1:
        return {tensor.name: tensor.numpy() for tensor in batch[0].inputs}
    parts: dict[str, list[Array]] = {}
    for tensor in (tensor for each in batch for tensor in each.inputs):
        parts.setdefault(tensor.name, []).append(tensor.numpy())
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _split(outputs: Mapping[str, Array], rows: Sequence[int]) -> Iterator[Answer]:
    """The answer to each request of a batch; one alone has all of it, whether there is a batch dimension or not."""
    if len(rows) == 1:
        yield Answer(status=Status.OK, outputs=outputs)
        return
    start = 0
    for count in rows:
        mine = {name: array[start : start + count] for name, array in outputs.items()}
        yield Answer(status=Status.OK, outputs=mine)
        start += count


_COMPARED: Final = ["request_id", "item", "max_delta", "baseline_top1", "candidate_top1"]
_ENDED: Final = ["request_id", "item", "baseline_status", "candidate_status", "candidate_error"]
_FAILED: Final = frozenset({Status.ERROR, Status.TIMEOUT, Status.MALFORMED})


def _differences(batch: Sequence[Exemplar], table: pa.Table) -> Iterator[Difference]:
    """The compared items of a batch's rows, which come request by request."""
    request = -1
    for row in table.select(_COMPARED).to_pylist():
        request += row["item"] == 0
        if row["max_delta"] is not None:
            yield Difference(**row, recorded_delta=batch[request].max_delta)


def _failures(table: pa.Table) -> Iterator[Failure]:
    for row in table.select(_ENDED).to_pylist():
        status = Status(row["candidate_status"])
        if row["item"] == 0 and status in _FAILED and row["baseline_status"] == Status.OK:
            yield Failure(request_id=row["request_id"], status=status, error=row["candidate_error"] or "")
