"""PROTOCOL.md's cases through the stock tritonclient, over http and http.aio."""

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.contract.local_engine import Endpoint
from tests.contract.repository import NAMES

Client = Any  # tritonclient has no types
ROUND_TRIPS = {
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 255], np.uint8),
    "UINT16": np.array([0, 65535], np.uint16),
    "UINT32": np.array([0, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 2**53 + 1, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, 127], np.int8),
    "INT16": np.array([-32768, 32767], np.int16),
    "INT32": np.array([-(2**31), 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), 2**53 + 1, 2**63 - 1], np.int64),
    "FP16": np.array([1.5, -0.0, 65504, np.inf, np.nan], np.float16),
    "FP32": np.array([0.1, -0.0, 1e-45, 3.4e38, np.inf, -np.inf, np.nan], np.float32),
    "FP64": np.array([0.1, -0.0, 5e-324, 1.7e308, np.inf, -np.inf, np.nan], np.float64),
    "BF16": np.array([1.5, -0.0, 3e38, np.inf, np.nan], ml_dtypes.bfloat16),
    "BYTES": np.array([b"", b"\xff\x00", b"a\0b", "é✓".encode()], dtype=np.object_),
}
WITHOUT_JSON = {"FP16", "BF16"}


class _Blocking:
    """http.aio's client with the blocking calls of http's, on an event loop of its own."""

    def __init__(self, address: str) -> None:
        self._runner = asyncio.Runner()

        async def make() -> Client:
            return tritonclient.http.aio.InferenceServerClient(address)

        self._client = self._runner.run(make())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            async def run() -> Any:
                return await method(*arguments, **options)

            return self._runner.run(run())

        return call

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(params=["http", "http.aio"])
def client(request: pytest.FixtureRequest, endpoint: Endpoint) -> Iterator[Client]:
    """A client; the server must still live when the case is over."""
    if request.param == "http":
        made = tritonclient.http.InferenceServerClient(endpoint.address)
    else:
        made = _Blocking(endpoint.address)
    yield made
    assert made.is_server_live()
    made.close()


def given(name: str, array: np.ndarray[Any, Any], *, binary: bool = True, datatype: str | None = None) -> InferInput:
    tensor = InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array, binary_data=binary)


def operands(rows: int = 1, *, binary: tuple[bool, bool] = (True, True)) -> list[InferInput]:
    array = np.arange(16 * rows, dtype=np.int32).reshape(rows, 16)
    return [given("INPUT0", array, binary=binary[0]), given("INPUT1", np.ones_like(array), binary=binary[1])]


def bits(array: np.ndarray[Any, Any]) -> list[Any]:
    """Elements fit for an exact comparison, NaN and signed zero included."""
    return array.tolist() if array.dtype == np.object_ else list(array.tobytes())


def refused(status: str, *fragments: str) -> Any:
    """A refusal with this HTTP status whose message names each fragment."""
    pattern = rf"^\[{status}\] " + "".join(rf"(?=.*{fragment})" for fragment in fragments)
    return pytest.raises(InferenceServerException, match=pattern)


def test_the_server_is_live_and_ready(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_the_server_says_what_it_offers(client: Client) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "understudy"
    assert {"binary_tensor_data", "classification"} <= set(metadata["extensions"])
    assert not any("shared_memory" in extension for extension in metadata["extensions"])


def test_a_known_model_is_ready_and_an_unknown_one_is_not(client: Client) -> None:
    assert client.is_model_ready("simple")
    assert client.is_model_ready("simple", "1")
    assert client.is_model_ready("simple", "9") is False
    assert client.is_model_ready("nope") is False


def test_metadata_says_versions_and_shapes_with_the_batch(client: Client) -> None:
    metadata = client.get_model_metadata("simple")
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [
        {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]},
        {"name": "INPUT1", "datatype": "INT32", "shape": [-1, 16]},
    ]
    assert [output["name"] for output in metadata["outputs"]] == ["OUTPUT0", "OUTPUT1"]


