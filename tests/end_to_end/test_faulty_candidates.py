"""A candidate that fails in any way never harms a client, is rolled back, and the journal says why."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.conftest import DEADLINE_S, FAULTS
from tests.end_to_end.service import Service

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(180)]
REQUESTS = 2_000
# What the journal must say of each.
NAMED = {
    "raises": "made of cheese",
    "hangs": "no answer in time",
    "exits": "died",
    "wrong_shape": "y",
    "allocates": "MemoryError",
}


@pytest.mark.parametrize("weight", [0, 5, 50])
@pytest.mark.parametrize("fault", FAULTS)
def test_no_client_notices_a_candidate_that(service: Service, fault: str, weight: int) -> None:
    version = FAULTS.index(fault) + 3
    policy = f"forced-{weight}.yaml" if weight else "policy.yaml"
    service.admin.start("doubler", version, policy=policy)
    service.wait_for_state("doubler", "shadow")
    if weight:
        service.admin.act("doubler", "promote", to=weight, reason="forced by the test")
        service.wait_for_state("doubler", "canary")

    load = service.play("doubler", REQUESTS)

    assert load.errors == []
    assert len(load.latencies_s) == REQUESTS
    assert load.p99_s < DEADLINE_S
    status = service.wait_for_state("doubler", "rolled_back", "promoted")
    assert status["state"] == "rolled_back"
    assert status["outcome"] == "REJECT", status["reason"]
    assert NAMED[fault] in _journal(Path(status["folder"]))


def _journal(folder: Path) -> str:
    """All that the journal says from the decision on, as text."""
    lines = (folder / "journal.jsonl").read_text().splitlines()
    return json.dumps([json.loads(line) for line in lines if json.loads(line)["state"] == "rolled_back"])
