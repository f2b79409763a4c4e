"""The recorded trace: what the verdicts need of every request, in one small Parquet file.

A trace was recorded from a real service whose candidate and twin are its baseline over again
(``benchmarks.noise.record``). Each request is one row: one image. The answers are kept as they were, bit by bit; those
of candidate and twin only where they differ from the baseline's.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from models.spec import TensorSpec
from shadow.pair import Answer, Arm, Outcome, Pair, Status
from shadow.rows import SIDES, TWIN

OUTPUT: Final = "scores"
CLASSES: Final = 10
DECLARED: Final = (TensorSpec(name=OUTPUT, datatype="FP32", shape=(-1, CLASSES)),)
_FACTS: Final = b"understudy"
_LEVEL: Final = 19  # of zstd
_WORD: Final = pa.dictionary(pa.int32(), pa.string())

SCHEMA: Final = pa.schema(
    [
        pa.field("at_ms", pa.int32(), nullable=False),  # of the batch, from the first one's
        pa.field("batch", pa.int32(), nullable=False),  # running number, from 0
        pa.field("batch_rows", pa.int32(), nullable=False),  # of the batch as it ran
        pa.field("image", pa.int32(), nullable=False),  # index into the test images
        pa.field("label", pa.int32(), nullable=False),  # what it shows
        pa.field("latency_us", pa.int64(), nullable=False),
        *(
            pa.field(f"{side}_{name}", kind)
            for side in SIDES
            for name, kind in (
                ("status", _WORD),
                ("error", _WORD),
                ("answer", pa.binary(4 * CLASSES)),  # the scores, FP32; where it is ok and null: the baseline's
                ("service_us", pa.int64()),
                ("service_cpu_us", pa.int64()),
                ("memory_bytes", pa.int64()),
            )
        ),
    ]
)


def write_trace(path: Path, table: pa.Table, facts: Mapping[str, Any]) -> None:
    """Write a trace; ``facts`` say how it was recorded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    signed = table.select(SCHEMA.names).cast(SCHEMA).replace_schema_metadata({_FACTS: orjson.dumps(facts)})
    rising = dict.fromkeys(("at_ms", "batch"), "DELTA_BINARY_PACKED")
    pq.write_table(
        signed,
        path,
        compression="zstd",
        compression_level=_LEVEL,
        use_dictionary=[name for name in SCHEMA.names if name not in rising],
        column_encoding=rising,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A trace in memory: batch after batch.

    Attributes:
        pairs: the batches, in the order in which they were answered.
        at_s: when, in seconds from the first, shape [pairs]; ascending.
        images: the image of each request, batch by batch.
        labels: what each request's image shows, shape [requests].
        facts: how it was recorded.
    """

    pairs: tuple[Pair, ...]
    at_s: NDArray[np.float64]
    images: tuple[tuple[int, ...], ...]
    labels: NDArray[np.int32]
    facts: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write_trace`` wrote.

        Raises:
            BenchmarkError: there is no such file, or it is no trace.
        """
        try:
            table = pq.read_table(path, use_threads=False)
            facts = orjson.loads((table.schema.metadata or {})[_FACTS])
        except (OSError, pa.ArrowException, KeyError, ValueError) as error:
            raise BenchmarkError(f"{path}: expected a trace that --record wrote: {error}") from None
        if not table.schema.equals(SCHEMA) or not table.num_rows:
            raise BenchmarkError(f"{path}: expected the columns of a trace, and at least one request")
        return cls.of(table, facts)

    @classmethod
    def of(cls, table: pa.Table, facts: Mapping[str, Any]) -> Self:
        """The trace in a table of ``SCHEMA``, which has at least one row."""
        answers = _Answers()
        pairs, at_s, images = [], [], []
        for _, group in groupby(table.to_pylist(), key=itemgetter("batch")):
            rows = list(group)
            pairs.append(_pair(rows, answers))
            at_s.append(rows[0]["at_ms"] * 1e-3)
            images.append(tuple(row["image"] for row in rows))
        labels = table["label"].to_numpy().astype(np.int32)
        return cls(pairs=tuple(pairs), at_s=np.array(at_s), images=tuple(images), labels=labels, facts=facts)

    @property
    def seconds(self) -> float:
        """How long it goes on, with the pause that follows the last batch when it starts anew: a mean one."""
        return float(self.at_s[-1] * len(self.at_s) / max(len(self.at_s) - 1, 1)) or 1.0

    @property
    def requests(self) -> int:
        """How many requests it holds."""
        return len(self.labels)

    def of_other_batches(self, rng: np.random.Generator) -> "Trace":
        """The same, but the candidate and the twin answer with what some batch was answered about the same image.

        Understudy runs a mirrored batch as it first ran, so that its size makes no difference. Here it does: these are
        the recorded answers of batches of all sizes, with the rounding of each.
        """
        recorded: dict[int, list[Answer]] = defaultdict(list)
        for pair, images in zip(self.pairs, self.images, strict=True):
            for image, answer in zip(images, pair.baseline.answers, strict=True):
                if answer.status is Status.OK:
                    recorded[image].append(answer)

        def drawn(outcome: Outcome, images: Sequence[int]) -> Outcome:
            draws = rng.random(len(images)).tolist()
            answers = zip(outcome.answers, images, draws, strict=True)
            return replace(outcome, answers=tuple(_other(mine, recorded[image], draw) for mine, image, draw in answers))

        pairs = (
            replace(
                pair,
                candidate=drawn(pair.candidate, images),
                twin=None if pair.twin is None else drawn(pair.twin, images),
            )
            for pair, images in zip(self.pairs, self.images, strict=True)
        )
        return replace(self, pairs=tuple(pairs))

    def with_twin_in(self, share: float, rng: np.random.Generator) -> "Trace":
        """The same, but the twin ran that share of the batches alone."""
        runs = (rng.random(len(self.pairs)) < share).tolist()
        pairs = (pair if ran else replace(pair, twin=None) for pair, ran in zip(self.pairs, runs, strict=True))
        return replace(self, pairs=tuple(pairs))

    def quantile_ms(self, q: float) -> float:
        """The q-quantile of the shadow replicas' service times: the candidate's or the twin's, whichever is higher."""
        candidate = [pair.candidate.service_ms for pair in self.pairs]
        twin = [pair.twin.service_ms for pair in self.pairs if pair.twin is not None]
        times = ([each for each in side if each is not None] for side in (candidate, twin))
        return max(float(np.quantile(each, q, method="higher")) for each in times if each)

    def summary(self) -> dict[str, Any]:
        """What is to be known of it: its size, its bursts, and its noise."""
        sizes = [len(pair.rows) for pair in self.pairs]
        times = np.repeat(self.at_s, sizes)
        per_second = np.bincount(times.astype(np.int64))
        by_image: dict[int, set[bytes]] = defaultdict(set)
        for pair, images in zip(self.pairs, self.images, strict=True):
            for image, answer in zip(images, pair.baseline.answers, strict=True):
                by_image[image].add(_bits(answer))
        return {
            "pairs": self.requests,
            "batches": len(self.pairs),
            "with_twin": sum(len(pair.rows) for pair in self.pairs if pair.twin is not None),
            "seconds": float(self.at_s[-1]),
            "batch_sizes": {str(size): sizes.count(size) for size in sorted(set(sizes))},
            "pairs_per_s": {str(q): float(np.quantile(per_second, q)) for q in (0.05, 0.5, 0.95, 1.0)},
            "differ_at_equal_batch": self._different(),
            "images": len(by_image),
            "answers": sum(map(len, by_image.values())),
            "largest_between_batches": max(map(_spread, by_image.values())),
            "service_ms": {
                "baseline": _quantiles([pair.baseline for pair in self.pairs]),
                "candidate": _quantiles([pair.candidate for pair in self.pairs]),
                "twin": _quantiles([pair.twin for pair in self.pairs if pair.twin is not None]),
            },
        }

    def _different(self) -> int:
        """Requests that candidate or twin answered otherwise than the baseline, be it by one bit."""
        return sum(
            any(_bits(side.answers[at]) != _bits(mine) for side in (pair.candidate, pair.twin) if side is not None)
            for pair in self.pairs
            for at, mine in enumerate(pair.baseline.answers)
        )


class _Answers:
    """Makes each answer once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, bytes | None, str], Answer] = {}

    def of(self, status: str, scores: bytes | None, error: str | None) -> Answer:
        key = status, scores if status == Status.OK else None, error or ""
        answer = self._known.get(key)
        if answer is None:
            outputs = None if key[1] is None else {OUTPUT: np.frombuffer(key[1], np.float32).reshape(1, -1)}
            answer = self._known[key] = Answer(status=Status(status), outputs=outputs, error=key[2])
        return answer


def _pair(rows: Sequence[Mapping[str, Any]], answers: _Answers) -> Pair:
    """One batch: the rows of its requests."""
    first = rows[0]
    baseline, candidate, twin = (_outcome(rows, side, answers) for side in SIDES)
    return Pair(
        deployment_id="recorded",
        stage=0,
        at_unix_us=first["at_ms"] * 1000,
        primary=Arm.BASELINE,
        request_ids=tuple(f"{first['batch']}-{at}" for at in range(len(rows))),
        rows=(1,) * len(rows),
        latencies_ms=tuple(row["latency_us"] / 1000 for row in rows),
        baseline=baseline,
        candidate=candidate,
        twin=None if first[f"{TWIN}_status"] == Status.ABSENT else twin,
        ran_rows=first["batch_rows"],
    )


def _outcome(rows: Sequence[Mapping[str, Any]], side: str, answers: _Answers) -> Outcome:
    status, error, scores, wall, cpu, memory = (
        f"{side}_{name}" for name in ("status", "error", "answer", "service_us", "service_cpu_us", "memory_bytes")
    )
    first, baseline = rows[0], f"{SIDES[0]}_answer"
    return Outcome(
        answers=tuple(answers.of(row[status], row[scores] or row[baseline], row[error]) for row in rows),
        service_ms=_milliseconds(first[wall]),
        cpu_ms=_milliseconds(first[cpu]),
        peak_memory_bytes=first[memory],
    )


def _milliseconds(microseconds: int | None) -> float | None:
    return None if microseconds is None else microseconds / 1000


def _other(mine: Answer, recorded: Sequence[Answer], draw: float) -> Answer:
    """Some recorded answer, unless there is none to be put in its place."""
    return recorded[int(draw * len(recorded))] if mine.status is Status.OK and recorded else mine


def _bits(answer: Answer) -> bytes:
    return b"" if answer.outputs is None else answer.outputs[OUTPUT].tobytes()


def _spread(answers: Iterable[bytes]) -> float:
    """By how much the scores of some answers differ at most."""
    scores = np.array([np.frombuffer(each, np.float32) for each in answers if each], np.float64)
    return float(np.ptp(scores, axis=0).max()) if len(scores) else 0.0


def _quantiles(outcomes: Iterable[Outcome]) -> dict[str, float]:
    """p50, p95 and p99 of service times, in milliseconds."""
    times = [outcome.service_ms for outcome in outcomes if outcome.service_ms is not None]
    return {f"p{round(100 * q)}": float(np.quantile(times, q)) for q in (0.5, 0.95, 0.99)} if times else {}


def edges(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """The first row of each batch, and the one after its last."""
    return list(pairwise([0, *np.cumsum(list(sizes)).tolist()]))
