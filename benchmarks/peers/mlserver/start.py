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
from protobuf import model_config, model_statistics  # type: ignore[import-not-found,unused-ignore]

_SERVICE = "/inference.GRPCInferenceService/"


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
