"""What a model is: its ``model.yaml``."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from pydantic import ByteSize, TypeAdapter, ValidationError

from models.document import read_bytes, read_document
from models.errors import SettingError, SpecError
from models.tensor import DATATYPES

MODEL_FILE: Final = "model.yaml"
_REQUIRED: Final = ("backend", "artifact", "sha256", "max_batch_size", "inputs", "outputs")
_OPTIONAL: Final = ("preprocess", "labels", "parameters", "resources", "provenance")
_STEP: Final = ("kind", "tensor")
_TENSOR: Final = ("name", "datatype", "shape")
_RESOURCES: Final = ("memory", "gpu_memory")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SIZE: Final = TypeAdapter(ByteSize)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output. ``shape`` includes the batch dimension if the model has one; −1 is variable."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """How the elements of the BYTES input ``input`` become ``tensor``, which the artifact takes in its place.

    ``kind`` is a built-in step or the user's own; ``settings`` are the step's, see ``models.preprocess``.
    """

    input: str
    kind: str
    tensor: TensorSpec
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one replica takes at most, with its largest batch: bytes beyond the empty process, 0 where not declared.

    ``gpu_memory`` includes the runtime's context on the device.
    """

    memory: int = 0
    gpu_memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A validated ``model.yaml``. ``max_batch_size`` 0 means that the model takes no batch dimension.

    ``inputs`` are what clients send; where a ``preprocess`` step takes one, the artifact takes the step's tensor.
    """

    name: str
    version: int
    backend: str
    artifact: str
    sha256: str
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocess: tuple[StepSpec, ...] = ()
    labels: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = Resources()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def for_backend(self) -> "ModelSpec":
        """The spec as the backend sees it: its inputs are the artifact's, and nothing is left to preprocess."""
        made = {step.input: step.tensor for step in self.preprocess}
        return replace(self, inputs=tuple(made.get(each.name, each) for each in self.inputs), preprocess=())

    def to_json(self) -> dict[str, Any]:
        """The spec as plain dicts and lists, which ``from_json`` reads back; labels in place of their file's name."""
        return {
            "name": self.name,
            "version": self.version,
            "backend": self.backend,
            "artifact": self.artifact,
            "sha256": self.sha256,
            "max_batch_size": self.max_batch_size,
            "inputs": [_tensor_to_json(tensor) for tensor in self.inputs],
            "outputs": [_tensor_to_json(tensor) for tensor in self.outputs],
            "preprocess": {step.input: step_to_json(step) for step in self.preprocess},
            "labels": list(self.labels),
            "parameters": dict(self.parameters),
            "resources": {name: size for name in _RESOURCES if (size := getattr(self.resources, name))},
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, document: object, *, file: Path = Path("schema.json")) -> "ModelSpec":
        """What ``to_json`` wrote; ``file`` is named in errors.

        Raises:
            SpecError: a field that is missing or wrong.
        """
        fields = _Fields(file, document, required=("name", "version", *_REQUIRED), optional=_OPTIONAL)
        name, version = fields.text("name"), fields.integer("version", minimum=1)
        return _build(fields, name=name, version=version, labels=fields.texts("labels"))


def load_spec(directory: Path, *, name: str, version: int) -> ModelSpec:
    """The validated ``model.yaml`` of a version folder; verifies no hash (``models.repository`` does).

    Raises:
        SpecError: naming the file, the field and what was expected there.
    """
    return parse_spec(read_document(directory / MODEL_FILE), directory, name=name, version=version)


def parse_spec(document: Mapping[str, Any], directory: Path, *, name: str, version: int) -> ModelSpec:
    """A ``model.yaml`` that was read already; see ``load_spec``.

    Raises:
        SpecError: naming the file, the field and what was expected there.
    """
    fields = _Fields(directory / MODEL_FILE, document, required=_REQUIRED, optional=_OPTIONAL)
    _require_inside(fields, "artifact", directory)
    return _build(fields, name=name, version=version, labels=_read_labels(fields, directory))


