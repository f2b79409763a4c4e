"""ONNX graphs on ONNX Runtime: CPU, CUDA or TensorRT.

Parameters: ``device`` (cpu, cuda, tensorrt), ``device_id``, ``precision`` (fp32; tf32 on cuda; fp16 on tensorrt),
``intra_op_threads`` (1: replicas are the unit of parallelism), ``gpu_memory_limit_bytes`` (0: none).
"""

import ctypes
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from models.backends.parameters import Parameters
from models.backends.text import array_to_bytes, array_to_text
from models.errors import BackendError
from models.repository import ModelVersion
from models.spec import MODEL_FILE, TensorSpec
from models.tensor import NUMPY_DTYPES, Array

_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tensor(bool)": "BOOL",
        "tensor(uint8)": "UINT8",
        "tensor(uint16)": "UINT16",
        "tensor(uint32)": "UINT32",
        "tensor(uint64)": "UINT64",
        "tensor(int8)": "INT8",
        "tensor(int16)": "INT16",
        "tensor(int32)": "INT32",
        "tensor(int64)": "INT64",
        "tensor(float16)": "FP16",
        "tensor(float)": "FP32",
        "tensor(double)": "FP64",
        "tensor(bfloat16)": "BF16",
        "tensor(string)": "BYTES",
    }
)
_PROVIDERS: Final[Mapping[str, str]] = MappingProxyType(
    {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
)
_PRECISIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"cpu": ("fp32",), "cuda": ("fp32", "tf32"), "tensorrt": ("fp32", "fp16")}
)
_ONNX_BFLOAT16: Final = 16  # onnx.TensorProto.BFLOAT16
_LOG_ERRORS_ONLY: Final = 3


