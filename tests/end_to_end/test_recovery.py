"""Processes are killed at bad moments: clients notice nothing, and the rollout goes on where it was."""

import json
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.conftest import DEADLINE_S
from tests.end_to_end.service import Service, Traffic, understudy, wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(180)]


def test_a_killed_controller_resumes_the_rollout_at_its_stage(service: Service) -> None:
    started = service.admin.start("steady", 2, policy="slow.yaml")
    service.wait_for_state("steady", "shadow")
    service.admin.act("steady", "promote", to=20, reason="forced by the test")
    service.wait_for_state("steady", "canary")
    traffic = Traffic(service, "steady")
    for _ in range(2):
        time.sleep(1.5)
        victim = service.pid_of("control")
        os.kill(victim, signal.SIGKILL)
        wait_for(partial(_answers, service, victim), timeout_s=40, what="a new control process")
        status = service.wait_for_state("steady", "canary")
        assert status["deployment_id"] == started["deployment_id"]
        assert status["weight"] == 20
    wait_for(lambda: _judged(service, 50), timeout_s=30, what="evidence after the restart")
    load = traffic.stop()
    assert load.errors == []
    assert load.versions == {"1", "2"}
    service.admin.act("steady", "rollback", reason="the test is over")
    status = service.wait_for_state("steady", "rolled_back")
    events = [entry["event"] for entry in _entries(Path(status["folder"]))]
    assert events.count("restart") == 2
    verified = understudy("evidence", "verify", status["folder"])
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_killed_baseline_replica_costs_no_client_an_error(service: Service) -> None:
    service.play("steady", 50)
    traffic = Traffic(service, "steady")
    time.sleep(0.5)
    victim = service.pid_of("model:steady:1:normal")
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: _replaced(service, "model:steady:1:normal", victim), timeout_s=40, what="a new replica")
    load = traffic.stop()
    late = [error for error in load.errors if "deadline" not in error]
    assert late == []
    assert service.play("steady", 200).errors == []
    assert max(load.latencies_s) < DEADLINE_S + 1


def test_a_stopped_replica_is_noticed_and_replaced(service: Service) -> None:
    victim = service.pid_of("model:doubler:1:normal")
    os.kill(victim, signal.SIGSTOP)
    try:
        wait_for(lambda: _logged(service, "replica_down", "doubler"), timeout_s=2, what="the silence to be noticed")
        wait_for(lambda: _replaced(service, "model:doubler:1:normal", victim), timeout_s=60, what="a new replica")
    finally:
        if Path(f"/proc/{victim}").exists():
            os.kill(victim, signal.SIGCONT)
    assert service.play("doubler", 100).errors == []


def test_a_killed_router_comes_back_and_its_evidence_holds(service: Service) -> None:
    service.admin.start("steady", 2, policy="slow.yaml")
    service.wait_for_state("steady", "shadow")
    service.play("steady", 300)
    wait_for(lambda: _judged(service, 100), timeout_s=20, what="evidence")
    known = service.routers()
    os.kill(service.pid_of("router"), signal.SIGKILL)
    wait_for(lambda: service.routers() - known, timeout_s=40, what="a new router")
    assert service.play("steady", 300).errors == []
    service.admin.act("steady", "abort", reason="the test is over")
    status = service.wait_for_state("steady", "aborted")
    verified = understudy("evidence", "verify", status["folder"])
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert len(list(Path(status["folder"], "evidence").glob("*-000001.parquet"))) >= 2


def _answers(service: Service, dead: int) -> bool:
    try:
        return service.pid_of("control") != dead and service.rollout("steady")["judgement"] is not None
    except Exception:
        return False


def _judged(service: Service, at_least: int) -> bool:
    judgement = service.rollout("steady")["judgement"]
    return judgement is not None and any(gate["n"] >= at_least for gate in judgement["gates"])


def _replaced(service: Service, name: str, old: int) -> bool:
    try:
        return service.pid_of(name) != old
    except AssertionError:
        return False


def _logged(service: Service, event: str, model: str) -> bool:
    lines = (service.reports / "logs" / "router.jsonl").read_text().splitlines()[-50:]
    recent = [json.loads(line) for line in lines]
    return any(line["event"] == event and line.get("model") == model for line in recent)


def _entries(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
