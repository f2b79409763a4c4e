import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from models.errors import RepositoryError, SpecError
from models.repository import open_version
from serving.cli import app
from tests.models.making import identity_graph, tensor, write_version

REPOSITORY = Path(__file__).parents[2] / "examples" / "model_repository"
LEAKING = "leaking=models.reference.leaking:LeakingBackend"


def understudy(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def identity(root: Path, **changes: Any) -> Path:
    return write_version(root, identity_graph("FP32", ["b", 3]), **changes)


def test_check_passes_every_version_of_the_example_repository() -> None:
    result = understudy("models", "check", REPOSITORY, "--backend", LEAKING, "--json")
    assert result.exit_code == 0, result.output
    checks = json.loads(result.stdout)
    found = [(check["model"], check["version"], check["preprocess"], check["problem"]) for check in checks]
    digits = [("digits", number, "", "") for number in range(1, 6)]
    assert found == [*digits, ("digits-image", 1, "picture: image", "")]
    assert checks[4]["backend"] == "leaking"
    assert checks[4]["one_ms"] > 505
    assert {check["full_batch_size"] for check in checks} == {32}


def test_check_prints_a_table_and_the_whole_problem_beneath(tmp_path: Path) -> None:
    good, bad = identity(tmp_path), identity(tmp_path, version=2)
    (bad / "model.onnx").write_bytes(b"changed")
    assert understudy("models", "check", good).exit_code == 0
    result = understudy("models", "check", tmp_path)
    assert result.exit_code == 1
    assert "failed" in result.stdout
    assert f"model 2: {bad}: sha256 mismatch: expected" in result.stdout.replace("\n", "")


def test_check_finds_an_answer_that_is_not_as_declared(tmp_path: Path) -> None:
    graph = identity_graph("FP32", ["b", "n"])
    directory = write_version(tmp_path, graph, inputs=[tensor("IN", "FP32", [-1, -1])])
    result = understudy("models", "check", directory, "--json")
    assert result.exit_code == 1
    assert "output 'OUT': expected shape [1, 3], found [1, 1]" in json.loads(result.stdout)[0]["problem"]


@pytest.mark.parametrize("datatype", ["BYTES", "BF16", "BOOL"])
def test_check_tries_every_datatype(tmp_path: Path, datatype: str) -> None:
    described: dict[str, Any] = {"inputs": [tensor("IN", datatype, [2])], "outputs": [tensor("OUT", datatype, [2])]}
    directory = write_version(tmp_path, identity_graph(datatype, [2]), max_batch_size=0, **described)
    result = understudy("models", "check", directory, "--json")
    assert result.exit_code == 0, result.output


def test_check_refuses_what_it_cannot_understand(tmp_path: Path) -> None:
    assert understudy("models", "check", identity(tmp_path), "--backend", "leaking").exit_code == 2
    assert isinstance(understudy("models", "check", tmp_path / "absent").exception, RepositoryError)


def test_hash_writes_the_sha256_of_every_version_below(tmp_path: Path) -> None:
    first, second = identity(tmp_path, hashed=False), identity(tmp_path, version=2, hashed=False)
    result = understudy("models", "hash", tmp_path)
    assert result.exit_code == 0
    assert result.stdout == "".join(f"{open_version(path).spec.sha256}  {path}\n" for path in (first, second))
    printed = json.loads(understudy("models", "hash", tmp_path, "--json").stdout)
    assert printed == {str(path): open_version(path).spec.sha256 for path in (first, second)}


def test_schema_diff_of_compatible_versions_succeeds() -> None:
    baseline, candidate = REPOSITORY / "digits" / "1", REPOSITORY / "digits" / "5"
    result = understudy("schema-diff", "--baseline", baseline, "--candidate", candidate)
    assert result.exit_code == 0
    assert "compatible: 2 of 11 fields differ" in result.stdout


def test_schema_diff_of_incompatible_versions_fails(tmp_path: Path) -> None:
    baseline = identity(tmp_path)
    candidate = identity(tmp_path, version=2, max_batch_size=4)
    result = understudy("schema-diff", "--baseline", baseline, "--candidate", candidate, "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["compatible"]
    assert found["differences"][0]["field"] == "max_batch_size"
    assert "incompatible" in understudy("schema-diff", "--baseline", baseline, "--candidate", candidate).stdout


def test_schema_diff_reads_what_schema_prints(tmp_path: Path) -> None:
    directory = REPOSITORY / "digits" / "1"
    schema = tmp_path / "schema_v1.json"
    schema.write_text(understudy("models", "schema", directory).stdout)
    result = understudy("schema-diff", "--baseline", schema, "--candidate", directory)
    assert result.exit_code == 0
    assert "compatible: 0 of 11 fields differ" in result.stdout


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "x"}'])
def test_schema_diff_names_a_schema_that_it_cannot_read(tmp_path: Path, content: str | None) -> None:
    schema = tmp_path / "schema_v1.json"
    if content is not None:
        schema.write_text(content)
    result = understudy("schema-diff", "--baseline", schema, "--candidate", schema)
    assert isinstance(result.exception, SpecError)
    assert str(schema) in str(result.exception)


def test_an_expected_error_is_one_line_and_exit_status_2(tmp_path: Path) -> None:
    program = "from serving.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "models", "check", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"understudy: {tmp_path}: expected")
    assert len(done.stderr.splitlines()) == 1
