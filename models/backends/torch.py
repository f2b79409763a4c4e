"""``torch.export`` archives on PyTorch.

The forward function takes the declared inputs as positional arguments in the order of ``model.yaml``, and returns a
dict of the declared outputs by name, or a tensor or tuple in their order.

Parameters: ``device`` (cpu, cuda), ``device_id``, ``precision`` (fp32; tf32 on cuda; fp16, bf16: automatic mixed
precision), ``intra_op_threads`` (1: replicas are the unit of parallelism). Threads and TF32 are settings of the
whole process: a process serves one model.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import torch

from models.backends.parameters import Parameters
from models.backends.torch_archive import UnsafeArchiveError, audit
from models.errors import BackendError
from models.repository import ModelVersion
from models.spec import MODEL_FILE, TensorSpec
from models.tensor import Array

_DTYPES: Final[Mapping[str, torch.dtype]] = MappingProxyType(
    {
        "BOOL": torch.bool,
        "UINT8": torch.uint8,
        "UINT16": torch.uint16,
        "UINT32": torch.uint32,
        "UINT64": torch.uint64,
        "INT8": torch.int8,
        "INT16": torch.int16,
        "INT32": torch.int32,
        "INT64": torch.int64,
        "FP16": torch.float16,
        "FP32": torch.float32,
        "FP64": torch.float64,
        "BF16": torch.bfloat16,
    }
)
_PRECISIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "fp16", "bf16")}
)
_MIXED: Final[Mapping[str, torch.dtype]] = MappingProxyType({"fp16": torch.float16, "bf16": torch.bfloat16})


class TorchBackend:
    """Runs an exported program; fulfils ``models.backend.Backend``."""

    def __init__(self, version: ModelVersion) -> None:
        self._version = version
        parameters = Parameters(f"{version.directory / MODEL_FILE} (torch)", version.spec.parameters)
        self._device_kind = parameters.choice("device", tuple(_PRECISIONS), default="cpu")
        device_id = parameters.integer("device_id", default=0, minimum=0)
        self._device = torch.device("cpu") if self._device_kind == "cpu" else torch.device("cuda", device_id)
        self._precision = parameters.choice("precision", _PRECISIONS[self._device_kind], default="fp32")
        self._intra_op_threads = parameters.integer("intra_op_threads", default=1, minimum=1)
        parameters.finish()
        for tensor in (*version.spec.inputs, *version.spec.outputs):
            if tensor.datatype not in _DTYPES:
                raise self._error(f"{tensor.name}: datatype {tensor.datatype} is not known to torch")
        self._module: Callable[..., Any] | None = None

    def load(self) -> None:
        """Audit and load the archive, and check that it has the declared inputs and outputs.

        Raises:
            BackendError: a device that is not there, an archive that is unsafe, broken or not what was declared.
            ArtifactError: a file that has changed since it was verified.
        """
        self._require_device()
        content = self._version.read(self._version.spec.artifact)
        try:
            audit(content)
            program = _load_program(content)
        except UnsafeArchiveError as error:
            raise self._error(f"{self._version.spec.artifact}: {error}") from error
        except Exception as error:  # the runtime raises any class
            raise self._error(f"cannot load {self._version.spec.artifact}: {error}") from error
        self._check_inputs(program)
        self._check_outputs(program)
        torch.set_num_threads(self._intra_op_threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self._precision == "tf32"
        self._module = program.module().to(self._device)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see ``models.backend.Backend``.

        Raises:
            BackendError: the backend is not loaded, or the runtime failed.
        """
        if self._module is None:
            raise self._error("run: not loaded")
        spec, mixed = self._version.spec, _MIXED.get(self._precision)
        try:
            arguments = [self._to_device(inputs[tensor.name], tensor) for tensor in spec.inputs]
            with (
                torch.inference_mode(),
                torch.autocast(self._device_kind, dtype=mixed or torch.bfloat16, enabled=mixed is not None),
            ):
                found = _by_name(self._module(*arguments), spec.outputs)
            return {tensor.name: _to_numpy(found[tensor.name], tensor) for tensor in spec.outputs}
        except Exception as error:  # the runtime raises any class
            raise self._error(f"run: {error!r}") from error

    def close(self) -> None:
        """Free the module, and the memory that torch keeps on the device."""
        self._module = None
        if self._device_kind == "cuda":
            torch.cuda.empty_cache()

    def _require_device(self) -> None:
        if self._device_kind != "cuda":
            return
        if not torch.cuda.is_available():
            raise self._error("parameters.device: cuda, but torch finds no CUDA device (or is a build without CUDA)")
        if (index := self._device.index or 0) >= torch.cuda.device_count():
            raise self._error(f"parameters.device_id: {index}, but there are {torch.cuda.device_count()} devices")

    def _to_device(self, array: Array, tensor: TensorSpec) -> torch.Tensor:
        # torch cannot mark memory as read-only, and a graph may write to its input: such an array is copied.
        owned = np.require(array, requirements=["C", "W"]) if array.flags.writeable else np.array(array, order="C")
        value = torch.from_numpy(owned)
        if tensor.datatype == "BF16":  # raw words, since numpy has no such type
            value = value.view(torch.bfloat16)
        return value.to(self._device)

    def _check_inputs(self, program: torch.export.ExportedProgram) -> None:
        declared = self._version.spec.inputs
        found = _values(program, program.graph_signature.user_inputs)
        if len(found) != len(declared):
            raise self._error(f"inputs: {len(declared)} are declared, the program takes {len(found)}")
        self._check("inputs", declared, found)

    def _check_outputs(self, program: torch.export.ExportedProgram) -> None:
        declared = self._version.spec.outputs
        found = _values(program, program.graph_signature.user_outputs)
        tree = program.call_spec.out_spec
        if tree is not None and tree.type is dict:
            by_name = dict(zip(tree.context, found, strict=False))
            if missing := [tensor.name for tensor in declared if tensor.name not in by_name]:
                raise self._error(f"outputs: {missing[0]} is not in the program, which has {', '.join(by_name)}")
            found = [by_name[tensor.name] for tensor in declared]
        if len(found) != len(declared):
            raise self._error(f"outputs: {len(declared)} are declared, the program returns {len(found)}")
        self._check("outputs", declared, found)

    def _check(self, kind: str, declared: Sequence[TensorSpec], found: Sequence[Any]) -> None:
        for tensor, value in zip(declared, found, strict=True):
            if not isinstance(value, torch.Tensor):
                raise self._error(f"{kind}: {tensor.name}: the program has {type(value).__name__}, no tensor")
            if value.dtype != _DTYPES[tensor.datatype]:
                raise self._error(
                    f"{kind}: {tensor.name}: declared as {tensor.datatype}, the program has {value.dtype}"
                )
            if not _agree(tensor.shape, value.shape):
                raise self._error(
                    f"{kind}: {tensor.name}: declared with shape {list(tensor.shape)}, "
                    f"the program has {[size if isinstance(size, int) else -1 for size in value.shape]}"
                )

    def _error(self, message: str) -> BackendError:
        return BackendError(f"{self._version.directory}: torch: {message}")