def _build(fields: "_Fields", *, name: str, version: int, labels: tuple[str, ...]) -> ModelSpec:
    max_batch_size = fields.integer("max_batch_size", minimum=0)
    inputs = fields.tensors("inputs", batched=max_batch_size > 0)
    return ModelSpec(
        name=name,
        version=version,
        backend=fields.text("backend"),
        artifact=fields.text("artifact"),
        sha256=fields.sha256("sha256"),
        max_batch_size=max_batch_size,
        inputs=inputs,
        outputs=fields.tensors("outputs", batched=max_batch_size > 0),
        preprocess=_read_steps(fields, inputs, batched=max_batch_size > 0),
        labels=labels,
        parameters=fields.mapping("parameters"),
        resources=_read_resources(fields),
        provenance=fields.mapping("provenance"),
    )


def _read_resources(fields: "_Fields") -> Resources:
    mine = _Fields(
        fields.file,
        fields.mapping("resources"),
        required=(),
        optional=_RESOURCES,
        prefix=f"{fields.prefix}resources.",
    )
    return Resources(**{name: mine.size(name) for name in mine.document})


def _read_steps(fields: "_Fields", inputs: Sequence[TensorSpec], *, batched: bool) -> tuple[StepSpec, ...]:
    """The ``preprocess`` steps, the settings of built-in ones checked."""
    found = fields.mapping("preprocess")
    names = [tensor.name for tensor in inputs if tensor.name not in found]  # of the artifact's inputs so far
    steps: list[StepSpec] = []
    for name, value in found.items():
        _require_pictures(fields, name, inputs, batched=batched)
        settings = {key: each for key, each in value.items() if key not in _STEP} if isinstance(value, Mapping) else {}
        mine = _Fields(
            fields.file, value, required=_STEP, optional=tuple(settings), prefix=f"{fields.prefix}preprocess.{name}."
        )
        tensor = mine.nested_tensor("tensor", batched=batched)
        if tensor.name in names:
            raise SpecError(fields.file, f"{mine.prefix}tensor.name", "a name used once", tensor.name)
        if -1 in tensor.shape[batched:]:
            raise SpecError(fields.file, f"{mine.prefix}tensor.shape", "fixed sizes within an item", list(tensor.shape))
        names.append(tensor.name)
        step = StepSpec(input=name, kind=mine.text("kind"), tensor=tensor, settings=settings)
        _check_settings(mine, step)
        steps.append(step)
    return tuple(steps)


def _require_pictures(fields: "_Fields", name: str, inputs: Sequence[TensorSpec], *, batched: bool) -> None:
    shapes = [(-1,), (-1, 1)] if batched else [(1,)]
    declared = next((tensor for tensor in inputs if tensor.name == name), None)
    if declared is None:
        known = ", ".join(tensor.name for tensor in inputs)
        raise SpecError(fields.file, f"{fields.prefix}preprocess", f"the names of inputs ({known})", name)
    if declared.datatype != "BYTES" or declared.shape not in shapes:
        expected = f"input {name} to be BYTES of shape {' or '.join(str(list(shape)) for shape in shapes)}"
        found = f"{declared.datatype} of shape {list(declared.shape)}"
        raise SpecError(fields.file, f"{fields.prefix}preprocess.{name}", expected, found)


def _check_settings(fields: "_Fields", step: StepSpec) -> None:
    """Settings of the user's own steps are checked where those are known: when the model is loaded."""
    from models.preprocess import SETTINGS  # the steps know this module

    check = SETTINGS.get(step.kind)
    if check is not None:
        try:
            check(step)
        except SettingError as error:
            raise SpecError(fields.file, f"{fields.prefix}{error.field}", error.expected, error.found) from error


