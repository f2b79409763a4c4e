"""The shadow side of a running service: processes of it are killed, and no client notices."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.service import Service, Traffic, understudy, wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(180)]


def shadows(service: Service) -> set[int]:
    """The routers' shadow processes."""
    return {each.pid for each in service.admin.processes() if each.role == "shadow"}


def test_killed_shadow_processes_and_replicas_cost_no_client_an_error_and_the_evidence_holds(service: Service) -> None:
    routers = len(service.routers())
    service.admin.start("steady", 2, policy="patient.yaml")
    service.wait_for_state("steady", "shadow")
    traffic = Traffic(service, "steady")
    wait_for(lambda: len(shadows(service)) == routers, timeout_s=20, what="a shadow process for each router")
    wait_for(partial(_goes_on, service, 200), timeout_s=40, what="pairs")
    for victims in (
        shadows(service),
        {service.pid_of("model:steady:1:shadow"), service.pid_of("model:steady:2:shadow")},
    ):
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        wait_for(partial(_replaced, service, victims, routers), timeout_s=40, what="new shadow processes")
        wait_for(partial(_goes_on, service, _mirrored(service) + 100), timeout_s=40, what="more pairs")
    assert traffic.stop().errors == []
    wait_for(lambda: not service.rollout("steady")["accounting"]["pending"], timeout_s=60, what="nothing pending")
    account = dict(service.rollout("steady")["accounting"])
    assert account.pop("sampled") == sum(account.values())
    assert account["failed"] > 0  # what the dead had in hand
    service.admin.act("steady", "abort", reason="the test is over")
    status = service.wait_for_state("steady", "aborted")
    verified = understudy("evidence", "verify", status["folder"])
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert len(list(Path(status["folder"], "evidence").glob("*-000001.parquet"))) >= 2 * routers


def _replaced(service: Service, gone: set[int], routers: int) -> bool:
    return len(shadows(service) - gone) == routers


def _goes_on(service: Service, at_least: int) -> bool:
    return _mirrored(service) >= at_least


def _mirrored(service: Service) -> int:
    """Items so far; none while a router's evidence is broken, as it is without a shadow process."""
    return int(service.rollout("steady")["accounting"].get("mirrored", 0))


def test_after_a_rollout_nothing_of_its_shadow_is_left(service: Service) -> None:
    service.admin.start("doubler", 2, policy="slow.yaml")
    service.wait_for_state("doubler", "shadow")
    service.play("doubler", 100)
    assert service.pids_of("model:doubler:1:shadow")
    for version in (1, 2):
        (pid,) = service.pids_of(f"model:doubler:{version}:shadow")
        threads = [int(thread.name) for thread in Path(f"/proc/{pid}/task").iterdir()]
        idle = [os.sched_getscheduler(thread) == os.SCHED_IDLE for thread in threads]
        low = [os.getpriority(os.PRIO_PROCESS, thread) >= 10 for thread in threads]
        assert any(idle)  # what runs the model
        assert all(low)  # and what is Ray's
    service.admin.act("doubler", "abort", reason="the test is over")
    service.wait_for_state("doubler", "aborted")
    wait_for(
        lambda: not [pid for version in (1, 2) for pid in service.pids_of(f"model:doubler:{version}:shadow")],
        timeout_s=30,
        what="the shadow replicas to end",
    )
    wait_for(lambda: not shadows(service), timeout_s=20, what="the shadow processes to end")
    assert service.play("doubler", 100).errors == []
