from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.errors import BackendError, RejectedInputError
from models.repository import ModelVersion, Repository, open_version
from models.spec import StepSpec
from models.tensor import Array, from_numpy
from shadow.errors import EvidenceError, ShadowError
from shadow.exemplars import Exemplar
from shadow.pair import Answer, Status
from shadow.replay import LocalModel, Replayed, Yardstick, mean_delta, recorded_yardstick, replay
from shadow.rows import SCHEMA
from shadow.store import Kind, SegmentWriter, segment_name
from tests.models.making import tensor, write_version
from tests.models.pictures import encoded
from tests.shadow.builders import DEPLOYMENT, PARAMETERS, bad, header, ok, simple_pair, write_chain

REPOSITORY = Repository(Path(__file__).parents[2] / "examples" / "model_repository")
SCORES = Yardstick(output="scores")
OUT = Yardstick(output="OUT")
MODULE = "tests.shadow.test_replay"
BROKEN, MISSHAPEN = 13.0, 14.0


class Choosy:
    """Answers its input plus 1 per version over 1; raises over one number, and answers another with too much."""

    def __init__(self, version: ModelVersion) -> None:
        self._plus = version.spec.version - 1
        self.closed = False

    def load(self) -> None:
        pass

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        values = inputs["IN"]
        if (values == BROKEN).any():
            raise RuntimeError("unlucky")
        if (values == MISSHAPEN).any():
            return {"OUT": values[:, :1]}
        return {"OUT": values + np.float32(self._plus)}

    def close(self) -> None:
        self.closed = True


class Unloadable(Choosy):
    closings: list[int] = []  # noqa: RUF012 - how a test learns of it

    def load(self) -> None:
        raise BackendError("cannot load")

    def close(self) -> None:
        self.closings.append(1)


class Picky:
    """A step that takes no empty element, and breaks on one."""

    def __init__(self, step: StepSpec) -> None:
        pass

    def fill(self, element: bytes, row: Array) -> None:
        if not element:
            raise RejectedInputError("it is empty")
        if element == b"bomb":
            raise RuntimeError("boom")
        row[...] = len(element)


class Noting(LocalModel):
    """Notes the rows of the batches that it runs."""

    def __init__(self, version: ModelVersion, backends: Mapping[str, str] | None = None) -> None:
        super().__init__(version, backends)
        self.ran: list[int] = []

    def answers(self, batch: Sequence[Exemplar]) -> list[Answer]:
        self.ran.append(sum(each.rows for each in batch))
        return super().answers(batch)


def recorded(request_id: str, name: str, datatype: str, array: Array, answer: Answer, **changes: object) -> Exemplar:
    one = Exemplar(
        request_id=request_id,
        deployment_id=DEPLOYMENT,
        chain="router",
        model="model",
        baseline_version=1,
        candidate_version=2,
        stage=0,
        at_unix_us=1_000_000,
        rows=len(array),
        max_delta=0.5,
        inputs=(from_numpy(name, datatype, array),),
        baseline=answer,
        candidate=bad(),
    )
    return replace(one, **changes)  # type: ignore[arg-type]


@contextmanager
def digits(version: int) -> Iterator[LocalModel]:
    with LocalModel(REPOSITORY.open("digits", version)) as model:
        yield model


@pytest.fixture(scope="module")
def pictures() -> list[Exemplar]:
    """Twenty requests of one to three digits each, with what version 1 makes of them."""
    random = np.random.default_rng(7)
    found = []
    with digits(1) as baseline:
        for number in range(20):
            image = random.integers(0, 17, (1 + number % 3, 1, 8, 8)).astype(np.float32)
            one = recorded(f"request-{number}", "image", "FP32", image, bad())
            (answer,) = baseline.answers([one])
            found.append(replace(one, baseline=answer))
    return found


ITEMS = sum(1 + number % 3 for number in range(20))


@pytest.fixture
def choosy(tmp_path: Path) -> Iterator[LocalModel]:
    with choosy_version(tmp_path, 1) as model:
        yield model


