"""What tritonclient can ask for over HTTP alone: tensors as JSON, and HTTP's own compression."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from tests.contract.clients import STOCK, Array, Asked, Client, Given, HttpClient
from tests.contract.local_engine import Endpoint
from tests.contract.test_clients import ROUND_TRIPS, checked, given

WITHOUT_JSON = {"FP16", "BF16"}


@pytest.fixture(params=["http", "http.aio"])
def client(request: pytest.FixtureRequest, endpoint: Endpoint) -> Iterator[Client]:
    """A client; the server must still live when the case is over."""
    yield from checked(STOCK[request.param](endpoint))


def as_json(array: Array, datatype: str | None = None) -> list[Given]:
    return [Given(name="IN", array=array, datatype=datatype, binary=False)]


JSON_OUT = [Asked(name="OUT", binary=False)]


def test_one_input_and_one_output_of_each_form(client: Client) -> None:
    array = np.arange(16, dtype=np.int32).reshape(1, 16)
    for forms in ((True, False), (False, True)):
        inputs = [
            Given(name="INPUT0", array=array, binary=forms[0]),
            Given(name="INPUT1", array=np.ones_like(array), binary=forms[1]),
        ]
        answer = client.infer("simple", inputs, [Asked(name="OUTPUT0", binary=False), Asked(name="OUTPUT1")])
        np.testing.assert_array_equal(answer.outputs["OUTPUT0"], array + 1)
        np.testing.assert_array_equal(answer.outputs["OUTPUT1"], array - 1)
        first, second = answer.response["outputs"]
        assert "data" in first
        assert second["parameters"] == {"binary_data_size": 64}


@pytest.mark.parametrize("datatype", sorted(ROUND_TRIPS.keys() - WITHOUT_JSON - {"BYTES"}))
def test_every_datatype_goes_through_json_exactly(client: Client, datatype: str) -> None:
    array = ROUND_TRIPS[datatype]
    answer = client.infer(f"id_{datatype.lower()}", as_json(array), JSON_OUT)
    assert "data" in answer.response["outputs"][0]
    np.testing.assert_array_equal(answer.outputs["OUT"], array)


def test_text_goes_through_json(client: Client) -> None:
    array = np.array([b"", "é✓".encode(), b'"\\\n'], dtype=np.object_)
    answer = client.infer("id_bytes", as_json(array), JSON_OUT)
    assert answer.response["outputs"][0]["data"] == ["", "é✓", '"\\\n']


def test_bytes_that_are_no_text_have_no_json_form(client: Client) -> None:
    with client.refused(400, "OUT", "UTF-8"):
        client.infer("id_bytes", given(np.array([b"\xff"], dtype=np.object_)), JSON_OUT)


@pytest.mark.parametrize("datatype", sorted(WITHOUT_JSON))
def test_half_precision_has_no_json_form(client: Client, datatype: str) -> None:
    with client.refused(400, "OUT", datatype):
        client.infer(f"id_{datatype.lower()}", given(ROUND_TRIPS[datatype], datatype), JSON_OUT)


@pytest.mark.parametrize("datatype", sorted(ROUND_TRIPS.keys() - WITHOUT_JSON))
@pytest.mark.parametrize("into", [True, False])
@pytest.mark.parametrize("out_of", [True, False])
def test_empty_tensors_are_legal_in_every_form(client: Client, datatype: str, into: bool, out_of: bool) -> None:
    tensor = Given(name="IN", array=ROUND_TRIPS[datatype][:0], datatype=datatype, binary=into)
    answer = client.infer(f"id_{datatype.lower()}", [tensor], [Asked(name="OUT", binary=out_of)])
    assert answer.outputs["OUT"].shape == (0,)


def test_classification_has_a_json_form(client: Client) -> None:
    scores = np.array([[0.1, 0.5, 0.2, 0.9, 0.3]], np.float32)
    answer = client.infer("cls", given(scores), [Asked(name="OUT", classes=2, binary=False)])
    assert answer.response["outputs"][0]["data"] == ["0.900000:3:d", "0.500000:1:b"]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("elements", [16, 500_000])
def test_compressed_requests_and_responses(client: Client, algorithm: str, elements: int) -> None:
    assert isinstance(client, HttpClient)
    array = np.arange(elements, dtype=np.float32)
    compression: dict[str, Any] = {
        "request_compression_algorithm": algorithm,
        "response_compression_algorithm": algorithm,
    }
    np.testing.assert_array_equal(client.infer("id_fp32", given(array), **compression).outputs["OUT"], array)
