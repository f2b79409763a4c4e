"""Every window of a soak on disk as soon as it is over, so that a run that is cut off goes on in another segment."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import orjson

from benchmarks.errors import BenchmarkError
from benchmarks.soak.generator import Window
from benchmarks.soak.processes import Held

FILE: Final = "soak.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One window, and what the processes held at its end, ``at_s`` seconds after the segment's load began."""

    at_s: float
    window: Window
    held: list[Held]
    disk: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """The sample as plain values."""
        held = [asdict(each) for each in self.held]
        return {"at_s": self.at_s, "window": self.window.to_json(), "held": held, "disk": self.disk}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``to_json``, from JSON too."""
        held = [Held(**each) for each in value["held"]]
        return cls(at_s=value["at_s"], window=Window.from_json(value["window"]), held=held, disk=value["disk"])


@dataclass(slots=True, kw_only=True)
class Segment:
    """One service from its start to its end: what it could bear, what it was offered, and what was seen."""

    environment: Mapping[str, Any]
    capacity: float
    rate: float
    warm_up_s: float
    samples: list[Sample] = field(default_factory=list)

    @property
    def measured(self) -> list[Sample]:
        """What was seen after the warm-up."""
        return [each for each in self.samples if each.at_s >= self.warm_up_s]

    @property
    def measured_s(self) -> float:
        """How long it was measured after the warm-up."""
        return max(0.0, self.samples[-1].at_s - self.warm_up_s) if self.samples else 0.0


class Journal:
    """A file of JSON lines: the plan, then for each segment its beginning and its samples.

    Raises:
        BenchmarkError: the file holds the samples of another plan.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self._path = folder / FILE
        self.segments: list[Segment] = []
        folder.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(self._path)
        for line in lines:
            self._take(orjson.loads(line), plan)
        self._path.write_bytes(b"".join(line + b"\n" for line in lines))
        if not lines:
            self._write({"plan": plan})

    @property
    def measured_s(self) -> float:
        """How long was measured in all segments together."""
        return sum(each.measured_s for each in self.segments)

    def begin(self, segment: Segment) -> None:
        """A new service, without samples yet."""
        self.segments.append(segment)
        self._write({"segment": asdict(segment)})

    def add(self, sample: Sample) -> None:
        """A sample of the latest segment."""
        self.segments[-1].samples.append(sample)
        self._write({"sample": sample.to_json()})

    def _take(self, line: dict[str, Any], plan: Mapping[str, Any]) -> None:
        if "plan" in line and line["plan"] != orjson.loads(orjson.dumps(plan)):
            raise BenchmarkError(f"{self._path}: expected samples of this plan, got another's; --fresh discards them")
        if "segment" in line:
            self.segments.append(Segment(**line["segment"]))
        if "sample" in line:
            self.segments[-1].samples.append(Sample.from_json(line["sample"]))

    def _write(self, line: Mapping[str, Any]) -> None:
        with self._path.open("ab") as file:
            file.write(orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS) + b"\n")


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines without a last one that was cut off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines()