def choosy_version(root: Path, version: int, backend: str = "Choosy") -> LocalModel:
    folder = write_version(root, b"", version=version, backend="choosy")
    return LocalModel(open_version(folder), {"choosy": f"{MODULE}:{backend}"})


def numbers(*values: float) -> list[Exemplar]:
    """Requests of three equal numbers each, which the baseline answered with these numbers."""
    rows = [np.full((1, 3), value, np.float32) for value in values]
    return [
        recorded(str(at), "IN", "FP32", row, Answer(status=Status.OK, outputs={"OUT": row}))
        for at, row in enumerate(rows)
    ]


# What is compared


def test_a_candidate_that_is_the_baseline_differs_in_nothing(pictures: Sequence[Exemplar]) -> None:
    with digits(1) as candidate:
        found = replay(pictures, candidate, SCORES)
    assert found.ok
    assert (found.requests, found.unanswered, found.named) == (20, 0, ITEMS)
    assert (found.sums.items, found.sums.agree, found.sums.delta_max_e9) == (ITEMS, ITEMS, 0)
    assert mean_delta(found.sums) == 0.0
    assert found.failures == ()


def test_a_regressed_candidate_is_over_the_tolerance_and_its_worst_items_come_first(
    pictures: Sequence[Exemplar],
) -> None:
    with digits(4) as candidate:
        found = replay(pictures, candidate, SCORES)
    assert not found.ok
    assert found.sums.delta_over > ITEMS / 2
    deltas = [each.max_delta for each in found.worst]
    assert deltas == sorted(deltas, reverse=True)
    assert len(deltas) == 10
    assert deltas[0] == pytest.approx(found.sums.delta_max_e9 * 1e-9, abs=1e-9)
    assert {each.recorded_delta for each in found.worst} == {0.5}
    assert {each.request_id for each in found.worst} <= {each.request_id for each in pictures}


def test_differences_are_those_of_their_own_request_and_item(choosy: LocalModel) -> None:
    changed = [
        replace(each, baseline=Answer(status=Status.OK, outputs={"OUT": np.full((1, 3), 5 - at, np.float32)}))
        for at, each in enumerate(numbers(5, 5, 5))
    ]
    asked = [replace(each, max_delta=float(at)) for at, each in enumerate(changed)]
    found = replay(asked, choosy, OUT, batch_size=8)
    assert [(each.request_id, each.max_delta, each.recorded_delta) for each in found.worst] == [
        ("2", 2.0, 2.0),
        ("1", 1.0, 1.0),
        ("0", 0.0, 0.0),
    ]


def test_the_tolerance_decides(tmp_path: Path) -> None:
    with choosy_version(tmp_path, 2) as candidate:
        assert not replay(numbers(1, 2), candidate, replace(OUT, tolerance=0.99)).ok
        assert replay(numbers(1, 2), candidate, replace(OUT, tolerance=1.0)).ok


def test_the_baseline_run_again_is_the_noise_floor(pictures: Sequence[Exemplar], tmp_path: Path) -> None:
    with digits(4) as candidate, digits(1) as baseline:
        found = replay(pictures, candidate, SCORES, baseline=baseline)
    assert found.sums.items == found.sums.noise.items == ITEMS
    assert found.sums.delta_max_e9 > found.sums.noise.delta_max_e9 == 0
    with choosy_version(tmp_path, 1) as same, choosy_version(tmp_path, 2) as shifted:
        assert replay(numbers(1, 2), same, OUT, baseline=shifted).sums.noise.delta_over == 2


