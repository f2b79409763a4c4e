"""Are planted faults found and named, and is honest noise left alone? ``python -m benchmarks.findings``, a minute.

The digits baseline answers the test images; the candidate is its twin: the same model, asked in batches of another
size, as bursts make them, and computed with another rounding. One request after another is examined as the recorder
does, and a finding counts as reported when ``rollout.findings.established`` says so at any look: the thresholds are the
service's own, and the same in every part.

* Each fault is planted at 1 % of the requests: it must be reported by its kind, and no other kind.
* Without a fault nothing may be reported: with fresh seeds for each kind, in many runs of noise alone, and where the
  candidate is another version, whose scores differ by right.

These models' sums are exact in any order by construction (``models.reference.train``), so batch sizes alone would leave
almost no noise: to each value of the twin up to four units in the last place are added. Beside the scores every answer
has a ``label``: the digit's Chinese name as text, for the faults of encoding.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

import numpy as np

from benchmarks.environment import PACKAGES, ROOT, describe
from benchmarks.report import RESULTS, origin, say, table, write
from models.backends import open_backend
from models.errors import MalformedOutputError, UnderstudyError
from models.reference.build import BASELINE, BETTER, EQUIVALENT, REGRESSED
from models.reference.digits import load_split
from models.repository import open_version
from models.signature import check_outputs
from models.spec import TensorSpec
from models.tensor import Array
from rollout.findings import established
from shadow.findings import FINDINGS, Finder, Finding, named
from shadow.pair import Answer, Status

SHARE: Final = 0.01
BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32)
VERSIONS: Final[Mapping[str, int]] = {"better": BETTER, "equivalent": EQUIVALENT, "regressed": REGRESSED}
TWIN: Final = "twin"
_REPOSITORY: Final = ROOT / "examples" / "model_repository" / "digits"
_NAMES: Final = tuple("零一二三四五六七八九")
_ULPS: Final = 4
_BURST: Final = 0.2  # of the time
_STAYS: Final = 0.95  # from one batch to the next, in a burst or out of it
_QUIET: Final = (0.6, 0.3, 0.1, 0.0, 0.0, 0.0)  # of BATCH_SIZES
_BUSY: Final = (0.0, 0.0, 0.1, 0.2, 0.3, 0.4)

Random: TypeAlias = np.random.Generator
Answers: TypeAlias = Sequence[Sequence[Answer]]  # by index into BATCH_SIZES, then by image


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is run: seeded runs of each fault, of noise alone, and their length."""

    seeds: int = 20
    noise_runs: int = 100
    requests: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What a broken candidate makes of its answer."""

    finding: Finding
    how: str
    plant: Callable[[Answer], Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What one run did: how often each kind was seen, and at which request it was first reported.

    Attributes:
        planted: requests with a fault.
        marked: of these, those with any finding.
    """

    planted: int = 0
    marked: int = 0
    seen: Mapping[Finding, int] = field(default_factory=dict)
    reported: Mapping[Finding, int] = field(default_factory=dict)


