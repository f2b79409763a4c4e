import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.environment import describe
from benchmarks.errors import BenchmarkError
from benchmarks.faulty import EXIT_STATUS, ExitingBackend, HangingBackend, SlowBackend
from benchmarks.load import Request, Sample
from benchmarks.mirror_tax import bench
from benchmarks.mirror_tax.__main__ import measure
from benchmarks.mirror_tax.bench import Bench, by_service
from benchmarks.mirror_tax.figures import (
    ACCOUNTED,
    SHARE,
    SHARE_GOALS,
    Figure,
    Goal,
    Row,
    count_goals,
    missed,
    summarise,
)
from benchmarks.mirror_tax.journal import FILE, Alternation, Journal, Measured
from benchmarks.mirror_tax.loads import (
    FAULTS,
    MODES,
    SERVED,
    WEIGHTS,
    Load,
    Mode,
    Part,
    Plan,
    amend,
    loads_of,
    model_of,
    order,
    request_of,
)
from benchmarks.mirror_tax.plot import plot
from benchmarks.mirror_tax.render import render
from benchmarks.mirror_tax.stand import STAGES, Cores, candidate_of, models_of, write_config
from benchmarks.workloads import BASELINE, CANDIDATE, WORKLOADS
from models.backends import open_backend
from models.repository import ModelVersion, Repository, open_version
from models.schema_diff import diff
from models.tensor import Array
from rollout.policy import load_policy
from serving.config import load_config

CLOSED = Load(part=Part.SATURATION, workload="digits", connections=8)
OPEN = Load(part=Part.LOAD, workload="digits", connections=256, share=0.5)
CANARY = replace(OPEN, part=Part.CANARY, weight=5)
FAULTY = replace(OPEN, part=Part.FAULTS, fault="exits")
SIZES = replace(OPEN, part=Part.SIZES, workload="images")
ITEMS = {"mirrored": 60, "pending": 0, "shed": 30, "too_large": 4, "timed_out": 5, "failed": 1}
ACCOUNT = {"sampled": 100, **ITEMS}


def sample(requests_per_s: float = 100.0, p50_ms: float = 1.0, p99_ms: float = 2.0) -> Sample:
    return Sample(
        connections=8,
        requests=100,
        failed=0,
        requests_per_s=requests_per_s,
        mean_ms=1.0,
        sd_ms=0.1,
        p50_ms=p50_ms,
        p90_ms=p50_ms,
        p99_ms=p99_ms,
    )


def measured(
    seen: Sample | None = None,
    account: Mapping[str, int] | None = None,
    *,
    failed: int = 0,
    answered: int = 100,
    ended: str = "",
) -> Measured:
    return Measured(sample=seen or sample(), answered=answered, failed=failed, busy=0.5, account=account, ended=ended)


def alternation(load: Load, number: int = 0, **by_mode: Measured) -> Alternation:
    """One round; modes that are not said are alike."""
    alike = {mode: measured(account=ACCOUNT if mode is Mode.ON else None) for mode in MODES[load.part]}
    said = {Mode(name): each for name, each in by_mode.items()}
    return Alternation(load=load, round=number, commit="c0ffee", by_mode={**alike, **said})


def row_of(*rounds: Alternation, batch_ms: float = 0.0) -> Row:
    (row,) = summarise(rounds, {rounds[0].load.workload: batch_ms})
    return row


# What is measured


def test_the_loads_are_those_that_goals_are_set_for() -> None:
    loads = loads_of(Part)
    latencies = {(load.weight, load.share) for load in loads if load.part in (Part.LOAD, Part.CANARY)}
    assert {(weight, share) for weight in (0, *WEIGHTS) for share in (0.5, 0.7)} <= latencies
    assert {share for weight, share in latencies if weight == 0} == set(SHARE_GOALS)
    assert {load.fault for load in loads if load.part is Part.FAULTS} == set(FAULTS)
    assert {load.connections for load in loads if load.part is Part.SATURATION} == {8, 32, 64}
    sizes = {SERVED[load.workload].example.nbytes for load in loads if load.part is Part.SIZES}
    assert sizes == {602_112, 5_000_040}
    assert len(set(loads)) == len(loads)


