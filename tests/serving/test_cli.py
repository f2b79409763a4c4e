"""The commands as a user gives them: what goes wrong is one line on standard error and exit status 2."""

import json
import shutil
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from serving import cli
from serving.cli.labels import LabelFileError, read_labels
from tests.serving.control_room import Office, door
from tests.serving.doubler import MODEL

EXAMPLES = Path(__file__).parents[2] / "examples"
TOKEN = "a-token-of-at-least-16-characters"
COMMANDS = [
    (),
    ("serve",),
    ("demo",),
    ("report",),
    ("schema-diff",),
    ("profile",),
    ("rollout",),
    *(("rollout", name) for name in ("start", "status", "pause", "resume", "promote", "abort", "rollback")),
    ("labels",),
    ("labels", "add"),
    ("shadow",),
    *(("shadow", name) for name in ("replay", "report")),
    ("evidence",),
    ("evidence", "verify"),
    ("models",),
    *(("models", name) for name in ("check", "hash", "schema")),
]


class Ended(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def understudy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program with its arguments."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["understudy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        status = caught.value.code
        assert status is None or isinstance(status, int)
        return Ended(status or 0, *capsys.readouterr())

    return run


@pytest.fixture
def url(office: Office) -> Iterator[str]:
    with door(office) as opened:
        yield opened


def refused(ended: Ended) -> str:
    """The one line of a command that was used wrongly."""
    assert ended.status == 2
    assert ended.out == ""
    assert ended.err.startswith("understudy: ")
    assert ended.err.count("\n") == 1
    return ended.err.removeprefix("understudy: ").rstrip()


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(understudy: Run, command: tuple[str, ...]) -> None:
    ended = understudy(*command, "--help")
    assert (ended.status, ended.err) == (0, "")
    assert "Usage: understudy" in ended.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("dance",),
        ("serve",),
        ("serve", "a", "b"),
        ("serve", "--loudly", "x"),
        ("rollout", "start", "m"),
        ("rollout", "start", "m", "--candidate", "two"),
        ("rollout", "start", "m", "--candidate", "0"),
        ("rollout", "promote", "m", "--to", "101"),
        ("rollout", "celebrate", "m"),
        ("labels", "add", "file.csv"),
        ("evidence", "verify"),
        ("models", "check"),
        ("models", "check", ".", "--backend", "mine"),
        ("schema-diff", "--baseline", "a"),
        ("demo", "--rate", "0"),
    ],
    ids=" ".join,
)
def test_wrong_use_is_explained_with_status_2(understudy: Run, arguments: tuple[str, ...]) -> None:
    ended = understudy(*arguments)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err.startswith("understudy: ")
    assert len(ended.err.splitlines()) == 1


# understudy serve


