"""KServe's and MLServer's clients (case 36), each in its own environment, where ``make foreign_clients`` made one."""

import json
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest

from tests.contract.foreign import HERE, is_made, python_of, script
from tests.contract.local_engine import Endpoint
from tests.contract.repository import NAMES


def seen_by(client: str, endpoint: Endpoint) -> Mapping[str, Any]:
    """What a client saw of the endpoint over each transport."""
    need(client)
    command = [str(python_of(client)), str(script(client)), endpoint.address, endpoint.grpc_address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    seen: Mapping[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return seen


def need(client: str) -> None:
    if not is_made(client):
        pytest.skip(f"{client}'s client is not installed; make foreign_clients installs it")


def test_kserve_s_clients_ask_over_both_transports(endpoint: Endpoint) -> None:
    seen = seen_by("kserve", endpoint)
    for transport in ("http", "grpc"):
        refusal = seen[transport].pop("refusal")
        assert "unknown model 'nope'" in refusal
        assert seen[transport] == {
            "live": True,
            "ready": True,
            "model_ready": True,
            "unknown_ready": False,
            "values": [[1.5, 2.5], [1.5, 2.5]],
            "ids": ["7", "7"],
        }


def test_mlserver_s_codecs_and_stubs_ask_over_both_transports(endpoint: Endpoint) -> None:
    seen = seen_by("mlserver", endpoint)
    answer = {"values": [[1.5, 2.5], [3.5, 4.5]], "id": "7"}
    assert seen["http"] == {"inputs": ["IN"], **answer}
    assert seen["grpc"] == {
        "live": True,
        "unknown_ready": False,
        "inputs": ["IN"],
        "index": len(NAMES),
        "raw": answer,
        "typed": answer,
        "refusal": "NOT_FOUND",
    }


@pytest.mark.parametrize(
    ("client", "theirs"),
    [("kserve", "kserve.protocol.grpc.grpc_predict_v2_pb2"), ("mlserver", "mlserver.grpc.dataplane_pb2")],
)
@pytest.mark.parametrize("ours_first", [True, False])
def test_a_model_s_code_may_import_their_messages_before_or_after_ours(
    client: str, theirs: str, ours_first: bool
) -> None:
    need(client)
    modules = ["serving.protocol.proto", theirs]
    first, second = modules if ours_first else reversed(modules)
    code = (
        f"import {first}, {second}, {theirs} as theirs\n"
        "from serving.protocol.proto import message\n"
        "body = message('inference.ModelInferRequest')(id='7').SerializeToString()\n"
        "print(theirs.ModelInferRequest.FromString(body).id)"
    )
    root = HERE.parents[2]
    ended = subprocess.run(
        [python_of(client), "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip() == "7"
