"""PROTOCOL.md's cases through the stock tritonclient: every case over every transport, in every way to ask."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.contract.clients import STOCK, WAYS, Answer, Array, Asked, Client, Given, GrpcClient
from tests.contract.local_engine import Endpoint
from tests.contract.repository import NAMES

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
FOUR = np.ones((1, 4), np.float32)


@pytest.fixture(params=sorted(STOCK))
def client(request: pytest.FixtureRequest, endpoint: Endpoint) -> Iterator[Client]:
    """A stock client; the server must still live when the case is over."""
    yield from checked(STOCK[request.param](endpoint))


@pytest.fixture(params=sorted(WAYS))
def asking(request: pytest.FixtureRequest, endpoint: Endpoint) -> Iterator[Client]:
    """A stock client with one of its ways to ask; the server must still live when the case is over."""
    yield from checked(WAYS[request.param](endpoint))


def checked(made: Client) -> Iterator[Client]:
    try:
        yield made
        assert made.stock.is_server_live()
    finally:
        made.close()


def operands(rows: int = 1) -> list[Given]:
    array = np.arange(16 * rows, dtype=np.int32).reshape(rows, 16)
    return [Given(name="INPUT0", array=array), Given(name="INPUT1", array=np.ones_like(array))]


def given(array: Array, datatype: str | None = None) -> list[Given]:
    return [Given(name="IN", array=array, datatype=datatype)]


def bits(array: Array) -> object:
    """Elements fit for an exact comparison, NaN and signed zero included."""
    return array.tolist() if array.dtype == np.object_ else array.tobytes()


def test_the_server_is_live_and_ready(client: Client) -> None:
    assert client.stock.is_server_live()
    assert client.stock.is_server_ready()


def test_the_server_says_what_it_offers(client: Client) -> None:
    metadata = client.server_metadata()
    assert metadata["name"] == "understudy"
    assert {"binary_tensor_data", "classification", "statistics"} <= set(metadata["extensions"])
    assert not any(word in each for each in metadata["extensions"] for word in ("shared_memory", "trace", "logging"))


def test_a_known_model_is_ready_and_an_unknown_one_is_not(client: Client) -> None:
    assert client.stock.is_model_ready("simple")
    assert client.stock.is_model_ready("simple", "1")
    assert client.stock.is_model_ready("simple", "9") is False
    assert client.stock.is_model_ready("nope") is False


def test_metadata_says_versions_and_shapes_with_the_batch(client: Client) -> None:
    metadata = client.metadata("simple")
    assert metadata["name"] == "simple"
    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [
        {"name": "INPUT0", "datatype": "INT32", "shape": [-1, 16]},
        {"name": "INPUT1", "datatype": "INT32", "shape": [-1, 16]},
    ]
    assert [output["name"] for output in metadata["outputs"]] == ["OUTPUT0", "OUTPUT1"]
    assert client.metadata("simple", "1") == metadata


def test_config_says_dims_without_the_batch(client: Client) -> None:
    config = client.config("simple")
    assert config["max_batch_size"] == 8
    assert config["input"][0] == {"name": "INPUT0", "data_type": "TYPE_INT32", "dims": [16]}
    assert client.config("nobatch2d")["input"][0]["dims"] == [2, 2]
    assert client.config("id_bytes")["output"][0]["data_type"] == "TYPE_STRING"


def test_the_repository_index_lists_every_version(client: Client) -> None:
    assert {(entry["name"], entry["version"], entry["state"]) for entry in client.index()} >= {
        (name, "1", "READY") for name in NAMES
    }


def test_to_load_a_model_that_is_served_does_nothing(client: Client) -> None:
    client.stock.load_model("simple")
    assert client.stock.is_model_ready("simple")
    with client.refused(404, "nope"):
        client.stock.load_model("nope")


def test_a_client_cannot_say_how_a_model_is_loaded_nor_unload_it(client: Client) -> None:
    with client.refused(501, "rollouts"):
        client.stock.load_model("simple", config='{"max_batch_size": 1}')
    with client.refused(501, "rollouts"):
        client.stock.unload_model("simple")
    with client.refused(404, "nope"):
        client.stock.unload_model("nope")
    assert client.stock.is_model_ready("simple")


def test_an_unknown_model_is_not_found_by_name(asking: Client) -> None:
    with asking.refused(404, "nope"):
        asking.infer("nope", operands())


def test_the_metadata_of_an_unknown_model_is_not_found(client: Client) -> None:
    for ask in (client.metadata, client.config, client.statistics):
        with client.refused(404, "nope"):
            ask("nope")


def test_an_unknown_version_is_not_found(asking: Client) -> None:
    with asking.refused(404, "simple", "9"):
        asking.infer("simple", operands(), model_version="9")


def test_the_metadata_of_an_unknown_version_is_not_found(client: Client) -> None:
    with client.refused(404, "simple", "9"):
        client.metadata("simple", "9")
    with client.refused(404, "simple", "9"):
        client.statistics("simple", "9")


@pytest.mark.parametrize("version", ["v1", "1.0", "-1"])
def test_a_version_that_is_no_integer_is_refused(client: Client, version: str) -> None:
    with client.refused(404, "version", grpc="INVALID_ARGUMENT"):
        client.metadata("simple", version)
    with client.refused(404, "version", grpc="INVALID_ARGUMENT"):
        client.infer("simple", operands(), model_version=version)


def test_version_1_answers_like_no_version(asking: Client) -> None:
    with_version = asking.infer("simple", operands(), model_version="1")
    assert with_version.response == asking.infer("simple", operands()).response
    assert (with_version.model, with_version.version) == ("simple", "1")


def test_an_id_comes_back_exactly(asking: Client) -> None:
    assert asking.infer("simple", operands(), request_id='é✓\n"').id == 'é✓\n"'


def test_no_id_leaves_the_id_out(asking: Client) -> None:
    assert asking.infer("simple", operands()).id == ""


@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_batch_size_up_to_the_largest_is_answered(asking: Client, rows: int) -> None:
    answer = asking.infer("simple", operands(rows))
    expected = np.arange(16 * rows, dtype=np.int32).reshape(rows, 16)
    np.testing.assert_array_equal(answer.outputs["OUTPUT0"], expected + 1)
    np.testing.assert_array_equal(answer.outputs["OUTPUT1"], expected - 1)


def test_only_the_output_that_was_asked_for_comes_back(asking: Client) -> None:
    assert list(asking.infer("simple", operands(), [Asked(name="OUTPUT1")]).outputs) == ["OUTPUT1"]


def test_outputs_come_in_the_order_in_which_they_were_asked_for(asking: Client) -> None:
    answer = asking.infer("simple", operands(), [Asked(name="OUTPUT1"), Asked(name="OUTPUT0")])
    assert list(answer.outputs) == ["OUTPUT1", "OUTPUT0"]
    np.testing.assert_array_equal(answer.outputs["OUTPUT0"], np.arange(1, 17, dtype=np.int32).reshape(1, 16))


def test_an_unknown_output_is_refused_by_name(asking: Client) -> None:
    with asking.refused(400, "nope", "simple"):
        asking.infer("simple", operands(), [Asked(name="nope")])


@pytest.mark.parametrize("datatype", sorted(ROUND_TRIPS))
def test_every_datatype_goes_through_bit_for_bit(asking: Client, datatype: str) -> None:
    array = ROUND_TRIPS[datatype]
    answer = asking.infer(f"id_{datatype.lower()}", given(array, datatype))
    assert bits(answer.outputs["OUT"]) == bits(array)


@pytest.mark.parametrize("datatype", sorted(ROUND_TRIPS))
def test_empty_tensors_are_legal(asking: Client, datatype: str) -> None:
    answer = asking.infer(f"id_{datatype.lower()}", given(ROUND_TRIPS[datatype][:0], datatype))
    assert answer.outputs["OUT"].shape == (0,)


def test_a_wrong_datatype_is_refused_with_both_named(asking: Client) -> None:
    with asking.refused(400, "INT32", "FP32"):
        asking.infer("id_fp32", given(np.zeros(2, np.int32)))


@pytest.mark.parametrize("datatype", ["fp32", "FP8", ""])
def test_an_unknown_datatype_is_refused(client: Client, datatype: str) -> None:
    tensor = client.tensor(Given(name="IN", array=np.zeros(2, np.float32)))
    client.mislabel(tensor, datatype)
    with client.refused(400, "IN", "datatype"):
        client.stock.infer("id_fp32", [tensor])


@pytest.mark.parametrize("shape", [(9, 3, 4), (3, 4), (1, 3, 5), (0, 3, 4), (1, 3, 4, 1)])
def test_a_shape_that_does_not_fit_is_refused(asking: Client, shape: tuple[int, ...]) -> None:
    with asking.refused(400, "fixed"):
        asking.infer("fixed", given(np.zeros(shape, np.float32)))


@pytest.mark.parametrize("shape", [[3], [1], [-2], [2**62, 2**62, 16], [1] * 65])
def test_a_shape_that_disagrees_with_the_data_is_refused(client: Client, shape: list[int]) -> None:
    tensor = client.tensor(Given(name="IN", array=np.zeros(2, np.float32)))
    tensor.set_shape(shape)
    with client.refused(400, "IN"):
        client.stock.infer("id_fp32", [tensor])


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 2, 2)])
def test_a_model_without_batch_takes_its_very_shape(asking: Client, shape: tuple[int, ...]) -> None:
    with asking.refused(400, "nobatch2d"):
        asking.infer("nobatch2d", given(np.zeros(shape, np.float32)))
    answer = asking.infer("nobatch2d", given(np.ones((2, 2), np.float32)))
    np.testing.assert_array_equal(answer.outputs["OUT"], np.ones((2, 2), np.float32))


def test_inputs_of_different_batch_sizes_are_refused(asking: Client) -> None:
    with asking.refused(400, "simple", "batch"):
        asking.infer("simple", [operands(1)[0], operands(2)[1]])


def test_missing_unknown_and_duplicate_inputs_are_refused(asking: Client) -> None:
    first, second = operands()
    with asking.refused(400, "missing", "INPUT1"):
        asking.infer("simple", [first])
    with asking.refused(400, "unknown", "other"):
        asking.infer("simple", [first, second, Given(name="other", array=np.zeros((1, 16), np.int32))])
    with asking.refused(400, "INPUT0", "twice"):
        asking.infer("simple", [first, first])
    with asking.refused(400, "inputs"):
        asking.infer("simple", [])


def test_a_duplicate_output_is_refused(asking: Client) -> None:
    with asking.refused(400, "OUTPUT0", "twice"):
        asking.infer("simple", operands(), [Asked(name="OUTPUT0"), Asked(name="OUTPUT0")])


def test_classification_gives_the_best_classes_with_labels(asking: Client) -> None:
    scores = np.array([[0.1, 0.5, 0.2, 0.9, 0.3]], np.float32)
    found = asking.infer("cls", given(scores), [Asked(name="OUT", classes=2)]).outputs["OUT"]
    assert found.tolist() == [[b"0.900000:3:d", b"0.500000:1:b"]]


def test_classification_gives_no_more_classes_than_there_are(asking: Client) -> None:
    found = asking.infer("cls", given(np.zeros((3, 5), np.float32)), [Asked(name="OUT", classes=99)]).outputs["OUT"]
    assert found.shape == (3, 5)
    assert found[2].tolist() == [f"0.000000:{i}:{label}".encode() for i, label in enumerate("abcde")]


def test_classification_of_a_model_without_labels_or_batch(asking: Client) -> None:
    answer = asking.infer("id_int32", given(np.array([3, 7, 7], np.int32)), [Asked(name="OUT", classes=2)])
    assert answer.outputs["OUT"].tolist() == [b"7.000000:1", b"7.000000:2"]


def test_a_model_that_raises_is_an_internal_error_with_its_message(asking: Client) -> None:
    with asking.refused(500, "this model always raises") as failure:
        asking.infer("raises", given(FOUR))
    assert "Traceback" not in str(failure.value)


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_full_queue_is_unavailable_and_the_rest_are_answered(endpoint: Endpoint, transport: str) -> None:
    def ask(_: int) -> str:
        client = STOCK[transport](endpoint)
        try:
            client.infer("slow", given(FOUR))
        except InferenceServerException as error:
            return str(error.status())
        finally:
            client.close()
        return "answered"

    with ThreadPoolExecutor(7) as pool:
        ends = list(pool.map(ask, range(7)))
    assert set(ends) == {"answered", "503" if transport == "http" else "StatusCode.UNAVAILABLE"}
    assert ends.count("answered") >= 3


def test_a_timeout_parameter_ends_the_wait(client: Client) -> None:
    started = time.monotonic()
    with pytest.raises(InferenceServerException, match=r"no answer within"):
        client.infer("slow", given(FOUR), timeout=50_000)
    assert time.monotonic() - started < 0.45
    assert answered(client.infer("slow", given(FOUR)))


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")  # aiohttp's advice to tritonclient
def test_five_megabytes_both_ways(asking: Client) -> None:
    array = np.arange(1_250_000, dtype=np.float32)
    np.testing.assert_array_equal(asking.infer("id_fp32", given(array)).outputs["OUT"], array)


def test_sequence_and_priority_parameters_are_accepted(asking: Client) -> None:
    shown = asking.infer("simple", operands(), sequence_id=7, sequence_start=True, sequence_end=True, priority=3)
    assert shown.outputs["OUTPUT0"].shape == (1, 16)
    named = asking.infer("simple", operands(), sequence_id="camera-3", parameters={"note": "x", "level": 0.5})
    assert named.outputs["OUTPUT0"].shape == (1, 16)


def test_shared_memory_is_not_offered(client: Client) -> None:
    with client.refused(501):
        client.stock.get_system_shared_memory_status()
    with client.refused(501):
        client.stock.get_cuda_shared_memory_status()
    tensor = client.tensor(Given(name="IN", array=np.zeros(2, np.float32)))
    tensor.set_shared_memory("region", 8)
    with client.refused(501, "shared memory"):
        client.stock.infer("id_fp32", [tensor])


def test_traces_and_log_settings_are_not_offered(client: Client) -> None:
    with client.refused(501):
        client.stock.get_trace_settings()
    with client.refused(501):
        client.stock.get_log_settings()


def test_statistics_count_what_was_answered_and_what_failed(client: Client) -> None:
    (before,) = client.statistics("cls")
    (failed_before,) = client.statistics("raises")
    for rows in (1, 3, 3):
        client.infer("cls", given(np.zeros((rows, 5), np.float32)))
    with client.refused(500):
        client.infer("raises", given(FOUR))
    (after,) = client.statistics("cls", "1")
    assert (after["name"], after["version"]) == ("cls", "1")
    assert after["inference_count"] - before.get("inference_count", 0) == 7
    assert after["execution_count"] - before.get("execution_count", 0) == 3
    assert after["last_inference"] > 1.7e12
    stats = after["inference_stats"]
    assert set(stats) >= {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}
    assert {"cache_hit", "cache_miss"} <= set(stats)
    assert stats["success"]["count"] == stats["compute_infer"]["count"] == stats["queue"]["count"]
    assert stats["success"]["ns"] >= stats["compute_infer"]["ns"] + stats["queue"]["ns"] > 0
    sizes = {batch["batch_size"]: batch["compute_infer"]["count"] for batch in after["batch_stats"]}
    assert sizes[3] >= 2
    (failed,) = client.statistics("raises")
    counts = [
        {kind: each["inference_stats"].get(kind, {}).get("count", 0) for kind in ("success", "fail")}
        for each in (failed_before, failed)
    ]
    assert counts[1] == counts[0] | {"fail": counts[0]["fail"] + 1}


def test_statistics_of_no_model_in_particular_are_those_of_all(client: Client) -> None:
    assert {entry["name"] for entry in client.statistics()} == set(NAMES)


def test_a_client_that_hurries_gets_its_deadline_over_grpc(endpoint: Endpoint) -> None:
    for transport in ("grpc", "grpc.aio"):
        client = STOCK[transport](endpoint)
        started = time.monotonic()
        with client.refused(503, "", grpc="DEADLINE_EXCEEDED"):
            client.infer("slow", given(FOUR), client_timeout=0.1)
        assert time.monotonic() - started < 0.4
        assert answered(client.infer("slow", given(FOUR)))
        client.close()


def answered(answer: Answer) -> bool:
    return np.array_equal(answer.outputs["OUT"], FOUR)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("elements", [16, 500_000])
def test_grpc_s_own_compression_is_understood(endpoint: Endpoint, algorithm: str, elements: int) -> None:
    array = np.arange(elements, dtype=np.float32)
    for way in sorted(name for name in WAYS if name.startswith("grpc") and "stream" not in name):
        client = WAYS[way](endpoint)
        assert isinstance(client, GrpcClient)
        answer = client.infer("id_fp32", given(array), compression_algorithm=algorithm)
        np.testing.assert_array_equal(answer.outputs["OUT"], array)
        client.close()
