"""One service for all end-to-end tests: one Ray instance, started as a user starts it."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end import faults
from tests.end_to_end.service import Service, write_config, write_doubler

FAULTS = ("raises", "hangs", "exits", "wrong_shape", "allocates")
DEADLINE_S = 3.0
REFERENCE = Path(__file__).parents[2] / "examples" / "model_repository" / "digits"
REPLICAS = {"num_cpus": 0.1, "memory_limit": "192MiB"}
DOUBLER = {
    "baseline": 1,
    "replicas": REPLICAS,
    "batching": {"max_batch_size": 16, "timeout_s": 4},
    "mirror": {"timeout_s": 3},  # in shadow a process has only what others leave it
    "comparator": {"kind": "classification", "output": "y", "tolerance": 1e-3},
    "rollout": {"policy": "policy.yaml"},
}
# One replica answers 8 requests in 20 ms; more clients than that are worth a second one.
ELASTIC = {
    **DOUBLER,
    "replicas": {
        **REPLICAS,
        "autoscaling": {"max_replicas": 2, "target_queue": 6, "upscale_delay_s": 1, "downscale_delay_s": 2},
    },
    "batching": {"max_batch_size": 8},
}
# As strict as `equivalence`, but in seconds.
POLICY = """
name: quick
extends: equivalence
min_requests: 100
bake_s: 1
budget_s: 120
stages: {100: {bake_s: 1}}
without: [compliance]
gates:
  score_delta: {advance_below: 0.02, roll_back_above: 0.05}
"""
DIFFERENT = """
name: different
extends: quick.yaml
gates:
  score_delta: {mode: advisory}
"""
SLOW = """
name: slow
extends: quick.yaml
bake_s: 3000
budget_s: 3000
stages: {100: {bake_s: 3000}}
"""
# A candidate whose replicas are killed fails what is mirrored meanwhile: here that is not to end its rollout.
PATIENT = """
name: patient
extends: slow.yaml
gates:
  error_rate: {mode: advisory}
  latency: {mode: advisory}
"""
# Advisory but at one stage, so that a bad candidate gets as far as that.
FORCED = """
name: forced
extends: quick.yaml
gates:
  error_rate: {{stages: [{weight}]}}
  latency: {{stages: [{weight}]}}
  score_delta: {{advance_below: 0.98, roll_back_above: 0.99}}
  memory: {{limit_bytes: 1000000000000}}
"""


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    shutil.copy(faults.__file__, folder / "faults_for_tests.py")
    repository = folder / "repository"
    shutil.copytree(REFERENCE, repository / "digits")
    for model in ("doubler", "steady"):
        write_doubler(repository, model, 1, "none")
        for version, fault in enumerate(("none", *FAULTS), start=2):
            write_doubler(repository, model, version, fault)
    write_doubler(repository, "elastic", 1, "slow")
    for name, text in (
        ("policy.yaml", POLICY),
        ("quick.yaml", POLICY),
        ("slow.yaml", SLOW),
        ("different.yaml", DIFFERENT),
        ("patient.yaml", PATIENT),
    ):
        (folder / name).write_text(text)
    for weight in (5, 50):
        (folder / f"forced-{weight}.yaml").write_text(FORCED.format(weight=weight))
    digits = {
        **DOUBLER,
        "replicas": {"num_cpus": 0.1},
        "mirror": {},
        "comparator": {"kind": "classification", "output": "scores"},
    }
    config = write_config(
        folder,
        {"doubler": DOUBLER, "steady": DOUBLER, "elastic": ELASTIC, "digits": digits},
        backends={"doubler": "faults_for_tests:Doubler", "leaking": "models.reference.leaking:LeakingBackend"},
        server={"deadline_s": DEADLINE_S, "routers": 2},
    )
    running = Service(config)
    yield running
    _stop_cleanly(running)


def _stop_cleanly(service: Service) -> None:
    """Ctrl-C ends everything within five seconds, and leaves neither a process nor a port behind."""
    processes = service.descendants()
    assert len(processes) > 5
    took_s = service.stop()
    assert service.process.returncode == 0, "".join(service.lines)
    assert took_s < 5
    assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []
    with socket.create_server(("127.0.0.1", int(service.http.rpartition(":")[2]))):
        pass
