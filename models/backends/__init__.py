"""The runtimes that run models, each in a file of its own, imported only when a model asks for it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Final

from models.backend import Backend
from models.errors import BackendError, UnderstudyError
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
    """The backend that ``version`` asks for, not loaded yet.

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
    factory = _import_class(name, target)
    try:
        backend: Backend = factory(version)
    except UnderstudyError:
        raise
    except Exception as error:  # user code: whatever it raises is that backend's failure
        raise BackendError(f"backend {name!r}: {target} failed to build: {error!r}") from error
    return backend


def _import_class(name: str, target: str) -> Callable[[ModelVersion], Backend]:
    module_name, separator, class_name = target.partition(":")
    if not (separator and module_name and class_name):
        raise BackendError(f"backend {name!r}: expected an import path `package.module:Class`, got {target!r}")
    try:
        found = getattr(import_module(module_name), class_name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        hint = f"; install {_INSTALL[missing]}" if missing in _INSTALL else ""
        raise BackendError(f"backend {name!r}: cannot import {target}: {error}{hint}") from error
    except AttributeError as error:
        raise BackendError(f"backend {name!r}: {module_name} has no {class_name}") from error
    except Exception as error:  # user code runs on import, and may raise anything
        raise BackendError(f"backend {name!r}: importing {module_name} failed: {error!r}") from error
    if not isinstance(found, type):
        raise BackendError(f"backend {name!r}: expected {target} to be a class, found {type(found).__name__}")
    return found
