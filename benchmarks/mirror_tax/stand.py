"""The service that is measured: the same artifacts under several names, and rollouts that no gate moves."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import yaml

from benchmarks.errors import BenchmarkError
from benchmarks.mirror_tax.loads import FAULTS, MODES, SERVED, WEIGHTS, Load, Mode, amend, model_of
from benchmarks.process import free_ports, running, wait_until
from benchmarks.service import BATCHING, COMMAND, REPORTED_AFTER_S, SETTLE_TIMEOUT_S, SHADOW_TIMEOUT_S
from benchmarks.workloads import BASELINE, CANDIDATE, Workload
from serving.client import AdminClient

STAGES: Final = (0, *WEIGHTS, 100)
# Of faulty candidates; the times and sizes make a fault come about within the seconds that it is measured for.
FAULTY_MEMORY: Final = "256MiB"
FAULTY_TIMEOUT_S: Final = 2.0
FIRST_FAULTY: Final = CANDIDATE + 1
_ACTOR: Final = "benchmark"
_POLICY_FILE: Final = "hold.yaml"
_IDLE_WORK: Final = """
import os
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
count = 0
while True:
    count += 1
"""
_QUIET: Final = 0.2
_QUIET_WITHIN_S: Final = 5.0
_QUIET_POLL_S: Final = 0.5
# No gate moves a rollout, whatever the candidate does: harm would be a share of more than 99.9 % that fails.
_POLICY: Final = """
name: hold
extends: equivalence
without: [compliance, memory, score_delta]
bake_s: 1000000
budget_s: 2000000
stages: {100: {bake_s: 1000000}}
gates:
  error_rate: {mode: advisory}
  latency: {quantile: 0.001, advance_below_ms: 3600000, roll_back_above_ms: 3600000}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A workload under a name of its own; its candidate is its baseline over again.

    ``sample`` is the share that is mirrored once it has a rollout. ``faults`` are further candidates, by their names:
    the versions from FIRST_FAULTY on, in this order.
    """

    name: str
    workload: Workload
    sample: float
    faults: tuple[str, ...] = ()

    def write(self, repository: Path) -> None:
        """Put its versions into a repository."""
        folder = repository / self.name
        self.workload.write(folder)
        for number, fault in enumerate(self.faults, start=FIRST_FAULTY):
            shutil.copytree(folder / str(CANDIDATE), folder / str(number))
            amend(folder / str(number), backend=fault, parameters=dict(FAULTS[fault].parameters))

    def settings(self) -> dict[str, Any]:
        """Its part of the configuration."""
        replicas: dict[str, Any] = {"num_cpus": 0.1}
        mirror: dict[str, Any] = {"sample": self.sample}
        if self.faults:
            replicas["memory_limit"], mirror["timeout_s"] = FAULTY_MEMORY, FAULTY_TIMEOUT_S
        return {
            "baseline": BASELINE,
            "replicas": replicas,
            "batching": {**BATCHING, "max_batch_size": self.workload.max_batch_size},
            "mirror": mirror,
            "comparator": {"kind": "classification", "output": self.workload.output},
            "rollout": {"policy": _POLICY_FILE, "stages": list(STAGES)},
        }


def models_of(loads: Iterable[Load]) -> list[Model]:
    """The models that some loads are put on, each once."""
    models: dict[str, Model] = {}
    for load in loads:
        for mode in MODES[load.part]:
            models[model_of(load, mode)] = Model(
                name=model_of(load, mode),
                workload=SERVED[load.workload],
                sample=0.0 if mode is Mode.OFF else 1.0,
                faults=tuple(FAULTS) if load.fault else (),
            )
    return list(models.values())


def candidate_of(load: Load) -> int:
    """The version that a load's rollout is of."""
    return FIRST_FAULTY + list(FAULTS).index(load.fault) if load.fault else CANDIDATE


