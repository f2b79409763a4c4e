"""The protocol over gRPC: handlers that parse, delegate to the data plane and encode.

The two hot methods take and give bytes, which ``serving.protocol.protobuf`` reads and writes; the others go by
messages.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

from models.errors import UnderstudyError
from models.tensor import Buffer
from serving.arena import Arena
from serving.dataplane import DataPlane
from serving.door import Limits, bind, uncleared
from serving.errors import InvalidArgumentError, NotFoundError, UnsupportedError
from serving.grpc_call import Answer, Call, Messages, Method, failed
from serving.grpc_server import MAX_MESSAGE_BYTES, GrpcListener
from serving.intake import Intake
from serving.protocol.binary import LongWorkError
from serving.protocol.errors import error_details
from serving.protocol.headers import ARM, KEY, REQUEST_ID, header_safe
from serving.protocol.messages import InferRequest
from serving.protocol.proto import HEALTH, INFERENCE, message
from serving.protocol.protobuf import (
    DecodedInfer,
    decode_infer,
    encode_infer,
    encode_streamed,
    encode_streamed_error,
    lead_of,
    request_id_of,
    version_of,
)
from serving.stages import Timing
from serving.telemetry import log_event

_STREAM_REQUESTS: Final = 128  # of one stream at a time; it is not read further meanwhile
_WATCH_S: Final = 0.5
_SERVICES: Final = frozenset({"", INFERENCE, HEALTH})
_INTERNAL: Final = "internal error"
_REQUEST_ID: Final = REQUEST_ID.encode()

logger = logging.getLogger(__name__)


class GrpcServer:
    """The protocol's methods behind a socket of their own. ``port`` 0 is any free one.

    ``reuse_port`` lets several processes listen on one port; the kernel spreads the connections over them.
    """

    def __init__(
        self,
        plane: DataPlane,
        host: str,
        port: int,
        *,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        reuse_port: bool = False,
        arena: Arena | None = None,
        intake: Intake | None = None,
    ) -> None:
        sock = bind(host, port, reuse_port=reuse_port)
        self.port: int = sock.getsockname()[1]
        self._arena = arena
        self.listener = GrpcListener(
            methods_of(plane),
            sock,
            limits=limits,
            intake=intake or Intake(limits.connections * max_message_bytes),
            max_message_bytes=max_message_bytes,
            allocate=self._allocate,
        )

    async def start(self) -> None:
        """Listen; requests are answered from here on."""
        await self.listener.start()

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let requests under way finish for up to ``grace_s``, then cancel them."""
        await self.listener.stop(grace_s)

    def _allocate(self, size: int, early: memoryview) -> memoryview:
        """Where a message shall be received: in the arena if it is worth it, with its first tensor aligned."""
        block = None if self._arena is None else self._arena.allocate(size, lead_of(early))
        return uncleared(size) if block is None else block


