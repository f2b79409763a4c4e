"""Several routers on the same ports, and as many replicas as the clients' requests need."""

import os
import signal
from typing import Any

import pytest
import tritonclient.http as triton

from tests.end_to_end.service import Service, Traffic, wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(120)]
CLIENTS = 12


def answered(service: Service, model: str) -> dict[str, float]:
    """The requests that each router answered by the baseline."""
    return service.scrape("understudy_requests_total", model=model, version="1", outcome="ok")


def told(service: Service, model: str) -> dict[str, Any]:
    """The statistics of the baseline, of whichever router gets the connection."""
    client = triton.InferenceServerClient(service.http)
    (entry,) = client.get_inference_statistics(model, "1")["model_stats"]
    client.close()
    return dict(entry)


def test_routers_share_their_ports_and_each_tells_what_all_answered(service: Service) -> None:
    wait_for(lambda: len(service.routers()) == 2, timeout_s=20, what="both routers")
    before, told_before = sum(answered(service, "steady").values()), told(service, "steady")["inference_count"]
    for _ in range(3):  # each with connections of its own
        assert service.play("steady", 100, clients=CLIENTS).errors == []
    wait_for(
        lambda: sum(answered(service, "steady").values()) == before + 300, timeout_s=3, what="all answers to be told"
    )
    assert len([each for each in answered(service, "steady").values() if each]) == 2
    assert [told(service, "steady")["inference_count"] - told_before for _ in range(6)] == [300] * 6


def test_a_killed_router_costs_its_own_connections_and_no_others(service: Service) -> None:
    victims, known = service.pids_of("router"), service.routers()
    assert len(victims) == 2
    with Traffic(service, "steady", CLIENTS) as traffic:
        before = sum(answered(service, "steady").values())
        wait_for(lambda: sum(answered(service, "steady").values()) > before + 100, timeout_s=10, what="traffic")
        os.kill(victims[0], signal.SIGKILL)
        wait_for(lambda: len(service.routers() - known) == 1, timeout_s=40, what="another router")
        (fresh,) = service.routers() - known
        assert service.play("steady", 60, clients=CLIENTS).errors == []
        wait_for(lambda: answered(service, "steady").get(fresh), timeout_s=3, what="its share of them")
        load = traffic.stop()
    assert len(load.errors) <= CLIENTS, "each lost its connection once, and then had another"
    assert [error for error in load.errors if "connection" not in error.lower()] == []
    wait_for(lambda: len(service.routers() & known) == 1, timeout_s=10, what="the figures of the dead one to go")


def test_replicas_come_with_the_queue_and_go_with_it(service: Service) -> None:
    assert len(service.pids_of("model:elastic")) == 1
    with Traffic(service, "elastic", CLIENTS) as busy:
        wait_for(lambda: len(service.pids_of("model:elastic")) == 2, timeout_s=20, what="a second replica")
    assert busy.stop().errors == []
    with Traffic(service, "elastic", 1) as lone:  # whatever the one that goes was sent is still answered
        wait_for(lambda: len(service.pids_of("model:elastic")) == 1, timeout_s=30, what="one to go")
    assert lone.stop().errors == []
