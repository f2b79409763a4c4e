"""A candidate whose declared memory is not free is refused, and loads nothing; clients' replicas go on."""

import asyncio
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from models.spec import Resources
from rollout.errors import RolloutError
from rollout.traffic import Priority, Readiness
from serving import cli
from serving.admin import create_app
from serving.errors import ConfigError
from serving.operations import Start
from tests.serving.control_room import Office, door, write_version
from tests.serving.doubler import MODEL
from tests.serving.stage import config_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # ray's own, as it is imported
    from serving.launch import check

GIB: Final = 1 << 30
BASELINE: Final = (MODEL, 1, Priority.NORMAL)
IN_SHADOW: Final = {(MODEL, 1, Priority.SHADOW), (MODEL, 2, Priority.SHADOW)}


class Free:
    """Room of a given size, which a test may change."""

    def __init__(self, memory: int = 1 << 50, *gpus: int) -> None:
        self.main, self.devices = memory, gpus

    def memory(self) -> int:
        return self.main

    def gpus(self) -> Sequence[int]:
        return self.devices


@contextmanager
def opened(
    folder: Path, candidate: dict[str, Any], *, baseline: dict[str, Any] | None = None, **model: Any
) -> Iterator[Office]:
    """The control side with a baseline and a candidate that declare these resources."""
    for version, resources in ((1, baseline or {}), (2, candidate), (3, {})):
        write_version(folder / "repository", version, resources=resources)
    made = Office(config_of(folder, **model), folder)
    yield made
    made.close()


def start(office: Office, *, candidate: int = 2, supersede: bool = False) -> None:
    """Start a rollout, and let the controller look at it once."""
    office.operations.start(Start(model=MODEL, candidate=candidate, policy="equivalence", supersede=supersede))
    office.controller.tick()


def test_all_replicas_that_a_rollout_will_add_must_fit_beside_what_runs(tmp_path: Path) -> None:
    needs = {"gpu_memory": "1GiB"}
    with opened(tmp_path, needs, baseline={"gpu_memory": "2GiB"}, replicas={"num_replicas": 2}) as office:
        # Two of the candidate in shadow, two for clients, and two twins of the baseline.
        office.host.free = Free(0, 8 * GIB - 1)
        before = office.host.hosted()
        with pytest.raises(RolloutError) as refused:
            start(office)
        assert str(refused.value) == (
            "m: no room to load version 2 beside the baseline: "
            "it needs 8192 MiB of GPU memory for 6 replicas (free: 8191 MiB)"
        )
        assert office.host.hosted() == before == {BASELINE: (Readiness.READY, "")}
        assert office.journal.active(MODEL) is None
        office.host.free = Free(0, 8 * GIB)
        start(office)
        assert set(office.host.hosted()) == {BASELINE, *IN_SHADOW}


def test_without_a_twin_the_baseline_needs_nothing_more(tmp_path: Path) -> None:
    with opened(tmp_path, {"memory": "1GiB"}, baseline={"memory": "2GiB"}, mirror={"twin": 0}) as office:
        office.host.free = Free(2 * GIB)
        start(office)
        assert set(office.host.hosted()) == {BASELINE, (MODEL, 2, Priority.SHADOW)}


def test_what_lacks_of_memory_is_said_beside_what_else_lacks(tmp_path: Path) -> None:
    with opened(tmp_path, {"memory": "1GiB"}) as office:
        office.host.missing, office.host.free = "1 CPU (free: 0.5)", Free(GIB)
        with pytest.raises(
            RolloutError, match=r"needs 1 CPU \(free: 0.5\) and 2048 MiB of memory for 2 replicas \(free"
        ):
            start(office)


def test_who_declares_nothing_is_not_measured(tmp_path: Path) -> None:
    with opened(tmp_path, {}) as office:
        office.host.free = Free(0)
        start(office)
        assert set(office.host.hosted()) == {BASELINE, *IN_SHADOW}


def test_where_there_are_several_machines_each_replica_sees_to_its_own_room(tmp_path: Path) -> None:
    with opened(tmp_path, {"memory": "1GiB"}) as office:
        office.host.free = None
        start(office)
        assert set(office.host.hosted()) == {BASELINE, *IN_SHADOW}