def test_config_says_dims_without_the_batch(client: Client) -> None:
    config = client.get_model_config("simple")
    assert config["max_batch_size"] == 8
    assert config["input"][0] == {"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [16]}
    assert client.get_model_config("nobatch2d")["input"][0]["dims"] == [2, 2]
    assert client.get_model_config("id_bytes")["output"][0]["data_type"] == "TYPE_STRING"


def test_the_repository_index_lists_every_version(client: Client) -> None:
    index = client.get_model_repository_index()
    assert {(entry["name"], entry["version"], entry["state"]) for entry in index} >= {
        (name, "1", "READY") for name in NAMES
    }


def test_an_unknown_model_is_not_found_by_name(client: Client) -> None:
    with refused("404", "nope"):
        client.get_model_metadata("nope")
    with refused("404", "nope"):
        client.get_model_config("nope")
    with refused("404", "nope"):
        client.infer("nope", operands())


def test_an_unknown_version_is_not_found(client: Client) -> None:
    with refused("404", "simple", "9"):
        client.get_model_metadata("simple", "9")
    with refused("404", "simple", "9"):
        client.infer("simple", operands(), model_version="9")


def test_version_1_answers_like_no_version(client: Client) -> None:
    with_version = client.infer("simple", operands(), model_version="1").get_response()
    assert with_version == client.infer("simple", operands()).get_response()
    assert with_version["model_version"] == "1"


@pytest.mark.parametrize("version", ["v1", "1.0", "-1"])
def test_a_version_that_is_no_integer_is_not_found(client: Client, version: str) -> None:
    with refused("404"):
        client.get_model_metadata("simple", version)


def test_an_id_comes_back_exactly(client: Client) -> None:
    response = client.infer("simple", operands(), request_id='é✓\n"').get_response()
    assert response["id"] == 'é✓\n"'


def test_no_id_leaves_the_id_out(client: Client) -> None:
    assert "id" not in client.infer("simple", operands()).get_response()


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_batch_size_up_to_the_largest_is_answered(client: Client, rows: int) -> None:
    result = client.infer("simple", operands(rows))
    expected = np.arange(16 * rows, dtype=np.int32).reshape(rows, 16)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), expected + 1)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), expected - 1)


def test_one_input_and_one_output_of_each_form(client: Client) -> None:
    outputs = [InferRequestedOutput("OUTPUT0", binary_data=False), InferRequestedOutput("OUTPUT1", binary_data=True)]
    for forms in ((True, False), (False, True)):
        result = client.infer("simple", operands(binary=forms), outputs=outputs)
        np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), np.arange(1, 17, dtype=np.int32).reshape(1, 16))
        np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), np.arange(-1, 15, dtype=np.int32).reshape(1, 16))
        assert "data" in result.get_output("OUTPUT0")
        assert result.get_output("OUTPUT1")["parameters"] == {"binary_data_size": 64}


def test_only_the_output_that_was_asked_for_comes_back(client: Client) -> None:
    result = client.infer("simple", operands(), outputs=[InferRequestedOutput("OUTPUT1")])
    assert [output["name"] for output in result.get_response()["outputs"]] == ["OUTPUT1"]


def test_outputs_come_in_the_order_in_which_they_were_asked_for(client: Client) -> None:
    outputs = [InferRequestedOutput("OUTPUT1"), InferRequestedOutput("OUTPUT0")]
    result = client.infer("simple", operands(), outputs=outputs)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["OUTPUT1", "OUTPUT0"]
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), np.arange(1, 17, dtype=np.int32).reshape(1, 16))


def test_an_unknown_output_is_refused_by_name(client: Client) -> None:
    with refused("400", "nope", "simple"):
        client.infer("simple", operands(), outputs=[InferRequestedOutput("nope")])


@pytest.mark.parametrize("datatype", sorted(ROUND_TRIPS))
def test_every_datatype_goes_through_binary_bit_for_bit(client: Client, datatype: str) -> None:
    array = ROUND_TRIPS[datatype]
    result = client.infer(f"id_{datatype.lower()}", [given("IN", array, datatype=datatype)])
    assert bits(result.as_numpy("OUT")) == bits(array)


