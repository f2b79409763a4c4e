import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.config import Config, load_config
from serving.errors import ConfigError
from shadow.exemplars import MOST, ExemplarSettings

ROOT = Path(__file__).parents[2]

GOOD = """\
repository: ./models
database: sqlite:///state.db
server:
  http_port: 9000
models:
  digits:
    baseline: 1
    replicas: {memory_limit: 2GiB}
    batching:
      max_batch_size: 8
    mirror: {sample: 0.5, max_pending_bytes: 64MiB}
    comparator: {output: scores}
    rollout:
      stages: [0, 10, 100]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def changed(folder: Path, field: str, value: Any) -> Path:
    """The good configuration with one field of another value, one field to a line."""
    document = yaml.safe_load(GOOD)
    section = document
    *path, last = field.split(".")
    for part in path:
        section = section.setdefault(part, {})
    section[last] = value
    return write(folder, yaml.safe_dump(document, sort_keys=False))


def refusal(path: Path) -> str:
    """What is said of a wrong configuration, without the file's name, which comes first."""
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text.removeprefix(str(path))


def test_a_good_file_is_read_with_its_defaults_and_paths_relative_to_it(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    digits = config.models["digits"]
    assert config.repository == tmp_path / "models"
    assert config.reports == tmp_path / "reports"
    assert config.directory == tmp_path
    assert config.database == f"sqlite:///{tmp_path}/state.db"
    assert (config.server.http_port, config.server.admin_port, config.server.host) == (9000, 8080, "127.0.0.1")
    assert digits.replicas.memory_limit == 2 << 30
    assert digits.mirror.max_pending_bytes == 64 << 20
    assert (digits.batching.max_batch_size, digits.batching.max_queue) == (8, 1024)
    assert digits.rollout.stages == (0, 10, 100)
    assert digits.comparator.kind == "classification"


def test_the_example_is_good() -> None:
    assert list(load_config(Path(__file__).parents[2] / "examples" / "digits.yaml").models) == ["digits"]


def test_a_configuration_travels_to_other_processes_whole(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    copy: Config = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.directory == config.model_copy(update={"reports": tmp_path}).directory == tmp_path


@pytest.mark.parametrize("url", ["postgresql+psycopg://db/understudy", "sqlite:///", "sqlite://"])
def test_a_database_that_is_no_file_is_left_as_it_is(tmp_path: Path, url: str) -> None:
    assert load_config(changed(tmp_path, "database", url)).database == url


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert load_config(changed(tmp_path, "repository", "/srv/models")).repository == Path("/srv/models")
    assert load_config(changed(tmp_path, "database", "sqlite:////srv/x.db")).database == "sqlite:////srv/x.db"


@pytest.mark.parametrize(
    ("field", "value", "line", "expectation"),
    [
        ("repository", None, 1, "repository: Input is not a valid path"),
        ("repository", 3, 1, "repository: Input is not a valid path"),
        ("backends.mine", "package.module", 22, "backends: expected mine: an import path package.module:Name, got"),
        ("backends.mine", ":Name", 22, "backends: expected mine: an import path"),
        ("server.http_port", 0, 4, "greater than or equal to 1, got 0"),
        ("server.http_port", 65536, 4, "less than or equal to 65535, got 65536"),
        ("server.http_port", "eighty", 4, "valid integer"),
        ("server.http_port", 8002, 3, "server: expected four different ports, got [8002, 8001, 8002, 8080]"),
        (
            "server.host",
            "0.0.0.0",
            3,
            "server: expected an admin_token of at least 16 characters, because host 0.0.0.0",
        ),
        ("server.admin_token", "short", 5, "server.admin_token: String should have at least 16 characters"),
        ("server.deadline_s", 0, 5, "greater than 0, got 0"),
        ("server.deadline_s", float("inf"), 5, "finite number"),
        ("server.max_body", "many", 5, "server.max_body"),
        ("server.max_json", "1B", 5, "server.max_json: Input should be greater than or equal to 1024, got '1B'"),
        ("server.limits.receiving", "1KiB", 6, "receiving: Input should be greater than or equal to 65536, got '1KiB'"),
        ("server.routers", 0, 5, "server.routers: Input should be greater than or equal to 1, got 0"),
        ("models", {}, 5, "models: Dictionary should have at least 1 item"),
        ("models", [], 5, "models: Input should be a valid dictionary"),
        ("models.-x", {}, 22, "models.-x: String should match pattern"),
        ("models.digits", None, 6, "models.digits: Input should be a valid dictionary"),
        ("models.digits.baseline", 0, 7, "models.digits.baseline: Input should be greater than or equal to 1, got 0"),
        ("models.digits.baseline", "one", 7, "models.digits.baseline: Input should be a valid integer"),
        ("models.digits.replicas.num_replicas", 0, 10, "models.digits.replicas.num_replicas"),
        (
            "models.digits.replicas.autoscaling",
            {"max_replicas": 2},
            10,
            "models.digits.replicas.autoscaling.target_queue: missing",
        ),
        (
            "models.digits.replicas.autoscaling",
            {"min_replicas": 3, "max_replicas": 2, "target_queue": 8},
            10,
            "models.digits.replicas.autoscaling: expected max_replicas of at least min_replicas, 3, got 2",
        ),
        (
            "models.digits.replicas",
            {"num_replicas": 2, "autoscaling": {"max_replicas": 2, "target_queue": 8}},
            8,
            "models.digits.replicas: expected num_replicas or autoscaling, not both",
        ),
        ("models.digits.replicas.num_cpus", -1, 10, "models.digits.replicas.num_cpus"),
        ("models.digits.replicas.memory_limit", "2GiBi", 9, "models.digits.replicas.memory_limit"),
        ("models.digits.batching.max_batch_size", 0, 11, "models.digits.batching.max_batch_size"),
        ("models.digits.batching.max_wait_ms", float("nan"), 12, "models.digits.batching.max_wait_ms"),
        (
            "models.digits.mirror.sample",
            1.5,
            13,
            "models.digits.mirror.sample: Input should be less than or equal to 1",
        ),
        ("models.digits.mirror.max_pending", 0, 15, "models.digits.mirror.max_pending"),
        ("models.digits.comparator", {}, 15, "models.digits.comparator.output: missing"),
        ("models.digits.comparator.tolerance", 0, 17, "models.digits.comparator.tolerance"),
        ("models.digits.rollout.stages", [0, 50, 20, 100], 18, "stages: expected rising weights from 0 to 100"),
        ("models.digits.rollout.stages", [5, 100], 18, "stages: expected rising weights from 0 to 100"),
        ("models.digits.rollout.stages", [0, 50], 18, "stages: expected rising weights from 0 to 100"),
        ("models.digits.rollout.stages", [100], 18, "stages: expected rising weights from 0 to 100"),
        ("models.digits.rollout.stages", [0, 0, 100], 18, "stages: expected rising weights from 0 to 100"),
        ("models.digits.rollout.stages", 5, 18, "stages: Input should be a valid tuple, got 5"),
    ],
)
def test_a_wrong_field_is_named_with_its_line_and_what_was_expected(
    tmp_path: Path, field: str, value: Any, line: int, expectation: str
) -> None:
    said = refusal(changed(tmp_path, field, value))
    assert said.startswith(f":{line}: ")
    assert expectation in said


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("colour", 22),
        ("directory", 22),
        ("_directory", 22),
        ("server.https_port", 5),
        ("models.digits.batching.max", 12),
    ],
)
def test_an_unknown_key_is_named_with_its_line(tmp_path: Path, field: str, line: int) -> None:
    assert refusal(changed(tmp_path, field, 1)) == f":{line}: {field}: unknown key"