class World:
    """All answers of all versions, for every image in a batch of every size."""

    def __init__(self) -> None:
        self.images = load_split().test_images
        spec = open_version(_REPOSITORY / str(BASELINE)).spec
        self.spec = replace(spec, outputs=(*spec.outputs, TensorSpec(name="label", datatype="BYTES", shape=(-1, 1))))
        scores = self._scores(BASELINE)
        noisy = [_round_otherwise(values, np.random.default_rng(at)) for at, values in enumerate(scores)]
        self.baseline = _answers(scores)
        self.candidates: dict[str, Answers] = {TWIN: _answers(noisy)}
        for name, version in VERSIONS.items():
            self.candidates[name] = _answers(self._scores(version))
        whole = np.stack(scores)
        self.batch_noise = float(np.abs(whole - whole[:1]).max())
        self.twin_noise = float(np.abs(np.stack(noisy) - whole).max())

    def _scores(self, version: int) -> list[Array]:
        """[images, classes] for each batch size."""
        backend = open_backend(open_version(_REPOSITORY / str(version)), {})
        backend.load()
        try:
            return [
                np.concatenate(
                    [
                        backend.run({"image": self.images[at : at + size]})["scores"]
                        for at in range(0, len(self.images), size)
                    ]
                )
                for size in BATCH_SIZES
            ]
        finally:
            backend.close()

    def faults(self) -> tuple[Fault, ...]:
        """One or more of each kind."""
        return (
            Fault(finding=Finding.MISSING_OUTPUT, how="an output left out", plant=_without_label),
            Fault(finding=Finding.MISSING_OUTPUT, how="the same, refused by the replica", plant=self._refused),
            Fault(finding=Finding.EXTRA_OUTPUT, how="an output more", plant=_with_embedding),
            Fault(finding=Finding.DATATYPE, how="scores as FP64", plant=_in_scores(lambda x: x.astype(np.float64))),
            Fault(finding=Finding.DATATYPE, how="label as a number", plant=_with_number),
            Fault(finding=Finding.SHAPE, how="a class less", plant=_in_scores(lambda x: x[:, :-1])),
            Fault(finding=Finding.ENCODING, how="mojibake", plant=_in_label(_mojibake)),
            Fault(finding=Finding.ENCODING, how="a NUL after the text", plant=_in_label(lambda raw: raw + b"\0")),
            Fault(
                finding=Finding.ENCODING, how="a byte order mark", plant=_in_label(lambda raw: b"\xef\xbb\xbf" + raw)
            ),
            Fault(finding=Finding.ENCODING, how="UTF-16", plant=_in_label(lambda raw: raw.decode().encode("utf-16"))),
            Fault(finding=Finding.ENCODING, how="scores with swapped bytes", plant=_in_scores(lambda x: x.byteswap())),
            Fault(finding=Finding.NOT_A_NUMBER, how="a NaN", plant=_in_scores(lambda x: _with_value(x, np.nan))),
            Fault(finding=Finding.NOT_A_NUMBER, how="an infinity", plant=_in_scores(lambda x: _with_value(x, np.inf))),
            Fault(finding=Finding.PRECISION, how="float16", plant=_in_scores(_half)),
            Fault(finding=Finding.PRECISION, how="bfloat16", plant=_in_scores(_brain)),
            Fault(finding=Finding.PRECISION, how="3 decimals", plant=_in_scores(lambda x: np.round(x, 3))),
            Fault(
                finding=Finding.PRECISION, how="multiples of 2^-8", plant=_in_scores(lambda x: np.rint(x * 256) / 256)
            ),
            Fault(
                finding=Finding.CONSTANT, how="0.1 for every class", plant=_in_scores(lambda x: np.full_like(x, 0.1))
            ),
            Fault(finding=Finding.CONSTANT, how="the same scores to all", plant=self._always_the_same()),
        )

    def _refused(self, answer: Answer) -> Answer:
        try:
            check_outputs(self.spec, _without_label(answer).outputs or {}, 1)
        except MalformedOutputError as error:
            return Answer(status=Status.MALFORMED, error=str(error))
        return answer

    def _always_the_same(self) -> Callable[[Answer], Answer]:
        outputs = self.candidates[TWIN][0][0].outputs or {}
        return _in_scores(lambda _: outputs["scores"])


def _answers(scores: Sequence[Array]) -> Answers:
    names = np.empty((len(_NAMES), 1, 1), dtype=object)
    names[:, 0, 0] = [name.encode() for name in _NAMES]
    return [
        [
            Answer(status=Status.OK, outputs={"scores": values[at : at + 1], "label": names[top]})
            for at, top in enumerate(values.argmax(axis=1).tolist())
        ]
        for values in scores
    ]


def _round_otherwise(values: Array, rng: Random) -> Array:
    noise = rng.integers(-_ULPS, _ULPS, size=values.shape, endpoint=True)
    return (values + noise * np.spacing(values)).astype(values.dtype)


def _in_scores(change: Callable[[Array], Array]) -> Callable[[Answer], Answer]:
    def plant(answer: Answer) -> Answer:
        outputs = answer.outputs or {}
        return replace(answer, outputs={**outputs, "scores": change(outputs["scores"])})

    return plant


