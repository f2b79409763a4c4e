"""The model repository: folders ``<repository>/<model>/<version>/``, verified before anything is loaded from them."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from models.document import parse_document, read_bytes
from models.errors import ArtifactError, RepositoryError, SpecError
from models.spec import MODEL_FILE, ModelSpec, parse_spec

_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_SHA256_LINE: Final = re.compile(r"^sha256:[^#\r\n]*?(?P<comment>[ \t]+#[^\r\n]*)?(?P<end>\r?$)", re.MULTILINE)
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A version whose files had the right sha256 when it was opened. ``files``: relative name → sha256 of its bytes."""

    spec: ModelSpec
    directory: Path
    files: Mapping[str, str]

    @property
    def artifact_path(self) -> Path:
        """Where the artifact lies."""
        return self.directory / self.spec.artifact

    def read(self, name: str) -> bytes:
        """The bytes of one file, read once and compared with the verified hash: what is loaded is what was verified.

        Raises:
            ArtifactError: the file has changed since, or was not part of the version.
        """
        path = self.directory / name
        expected = self.files.get(Path(name).as_posix())
        if expected is None:
            raise ArtifactError(path, "a file of this version", "none")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ArtifactError(path, expected, error.strerror or str(error)) from error
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ArtifactError(path, expected, found)
        return content

    def verify(self, *, read: str) -> None:
        """Hash every file again but ``read``, for a runtime that insists on opening the others itself.

        Raises:
            ArtifactError: a file that has changed, appeared or gone since the version was opened.
        """
        found = _hash_files(self.directory, skip=read)
        for name in sorted((self.files.keys() | found.keys()) - {read}):
            if self.files.get(name) != found.get(name):
                raise ArtifactError(self.directory / name, self.files.get(name, "none"), found.get(name, "none"))


class Repository:
    """Model versions in a directory. Other names than ``<model>/<positive integer>/model.yaml`` are ignored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_dir():
            raise RepositoryError(f"{path}: expected the model repository, found no such folder")

    def models(self) -> list[str]:
        """The names of the models that have a version, sorted."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_dir() and _versions(entry))

    def versions(self, model: str) -> list[int]:
        """The versions of ``model``, ascending.

        Raises:
            RepositoryError: an unknown model.
        """
        known = self.models()
        if model not in known:  # also keeps names such as "../x" from leaving the repository
            raise RepositoryError(f"{self.path}: no model {model!r}; it holds {', '.join(known) or 'none'}")
        return _versions(self.path / model)

    def open(self, model: str, version: int) -> ModelVersion:
        """A version, its hash verified.

        Raises:
            RepositoryError: an unknown model or version.
            SpecError: a ``model.yaml`` that is wrong.
            ArtifactError: files that are not those that were hashed.
        """
        known = self.versions(model)
        if version not in known:
            raise RepositoryError(
                f"{self.path}: model {model!r} has no version {version}; it has {', '.join(map(str, known))}"
            )
        return open_version(self.path / model / str(version))


def open_version(directory: Path) -> ModelVersion:
    """The version in ``directory`` (``…/<model>/<integer>``), its hash verified.

    Raises:
        RepositoryError: a folder whose name is no version.
        SpecError: a ``model.yaml`` that is wrong.
        ArtifactError: files that are not those that were hashed.
    """
    name, version = identify(directory)
    file = directory / MODEL_FILE
    document = parse_document(read_bytes(file), file)
    spec = parse_spec(document, directory, name=name, version=version)
    files = _hash_files(directory)
    found = _digest(document, files)
    if found != spec.sha256:
        raise ArtifactError(directory, spec.sha256, found)
    return ModelVersion(spec=spec, directory=directory, files=files)


def identify(directory: Path) -> tuple[str, int]:
    """The model's name and the version that a version folder's path says.

    Raises:
        RepositoryError: the folder's name is not a positive integer.
    """
    directory = directory.resolve()
    if not _VERSION.fullmatch(directory.name):
        raise RepositoryError(f"{directory}: expected <model>/<version> with a positive integer as the version")
    return directory.parent.name, int(directory.name)


def find_versions(path: Path) -> list[Path]:
    """The version folders at or below ``path``: a version's folder, a model's folder or a repository.

    Raises:
        RepositoryError: there is none.
    """
    if (path / MODEL_FILE).is_file():
        return [path]
    folders = [path] if _versions(path) else sorted(entry for entry in _entries(path) if entry.is_dir())
    found = [folder / str(version) for folder in folders for version in _versions(folder)]
    if not found:
        raise RepositoryError(f"{path}: expected a version, a model or a repository; found no {MODEL_FILE} there")
    return found


def write_hash(directory: Path) -> str:
    """Write the version's sha256 into its ``model.yaml``, leave the rest of the file as it is, and return the hash.

    The hash covers every file of the folder (names and bytes) and every other field of ``model.yaml``.

    Raises:
        RepositoryError: a folder whose name is no version, or that holds a symbolic link.
        SpecError: a ``model.yaml`` that is wrong otherwise.
    """
    name, version = identify(directory)
    file = directory / MODEL_FILE
    content = read_bytes(file)
    document = parse_document(content, file)
    parse_spec({**document, "sha256": "0" * 64}, directory, name=name, version=version)
    digest = _digest(document, _hash_files(directory))
    signed = _with_hash(content.decode("utf-8"), digest).encode("utf-8")
    if parse_document(signed, file) != {**document, "sha256": digest}:
        raise SpecError(file, "sha256", "a place for one line `sha256: …` at the outermost level", "none")
    if signed != content:
        _replace(file, signed)
    return digest


def _with_hash(text: str, digest: str) -> str:
    line = f"sha256: {digest}"
    if _SHA256_LINE.search(text):
        return _SHA256_LINE.sub(rf"{line}\g<comment>\g<end>", text, count=1)
    newline = "\r\n" if "\r\n" in text else "\n"
    return f"{text}{'' if text.endswith(newline) else newline}{line}{newline}"


def _replace(file: Path, content: bytes) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.chmod(file.stat().st_mode & 0o777)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def _versions(model: Path) -> list[int]:
    names = (entry.name for entry in _entries(model) if (entry / MODEL_FILE).is_file())
    return sorted(int(name) for name in names if _VERSION.fullmatch(name))


def _entries(path: Path) -> Iterator[Path]:
    return path.iterdir() if path.is_dir() else iter(())


def _hash_files(directory: Path, *, skip: str | None = None) -> dict[str, str]:
    """Relative name → sha256 of every file but ``model.yaml`` and ``skip``, in the order of the names."""
    hashes: dict[str, str] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_symlink():
            raise RepositoryError(f"{path}: a symbolic link; a version's files must lie in its folder")
        name = path.relative_to(directory).as_posix()
        if name not in (MODEL_FILE, skip) and path.is_file():
            hashes[name] = _hash_file(path)
    return hashes


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(document: Mapping[str, Any], files: Mapping[str, str]) -> str:
    fields = {name: value for name, value in document.items() if name != "sha256"}
    signed = {"files": dict(files), MODEL_FILE: fields}
    return hashlib.sha256(json.dumps(signed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
