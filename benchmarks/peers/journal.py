"""Every measurement on disk as soon as it is made, so that a run that is cut off goes on where it was."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

import orjson

from benchmarks.errors import BenchmarkError
from benchmarks.load import Sample
from benchmarks.peers.contract import Load, Settings

_PLAN: Final = "plan"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One measurement of one contender."""

    round: int
    workload: str
    server: str
    load: Load
    settings: Settings
    sample: Sample
    commit: str

    @property
    def key(self) -> tuple[int, str, str, Load]:
        """What was measured; each is measured once."""
        return self.round, self.workload, self.server, self.load

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The inverse of ``asdict``."""
        return cls(**{**value, "load": Load(**value["load"]), "sample": Sample(**value["sample"])})


class Journal:
    """A file of JSON lines: the plan, then the runs.

    Raises:
        BenchmarkError: the file holds the runs of another plan.
    """

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self._path = path
        self.runs: list[Run] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        plan = orjson.loads(orjson.dumps(plan))
        if lines:
            self._read(lines, plan)
        path.write_bytes(b"".join(line + b"\n" for line in lines or [orjson.dumps({_PLAN: plan})]))

    def add(self, run: Run) -> None:
        """Append a run, durably as far as a killed process goes."""
        self.runs.append(run)
        with self._path.open("ab") as file:
            file.write(orjson.dumps(asdict(run)) + b"\n")

    def close(self) -> None:
        """Remove the file: its runs are in the result."""
        self._path.unlink()

    def _read(self, lines: list[bytes], plan: dict[str, Any]) -> None:
        if orjson.loads(lines[0]).get(_PLAN) != plan:
            raise BenchmarkError(f"{self._path}: expected runs of this plan, got another's; --fresh discards them")
        self.runs += [Run.from_json(orjson.loads(line)) for line in lines[1:]]


def _whole_lines(path: Path) -> list[bytes]:
    """The file's lines without a last one that was cut off."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    return content[: content.rfind(b"\n") + 1].splitlines()
