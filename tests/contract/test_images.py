"""Pictures over HTTP: the bytes of a file as a request, as the README's example sends them."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from models.backends import open_backend
from models.reference.build import PICTURED
from models.reference.digits import load_split
from models.repository import Repository
from serving.config import load_config
from serving.dataplane import DataPlane
from tests.contract.local_engine import Endpoint, LocalEngine, served
from tests.models.pictures import encoded, noise

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGIT = (EXAMPLES / "digit.png").read_bytes()
RAW = {"Inference-Header-Content-Length": "0"}


@pytest.fixture(scope="module")
def images() -> Iterator[Endpoint]:
    """The endpoint of ``examples/images.yaml``, without Ray."""
    config = load_config(EXAMPLES / "images.yaml")
    assert list(config.models) == ["digits-image"]
    engine = LocalEngine(config.repository, {}, {})
    with served(DataPlane(engine)) as running:
        yield running
    engine.close()


def ask(images: Endpoint, body: bytes, **headers: str) -> httpx.Response:
    url = f"{images.url}/v2/models/digits-image/infer"
    return httpx.post(url, content=body, headers={**RAW, **headers}, trust_env=False)


def test_the_bytes_of_a_picture_are_a_request(images: Endpoint) -> None:
    answer = ask(images, DIGIT)
    assert answer.status_code == 200
    scores = struct.unpack("<10f", answer.content[-40:])
    assert scores.index(max(scores)) == 0
    assert sum(scores) == pytest.approx(1, abs=1e-5)


def test_a_picture_gets_the_answer_that_its_pixels_get(images: Endpoint) -> None:
    opened = Repository(EXAMPLES / "model_repository")
    model, twin = opened.open("digits-image", 1), opened.open("digits", 2)
    assert model.read("model.onnx") == twin.read("model.onnx")
    scores = np.frombuffer(ask(images, DIGIT).content[-40:], "<f4")
    backend = open_backend(twin)
    backend.load()
    expected = backend.run({"image": load_split().test_images[PICTURED : PICTURED + 1]})["scores"]
    assert (scores == expected[0]).all()


def test_the_metadata_speak_of_pictures(images: Endpoint) -> None:
    metadata = httpx.get(f"{images.url}/v2/models/digits-image", trust_env=False).json()
    assert metadata["inputs"] == [{"name": "picture", "datatype": "BYTES", "shape": [-1, 1]}]


def test_a_batch_of_pictures_goes_through_the_stock_client(images: Endpoint) -> None:
    tensor = triton.InferInput("picture", [3, 1], "BYTES")
    pictures: Any = np.array([[DIGIT], [encoded(noise(30, 20), "JPEG")], [DIGIT]], dtype=object)
    tensor.set_data_from_numpy(pictures)
    with triton.InferenceServerClient(images.address) as client:
        scores = client.infer("digits-image", [tensor]).as_numpy("scores")
    assert scores.shape == (3, 10)
    assert (scores[0] == scores[2]).all()
    assert scores[0].argmax() == 0


@pytest.mark.parametrize("body", [b"", b"no picture", DIGIT[:200], DIGIT[:3000]])
def test_a_body_that_is_no_picture_is_the_clients_error(images: Endpoint, body: bytes) -> None:
    answer = ask(images, body)
    assert answer.status_code == 400
    assert "input 'picture': expected a JPEG or PNG that can be read" in answer.json()["error"]
    assert ask(images, DIGIT).status_code == 200
