"""Policies: the presets' numbers, overriding, and errors that name file and field."""

from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from rollout.errors import PolicyError
from rollout.gates import GATES
from rollout.gates.contract import Mode
from rollout.policy import OnBudget, Policy, load_policy, presets
from shadow.evidence import Limits

MINIMAL = "min_requests: 10\nbake_s: 1\nbudget_s: 60\ngates:\n  error_rate: {mode: binding}\n"


def write(folder: Path, content: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def limits_of(policy: Policy, gate: str) -> dict[str, Any]:
    return policy.gates[gate].model_dump(exclude={"mode", "stages"})


# Presets


def test_the_presets_are_those_that_the_requirements_name_and_that_are_built() -> None:
    assert presets() == ["equivalence", "improvement"]


@pytest.mark.parametrize(
    ("preset", "binding", "advisory"),
    [
        ("equivalence", ["error_rate", "latency", "memory", "score_delta", "compliance"], []),
        ("improvement", ["error_rate", "latency", "memory", "compliance", "compliance_uplift"], ["score_delta"]),
    ],
)
def test_a_preset_binds_and_advises_as_required(
    preset: str, binding: list[str], advisory: list[str], tmp_path: Path
) -> None:
    policy = load_policy(preset, tmp_path)
    assert [name for name, gate in policy.gates.items() if gate.mode is Mode.BINDING] == binding
    assert [name for name, gate in policy.gates.items() if gate.mode is Mode.ADVISORY] == advisory
    assert all(gate.stages is None for gate in policy.gates.values())


@pytest.mark.parametrize("preset", ["equivalence", "improvement"])
def test_a_preset_has_the_numbers_of_the_requirements(preset: str, tmp_path: Path) -> None:
    policy = load_policy(preset, tmp_path)
    assert policy.name == preset
    assert (policy.alpha, policy.beta) == (0.05, 0.05)
    assert limits_of(policy, "error_rate") == {"advance_below": 0.01, "roll_back_above": 0.015}
    assert limits_of(policy, "latency") == {
        "quantile": 0.95,
        "advance_below_ms": 500.0,
        "roll_back_above_ms": 505.0,
    }
    assert limits_of(policy, "memory")["limit_bytes"] == 500_000_000
    assert limits_of(policy, "score_delta") == {"advance_below": 0.001, "roll_back_above": 0.001}
    assert limits_of(policy, "compliance") == {"drop_points": 2.0}
    assert policy.on_budget is OnBudget.ROLL_BACK
    assert policy.bake_at(0) >= 600
    assert policy.budget_s > policy.bake_at(100) > policy.bake_at(5)


def test_the_improvement_that_must_be_proved_is_ten_percent(tmp_path: Path) -> None:
    assert limits_of(load_policy("improvement", tmp_path), "compliance_uplift") == {"uplift": 0.1}


def test_a_gates_defaults_are_those_of_the_presets(tmp_path: Path) -> None:
    for preset in presets():
        for name, gate in load_policy(preset, tmp_path).gates.items():
            assert gate.model_dump(exclude={"mode"}) == GATES[name]().model_dump(exclude={"mode"})


# Files


def test_a_file_overrides_a_preset_at_any_depth_and_keeps_the_rest(tmp_path: Path) -> None:
    write(
        tmp_path,
        "extends: equivalence\nbake_s: 5\nstages: {0: {min_requests: 7}}\nwithout: [compliance]\n"
        "gates:\n  latency: {advance_below_ms: 80}\n  score_delta: {mode: advisory}\n",
    )
    policy, base = load_policy("mine.yaml", tmp_path), load_policy("equivalence", tmp_path)
    assert policy.name == "mine"
    assert limits_of(policy, "latency") == {"quantile": 0.95, "advance_below_ms": 80.0, "roll_back_above_ms": 505.0}
    assert policy.gates["score_delta"].mode is Mode.ADVISORY
    assert set(base.gates) - set(policy.gates) == {"compliance"}
    assert policy.gates["error_rate"] == base.gates["error_rate"]
    assert (policy.bake_at(0), policy.bake_at(5), policy.bake_at(100)) == (5.0, 5.0, 1800.0)
    assert (policy.min_requests_at(0), policy.min_requests_at(5)) == (7, base.min_requests)


def test_a_file_extends_a_file_that_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "teams").mkdir()
    write(tmp_path / "teams", "extends: improvement\nname: team\nalpha: 0.01\n", "team.yaml")
    write(tmp_path / "teams", "extends: team.yaml\nbeta: 0.02\n", "vision.yaml")
    policy = load_policy(Path("teams/vision.yaml"), tmp_path)
    assert (policy.name, policy.alpha, policy.beta) == ("vision", 0.01, 0.02)
    assert load_policy(tmp_path / "teams" / "team.yaml", Path("/")).name == "team"


def test_gates_that_bind_at_some_stages_say_so(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "  latency: {mode: binding, stages: [50, 100]}\n")
    latency = load_policy("mine.yaml", tmp_path).gates["latency"]
    assert [latency.binds_at(weight) for weight in (0, 5, 50, 100)] == [False, False, True, True]


