"""What happens to an input before the model sees it, as ``preprocess`` in ``model.yaml`` says; a file for each kind."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from models.errors import BackendError, SettingError, SpecError, UnderstudyError
from models.plugins import import_class
from models.preprocess.batch import Prepared, Preprocess
from models.preprocess.contract import Step
from models.preprocess.image_settings import ImageSettings
from models.repository import ModelVersion
from models.spec import MODEL_FILE, StepSpec

__all__ = ["SETTINGS", "STEPS", "Prepared", "Preprocess", "Step", "open_preprocess"]

STEPS: Final[Mapping[str, str]] = MappingProxyType({"image": "models.preprocess.image:ImageStep"})
# What checks the settings of a built-in step, when model.yaml is read, without what the step itself needs.
SETTINGS: Final[Mapping[str, Callable[[StepSpec], object]]] = MappingProxyType({"image": ImageSettings.read})
_INSTALL: Final[Mapping[str, str]] = MappingProxyType({"PIL": "pillow"})


def open_preprocess(version: ModelVersion, extra: Mapping[str, str] | None = None) -> Preprocess | None:
    """The preprocess steps that ``version`` asks for; None where it asks for none.

    ``extra`` are the user's own steps: name → import path ``package.module:Class``, a class that is built from a
    ``StepSpec`` and fulfils ``models.preprocess.contract.Step``.

    Raises:
        BackendError: an unknown kind, a package that is not installed, a class that cannot be imported or built.
        SpecError: settings that the step refuses.
    """
    extra = extra or {}
    if taken := sorted(STEPS.keys() & extra.keys()):
        raise BackendError(f"preprocess: {', '.join(taken)}: the name of a built-in step; choose another")
    if not version.spec.preprocess:
        return None
    return Preprocess(version.spec, [_open_step(version, step, extra) for step in version.spec.preprocess])


def _open_step(version: ModelVersion, step: StepSpec, extra: Mapping[str, str]) -> Step:
    target = STEPS.get(step.kind) or extra.get(step.kind)
    if target is None:
        known = ", ".join(sorted({*STEPS, *extra}))
        raise BackendError(f"{version.directory}: unknown preprocess step {step.kind!r}; known are {known}")
    factory = import_class(f"preprocess {step.kind!r}", target, _INSTALL)
    try:
        opened: Step = factory(step)
    except SettingError as error:
        field = f"preprocess.{step.input}.{error.field}"
        raise SpecError(version.directory / MODEL_FILE, field, error.expected, error.found) from error
    except UnderstudyError:
        raise
    except Exception as error:  # user code: whatever it raises is that step's failure
        raise BackendError(f"preprocess {step.kind!r}: {target} failed to build: {error!r}") from error
    return opened