def methods_of(plane: DataPlane) -> dict[str, Method]:
    """What answers, by path."""
    infer, repository = _Infer(plane), _Repository(plane)
    own = {"ModelInfer": Method(unary=infer.one), "ModelStreamInfer": Method(streaming=infer.stream)}
    for name, answer in (_metadata_methods(plane) | repository.methods()).items():
        own[name] = _unary(f"inference.{name}Request", f"inference.{name}Response", answer)
    health = _health_methods(plane)
    return {
        f"/{service}/{name}": method
        for service, methods in ((INFERENCE, own), (HEALTH, health))
        for name, method in methods.items()
    }


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
        self._decoding = asyncio.Lock()  # threads that decode take turns anyway, and each takes some memory

    async def one(self, body: Buffer, call: Call, received: float) -> Answer:
        """One request, one answer; the trailing metadata names the request."""
        request_id = self._plane.new_request_id()
        try:
            try:
                decoded = decode_infer(body, patient=False)
            except LongWorkError:
                decoded = await self._decode(body)
            request = decoded.request
            request_id = request.request_id = request.id or request_id
            _apply(call, request, received)
            response = await self._plane.infer(request, decoded.outputs)
            encoded = encode_infer(response, client_id=request.id)
            self._plane.answered(request, response)
            return Answer(encoded, metadata=_named(request_id))
        except UnderstudyError as error:
            return failed(error, _named(request_id))
        except Exception:  # noqa: BLE001 - the transport's edge: one request's surprise stays that request's
            log_event(logger, _INTERNAL, logging.ERROR, exc_info=True, request_id=request_id)
            return failed(UnderstudyError(_INTERNAL), _named(request_id))

    async def stream(self, messages: Messages, call: Call) -> Answer:
        """Requests of one stream run side by side; their answers leave in the order of the requests."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue(_STREAM_REQUESTS)
        reading = asyncio.create_task(self._read(messages, call, answers))
        try:
            while (answer := await answers.get()) is not None:
                await messages.send(await answer)
                del answer  # which would keep its bytes until the next request comes
            await reading
        finally:
            reading.cancel()
            while not answers.empty():
                if (answer := answers.get_nowait()) is not None:
                    answer.cancel()
        return Answer()

    async def _read(self, messages: Messages, call: Call, answers: "asyncio.Queue[asyncio.Task[bytes] | None]") -> None:
        try:
            async for body, held in messages:
                answer = asyncio.create_task(self._streamed(body, call, time.monotonic()))
                if held:
                    answer.add_done_callback(lambda _, held=held: messages.release(held))  # type: ignore[misc]
                del body
                try:
                    await answers.put(answer)
                except asyncio.CancelledError:
                    answer.cancel()
                    raise
        finally:
            await answers.put(None)

    async def _streamed(self, body: Buffer, call: Call, received: float) -> bytes:
        """One request of a stream; whatever happens to it, the stream goes on."""
        try:
            try:
                decoded = decode_infer(body, patient=False)
            except LongWorkError:
                decoded = await self._decode(body)
            return await self._answered(decoded, call, received)
        except UnderstudyError as error:
            return encode_streamed_error(error_details(str(error)), client_id=request_id_of(body))
        except Exception:  # noqa: BLE001 - the transport's edge: one request's surprise stays that request's
            request_id = request_id_of(body)
            log_event(logger, _INTERNAL, logging.ERROR, exc_info=True, request_id=request_id)
            return encode_streamed_error(_INTERNAL, client_id=request_id)

    async def _decode(self, body: Buffer) -> DecodedInfer:
        """Decode what takes long."""
        async with self._decoding:
            return await asyncio.to_thread(decode_infer, body)

    async def _answered(self, decoded: DecodedInfer, call: Call, received: float) -> bytes:
        request = decoded.request
        _apply(call, request, received)
        response = await self._plane.infer(request, decoded.outputs)
        encoded = encode_streamed(response, client_id=request.id)
        self._plane.answered(request, response)
        return encoded


def _apply(call: Call, request: InferRequest, received: float) -> None:
    """What a call's headers and deadline say of its requests."""
    request.timeout_s, request.timing = call.timeout_s, Timing(received)
    if (key := call.metadata.get(KEY)) is not None:
        request.key = key
    request.arm = call.metadata.get(ARM)


def _named(request_id: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((_REQUEST_ID, header_safe(request_id).encode()),)


def _unary(asked: str, answered: str, answer: Callable[[Any], Mapping[str, Any]]) -> Method:
    """A method of messages from ``answer``, which takes the request and gives the response as plain values."""
    request_type, response_type = message(asked), message(answered)

    async def handle(body: Buffer, call: Call, received: float) -> Answer:
        try:
            response = ParseDict(answer(_parsed(request_type, body)), response_type())
            return Answer(response.SerializeToString())
        except UnderstudyError as error:
            return failed(error)
        except Exception:  # noqa: BLE001 - the transport's edge
            log_event(logger, _INTERNAL, logging.ERROR, exc_info=True, method=asked)
            return failed(UnderstudyError(_INTERNAL))

    return Method(unary=handle)


def _parsed(message_type: Any, body: Buffer) -> Any:
    try:
        return message_type.FromString(bytes(body))
    except DecodeError:
        raise InvalidArgumentError(f"the body is not a {message_type.DESCRIPTOR.name}") from None


def _health_methods(plane: DataPlane) -> dict[str, Method]:
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

    async def watch(messages: Messages, call: Call) -> Answer:
        async for body, held in messages:
            service, said = _parsed(request_type, body).service, ""
            messages.release(held)
            while True:
                if (now := status(service)) != said:
                    said = now
                    await messages.send(response_type(status=now).SerializeToString())
                await asyncio.sleep(_WATCH_S)
        raise UnsupportedError("the method takes one message, but none came")

    return {
        "Check": _unary("grpc.health.v1.HealthCheckRequest", "grpc.health.v1.HealthCheckResponse", check),
        "Watch": Method(streaming=watch, takes_one=True),
    }
