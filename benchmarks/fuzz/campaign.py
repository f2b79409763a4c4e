"""Sending malformed input through one door, and what its answers may be."""

import contextlib
import itertools
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Final
from urllib.parse import unquote

import grpc
import orjson
from hpack import Decoder

from benchmarks.errors import BenchmarkError
from benchmarks.fuzz.bodies import Body
from serving import http2
from serving.protocol.proto import INFERENCE

Send = Callable[[int], "Counter[str]"]
_TIMEOUT_S: Final = 20.0
_QUIET_S: Final = 0.5  # after which a connection that says nothing is left
_ACCEPTED: Final = frozenset({"200", "OK", "closed", "open"})
_REFUSALS: Final = frozenset({"INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED"})
_FRAMING_REFUSALS: Final = frozenset({"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "malformed"})  # of damaged HTTP/2
_ENDS: Final = {each: f"ended: {each.name}" for each in http2.ErrorCode}
_BLAMING: Final = frozenset({_ENDS[http2.ErrorCode.INTERNAL_ERROR]})
_SERVERS_FAULT: Final = "internal error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Campaign:
    """Sends until ``refusals`` requests were refused; ``port`` is where the server says that it lives."""

    name: str
    refusals: int
    send: AbstractContextManager[Send]
    port: int

    def refused(self, counts: "Counter[str]") -> int:
        """How many of the answers are refusals."""
        return sum(times for answer, times in counts.items() if answer not in _ACCEPTED)

    def check(self, counts: "Counter[str]") -> None:
        """Raise if an answer blames the server, or the server does not live.

        Raises:
            BenchmarkError: says which.
        """
        permitted = (_ACCEPTED | _REFUSALS | _FRAMING_REFUSALS | set(_ENDS.values())) - _BLAMING
        blaming = [answer for answer in counts if answer not in permitted and not answer.startswith("4")]
        if blaming:
            raise BenchmarkError(f"{self.name}: answered {', '.join(blaming)}")
        connection = HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET", "/v2/health/live")
            if (answer := connection.getresponse()).status != 200:
                raise BenchmarkError(f"{self.name}: no longer live: {answer.status}")


@contextmanager
def over_http(port: int, bodies: Iterator[Body]) -> Iterator[Send]:
    """Sends bodies over one connection, and holds the answers against the protocol."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)

    def send(count: int) -> "Counter[str]":
        return Counter(_ask(connection, body) for body in itertools.islice(bodies, count))

    with contextlib.closing(connection):
        yield send


def _ask(connection: HTTPConnection, body: Body) -> str:
    try:
        connection.request("POST", body.path, body.content, dict(body.headers))
        answer = connection.getresponse()
        said = answer.read()
    except (OSError, HTTPException) as error:
        raise BenchmarkError(f"no answer to {_shown(body)}: {error!r}") from None
    if answer.status != 200 and (
        answer.getheader("content-type") != "application/json" or list(orjson.loads(said)) != ["error"]
    ):
        raise BenchmarkError(f"not the protocol's error for {_shown(body)}: {said[:200]!r}")
    if answer.status >= 500:
        raise BenchmarkError(f"{answer.status} for {_shown(body)}: {said[:200]!r}")
    return str(answer.status)


def _shown(body: Body) -> str:
    return f"{body.path} {dict(body.headers)} {body.content[:2000]!r}"


@contextmanager
def over_grpc(port: int, bodies: Iterator[bytes]) -> Iterator[Send]:
    """Sends messages as those of ModelInfer."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(f"/{INFERENCE}/ModelInfer")

        def ask(body: bytes) -> str:
            try:
                call(body, timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                code = str(error.code().name)
                if code not in _REFUSALS:
                    raise BenchmarkError(f"{code} for {body[:2000]!r}: {error.details()}") from None
                return code
            return "OK"

        def send(count: int) -> "Counter[str]":
            return Counter(ask(body) for body in itertools.islice(bodies, count))

        yield send


@contextmanager
def over_sockets(port: int, streams: Iterator[bytes]) -> Iterator[Send]:
    """Sends each stream on a connection of its own, ends its half, and reads what comes."""

    def send(count: int) -> "Counter[str]":
        return Counter(_converse(port, stream) for stream in itertools.islice(streams, count))

    yield send


def _converse(port: int, stream: bytes) -> str:
    """The status of the last answer; "closed" where there was none."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
            connection.sendall(stream)
            connection.shutdown(socket.SHUT_WR)
            started = time.monotonic()
            while chunk := connection.recv(65536):
                received += chunk
    except ConnectionError as error:
        raise BenchmarkError(f"{error!r} for {stream!r}") from None
    except TimeoutError:
        raise BenchmarkError(f"open for more than {time.monotonic() - started:.0f} s: {stream!r}") from None
    statuses = [line.split(b" ")[1].decode() for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    return next((status for status in reversed(statuses) if status != "100"), "closed")


@contextmanager
def over_http2(port: int, streams: Iterator[bytes]) -> Iterator[Send]:
    """Sends each session on a connection of its own; between them, a good call must be answered."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        live = channel.unary_unary(f"/{INFERENCE}/ServerLive")

        def send(count: int) -> "Counter[str]":
            counts = Counter(_session(port, stream) for stream in itertools.islice(streams, count))
            try:
                live(b"", timeout=_TIMEOUT_S)
            except grpc.RpcError as error:
                raise BenchmarkError(f"a good call is not answered any more: {error.code().name}") from None
            return counts

        yield send


def _session(port: int, stream: bytes) -> str:
    """What came of a session: "open" where the server waits, as for a window, for more than the client sends."""
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
            connection.sendall(stream)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(_QUIET_S)
            while chunk := connection.recv(65536):
                received += chunk
    except ConnectionError as error:
        raise BenchmarkError(f"{error!r} for {stream!r}") from None
    except TimeoutError:
        return "open"
    return _outcome(received)


def _outcome(received: bytes) -> str:
    """The worst that a server said of a session."""
    if (at := received.find(b"HTTP/1.1 ")) >= 0:
        return received[at + 9 : at + 12].decode()
    decoder, outcome = Decoder(), "closed"
    for kind, payload in _frames(received):
        if kind in (http2.GOAWAY, http2.RST_STREAM):
            code = http2.ErrorCode(int.from_bytes(payload[4:8] if kind == http2.GOAWAY else payload, "big"))
            if code:
                outcome = _ENDS[code]
        elif kind == http2.HEADERS:
            said = _said({str(name): str(value) for name, value in decoder.decode(payload)})
            outcome = said if outcome in _ACCEPTED else outcome
    return outcome


def _frames(received: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each whole frame."""
    at = 0
    while at + http2.FRAME_BYTES <= len(received):
        upper, lower, kind, _, _ = http2.FRAME.unpack_from(received, at)
        at += http2.FRAME_BYTES + (size := upper << 8 | lower)
        yield kind, received[at - size : at]


def _said(fields: dict[str, str]) -> str:
    status = fields.get("grpc-status")
    if status is None:
        return "closed" if fields.get(":status", "200") == "200" else fields[":status"]
    name = next(each.name for each in grpc.StatusCode if each.value[0] == int(status))
    if name == "INTERNAL" and unquote(fields.get("grpc-message", "")) != _SERVERS_FAULT:
        return "malformed"
    return str(name)
