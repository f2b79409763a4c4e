"""What one call of gRPC says in its headers, and how it ends: the parts that know no connection."""

import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote

from models.errors import UnderstudyError
from models.tensor import Buffer
from serving import http2
from serving.protocol import compression
from serving.protocol.errors import Code, error_details, grpc_status

PREFIX: Final = struct.Struct(">BL")  # of a message: whether it is compressed, and its length
PREFIX_BYTES: Final = PREFIX.size
IDENTITY: Final = "identity"
_TYPE: Final = b"application/grpc"
_TYPES: Final = re.compile(rb"application/grpc([+;].*)?")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_DETAILS_SAFE: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_QUOTED_CHARS: Final = 256  # of what a client made up

# Header blocks begin with the status: 0x88 is ":status: 200" in HPACK's static table, 0x08 any other.
HEAD: Final = b"\x88" + http2.literal(b"content-type", _TYPE)
_ANY_STATUS: Final = b"\x08"
_SPOKEN: Final = http2.literal(b"grpc-accept-encoding", b"identity,deflate,gzip")
_OK: Final = http2.literal(b"grpc-status", b"0")

Metadata = tuple[tuple[bytes, bytes], ...]


class Answer(NamedTuple):
    """How a call ends: with its one message (a streaming call has sent its own), or with a code other than OK."""

    body: Buffer = b""
    code: Code = Code.OK
    message: str = ""
    metadata: Metadata = ()

    def trailers(self) -> bytes:
        """The fields that come after all messages."""
        block = _status(self.code, self.message) if self.code else _OK
        for name, value in self.metadata:
            block += http2.literal(name, value)
        return block


class Messages(Protocol):
    """A streaming call's messages, in both directions."""

    def __aiter__(self) -> AsyncIterator[tuple[Buffer, int]]:
        """The client's messages, and how many bytes of each count until ``release``.

        Raises:
            UnderstudyError: one cannot be decompressed.
        """

    def release(self, size: int) -> None:
        """A message was let go of as many of whose bytes count."""

    async def send(self, message: Buffer) -> None:
        """Send a message; waits until the client lets those before it out.

        Raises:
            asyncio.CancelledError: the client is gone.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """What answers the calls of one path, in one of two kinds; neither may raise but an ``UnderstudyError``.

    ``unary`` gets the request's message, the call, and when its last byte came, in seconds of ``time.monotonic``. The
    client of a ``streaming`` method that ``takes_one`` sends one message, too.
    """

    unary: "Callable[[Buffer, Call, float], Awaitable[Answer]] | None" = None
    streaming: "Callable[[Messages, Call], Awaitable[Answer]] | None" = None
    takes_one: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a call's headers say.

    ``timeout_s`` counts from its arrival. ``refusal`` is the header block that answers what is no call of a method.
    """

    method: Method = Method()
    metadata: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float | None = None
    encoding: str = IDENTITY
    refusal: bytes | None = None


def read_call(fields: http2.Fields, methods: Mapping[str, Method]) -> Call:
    """A call from a request's header fields; ``methods`` are found by their paths.

    Raises:
        StreamFault: the fields are not a request's.
    """
    found = http2.check_request(fields)
    if found[b":method"] != b"POST":
        return Call(refusal=_http_status(b"405", http2.literal(b"allow", b"POST")))
    if not _TYPES.fullmatch(found.get(b"content-type", b"").lower()):
        return Call(refusal=_http_status(b"415"))
    path = found[b":path"].decode("latin-1")
    method = methods.get(path)
    if method is None:
        return _refused(Code.UNIMPLEMENTED, f"unknown method {path[:_QUOTED_CHARS]}")
    encoding = found.get(b"grpc-encoding", IDENTITY.encode()).decode("latin-1")
    if encoding != IDENTITY and encoding not in compression.ENCODINGS:
        text = f"encoding {encoding[:_QUOTED_CHARS]!r} is not spoken here; use gzip or deflate"
        return _refused(Code.UNIMPLEMENTED, text, _SPOKEN)
    timeout = found.get(b"grpc-timeout")
    read = _TIMEOUT.fullmatch(timeout) if timeout is not None else None
    if timeout is not None and read is None:
        return _refused(Code.INVALID_ARGUMENT, "'grpc-timeout' must be at most 8 digits and a unit of HMSmun")
    return Call(
        method=method,
        metadata={name.decode("latin-1"): value.decode("latin-1") for name, value in found.items()},
        timeout_s=None if read is None else int(read[1]) * _UNITS_S[read[2]],
        encoding=encoding,
    )


def failed(error: UnderstudyError, metadata: Metadata = ()) -> Answer:
    """How a call ends with an error."""
    return Answer(code=grpc_status(error), message=error_details(str(error)), metadata=metadata)


def with_head(trailers: bytes) -> bytes:
    """The header block of an answer that has nothing but its end."""
    return trailers if trailers.startswith((HEAD[:1], _ANY_STATUS)) else HEAD + trailers


def _refused(code: Code, message: str, further: bytes = b"") -> Call:
    return Call(refusal=HEAD + _status(code, message) + further)


def _status(code: Code, message: str) -> bytes:
    text = quote(message, safe=_DETAILS_SAFE).encode()
    return http2.literal(b"grpc-status", b"%d" % code) + http2.literal(b"grpc-message", text)


def _http_status(status: bytes, further: bytes = b"") -> bytes:
    """A header block of an answer that is none of gRPC's."""
    return _ANY_STATUS + http2.string(status) + further
