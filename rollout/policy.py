"""Policies: which gates judge a rollout, with what limits, and how much time and evidence each stage takes.

A policy is a YAML file; ``extends`` names a preset (a file in ``rollout/policies``) or another file that it overrides,
key by key and at any depth; ``without`` names gates that are not inherited::

    name: mine
    extends: equivalence
    without: [compliance]
    bake_s: 120
    gates:
      latency: {advance_below_ms: 80, roll_back_above_ms: 90}
"""

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from rollout.errors import PolicyError
from rollout.gates import GATES
from rollout.gates.contract import Gate, Mode
from rollout.gates.latency import Latency
from rollout.gates.memory import Memory
from shadow.evidence import Limits, canonical

PRESETS: Final = Path(__file__).parent / "policies"

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Risk = Annotated[float, Field(gt=0, le=0.5)]


class OnBudget(StrEnum):
    """What happens to a rollout that is still undecided when a stage's budget ends."""

    ROLL_BACK = "roll_back"
    PAUSE = "pause"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StageRules(_Strict):
    """Where a stage differs from the policy's ``min_requests`` and ``bake_s``; None: it does not."""

    min_requests: Count | None = None
    bake_s: Seconds | None = None


class Policy(_Strict):
    """A policy, complete and checked. Times in seconds; ``stages`` by weight in percent.

    ``min_requests``: requests that the candidate was run on at a stage, mirrored or served, before it may pass;
    ``bake_s``: the least time at a stage; ``budget_s``: the most, after which ``on_budget`` says what happens.
    """

    name: Annotated[str, Field(min_length=1)]
    alpha: Risk = 0.05
    beta: Risk = 0.05
    min_requests: Count
    bake_s: Seconds
    budget_s: Seconds
    on_budget: Annotated[OnBudget, Field(strict=False)] = OnBudget.ROLL_BACK
    stages: dict[Annotated[int, Field(strict=False, ge=0, le=100)], StageRules] = Field(default_factory=dict)
    gates: dict[str, SerializeAsAny[Gate]]

    @model_validator(mode="before")
    @classmethod
    def _check_sha256(cls, value: Any) -> Any:
        """What ``to_json`` signed must be what is read back."""
        if not isinstance(value, Mapping) or "sha256" not in value:
            return value
        fields = {key: item for key, item in value.items() if key != "sha256"}
        if value["sha256"] != _sha256(fields):
            raise ValueError("its sha256 is not that of its content")
        return fields

    @field_validator("gates", mode="plain")
    @classmethod
    def _read_gates(cls, value: Any) -> dict[str, Gate]:
        """One field per registered gate: a wrong limit is refused under the gate's name, an unknown gate as a key."""
        if not isinstance(value, Mapping):
            raise ValueError("expected a mapping from gates' names to their limits")
        return {name: gate for name, gate in _GATES_BY_NAME.model_validate(dict(value)) if gate is not None}

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        everywhere = [gate for gate in self.gates.values() if gate.mode is Mode.BINDING and gate.stages is None]
        if not any(gate.proves_harm for gate in everywhere):
            able = ", ".join(name for name, gate in GATES.items() if gate.proves_harm)
            raise ValueError(f"gates: expected at least one of {able} to bind at every stage")
        for weight in (None, *self.stages):
            if self.bake_at(weight) > self.budget_s:
                where = "" if weight is None else f"stages.{weight}."
                raise ValueError(f"{where}bake_s: expected at most budget_s ({self.budget_s:g}): no stage could pass")
        return self

    def min_requests_at(self, weight: int) -> int:
        """The stage's minimum number of requests."""
        own = self.stages[weight].min_requests if weight in self.stages else None
        return self.min_requests if own is None else own

    def bake_at(self, weight: int | None) -> float:
        """The stage's bake time in seconds; None: that of stages that say nothing of their own."""
        own = self.stages[weight].bake_s if weight is not None and weight in self.stages else None
        return self.bake_s if own is None else own

    def limits(self, tolerance: float) -> Limits:
        """What the evidence counts as exceedances: the gates' limits, and the comparator's tolerance of |Δscore|.

        Where no gate reads a limit, it is that of the gate's default.
        """
        latency = next((gate for gate in self.gates.values() if isinstance(gate, Latency)), Latency())
        memory = next((gate for gate in self.gates.values() if isinstance(gate, Memory)), Memory())
        return Limits(
            tolerance=tolerance,
            latency_target_ms=latency.advance_below_ms,
            latency_breach_ms=latency.roll_back_above_ms,
            memory_bytes=memory.limit_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with the sha256 of their canonical spelling; ``model_validate`` reads and checks them."""
        fields = self.model_dump(mode="json")
        return {**fields, "sha256": _sha256(fields)}


def load_policy(name_or_path: str | Path, relative_to: Path) -> Policy:
    """A preset by its name, or a policy file by its path.

    Args:
        name_or_path: "improvement"; "canary.yaml", taken from ``relative_to`` unless absolute.
        relative_to: the folder of the file that names the policy.

    Raises:
        PolicyError: no such preset or file, or one that is wrong; names file and field.
    """
    path = _find(str(name_or_path), relative_to, asked_by=None)
    try:
        return Policy.model_validate(_read(path, seen=()))
    except ValidationError as error:
        raise PolicyError(f"{path}: " + "; ".join(_problem(each) for each in error.errors())) from None


def presets() -> list[str]:
    """The names of the policies that come along."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


_FIELDS: Final[dict[str, Any]] = {name: (gate, None) for name, gate in GATES.items()}
_GATES_BY_NAME: Final = create_model("Gates", __base__=_Strict, **_FIELDS)


def _find(name: str, relative_to: Path, asked_by: Path | None) -> Path:
    if name in presets():
        return PRESETS / f"{name}.yaml"
    path = relative_to / name
    if path.is_file():
        return path
    where = "policy" if asked_by is None else f"{asked_by}: extends"
    raise PolicyError(f"{where}: expected a preset ({', '.join(presets())}) or a file, found neither in {path}")


def _read(path: Path, seen: Sequence[Path]) -> dict[str, Any]:
    """A file's fields over those of what it extends."""
    own = _parse(path)
    base, without = own.pop("extends", None), own.pop("without", [])
    inherited: dict[str, Any] = {}
    if base is not None:
        parent = _find(_text(base, path, "extends"), path.parent, path).resolve()
        if parent in (path.resolve(), *seen):
            raise PolicyError(f"{path}: extends: {parent} extends this file: a circle")
        inherited = _read(parent, (path.resolve(), *seen))
    return {**_override(_drop(inherited, without, path), own), "name": own.get("name", path.stem)}


def _drop(inherited: dict[str, Any], without: Any, path: Path) -> dict[str, Any]:
    gates = inherited.get("gates", {})
    if not isinstance(without, list) or any(name not in gates for name in without):
        known = ", ".join(gates) or "none"
        raise PolicyError(f"{path}: without: expected a list of inherited gates ({known}), got {without!r}")
    return {**inherited, "gates": {name: gate for name, gate in gates.items() if name not in without}}


def _override(base: Mapping[Any, Any], own: Mapping[Any, Any]) -> dict[Any, Any]:
    """``own`` over ``base``: mappings key by key, anything else whole."""
    merged = dict(base)
    for key, value in own.items():
        deeper = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _override(merged[key], value) if deeper else value
    return merged


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise PolicyError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise PolicyError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content


def _text(value: Any, path: Path, field: str) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"{path}: {field}: expected a preset's name or a path, got {value!r}")
    return value


def _problem(error: ErrorDetails) -> str:
    """One of pydantic's findings as "field: what was expected, got what"."""
    field = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{field}: missing"
    if error["type"] == "extra_forbidden":
        return f"{field}: unknown"
    if error["type"] == "value_error":
        return f"{field}: {message}" if field else message
    return f"{field}: {message}, got {error['input']!r}"


def _sha256(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(fields)).hexdigest()


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that is there twice is an error: the second would silently undo the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for place, key in enumerate(keys) if key in keys[:place]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)
