"""Classes named by import path ``package.module:Class``: the built-in ones and the user's own."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from models.errors import BackendError


def import_class(owner: str, target: str, install: Mapping[str, str]) -> Callable[[Any], Any]:
    """The class at ``target``. ``owner`` is named in errors; ``install`` says what brings a top-level package.

    Raises:
        BackendError: no import path, a module that cannot be imported, or something else than a class.
    """
    module_name, separator, class_name = target.partition(":")
    if not (separator and module_name and class_name):
        raise BackendError(f"{owner}: expected an import path `package.module:Class`, got {target!r}")
    try:
        found = getattr(import_module(module_name), class_name)
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        hint = f"; install {install[missing]}" if missing in install else ""
        raise BackendError(f"{owner}: cannot import {target}: {error}{hint}") from error
    except AttributeError as error:
        raise BackendError(f"{owner}: {module_name} has no {class_name}") from error
    except Exception as error:  # user code runs on import, and may raise anything
        raise BackendError(f"{owner}: importing {module_name} failed: {error!r}") from error
    if not isinstance(found, type):
        raise BackendError(f"{owner}: expected {target} to be a class, found {type(found).__name__}")
    return found
