"""The runtimes that run models, each in a file of its own, imported only when a model asks for it."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from models.backend import Backend
from models.errors import BackendError, UnderstudyError
from models.plugins import import_class
from models.repository import ModelVersion

BACKENDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnxruntime": "models.backends.onnxruntime:OnnxRuntimeBackend",
        "torch": "models.backends.torch:TorchBackend",
    }
)
_INSTALL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "onnxruntime": "understudy[cpu], or understudy[gpu] for CUDA and TensorRT",
        "torch": "understudy[torch]",
    }
)


def open_backend(version: ModelVersion, extra: Mapping[str, str] | None = None) -> Backend:
    """The backend that ``version`` asks for, not loaded yet; it takes what the preprocess steps make, if there are any.

    ``extra`` are the user's own backends: name → import path ``package.module:Class``, a class that is built from a
    ``ModelVersion`` and fulfils ``models.backend.Backend``.

    Raises:
        BackendError: an unknown backend, a package that is not installed, a class that cannot be imported or built.
    """
    extra = extra or {}
    if taken := sorted(BACKENDS.keys() & extra.keys()):
        raise BackendError(f"backends: {', '.join(taken)}: the name of a built-in backend; choose another")
    name = version.spec.backend
    target = BACKENDS.get(name) or extra.get(name)
    if target is None:
        raise BackendError(
            f"{version.directory}: unknown backend {name!r}; known are {', '.join(sorted({*BACKENDS, *extra}))}"
        )
    factory = import_class(f"backend {name!r}", target, _INSTALL)
    try:
        backend: Backend = factory(replace(version, spec=version.spec.for_backend()))
    except UnderstudyError:
        raise
    except Exception as error:  # user code: whatever it raises is that backend's failure
        raise BackendError(f"backend {name!r}: {target} failed to build: {error!r}") from error
    return backend
