"""Small exported programs for tests."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import torch


class Block(torch.nn.Module):
    """A convolution with a batch norm, as vision models have: ``image`` [n, 3, 8, 8] → ``scores`` [n, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Softmax of the mean activations."""
        features = torch.relu(self.norm(self.convolution(image)))
        return {"scores": torch.softmax(features.mean((2, 3)), -1)}


def archive(module: torch.nn.Module, example: tuple[Any, ...], shapes: Any = None) -> bytes:
    """Export ``module`` with a variable batch dimension (or ``shapes``: argument → dimension → name)."""
    named = shapes or tuple({0: "batch"} for _ in example)
    dimensions: dict[str, Any] = {name: torch.export.Dim(name) for shape in named for name in shape.values()}
    dynamic = tuple({axis: dimensions[name] for axis, name in shape.items()} for shape in named)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        return save(torch.export.export(module.eval(), example, dynamic_shapes=dynamic))


def save(program: torch.export.ExportedProgram) -> bytes:
    """The archive's bytes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer)
    return buffer.getvalue()


def rewrite(content: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """The archive with its records changed, as an attacker with a zip tool would."""
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        records = {name: source.read(name) for name in source.namelist()}
    change(records)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, data in records.items():
            target.writestr(name, data)
    return buffer.getvalue()


def rewrite_json(content: bytes, name: str, change: Callable[[Any], None]) -> bytes:
    """The archive with one of its JSON records changed."""

    def apply(records: dict[str, bytes]) -> None:
        key = next(record for record in records if record.endswith(name))
        document = json.loads(records[key])
        change(document)
        records[key] = json.dumps(document).encode()

    return rewrite(content, apply)
