from typing import Any

import numpy as np
import pytest

from models.tensor import from_numpy
from serving.dataplane import DataPlane, IndexEntry, request_ids
from serving.errors import InvalidArgumentError, ModelFailedError, NotFoundError, UnavailableError
from serving.protocol.messages import InferRequest, InferResponse, RequestedOutput
from tests.serving.echo_engine import EchoEngine, spec_of


def request(**fields: Any) -> InferRequest:
    tensor = from_numpy("IN", "FP32", np.array([[0.25, 0.75]], np.float32))
    return InferRequest(**({"model": "m", "inputs": {"IN": tensor}} | fields))


async def completed(**fields: Any) -> InferRequest:
    """The request as it reaches the engine."""
    engine = EchoEngine()
    await DataPlane(engine, ids=request_ids("p")).infer(request(**fields))
    return engine.seen[0]


async def test_a_request_without_id_gets_a_unique_one() -> None:
    engine = EchoEngine()
    plane = DataPlane(engine)
    for _ in range(3):
        await plane.infer(request())
    ids = {seen.request_id for seen in engine.seen}
    assert len(ids) == 3
    assert all(seen.id == "" and seen.key == seen.request_id for seen in engine.seen)
    assert not ids & {DataPlane(engine).new_request_id() for _ in range(3)}


async def test_the_client_s_id_is_the_request_s_id() -> None:
    assert (await completed(id="mine")).request_id == "mine"
    assert (await completed(id="mine", request_id="ours")).request_id == "mine"
    assert (await completed(request_id="ours")).request_id == "ours"


@pytest.mark.parametrize(
    ("parameters", "header_key", "key"),
    [
        ({"sequence_id": 7}, "", "7"),
        ({"sequence_id": "camera"}, "header", "camera"),
        ({"sequence_id": 0}, "header", "header"),
        ({"sequence_id": ""}, "", "mine"),
        ({}, "header", "header"),
        ({}, "", "mine"),
    ],
)
async def test_the_routing_key_is_the_sequence_else_the_header_s_else_the_id(
    parameters: dict[str, Any], header_key: str, key: str
) -> None:
    assert (await completed(id="mine", parameters=parameters, key=header_key)).key == key


async def test_the_timeout_parameter_is_in_microseconds() -> None:
    assert (await completed(parameters={"timeout": 1500})).timeout_s == 0.0015
    assert (await completed(parameters={"timeout": 0})).timeout_s is None
    assert (await completed()).timeout_s is None


@pytest.mark.parametrize("arm", ["baseline", "candidate"])
async def test_an_arm_reaches_the_engine(arm: str) -> None:
    assert (await completed(arm=arm)).arm == arm


async def test_an_unknown_arm_or_one_beside_a_version_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'Baseline'"):
        await completed(arm="Baseline")
    with pytest.raises(InvalidArgumentError, match="exclude"):
        await completed(arm="baseline", version=1)


async def test_a_request_is_checked_before_it_reaches_the_engine() -> None:
    engine = EchoEngine()
    with pytest.raises(InvalidArgumentError, match="missing 'IN'"):
        await DataPlane(engine).infer(request(inputs={}))
    assert engine.seen == []


async def test_unknown_models_and_versions_are_named() -> None:
    plane = DataPlane(EchoEngine(spec_of(1), spec_of(2)))
    with pytest.raises(NotFoundError, match="unknown model 'x'"):
        await plane.infer(request(model="x"))
    with pytest.raises(NotFoundError, match="'m' has no version 9; it has 1, 2"):
        await plane.infer(request(version=9))
    with pytest.raises(NotFoundError, match="'x'"):
        plane.model_metadata("x")
    with pytest.raises(NotFoundError, match="9"):
        plane.model_config("m", 9)


async def test_a_model_whose_baseline_has_no_replica_is_unavailable_not_unknown() -> None:
    engine = EchoEngine(spec_of(2))
    with pytest.raises(UnavailableError, match="'m'"):
        await DataPlane(engine).infer(request())
    assert (await DataPlane(engine).infer(request(version=2))).version == 2


async def test_the_version_that_answered_is_said() -> None:
    plane = DataPlane(EchoEngine(spec_of(1), spec_of(2), answering=2))
    assert (await plane.infer(request())).version == 2
    assert (await plane.infer(request(version=1))).version == 1


async def test_labels_are_those_of_the_version_that_answered() -> None:
    asked = [RequestedOutput(name="OUT", classification=1)]
    engine = EchoEngine(spec_of(1, labels=("a", "b")), spec_of(2, labels=("c", "d")), answering=2)
    answer = await DataPlane(engine).infer(request(), asked)
    assert answer.outputs["OUT"].numpy().tolist() == [[b"0.750000:1:d"]]


async def test_a_version_that_went_away_as_it_answered_still_counts() -> None:
    asked = [RequestedOutput(name="OUT", classification=1)]
    answer = await DataPlane(EchoEngine(spec_of(1, labels=("a", "b")), answering=2)).infer(request(), asked)
    assert answer.outputs["OUT"].numpy().tolist() == [[b"0.750000:1:b"]]


async def test_an_answer_without_the_output_is_the_model_s_failure() -> None:
    class Forgetful(EchoEngine):
        async def infer(self, request: InferRequest) -> InferResponse:
            return InferResponse(model="m", version=1, outputs={})

    with pytest.raises(ModelFailedError, match="gave no output 'OUT'"):
        await DataPlane(Forgetful()).infer(request(), [RequestedOutput(name="OUT")])


async def test_a_version_that_changes_its_signature_is_checked_anew() -> None:
    engine = EchoEngine(spec_of(1, max_batch_size=1))
    plane = DataPlane(engine)
    two = {"IN": from_numpy("IN", "FP32", np.zeros((2, 2), np.float32))}
    with pytest.raises(InvalidArgumentError, match="batch of 1 to 1"):
        await plane.infer(request(inputs=two))
    engine.specs = {1: spec_of(1, max_batch_size=2)}
    assert (await plane.infer(request(inputs=two))).outputs["OUT"].shape == (2, 2)


def test_readiness_follows_the_engine() -> None:
    engine = EchoEngine(spec_of(1), spec_of(2))
    plane = DataPlane(engine)
    assert plane.live()
    assert plane.ready()
    assert plane.model_ready("m")
    assert plane.model_ready("m", 2)
    assert not plane.model_ready("m", 3)
    assert not plane.model_ready("x")
    engine.is_ready = False
    assert plane.live()
    assert not plane.ready()
    assert not plane.model_ready("m")
    assert not plane.model_ready("m", 2)


def test_a_server_that_knows_no_model_is_not_ready() -> None:
    class Empty(EchoEngine):
        def models(self) -> dict[str, Any]:
            return {}

    assert not DataPlane(Empty()).ready()


def test_the_index_lists_versions_in_order() -> None:
    plane = DataPlane(EchoEngine(spec_of(10), spec_of(9)))
    assert plane.repository_index() == [
        IndexEntry(name="m", version=9, ready=True),
        IndexEntry(name="m", version=10, ready=True),
    ]


def test_metadata_is_that_of_the_version_asked_for() -> None:
    plane = DataPlane(EchoEngine(spec_of(1), spec_of(2, max_batch_size=7)))
    assert plane.model_metadata("m")["versions"] == ["1", "2"]
    assert plane.model_config("m")["max_batch_size"] == 4
    assert plane.model_config("m", 2)["max_batch_size"] == 7
    assert plane.model_config("m", 2)["dynamic_batching"] == {}