def test_the_command_of_a_refused_rollout_ends_with_status_2_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, {"memory": "1GiB"}) as office, door(office) as url:
        office.host.free = Free(GIB)
        monkeypatch.setattr(sys, "argv", ["understudy", "rollout", "start", MODEL, "--candidate=2", f"--admin={url}"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr() == (
        "",
        "understudy: m: no room to load version 2 beside the baseline: "
        "it needs 2048 MiB of memory for 2 replicas (free: 1024 MiB)\n",
    )


def test_the_admin_door_refuses_with_400(tmp_path: Path) -> None:
    with opened(tmp_path, {"gpu_memory": "1GiB"}) as office:
        office.host.free = Free(GIB)
        transport = httpx.ASGITransport(create_app(office.operations, token=None))

        async def post() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://door") as client:
                return await client.post("/rollouts", json={"model": MODEL, "candidate": 2, "policy": "equivalence"})

        response = asyncio.run(post())
    assert response.status_code == 400
    assert "1024 MiB of memory on one GPU (free: 0 MiB)" in response.json()["error"]


def test_a_superseding_rollout_waits_for_the_room_of_the_one_before_it(tmp_path: Path) -> None:
    with opened(tmp_path, {"memory": "2GiB"}) as office:
        start(office, candidate=3)
        free = office.host.free = Free(GIB)
        start(office, supersede=True)
        assert (MODEL, 2, Priority.SHADOW) not in office.host.hosted()
        said = office.traffic.load(MODEL, 2, Priority.SHADOW)
        lacking = "it needs 2048 MiB of memory (free: 1024 MiB)"
        assert said == (Readiness.LOADING, f"no room to load version 2 beside the baseline: {lacking}")
        free.main = 2 * GIB
        assert office.traffic.load(MODEL, 2, Priority.SHADOW) == (Readiness.READY, "")


def test_before_a_candidate_takes_clients_there_must_be_room_for_its_replicas_that_answer_them(tmp_path: Path) -> None:
    with opened(tmp_path, {"gpu_memory": "1GiB"}) as office:
        free = office.host.free = Free(0, 2 * GIB)
        start(office)
        free.devices = (GIB - 1,)  # somebody else has come
        readiness, why = office.traffic.load(MODEL, 2, Priority.NORMAL)
        assert (readiness, (MODEL, 2, Priority.NORMAL) in office.host.hosted()) == (Readiness.LOADING, False)
        assert "needs 1024 MiB of memory on one GPU (free: 1023 MiB)" in why
        free.devices = (GIB,)
        assert office.traffic.load(MODEL, 2, Priority.NORMAL) == (Readiness.READY, "")


def test_what_is_loaded_stays_when_the_machine_has_filled_up_since(tmp_path: Path) -> None:
    with opened(tmp_path, {"memory": "1GiB"}) as office:
        free = office.host.free = Free(4 * GIB)
        start(office)
        free.main = 0
        assert office.traffic.load(MODEL, 2, Priority.SHADOW) == (Readiness.READY, "")
        assert set(office.host.hosted()) == {BASELINE, *IN_SHADOW}


def test_a_version_that_declares_more_than_its_replicas_may_have_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path, {"memory": "3GiB"}) as office:
        with pytest.raises(RolloutError) as refused:
            start(office)
        assert str(refused.value) == (
            "m: models.m.replicas.memory_limit: "
            "expected at least the resources.memory of version 2, 3072 MiB, got 2048 MiB"
        )


def test_a_baseline_that_declares_more_than_its_replicas_may_have_is_refused_at_the_start(tmp_path: Path) -> None:
    write_version(tmp_path / "repository", 1, resources={"memory": 2 * GIB + 1})
    config = config_of(tmp_path)
    ports = {name: 20_000 + at for at, name in enumerate(("http_port", "grpc_port", "metrics_port", "admin_port"))}
    config = config.model_copy(update={"server": config.server.model_copy(update=ports)})
    expected = r"models\.m\.replicas\.memory_limit: expected at least the resources\.memory of version 1, 2049 MiB, got"
    with pytest.raises(ConfigError, match=expected):
        check(config)


def test_a_model_yaml_that_is_wrong_by_now_declares_nothing_and_is_left_to_its_replicas(tmp_path: Path) -> None:
    with opened(tmp_path, {"memory": "1GiB"}) as office:
        (tmp_path / "repository" / MODEL / "2" / "model.yaml").write_text("backend: [")
        office.host.free = Free(0)
        assert office.traffic.lacks(MODEL, 2) == ""
        assert office.traffic._declared(MODEL, 1) == Resources()
