"""SIGKILL of every process of a service in turn: clients that retry once see no error, and what is lost is counted."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from serving.client import AdminError
from serving.directory import Process
from tests.end_to_end.service import Service, Traffic, understudy, wait_for

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(240)]

MODEL = "steady"
VICTIMS = ("shadow", "replica 2 shadow", "replica 1 shadow", "replica 1 normal", "router", "control")


def test_each_process_killed_in_turn_costs_no_client_an_error_and_the_loss_is_counted(service: Service) -> None:
    service.admin.start(MODEL, 2, policy="patient.yaml")
    service.wait_for_state(MODEL, "shadow")
    routers = len(service.routers())
    with Traffic(service, MODEL, retry_after_s=3) as traffic:
        whole = {"shadow": routers, "router": routers, "control": 1}
        wait_for(
            lambda: whole.items() <= Counter(processes(service).values()).items(), timeout_s=30, what="a lane each"
        )
        for name in VICTIMS:
            wait_for(partial(_goes_on, service, mirrored(service)), timeout_s=40, what=f"pairs before {name} is killed")
            before = processes(service)
            victim = next(pid for pid, each in before.items() if each == name)
            os.kill(victim, signal.SIGKILL)
            wait_for(partial(_replaced, service, victim, before), timeout_s=60, what=f"another {name}")
        wait_for(partial(_goes_on, service, mirrored(service)), timeout_s=40, what="pairs after all of it")
        load = traffic.stop()
    assert load.errors == []

    service.admin.act(MODEL, "abort", reason="the test is over")
    folder = Path(service.wait_for_state(MODEL, "aborted")["folder"])
    wait_for(lambda: "shadow" not in processes(service).values(), timeout_s=60, what="all to be durable")
    told = understudy("evidence", "verify", str(folder))
    assert told.returncode == 0, told.stdout + told.stderr
    loss = json.loads(understudy("evidence", "verify", "--json", str(folder)).stdout)["loss"]
    cut_short = [each for each in loss["chains"] if not each["closed"]]
    assert len(cut_short) < len(loss["chains"])  # whoever lived until the end has closed
    assert 0 < sum(each["lost"] for each in cut_short) <= loss["lost"] < loss["sampled"]
    for each in cut_short:
        items = f"{each['lost']:,} of {each['sampled']:,} sampled items"
        assert f"chain {each['chain']}: ended without closing; {items} are in no segment" in told.stdout
    assert f"counted loss: {loss['lost']:,} of {loss['sampled']:,} sampled items" in told.stdout


def processes(service: Service) -> dict[int, str]:
    """What runs for the model, by process id; nothing while the control process is away."""
    try:
        found = service.admin.processes()
    except AdminError:
        return {}
    return {pid: name for each in found for pid, name in _named(each)} | dict.fromkeys(
        service.pids_of("control"), "control"
    )


def _named(process: Process) -> Iterator[tuple[int, str]]:
    if process.model in (None, MODEL):
        yield process.pid, " ".join(str(each) for each in (process.role, process.version, process.priority) if each)


def _replaced(service: Service, victim: int, before: dict[int, str]) -> bool:
    now = processes(service)
    return victim not in now and Counter(now.values()) == Counter(before.values())


def mirrored(service: Service) -> int:
    """Items so far; none while the control process is away, or a router's evidence is broken."""
    try:
        return int(service.rollout(MODEL)["accounting"].get("mirrored", 0))
    except AdminError:
        return 0


def _goes_on(service: Service, before: int) -> bool:
    return mirrored(service) >= before + 100