@given(number=st.integers(0, 1000), part=st.sampled_from(Part))
def test_each_mode_comes_first_as_often_as_any_other(number: int, part: Part) -> None:
    modes = MODES[part]
    orders = [order(modes, number + at) for at in range(len(modes))]
    assert {each[0] for each in orders} == set(modes)
    assert all(sorted(each) == sorted(modes) for each in orders)


def test_modes_are_put_on_models_of_their_own_but_faulty_candidates_are_versions_of_one() -> None:
    assert [model_of(OPEN, mode) for mode in Mode] == ["digits-plain", "digits-plain", "digits-off", "digits-on"]
    assert {model_of(FAULTY, mode) for mode in MODES[Part.FAULTS]} == {"digits-faults"}
    assert request_of(OPEN, Mode.OFF).path == "/v2/models/digits-off/infer"


def test_loads_in_shadow_of_one_workload_share_a_service_and_so_do_all_sizes() -> None:
    groups = by_service(loads_of(Part))
    assert [{load.part for load in group} for group in groups] == [
        {Part.SATURATION, Part.LOAD},
        {Part.SATURATION, Part.LOAD},
        {Part.LOAD},
        {Part.CANARY},
        {Part.FAULTS},
        {Part.SIZES},
    ]
    assert sum(map(len, groups)) == len(loads_of(Part))


# The service


@pytest.mark.parametrize("loads", by_service(loads_of(Part)), ids=lambda loads: f"{loads[0].part}-{loads[0].workload}")
def test_a_service_s_configuration_is_good_and_every_candidate_fits_and_loads(
    loads: Sequence[Load], tmp_path: Path
) -> None:
    names = ("http_port", "grpc_port", "metrics_port", "admin_port")
    path = write_config(tmp_path, dict(zip(names, range(9000, 9004), strict=True)), models_of(loads))
    config = load_config(path)
    repository = Repository(config.repository)
    for load in loads:
        for mode in MODES[load.part]:
            model = config.models[model_of(load, mode)]
            assert model.mirror.sample == (0.0 if mode is Mode.OFF else 1.0)
            assert model.rollout.stages == STAGES
            policy = load_policy(model.rollout.policy, config.directory)
            assert min(policy.bake_at(weight) for weight in STAGES) > 100_000
        name = model_of(load, Mode.ON)
        baseline, candidate = repository.open(name, BASELINE), repository.open(name, candidate_of(load))
        assert not [each for each in diff(baseline.spec, candidate.spec).differences if not each.compatible]
        assert (baseline.files == candidate.files) and (candidate.spec.backend == (load.fault or "onnxruntime"))
        answers = [scores(version, config.backends) for version in (baseline, candidate)]
        assert np.array_equal(*answers), "it is faulty, but not wrong"


def scores(version: ModelVersion, backends: Mapping[str, str]) -> Any:
    workload = next(each for each in SERVED.values() if version.spec.inputs[0].shape[1:] == each.example.shape[1:])
    backend = open_backend(version, backends)
    backend.load()
    answer = backend.run({workload.input: workload.example})[workload.output]
    backend.close()
    return answer


def test_the_kernel_s_ticks_tell_the_share_of_the_cores_that_was_taken(tmp_path: Path) -> None:
    file = tmp_path / "stat"
    readings = []
    for line in ("cpu  10 0 10 70 10 0 0 0 5 5\ncpu0 1 1", "cpu  40 0 20 120 20 0 0 0 9 9\ncpu0 1 1"):
        file.write_text(line)
        readings.append(Cores.read(file))
    assert readings[0] == Cores(20, 100)
    assert readings[0].share_until(readings[1]) == 0.4
    assert readings[0].share_until(readings[0]) == 0.0


# Candidates that do not behave


