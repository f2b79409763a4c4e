"""Every alternation on disk as soon as it is measured, so that a run that is cut off goes on where it was.

The unit is the alternation, not the single measurement: a ratio is of figures that were measured one after the other.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from benchmarks.errors import BenchmarkError
from benchmarks.load import Sample
from benchmarks.mirror_tax.loads import Load, Mode, Part

FILE: Final = "mirror_tax.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of one load in one mode.

    Attributes:
        sample: what the clients saw, after the lead-in.
        answered: requests, those of the lead-in included.
        failed: likewise.
        busy: the share of the machine's cores that was taken, by whomever.
        account: where the mirrored items went, those of the lead-in included, once nothing was pending; None where
            nothing is mirrored, or where the rollout had ended.
        ended: how the rollout ended meanwhile; "" where it went on, or where there was none.
    """

    sample: Sample
    answered: int
    failed: int
    busy: float
    account: Mapping[str, int] | None = None
    ended: str = ""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``asdict``."""
        return cls(**{**value, "sample": Sample(**value["sample"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternation:
    """One load in all its modes, one after the other."""

    load: Load
    round: int
    commit: str
    by_mode: Mapping[Mode, Measured]

    def to_json(self) -> dict[str, Any]:
        """The alternation as plain values."""
        by_mode = {mode.value: asdict(measured) for mode, measured in self.by_mode.items()}
        load = {**asdict(self.load), "part": self.load.part.value}
        return {"load": load, "round": self.round, "commit": self.commit, "by_mode": by_mode}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``, from JSON too."""
        load = Load(**{**value["load"], "part": Part(value["load"]["part"])})
        by_mode = {Mode(mode): Measured.from_json(measured) for mode, measured in value["by_mode"].items()}
        return cls(load=load, round=value["round"], commit=value["commit"], by_mode=by_mode)


class Journal:
    """A file of JSON lines: the plan, then alternations and what they rest on.

    ``saturation`` is in requests a second, by ``saturation_of`` a load; ``batch_ms`` of the largest batch, the model
    alone, by workload. A plan is what all alternations must have in common.

    Raises:
        BenchmarkError: the file holds the alternations of another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self.alternations: list[Alternation] = []
        self.saturation: dict[str, float] = {}
        self.batch_ms: dict[str, float] = {}
        folder.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(self._path)
        for line in lines:
            self._take(orjson.loads(line), plan)
        self._path.write_bytes(b"".join(line + b"\n" for line in lines))
        if not lines:
            self._write({"plan": plan})

    def has(self, load: Load, number: int) -> bool:
        """Whether a load was measured in a round."""
        return any((each.load, each.round) == (load, number) for each in self.alternations)

    def add(self, alternation: Alternation) -> None:
        """Append an alternation, durably as far as a killed process goes."""
        self.alternations.append(alternation)
        self._write({"alternation": alternation.to_json()})

    def note_saturation(self, name: str, requests_per_s: float) -> None:
        """Keep what shares are of, for every later run too."""
        self.saturation[name] = requests_per_s
        self._write({"saturation": {name: requests_per_s}})

    def note_batch(self, workload: str, batch_ms: float) -> None:
        """Keep how long a workload's largest batch takes."""
        self.batch_ms[workload] = batch_ms
        self._write({"batch_ms": {workload: batch_ms}})

    def _take(self, line: dict[str, Any], plan: Mapping[str, Any]) -> None:
        if "plan" in line and line["plan"] != orjson.loads(orjson.dumps(plan)):
            raise BenchmarkError(
                f"{self._path}: expected alternations of this plan, got another's; --fresh discards them"
            )
        if "alternation" in line:
            self.alternations.append(Alternation.from_json(line["alternation"]))
        self.saturation.update(line.get("saturation", {}))
        self.batch_ms.update(line.get("batch_ms", {}))

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines without a last one that was cut off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines()
