"""Schema diff of baseline and candidate: can the candidate take the baseline's traffic, and can clients read it?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from models.spec import ModelSpec, TensorSpec, step_to_json

_VARIABLE: Final = -1
# Formats that unpickle on load; an ONNX graph is protobuf, a .pt2 archive is JSON and raw tensors.
_PICKLED: Final = frozenset({".pkl", ".pickle", ".joblib", ".pt", ".pth", ".ckpt"})
_SERIALISATIONS: Final[Mapping[str, str]] = {
    ".onnx": "protobuf",
    ".pt2": "JSON and raw tensors",
    ".plan": "TensorRT plan",
    ".engine": "TensorRT plan",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One field that differs. ``compatible``: no client and no mirrored batch can fail because of it."""

    field: str
    baseline: Any
    candidate: Any
    compatible: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaDiff:
    """All differences; ``compared`` counts the fields that were looked at."""

    differences: tuple[Difference, ...]
    compared: int

    @property
    def compatible(self) -> bool:
        """No difference that breaks a client or a mirrored batch."""
        return all(difference.compatible for difference in self.differences)

    @property
    def drift(self) -> float:
        """Schema drift, 0…1: 1 as soon as one difference is incompatible, else the share of fields that differ."""
        return len(self.differences) / self.compared if self.compatible else 1.0

    def to_json(self) -> dict[str, Any]:
        """The diff as plain dicts and lists."""
        return {
            "compatible": self.compatible,
            "drift": self.drift,
            "compared": self.compared,
            "differences": [
                {
                    "field": difference.field,
                    "baseline": difference.baseline,
                    "candidate": difference.candidate,
                    "compatible": difference.compatible,
                    "reason": difference.reason,
                }
                for difference in self.differences
            ],
        }


def diff(a: ModelSpec, b: ModelSpec) -> SchemaDiff:
    """Compare the baseline ``a`` with the candidate ``b``."""
    fields = [
        *_names("inputs", a.inputs, b.inputs),
        *_names("outputs", a.outputs, b.outputs),
        *_tensors("inputs", a.inputs, b.inputs),
        *_tensors("outputs", a.outputs, b.outputs),
        *_preprocess(a, b),
        _batching(a.max_batch_size, b.max_batch_size),
        _labels(a.labels, b.labels),
        _serialisation(a.artifact, b.artifact),
        _field("backend", a.backend, b.backend, True, "another runtime: expect numerical noise, not another schema"),
        _field("parameters", dict(a.parameters), dict(b.parameters), True, "settings of the runtime, not the schema"),
    ]
    return SchemaDiff(
        differences=tuple(field for field in fields if field.baseline != field.candidate), compared=len(fields)
    )


def _field(field: str, baseline: Any, candidate: Any, compatible: bool, reason: str) -> Difference:
    return Difference(field=field, baseline=baseline, candidate=candidate, compatible=compatible, reason=reason)


def _names(kind: str, a: tuple[TensorSpec, ...], b: tuple[TensorSpec, ...]) -> Iterator[Difference]:
    """One field for the names, and one more for each name that only one side has."""
    before, after = [tensor.name for tensor in a], [tensor.name for tensor in b]
    if set(before) == set(after):
        yield _field(f"{kind}.order", before, after, True, "tensors travel by name")
        return
    for name in before:
        if name not in after:
            reason = "clients send it" if kind == "inputs" else "clients read it"
            yield _field(f"{kind}.{name}", "present", "absent", False, f"removed, but {reason}")
    for name in after:
        if name not in before:
            reason = "added, but clients do not send it" if kind == "inputs" else "added; clients may ignore it"
            yield _field(f"{kind}.{name}", "absent", "present", kind == "outputs", reason)


def _tensors(kind: str, a: tuple[TensorSpec, ...], b: tuple[TensorSpec, ...]) -> Iterator[Difference]:
    candidates = {tensor.name: tensor for tensor in b}
    for before in a:
        after = candidates.get(before.name)
        if after is None:
            continue
        where = f"{kind}.{before.name}"
        yield _field(f"{where}.datatype", before.datatype, after.datatype, False, "the bytes mean something else")
        compatible, reason = _compare_shapes(kind, before.shape, after.shape)
        yield _field(f"{where}.shape", list(before.shape), list(after.shape), compatible, reason)


def _compare_shapes(kind: str, before: tuple[int, ...], after: tuple[int, ...]) -> tuple[bool, str]:
    """An input may only grow more tolerant, an output only more definite."""
    if len(before) != len(after):
        return False, "another rank"
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        tolerant, definite = (new, old) if kind == "inputs" else (old, new)
        if old != new and tolerant != _VARIABLE:
            return False, f"dimension {index}: {_size(old)} became {_size(new)}"
        if old != new and definite == _VARIABLE:
            return False, f"dimension {index}: {_size(old)} became {_size(new)}"
    return True, "accepts all that was accepted" if kind == "inputs" else "as definite as before, or more"


def _size(size: int) -> str:
    return "variable" if size == _VARIABLE else str(size)


def _preprocess(a: ModelSpec, b: ModelSpec) -> Iterator[Difference]:
    """One field for each part of each step; clients send the same bytes, whatever becomes of them."""
    before, after = ({step.input: step_to_json(step) for step in spec.preprocess} for spec in (a, b))
    for name in sorted(before.keys() | after.keys()):
        where, old, new = f"preprocess.{name}", before.get(name), after.get(name)
        if old is None or new is None:
            sides = ["absent" if step is None else "present" for step in (old, new)]
            yield _field(where, sides[0], sides[1], True, "one side alone has a step; clients send the same")
            continue
        for part in sorted(old.keys() | new.keys()):
            yield _field(
                f"{where}.{part}",
                old.get(part),
                new.get(part),
                True,
                "the model sees other values; clients send the same",
            )


def _batching(before: int, after: int) -> Difference:
    if bool(before) != bool(after):
        return _field("max_batch_size", before, after, False, "one side takes a batch dimension, the other does not")
    if after < before:
        return _field("max_batch_size", before, after, False, "cannot take the batches that the baseline takes")
    return _field("max_batch_size", before, after, True, "takes every batch that the baseline takes")


def _labels(before: tuple[str, ...], after: tuple[str, ...]) -> Difference:
    if not before:
        return _field("labels", [], list(after), True, "names for classes that had none")
    return _field("labels", list(before), list(after), False, "a class index means another class, or has no name")


def _serialisation(before: str, after: str) -> Difference:
    suffix = PurePosixPath(after).suffix
    unsafe = suffix in _PICKLED
    reason = f"{suffix} artifacts are unpickled on load" if unsafe else "no pickle in either"
    return _field("serialisation", _serialised(before), _serialised(after), not unsafe, reason)


def _serialised(artifact: str) -> str:
    suffix = PurePosixPath(artifact).suffix
    return f"pickle ({suffix})" if suffix in _PICKLED else _SERIALISATIONS.get(suffix, suffix or "folder")
