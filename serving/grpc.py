"""The protocol over gRPC: handlers that parse, delegate to the data plane and encode; and their server.

The two hot methods take and give bytes, which ``serving.protocol.protobuf`` reads and writes; the others go by
messages.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

import grpc
import grpc.aio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from models.errors import UnderstudyError
from serving.dataplane import DataPlane
from serving.errors import InvalidArgumentError, LaunchError, NotFoundError, UnsupportedError
from serving.protocol.errors import error_details, grpc_status
from serving.protocol.headers import ARM, KEY, REQUEST_ID, header_safe
from serving.protocol.messages import InferRequest
from serving.protocol.proto import HEALTH, INFERENCE, message
from serving.protocol.protobuf import (
    DecodedInfer,
    decode_infer,
    encode_infer,
    encode_streamed,
    encode_streamed_error,
    request_id_of,
    version_of,
)
from serving.stages import Timing
from serving.telemetry import log_event

MAX_MESSAGE_BYTES: Final = 2**31 - 1  # protobuf's own limit
_STREAM_REQUESTS: Final = 128  # of one stream at a time; it is not read further meanwhile
_WATCH_S: Final = 0.5
_SERVICES: Final = frozenset({"", INFERENCE, HEALTH})
_INTERNAL: Final = "internal error"

logger = logging.getLogger(__name__)


class _Call(NamedTuple):
    """What a call's metadata and deadline say of its requests; ``timeout_s`` is what is left of the deadline."""

    key: str
    arm: str | None
    timeout_s: float | None

    @classmethod
    def of(cls, context: Any) -> "_Call":
        key, arm = "", None
        for name, value in context.invocation_metadata():
            if name == KEY:
                key = value
            elif name == ARM:
                arm = value
        return cls(key, arm, context.time_remaining())

    def apply(self, request: InferRequest, received: float) -> None:
        request.key, request.arm, request.timeout_s = self.key, self.arm, self.timeout_s
        request.timing = Timing(received)


class GrpcServer:
    """``grpc.aio`` in the event loop that runs when it is made. ``port`` 0 is any free one.

    ``reuse_port`` lets several processes listen on one port; the kernel spreads the connections over them.
    """

    def __init__(
        self,
        plane: DataPlane,
        host: str,
        port: int,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        reuse_port: bool = False,
    ) -> None:
        self._server = grpc.aio.server(options=_options(max_message_bytes, reuse_port))
        self._server.add_generic_rpc_handlers((_inference(plane), _health(plane)))
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            self.port = int(self._server.add_insecure_port(address))
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise LaunchError(f"cannot bind {address} for gRPC: it is in use, or not of this machine")

    async def start(self) -> None:
        """Listen; requests are answered from here on."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let requests under way finish for up to ``grace_s``, then cancel them."""
        await self._server.stop(grace_s)


def _options(max_message_bytes: int, reuse_port: bool) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", int(reuse_port)),
        # Clients may ask every 10 s whether a connection still lives, even one without a call.
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _inference(plane: DataPlane) -> Any:
    infer = _Infer(plane)
    admin = _Repository(plane)
    methods: dict[str, Any] = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer.one),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(infer.stream),
    }
    methods |= {
        name: _unary(f"inference.{name}Request", f"inference.{name}Response", answer)
        for name, answer in (_metadata_methods(plane) | admin.methods()).items()
    }
    return grpc.method_handlers_generic_handler(INFERENCE, methods)


def _metadata_methods(plane: DataPlane) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
    """Methods about the server or a model: from the request to the response's plain values."""
    return {
        "ServerLive": lambda _: {"live": plane.live()},
        "ServerReady": lambda _: {"ready": plane.ready()},
        "ServerMetadata": lambda _: plane.server_metadata(),
        "ModelReady": lambda asked: {"ready": plane.model_ready(asked.name, version_of(asked.version))},
        "ModelMetadata": lambda asked: plane.model_metadata(asked.name, version_of(asked.version)),
        "ModelConfig": lambda asked: {"config": plane.model_config(asked.name, version_of(asked.version))},
        "ModelStatistics": lambda asked: {
            "model_stats": plane.model_statistics(asked.name or None, version_of(asked.version))
        },
    }


@dataclass(frozen=True, slots=True)
class _Repository:
    """The repository's methods."""

    plane: DataPlane

    def methods(self) -> dict[str, Callable[[Any], Mapping[str, Any]]]:
        return {
            "RepositoryIndex": self.index,
            "RepositoryModelLoad": self.load,
            "RepositoryModelUnload": self.unload,
        }

    def index(self, asked: Any) -> Mapping[str, Any]:
        return {"models": [entry.to_json() for entry in self.plane.repository_index(ready=asked.ready)]}

    def load(self, asked: Any) -> Mapping[str, Any]:
        if asked.parameters:
            raise UnsupportedError("load takes no parameters here: rollouts load and unload versions")
        self.plane.load(asked.model_name)
        return {}

    def unload(self, asked: Any) -> Mapping[str, Any]:
        self.plane.unload(asked.model_name)
        return {}