def _in_label(change: Callable[[bytes], bytes]) -> Callable[[Answer], Answer]:
    def plant(answer: Answer) -> Answer:
        outputs = answer.outputs or {}
        label = np.empty((1, 1), dtype=object)
        label[0, 0] = change(outputs["label"][0, 0])
        return replace(answer, outputs={**outputs, "label": label})

    return plant


def _without_label(answer: Answer) -> Answer:
    return replace(answer, outputs={"scores": (answer.outputs or {})["scores"]})


def _with_embedding(answer: Answer) -> Answer:
    return replace(answer, outputs={**(answer.outputs or {}), "embedding": np.zeros((1, 4), np.float32)})


def _with_number(answer: Answer) -> Answer:
    outputs = answer.outputs or {}
    return replace(answer, outputs={**outputs, "label": outputs["scores"].argmax(axis=1)[:, None]})


def _mojibake(raw: bytes) -> bytes:
    return raw.decode("latin-1").encode()


def _with_value(scores: Array, value: float) -> Array:
    changed = scores.copy()
    changed[0, 3] = value
    return changed


def _half(scores: Array) -> Array:
    return scores.astype(np.float16).astype(np.float32)


def _brain(scores: Array) -> Array:
    return (scores.view(np.uint32) & 0xFFFF0000).view(np.float32)


def trace(
    world: World, seed: int, requests: int, *, fault: Fault | None = None, share: float = 0.0, candidate: str = TWIN
) -> Trace:
    """One run of ``requests``, a ``share`` of which, drawn without replacement, the fault is planted in."""
    rng = np.random.default_rng(seed)
    images = rng.integers(len(world.images), size=requests).tolist()
    mine, theirs = _sizes(rng, requests), _sizes(rng, requests)
    faulty = frozenset(rng.choice(requests, round(share * requests), replace=False).tolist())
    baseline, answers, finder = world.baseline, world.candidates[candidate], Finder(world.spec.outputs)
    seen: Counter[Finding] = Counter()
    reported: dict[Finding, int] = {}
    marked = 0
    for at, (image, size, other) in enumerate(zip(images, mine, theirs, strict=True)):
        after = answers[other][image]
        if fault is not None and at in faulty:
            after = fault.plant(after)
        mask = finder.find(baseline[size][image], after, 1)
        if mask:
            marked += at in faulty
            for finding in named(mask):
                seen[finding] += 1
                if finding not in reported and established(finding, seen[finding], 0, at + 1):
                    reported[finding] = at + 1
    return Trace(planted=len(faulty), marked=marked, seen=dict(seen), reported=reported)


def _sizes(rng: Random, requests: int) -> list[int]:
    """The size of each request's batch, as an index into ``BATCH_SIZES``: small ones, and large ones in bursts."""
    found: list[int] = []
    busy = bool(rng.random() < _BURST)
    while len(found) < requests:
        size = int(rng.choice(len(BATCH_SIZES), p=_BUSY if busy else _QUIET))
        found += [size] * BATCH_SIZES[size]
        if rng.random() >= _STAYS:
            busy = bool(rng.random() < _BURST)
    return found[:requests]


def measure(plan: Plan) -> dict[str, Any]:
    """Run everything; the result as plain values."""
    environment = describe((*PACKAGES, "scikit-learn"))
    say("asking the models")
    world, seeds = World(), iter(range(10**9))
    planted = []
    for fault in world.faults():
        runs = [trace(world, next(seeds), plan.requests, fault=fault, share=SHARE) for _ in range(plan.seeds)]
        planted.append(_planted_row(fault, runs))
        say(f"{fault.finding}: {fault.how}: reported in {planted[-1]['reported']} of {plan.seeds} runs")
    clean = [
        _clean_row(f"{finding}, planted at 0 %", [trace(world, next(seeds), plan.requests) for _ in range(plan.seeds)])
        for finding in FINDINGS
    ]
    clean.append(_clean_row("noise alone", [trace(world, next(seeds), plan.requests) for _ in range(plan.noise_runs)]))
    for name in VERSIONS:
        runs = [trace(world, next(seeds), plan.requests, candidate=name) for _ in range(plan.seeds)]
        clean.append(_clean_row(f"the {name} version", runs))
    return {
        "benchmark": "findings",
        "environment": environment,
        "settings": {**asdict(plan), "share": SHARE, "batch_sizes": BATCH_SIZES, "ulps": _ULPS},
        "noise": {"by_batch_size": world.batch_noise, "of_the_twin": world.twin_noise},
        "planted": planted,
        "clean": clean,
    }