def test_batches_are_no_larger_than_asked_for_or_declared_and_change_no_figure(pictures: Sequence[Exemplar]) -> None:
    found, ran = {}, {}
    for size in (1, 4, 1000):
        with Noting(REPOSITORY.open("digits", 3)) as candidate:
            found[size], ran[size] = replay(pictures, candidate, SCORES, batch_size=size), candidate.ran
    assert ran[1] == [each.rows for each in pictures]
    assert (sum(ran[4]), max(ran[4])) == (ITEMS, 4)
    assert (sum(ran[1000]), len(ran[1000])) == (ITEMS, 2)  # 32 at most, as declared
    assert len({each.sums.items for each in found.values()}) == 1
    assert len({each.sums.agree for each in found.values()}) == 1
    assert found[1000].sums.delta_max_e9 == pytest.approx(found[1].sums.delta_max_e9, abs=1e3)  # a millionth


def test_requests_of_different_shapes_do_not_share_a_batch(tmp_path: Path) -> None:
    free: dict[str, Any] = {"inputs": [tensor("IN", "FP32", [-1, -1])], "outputs": [tensor("OUT", "FP32", [-1, -1])]}
    folder = write_version(tmp_path, b"", backend="choosy", **free)
    asked = [
        recorded(str(at), "IN", "FP32", row, Answer(status=Status.OK, outputs={"OUT": row}))
        for at, row in enumerate(np.full((1, width), width, np.float32) for width in (3, 3, 4, 4, 3))
    ]
    with Noting(open_version(folder), {"choosy": f"{MODULE}:Choosy"}) as model:
        found = replay(asked, model, OUT, batch_size=8)
    assert model.ran == [2, 2, 1]
    assert (found.sums.items, found.sums.delta_max_e9, found.failures) == (5, 0, ())


def test_a_model_without_a_batch_dimension_runs_one_request_at_a_time(tmp_path: Path) -> None:
    single: dict[str, Any] = {"inputs": [tensor("IN", "FP32", [1, 3])], "outputs": [tensor("OUT", "FP32", [1, 3])]}
    folder = write_version(tmp_path, b"", backend="choosy", max_batch_size=0, **single)
    with LocalModel(open_version(folder), {"choosy": f"{MODULE}:Choosy"}) as model:
        found = replay(numbers(1, 2, 3), model, OUT, batch_size=8)
    assert (found.sums.items, found.failures) == (3, ())


def test_a_request_that_was_kept_twice_is_run_once(choosy: LocalModel) -> None:
    asked = numbers(1, 2)
    assert replay([*asked, *asked], choosy, OUT).requests == 2


# What fails


@pytest.mark.parametrize("batch_size", [1, 8])
def test_who_is_at_fault_fails_alone(choosy: LocalModel, batch_size: int) -> None:
    found = replay(numbers(1, BROKEN, 2, MISSHAPEN, 3), choosy, OUT, batch_size=batch_size)
    assert not found.ok
    assert (found.sums.items, found.sums.candidate.errors, found.sums.candidate.malformed) == (3, 1, 1)
    assert [(each.request_id, each.status) for each in found.failures] == [
        ("1", Status.ERROR),
        ("3", Status.MALFORMED),
    ]
    assert "RuntimeError: unlucky" in found.failures[0].error
    assert "shape" in found.failures[1].error


def test_a_candidate_that_fails_everything_is_not_good(choosy: LocalModel) -> None:
    found = replay(numbers(*[BROKEN] * 12), choosy, OUT)
    assert not found.ok
    assert found.sums.candidate.errors == 12
    assert len(found.failures) == 10


def test_an_input_that_is_missing_is_the_candidates_error(choosy: LocalModel) -> None:
    asked = [recorded("a", "ANOTHER", "FP32", np.ones((1, 3), np.float32), ok([1, 1, 1]))]
    (failure,) = replay(asked, choosy, Yardstick(output="scores")).failures
    assert failure.status is Status.ERROR


def test_what_the_baseline_never_answered_is_counted_and_compares_to_nothing(choosy: LocalModel) -> None:
    asked = [replace(each, baseline=bad(Status.TIMEOUT)) for each in numbers(1, 2)]
    found = replay(asked, choosy, OUT)
    assert (found.requests, found.unanswered, found.sums.items) == (2, 2, 0)
    assert not found.ok
    assert mean_delta(found.sums) is None
    mixed = replay([*asked, *(replace(each, request_id="x") for each in numbers(3))], choosy, OUT)
    assert (mixed.unanswered, mixed.sums.items) == (2, 1)
    assert mixed.ok


