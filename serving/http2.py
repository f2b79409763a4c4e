"""HTTP/2's frames and header blocks, as far as a server of gRPC needs them: RFC 9113 and RFC 7541.

Nothing here does input or output; ``serving.grpc_server`` does.
"""

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Final, Generic, TypeVar

from hpack import Decoder, HPACKError, OversizedHeaderListError

from models.tensor import Buffer

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME: Final = struct.Struct(">HBBBL")  # the length's upper 16 and lower 8 bits, type, flags, stream
FRAME_BYTES: Final = FRAME.size
STREAM_MASK: Final = 2**31 - 1  # the bit above is reserved
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65_535
DEFAULT_MAX_FRAME: Final = 16_384
LARGEST_FRAME: Final = 2**24 - 1
DEFAULT_TABLE_BYTES: Final = 4096
NO_TABLE: Final = b"\x20"  # of a header block: from here on, the table is empty

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

_SETTING: Final = struct.Struct(">HL")
_NUMBER: Final = struct.Struct(">L")
_PRIORITY_BYTES: Final = 5
_GOAWAY_BYTES: Final = 8
_INDEXED: Final = 0x80  # a field of a block that is wholly in the table; so are its further bytes, but for a last one
_REMEMBERED: Final = 256  # blocks of one connection
_PREFIX_7: Final = 0x7F
_CONNECTION_FIELDS: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_PSEUDO: Final = frozenset({b":method", b":scheme", b":path", b":authority"})

Fields = Sequence[tuple[bytes, bytes]]
T = TypeVar("T")


class ErrorCode(IntEnum):
    """Why a stream or a connection ends."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):  # noqa: N818 - a fault of the peer's, never ours
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class StreamFault(Exception):  # noqa: N818
    """The peer broke the protocol in a way that ends one stream."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: Buffer = b"") -> bytes:
    """A whole frame."""
    return frame_head(len(payload), kind, flags, stream) + payload


def frame_head(size: int, kind: int, flags: int, stream: int) -> bytes:
    """What comes before a frame's payload of ``size`` bytes."""
    return FRAME.pack(size >> 8, size & 0xFF, kind, flags, stream)


def read_head(data: Buffer) -> tuple[int, int, int, int]:
    """A payload's size, a frame's type, flags and stream, from its first bytes."""
    upper, lower, kind, flags, stream = FRAME.unpack_from(data)
    return upper << 8 | lower, kind, flags, stream & STREAM_MASK


def settings(values: Mapping[int, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*each) for each in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(increment))


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(code))


def goaway(last_stream: int, code: ErrorCode, reason: str = "") -> bytes:
    """A GOAWAY frame: streams after ``last_stream`` were not and will not be worked on."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last_stream) + _NUMBER.pack(code) + reason.encode())


def read_number(payload: Buffer) -> int:
    """The one number, without the reserved bit, of a WINDOW_UPDATE or RST_STREAM frame.

    Raises:
        ConnectionFault: the frame has another size.
    """
    if len(payload) != _NUMBER.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame that holds one number has 4 bytes")
    number: int = _NUMBER.unpack(payload)[0]
    return number & STREAM_MASK


def read_settings(payload: Buffer) -> Iterator[tuple[int, int]]:
    """Each setting and its value; of those that are known, only permitted ones.

    Raises:
        ConnectionFault: a value is not permitted, or the frame's size is no multiple of a setting's.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is made of 6 bytes each")
    for name, value in _SETTING.iter_unpack(payload):
        if name == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"an initial window of {value} bytes is too large")
        if name == MAX_FRAME_SIZE and not DEFAULT_MAX_FRAME <= value <= LARGEST_FRAME:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"frames of at most {value} bytes are not permitted")
        if name == ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is 0 or 1")
        yield name, value


def unpadded(payload: Buffer, flags: int) -> memoryview:
    """A payload without its padding.

    Raises:
        ConnectionFault: the padding is longer than the frame.
    """
    view = memoryview(payload)
    if not flags & PADDED:
        return view
    if not view or view[0] >= len(view):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the padding is longer than its frame")
    return view[1 : len(view) - view[0]]


def unprioritised(payload: memoryview, flags: int) -> memoryview:
    """The payload of HEADERS without the priority that came along.

    Raises:
        ConnectionFault: it is too short for that.
    """
    if not flags & PRIORITISED:
        return payload
    if len(payload) < _PRIORITY_BYTES:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS is too short for its priority")
    return payload[_PRIORITY_BYTES:]


def check_priority(stream: int, payload: Buffer) -> None:
    """Check a PRIORITY frame, which says nothing here.

    Raises:
        ConnectionFault: it is of no stream, or has another size.
    """
    if not stream:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY is of a stream")
    if len(payload) != _PRIORITY_BYTES:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"PRIORITY has {_PRIORITY_BYTES} bytes")


def check_goaway(payload: Buffer) -> None:
    """Check a GOAWAY frame.

    Raises:
        ConnectionFault: it is too short.
    """
    if len(payload) < _GOAWAY_BYTES:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"GOAWAY has at least {_GOAWAY_BYTES} bytes")


class HeaderBlocks(Generic[T]):
    """Header blocks of one connection, in their order; ``make`` gives the meaning of each.

    A client sends the same few fields again and again, and then one byte each says where in the table they are: such
    a block means the same for as long as the table stays as it is, and is decoded once.
    """

    def __init__(self, make: Callable[[Fields], T], max_bytes: int) -> None:
        self._make, self._max_bytes = make, max_bytes
        self._decoder = Decoder(max_bytes)
        self._known: dict[bytes, T] = {}

    def read(self, block: bytes) -> T:
        """The meaning of a block.

        Raises:
            ConnectionFault: it cannot be decoded, or holds too much.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        fields = self._decode(block)
        if not block or min(block) < _INDEXED:
            self._known.clear()  # it may have changed the table
            return self._make(fields)
        made = self._make(fields)
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[block] = made
        return made

    def _decode(self, block: bytes) -> Fields:
        try:
            return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except OversizedHeaderListError:
            reason = f"the headers are over the limit of {self._max_bytes} bytes"
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, reason) from None
        except HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error) or "not HPACK") from None
        except Exception:  # noqa: BLE001 - whatever a damaged block does to the decoder
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, "not HPACK") from None


def check_request(fields: Fields) -> Mapping[bytes, bytes]:
    """A request's fields by name, of repeated ones the last.

    Raises:
        StreamFault: they are not a request's: see RFC 9113, sections 8.2 and 8.3.
    """
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        if name.startswith(b":"):
            if name not in _PSEUDO or name in found or any(not each.startswith(b":") for each in found):
                raise StreamFault(ErrorCode.PROTOCOL_ERROR, f"{name!r} is out of place")
        elif not name or name != name.lower() or name in _CONNECTION_FIELDS:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, f"{name[:64]!r} is no name of a field here")
        found[name] = value
    if not found.get(b":method") or not found.get(b":path") or b":scheme" not in found:
        raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a request has a method, a scheme and a path")
    return found


def literal(name: bytes, value: bytes) -> bytes:
    """A field of a header block that leaves the client's table as it is."""
    return b"\x00" + string(name) + string(value)


def string(value: bytes) -> bytes:
    """A string in a header block, as it is."""
    size = len(value)
    return (bytes((size,)) if size < _PREFIX_7 else _long(size)) + value


def _long(size: int) -> bytes:
    encoded, rest = bytearray((_PREFIX_7,)), size - _PREFIX_7
    while rest >= _INDEXED:
        encoded.append(rest & _PREFIX_7 | _INDEXED)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)
