"""Understudy as a user starts it, serving the workloads, with a rollout that holds in shadow where one is wanted."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from benchmarks.errors import BenchmarkError
from benchmarks.process import free_ports, running, wait_until
from benchmarks.workloads import BASELINE, CANDIDATE, MAX_BATCH_SIZE, Workload
from serving.client import AdminClient

COMMAND: Final = (sys.executable, "-c", "from serving.cli import main; main()", "serve")
BATCHING: Final[Mapping[str, Any]] = {"max_batch_size": MAX_BATCH_SIZE, "max_wait_ms": 2, "max_queue": 1024}
SHADOW_TIMEOUT_S: Final = 60.0
SETTLE_TIMEOUT_S: Final = 20.0
REPORTED_AFTER_S: Final = 2.0  # what a router counted is at the control side within this time
# Stays in shadow for as long as a benchmark may take, however slow the candidate is on a saturated machine.
_POLICY: Final = """
name: hold
extends: equivalence
without: [compliance, memory, score_delta]
bake_s: 1000000
budget_s: 2000000
stages: {100: {bake_s: 1000000}}
gates:
  error_rate: {mode: advisory}
  latency: {advance_below_ms: 3600000, roll_back_above_ms: 3600000}
"""


@dataclass(frozen=True, slots=True)
class Understudy:
    """A running service; ``grpc`` is host and port."""

    url: str
    grpc: str
    admin: AdminClient

    def mirror(self, model: str) -> None:
        """Begin a rollout of the model's second version and wait until it is mirrored to.

        Raises:
            BenchmarkError: it did not get into shadow.
        """
        self.admin.start(model, CANDIDATE, policy="hold.yaml", actor="benchmark")
        wait_until(
            lambda: self.admin.status(model)["state"] == "shadow", timeout_s=SHADOW_TIMEOUT_S, what=f"{model} in shadow"
        )

    def account(self, model: str) -> dict[str, int]:
        """The mirror's account in items, once all that was offered is in it and nothing is pending.

        Raises:
            BenchmarkError: the rollout has left the shadow stage, or items stay pending.
        """
        account: dict[str, int] = {}

        def settled() -> bool:
            status = self.admin.status(model)
            if status["state"] != "shadow":
                raise BenchmarkError(f"{model}: the rollout left the shadow stage: {status['reason']}")
            account.update(status["accounting"])
            return account["pending"] == 0

        time.sleep(REPORTED_AFTER_S)
        wait_until(settled, timeout_s=SETTLE_TIMEOUT_S, what=f"{model}: nothing pending in the mirror")
        return account

    def stop_mirroring(self, model: str) -> None:
        """End the rollout."""
        self.admin.act(model, "abort", actor="benchmark", reason="measured")


@contextmanager
def understudy(scratch: Path, workloads: Iterable[Workload], *, sample: float = 1.0) -> Iterator[Understudy]:
    """A service on free ports of the loopback; its files are in ``scratch``, which must not be in use.

    ``sample`` is the share of the requests that is mirrored once ``mirror`` is called.

    Raises:
        BenchmarkError: it did not start.
    """
    ports = dict(zip(("http_port", "grpc_port", "metrics_port", "admin_port"), free_ports(4), strict=True))
    scratch.mkdir(parents=True)
    config = _write_config(scratch, ports, list(workloads), sample)
    url = f"http://127.0.0.1:{ports['http_port']}"
    with (
        running([*COMMAND, str(config)], ready_url=f"{url}/v2/health/ready", log=scratch / "serve.log"),
        AdminClient(f"http://127.0.0.1:{ports['admin_port']}") as admin,
    ):
        yield Understudy(url, f"127.0.0.1:{ports['grpc_port']}", admin)


def _write_config(scratch: Path, ports: Mapping[str, int], workloads: Iterable[Workload], sample: float) -> Path:
    models = {}
    for workload in workloads:
        workload.write(scratch / "repository" / workload.name)
        models[workload.name] = {
            "baseline": BASELINE,
            "replicas": {"num_cpus": 0.1},
            "batching": {**BATCHING, "max_batch_size": workload.max_batch_size},
            "mirror": {"sample": sample},
            "comparator": {"kind": "classification", "output": workload.output},
        }
    (scratch / "hold.yaml").write_text(_POLICY, encoding="utf-8")
    config = scratch / "config.yaml"
    settings = {"repository": "repository", "reports": "reports", "server": dict(ports), "models": models}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return config