def _planted_row(fault: Fault, runs: Sequence[Trace]) -> dict[str, Any]:
    at = [run.reported[fault.finding] for run in runs if fault.finding in run.reported]
    return {
        "finding": fault.finding,
        "how": fault.how,
        "runs": len(runs),
        "marked": sum(run.marked for run in runs) / sum(run.planted for run in runs),
        "reported": len(at),
        "reported_after": median(at) if at else None,
        "reported_otherwise": sum(bool(run.reported.keys() - {fault.finding}) for run in runs),
    }


def _clean_row(name: str, runs: Sequence[Trace]) -> dict[str, Any]:
    return {
        "name": name,
        "runs": len(runs),
        "marked_requests": sum(sum(run.seen.values()) for run in runs),
        "reported": sum(bool(run.reported) for run in runs),
    }


def missed(document: Mapping[str, Any]) -> list[str]:
    """What is not as it must be; empty when all is."""
    faults = [
        f"{row['finding']}: {row['how']}: reported in {row['reported']} of {row['runs']} runs, as another kind in "
        f"{row['reported_otherwise']}"
        for row in document["planted"]
        if row["reported"] < row["runs"] or row["reported_otherwise"]
    ]
    return faults + [
        f"{row['name']}: something is reported in {row['reported']} of {row['runs']} runs"
        for row in document["clean"]
        if row["reported"]
    ]


def render(document: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    settings, noise = document["settings"], document["noise"]
    return "\n\n".join(
        [
            "# Structural findings: planted, and not",
            origin(document["environment"]),
            f"Runs of {settings['requests']} requests each. Without a fault the twin's scores differ by up to "
            f"{noise['of_the_twin']:.1e}, of which {noise['by_batch_size']:.1e} are the batch size's. *Marked* is the "
            "share of the faulty requests that show a finding by themselves; *after*, the median request at which the "
            "kind was first reported.",
            f"## Planted at {settings['share']:.0%} of the requests",
            table(
                ("kind", "fault", "marked", "reported", "after", "another kind reported"),
                [
                    (
                        row["finding"],
                        row["how"],
                        f"{row['marked']:.0%}",
                        f"{row['reported']} of {row['runs']}",
                        "–" if row["reported_after"] is None else f"{row['reported_after']:.0f}",
                        str(row["reported_otherwise"]),
                    )
                    for row in document["planted"]
                ],
            ),
            "## Nothing planted",
            table(
                ("candidate", "requests marked", "runs with a report"),
                [
                    (row["name"], str(row["marked_requests"]), f"{row['reported']} of {row['runs']}")
                    for row in document["clean"]
                ],
            ),
            "\n".join(missed(document)) or "Every fault is found and named, and nothing else is.",
        ]
    )


def main() -> int:
    """Run, print and write the result; exit status 1 if something is not as it must be, 2 if it cannot be run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="runs of each fault, and of each kind without one")
    parser.add_argument("--noise-runs", type=int, default=100, help="runs of noise alone")
    parser.add_argument("--requests", type=int, default=2000, help="of each run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where findings.json and findings.md are written")
    options = parser.parse_args()
    if min(options.seeds, options.noise_runs, options.requests) < 1:
        parser.error("--seeds, --noise-runs and --requests: expected at least 1")
    try:
        document = measure(Plan(seeds=options.seeds, noise_runs=options.noise_runs, requests=options.requests))
    except UnderstudyError as error:
        print(f"findings: {error}", file=sys.stderr)
        return 2
    markdown = render(document)
    write(options.out, "findings", document, markdown)
    print(markdown)
    return 1 if missed(document) else 0


if __name__ == "__main__":
    sys.exit(main())