def test_nothing_to_replay_is_not_good(choosy: LocalModel) -> None:
    assert not replay([], choosy, OUT).ok
    assert replay([], choosy, OUT) == Replayed()


def test_a_picture_goes_through_the_candidates_preprocessing() -> None:
    picture = np.array([[encoded(np.full((8, 8), 255, np.uint8))]], object)
    broken = np.array([[b"no picture"]], object)
    with LocalModel(REPOSITORY.open("digits-image", 1)) as model:
        one = recorded("good", "picture", "BYTES", picture, bad())
        (answer,) = model.answers([one])
        assert answer.status is Status.OK
        asked = [replace(one, baseline=answer), recorded("broken", "picture", "BYTES", broken, answer)]
        found = replay(asked, model, SCORES, batch_size=8)
    assert (found.sums.items, found.sums.delta_max_e9) == (1, 0)
    assert [(each.request_id, each.status) for each in found.failures] == [("broken", Status.ERROR)]


def test_a_users_own_step_fails_one_request_alone(tmp_path: Path) -> None:
    folder = write_version(
        tmp_path,
        b"",
        backend="choosy",
        inputs=[tensor("TEXT", "BYTES", [-1, 1])],
        preprocess={"TEXT": {"kind": "picky", "tensor": tensor("IN", "FP32", [-1, 3])}},
    )
    answer = Answer(status=Status.OK, outputs={"OUT": np.full((1, 3), 4, np.float32)})
    asked = [
        recorded(text.decode() or "empty", "TEXT", "BYTES", np.array([[text]], object), answer)
        for text in (b"four", b"", b"five", b"bomb")
    ]
    version = open_version(folder)
    with LocalModel(version, {"choosy": f"{MODULE}:Choosy"}, {"picky": f"{MODULE}:Picky"}) as model:
        found = replay(asked, model, OUT, batch_size=4)
    assert (found.sums.items, found.sums.delta_max_e9) == (2, 0)
    assert [each.request_id for each in found.failures] == ["empty", "bomb"]


def test_a_comparator_that_fails_is_one_error(choosy: LocalModel) -> None:
    poisoned = replace(OUT, comparator="tests.shadow.comparators_for_tests:Poisoned")
    with pytest.raises(ShadowError, match="the comparator failed: RuntimeError"):
        replay(numbers(666.0), choosy, poisoned)


def test_a_version_that_cannot_be_loaded_is_closed_again(tmp_path: Path) -> None:
    Unloadable.closings.clear()
    with pytest.raises(BackendError, match="cannot load"), choosy_version(tmp_path, 1, "Unloadable"):
        raise AssertionError("it was loaded")
    assert Unloadable.closings == [1]


# The yardstick


def test_the_yardstick_is_the_one_of_the_recorded_pairs(tmp_path: Path) -> None:
    assert recorded_yardstick(tmp_path / "nothing") is None
    labels = header("labels", kind=Kind.LABELS, comparator="embedding", output="vector")
    SegmentWriter(tmp_path, labels).write(SCHEMA.empty_table())
    assert recorded_yardstick(tmp_path) is None
    write_chain(tmp_path, [[simple_pair("a")], [simple_pair("b")]])
    assert recorded_yardstick(tmp_path) == Yardstick(
        comparator="classification", output="scores", parameters=PARAMETERS, tolerance=1e-3
    )


def test_a_damaged_segment_is_named(tmp_path: Path) -> None:
    write_chain(tmp_path, [[simple_pair("a")]])
    (tmp_path / segment_name("router", 1)).write_bytes(b"PAR1")
    with pytest.raises(EvidenceError, match=r"router-000001\.parquet"):
        recorded_yardstick(tmp_path)
