"""The admin door over a real controller and a real database; model replicas are hosted in memory."""

import asyncio
import json
import os
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from rollout.policy import load_policy
from rollout.traffic import Readiness
from serving import control
from serving.admin import create_app
from serving.cli.evidence import app as evidence
from serving.cli.show import status_view
from serving.client import AdminClient
from serving.directory import Process
from tests.serving.control_room import Office, Reporter, door, write_version
from tests.serving.doubler import MODEL
from tests.serving.stage import config_of

TOKEN = "a-token-of-at-least-16-characters"


class Client:
    """Calls the door without a server between."""

    def __init__(self, office: Office, token: str | None = None) -> None:
        app = create_app(office.operations, token=token)
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def call(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def exchange() -> httpx.Response:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://door") as client:
                return await client.request(method, path, **request)

        return asyncio.run(exchange())

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.call("GET", path, **request)

    def post(self, path: str, **request: Any) -> httpx.Response:
        return self.call("POST", path, **request)


@pytest.fixture
def client(office: Office) -> Client:
    return Client(office)


def start(client: Client, **fields: Any) -> Any:
    return client.post("/rollouts", json={"model": MODEL, "candidate": 2, "policy": "equivalence", **fields})


def refused(response: Any, status: int) -> str:
    """The one line of JSON that a refusal is."""
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    text: str = response.json()["error"]
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_models_are_listed_with_their_baseline_and_versions(client: Client) -> None:
    assert client.get("/models").json() == {MODEL: {"baseline": 1, "versions": [1, 2, 3, 4]}}


def test_processes_are_the_routers_that_were_heard_and_the_replicas_that_are_there(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    with door(office) as url, AdminClient(url) as client:
        office.traffic._take(Reporter(office.config.reports, "a").report())
        router = Process(role="router", pid=os.getpid())
        baseline = Process(role="replica", pid=0, model=MODEL, version=1, priority="normal")
        assert client.processes() == [router, baseline]
        assert [each.name for each in client.processes()] == [f"router-{os.getpid()}", "m-1-normal-0"]
        monkeypatch.setattr(control, "SILENCE_S", 0.0)
        assert client.processes() == [baseline]


def test_a_rollout_is_started_shown_and_steered(client: Client, office: Office) -> None:
    started = start(client, actor="ada", notes=["a note"]).json()
    assert started["deployment_id"].startswith("m-2-")
    assert started["folder"] == str(office.config.reports / started["deployment_id"])
    assert client.get(f"/rollouts/{MODEL}").json()["state"] == "loading"
    office.controller.tick()
    office.controller.tick()
    assert client.get(f"/rollouts/{MODEL}").json()["state"] == "shadow"
    paused = client.post(f"/rollouts/{MODEL}/pause", json={"actor": "ada", "reason": "lunch"}).json()
    assert (paused["state"], paused["reason"], paused["folder"]) == ("paused", "lunch", started["folder"])
    assert client.post(f"/rollouts/{MODEL}/resume", json={}).json()["state"] == "shadow"
    promoted = client.post(f"/rollouts/{MODEL}/promote", json={"to": 20}).json()
    assert promoted["state"] in ("staging", "canary")
    ended = client.post(f"/rollouts/{MODEL}/rollback", json={"reason": "enough"}).json()
    assert (ended["state"], ended["active"], ended["weight"]) == ("rolled_back", False, 0)


def test_a_second_rollout_is_a_conflict_unless_it_supersedes(client: Client) -> None:
    first = start(client).json()["deployment_id"]
    assert first in refused(start(client, candidate=3), 409)
    second = start(client, candidate=3, supersede=True).json()["deployment_id"]
    assert client.get(f"/rollouts/{MODEL}").json()["deployment_id"] == second


@pytest.mark.parametrize(
    ("fields", "status", "said"),
    [
        ({"model": "x"}, 400, "x: unknown model; served are ['m']"),
        ({"candidate": 9}, 400, "has no version 9; it has 1, 2, 3, 4"),
        ({"candidate": 1}, 400, "version 1 is the baseline already"),
        ({"candidate": 4}, 400, "version 4 does not fit the baseline"),
        ({"candidate": 0}, 422, "candidate: Input should be greater than or equal to 1"),
        ({"candidate": "two"}, 422, "candidate: Input should be a valid integer"),
        ({"colour": "red"}, 422, "colour: Extra inputs are not permitted"),
        ({"policy": "none.yaml"}, 400, "policy: expected a preset"),
        ({"stages": [0, 50]}, 400, "stages"),
        ({"stages": "all"}, 422, "stages"),
        ({"notes": ["x" * 501]}, 422, "notes.0"),
    ],
)
def test_a_rollout_that_cannot_be_started_is_refused_with_the_reason(
    client: Client, fields: dict[str, Any], status: int, said: str
) -> None:
    assert said in refused(start(client, **fields), status)
    assert client.get(f"/rollouts/{MODEL}").status_code == 400  # there is none


def test_a_candidate_whose_files_were_changed_is_refused(client: Client, office: Office) -> None:
    (office.config.repository / MODEL / "2" / "nothing.bin").write_bytes(b"evil")
    assert "sha256 mismatch" in refused(start(client), 400)


def test_a_candidate_for_which_there_is_no_room_is_refused(client: Client, office: Office) -> None:
    office.host.missing = "1 CPU (free: 0.5)"
    assert "no room to load version 2 beside the baseline: it needs 1 CPU" in refused(start(client), 400)


def test_a_comparator_that_is_not_to_be_had_is_refused_before_anything_starts(tmp_path: Path) -> None:
    for version in (1, 2):
        write_version(tmp_path / "repository", version)
    office = Office(config_of(tmp_path, comparator={"kind": "horoscope", "output": "y"}), tmp_path)
    assert "comparator.kind: expected one of ['classification', " in refused(start(Client(office)), 400)
    office.close()


@pytest.mark.parametrize("action", ["pause", "resume", "promote", "abort", "rollback"])
def test_without_a_rollout_there_is_nothing_to_steer(client: Client, action: str) -> None:
    assert "no rollout is active" in refused(client.post(f"/rollouts/{MODEL}/{action}", json={}), 409)


def test_other_requests_are_refused_in_one_line(client: Client) -> None:
    assert "expected one of" in refused(client.post(f"/rollouts/{MODEL}/celebrate", json={}), 400)
    assert "x: unknown model" in refused(client.get("/rollouts/x"), 400)
    assert "m: no rollout yet" in refused(client.get(f"/rollouts/{MODEL}"), 400)
    assert refused(client.get("/nowhere"), 404) == "GET /nowhere: Not Found"
    assert refused(client.call("DELETE", "/models"), 405) == "DELETE /models: Method Not Allowed"
    assert "JSON decode error" in refused(
        client.post("/rollouts", content=b"{", headers={"content-type": "application/json"}), 422
    )
    assert "to: Input should be less than or equal to 100" in refused(
        client.post(f"/rollouts/{MODEL}/promote", json={"to": 101}), 422
    )
    assert refused(client.post("/rollouts", content=b"x", headers={"content-type": "text/plain"}), 422)


def test_a_fault_of_our_own_is_said_without_its_details(client: Client, office: Office) -> None:
    office.operations.models = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    assert refused(client.get("/models"), 500) == "internal error: ZeroDivisionError"


def test_with_a_token_nobody_gets_in_without_it(office: Office) -> None:
    client = Client(office, TOKEN)
    for header in (None, b"Bearer wrong", b"Bearer", "ü".encode()):
        headers = {} if header is None else {b"authorization": header}
        for path in ("/models", "/docs", "/openapi.json", "/nowhere"):
            assert refused(client.get(path, headers=headers), 401) == "a bearer token is needed"
    assert client.get("/models", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def labels(client: Client, *rows: dict[str, Any]) -> Any:
    return client.post(f"/labels/{MODEL}", json={"labels": list(rows)})


def test_labels_are_for_a_rollout_that_has_evidence_or_may_still_have_some(client: Client, office: Office) -> None:
    row = {"request_id": "r1", "label": 3}
    assert "m: no rollout yet" in refused(labels(client, row), 400)
    start(client)
    office.controller.tick()
    office.controller.tick()
    assert labels(client, row, {**row, "item": 1}).json() == {"accepted": 2, "duplicates": 0}
    assert labels(client, row).json() == {"accepted": 0, "duplicates": 1}
    client.post(f"/rollouts/{MODEL}/abort", json={})
    assert "ended without evidence that labels could join" in refused(labels(client, row), 400)
    other = client.post(f"/labels/{MODEL}", json={"rollout": "m-9", "labels": [row]})
    assert "m: rollout: expected the id of one of its rollouts, got 'm-9'" in refused(other, 400)


def test_labels_that_come_after_a_promotion_reopen_its_verdict(client: Client, office: Office) -> None:
    name = start(client, policy="improvement").json()["deployment_id"]
    office.controller.tick()
    limits = load_policy("improvement", office.config.directory).limits(1e-3)
    reporter = Reporter(office.config.reports, "a", name, limits)
    requests = [f"r{number}" for number in range(60)]
    reporter.record(*requests, top1=(0, 1))
    office.traffic._take(reporter.report())
    office.controller.tick()
    for _ in range(2):
        client.post(f"/rollouts/{MODEL}/promote", json={"actor": "ada", "to": 100, "reason": "in a hurry"})
        office.controller.tick()
    client.post(f"/rollouts/{MODEL}/promote", json={"actor": "ada"})
    reporter.recorder.close()
    before = client.get(f"/rollouts/{MODEL}").json()
    assert (before["state"], before["outcome"], before["reopened"]) == ("promoted", "GO", None)
    rows = [{"request_id": request, "label": 0} for request in requests]
    assert client.post(f"/labels/{MODEL}", json={"rollout": name, "labels": rows}).json()["accepted"] == 60
    office.controller.tick()
    ended = client.get(f"/rollouts/{MODEL}").json()
    assert (ended["state"], ended["outcome"]) == ("promoted", "REJECT")
    assert (ended["reopened"]["was"], ended["reopened"]["now"], ended["reopened"]["labels"]) == ("GO", "REJECT", 60)
    assert client.get("/models").json()[MODEL]["baseline"] == 2
    shown = StringIO()
    Console(width=400, file=shown).print(status_view(ended))
    assert "GO → REJECT, 60 labels joined after the end" in shown.getvalue()
    folder = office.config.reports / name
    assert verified(folder) == (0, [])
    joined = folder / "evidence" / "labels-000001.parquet"
    content = bytearray(joined.read_bytes())
    content[len(content) // 2] ^= 1
    joined.write_bytes(content)
    status, problems = verified(folder)
    assert status == 1
    assert any("labels" in problem for problem in problems)


def verified(folder: Path) -> tuple[int, list[str]]:
    """The exit status of ``understudy evidence verify``, and the problems that it names."""
    result = CliRunner().invoke(evidence, ["verify", str(folder), "--json"])
    return result.exit_code, json.loads(result.stdout)["problems"]


@pytest.mark.parametrize(
    ("row", "status", "said"),
    [
        ({"request_id": "", "label": 1}, 422, "labels.0.request_id"),
        ({"request_id": "x" * 1001, "label": 1}, 422, "labels.0.request_id"),
        ({"request_id": "r", "label": -1}, 422, "labels.0.label"),
        ({"request_id": "r", "label": 1 << 40}, 400, "label: expected 0 to 2147483647"),
        ({"request_id": "r", "item": -1, "label": 1}, 422, "labels.0.item"),
        ({"request_id": "r"}, 422, "labels.0.label: Field required"),
        ({"request_id": "r", "label": 1, "weight": 2}, 422, "labels.0.weight"),
    ],
)
def test_labels_that_are_wrong_are_named(client: Client, row: dict[str, Any], status: int, said: str) -> None:
    start(client)
    assert said in refused(labels(client, row), status)


def test_a_candidate_that_fails_to_load_is_rolled_back_and_a_next_one_may_start(client: Client, office: Office) -> None:
    office.host.next = (Readiness.FAILED, "out of memory")
    start(client)
    office.controller.tick()
    status = client.get(f"/rollouts/{MODEL}").json()
    assert (status["state"], status["reason"]) == ("rolled_back", "the candidate did not load: out of memory")
    assert start(client, candidate=3).status_code == 200
