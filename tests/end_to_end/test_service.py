"""The endpoint, the admin door and the metrics of a running service, through the clients that users have."""

import json
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from models.reference.digits import load_split
from tests.end_to_end.service import Load, Service, understudy, wait_for, write_doubler

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(120)]


def digit(count: int = 1) -> triton.InferInput:
    tensor = triton.InferInput("image", [count, 1, 8, 8], "FP32")
    tensor.set_data_from_numpy(load_split().test_images[:count])
    return tensor


def test_real_digits_are_answered_through_the_stock_client(service: Service) -> None:
    split = load_split()
    client = triton.InferenceServerClient(service.http)
    assert client.is_server_ready()
    assert client.get_model_metadata("digits")["inputs"][0]["shape"] == [-1, 1, 8, 8]
    answer = client.infer("digits", [digit(32)], request_id="é✓")
    right = answer.as_numpy("scores").argmax(axis=1) == split.test_labels[:32]
    assert answer.get_response()["id"] == "é✓"
    assert answer.get_response()["model_version"] == "1"
    assert 0.6 < right.mean() < 1


def test_an_unknown_model_or_version_and_a_wrong_shape_are_the_clients_errors(service: Service) -> None:
    client = triton.InferenceServerClient(service.http)
    wrong = triton.InferInput("image", [1, 8, 8], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 8, 8), np.float32))
    for model, version, tensor, status in (
        ("nope", "", digit(), "404"),
        ("digits", "9", digit(), "404"),
        ("digits", "", wrong, "400"),
    ):
        with pytest.raises(InferenceServerException) as refused:
            client.infer(model, [tensor], model_version=version)
        assert refused.value.status() == status
    assert client.is_server_live()


def test_a_candidate_is_loaded_pinned_forced_and_unloaded_without_a_restart(service: Service) -> None:
    client = triton.InferenceServerClient(service.http)
    service.admin.start("digits", 3)
    service.wait_for_state("digits", "shadow")
    assert client.infer("digits", [digit()], model_version="3").get_response()["model_version"] == "3"
    forced = client.infer("digits", [digit()], headers={"x-understudy-version": "candidate"})
    assert forced.get_response()["model_version"] == "3"
    assert client.infer("digits", [digit()]).get_response()["model_version"] == "1"

    with pytest.raises(Exception, match="is active"):
        service.admin.start("digits", 2)
    service.admin.act("digits", "abort", reason="the test is over")

    status = service.wait_for_state("digits", "aborted")
    assert status["outcome"] == "SHADOW ONLY"
    wait_for(lambda: not client.is_model_ready("digits", "3"), timeout_s=10, what="version 3 to go away")
    assert "Execution Verdict: SHADOW ONLY" in (Path(status["folder"]) / "deployment_verdict.md").read_text()


def test_a_candidate_loads_where_the_memory_that_it_declares_is_free_and_else_is_refused(service: Service) -> None:
    repository = service.config.parent / "repository"
    for version, resources in ((2, {"memory": "64MiB"}), (3, {"gpu_memory": "1PiB"}), (4, {"memory": "1PiB"})):
        write_doubler(repository, "elastic", version, "none", resources=resources)
    for version, words in (
        (3, "no room to load version 3 beside the baseline: it needs 1073741824 MiB of memory on one GPU (free: "),
        (4, "memory_limit: expected at least the resources.memory of version 4, 1073741824 MiB, got 192 MiB"),
    ):
        done = understudy("rollout", "start", "elastic", f"--candidate={version}", "--admin", service.admin_url)
        assert done.returncode == 2
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    service.admin.start("elastic", 2)
    service.wait_for_state("elastic", "shadow")
    service.admin.act("elastic", "abort", reason="the test is over")


def test_a_slow_and_leaking_candidate_is_rolled_back(service: Service) -> None:
    service.admin.start("digits", 5, policy="different.yaml")
    service.wait_for_state("digits", "shadow")
    client = triton.InferenceServerClient(service.http)
    while service.rollout("digits")["active"]:
        client.infer("digits", [digit(4)])
    status = service.rollout("digits")
    assert status["state"] == "rolled_back"
    assert {"latency", "memory"} & {gate["gate"] for gate in status["judgement"]["gates"] if gate["verdict"] == "FAIL"}
    assert status["outcome"] == "REJECT"


