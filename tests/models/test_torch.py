from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch extra is not installed")

import torch

from models.backend import Backend
from models.backends import open_backend
from models.errors import BackendError
from models.repository import open_version
from models.tensor import Array
from tests.models.making import tensor, write_version
from tests.models.torch_programs import Block, archive, rewrite_json

IMAGE = {"inputs": [tensor("image", "FP32", [-1, 3, 8, 8])], "outputs": [tensor("scores", "FP32", [-1, 4])]}


def opened(root: Path, content: bytes, **changes: Any) -> Backend:
    return open_backend(open_version(write_version(root, content, backend="torch", artifact_name="m.pt2", **changes)))


def images() -> Array:
    return np.random.default_rng(0).random((5, 3, 8, 8), dtype=np.float32)


def test_a_vision_model_answers_as_it_did_before_export(tmp_path: Path) -> None:
    backend = opened(tmp_path, archive(Block(), (torch.zeros(2, 3, 8, 8),)), **IMAGE)
    backend.load()
    with torch.inference_mode():
        expected = Block().eval()(torch.from_numpy(images()))["scores"].numpy()
    assert np.allclose(backend.run({"image": images()})["scores"], expected, atol=1e-6)


def test_mixed_precision_answers_in_the_declared_datatype(tmp_path: Path) -> None:
    content = archive(Block(), (torch.zeros(2, 3, 8, 8),))
    exact, mixed = (
        opened(tmp_path / "a", content, **IMAGE),
        opened(tmp_path / "b", content, parameters={"precision": "bf16"}, **IMAGE),
    )
    exact.load()
    mixed.load()
    expected, found = exact.run({"image": images()})["scores"], mixed.run({"image": images()})["scores"]
    assert found.dtype == np.float32
    assert 0 < np.abs(found - expected).max() < 0.02


def test_a_tuple_is_taken_in_the_order_of_the_declared_outputs(tmp_path: Path) -> None:
    class Pair(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> Any:
            return image + 1, image.sum(1)

    described = {"outputs": [tensor("more", "FP32", [-1, 3]), tensor("total", "FP32", [-1])]}
    backend = opened(tmp_path, archive(Pair(), (torch.zeros(2, 3),)), **described)
    backend.load()
    found = backend.run({"IN": np.ones((4, 3), "<f4")})
    assert found["more"].tolist() == [[2, 2, 2]] * 4
    assert found["total"].tolist() == [3] * 4


def test_an_input_is_never_written_to(tmp_path: Path) -> None:
    class InPlace(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> Any:
            return {"OUT": image.add_(1) * 2}

    backend = opened(tmp_path, archive(InPlace(), (torch.zeros(2, 3),)))
    backend.load()
    batch = np.zeros((2, 3), "<f4")
    batch.setflags(write=False)
    assert backend.run({"IN": batch})["OUT"].tolist() == [[2, 2, 2]] * 2
    assert not batch.any()


def test_the_number_of_threads_is_what_was_asked_for(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    content = archive(Block(), (torch.zeros(2, 3, 8, 8),))
    backend = opened(tmp_path, content, parameters={"intra_op_threads": 2}, **IMAGE)
    try:
        backend.load()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_unsafe_archive_does_not_load(tmp_path: Path) -> None:
    content = archive(Block(), (torch.zeros(2, 3, 8, 8),))

    def change(document: Any) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.getcwd"

    backend = opened(tmp_path, rewrite_json(content, "models/model.json", change), **IMAGE)
    with pytest.raises(BackendError, match=r"m\.pt2: operator 'torch\.os\.getcwd'"):
        backend.load()