class OnnxRuntimeBackend:
    """Runs an ONNX file; fulfils ``models.backend.Backend``."""

    def __init__(self, version: ModelVersion) -> None:
        self._version = version
        parameters = Parameters(f"{version.directory / MODEL_FILE} (onnxruntime)", version.spec.parameters)
        self._device = parameters.choice("device", tuple(_PROVIDERS), default="cpu")
        self._device_id = parameters.integer("device_id", default=0, minimum=0)
        self._precision = parameters.choice("precision", _PRECISIONS[self._device], default="fp32")
        self._intra_op_threads = parameters.integer("intra_op_threads", default=1, minimum=1)
        self._gpu_memory_limit_bytes = parameters.integer("gpu_memory_limit_bytes", default=0, minimum=0)
        parameters.finish()
        spec = version.spec
        self._names = [tensor.name for tensor in spec.outputs]
        self._texts = frozenset(tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.datatype == "BYTES")
        self._bfloats = frozenset(tensor.name for tensor in (*spec.inputs, *spec.outputs) if tensor.datatype == "BF16")
        self._session: ort.InferenceSession | None = None

    def load(self) -> None:
        """Load the graph and check that it has the declared inputs and outputs.

        Raises:
            BackendError: a device that is not there, a graph that cannot be loaded or is not what was declared.
            ArtifactError: a file that has changed since it was verified.
        """
        provider = _PROVIDERS[self._device]
        if provider not in ort.get_available_providers():
            raise self._error(f"parameters.device: {self._device} needs {provider}; install understudy[gpu]")
        model = self._version.read(self._version.spec.artifact)
        self._version.verify(read=self._version.spec.artifact)  # the runtime opens external data itself
        try:
            session = ort.InferenceSession(model, self._options(), providers=self._providers())
        except Exception as error:  # the runtime raises a dozen classes with no common base
            raise self._error(f"cannot load {self._version.spec.artifact}: {error}") from error
        if session.get_providers()[0] != provider:
            raise self._error(f"parameters.device: {provider} failed to start; the log of ONNX Runtime says why")
        session.disable_fallback()
        self._check("inputs", self._version.spec.inputs, session.get_inputs())
        self._check("outputs", self._version.spec.outputs, session.get_outputs())
        self._session = session

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see ``models.backend.Backend``.

        Raises:
            BackendError: the backend is not loaded, or the runtime failed.
        """
        if self._session is None:
            raise self._error("run: not loaded")
        try:
            if self._bfloats:
                return self._run_bfloat(self._session, inputs)
            feed = {name: array_to_text(array) if name in self._texts else array for name, array in inputs.items()}
            found = self._session.run(self._names, feed)
            return dict(zip(self._names, map(self._to_wire, self._names, found), strict=True))
        except Exception as error:  # the runtime raises a dozen classes with no common base
            raise self._error(f"run: {error}") from error

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _run_bfloat(self, session: ort.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Through the runtime's own values, because numpy has no BF16: raw ``uint16`` in and out."""
        feed = {name: self._to_value(name, array) for name, array in inputs.items()}
        found = session.run_with_ort_values(self._names, feed)
        return {
            name: _raw_words(value) if name in self._bfloats else self._to_wire(name, value.numpy())
            for name, value in zip(self._names, found, strict=True)
        }

    def _to_value(self, name: str, array: Array) -> ort.OrtValue:
        if name in self._bfloats:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _ONNX_BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array_to_text(array) if name in self._texts else array)

    def _to_wire(self, name: str, array: Array) -> Array:
        return array_to_bytes(array) if name in self._texts else array

    def _options(self) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._intra_op_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = _LOG_ERRORS_ONLY
        # Spinning threads would take the cores that other replicas need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        folder = str(self._version.artifact_path.parent)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return options

    def _providers(self) -> list[tuple[str, dict[str, Any]]]:
        cpu: tuple[str, dict[str, Any]] = (_PROVIDERS["cpu"], {})
        if self._device == "cpu":
            return [cpu]
        cuda: dict[str, Any] = {"device_id": self._device_id, "use_tf32": int(self._precision == "tf32")}
        if self._gpu_memory_limit_bytes:
            cuda["gpu_mem_limit"] = self._gpu_memory_limit_bytes
        chosen = [(_PROVIDERS["cuda"], cuda), cpu]
        if self._device == "tensorrt":
            tensorrt = {"device_id": self._device_id, "trt_fp16_enable": self._precision == "fp16"}
            chosen.insert(0, (_PROVIDERS["tensorrt"], tensorrt))
        return chosen

    def _check(self, kind: str, declared: Sequence[TensorSpec], graph: Sequence[Any]) -> None:
        found = {node.name: node for node in graph}
        if missing := sorted({tensor.name for tensor in declared} - found.keys()):
            raise self._error(f"{kind}: {missing[0]} is not in the graph, which has {', '.join(found)}")
        if kind == "inputs" and (extra := sorted(found.keys() - {tensor.name for tensor in declared})):
            raise self._error(f"inputs: the graph needs {extra[0]}, which is not declared")
        for tensor in declared:
            node = found[tensor.name]
            datatype = _TYPES.get(node.type, node.type)
            if datatype != tensor.datatype:
                raise self._error(f"{kind}: {tensor.name}: declared as {tensor.datatype}, the graph has {datatype}")
            if not _agree(tensor.shape, node.shape):
                raise self._error(
                    f"{kind}: {tensor.name}: declared with shape {list(tensor.shape)}, the graph has {node.shape}"
                )

    def _error(self, message: str) -> BackendError:
        return BackendError(f"{self._version.directory}: onnxruntime: {message}")


def _agree(declared: Sequence[int], graph: Sequence[object]) -> bool:
    """Same rank, and no size that contradicts; a variable size of the graph is a name or None."""
    if len(declared) != len(graph):
        return False
    return all(not isinstance(size, int) or size == wanted for wanted, size in zip(declared, graph, strict=True))


def _raw_words(value: ort.OrtValue) -> Array:
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, dtype=NUMPY_DTYPES["UINT16"]).reshape(value.shape())
