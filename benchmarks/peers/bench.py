"""The measurement: contenders by turns, one at a time, each alone on the machine.

A server is started for its turn and stopped after it. Kept up meanwhile, each would take from the others: of a core,
Understudy takes 11 % when nobody asks it, Ray Serve 7 %, LitServe and BentoML 0.7 %, Triton 0.2 % and MLServer nothing;
and together they would hold 3.3 GiB.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.errors import BenchmarkError
from benchmarks.peers.contract import Contender, Load, Loop, Transport
from benchmarks.peers.journal import Journal, Run
from benchmarks.report import say
from benchmarks.workloads import WORKLOADS, Workload

_UNITS: Final = {"closed": "clients", "open": "requests/s offered", "direct": "rows a call"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured. ``connections`` and ``rates`` replace those of every workload where they are given."""

    rounds: int
    seconds: float
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    transports: tuple[Transport, ...] = ("http", "grpc")
    loops: tuple[Loop, ...] = ("closed", "open")
    connections: tuple[int, ...] = ()
    rates: tuple[int, ...] = ()

    def loads(self, workload: Workload) -> list[Load]:
        """The loads of a workload, those of one transport together."""
        loads = [Load(loop="direct", transport="none", amount=rows) for rows in (1, workload.max_batch_size)]
        for transport in self.transports:
            if "closed" in self.loops:
                amounts = self.connections or workload.connections
                loads += [Load(loop="closed", transport=transport, amount=amount) for amount in amounts]
            if "open" in self.loops and transport == "http":
                loads += [Load(loop="open", transport=transport, amount=rate) for rate in self.rates or workload.rates]
        return loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Measures what a journal does not have yet; ``commit`` says which is measured at the moment."""

    plan: Plan
    contenders: Sequence[Contender]
    journal: Journal
    commit: Callable[[], str]

    def run(self) -> list[str]:
        """Measure; what could not be measured, in a line each. A contender is tried twice before it is given up."""
        problems = []
        for number in range(self.plan.rounds):
            for workload in (WORKLOADS[name] for name in self.plan.workloads):
                for contender in self.turns(number):
                    problem = self._try(number, workload, contender) and self._try(number, workload, contender)
                    if problem:
                        problems.append(f"round {number + 1}, {workload.name}, {contender.name}: {problem}")
        return problems

    def turns(self, number: int) -> Iterator[Contender]:
        """Each round begins with another contender."""
        first = number % len(self.contenders)
        yield from self.contenders[first:]
        yield from self.contenders[:first]

    def _try(self, number: int, workload: Workload, contender: Contender) -> str:
        done = {run.key for run in self.journal.runs}
        loads = [load for load in self.plan.loads(workload) if contender.takes(load)]
        missing = [load for load in loads if (number, workload.name, contender.name, load) not in done]
        if not missing:
            return ""
        try:
            self._measure(number, workload, contender, missing)
        except BenchmarkError as error:
            say(f"{contender.name}: {error}")
            return str(error)
        return ""

    def _measure(self, number: int, workload: Workload, contender: Contender, loads: Sequence[Load]) -> None:
        with (
            tempfile.TemporaryDirectory(prefix="understudy-peers-", ignore_cleanup_errors=True) as folder,
            contender.running(workload, Path(folder)) as measure,
        ):
            for load in loads:
                run = Run(
                    round=number,
                    workload=workload.name,
                    server=contender.name,
                    load=load,
                    settings=contender.settings(workload),
                    sample=measure(load, self.plan.seconds),
                    commit=self.commit(),
                )
                self.journal.add(run)
                say(_line(run))


def _line(run: Run) -> str:
    sample, load = run.sample, run.load
    failed = f"  FAILED {sample.failed}" if sample.failed else ""
    return (
        f"{run.round + 1}  {run.workload:7} {run.server:11} {load.transport:4} "
        f"{load.amount:5} {_UNITS[load.loop]:18} {sample.requests_per_s:9.1f} requests/s  "
        f"p50 {sample.p50_ms:.2f}  p99 {sample.p99_ms:.2f} ms{failed}"
    )
