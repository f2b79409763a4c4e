"""MLServer's own command, with answers to two calls that perf_analyzer makes before and after its measurement.

perf_analyzer asks any server over gRPC for Triton's ModelConfig and ModelStatistics, which MLServer does not know, and
gives up without them. Here they are answered with the model's configuration and with statistics that stay at zero. The
requests that are measured do not come near this.
"""

import json
import sys
from pathlib import Path
from typing import Any

import grpc
import mlserver.server  # type: ignore[import-not-found,unused-ignore]
from mlserver.cli.main import main  # type: ignore[import-not-found,unused-ignore]
from mlserver.grpc.server import GRPCServer  # type: ignore[import-not-found,unused-ignore]

_SERVICE = "/inference.GRPCInferenceService/"
_FP32 = 11  # TYPE_FP32 in Triton's model_config.proto


def varint(value: int) -> bytes:
    """An unsigned number as protobuf encodes it."""
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def encode(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message of numbers, strings and messages: pairs of field number and value."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(varint(number << 3 | 2) + varint(len(content)) + content)
    return b"".join(parts)


def model_config(model: dict[str, Any]) -> bytes:
    """A ModelConfigResponse for a model of FP32 tensors; dimensions without the batch's."""
    (given,), (returned,) = model["inputs"], model["outputs"]
    tensor = encode((1, given["name"]), (2, _FP32), *((4, size) for size in given["shape"][1:]))
    answer = encode((1, returned["name"]), (2, _FP32), *((3, size) for size in returned["shape"][1:]))
    return encode((1, encode((1, model["name"]), (4, model["max_batch_size"]), (5, tensor), (6, answer))))


def model_statistics(model: dict[str, Any]) -> bytes:
    """A ModelStatisticsResponse without a count."""
    durations = encode(*((number, encode((1, 0), (2, 0))) for number in range(1, 9)))
    statistics = encode((1, model["name"]), (2, model["parameters"]["version"]), (6, durations))
    return encode((1, statistics))


class Extras(grpc.GenericRpcHandler):  # type: ignore[misc,unused-ignore]
    """The two calls, asked after MLServer's own."""

    def __init__(self, model: dict[str, Any]) -> None:
        self._answers = {
            f"{_SERVICE}ModelConfig": model_config(model),
            f"{_SERVICE}ModelStatistics": model_statistics(model),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a method that is known here."""
        answer = self._answers.get(handler_call_details.method)
        return answer and grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


class Server(GRPCServer):  # type: ignore[misc,unused-ignore]
    """MLServer's with the extras."""

    def _create_server(self) -> Any:
        server = super()._create_server()
        model = json.loads((Path(sys.argv[-1]) / "model-settings.json").read_text(encoding="utf-8"))
        server.add_generic_rpc_handlers((Extras(model),))
        return server


if __name__ == "__main__":
    mlserver.server.GRPCServer = Server
    main()
