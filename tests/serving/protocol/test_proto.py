import subprocess
import sys

import pytest
from google.protobuf import descriptor_pb2

from serving.protocol.proto import DESCRIPTORS, HEALTH, INFERENCE, POOL
from serving.protocol.proto.compile import compiled


def test_the_committed_descriptors_are_those_of_the_source() -> None:
    assert compiled() == DESCRIPTORS.read_bytes(), "run make proto"


def test_the_service_has_the_protocol_s_methods() -> None:
    methods = set(POOL.FindServiceByName(INFERENCE).methods_by_name)
    assert methods == {
        *("ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelConfig"),
        *("ModelInfer", "ModelStreamInfer", "ModelStatistics"),
        *("RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"),
    }
    assert set(POOL.FindServiceByName(HEALTH).methods_by_name) == {"Check", "Watch"}


def test_every_message_agrees_with_triton_s_in_numbers_and_types() -> None:
    service_pb2 = pytest.importorskip("tritonclient.grpc").service_pb2
    ours = descriptor_pb2.FileDescriptorProto()
    POOL.FindFileByName("inference.proto").CopyToProto(ours)
    theirs = service_pb2.DESCRIPTOR.pool
    compared = 0
    for each in ours.message_type:
        known = {field.number: field for field in theirs.FindMessageTypeByName(f"inference.{each.name}").fields}
        for field in each.field:
            other = known[field.number]
            assert (other.name, other.type, other.is_repeated) == (field.name, field.type, field.label == 3), each.name
            compared += 1
    assert compared > 100


def test_nothing_is_registered_with_protobuf_s_default_pool() -> None:
    code = (
        "import serving.grpc\n"
        "from google.protobuf import descriptor_pool\n"
        "try:\n"
        "    descriptor_pool.Default().FindFileContainingSymbol('inference.ModelInferRequest')\n"
        "except KeyError:\n"
        "    print('free')\n"
    )
    assert run(code) == "free"


@pytest.mark.parametrize("order", [("tritonclient.grpc", "serving.grpc"), ("serving.grpc", "tritonclient.grpc")])
def test_a_model_s_code_may_import_tritonclient_before_or_after(order: tuple[str, str]) -> None:
    pytest.importorskip("tritonclient.grpc")
    code = (
        f"import {order[0]}, {order[1]}\n"
        "from serving.protocol.proto import message\n"
        "ours = message('inference.ModelInferRequest')(id='7').SerializeToString()\n"
        "print(tritonclient.grpc.service_pb2.ModelInferRequest.FromString(ours).id)"
    )
    assert run(code) == "7"


def run(code: str) -> str:
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