@pytest.mark.parametrize("datatype", sorted(ROUND_TRIPS.keys() - WITHOUT_JSON - {"BYTES"}))
def test_every_datatype_goes_through_json_exactly(client: Client, datatype: str) -> None:
    array = ROUND_TRIPS[datatype]
    output = InferRequestedOutput("OUT", binary_data=False)
    result = client.infer(f"id_{datatype.lower()}", [given("IN", array, binary=False)], outputs=[output])
    assert "data" in result.get_output("OUT")
    np.testing.assert_array_equal(result.as_numpy("OUT"), array)


def test_text_goes_through_json(client: Client) -> None:
    array = np.array([b"", "é✓".encode(), b'"\\\n'], dtype=np.object_)
    output = InferRequestedOutput("OUT", binary_data=False)
    result = client.infer("id_bytes", [given("IN", array, binary=False)], outputs=[output])
    assert result.get_output("OUT")["data"] == ["", "é✓", '"\\\n']


def test_bytes_that_are_no_text_have_no_json_form(client: Client) -> None:
    array = np.array([b"\xff"], dtype=np.object_)
    with refused("400", "OUT", "UTF-8"):
        client.infer("id_bytes", [given("IN", array)], outputs=[InferRequestedOutput("OUT", binary_data=False)])


@pytest.mark.parametrize("datatype", sorted(WITHOUT_JSON))
def test_half_precision_has_no_json_form(client: Client, datatype: str) -> None:
    tensor = given("IN", ROUND_TRIPS[datatype], datatype=datatype)
    with refused("400", "OUT", datatype):
        client.infer(f"id_{datatype.lower()}", [tensor], outputs=[InferRequestedOutput("OUT", binary_data=False)])


@pytest.mark.parametrize("datatype", sorted(ROUND_TRIPS.keys() - WITHOUT_JSON))
@pytest.mark.parametrize("into", [True, False])
@pytest.mark.parametrize("out_of", [True, False])
def test_empty_tensors_are_legal_in_every_form(client: Client, datatype: str, into: bool, out_of: bool) -> None:
    array = ROUND_TRIPS[datatype][:0]
    tensor = given("IN", array, binary=into, datatype=datatype)
    output = InferRequestedOutput("OUT", binary_data=out_of)
    result = client.infer(f"id_{datatype.lower()}", [tensor], outputs=[output])
    assert result.as_numpy("OUT").shape == (0,)


def test_a_wrong_datatype_is_refused_with_both_named(client: Client) -> None:
    with refused("400", "INT32", "FP32"):
        client.infer("id_fp32", [given("IN", np.zeros(2, np.int32))])


@pytest.mark.parametrize("shape", [(9, 3, 4), (3, 4), (1, 3, 5), (0, 3, 4), (1, 3, 4, 1)])
def test_a_shape_that_does_not_fit_is_refused(client: Client, shape: tuple[int, ...]) -> None:
    with refused("400", "fixed"):
        client.infer("fixed", [given("IN", np.zeros(shape, np.float32))])


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2)])
def test_a_model_without_batch_takes_its_very_shape(client: Client, shape: tuple[int, ...]) -> None:
    with refused("400", "nobatch2d"):
        client.infer("nobatch2d", [given("IN", np.zeros(shape, np.float32))])
    result = client.infer("nobatch2d", [given("IN", np.ones((2, 2), np.float32))])
    np.testing.assert_array_equal(result.as_numpy("OUT"), np.ones((2, 2), np.float32))


def test_inputs_of_different_batch_sizes_are_refused(client: Client) -> None:
    with refused("400", "simple", "batch"):
        client.infer("simple", [operands(1)[0], operands(2)[1]])


def test_missing_unknown_and_duplicate_inputs_are_refused(client: Client) -> None:
    first, second = operands()
    with refused("400", "missing", "INPUT1"):
        client.infer("simple", [first])
    with refused("400", "unknown", "other"):
        client.infer("simple", [first, second, given("other", np.zeros((1, 16), np.int32))])
    with refused("400", "INPUT0", "twice"):
        client.infer("simple", [first, first])
    with refused("400", "inputs"):
        client.infer("simple", [])


def test_a_duplicate_output_is_refused(client: Client) -> None:
    with refused("400", "OUTPUT0", "twice"):
        client.infer("simple", operands(), outputs=[InferRequestedOutput("OUTPUT0"), InferRequestedOutput("OUTPUT0")])


