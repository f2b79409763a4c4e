"""Servers of gRPC that answer a message with 200 bytes, one process each.

``python -m benchmarks.alternatives.grpc_doors NAME PORT`` runs one.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import uvloop

from benchmarks.alternatives.doors import ANSWER, HOST

PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
_SERVICE, _METHOD = PATH[1:].split("/")
_MAX_BYTES: Final = 2**31 - 1


async def understudy(port: int) -> None:
    """The data plane's own HTTP/2."""
    from models.tensor import Buffer
    from serving.door import Limits, bind
    from serving.grpc_call import Answer, Call, Method
    from serving.grpc_server import GrpcListener
    from serving.intake import Intake

    async def handle(message: Buffer, call: Call, received: float) -> Answer:
        return Answer(ANSWER)

    methods = {PATH: Method(unary=handle)}
    await GrpcListener(methods, bind(HOST, port), limits=Limits(), intake=Intake(_MAX_BYTES)).start()
    await asyncio.Event().wait()


async def grpc_aio(port: int) -> None:
    """gRPC's own server for asyncio, over its library in C."""
    import grpc
    import grpc.aio

    async def handle(message: bytes, context: Any) -> bytes:
        return ANSWER

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", _MAX_BYTES)])
    methods = {_METHOD: grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, methods),))
    server.add_insecure_port(f"{HOST}:{port}")
    await server.start()
    await server.wait_for_termination()


async def grpclib(port: int) -> None:
    """grpclib, over h2."""
    from grpclib.const import Cardinality, Handler
    from grpclib.encoding.base import CodecBase
    from grpclib.server import Server

    class Bytes(CodecBase):
        __content_subtype__ = "proto"

        def encode(self, message: Any, message_type: Any) -> bytes:
            return bytes(message)

        def decode(self, data: bytes, message_type: Any) -> bytes:
            return data

    class Service:
        async def infer(self, stream: Any) -> None:
            await stream.recv_message()
            await stream.send_message(ANSWER)

        def __mapping__(self) -> dict[str, Handler]:
            return {PATH: Handler(self.infer, Cardinality.UNARY_UNARY, bytes, bytes)}

    server = Server([Service()], codec=Bytes())
    await server.start(HOST, port)
    await server.wait_closed()


GRPC_DOORS: Final[Mapping[str, Callable[[int], Coroutine[Any, Any, None]]]] = {
    "understudy": understudy,
    "grpc.aio": grpc_aio,
    "grpclib": grpclib,
}

if __name__ == "__main__":
    from serving.process import keep_freed_memory

    keep_freed_memory()
    uvloop.run(GRPC_DOORS[sys.argv[1]](int(sys.argv[2])))