@pytest.mark.parametrize(("field", "line"), [("repository", 1), ("models", 1)])
def test_a_missing_key_is_named(tmp_path: Path, field: str, line: int) -> None:
    document = yaml.safe_load(GOOD)
    del document[field]
    assert refusal(write(tmp_path, yaml.safe_dump(document, sort_keys=False))) == f":{line}: {field}: missing"


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert (
        refusal(write(tmp_path, GOOD + "repository: ./others\n")) == ":15: repository: expected once, it is there twice"
    )
    nested = GOOD.replace("      max_batch_size: 8\n", "      max_batch_size: 8\n      max_batch_size: 9\n")
    assert refusal(write(tmp_path, nested)) == ":11: max_batch_size: expected once, it is there twice"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\nb: 3\n", r":\d+: not YAML: "),
        ("a: b: c\n", r":1: not YAML: "),
        ("a: \x07", r": not YAML: "),
        ("", ": expected a mapping with the key 'models', got NoneType"),
        ("- 1\n", ": expected a mapping with the key 'models', got list"),
        ("1: 2\n", ":1: repository: missing"),
    ],
)
def test_what_is_no_configuration_at_all_is_refused(tmp_path: Path, text: str, said: str) -> None:
    assert re.match(said, refusal(write(tmp_path, text)))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == ": cannot be read: No such file or directory"
    assert refusal(tmp_path) == ": cannot be read: Is a directory"
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read: 'utf-8' codec" in refusal(tmp_path / "bytes.yaml")


# Exemplars


def test_no_exemplars_are_kept_unless_it_is_said_and_those_that_are_have_bounds(tmp_path: Path) -> None:
    silent = load_config(write(tmp_path, GOOD)).models["digits"].mirror.exemplars
    assert (silent.build(), silent.build().on) == (ExemplarSettings(), False)
    path = changed(tmp_path, "models.digits.mirror.exemplars", {"worst": 8, "max_bytes": "1GiB", "max_age_s": 3600})
    said = load_config(path).models["digits"].mirror.exemplars
    assert said.build() == ExemplarSettings(worst=8, max_bytes=1 << 30, max_age_s=3600.0)
    assert said.build().on


@pytest.mark.parametrize(
    ("field", "value", "expectation"),
    [
        ("worst", -1, "exemplars.worst: Input should be greater than or equal to 0, got -1"),
        ("worst", MOST + 1, f"exemplars: expected worst: expected a number from 0 to {MOST}, got {MOST + 1}"),
        ("sample", 1.5, "exemplars.sample: Input should be less than or equal to 1, got 1.5"),
        ("max_bytes", 0, "exemplars.max_bytes: Input should be greater than or equal to 1, got 0"),
        ("max_age_s", 0, "exemplars.max_age_s: Input should be greater than 0, got 0"),
        ("max_age", 1, "exemplars.max_age: unknown key"),
    ],
)
def test_a_wrong_setting_of_exemplars_is_named(tmp_path: Path, field: str, value: Any, expectation: str) -> None:
    said = refusal(changed(tmp_path, f"models.digits.mirror.exemplars.{field}", value))
    assert f"models.digits.mirror.{expectation}" in said


def test_a_process_that_keeps_no_exemplars_does_without_arrow(tmp_path: Path) -> None:
    script = "\n".join(
        [
            "import pathlib, sys",
            "from serving.config import load_config",
            "load_config(pathlib.Path(sys.argv[1]))",
            "sys.exit('pyarrow' in sys.modules)",
        ]
    )
    path = write(tmp_path, GOOD)
    assert subprocess.run([sys.executable, "-c", script, str(path)], cwd=ROOT, timeout=60, check=False).returncode == 0
