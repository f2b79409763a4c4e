"""Errors of this package, and the root of all of Understudy's errors."""

from enum import StrEnum
from pathlib import Path


class UnderstudyError(Exception):
    """Root of every error that Understudy raises on purpose; its text is fit to show a user."""


class ModelError(UnderstudyError):
    """Something about a model, its files or its execution."""


class SpecError(ModelError):
    """A ``model.yaml`` field that is missing or wrong."""

    def __init__(self, file: Path, field: str, expected: str, found: object = None) -> None:
        self.file, self.field, self.expected, self.found = file, field, expected, found
        what = "missing" if found is None else f"got {found!r}"
        super().__init__(f"{file}: {field}: expected {expected}, {what}")


class RepositoryError(ModelError):
    """A model or version that the repository does not hold."""


class ArtifactError(ModelError):
    """An artifact whose bytes are not those that its ``model.yaml`` was signed with."""

    def __init__(self, path: Path, expected: str, found: str) -> None:
        self.path, self.expected, self.found = path, expected, found
        super().__init__(f"{path}: sha256 mismatch: expected {expected}, found {found}; refusing to load")


class BackendError(ModelError):
    """A backend that cannot be built, cannot load its artifact, or failed while running it."""


class RoomError(ModelError):
    """A version whose declared ``resources`` are not free where it is to be loaded."""


class SettingError(ModelError):
    """One setting of a preprocess step that is missing or wrong; whoever knows the file makes a ``SpecError`` of it."""

    def __init__(self, field: str, expected: str, found: object = None) -> None:
        self.field, self.expected, self.found = field, expected, found
        super().__init__(f"{field}: expected {expected}, {'missing' if found is None else f'got {found!r}'}")


class RejectedInputError(ModelError):
    """A request's input that cannot be read, such as a broken picture: its sender's fault, not the model's."""


class Malformation(StrEnum):
    """What is wrong with a malformed answer: the words that its error's text begins with, wherever that travels."""

    MISSING_OUTPUT = "missing output"
    EXTRA_OUTPUT = "extra output"
    DATATYPE = "wrong datatype"
    SHAPE = "wrong shape"

    @classmethod
    def of(cls, text: str) -> "Malformation | None":
        """The kind that an error's text begins with; None of a text that no ``MalformedOutputError`` wrote."""
        return next((kind for kind in cls if text.startswith(f"{kind}: ")), None)


class MalformedOutputError(ModelError):
    """A model's answer that is not what its ``model.yaml`` declares: ``<kind>: output '<name>': expected …``."""

    def __init__(self, kind: Malformation, output: str, expected: str, found: str) -> None:
        self.kind, self.output, self.expected, self.found = kind, output, expected, found
        super().__init__(f"{kind}: output {output!r}: expected {expected}, found {found}")