def _read_labels(fields: "_Fields", directory: Path) -> tuple[str, ...]:
    """The lines of the labels file: line k names class k, so a blank line would shift the names after it."""
    if "labels" not in fields.document:
        return ()
    path = _require_inside(fields, "labels", directory)
    try:
        lines = read_bytes(path).decode("utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise SpecError(fields.file, "labels", f"UTF-8 text in {path.name}", str(error)) from error
    if not lines or not all(line.strip() for line in lines):
        raise SpecError(fields.file, "labels", f"one label in every line of {path.name}", "an empty line or file")
    return tuple(line.strip() for line in lines)


def _require_inside(fields: "_Fields", name: str, directory: Path) -> Path:
    relative = fields.text(name)
    path = (directory / relative).resolve()
    root = directory.resolve()
    if path == root or not path.is_relative_to(root):
        raise SpecError(fields.file, name, "a path inside the version's folder", relative)
    if not path.exists():
        raise SpecError(fields.file, name, "an existing file or folder", relative)
    return path


def step_to_json(step: StepSpec) -> dict[str, Any]:
    """A step as its entry in ``preprocess``."""
    return {"kind": step.kind, "tensor": _tensor_to_json(step.tensor), **step.settings}


def _tensor_to_json(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


class _Fields:
    """Reads typed fields out of a mapping; ``prefix`` is where the mapping sits in its file."""

    def __init__(
        self, file: Path, document: object, *, required: Sequence[str], optional: Sequence[str] = (), prefix: str = ""
    ) -> None:
        self.file, self.prefix = file, prefix
        if not isinstance(document, Mapping):
            raise SpecError(file, prefix.rstrip(".") or "document", "a mapping", document)
        self.document = document
        for key in document:
            if key not in required and key not in optional:
                raise SpecError(file, f"{prefix}{key}", f"one of {', '.join((*required, *optional))}", key)
        for key in required:
            if document.get(key) is None:
                raise SpecError(file, f"{prefix}{key}", "a value")

    def text(self, name: str) -> str:
        value = self.document[name]
        if not isinstance(value, str) or not value.strip():
            raise self._error(name, "text", value)
        return value

    def sha256(self, name: str) -> str:
        value = self.document[name]
        if not isinstance(value, str) or not _SHA256.fullmatch(value):
            raise self._error(name, "64 hex digits (`understudy models hash` writes them)", value)
        return value

    def integer(self, name: str, *, minimum: int) -> int:
        value = self.document[name]
        if not _is_integer(value) or value < minimum:
            raise self._error(name, f"an integer of at least {minimum}", value)
        return int(value)

    def size(self, name: str) -> int:
        """Bytes, written as in the configuration."""
        value = self.document[name]
        try:
            size = 0 if isinstance(value, bool) else int(_SIZE.validate_python(value))
        except ValidationError:
            size = 0
        if size < 1:
            raise self._error(name, "a size of at least one byte, such as 2GiB", value)
        return size

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.document.get(name)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise self._error(name, "a mapping", value)
        return dict(value)

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.document.get(name, [])
        if not isinstance(value, list) or not all(isinstance(element, str) for element in value):
            raise self._error(name, "a list of texts", value)
        return tuple(value)

    def tensors(self, name: str, *, batched: bool) -> tuple[TensorSpec, ...]:
        value = self.document[name]
        if not isinstance(value, list) or not value:
            raise self._error(name, "a list of at least one tensor", value)
        tensors: list[TensorSpec] = []
        for index, element in enumerate(value):
            fields = _Fields(self.file, element, required=_TENSOR, prefix=f"{self.prefix}{name}[{index}].")
            tensor = fields.tensor(batched=batched)
            if any(other.name == tensor.name for other in tensors):
                raise fields._error("name", "a name used once", tensor.name)
            tensors.append(tensor)
        return tuple(tensors)

    def nested_tensor(self, name: str, *, batched: bool) -> TensorSpec:
        fields = _Fields(self.file, self.document[name], required=_TENSOR, prefix=f"{self.prefix}{name}.")
        return fields.tensor(batched=batched)

    def tensor(self, *, batched: bool) -> TensorSpec:
        datatype = self.document["datatype"]
        if datatype not in DATATYPES:
            raise self._error("datatype", f"one of {', '.join(sorted(DATATYPES))}", datatype)
        return TensorSpec(name=self.text("name"), datatype=datatype, shape=self.shape("shape", batched=batched))

    def shape(self, name: str, *, batched: bool) -> tuple[int, ...]:
        value = self.document[name]
        if not isinstance(value, list):
            raise self._error(name, "a list of integers", value)
        for index, size in enumerate(value):
            if not _is_integer(size) or (size < 1 and size != -1):
                raise self._error(f"{name}[{index}]", "a positive integer, or -1 for a variable size", size)
        if batched and (not value or value[0] != -1):
            raise self._error(name, "-1 as the first (batch) dimension, since max_batch_size is not 0", value)
        return tuple(value)

    def _error(self, name: str, expected: str, found: object) -> SpecError:
        return SpecError(self.file, f"{self.prefix}{name}", expected, found)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