@pytest.fixture
def version(tmp_path: Path) -> Callable[..., ModelVersion]:
    WORKLOADS["digits"].write(tmp_path / "digits")
    folder = tmp_path / "digits" / str(CANDIDATE)

    def amended(**parameters: int) -> ModelVersion:
        amend(folder, backend="faulty", parameters=parameters)
        return open_version(folder)

    return amended


INPUTS = {"image": WORKLOADS["digits"].example}


@pytest.mark.parametrize(
    ("batch_us", "runs"),
    [(0, 5), (31_250, 10)],
    ids=["five times the model", "five times the batch, which takes longer"],
)
def test_a_slow_candidate_computes_for_so_many_times(
    version: Callable[..., ModelVersion], monkeypatch: pytest.MonkeyPatch, batch_us: int, runs: int
) -> None:
    ran: list[object] = []
    backend = SlowBackend(version(times=5, batch_us=batch_us), clock=lambda: len(ran) / 64)  # 15.6 ms for a batch
    backend.load()
    inner = backend._inner.run

    def counted(inputs: Mapping[str, Array]) -> dict[str, Array]:
        ran.append(inputs)
        return inner(inputs)

    monkeypatch.setattr(backend._inner, "run", counted)
    assert backend.run(INPUTS)["scores"].shape == (1, 10)
    assert len(ran) == runs
    backend.close()


class HungError(Exception):
    pass


def test_a_hanging_candidate_answers_up_to_the_batch_at_which_it_sleeps(version: Callable[..., ModelVersion]) -> None:
    def sleep(_: float) -> None:
        raise HungError

    backend = HangingBackend(version(every=3), sleep=sleep)
    backend.load()
    for _ in range(2):
        assert backend.run(INPUTS)["scores"].shape == (1, 10)
    with pytest.raises(HungError):
        backend.run(INPUTS)
    backend.close()


def test_an_exiting_candidate_ends_a_second_after_its_first_batch_and_not_while_nobody_asks(
    version: Callable[..., ModelVersion],
) -> None:
    exits: list[int] = []
    now_s = [100.0]
    backend = ExitingBackend(version(after_ms=1000), clock=lambda: now_s[0], exit_process=exits.append)
    backend.load()
    for at_s, expected in ((100.0, []), (100.9, []), (101.0, [EXIT_STATUS])):
        now_s[0] = at_s
        backend.run(INPUTS)
        assert exits == expected
    backend.close()


# Figures and goals


def test_a_ratio_is_the_median_of_the_rounds_own_ratios_and_has_their_range() -> None:
    rounds = [
        alternation(CLOSED, at, on=measured(sample(on), ACCOUNT), off=measured(sample(off)))
        for at, (on, off) in enumerate(((90.0, 100.0), (100.0, 200.0), (384.0, 400.0)))
    ]
    row = row_of(*rounds)
    figure = row.figures["requests_per_s/off"]
    assert (figure.value, figure.low, figure.high) == (0.9, 0.5, 0.96)
    assert figure.missed_by == pytest.approx(0.05)
    assert row.figures["requests_per_s/plain"].value == 1.0
    assert row.medians["on"]["requests_per_s"] == 100.0
    assert SHARE not in [name for _, name in missed([row])], "at saturation no share is promised"


def test_in_canary_the_99th_percentile_may_be_longer_by_one_batch_but_not_the_median() -> None:
    slower = measured(sample(p50_ms=1.5, p99_ms=2.5), ACCOUNT)
    figures = row_of(alternation(CANARY, on=slower), batch_ms=0.5).figures
    assert (figures["p50_ms/off"].value, figures["p99_ms/off"].value) == (1.5, 1.0)
    assert row_of(alternation(OPEN, on=slower), batch_ms=0.5).figures["p99_ms/off"].value == 1.25


@pytest.mark.parametrize(("share", "goal"), [(0.3, 0.99), (0.5, 0.7), (0.7, 0.3)])
def test_what_must_be_mirrored_depends_on_the_load(share: float, goal: float) -> None:
    figure = row_of(alternation(replace(OPEN, share=share))).figures[SHARE]
    assert figure.value == 0.6
    assert figure.missed_by == pytest.approx(max(goal - 0.6, 0.0))