def _load_program(content: bytes) -> torch.export.ExportedProgram:
    """As ``torch.export.load`` does, but without its second try as a legacy archive, which unpickles."""
    from torch.export.pt2_archive._package import load_pt2

    return load_pt2(io.BytesIO(content)).exported_programs["model"]


def _values(program: torch.export.ExportedProgram, names: Sequence[object]) -> list[Any]:
    nodes = {node.name: node.meta.get("val") for node in program.graph.nodes}
    return [nodes.get(name) if isinstance(name, str) else name for name in names]


def _agree(declared: Sequence[int], found: Sequence[Any]) -> bool:
    """Same rank, and no size that contradicts; a variable size of the program is a symbol."""
    if len(declared) != len(found):
        return False
    return all(not isinstance(size, int) or size == wanted for wanted, size in zip(declared, found, strict=True))


def _by_name(found: Any, declared: Sequence[TensorSpec]) -> Mapping[str, torch.Tensor]:
    if isinstance(found, Mapping):
        return found
    values = (found,) if isinstance(found, torch.Tensor) else found
    return {tensor.name: value for tensor, value in zip(declared, values, strict=True)}


def _to_numpy(value: torch.Tensor, tensor: TensorSpec) -> Array:
    """On the host, in the declared datatype: mixed precision may have answered in a smaller one."""
    host = value.to("cpu", dtype=_DTYPES[tensor.datatype]).contiguous()
    array: Array = (host.view(torch.uint16) if tensor.datatype == "BF16" else host).numpy()
    return array
