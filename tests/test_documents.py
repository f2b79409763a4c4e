"""The documents are true: what they name exists, what they quote is accepted, and what they show happens."""

import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import fields, replace
from io import StringIO
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import typer.main
import yaml
from prometheus_client import CollectorRegistry

from models.preprocess.image_settings import ImageSettings
from models.reference.digits import load_split
from models.repository import Repository, write_hash
from models.spec import StepSpec, TensorSpec
from rollout.gates import GATES
from rollout.machine import diagram
from rollout.outcome import Outcome
from rollout.policy import load_policy, presets
from serving.cli import app
from serving.config import load_config
from serving.dataplane import DataPlane
from serving.protocol.errors import HTTP_STATUS
from serving.stages import STAGES, Stages
from serving.telemetry import Metrics
from tests.contract.local_engine import Endpoint, LocalEngine, served

ROOT: Final = Path(__file__).parents[1]
EXAMPLES: Final = ROOT / "examples"
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE: Final = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
DOCUMENTS: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/**/*.md")])
SHARED_OPTIONS: Final = {"--admin", "--token", "--json", "--help"}  # explained once for all commands

_FENCE: Final = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE: Final = re.compile(r"`(understudy [^`]+)`")
_LINK: Final = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(language: str, text: str = README) -> list[str]:
    """The fenced blocks of one language."""
    return [body for name, body in _FENCE.findall(text) if name == language]


def block(language: str, containing: str) -> str:
    """The README's one block of a language that contains a text."""
    (found,) = [body for body in blocks(language) if containing in body]
    return found


# Commands


def find_command(words: list[str]) -> tuple[str, Any, list[str]]:
    """The command that some words name, from its first word on, and the words that are left for it."""
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    rest = words[1:]
    while hasattr(command, "commands"):
        assert rest, f"{' '.join(words)}: which command?"
        assert rest[0] in command.commands, f"{' '.join(words)}: there is no command {rest[0]!r}"
        command, path, rest = command.commands[rest[0]], [*path, rest[0]], rest[1:]
    return " ".join(path), command, rest


