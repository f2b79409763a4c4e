"""The messages of the protocol over gRPC, in a descriptor pool of their own.

The clients of Triton, KServe and MLServer register symbols of the same names in protobuf's default pool, and a second
registration is an error: a model's code may import any of them in our processes.
"""

from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

DESCRIPTORS: Final = Path(__file__).with_name("protocol.binpb")  # from the .proto files beside it, by `make proto`
INFERENCE: Final = "inference.GRPCInferenceService"
HEALTH: Final = "grpc.health.v1.Health"


def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL: Final = _pool()


def message(name: str) -> Any:
    """The class of the message with this full name, such as ``inference.ModelInferRequest``."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(name))