@pytest.fixture(scope="session")
def ray_is_imported() -> None:
    """Ray warns of its own deprecations while it is imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import serving.launch  # noqa: F401


def write_config(folder: Path, **changes: Any) -> Path:
    """A configuration for the digits models of a copied repository, on ports that are free."""
    repository = folder / "repository"
    shutil.copytree(EXAMPLES / "model_repository", repository)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    names = ("http_port", "grpc_port", "metrics_port", "admin_port")
    document = {
        "repository": "./repository",
        "server": dict(zip(names, ports, strict=True)),
        "models": {"digits": {"baseline": 1, "comparator": {"output": "scores"}}},
    }
    for field, value in changes.items():
        *path, last = field.split("__")
        section: Any = document
        for part in path:
            section = section[part]
        section[last] = value
    path_of_it = folder / "config.yaml"
    path_of_it.write_text(yaml.safe_dump(document))
    return path_of_it


def test_a_configuration_that_is_not_there_is_named(understudy: Run, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    assert refused(understudy("serve", path)) == f"{path}: cannot be read: No such file or directory"


def test_an_unknown_key_is_named_with_its_line(understudy: Run, tmp_path: Path) -> None:
    path = write_config(tmp_path, server__colour="red")
    line = next(n for n, text in enumerate(path.read_text().splitlines(), start=1) if "colour" in text)
    assert refused(understudy("serve", path)) == f"{path}:{line}: server.colour: unknown key"


@pytest.mark.usefixtures("ray_is_imported")
class TestServe:
    """Everything that can be found out is found out before Ray is started."""

    @pytest.fixture(autouse=True)
    def _ray_is_not_started(self) -> Iterator[None]:
        yield
        import ray

        assert not ray.is_initialized()

    def test_a_good_configuration_is_good(self, understudy: Run, tmp_path: Path) -> None:
        path = write_config(tmp_path)
        ended = understudy("serve", path, "--check")
        assert (ended.status, ended.err) == (0, "")
        assert ended.out.replace("\n", "") == f"{path}: good"

    def test_an_artifact_with_a_flipped_byte_is_refused(self, understudy: Run, tmp_path: Path) -> None:
        path = write_config(tmp_path)
        artifact = tmp_path / "repository" / "digits" / "1" / "model.onnx"
        data = bytearray(artifact.read_bytes())
        data[len(data) // 2] ^= 1
        artifact.write_bytes(data)
        said = refused(understudy("serve", path))
        assert said.startswith("models.digits.baseline: ")
        assert "sha256 mismatch" in said
        assert "refusing to load" in said

    @pytest.mark.parametrize("port", ["http_port", "metrics_port", "admin_port"])
    def test_a_port_in_use_is_named(self, understudy: Run, tmp_path: Path, port: str) -> None:
        path = write_config(tmp_path)
        number = yaml.safe_load(path.read_text())["server"][port]
        with socket.create_server(("127.0.0.1", number)):
            said = refused(understudy("serve", path))
        assert said == f"server.{port}: port {number} on 127.0.0.1 cannot be used: Address already in use"

    def test_an_address_that_is_not_ours_is_named(self, understudy: Run, tmp_path: Path) -> None:
        path = write_config(tmp_path, server__host="192.0.2.1", server__admin_token=TOKEN)
        assert "on 192.0.2.1 cannot be used" in refused(understudy("serve", path))

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"repository": "./nowhere"}, "nowhere: expected the model repository, found no such folder"),
            ({"reports": "./config.yaml"}, "config.yaml is not"),
            ({"reports": "./config.yaml/below"}, "config.yaml is not"),
            ({"models__digits__baseline": 99}, "models.digits.baseline: "),
            ({"models__letters": {"baseline": 1, "comparator": {"output": "y"}}}, "models.letters.baseline: "),
            (
                {"models__digits__comparator__output": "logits"},
                "models.digits.comparator.output: expected one of the outputs scores, got 'logits'",
            ),
        ],
    )
    def test_what_the_configuration_names_must_be_there(
        self, understudy: Run, tmp_path: Path, change: dict[str, Any], said: str
    ) -> None:
        assert said in refused(understudy("serve", write_config(tmp_path, **change)))


# understudy rollout


def test_a_rollout_is_started_shown_and_aborted(understudy: Run, office: Office, url: str) -> None:
    started = understudy("rollout", "start", MODEL, "--candidate", 2, "--policy", "equivalence", "--admin", url)
    assert (started.status, started.err) == (0, "")
    assert started.out.startswith("started m-2-")
    office.controller.tick()
    office.controller.tick()
    shown = understudy("rollout", "status", MODEL, "--admin", url)
    assert (shown.status, shown.err) == (0, "")
    assert "shadow" in shown.out
    status = json.loads(understudy("rollout", "status", MODEL, "--admin", url, "--json").out)
    assert (status["state"], status["policy"]) == ("shadow", "equivalence")
    for action, state in (("pause", "paused"), ("resume", "shadow"), ("abort", "aborted")):
        ended = understudy("rollout", action, MODEL, "--reason", "because", "--admin", url, "--json")
        assert (ended.status, json.loads(ended.out)["state"]) == (0, state)


def test_the_user_who_acts_is_in_the_journal_even_without_a_name(
    understudy: Run, office: Office, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nameless)
    started = understudy("rollout", "start", MODEL, "--candidate", 2, "--admin", url, "--json")
    folder = Path(json.loads(started.out)["folder"])
    assert json.loads((folder / "journal.jsonl").read_text().splitlines()[0])["actor"].startswith("uid ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", MODEL, "--candidate", "9"), "model 'm' has no version 9; it has 1, 2, 3, 4"),
        (("start", MODEL, "--candidate", "4"), "version 4 does not fit the baseline"),
        (("start", MODEL, "--candidate", "2", "--policy", "none.yaml"), "policy: expected a preset"),
        (("start", "x", "--candidate", "2"), "x: unknown model; served are ['m']"),
        (("status", MODEL), "m: no rollout yet"),
        (("status", "x"), "x: unknown model"),
        *(((action, MODEL), "no rollout is active") for action in ("pause", "resume", "promote", "abort", "rollback")),
    ],
)
def test_what_the_server_refuses_is_said_in_one_line(
    understudy: Run, url: str, arguments: tuple[str, ...], said: str
) -> None:
    assert said in refused(understudy("rollout", *arguments, "--admin", url))


@pytest.mark.parametrize(
    ("admin", "said"),
    [
        ("http://127.0.0.1:1", "http://127.0.0.1:1: is the server running?"),
        ("127.0.0.1:8080", "127.0.0.1:8080: "),
        ("http://[::", "http://[::: expected a URL such as http://127.0.0.1:8080"),
        ("http://host:port", "http://host:port: expected a URL such as"),
        ("ftp://127.0.0.1", "ftp://127.0.0.1: "),
    ],
)
def test_a_server_that_is_not_there_is_said_in_one_line(understudy: Run, admin: str, said: str) -> None:
    assert refused(understudy("rollout", "status", MODEL, "--admin", admin)).startswith(said)


@pytest.mark.parametrize("token", [None, "wrong", "ümlaut"])
def test_a_door_that_needs_a_token_says_so(understudy: Run, office: Office, token: str | None) -> None:
    with door(office, TOKEN) as url:
        options = ("--token", token) if token else ()
        refusal = understudy("rollout", "status", MODEL, "--admin", url, *options)
        assert refused(refusal) == "a bearer token is needed"
        opened = understudy("rollout", "status", MODEL, "--admin", url, "--token", TOKEN)
        assert refused(opened) == "m: no rollout yet"


# understudy labels


def write(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "request_id,item,label\nr1,0,3\nr2,1,4\n"),
        ("l.csv", "label,request_id,item\r\n3,r1,0\r\n4,r2,1\r\n"),
        ("l.csv", '\ufeffrequest_id,item,label\nr1,0,3\n\n"r2", 1 ,4'),
        ("l.jsonl", '{"request_id": "r1", "label": 3}\n\n{"request_id": "r2", "item": 1, "label": 4}\n'),
    ],
)
def test_labels_are_read_from_csv_and_json_lines(tmp_path: Path, name: str, text: str) -> None:
    assert list(read_labels(write(tmp_path, name, text))) == [
        {"request_id": "r1", "item": 0, "label": 3},
        {"request_id": "r2", "item": 1, "label": 4},
    ]


def test_an_id_may_hold_what_its_format_can_quote(tmp_path: Path) -> None:
    odd = 'a,"b"\nc\u2028d'
    quoted = odd.replace('"', '""')
    (row,) = read_labels(write(tmp_path, "l.csv", f'request_id,label\n"{quoted}",1\n'))
    assert row == {"request_id": odd, "item": 0, "label": 1}
    (row,) = read_labels(write(tmp_path, "l.jsonl", json.dumps({"request_id": odd, "label": 1}, ensure_ascii=False)))
    assert row["request_id"] == odd


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("l.csv", "", ":1: expected the header request_id,item,label, got ''"),
        ("l.csv", "id,label\n", ":1: expected the header request_id,item,label, got 'id,label'"),
        ("l.csv", "request_id,label,weight\n", ":1: expected the header"),
        ("l.csv", "request_id,label\nr1\n", ":2: label: expected a whole number from 0, got None"),
        ("l.csv", "request_id,label\nr1,1\nr2,1,1\n", ":3: expected 2 fields, got more"),
        ("l.csv", "request_id,label\nr1,cat\n", ":2: label: expected a whole number from 0, got 'cat'"),
        ("l.csv", "request_id,label\nr1,-1\n", ":2: label: expected a whole number from 0, got '-1'"),
        ("l.csv", "request_id,label\nr1,1.0\n", ":2: label: "),
        ("l.csv", "request_id,label\nr1,²\n", ":2: label: "),
        ("l.csv", "request_id,label\nr1," + "9" * 5000 + "\n", ":2: label: "),
        ("l.csv", "request_id,item,label\nr1,,1\n", ":2: item: expected a whole number from 0, got ''"),
        ("l.csv", "request_id,label\n,1\n", ":2: request_id: expected a text, got ''"),
        ("l.csv", 'request_id,label\n"r1"x,1\n', ":2: not CSV: "),
        ("l.csv", "request_id,label\n" + "x" * 200_000 + ",1\n", ":2: not CSV: field larger than field limit"),
        ("l.csv", b"\xff\xfe", ": cannot be read: 'utf-8' codec"),
        ("l.jsonl", "{\n", ":1: not JSON: "),
        ("l.jsonl", "[1]\n", ":1: expected an object with request_id, item and label"),
        ("l.jsonl", '{"label": 1}\n', ":1: request_id: expected a text, got None"),
        ("l.jsonl", '{"request_id": 7, "label": 1}\n', ":1: request_id: expected a text, got 7"),
        ("l.jsonl", '\n{"request_id": "r"}\n', ":2: label: expected a whole number from 0, got ''"),
        ("l.jsonl", '{"request_id": "r", "label": true}\n', ":1: label: "),
    ],
)
def test_a_wrong_label_file_is_named_with_line_and_field(
    tmp_path: Path, name: str, text: str | bytes, said: str
) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(LabelFileError) as caught:
        list(read_labels(path))
    assert str(caught.value).startswith(f"{path}{said}")


def test_a_label_file_that_is_wrong_or_missing_ends_the_command(understudy: Run, tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", write(tmp_path, "l.csv", "x\n")):
        assert refused(understudy("labels", "add", path, "--model", MODEL)).startswith(str(path))


def test_labels_reach_the_active_rollout(understudy: Run, office: Office, url: str, tmp_path: Path) -> None:
    path = write(tmp_path, "l.csv", "request_id,label\nr1,1\nr2,0\nr1,1\n")
    command = ("labels", "add", path, "--model", MODEL, "--admin", url)
    assert refused(understudy(*command)) == "m: no rollout yet"
    understudy("rollout", "start", MODEL, "--candidate", 2, "--admin", url)
    office.controller.tick()
    office.controller.tick()
    ended = understudy(*command)
    assert (ended.status, ended.out) == (0, "2 labels accepted, 1 were there already\n")


# understudy evidence, report, models


@pytest.mark.parametrize(
    "command",
    [
        ("evidence", "verify"),
        ("models", "check"),
        ("models", "hash"),
        ("models", "schema"),
        ("report", "m", "--reports"),
    ],
    ids=" ".join,
)
def test_a_folder_that_is_not_what_the_command_needs_is_named(
    understudy: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    for path in (tmp_path, tmp_path / "none"):
        assert refused(understudy(*command, path)).startswith(str(path))


def test_a_report_that_cannot_be_written_is_said_in_one_line(understudy: Run, office: Office, url: str) -> None:
    assert understudy("rollout", "start", "m", "--candidate", 2, "--admin", url).status == 0
    ended = json.loads(understudy("rollout", "abort", "m", "--admin", url, "--json").out)
    folder = Path(ended["folder"])
    (folder / "deployment_verdict.md").unlink()
    (folder / "deployment_verdict.md").mkdir()
    said = refused(understudy("report", ended["deployment_id"], "--reports", folder.parent))
    assert "Is a directory" in said
    assert "deployment_verdict.md" in said