def test_pausing_at_the_end_of_a_budget_is_a_matter_of_policy(tmp_path: Path) -> None:
    write(tmp_path, MINIMAL + "on_budget: pause\n")
    assert load_policy("mine.yaml", tmp_path).on_budget == "pause"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (MINIMAL.replace("min_requests: 10\n", ""), "min_requests: missing"),
        (MINIMAL + "speed: 3\n", "speed: unknown"),
        (MINIMAL + "alpha: 0\n", "alpha: Input should be greater than 0, got 0"),
        (MINIMAL + "alpha: high\n", "alpha: Input should be a valid number, got 'high'"),
        (MINIMAL + "bake_s: .nan\n".replace("bake_s", "beta"), "beta: "),
        (MINIMAL + "on_budget: hope\n", "on_budget: "),
        (MINIMAL.replace("bake_s: 1\n", "bake_s: 99\n"), "bake_s: expected at most budget_s (60)"),
        (MINIMAL + "stages: {20: {bake_s: 99}}\n", "stages.20.bake_s: expected at most budget_s (60)"),
        (MINIMAL + "stages: {200: {bake_s: 9}}\n", "stages.200"),
        (MINIMAL + "  speed: {mode: binding}\n", "gates.speed: unknown"),
        (MINIMAL + "  memory: {limit: 3}\n", "gates.memory.limit: unknown"),
        (MINIMAL + "  memory:\n", "gates.memory: "),
        (MINIMAL + "  score_delta: {advance_below: 1.5}\n", "gates.score_delta.advance_below: "),
        (MINIMAL + "  score_delta: {mode: maybe}\n", "gates.score_delta.mode: "),
        (MINIMAL + "  score_delta: {mode: advisory, stages: [5]}\n", "gates.score_delta: stages says"),
        (MINIMAL + "  score_delta: {stages: []}\n", "gates.score_delta.stages: "),
        (MINIMAL + "  latency: {advance_below_ms: 600}\n", "gates.latency: advance_below_ms must not exceed"),
        (MINIMAL.replace("{mode: binding}", "{advance_below: 0.1}"), "gates.error_rate: advance_below must not"),
        (MINIMAL.replace("binding", "advisory"), "gates: expected at least one of error_rate, latency"),
        (MINIMAL.replace("{mode: binding}", "{stages: [5]}"), "gates: expected at least one of"),
        (MINIMAL.split("gates")[0] + "gates: [latency]\n", "gates: expected a mapping"),
        (MINIMAL + "bake_s: 2\n", "the key 'bake_s' is there twice"),
        ("- a list\n", "expected a mapping, got list"),
        ("a: [\n", "line 2"),
        ("extends: [equivalence]\n", "extends: expected a preset's name or a path"),
        ("extends: equality\n", "extends: expected a preset (equivalence, improvement) or a file"),
        ("extends: mine.yaml\n", "a circle"),
        ("extends: equivalence\nwithout: [memry]\n", "without: expected a list of inherited gates"),
        ("extends: equivalence\nwithout: memory\n", "without: expected a list of inherited gates"),
    ],
)
def test_a_wrong_policy_is_refused_with_file_and_field_in_one_line(
    content: str, complaint: str, tmp_path: Path
) -> None:
    path = write(tmp_path, content)
    with pytest.raises(PolicyError) as refused:
        load_policy("mine.yaml", tmp_path)
    assert str(path) in str(refused.value)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_unknown_preset_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"expected a preset \(equivalence, improvement\) or a file"):
        load_policy("production", tmp_path)


# The journal's copy


@pytest.mark.parametrize("preset", ["equivalence", "improvement"])
def test_a_policy_survives_the_journal(preset: str, tmp_path: Path) -> None:
    policy = load_policy(preset, tmp_path)
    assert Policy.model_validate(orjson.loads(orjson.dumps(policy.to_json()))) == policy


def test_a_policy_that_was_changed_in_the_journal_is_refused(tmp_path: Path) -> None:
    journaled = load_policy("equivalence", tmp_path).to_json()
    journaled["alpha"] = 0.4
    with pytest.raises(ValidationError, match="sha256"):
        Policy.model_validate(journaled)


def test_equal_policies_have_equal_hashes_and_different_ones_do_not(tmp_path: Path) -> None:
    hashes = [load_policy(name, tmp_path).to_json()["sha256"] for name in ("equivalence", "improvement", "equivalence")]
    assert hashes[0] == hashes[2] != hashes[1]


def test_the_evidence_counts_what_the_gates_limit(tmp_path: Path) -> None:
    write(
        tmp_path,
        MINIMAL + "  latency: {advance_below_ms: 80, roll_back_above_ms: 90}\n  memory: {limit_bytes: 1000}\n",
    )
    assert load_policy("mine.yaml", tmp_path).limits(0.01) == Limits(
        tolerance=0.01, latency_target_ms=80.0, latency_breach_ms=90.0, memory_bytes=1000
    )
    write(tmp_path, MINIMAL)
    assert load_policy("mine.yaml", tmp_path).limits(1e-3) == Limits()
