"""A gRPC server in a thread of its own, on the loop that production uses, and clients that send it any frames."""

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvloop
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hpack import Decoder, Encoder
from hyperframe import frame as frames

from serving.dataplane import DataPlane
from serving.door import Limits
from serving.grpc import GrpcServer
from serving.protocol.messages import InferRequest, InferResponse
from serving.protocol.proto import INFERENCE, message
from tests.serving.echo_engine import EchoEngine, spec_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INFER = f"/{INFERENCE}/ModelInfer"
STREAM = f"/{INFERENCE}/ModelStreamInfer"
LIVE = f"/{INFERENCE}/ServerLive"
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
PRIORITY = 0x20
MOST_WINDOW = 2**31 - 1
FRAME_BYTES = 16384
WAIT = ("x-understudy-key", "wait")  # metadata of a request that is answered when it is let go
DEFAULT = Limits()

Request = message("inference.ModelInferRequest")
Response = message("inference.ModelInferResponse")
Streamed = message("inference.ModelStreamInferResponse")


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frame_head(len(payload), kind, flags, stream) + payload


def frame_head(length: int, kind: int, flags: int, stream: int) -> bytes:
    return length.to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream)


def settings_frame(values: Mapping[int, int]) -> bytes:
    return frame(Kind.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *each) for each in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def reset(stream: int, code: int = ErrorCodes.CANCEL) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, struct.pack(">I", code))


def data(stream: int, payload: bytes, *, end: bool = True) -> bytes:
    """DATA frames of the size that every server takes."""
    cuts = range(0, max(len(payload), 1), FRAME_BYTES)
    pieces = [payload[at : at + FRAME_BYTES] for at in cuts]
    return b"".join(
        frame(Kind.DATA, END_STREAM if end and at == cuts[-1] else 0, stream, piece)
        for at, piece in zip(cuts, pieces, strict=True)
    )


def prefixed(encoded: bytes, *, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, len(encoded)) + encoded


def body(*values: float, **fields: Any) -> bytes:
    """A ModelInfer request, encoded; without values two of them."""
    raw = struct.pack(f"<{len(values) or 2}f", *(values or (1.5, 2.5)))
    return body_of(raw, **fields)