def test_an_item_of_which_the_account_knows_no_end_is_missed_and_so_is_one_that_ended_twice() -> None:
    whole = row_of(alternation(SIZES)).figures[ACCOUNTED]
    assert (whole.value, whole.met) == (1.0, True)
    for answered in (99, 101):
        figure = row_of(alternation(SIZES, on=measured(account=ACCOUNT, answered=answered))).figures[ACCOUNTED]
        assert not figure.met
        assert figure.missed_by == pytest.approx(0.01, abs=0.001)


def test_a_rollout_that_ended_leaves_no_share_but_its_latencies_and_the_reason() -> None:
    gone = measured(ended="rolled_back: harm proved", failed=2)
    row = row_of(alternation(FAULTY, on=gone), alternation(FAULTY, 1, on=gone))
    assert SHARE not in row.figures
    assert set(row.figures) == {"p50_ms/plain", "p99_ms/plain"}
    assert (row.failed, row.ended) == (4, ("rolled_back: harm proved",))


@given(values=st.lists(st.floats(0.01, 100), min_size=1), bound=st.floats(0.01, 100), at_least=st.booleans())
def test_a_figure_is_within_its_range_and_met_just_when_it_is_on_the_right_side(
    values: list[float], bound: float, at_least: bool
) -> None:
    figure = Figure.of(values, Goal(bound=bound, at_least=at_least))
    assert figure.low <= figure.value <= figure.high
    assert figure.met == (figure.value >= bound if at_least else figure.value <= bound)
    assert (figure.missed_by == 0) == figure.met
    assert not Figure.of(values, None).met


@given(st.permutations(range(5)), st.lists(st.floats(1, 1000), min_size=10, max_size=10))
def test_the_order_of_the_rounds_changes_no_figure(numbers: list[int], rates: list[float]) -> None:
    rounds = [
        alternation(CLOSED, at, on=measured(sample(rates[at]), ACCOUNT), off=measured(sample(rates[at + 5])))
        for at in range(5)
    ]
    assert row_of(*rounds).figures == row_of(*(rounds[at] for at in numbers)).figures


# The journal


