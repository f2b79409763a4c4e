"""Puts the loads on services, in every mode, by turns."""

import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.load import Request, Sample, Wrk, ask
from benchmarks.mirror_tax.journal import Alternation, Journal, Measured
from benchmarks.mirror_tax.loads import (
    MODES,
    ROLLED_OUT,
    SERVED,
    Load,
    Mode,
    Part,
    Plan,
    model_of,
    order,
    request_of,
    saturation_of,
)
from benchmarks.mirror_tax.stand import (
    Cores,
    Stand,
    candidate_of,
    idle_work,
    models_of,
    running_stand,
    wait_until_quiet,
)
from benchmarks.open_loop import offer
from benchmarks.raw import RawModel
from benchmarks.report import say

SATURATION_S: Final = 3.0
_BATCH_S: Final = 1.0
_KEPT_UP: Final = 0.9  # of what was offered: who answers so much could answer more
_LEAD_IN_SEED: Final = 1_000_000


class Bench:
    """Measures what the journal does not have yet. Files lie in ``folder`` meanwhile.

    Raises:
        BenchmarkError: wrk is not installed.
    """

    def __init__(self, *, plan: Plan, journal: Journal, folder: Path, commit: str) -> None:
        self._plan, self._journal, self._commit = plan, journal, commit
        self._folder = folder
        self._wrk = Wrk(folder)
        self._began_s = time.monotonic()
        self._done = self._of = 0

    def run(self, loads: Sequence[Load]) -> None:
        """Measure.

        Raises:
            BenchmarkError: the service does not start or does not answer, or a rollout does not stay where it is
                measured.
        """
        self._of = sum(len(self._missing([load])) for load in loads)
        for mine in by_service(loads):
            if self._missing(mine):
                self._measure(mine)

    def _missing(self, loads: Sequence[Load]) -> list[tuple[int, Load]]:
        """What is still to be measured, round by round."""
        rounds = range(self._plan.rounds)
        return [(number, load) for number in rounds for load in loads if not self._journal.has(load, number)]

    def _measure(self, loads: Sequence[Load]) -> None:
        for workload in {load.workload for load in loads if load.weight} - self._journal.batch_ms.keys():
            self._journal.note_batch(workload, self._batch_ms(workload))
        say(f"starting the service for {loads[0].part}: {', '.join(dict.fromkeys(load.workload for load in loads))}")
        with running_stand(self._folder / "service", models_of(loads)) as stand:
            session = _Session(stand, self._plan, self._wrk, self._journal)
            session.prepare(loads)
            for weight in sorted({load.weight for load in loads}):  # a weight only ever rises
                missing = self._missing([load for load in loads if load.weight == weight])
                if missing and weight:
                    session.raise_to(weight, [load for _, load in missing])
                for number, load in missing:
                    self._alternate(session, load, number)

    def _batch_ms(self, workload: str) -> float:
        """How long the model alone takes for its largest batch."""
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            model = RawModel(SERVED[workload], Path(scratch))
            batch_ms = model.measure(SERVED[workload].max_batch_size, _BATCH_S).p50_ms
            model.close()
        return batch_ms

    def _alternate(self, session: "_Session", load: Load, number: int) -> None:
        by_mode = {mode: session.measure(load, mode, number) for mode in order(MODES[load.part], number)}
        self._journal.add(Alternation(load=load, round=number, commit=self._commit, by_mode=by_mode))
        self._done += 1
        left_min = (time.monotonic() - self._began_s) / self._done * (self._of - self._done) / 60
        say(f"{self._done:3} of {self._of}, ≈ {left_min:.0f} min left  round {number + 1}  {_line(load, by_mode)}")