@dataclass(frozen=True, slots=True)
class Stand:
    """A running service."""

    url: str
    admin: AdminClient

    def begin(self, models: Sequence[str], candidate: int = CANDIDATE) -> None:
        """Begin a rollout of each model, and wait until all are in shadow.

        Raises:
            BenchmarkError: one did not get there.
        """
        for model in models:
            self.admin.start(model, candidate, policy=_POLICY_FILE, actor=_ACTOR)
        for model in models:
            self._await(model, 0)

    def raise_to(self, models: Sequence[str], weight: int) -> None:
        """Have the candidates answer so many percent of the clients.

        Raises:
            BenchmarkError: one does not.
        """
        for model in models:
            if self.admin.status(model)["weight"] < weight:
                self.admin.act(model, "promote", to=weight, actor=_ACTOR, reason="measured at this weight")
        for model in models:
            self._await(model, weight)

    def check(self, model: str, weight: int) -> None:
        """Make sure that a rollout is where it was brought.

        Raises:
            BenchmarkError: it is not.
        """
        if not self._stands(model, weight):
            status = self.admin.status(model)
            raise BenchmarkError(
                f"{model}: expected a rollout at weight {weight}, it is {status['state']} at {status['weight']}"
            )

    def ended(self, model: str) -> str:
        """How the model's latest rollout ended; "" where it goes on."""
        status = self.admin.status(model)
        return "" if status["active"] else f"{status['state']}: {status['reason']}"

    def end(self, model: str) -> None:
        """End the model's rollout, unless it has ended by itself."""
        if not self.ended(model):
            self.admin.act(model, "abort", actor=_ACTOR, reason="measured")

    def account(self, model: str) -> dict[str, int]:
        """The mirror's account in items, once all that was offered is in it and nothing is pending.

        Raises:
            BenchmarkError: items stay pending, or the rollout ended meanwhile.
        """
        account: dict[str, int] = {}

        def settled() -> bool:
            status = self.admin.status(model)
            if not status["active"]:
                raise BenchmarkError(f"{model}: the rollout ended: {status['reason']}")
            account.update(status["accounting"])
            return account.get("pending") == 0

        time.sleep(REPORTED_AFTER_S)
        wait_until(settled, timeout_s=SETTLE_TIMEOUT_S, what=f"{model}: nothing pending in the mirror")
        return account

    def _await(self, model: str, weight: int) -> None:
        what = f"{model} at weight {weight}"

        def stands() -> bool:
            if reason := self.ended(model):
                raise BenchmarkError(f"{what}: the rollout ended: {reason}")
            return self._stands(model, weight)

        wait_until(stands, timeout_s=SHADOW_TIMEOUT_S, what=what)

    def _stands(self, model: str, weight: int) -> bool:
        status = self.admin.status(model)
        return (status["state"], status["weight"]) == ("canary" if weight else "shadow", weight)


@contextmanager
def running_stand(scratch: Path, models: Iterable[Model]) -> Iterator[Stand]:
    """A service on free ports of the loopback while the block runs; whatever is in ``scratch`` is discarded.

    Raises:
        BenchmarkError: it did not start.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    ports = dict(zip(("http_port", "grpc_port", "metrics_port", "admin_port"), free_ports(4), strict=True))
    config = write_config(scratch, ports, models)
    url = f"http://127.0.0.1:{ports['http_port']}"
    with (
        running([*COMMAND, str(config)], ready_url=f"{url}/v2/health/ready", log=scratch / "serve.log"),
        AdminClient(f"http://127.0.0.1:{ports['admin_port']}") as admin,
    ):
        yield Stand(url, admin)
    shutil.rmtree(scratch, ignore_errors=True)


def write_config(folder: Path, ports: Mapping[str, int], models: Iterable[Model]) -> Path:
    """The repository, the policy and the configuration that names them; the last one's path."""
    settings = {}
    for model in models:
        model.write(folder / "repository")
        settings[model.name] = model.settings()
    (folder / _POLICY_FILE).write_text(_POLICY, encoding="utf-8")
    config = folder / "config.yaml"
    document = {
        "repository": "repository",
        "reports": "reports",
        "server": dict(ports),
        "backends": {name: fault.backend for name, fault in FAULTS.items()},
        "models": settings,
    }
    config.write_text(yaml.safe_dump(document), encoding="utf-8")
    return config


@dataclass(frozen=True, slots=True)
class Cores:
    """How long the machine's cores have been busy since it started, and how long there were any, in ticks."""

    busy: int
    total: int

    @classmethod
    def read(cls, file: Path = Path("/proc/stat")) -> Self:
        """From the kernel's first line: user, nice, system, idle, iowait, irq, softirq, steal."""
        ticks = [int(each) for each in file.read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        idle = ticks[3] + ticks[4]
        return cls(sum(ticks) - idle, sum(ticks))

    def share_until(self, later: Self) -> float:
        """The share of the cores that was taken between two readings."""
        return (later.busy - self.busy) / max(later.total - self.total, 1)


@contextmanager
def idle_work() -> Iterator[None]:
    """As many processes of the lowest class as there are cores, which do nothing but count, while the block runs."""
    started = [subprocess.Popen([sys.executable, "-c", _IDLE_WORK]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_until_quiet() -> None:
    """Wait until nothing is being started or stopped any more, but not for long: others may load the machine, too."""
    ends = time.monotonic() + _QUIET_WITHIN_S
    before = Cores.read()
    while time.monotonic() < ends:
        time.sleep(_QUIET_POLL_S)
        now = Cores.read()
        if before.share_until(now) < _QUIET:
            return
        before = now
