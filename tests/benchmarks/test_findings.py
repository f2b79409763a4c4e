from typing import Any

import pytest

from benchmarks.findings import VERSIONS, Plan, World, measure, missed, render, trace
from shadow.findings import FINDINGS


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return measure(Plan(seeds=2, noise_runs=2, requests=2000))


def test_every_planted_fault_is_named_and_nothing_is_reported_without_one(document: dict[str, Any]) -> None:
    assert missed(document) == []
    assert {row["finding"] for row in document["planted"]} == set(FINDINGS)
    assert len(document["clean"]) == len(FINDINGS) + 1 + len(VERSIONS)
    assert all(row["marked_requests"] == 0 for row in document["clean"])
    assert document["noise"]["of_the_twin"] > 0


def test_what_was_missed_is_said(document: dict[str, Any]) -> None:
    planted, clean = document["planted"][0], document["clean"][0]
    silent = {**document, "planted": [{**planted, "reported": 1}], "clean": [clean]}
    misnamed = {**document, "planted": [{**planted, "reported_otherwise": 1}], "clean": [clean]}
    alarmed = {**document, "planted": [planted], "clean": [{**clean, "reported": 1}]}
    assert [len(missed(each)) for each in (silent, misnamed, alarmed)] == [1, 1, 1]
    assert missed(alarmed)[0] in render(alarmed)
    assert document["environment"]["commit"][:12] in render(document)


def test_a_run_is_the_same_for_the_same_seed_and_plants_what_it_says(world: World) -> None:
    fault = world.faults()[0]
    first, second, other = (trace(world, seed, 400, fault=fault, share=0.05) for seed in (1, 1, 2))
    assert first == second != other
    assert first.planted == first.marked == first.seen[fault.finding] == 20


def test_a_fault_that_every_request_has_is_reported_within_a_few(world: World) -> None:
    for fault in world.faults():
        run = trace(world, 5, 100, fault=fault, share=1.0)
        assert run.reported.keys() == {fault.finding}, fault.how
        assert run.reported[fault.finding] <= 30, fault.how
