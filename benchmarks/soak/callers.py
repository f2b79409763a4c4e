"""One request over HTTP or gRPC as often as wanted, on connections that stay open; tells how each of them failed."""

import asyncio
from dataclasses import dataclass
from typing import Final, Protocol, cast

import grpc.aio

from benchmarks.load import Request
from benchmarks.workloads import Workload
from serving.protocol.proto import message

METHOD: Final = "/inference.GRPCInferenceService/ModelInfer"
TIMEOUT_S: Final = 10.0
CONNECTIONS: Final = 64  # of one stream over HTTP
_UNBOUNDED: Final = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What is sent where, and which ``share`` of all requests it is. ``body`` is a whole HTTP request or a message."""

    name: str
    transport: str
    address: str
    body: bytes
    share: float


class Caller(Protocol):
    """Sends its request."""

    async def ask(self) -> str:
        """Send it once and wait for the answer; "" for 200 or OK with a body, else the kind of failure."""

    async def close(self) -> None:
        """Break its connections."""


def over_http(workload: Workload, address: str, share: float) -> Stream:
    """A workload's request over HTTP to host:port."""
    body = _wire(workload.request(), address)
    return Stream(name=f"{workload.name} over HTTP", transport="http", address=address, body=body, share=share)


def over_grpc(workload: Workload, address: str, share: float) -> Stream:
    """The same over gRPC."""
    request = message("inference.ModelInferRequest")(
        model_name=workload.name, raw_input_contents=[workload.example.tobytes()]
    )
    request.inputs.add(name=workload.input, datatype="FP32", shape=workload.example.shape)
    body = bytes(request.SerializeToString())
    return Stream(name=f"{workload.name} over gRPC", transport="grpc", address=address, body=body, share=share)


def caller(stream: Stream) -> Caller:
    """Who sends a stream's requests; to be made on the event loop that will."""
    return _HttpCaller(stream) if stream.transport == "http" else _GrpcCaller(stream)


class _HttpCaller:
    """A pool of so many connections, used in turn: none of them idles until the server closes it."""

    def __init__(self, stream: Stream) -> None:
        self._host, _, port = stream.address.rpartition(":")
        self._port = int(port)
        self._body = stream.body
        # As many from the first second as in the last: each costs the server memory, which would look like a leak.
        self._idle: asyncio.Queue[_Connection | None] = asyncio.Queue()
        for _ in range(CONNECTIONS):
            self._idle.put_nowait(None)

    async def ask(self) -> str:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                connection = await self._idle.get()
                try:
                    if connection is None or not connection.open:
                        connection = await self._connect()
                    return await connection.ask(self._body)
                finally:
                    self._idle.put_nowait(connection)
        except TimeoutError:
            return f"HTTP: no answer within {TIMEOUT_S:g} s"
        except OSError as error:
            return f"HTTP: {type(error).__name__}"

    async def close(self) -> None:
        while not self._idle.empty():
            if (connection := self._idle.get_nowait()) is not None:
                connection.abort()

    async def _connect(self) -> "_Connection":
        return (await asyncio.get_running_loop().create_connection(_Connection, self._host, self._port))[1]


class _Connection(asyncio.Protocol):
    """Carries one request at a time."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[str] | None = None
        self._read = bytearray()

    async def ask(self, body: bytes) -> str:
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(body)
        try:
            return await self._answer
        except asyncio.CancelledError:
            self.abort()  # its answer would be taken for that of the next request
            raise

    def abort(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses of it
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end("HTTP: connection lost")

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, blank, body = self._read.partition(b"\r\n\r\n")
        if blank and len(body) >= _content_length(head):
            status = bytes(head[9:12]).decode("latin-1")
            self._read.clear()
            self._end("" if status == "200" and body else f"HTTP: {status}, {len(body)} bytes")

    def _end(self, failure: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(failure)


class _GrpcCaller:
    """One channel, as a client of gRPC has it."""

    def __init__(self, stream: Stream) -> None:
        self._body = stream.body
        self._channel = grpc.aio.insecure_channel(stream.address, options=_UNBOUNDED)
        self._infer = self._channel.unary_unary(METHOD)

    async def ask(self) -> str:
        try:
            answer = await self._infer(self._body, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            return f"gRPC: {error.code().name}"
        return "" if answer else "gRPC: OK, 0 bytes"

    async def close(self) -> None:
        await self._channel.close()


def _wire(request: Request, host: str) -> bytes:
    headers = {"Host": host, **request.headers, "Content-Length": str(len(request.body))}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {request.path} HTTP/1.1\r\n{lines}\r\n".encode() + request.body


def _content_length(head: bytes | bytearray) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line[15:])
    return 0