class _Infer:
    """ModelInfer and ModelStreamInfer."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def one(self, body: bytes, context: Any) -> bytes:
        """One request, one answer; the trailing metadata names the request."""
        received = time.monotonic()
        request_id = self._plane.new_request_id()
        try:
            decoded = decode_infer(body)
            request = decoded.request
            request_id = request.request_id = request.id or request_id
            context.set_trailing_metadata(((REQUEST_ID, header_safe(request_id)),))
            _Call.of(context).apply(request, received)
            response = await self._plane.infer(request, decoded.outputs)
            encoded = encode_infer(response, client_id=request.id)
            self._plane.answered(request, response)
            return encoded
        except UnderstudyError as error:
            refusal = error
        except Exception:  # noqa: BLE001 - the transport's edge: one request's surprise stays that request's
            log_event(logger, _INTERNAL, logging.ERROR, exc_info=True, request_id=request_id)
            refusal = UnderstudyError(_INTERNAL)
        context.set_trailing_metadata(((REQUEST_ID, header_safe(request_id)),))
        return await _refuse(context, refusal)

    async def stream(self, bodies: AsyncIterator[bytes], context: Any) -> None:
        """Requests of one stream run side by side; their answers leave in the order of the requests."""
        call = _Call.of(context)
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_STREAM_REQUESTS)
        reading = asyncio.create_task(self._read(bodies, call, answers))
        try:
            while (answer := await answers.get()) is not None:
                await context.write(await answer)
            await reading
        finally:
            reading.cancel()
            while not answers.empty():
                if (answer := answers.get_nowait()) is not None:
                    answer.cancel()

    async def _read(
        self, bodies: AsyncIterator[bytes], call: _Call, answers: "asyncio.Queue[asyncio.Task[bytes] | None]"
    ) -> None:
        try:
            async for body in bodies:
                await answers.put(asyncio.create_task(self._streamed(body, call, time.monotonic())))
        finally:
            await answers.put(None)

    async def _streamed(self, body: bytes, call: _Call, received: float) -> bytes:
        """One request of a stream; whatever happens to it, the stream goes on."""
        try:
            decoded = decode_infer(body)
        except UnderstudyError as error:
            return encode_streamed_error(error_details(str(error)), client_id=request_id_of(body))
        try:
            return await self._answered(decoded, call, received)
        except UnderstudyError as error:
            return encode_streamed_error(error_details(str(error)), client_id=decoded.request.id)
        except Exception:  # noqa: BLE001 - the transport's edge: one request's surprise stays that request's
            log_event(logger, _INTERNAL, logging.ERROR, exc_info=True, request_id=decoded.request.request_id)
            return encode_streamed_error(_INTERNAL, client_id=decoded.request.id)

    async def _answered(self, decoded: DecodedInfer, call: _Call, received: float) -> bytes:
        request = decoded.request
        call.apply(request, received)
        response = await self._plane.infer(request, decoded.outputs)
        encoded = encode_streamed(response, client_id=request.id)
        self._plane.answered(request, response)
        return encoded


def _unary(asked: str, answered: str, answer: Callable[[Any], Mapping[str, Any]]) -> Any:
    """A handler of messages from ``answer``, which takes the request and gives the response as plain values."""
    request_type, response_type = message(asked), message(answered)

    async def handle(body: bytes, context: Any) -> Any:
        try:
            return ParseDict(answer(_parsed(request_type, body)), response_type())
        except UnderstudyError as error:
            refusal = error
        except Exception:  # noqa: BLE001 - the transport's edge
            log_event(logger, _INTERNAL, logging.ERROR, exc_info=True, method=asked)
            refusal = UnderstudyError(_INTERNAL)
        return await _refuse(context, refusal)

    return grpc.unary_unary_rpc_method_handler(handle, response_serializer=response_type.SerializeToString)


def _parsed(message_type: Any, body: bytes) -> Any:
    try:
        return message_type.FromString(body)
    except DecodeError:
        raise InvalidArgumentError(f"the body is not a {message_type.DESCRIPTOR.name}") from None


async def _refuse(context: Any, error: UnderstudyError) -> NoReturn:
    await context.abort(grpc_status(error), error_details(str(error)))
    raise error  # not reached: ``abort`` raises


def _health(plane: DataPlane) -> Any:
    response_type = message("grpc.health.v1.HealthCheckResponse")
    request_type = message("grpc.health.v1.HealthCheckRequest")

    def status(service: str) -> str:
        if service not in _SERVICES:
            return "SERVICE_UNKNOWN"
        return "SERVING" if plane.ready() else "NOT_SERVING"

    def check(asked: Any) -> Mapping[str, Any]:
        if asked.service not in _SERVICES:
            raise NotFoundError(f"unknown service {asked.service!r}")
        return {"status": status(asked.service)}

    async def watch(body: bytes, context: Any) -> None:
        try:
            service = _parsed(request_type, body).service
        except InvalidArgumentError as error:
            await _refuse(context, error)
        said = ""
        while True:
            if (now := status(service)) != said:
                said = now
                await context.write(response_type(status=now))
            await asyncio.sleep(_WATCH_S)

    return grpc.method_handlers_generic_handler(
        HEALTH,
        {
            "Check": _unary("grpc.health.v1.HealthCheckRequest", "grpc.health.v1.HealthCheckResponse", check),
            "Watch": grpc.unary_stream_rpc_method_handler(watch, response_serializer=response_type.SerializeToString),
        },
    )
