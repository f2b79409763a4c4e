"""Pictures on their way through replicas and the router: what clients get, and what is evidence of what."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.preprocess import Preprocess
from models.preprocess.contract import Step
from models.preprocess.image import ImageStep
from models.spec import ModelSpec, TensorSpec
from models.tensor import Array, Tensor, encode_bytes
from rollout.traffic import Priority
from serving.errors import InvalidArgumentError, ModelFailedError
from serving.protocol.messages import InferRequest, InferResponse
from serving.replica import Worker
from shadow.pair import Status
from tests.models.pictures import encoded, header, noise, png, step_spec
from tests.serving.doubler import BASELINE, CANDIDATE, MODEL, RAISES, Doubler, spec_of
from tests.serving.stage import Stage
from tests.serving.test_replica import Client

BROKEN = b"\x89PNG, but not really"
BOMB = png(header(9000, 9000), b"")
PIXELS = [noise(2, 2, 1, seed=seed) for seed in range(8)]
PICTURES = [encoded(pixels) for pixels in PIXELS]


def picture_spec(version: int = BASELINE, **settings: Any) -> ModelSpec:
    """``m``: a grey picture of 2 × 2 pixels → twice their values."""
    step = step_spec((-1, 1, 2, 2), "FP32", **{"mode": "L", "divide_by": 1, **settings})
    return replace(
        spec_of(version),
        inputs=(TensorSpec(name="x", datatype="BYTES", shape=(-1, 1)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1, 2, 2)),),
        preprocess=(replace(step, input="x"),),
    )


def preprocess_of(spec: ModelSpec, *steps: Step) -> Preprocess:
    return Preprocess(spec, steps or [ImageStep(step) for step in spec.preprocess])


def doubled(answer: Array, *pictures: int) -> bool:
    """Whether it is the right answer to these of the pictures."""
    return np.array_equal(answer[:, 0], [PIXELS[at] * 2.0 for at in pictures])


# A replica


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client(tmp_path / "replicas")
    yield made
    made.close()


@pytest.fixture
def backend(client: Client) -> Iterator[Doubler]:
    """The backend of a replica that the client talks to."""
    yield from replica(client)


def replica(client: Client, *steps: Step) -> Iterator[Doubler]:
    spec, backend = picture_spec(), Doubler()
    worker = Worker(
        replica_id="r",
        spec=spec,
        backend=backend,
        preprocess=preprocess_of(spec, *steps),
        directory=client.directory,
        priority=Priority.NORMAL,
        timeout_s=30,
        exit_process=lambda status: None,
    )
    worker.start()
    yield backend
    worker.stop()


def requests(*pictures: bytes | list[bytes]) -> list[dict[str, Array]]:
    """A request for each picture, or for some pictures together."""
    made = []
    for each in pictures:
        column = np.empty((len(each) if isinstance(each, list) else 1, 1), dtype=object)
        column[:, 0] = each if isinstance(each, list) else [each]
        made.append({"x": column})
    return made


def test_pictures_are_decoded_before_the_model_and_the_time_that_takes_is_a_stage_of_its_own(
    client: Client, backend: Doubler
) -> None:
    head, results = client.ask(requests(*PICTURES), datatype="BYTES")
    assert all(doubled(result.outputs["y"].numpy(), at) for at, result in enumerate(results))
    assert backend.batches == [len(PICTURES)]
    assert head.preprocess_us > 0


def test_a_model_without_preprocessing_spends_no_time_on_it(tmp_path: Path, client: Client) -> None:
    worker = Worker(
        replica_id="r",
        spec=spec_of(),
        backend=Doubler(),
        directory=client.directory,
        priority=Priority.NORMAL,
        timeout_s=30,
        exit_process=lambda status: None,
    )
    worker.start()
    head, _ = client.ask([{"x": np.ones((1, 2), np.float32)}])
    worker.stop()
    assert head.preprocess_us <= 50


@pytest.mark.parametrize("bad", [[0], [3], [7], [1, 2, 6], list(range(8))])
def test_broken_pictures_are_rejected_alone_and_the_others_run_as_one_batch(
    client: Client, backend: Doubler, bad: list[int]
) -> None:
    sent = [BROKEN if at in bad else picture for at, picture in enumerate(PICTURES)]
    _, results = client.ask(requests(*sent), datatype="BYTES", measure=True)
    assert [result.status for result in results] == [Status.REJECTED if at in bad else Status.OK for at in range(8)]
    assert backend.batches == ([8 - len(bad)] if len(bad) < 8 else [])
    for at, result in enumerate(results):
        if at in bad:
            assert result.error == "input 'x': expected a JPEG or PNG that can be read"
        else:
            assert doubled(result.outputs["y"].numpy(), at)


def test_one_broken_picture_rejects_its_whole_request(client: Client, backend: Doubler) -> None:
    sent = requests(PICTURES[:2], [PICTURES[2], BROKEN], PICTURES[3:6])
    _, results = client.ask(sent, datatype="BYTES")
    assert [result.status.value for result in results] == ["ok", "rejected", "ok"]
    assert results[1].error == "input 'x': item 1: expected a JPEG or PNG that can be read"
    assert doubled(results[0].outputs["y"].numpy(), 0, 1)
    assert doubled(results[2].outputs["y"].numpy(), 3, 4, 5)
    assert backend.batches == [5]


def test_a_decompression_bomb_is_rejected_like_any_other_broken_picture(client: Client, backend: Doubler) -> None:
    _, (rejected, answered) = client.ask(requests(BOMB, PICTURES[1]), datatype="BYTES")
    assert (rejected.status, answered.status) == (Status.REJECTED, Status.OK)
    assert rejected.error == "input 'x': expected at most 32000000 pixels, got 9000 x 9000"


class Raising:
    """A step of a user that raises what it is told to, or decodes half of the values that the doubler fails on."""

    def fill(self, element: bytes, row: Array) -> None:
        if element == b"raise":
            raise KeyError("first line\nsecond line")
        row[...] = float(element)


def test_what_a_users_step_raises_is_the_failure_of_the_model_and_of_one_request(client: Client) -> None:
    for backend in replica(client, Raising()):
        sent = requests(b"1", b"raise", f"{RAISES}".encode(), b"2", b"3")
        _, results = client.ask(sent, datatype="BYTES")
        assert [result.status.value for result in results] == ["ok", "error", "error", "ok", "ok"]
        assert results[1].error == r"KeyError: 'first line\nsecond line'"
        assert results[2].error == "BackendError: no such weight"
        assert [results[at].outputs["y"].numpy()[0, 0, 0, 0] for at in (0, 3, 4)] == [2, 4, 6]
        assert backend.batches[0] == 4


# The router


def request_of(at: int, picture: bytes | None = None, **fields: Any) -> InferRequest:
    tensor = Tensor("x", "BYTES", (1, 1), encode_bytes([PICTURES[at] if picture is None else picture]))
    return InferRequest(model=MODEL, inputs={"x": tensor}, **{"request_id": f"r-{at}", "key": f"k-{at}", **fields})


async def rehearsing(stage: Stage, *, weight: int = 0, **settings: Any) -> None:
    """Two versions that take pictures, the candidate with other settings, and both again in shadow."""
    stage.table(weight=weight)
    baseline, other = picture_spec(), picture_spec(CANDIDATE, **settings)
    stage.thread(BASELINE, spec=baseline, preprocess=preprocess_of(baseline))
    stage.thread(BASELINE, spec=baseline, preprocess=preprocess_of(baseline), priority=Priority.SHADOW)
    stage.thread(CANDIDATE, spec=other, preprocess=preprocess_of(other), priority=Priority.SHADOW)
    if weight:
        stage.thread(CANDIDATE, spec=other, preprocess=preprocess_of(other))
    await stage.cast(BASELINE, CANDIDATE)
    await stage.in_shadow(2)


def requests_of(stage: Stage, version: int, outcome: str) -> float | None:
    """How many requests of a version the metrics count with an outcome."""
    labels = {"model": MODEL, "version": str(version), "outcome": outcome}
    return stage.registry.get_sample_value("understudy_requests_total", labels)


async def answers(stage: Stage, *sent: InferRequest) -> list[InferResponse | BaseException]:
    return await asyncio.gather(*(stage.router.infer(each) for each in sent), return_exceptions=True)


async def test_a_candidate_may_see_other_pixels_of_the_same_mirrored_bytes(stage: Stage) -> None:
    await rehearsing(stage, invert=True, resize="stretch")
    for at, answer in enumerate(await answers(stage, *map(request_of, range(8)))):
        assert isinstance(answer, InferResponse)
        assert doubled(answer.outputs["y"].numpy(), at)
    sums = await stage.sums()
    assert (sums.pairs, sums.items, sums.candidate.failures) == (8, 8, 0)
    assert sums.delta_over == 8


@pytest.mark.parametrize("weight", [0, 100])
async def test_a_picture_that_neither_version_can_read_is_its_client_s_fault_alone(stage: Stage, weight: int) -> None:
    await rehearsing(stage, weight=weight)
    sent = [request_of(at, BROKEN if at in (2, 5) else None) for at in range(8)]
    got = await answers(stage, *sent)
    for at, answer in enumerate(got):
        if at in (2, 5):
            assert isinstance(answer, InvalidArgumentError)
            assert str(answer) == "model 'm': input 'x': expected a JPEG or PNG that can be read"
        else:
            assert isinstance(answer, InferResponse)
            assert doubled(answer.outputs["y"].numpy(), at)
    sums = await stage.sums()
    assert (sums.pairs, sums.items) == (6, 6)
    for arm in (sums.baseline, sums.candidate):
        assert (arm.requests, arm.failures) == (6, 0)
    assert (sums.baseline if weight == 0 else sums.candidate).answers == 6
    account = await stage.account()
    assert account.balanced
    assert account.failed == 0
    version = BASELINE if weight == 0 else CANDIDATE  # which the split had chosen for it
    assert (requests_of(stage, version, "rejected"), requests_of(stage, version, "error")) == (2, 0)
    for each in (BASELINE, CANDIDATE):
        assert stage.router.statistics.of(MODEL, each)["inference_stats"]["fail"]["count"] == 0


async def test_a_picture_that_the_candidate_alone_refuses_is_the_candidate_s_error_in_shadow(stage: Stage) -> None:
    await rehearsing(stage, max_bytes=1)
    got = await answers(stage, *map(request_of, range(4)))
    assert all(isinstance(answer, InferResponse) for answer in got)
    sums = await stage.sums()
    assert (sums.candidate.requests, sums.candidate.errors, sums.candidate_only_failed) == (4, 4, 4)
    assert (sums.baseline.failures, stage.lane.account().failed) == (0, 4)


async def test_in_canary_the_baseline_answers_what_the_candidate_alone_refuses_and_that_is_counted(
    stage: Stage,
) -> None:
    await rehearsing(stage, weight=100, max_bytes=1)
    got = await answers(stage, *map(request_of, range(4)))
    assert [answer.version for answer in got if isinstance(answer, InferResponse)] == [BASELINE] * 4
    sums = await stage.sums()
    assert (sums.candidate.errors, sums.candidate.answers_failed, sums.baseline.failures) == (4, 4, 0)


async def test_a_picture_that_the_baseline_alone_refuses_is_no_fault_of_the_candidate(stage: Stage) -> None:
    await rehearsing(stage, resize="stretch")
    (refused,) = await answers(stage, request_of(0, encoded(noise(3, 3, 1))))
    assert isinstance(refused, InvalidArgumentError)
    sums = await stage.sums()
    assert (sums.candidate.requests, sums.candidate.failures, sums.baseline.errors) == (1, 0, 1)


async def test_a_pinned_client_hears_from_the_candidate_itself(stage: Stage) -> None:
    await rehearsing(stage, max_bytes=1)
    (refused,) = await answers(stage, request_of(0, version=CANDIDATE))
    assert isinstance(refused, InvalidArgumentError)
    assert not isinstance(refused, ModelFailedError)