def all_commands(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command of the application by its path."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        yield " ".join(path), command
        return
    for name, each in command.commands.items():
        yield from all_commands(each, (*path, name))


def options_of(command: Any) -> set[str]:
    """The names of a command's options."""
    return {name for each in command.params if each.param_type_name == "option" for name in each.opts} | {"--help"}


def usage_rows() -> dict[str, str]:
    """The README's table of commands: path → usage."""
    found = re.findall(r"^\| `(understudy [^`]+)` \|", README, re.MULTILINE)
    return {find_command(usage.split())[0]: usage for usage in found}


def examples_of_use() -> list[str]:
    """Every line of a console block, in any document, that runs the command."""
    lines = [line for path in DOCUMENTS for body in blocks("console", path.read_text()) for line in body.splitlines()]
    return [line for line in lines if line.startswith("understudy ")]


@pytest.mark.parametrize("line", examples_of_use())
def test_a_command_in_an_example_is_one_that_the_application_takes(line: str) -> None:
    path, command, arguments = find_command(shlex.split(line, comments=True))
    command.make_context(path, arguments)  # raises where an argument is unknown, missing or of the wrong type


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_named_in_passing_exist_with_the_options_shown(path: Path) -> None:
    for usage in _INLINE.findall(path.read_text()):
        words = re.sub(r"[][…]", "", usage).split()
        if words[1:] in (["rollout"], ["models"], ["labels"], ["evidence"]):
            continue  # a group by itself
        _, command, rest = find_command(words)
        shown = {word for word in rest if word.startswith("--")}
        assert shown <= options_of(command), f"{path.name}: {usage}"


def test_every_command_is_in_the_readme_with_all_its_options() -> None:
    rows = usage_rows()
    for path, command in all_commands():
        assert path in rows, f"understudy {path} is not in the README's table"
        missing = {name for name in options_of(command) - SHARED_OPTIONS if name not in rows[path]}
        assert not missing, f"understudy {path}: {missing} not in the README's table"
    assert all(name in README for name in SHARED_OPTIONS)


def test_every_make_target_that_is_named_exists_and_the_other_way_round() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {target for path in DOCUMENTS for target in re.findall(r"`make (\w+)", path.read_text())}
    named |= {target for body in blocks("console") for target in re.findall(r"^make (\w+)", body, re.MULTILINE)}
    assert named == set(phony.split())


def test_ci_runs_the_readmes_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert set(re.findall(r"^make (\w+)$", script, re.MULTILINE)) == {"check", "test"}
    assert "`.ci/run` runs `make check` and `make test`" in README


# Files that the reader is shown


def test_the_configuration_block_names_every_key_with_its_default(tmp_path: Path) -> None:
    text, path = block("yaml", "repository:"), tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    required = {
        "repository": "./model_repository",
        "models": {"digits": {"baseline": 1, "comparator": {"output": "scores"}}},
    }
    path.write_text(yaml.safe_dump(required), encoding="utf-8")
    assert load_config(path) == config, "a value that is shown is not the default"
    assert keys(yaml.safe_load(text)) == keys(config.model_dump())
    served = path.with_name("served.yaml")
    served.write_text(text.replace("./model_repository", str(EXAMPLES / "model_repository")), encoding="utf-8")
    assert Repository(load_config(served).repository).open("digits", config.models["digits"].baseline)


def keys(value: object, where: str = "") -> set[str]:
    """The dotted paths of all keys in a tree of mappings."""
    if not isinstance(value, dict):
        return set()
    return {f"{where}{key}" for key in value}.union(*(keys(each, f"{where}{key}.") for key, each in value.items()))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_example_files_load(path: Path) -> None:
    if "repository" in yaml.safe_load(path.read_text()):
        config = load_config(path)
        for name, model in config.models.items():
            assert Repository(config.repository).open(name, model.baseline)
            assert load_policy(model.rollout.policy, config.directory)
    else:
        assert load_policy(path.name, path.parent).name == "demo"


def test_the_model_block_is_a_model_that_opens_once_it_is_hashed(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "1"
    folder.mkdir(parents=True)
    text = block("yaml", "artifact:")
    (folder / "model.yaml").write_text(text, encoding="utf-8")
    (folder / "model.onnx").write_bytes(b"a graph")
    (folder / "labels.txt").write_text("zero\none\n", encoding="utf-8")
    write_hash(folder)
    spec = Repository(tmp_path).open("digits", 1).spec
    assert (spec.inputs[0].shape, spec.labels) == ((-1, 1, 8, 8), ("zero", "one"))


def test_the_preprocess_block_names_every_setting_and_the_defaults_that_it_states() -> None:
    text = block("yaml", "preprocess:\n  picture:")
    step = yaml.safe_load(text)["preprocess"]["picture"]
    tensor = TensorSpec(**{**step.pop("tensor"), "shape": (-1, 3, 224, 224)})
    spec = StepSpec(input="picture", kind=step.pop("kind"), tensor=tensor, settings=step)
    stated, plain = ImageSettings.read(spec), ImageSettings.read(replace(spec, settings={"mode": "RGB"}))
    for name in ("layout", "filter", "exif_orientation", "max_pixels", "max_bytes"):
        assert getattr(stated, name) == getattr(plain, name)
    own = {"height", "width", "table"}  # follow from the tensor, and from the four that follow
    settings = {*(field.name for field in fields(ImageSettings)), "invert", "divide_by", "mean", "std"} - own
    assert set(step) == settings


def test_the_policy_block_is_a_policy(tmp_path: Path) -> None:
    (tmp_path / "ours.yaml").write_text(block("yaml", "extends:"), encoding="utf-8")
    policy = load_policy("ours.yaml", tmp_path)
    assert policy.name == "ours"
    assert "memory" not in policy.gates


# Tables


def test_every_gate_preset_and_outcome_is_described_with_its_limits() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (R\d+ \|.*)$", README, re.MULTILINE))
    assert set(rows) == set(GATES)
    for name, gate in GATES.items():
        limits = set(gate.model_fields) - {"mode", "stages"}
        assert rows[name].startswith(f"{gate.requirement} |")
        assert all(f"`{limit}`" in rows[name] for limit in limits), name
    assert all(f"`{name}`" in README for name in [*presets(), *Outcome])


def test_the_metrics_table_names_what_is_exported() -> None:
    registry = CollectorRegistry()
    Metrics(registry)
    registry.register(Stages())
    kinds = {family.name: family.type for family in registry.collect()}
    exported = {f"{name}_total" if kind == "counter" else name for name, kind in kinds.items()}
    assert set(re.findall(r"^\| `(understudy_\w+)`", README, re.MULTILINE)) == exported
    assert set(re.findall(r"`(understudy_\w+)`", README)) == exported


def test_every_stage_of_a_request_is_described() -> None:
    assert tuple(re.findall(r"^\| ([a-z]+) \| from .*\|$", README, re.MULTILINE)) == STAGES


def test_the_status_codes_are_those_of_the_table_of_errors() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d{3}) \|", README, re.MULTILINE)}
    assert listed == {*HTTP_STATUS.values(), 405}


def test_the_reference_models_have_the_accuracy_that_is_stated() -> None:
    stated = dict(re.findall(r"^\| (\d) \| .* \| (0\.\d+) \|$", README, re.MULTILINE))
    opened = Repository(EXAMPLES / "model_repository")
    recorded = {
        str(version): f"{opened.open('digits', version).spec.provenance['test_accuracy']:.3f}"
        for version in opened.versions("digits")
    }
    assert stated == recorded


# What the reader is told to try


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    """The digits baseline behind the real HTTP server, without Ray."""
    engine = LocalEngine(EXAMPLES / "model_repository", {}, {})
    with served(DataPlane(engine)) as running:
        yield running
    engine.close()


def test_the_curl_example_gets_the_answer_that_is_quoted(endpoint: Endpoint) -> None:
    ((url, body),) = re.findall(r"curl -s http://127\.0\.0\.1:8000(\S+) -d '(.+?)'", README, re.DOTALL)
    answer = httpx.post(f"{endpoint.url}{url}", content=body, trust_env=False)
    assert answer.status_code == 200
    assert answer.json() == httpx.Response(200, content=block("json", "model_name")).json()


def test_the_python_example_runs(endpoint: Endpoint) -> None:
    (code,) = blocks("python")
    said = StringIO()
    with redirect_stdout(said):
        exec(compile(code.replace("127.0.0.1:8000", endpoint.address), "README.md", "exec"), {})
    assert said.getvalue() == "version 1 says 6\n"


def test_the_picture_in_the_examples_is_a_zero_of_the_test_images() -> None:
    ((pixels,),) = [re.findall(r'"data": \[([\d, \n]+)\]', block("console", '"data"'))]
    wanted = [float(value) for value in pixels.split(",")]
    split = load_split()
    (at,) = [at for at, image in enumerate(split.test_images) if image.ravel().tolist() == wanted]
    assert split.test_labels[at] == 0


# Structure


def test_the_diagram_in_the_architecture_is_the_machines() -> None:
    (shown,) = re.findall(
        r"<!-- machine: begin -->\n```mermaid\n(.*?)\n```\n<!-- machine: end -->", ARCHITECTURE, re.DOTALL
    )
    assert shown == diagram(), "paste the output of `python -m rollout.machine` between the markers"


@pytest.mark.parametrize("package", ["models", "shadow", "rollout", "serving"])
def test_every_module_has_its_words_in_the_architecture(package: str) -> None:
    (section,) = re.findall(rf"^\*\*{package}/\*\* — .*?\n\n(.*?)(?=\n\n)", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    named = set(re.findall(r"`(\w+/?)`", section))
    assert modules_of(ROOT / package) <= named
    assert {name for name in named if name.endswith("/")} <= modules_of(ROOT / package)


def modules_of(package: Path) -> set[str]:
    """The modules ("spec") and folders ("backends/") of a package."""
    folders = {f"{entry.name}/" for entry in package.iterdir() if entry.is_dir() and entry.name != "__pycache__"}
    return folders | {entry.stem for entry in package.glob("*.py") if entry.stem != "__init__"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for target in _LINK.findall(text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), f"{path.name}: {target}"
        if anchor:
            assert anchor in anchors_of(linked.read_text()), f"{path.name}: {target}"


def anchors_of(text: str) -> set[str]:
    """The anchors of a document's headings, as the usual renderers make them."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}


def test_decisions_are_numbered_without_gaps_and_short() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    for number, path in enumerate(decisions, start=1):
        text = path.read_text()
        assert path.name.startswith(f"{number:04}-")
        assert text.startswith(f"# {number}. ")
        assert len(text.splitlines()) <= 40