class _Session:
    """Measurements on one running service."""

    def __init__(self, stand: Stand, plan: Plan, wrk: Wrk, journal: Journal) -> None:
        self._stand, self._plan, self._wrk, self._journal = stand, plan, wrk, journal
        self._rolled_out: list[str] = []  # the models that have a rollout throughout
        self._known: dict[str, dict[str, int]] = {}  # accounts as they were read last, by model

    def prepare(self, loads: Sequence[Load]) -> None:
        """Check that every model answers, find what the shares are of, begin the rollouts, and warm all up."""
        requests = {model_of(load, mode): request_of(load, mode) for load in loads for mode in MODES[load.part]}
        for request in requests.values():
            ask(self._stand.url, request)
        self._warm_up(requests, loads)
        wait_until_quiet()
        self._find_saturations([load for load in loads if not load.weight], Mode.ON)  # which has no rollout yet
        modes = {model_of(load, mode): mode for load in loads for mode in MODES[load.part] if not load.fault}
        self._rolled_out = [model for model, mode in modes.items() if mode in ROLLED_OUT]
        self._stand.begin(self._rolled_out)
        wait_until_quiet()
        self._warm_up(requests, loads)
        if self._plan.lead_in_s:
            self._known = {model: self._stand.account(model) for model, mode in modes.items() if mode is Mode.ON}

    def raise_to(self, weight: int, loads: Sequence[Load]) -> None:
        """Have the candidates answer so many percent of the clients of ``loads``."""
        self._stand.raise_to(self._rolled_out, weight)
        wait_until_quiet()
        self._find_saturations(loads, Mode.OFF)

    def measure(self, load: Load, mode: Mode, number: int) -> Measured:
        """One load in one mode; ``number`` is the round's."""
        if load.fault and mode is Mode.ON:
            with self._faulty(load, model_of(load, mode)):
                return self._measure(load, mode, number)
        if mode is Mode.BESIDE:
            with idle_work():
                return self._measure(load, mode, number)
        return self._measure(load, mode, number)

    @contextmanager
    def _faulty(self, load: Load, model: str) -> Iterator[None]:
        """A rollout of a faulty candidate, begun afresh: whatever the fault has done to it by its end counts once."""
        self._known.pop(model, None)
        self._stand.begin([model], candidate_of(load))
        wait_until_quiet()
        yield  # where this raises, the whole service ends
        self._stand.end(model)
        wait_until_quiet()

    def _measure(self, load: Load, mode: Mode, number: int) -> Measured:
        model, request = model_of(load, mode), request_of(load, mode)
        samples = []
        if self._plan.lead_in_s:
            samples.append(self._send(load, request, self._plan.lead_in_s, _LEAD_IN_SEED + number))
        before = Cores.read()
        samples.append(self._send(load, request, self._plan.seconds, number))
        busy = before.share_until(Cores.read())
        account, ended = self._settle(load, mode, model)
        return Measured(
            sample=samples[-1],
            answered=sum(each.requests - each.failed for each in samples),
            failed=sum(each.failed for each in samples),
            busy=busy,
            account=account,
            ended=ended,
        )

    def _send(self, load: Load, request: Request, seconds: float, seed: int) -> Sample:
        """The same seed offers the same requests in every mode."""
        if not load.share:
            return self._wrk.run(self._stand.url, request, connections=load.connections, seconds=seconds)
        rate = load.share * self._journal.saturation[saturation_of(load)]
        return offer(self._stand.url, request, rate=rate, seconds=seconds, seed=seed, connections=load.connections)

    def _settle(self, load: Load, mode: Mode, model: str) -> tuple[dict[str, int] | None, str]:
        """Where the items went that were mirrored since the last account, and how the rollout ended, if it did."""
        if mode not in ROLLED_OUT:
            return None, ""
        if load.fault and (ended := self._stand.ended(model)):
            return None, ended
        account = self._stand.account(model) if mode is Mode.ON else None
        self._stand.check(model, load.weight)
        if account is None:
            return None, ""
        before = self._known.get(model, {})
        self._known[model] = account
        return {name: count - before.get(name, 0) for name, count in account.items()}, ""

    def _find_saturations(self, loads: Sequence[Load], mode: Mode) -> None:
        for load in loads:
            name = saturation_of(load)
            if load.share and name not in self._journal.saturation:
                self._journal.note_saturation(name, self._saturation(load, request_of(load, mode)))
                say(f"{name}: {self._journal.saturation[name]:.0f} requests/s is the open loop's saturation")

    def _saturation(self, load: Load, request: Request) -> float:
        """Requests a second that are answered when the open loop offers more than can be."""
        url, connections = self._stand.url, load.connections
        rate = self._wrk.run(url, request, connections=connections, seconds=1).requests_per_s
        answered = math.inf
        while answered > _KEPT_UP * rate:
            rate *= 1.5
            sample = offer(url, request, rate=rate, seconds=SATURATION_S, seed=0, connections=connections)
            answered = sample.requests_per_s
        return answered

    def _warm_up(self, requests: Mapping[str, Request], loads: Sequence[Load]) -> None:
        if self._plan.lead_in_s:
            connections = max(load.connections for load in loads)
            for request in requests.values():
                self._wrk.run(self._stand.url, request, connections=connections, seconds=self._plan.lead_in_s)


def by_service(loads: Sequence[Load]) -> list[list[Load]]:
    """The loads in groups that one service can be measured with."""
    groups: dict[tuple[Part, str], list[Load]] = {}
    for load in loads:
        part = Part.SATURATION if load.part is Part.LOAD else load.part
        workload = "" if load.part is Part.SIZES else load.workload
        groups.setdefault((part, workload), []).append(load)
    return list(groups.values())


def _line(load: Load, by_mode: Mapping[Mode, Measured]) -> str:
    parts = [f"{load.part}  {load.title}"]
    for mode in MODES[load.part]:
        sample = by_mode[mode].sample
        speed = (
            f"p50 {sample.p50_ms:.2f} p99 {sample.p99_ms:.2f} ms" if load.share else f"{sample.requests_per_s:.0f}/s"
        )
        parts.append(f"{mode} {speed}")
    account = by_mode[Mode.ON].account
    if account and account["sampled"]:
        parts.append(f"mirrored {account['mirrored'] / account['sampled']:.0%}")
    failed = sum(each.failed for each in by_mode.values())
    return "  ".join([*parts, *([f"FAILED {failed}"] if failed else [])])