def test_a_run_that_is_cut_off_goes_on_after_the_last_whole_alternation(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"seconds": 5.0})
    first = alternation(CANARY, 0)
    journal.add(first)
    journal.note_saturation("digits", 4321.5)
    journal.note_batch("digits", 0.25)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"alternation": {"load": {"par')  # it was killed while it wrote
    again = Journal(tmp_path, {"seconds": 5.0})
    assert again.alternations == [first]
    assert (again.saturation, again.batch_ms) == ({"digits": 4321.5}, {"digits": 0.25})
    assert again.has(CANARY, 0)
    assert not again.has(CANARY, 1)
    assert not again.has(OPEN, 0)
    again.add(alternation(CANARY, 1))
    assert [each.round for each in Journal(tmp_path, {"seconds": 5.0}).alternations] == [0, 1]


def test_the_alternations_of_another_plan_are_not_gone_on_with(tmp_path: Path) -> None:
    Journal(tmp_path, {"seconds": 5.0})
    with pytest.raises(BenchmarkError, match="another's; --fresh"):
        Journal(tmp_path, {"seconds": 1.0})


# The bench, on a service that only counts


CAPACITY = 2000.0  # requests a second that are answered at most, of which wrk sees half


@dataclass
class Counting:
    """A service whose mirror runs half of what it is sent, and drops the rest."""

    url: str = ""
    asked: list[tuple[str, float]] = field(default_factory=list)  # model, and the rate; 0 for wrk
    rollouts: dict[str, int] = field(default_factory=dict)  # model → weight
    begun: list[tuple[str, int]] = field(default_factory=list)
    items: dict[str, int] = field(default_factory=dict)
    reason: str = ""  # why rollouts of faulty candidates end

    def begin(self, models: Sequence[str], candidate: int = CANDIDATE) -> None:
        for model in models:
            assert model not in self.rollouts
            self.rollouts[model], self.items[model] = 0, 0
            self.begun.append((model, candidate))

    def raise_to(self, models: Sequence[str], weight: int) -> None:
        for model in models:
            assert self.rollouts[model] < weight
            self.rollouts[model] = weight

    def check(self, model: str, weight: int) -> None:
        assert self.rollouts[model] == weight

    def ended(self, model: str) -> str:
        return self.reason

    def end(self, model: str) -> None:
        del self.rollouts[model]

    def account(self, model: str) -> dict[str, int]:
        sampled = self.items[model]
        rest = dict.fromkeys(("pending", "too_large", "timed_out", "failed"), 0)
        return {"sampled": sampled, "mirrored": sampled // 2, "shed": sampled - sampled // 2, **rest}

    def send(self, request: Request, rate: float) -> Sample:
        model = request.path.split("/")[3]
        self.asked.append((model, rate))
        if model in self.rollouts:
            self.items[model] += 100
        return sample(requests_per_s=min(rate, CAPACITY) or 1000.0)

    def run(self, _: str, request: Request, *, connections: int, seconds: float) -> Sample:
        return self.send(request, 0.0)

    def offer(self, _: str, request: Request, *, rate: float, seconds: float, seed: int, connections: int) -> Sample:
        return self.send(request, rate)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()

    @contextmanager
    def started(*_: object) -> Iterator[Counting]:
        counting.rollouts.clear()
        yield counting

    monkeypatch.setattr(bench, "Wrk", lambda folder: counting)
    monkeypatch.setattr(bench, "running_stand", started)
    monkeypatch.setattr(bench, "ask", lambda url, request: None)
    monkeypatch.setattr(bench, "offer", counting.offer)
    monkeypatch.setattr(bench, "wait_until_quiet", lambda: None)
    monkeypatch.setattr(bench, "_BATCH_S", 0.01)
    return counting


def run(folder: Path, loads: Sequence[Load], rounds: int) -> Journal:
    journal = Journal(folder, {})
    plan = Plan(rounds=rounds, seconds=1.0, lead_in_s=1.0)
    Bench(plan=plan, journal=journal, folder=folder, commit="c0ffee").run(loads)
    return journal


def test_modes_alternate_within_each_round_and_shares_are_of_one_saturation(tmp_path: Path, service: Counting) -> None:
    journal = run(tmp_path, [OPEN], rounds=3)
    assert journal.saturation == {"digits": CAPACITY}, "found by offering more than is answered"
    main = [model for model, rate in service.asked if rate == CAPACITY / 2][1::2]  # without the lead-ins
    assert main == [model_of(OPEN, mode) for number in range(3) for mode in order(MODES[Part.LOAD], number)]
    (row,) = summarise(journal.alternations, {})
    assert (row.rounds, row.figures[SHARE].value) == (3, 0.5)
    assert row.account["sampled"] == 600, "of three rounds with a lead-in each; what was sent before counts for nothing"


def test_what_is_in_the_journal_is_not_measured_again(tmp_path: Path, service: Counting) -> None:
    run(tmp_path, [OPEN], rounds=1)
    asked = len(service.asked)
    run(tmp_path, [OPEN], rounds=1)
    assert len(service.asked) == asked, "no service was so much as started"
    journal = run(tmp_path, [OPEN, CLOSED], rounds=2)
    assert [(each.load.part, each.round) for each in journal.alternations] == [
        (Part.LOAD, 0),
        (Part.SATURATION, 0),
        (Part.LOAD, 1),
        (Part.SATURATION, 1),
    ]


def test_weights_are_measured_as_they_rise_and_both_modes_have_the_same(tmp_path: Path, service: Counting) -> None:
    heavier = replace(CANARY, weight=50)
    journal = run(tmp_path, [CANARY, heavier], rounds=2)
    assert [each.load.weight for each in journal.alternations] == [5, 5, 50, 50]
    assert set(service.rollouts) == {"digits-off", "digits-on"}
    assert journal.batch_ms["digits"] > 0
    assert journal.saturation.keys() == {"digits, weight 5%", "digits, weight 50%"}, "each weight has its own"


def test_each_faulty_candidate_is_begun_afresh_and_ended_after_each_measurement(
    tmp_path: Path, service: Counting
) -> None:
    loads = loads_of([Part.FAULTS])
    journal = run(tmp_path, loads, rounds=2)
    assert service.begun == [("digits-faults", candidate_of(load)) for _ in range(2) for load in loads]
    assert not service.rollouts
    assert all(each.by_mode[Mode.PLAIN].account is None for each in journal.alternations)
    accounts = [each.by_mode[Mode.ON].account for each in journal.alternations]
    assert [account and account["sampled"] for account in accounts] == [200] * 8


def test_a_faulty_candidate_that_was_rolled_back_is_no_error_of_the_measurement(
    tmp_path: Path, service: Counting
) -> None:
    service.reason = "rolled_back: it died"
    journal = run(tmp_path, [FAULTY], rounds=1)
    (found,) = journal.alternations
    assert (found.by_mode[Mode.ON].account, found.by_mode[Mode.ON].ended) == (None, "rolled_back: it died")


# What is printed


def document() -> dict[str, Any]:
    return {
        "environment": describe(),
        "commits": ["c0ffee"],
        "settings": {"rounds": 1, "seconds": 5.0, "lead_in_s": 1.0},
        "saturation": {"digits": 4321.0},
    }


def test_every_figure_stands_beside_its_goal_and_what_misses_is_listed(tmp_path: Path) -> None:
    slower = measured(sample(p50_ms=1.5), ACCOUNT)
    rounds = [alternation(load) for load in (CLOSED, CANARY, FAULTY, SIZES)]
    rows = summarise([*rounds, alternation(OPEN, on=slower)], {})
    markdown = render(document(), rows)
    assert "| requests/s on / off (≥ 0.95) |" in markdown
    assert "1.000 (1.000 … 1.000), met" in markdown
    assert "1.500 (1.500 … 1.500), **missed by 0.450**" in markdown
    assert "digits, 50%, exits after each second" in markdown
    assert "digits 4321/s" in markdown
    lines = markdown.splitlines()
    # Of throughput 2, of latency 4 in shadow, 2 in canary and 2 beside a fault, of shares 2, of accounts 1.
    assert f"{13 - len(missed(rows))} of {count_goals(rows)} goals are met." in lines
    assert count_goals(rows) == 13
    assert "- load: digits, 50%: p50 on / off 1.500, missed by 0.450" in lines
    plot(rows, tmp_path)
    assert (tmp_path / "mirror_tax.png").stat().st_size > 10_000
    assert "of saturation" in (tmp_path / "mirror_tax.svg").read_text()


def test_without_an_open_loop_nothing_is_drawn(tmp_path: Path) -> None:
    plot([row_of(alternation(CLOSED))], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.end_to_end
@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk, which makes the load, is not installed")
def test_a_service_is_measured_with_mirroring_without_it_and_without_a_rollout(tmp_path: Path) -> None:
    plan = Plan(rounds=1, seconds=1.0, lead_in_s=0.0)
    found, rows = measure(plan, [CLOSED], tmp_path)
    (row,) = rows
    assert found["failed_requests"] == 0
    assert set(row.medians) == {mode.value for mode in Mode}
    assert all(median["requests_per_s"] > 0 and 0 < median["busy"] <= 1 for median in row.medians.values())
    assert 0 < row.figures[SHARE].value <= 1
    assert row.account["pending"] == 0
    assert row.account["sampled"] >= row.answered, "wrk breaks off the requests that are on their way at its end"
    assert "digits, 8 clients" in render(found, rows)
    assert Journal(tmp_path, {"seconds": 1.0, "lead_in_s": 0.0}).has(CLOSED, 0)