def body_of(raw: bytes, **fields: Any) -> bytes:
    tensor = Request.InferInputTensor(name="IN", datatype="FP32", shape=[len(raw) // 8, 2])
    made = Request(**{"model_name": "m", **fields}, inputs=[tensor], raw_input_contents=[raw])
    encoded: bytes = made.SerializeToString()
    return encoded


@dataclass(slots=True)
class Answer:
    """One stream as its client sees it: blocks of headers, and bytes; ``reset`` is the code of an RST_STREAM."""

    window: int
    blocks: list[dict[bytes, bytes]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    @property
    def http_status(self) -> int:
        return int(self.blocks[0][b":status"])

    @property
    def status(self) -> int | None:
        """The gRPC status, None before it is there and for a stream that was reset."""
        said = self.blocks[-1].get(b"grpc-status") if self.blocks and self.ended else None
        return None if said is None else int(said)

    @property
    def details(self) -> str:
        return unquote(self.blocks[-1].get(b"grpc-message", b"").decode("ascii"))

    def messages(self) -> list[bytes]:
        """The messages in the bytes, which hold nothing else."""
        found, at = [], 0
        while at < len(self.data):
            compressed, size = struct.unpack_from(">BI", self.data, at)
            assert not compressed
            assert at + 5 + size <= len(self.data)
            found.append(bytes(self.data[at + 5 : at + 5 + size]))
            at += 5 + size
        return found


class Client:
    """One connection. Holds the server to HTTP/2: its frames' form and size, its windows, its streams' order."""

    def __init__(
        self,
        port: int,
        *,
        settings: Mapping[int, int] | None = None,
        window: int = 0,
        receive_buffer: int | None = None,
        preface: bool = True,
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.encoder, self._decoder = Encoder(), Decoder()
        self.answers: dict[int, Answer] = {}
        self.settings: dict[int, int] = {}  # the server's
        self.granted: dict[int, int] = {}  # what the server added to windows, by stream
        self.pongs: list[bytes] = []
        self.acks = 0
        self.goaways: list[frames.GoAwayFrame] = []
        self.ended = False
        self.window = 65535
        self.largest = 0  # frame that came
        self._initial_window = 65535
        self._max_frame = FRAME_BYTES
        self._unacknowledged: list[Mapping[int, int]] = []
        self._received = b""
        self._block: tuple[int, bool, bytes] | None = None  # headers that are not complete yet
        self._next = 1
        if preface:
            self.send(PREFACE)
            self.set(settings or {})
        if window:
            self.open(0, window)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    # -- sending -------------------------------------------------------------------------------------------------------

    def send(self, *pieces: bytes) -> None:
        self.socket.settimeout(10)
        for piece in pieces:
            self.socket.sendall(piece)

    def set(self, values: Mapping[int, int]) -> None:
        """Send SETTINGS; the server is held to them from its acknowledgement on."""
        self._unacknowledged.append(values)
        self.send(settings_frame(values))

    def open(self, stream: int, increment: int) -> None:
        """Add to a window."""
        if stream:
            self.answers[stream].window += increment
        else:
            self.window += increment
        self.send(window_update(stream, increment))

    def new_stream(self) -> int:
        stream, self._next = self._next, self._next + 2
        self.answers[stream] = Answer(self._initial_window)
        return stream

    def block(self, *extra: tuple[str, str], **changed: str | None) -> bytes:
        """Compressed headers of a request; ``changed`` replaces the usual ones, None leaves one out."""
        usual: dict[str, str | None] = {
            ":method": "POST",
            ":scheme": "http",
            ":path": INFER,
            ":authority": "localhost",
            "te": "trailers",
            "content-type": "application/grpc",
        }
        by_name = {name.strip(":").replace("-", "_"): name for name in usual}
        usual |= {by_name[key]: value for key, value in changed.items()}
        return self.compress(*((name, value) for name, value in usual.items() if value is not None), *extra)

    def compress(self, *fields: tuple[str, str]) -> bytes:
        return bytes(self.encoder.encode(fields))

    def head(self, stream: int, *extra: tuple[str, str], end: bool = False, **changed: str | None) -> bytes:
        """A HEADERS frame."""
        flags = END_HEADERS | (END_STREAM if end else 0)
        return frame(Kind.HEADERS, flags, stream, self.block(*extra, **changed))

    def ask(self, payload: bytes, *extra: tuple[str, str], **changed: str | None) -> int:
        """Send a whole request with these bytes of DATA; its stream."""
        stream = self.new_stream()
        self.send(self.head(stream, *extra, end=False, **changed) + data(stream, payload))
        return stream

    def infer(self, encoded: bytes | None = None, *extra: tuple[str, str], **changed: str | None) -> Answer:
        """One request and its answer."""
        return self.answer(self.ask(prefixed(body() if encoded is None else encoded), *extra, **changed))

    # -- receiving -----------------------------------------------------------------------------------------------------

    def answer(self, stream: int, *, for_s: float = 10.0) -> Answer:
        """Wait until the stream is over."""
        self.pump(lambda: self.answers[stream].over, for_s=for_s)
        return self.answers[stream]

    def ping(self, payload: bytes = b"are you?") -> None:
        """A round trip: whatever was sent before has been dealt with."""
        count = len(self.pongs)
        self.send(frame(Kind.PING, 0, 0, payload))
        self.pump(lambda: len(self.pongs) > count)
        assert self.pongs[-1] == payload

    @property
    def goaway(self) -> int | None:
        """The code of the one GOAWAY that has come."""
        if not self.goaways:
            return None
        assert len(self.goaways) == 1
        return int(self.goaways[0].error_code)

    def wait_end(self, *, for_s: float = 5.0) -> None:
        """Wait until the server has ended the connection."""
        self.pump(lambda: self.ended, for_s=for_s)

    def pump(self, until: Callable[[], bool], *, for_s: float = 5.0) -> None:
        """Take what comes until something holds; fails if it does not in time, or the connection ends before."""
        ends = time.monotonic() + for_s
        while not until():
            assert not self.ended, f"the server ended the connection, having said {self.goaways}"
            left = ends - time.monotonic()
            assert left > 0, "not in time"
            self.socket.settimeout(left)
            try:
                chunk = self.socket.recv(1 << 18)
            except TimeoutError:
                continue
            except ConnectionError:
                chunk = b""
            if chunk:
                self._take(chunk)
            else:
                self.ended = True

    def _take(self, chunk: bytes) -> None:
        self._received += chunk
        at = 0
        while len(self._received) - at >= 9:
            head = memoryview(self._received)[at : at + 9]
            parsed, length = frames.Frame.parse_frame_header(head, strict=True)
            assert length <= self._max_frame
            if len(self._received) - at - 9 < length:
                break
            parsed.parse_body(memoryview(self._received)[at + 9 : at + 9 + length])
            at += 9 + length
            self.largest = max(self.largest, length)
            self._dispatch(parsed)
        self._received = self._received[at:]

    def _dispatch(self, parsed: frames.Frame) -> None:
        assert self._block is None or isinstance(parsed, frames.ContinuationFrame)
        match parsed:
            case frames.SettingsFrame():
                self._on_settings(parsed)
            case frames.PingFrame():
                assert "ACK" in parsed.flags
                self.pongs.append(parsed.opaque_data)
            case frames.GoAwayFrame():
                self.goaways.append(parsed)
            case frames.WindowUpdateFrame():
                self.granted[parsed.stream_id] = self.granted.get(parsed.stream_id, 0) + parsed.window_increment
            case frames.RstStreamFrame():
                self.answers[parsed.stream_id].reset = parsed.error_code
            case frames.DataFrame():
                self._on_data(parsed)
            case frames.HeadersFrame() | frames.ContinuationFrame():
                self._on_headers(parsed)
            case _:
                raise AssertionError(f"a server does not send {parsed}")

    def _on_settings(self, parsed: frames.SettingsFrame) -> None:
        if "ACK" not in parsed.flags:
            self.settings |= parsed.settings
            with contextlib.suppress(BrokenPipeError):  # the client has half-closed
                self.socket.sendall(frame(Kind.SETTINGS, ACK, 0))
            return
        self.acks += 1
        values = self._unacknowledged.pop(0) if self._unacknowledged else {}
        initial = values.get(SettingCodes.INITIAL_WINDOW_SIZE, self._initial_window)
        for each in self.answers.values():
            each.window += initial - self._initial_window
        self._initial_window = initial
        self._max_frame = values.get(SettingCodes.MAX_FRAME_SIZE, self._max_frame)
        if SettingCodes.HEADER_TABLE_SIZE in values:
            self._decoder.max_allowed_table_size = values[SettingCodes.HEADER_TABLE_SIZE]

    def _on_data(self, parsed: frames.DataFrame) -> None:
        answer, taken = self.answers[parsed.stream_id], parsed.flow_controlled_length
        assert not answer.over
        assert answer.blocks, "data before headers"
        assert taken == 0 or (answer.window >= taken and self.window >= taken), "a window was overrun"
        answer.window -= taken
        self.window -= taken
        answer.data += parsed.data
        answer.ended = "END_STREAM" in parsed.flags

    def _on_headers(self, parsed: frames.HeadersFrame | frames.ContinuationFrame) -> None:
        if isinstance(parsed, frames.HeadersFrame):
            stream, end, block = parsed.stream_id, "END_STREAM" in parsed.flags, parsed.data
        else:
            assert self._block is not None
            stream, end, begun = self._block
            assert stream == parsed.stream_id
            block = begun + parsed.data
        if "END_HEADERS" not in parsed.flags:
            self._block = (stream, end, block)
            return
        self._block = None
        answer = self.answers[stream]
        assert not answer.over
        fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        assert all(name == name.lower() for name, _ in fields)
        assert [name for name, _ in fields if name.startswith(b":")] == ([] if answer.blocks else [b":status"])
        answer.blocks.append(dict(fields))
        answer.ended = end


class HoldingEngine(EchoEngine):
    """Echoes; a request with the key "wait" only once it is let go."""

    def __init__(self) -> None:
        super().__init__(spec_of(1, max_batch_size=1 << 24))
        self.gate = asyncio.Event()
        self.held = self.cancelled = self.answered = 0

    async def infer(self, request: InferRequest) -> InferResponse:
        if request.key == "wait":
            self.held += 1
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        response = await super().infer(request)
        self.answered += 1
        return response


@dataclass(slots=True)
class Talker:
    """The running server."""

    loop: asyncio.AbstractEventLoop
    server: GrpcServer
    engine: HoldingEngine
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.port

    def connect(self, **options: Any) -> Client:
        return Client(self.port, **options)

    def let_go(self) -> None:
        self.loop.call_soon_threadsafe(self.engine.gate.set)

    def hold(self) -> None:
        self.loop.call_soon_threadsafe(self.engine.gate.clear)

    def stop(self, grace_s: float) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(grace_s), self.loop).result(20)

    def left(self) -> tuple[int, int]:
        """How many connections, and how many tasks for calls, the server has."""

        async def count() -> tuple[int, int]:
            return len(self.server.listener.connections), len(self.server.listener.tasks)

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)

    def wait_settled(self, tasks: int = 0) -> None:
        """Wait until nothing is left of any client but these tasks."""
        wait_for(lambda: self.left() == (0, tasks))
        assert self.server.listener.admitted == 0


def wait_for(condition: Callable[[], object], *, for_s: float = 5.0) -> None:
    ends = time.monotonic() + for_s
    while not condition():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.01)


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096


@contextmanager
def talking(limits: Limits = DEFAULT, **options: Any) -> Iterator[Talker]:
    """Whatever happens while it runs: nothing reaches the loop's exception handler, and nothing is left."""
    started, made = threading.Event(), []

    async def serve() -> None:
        loop, ended, engine = asyncio.get_running_loop(), asyncio.Event(), HoldingEngine()
        server = GrpcServer(DataPlane(engine), "127.0.0.1", 0, limits=limits, **options)
        await server.start()
        talker = Talker(loop, server, engine)
        loop.set_exception_handler(lambda _, context: talker.faults.append(context))
        made.append((talker, ended))
        started.set()
        await ended.wait()
        await server.stop(0.2)
        await asyncio.sleep(0.01)
        left = (server.listener.connections, server.listener.tasks, asyncio.all_tasks() - {asyncio.current_task()})
        if any(left):
            talker.faults.append({"left": left})

    thread = threading.Thread(target=lambda: asyncio.Runner(loop_factory=uvloop.new_event_loop).run(serve()))
    thread.start()
    assert started.wait(10)
    talker, ended = made[0]
    try:
        yield talker
    finally:
        talker.loop.call_soon_threadsafe(ended.set)
        thread.join(10)
    assert talker.faults == []