@pytest.mark.parametrize("binary", [True, False])
def test_classification_gives_the_best_classes_with_labels(client: Client, binary: bool) -> None:
    scores = np.array([[0.1, 0.5, 0.2, 0.9, 0.3]], np.float32)
    output = InferRequestedOutput("OUT", binary_data=binary, class_count=2)
    result = client.infer("cls", [given("IN", scores)], outputs=[output])
    found = result.as_numpy("OUT")
    assert found.shape == (1, 2)
    texts = [text.decode() if isinstance(text, bytes) else text for text in found[0]]
    assert texts == ["0.900000:3:d", "0.500000:1:b"]


def test_classification_gives_no_more_classes_than_there_are(client: Client) -> None:
    output = InferRequestedOutput("OUT", class_count=99)
    result = client.infer("cls", [given("IN", np.zeros((3, 5), np.float32))], outputs=[output])
    assert result.as_numpy("OUT").shape == (3, 5)
    assert result.as_numpy("OUT")[2].tolist() == [f"0.000000:{i}:{label}".encode() for i, label in enumerate("abcde")]


def test_classification_of_a_model_without_labels_or_batch(client: Client) -> None:
    output = InferRequestedOutput("OUT", class_count=2)
    result = client.infer("id_int32", [given("IN", np.array([3, 7, 7], np.int32))], outputs=[output])
    assert result.as_numpy("OUT").tolist() == [b"7.000000:1", b"7.000000:2"]


def test_a_model_that_raises_is_a_500_with_its_message(client: Client) -> None:
    with refused("500", "this model always raises") as failure:
        client.infer("raises", [given("IN", np.ones((1, 4), np.float32))])
    assert "Traceback" not in str(failure.value)


def test_a_full_queue_is_a_503_and_the_rest_are_answered(endpoint: Endpoint) -> None:
    document = {"inputs": [{"name": "IN", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}

    def ask(_: int) -> int:
        return httpx.post(f"{endpoint.url}/v2/models/slow/infer", json=document, timeout=10).status_code

    with ThreadPoolExecutor(7) as pool:
        statuses = sorted(pool.map(ask, range(7)))
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 3


def test_a_timeout_parameter_ends_the_wait(client: Client) -> None:
    started = time.monotonic()
    with pytest.raises(InferenceServerException, match=r"^\[50[34]\]"):
        client.infer("slow", [given("IN", np.ones((1, 4), np.float32))], timeout=50_000)
    assert time.monotonic() - started < 0.45


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_and_responses(client: Client, algorithm: str) -> None:
    compression = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    result = client.infer("simple", operands(), **compression)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), np.arange(1, 17, dtype=np.int32).reshape(1, 16))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_large_compressed_bodies(client: Client, algorithm: str) -> None:
    array = np.arange(500_000, dtype=np.float32)
    compression = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    result = client.infer("id_fp32", [given("IN", array)], **compression)
    np.testing.assert_array_equal(result.as_numpy("OUT"), array)


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp's advice to tritonclient
def test_five_megabytes_both_ways(client: Client) -> None:
    array = np.arange(1_250_000, dtype=np.float32)
    np.testing.assert_array_equal(client.infer("id_fp32", [given("IN", array)]).as_numpy("OUT"), array)


def test_sequence_and_priority_parameters_are_accepted(client: Client) -> None:
    result = client.infer("simple", operands(), sequence_id=7, sequence_start=True, sequence_end=True, priority=3)
    assert result.as_numpy("OUTPUT0").shape == (1, 16)
    named = client.infer("simple", operands(), sequence_id="camera-3", parameters={"note": "x", "level": 0.5})
    assert named.as_numpy("OUTPUT0").shape == (1, 16)


def test_models_are_not_loaded_or_unloaded_here(client: Client) -> None:
    with refused("501", "load"):
        client.load_model("simple")
    with refused("501", "unload"):
        client.unload_model("simple")


def test_shared_memory_is_not_offered(client: Client) -> None:
    with refused("501"):
        client.get_system_shared_memory_status()
    tensor = InferInput("IN", [2], "FP32")
    tensor.set_shared_memory("region", 8)
    with refused("501", "shared memory"):
        client.infer("id_fp32", [tensor])