def test_the_command_line_steers_and_reports(service: Service) -> None:
    admin = ("--admin", service.admin_url)
    started = understudy("rollout", "start", "steady", "--candidate", "2", "--json", *admin)
    assert started.returncode == 0, started.stderr
    folder = Path(json.loads(started.stdout)["folder"])
    service.wait_for_state("steady", "shadow")
    load = service.play("steady", 300)
    assert load.errors == []
    labels = folder.parent / "labels.csv"
    labels.write_text("request_id,item,label\nsteady-1,0,3\nsteady-2,0,3\n")
    added = understudy("labels", "add", str(labels), "--model", "steady", *admin)
    assert added.returncode == 0, added.stderr
    assert "2 labels accepted" in added.stdout
    paused = understudy("rollout", "pause", "steady", "--reason", "a look", "--json", *admin)
    assert json.loads(paused.stdout)["state"] == "paused"
    assert "paused" in understudy("rollout", "status", "steady", *admin).stdout
    aborted = understudy("rollout", "abort", "steady", *admin)
    assert aborted.returncode == 0, aborted.stderr
    service.wait_for_state("steady", "aborted")
    report = understudy("report", folder.name, "--reports", str(folder.parent))
    assert report.returncode == 0, report.stderr
    assert report.stdout.splitlines()[-1].startswith("Execution Verdict: SHADOW ONLY — confidence = ")
    verified = understudy("evidence", "verify", str(folder))
    assert verified.returncode == 0, verified.stdout + verified.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("start", "steady", "--candidate", "9"), "9"),
        (("start", "nope", "--candidate", "2"), "nope"),
        (("start", "steady", "--candidate", "1"), "baseline already"),
        (("start", "steady", "--candidate", "2", "--policy", "missing.yaml"), "missing.yaml"),
        (("status", "nope"), "nope"),
    ],
)
def test_wrong_use_of_a_rollout_is_one_line_and_status_2(
    service: Service, arguments: tuple[str, ...], words: str
) -> None:
    done = understudy("rollout", *arguments, "--admin", service.admin_url)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_a_second_server_is_refused_its_ports(service: Service) -> None:
    done = understudy("serve", str(service.config))
    assert done.returncode == 2
    assert "http_port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_metrics_show_requests_weights_and_the_mirrors_account(service: Service) -> None:
    assert sum(service.scrape("understudy_requests_total", model="digits", outcome="ok", version="1").values()) > 0
    assert set(service.scrape("understudy_candidate_weight_percent", model="digits").values()) == {0.0}


def test_logs_are_json_lines_without_payloads(service: Service) -> None:
    lines = (service.reports / "logs" / "router.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert {"replica_up"} <= {event["event"] for event in events}
    assert all("ts" in event and "level" in event for event in events)


def test_the_admin_door_speaks_openapi(service: Service) -> None:
    paths = httpx.get(f"{service.admin_url}/openapi.json", trust_env=False).json()["paths"]
    assert "/rollouts/{model}" in paths


def test_a_profile_names_the_stages_and_draws_what_the_processes_do(service: Service, tmp_path: Path) -> None:
    over = threading.Event()
    player = threading.Thread(target=lambda: loads.append(service.play("steady", 1_000_000, until=over.is_set)))
    loads: list[Load] = []
    player.start()
    try:
        done = understudy("profile", str(service.config), "--seconds", "2", "--out", str(tmp_path), "--json")
    finally:
        over.set()
        player.join()
    assert done.returncode == 0, done.stderr
    assert loads[0].errors == []
    found = json.loads(done.stdout)
    (steady,) = [each for each in found["versions"] if each["model"] == "steady"]
    assert 0 < steady["requests"] <= len(loads[0].latencies_s)
    assert sum(stage["share"] for stage in steady["stages"].values()) == pytest.approx(1)
    assert 0 < steady["mean_s"] < float(np.mean(loads[0].latencies_s)) * 1.5
    if any("may not attach" in problem for problem in found["problems"]):
        pytest.skip(found["problems"][0])
    drawn = {Path(path).stem.rpartition("-")[0]: Path(path).read_text() for path in found["flamegraphs"]}
    assert {"router", "steady-1-normal"} <= set(drawn)
    for name, code in (("router", "serving/router.py"), ("steady-1-normal", "serving/replica.py")):
        assert "<svg" in drawn[name]
        assert code in drawn[name]


LOCUST = (sys.executable, "-m", "locust", "-f", str(Path(__file__).parents[2] / "benchmarks" / "locustfile.py"))
needs_locust = pytest.mark.skipif(find_spec("locust") is None, reason="locust is not installed: extra load")


def load_test(service: Service, *options: str) -> "subprocess.CompletedProcess[str]":
    """30 users over both transports; any capacity will do."""
    command = [*LOCUST, "--headless", "--only-summary", "-u", "30", "-r", "300", "--host", f"http://{service.http}"]
    command += ["--grpc-host", service.grpc, "--slo-capacity", "1", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@needs_locust
def test_a_load_test_over_both_transports_finds_the_objectives_met(service: Service) -> None:
    done = load_test(service, "-t", "6", "--capacity-seconds", "3", "--slo-p95-ms", "10000")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(r"^R1 p95 latency .* ms +met$", said, re.MULTILINE)
    assert re.search(r"^R2 error rate .* 0\.000% +met$", said, re.MULTILINE)
    assert re.search(r"^closed loop: .* from 4 users .*, 0 of \d+ failed$", said, re.MULTILINE)
    for way in ("HTTP +digits, binary", "HTTP +digits, JSON", "gRPC +digits"):
        assert re.search(rf"^{way} +[1-9]\d* +0\(0.00%\)", said, re.MULTILINE), way


@needs_locust
def test_a_load_test_whose_objective_is_missed_ends_with_status_1(service: Service) -> None:
    done = load_test(service, "-t", "3", "--capacity-seconds", "1", "--slo-p95-ms", "0.001")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^R1 p95 latency .* ms +BREACH$", done.stdout, re.MULTILINE)
