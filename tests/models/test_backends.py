import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.backends import BACKENDS, open_backend
from models.backends.parameters import Parameters
from models.backends.text import array_to_bytes, array_to_text, to_bytes, to_text
from models.errors import BackendError, ModelError
from models.repository import ModelVersion, open_version
from tests.models.making import identity_graph, write_version


class EchoBackend:
    """A user's own backend."""

    def __init__(self, version: ModelVersion) -> None:
        self.version = version

    def load(self) -> None: ...

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"OUT": inputs["IN"]}

    def close(self) -> None: ...


class BrokenBackend:
    def __init__(self, version: ModelVersion) -> None:
        raise LookupError("no such thing")


class RefusingBackend:
    def __init__(self, version: ModelVersion) -> None:
        raise ModelError("not today")


def version(root: Path, **changes: Any) -> ModelVersion:
    return open_version(write_version(root, identity_graph("FP32", ["b", 3]), **changes))


def test_a_users_backend_is_found_by_its_import_path(tmp_path: Path) -> None:
    opened = version(tmp_path, backend="echo")
    backend = open_backend(opened, {"echo": f"{__name__}:EchoBackend"})
    assert isinstance(backend, EchoBackend)
    assert backend.version == opened


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "unknown backend 'mine'; known are onnxruntime, torch"),
        ({"mine": "package.module"}, "expected an import path `package.module:Class`"),
        ({"mine": ":Class"}, "expected an import path"),
        ({"mine": "no.such.module:Class"}, "cannot import"),
        ({"mine": f"{__name__}:Absent"}, "has no Absent"),
        ({"mine": f"{__name__}:pytest"}, "to be a class, found module"),
        ({"mine": f"{__name__}:BrokenBackend"}, "LookupError"),
        ({"mine": f"{__name__}:EchoBackend", "torch": "a:B"}, "torch: the name of a built-in backend"),
    ],
)
def test_a_backend_that_cannot_be_had_says_why(tmp_path: Path, extra: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(version(tmp_path, backend="mine"), extra)


def test_an_error_that_a_backend_raises_on_purpose_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not today"):
        open_backend(version(tmp_path, backend="mine"), {"mine": f"{__name__}:RefusingBackend"})


@pytest.mark.parametrize("name", sorted(BACKENDS))
def test_a_runtime_that_is_not_installed_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.delitem(sys.modules, f"models.backends.{name}", raising=False)
    monkeypatch.setitem(sys.modules, name, None)  # as if not installed
    with pytest.raises(BackendError, match=r"install understudy\["):
        open_backend(version(tmp_path, backend=name))


def test_a_module_that_raises_on_import_is_a_backend_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raises_on_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendError, match="ZeroDivisionError"):
        open_backend(version(tmp_path, backend="mine"), {"mine": "raises_on_import:Class"})


def test_parameters_are_taken_with_their_defaults() -> None:
    parameters = Parameters("file", {"device": "cuda"})
    assert parameters.choice("device", ("cpu", "cuda"), default="cpu") == "cuda"
    assert parameters.integer("threads", default=1, minimum=1) == 1
    parameters.finish()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"device": "gpu"}, r"file: parameters\.device: expected one of cpu, cuda, got 'gpu'"),
        ({"device": ["cpu"]}, r"parameters\.device"),
        ({"threads": 0}, r"parameters\.threads: expected an integer of at least 1, got 0"),
        ({"threads": True}, r"parameters\.threads"),
        ({"threads": "2"}, r"parameters\.threads"),
        ({"treads": 2}, r"parameters\.treads: expected only device, threads, got 2"),
    ],
)
def test_a_wrong_parameter_is_named(values: dict[str, Any], message: str) -> None:
    parameters = Parameters("file", values)
    with pytest.raises(BackendError, match=message):
        _take(parameters)


def _take(parameters: Parameters) -> None:
    parameters.choice("device", ("cpu", "cuda"), default="cpu")
    parameters.integer("threads", default=1, minimum=1)
    parameters.finish()


@given(element=st.binary(max_size=12) | st.text(max_size=6).map(lambda text: text.encode("utf-8", "ignore")))
def test_any_bytes_survive_the_way_through_text(element: bytes) -> None:
    text = to_text(element)
    assert to_bytes(text) == element
    text.encode()  # valid text: no lone surrogates


@given(codes=st.lists(st.integers(0x10FF00, 0x10FFFF), max_size=4))
def test_the_characters_that_stand_for_bytes_survive_too(codes: list[int]) -> None:
    element = "".join(map(chr, codes)).encode()
    assert to_bytes(to_text(element)) == element


def test_utf8_becomes_the_text_that_it_is() -> None:
    assert to_text("é✓".encode()) == "é✓"
    assert to_text("é✓") == "é✓"


def test_arrays_of_bytes_keep_their_shape() -> None:
    array = np.array([[b"a", b"\xff"], [b"", b"a\0"]], dtype=object)
    text = array_to_text(array)
    assert text.shape == (2, 2)
    assert array_to_bytes(text).tolist() == array.tolist()
    assert array.tolist() == [[b"a", b"\xff"], [b"", b"a\0"]]
    assert array_to_text(np.empty((0, 2), dtype=object)).shape == (0, 2)
