"""HTTP/2's frames and header blocks, held against hyperframe and hpack."""

import struct
from collections.abc import Callable

import pytest
from hpack import Decoder, Encoder
from hyperframe import frame as frames
from hypothesis import given
from hypothesis import strategies as st

from serving import http2
from serving.http2 import ConnectionFault, ErrorCode, Fields, HeaderBlocks, StreamFault

REQUEST = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b"te", b"trailers")]
texts = st.binary(max_size=300)
names = st.sampled_from([b":path", b"te", b"x-a", b"x-b", b"grpc-timeout"])
blocks = st.lists(
    st.lists(st.tuples(names, st.sampled_from([b"", b"1", b"2" * 40, b"3" * 900])), max_size=6), max_size=12
)


def everything(fields: Fields) -> list[tuple[bytes, bytes]]:
    return list(fields)


def fault_of(call: Callable[[], object]) -> ErrorCode:
    with pytest.raises(ConnectionFault) as raised:
        call()
    return raised.value.code


# -- header blocks -----------------------------------------------------------------------------------------------------


@given(sent=blocks, sizes=st.lists(st.sampled_from([0, 100, 4096]), max_size=12), repeats=st.integers(1, 3))
def test_blocks_mean_what_was_sent_whatever_the_table_did(
    sent: list[list[tuple[bytes, bytes]]], sizes: list[int], repeats: int
) -> None:
    encoder, read = Encoder(), HeaderBlocks(everything, 100_000)
    for number, fields in enumerate(sent):
        if number < len(sizes):
            encoder.header_table_size = sizes[number]
        for _ in range(repeats):
            assert read.read(bytes(encoder.encode(fields))) == fields


def test_a_block_that_is_known_means_something_else_once_the_table_has_changed() -> None:
    read = HeaderBlocks(everything, 100_000)
    assert read.read(b"\x40\x01a\x011") == [(b"a", b"1")]
    for _ in range(3):
        assert read.read(b"\xbe") == [(b"a", b"1")]
    assert read.read(b"\x40\x01b\x012") == [(b"b", b"2")]
    for _ in range(3):
        assert read.read(b"\xbe") == [(b"b", b"2")]
        assert read.read(b"\xbf") == [(b"a", b"1")]
    assert read.read(b"\x20\x82") == [(b":method", b"GET")]  # the table is emptied
    assert fault_of(lambda: read.read(b"\xbe")) is ErrorCode.COMPRESSION_ERROR


@given(name=texts, value=texts)
def test_what_is_written_as_a_literal_is_read_again_and_leaves_the_table_alone(name: bytes, value: bytes) -> None:
    decoder = Decoder()
    assert decoder.decode(http2.literal(name, value) * 2, raw=True) == [(name, value)] * 2
    assert not decoder.header_table.dynamic_entries


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 16_383 + 127, 16_384 + 127, 60_000])
def test_strings_of_every_length(size: int) -> None:
    value = b"v" * size
    assert Decoder(100_000).decode(http2.literal(b"n", value), raw=True) == [(b"n", value)]


def test_more_than_the_limit_is_refused_before_it_is_there() -> None:
    read = HeaderBlocks(everything, 1000)
    read.read(b"\x40\x01a\x7f\x81\x02" + b"v" * 384)
    assert len(read.read(b"\xbe")) == 1
    for block in (b"\xbe" * 3, b"\x00\x01a\x7f\xe9\x07" + b"v" * 1128):
        assert fault_of(lambda: read.read(block)) is ErrorCode.ENHANCE_YOUR_CALM  # noqa: B023


@given(block=st.binary(max_size=60))
def test_any_bytes_are_fields_or_a_fault_of_compression(block: bytes) -> None:
    read = HeaderBlocks(everything, 1000)
    try:
        fields = read.read(block)
    except ConnectionFault as fault:
        assert fault.code in (ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM)
    else:
        assert fields == Decoder().decode(block, raw=True)


# -- fields of a request -----------------------------------------------------------------------------------------------


def test_a_request_s_fields_by_name() -> None:
    found = http2.check_request([*REQUEST, (b"a", b"1"), (b"a", b"2")])
    assert (found[b":path"], found[b"a"]) == (b"/a", b"2")


@pytest.mark.parametrize(
    "fields",
    [
        REQUEST[1:],
        [*REQUEST[:1], *REQUEST[2:]],
        [*REQUEST[:2], REQUEST[3]],
        [*REQUEST[:2], (b":path", b"")],
        [*REQUEST[:3], REQUEST[2]],
        [REQUEST[3], *REQUEST[:3]],
        [*REQUEST[:3], (b":status", b"200")],
        [*REQUEST, (b"A", b"1")],
        [*REQUEST, (b"", b"1")],
        [*REQUEST, (b"connection", b"close")],
        [*REQUEST, (b"transfer-encoding", b"chunked")],
        [],
    ],
)
def test_what_is_no_request_is_a_fault_of_its_stream(fields: Fields) -> None:
    with pytest.raises(StreamFault) as raised:
        http2.check_request(fields)
    assert raised.value.code is ErrorCode.PROTOCOL_ERROR


# -- frames ------------------------------------------------------------------------------------------------------------


def parsed(frame: bytes) -> frames.Frame:
    made, length = frames.Frame.parse_frame_header(memoryview(frame[:9]), strict=True)
    assert length == len(frame) - 9
    made.parse_body(memoryview(frame[9:]))
    return made


def test_frames_are_what_another_library_reads() -> None:
    settings = parsed(http2.settings({http2.INITIAL_WINDOW_SIZE: 7, http2.MAX_FRAME_SIZE: http2.LARGEST_FRAME}))
    assert isinstance(settings, frames.SettingsFrame)
    assert settings.settings == {4: 7, 5: 2**24 - 1}
    update = parsed(http2.window_update(5, http2.MAX_WINDOW))
    assert isinstance(update, frames.WindowUpdateFrame)
    assert (update.stream_id, update.window_increment) == (5, 2**31 - 1)
    reset = parsed(http2.rst_stream(3, ErrorCode.CANCEL))
    assert isinstance(reset, frames.RstStreamFrame)
    assert (reset.stream_id, reset.error_code) == (3, 8)
    farewell = parsed(http2.goaway(9, ErrorCode.FLOW_CONTROL_ERROR, "too much"))
    assert isinstance(farewell, frames.GoAwayFrame)
    assert (farewell.last_stream_id, farewell.error_code, farewell.additional_data) == (9, 3, b"too much")
    large = parsed(http2.frame(http2.DATA, http2.END_STREAM, 1, bytes(70_000)))
    assert isinstance(large, frames.DataFrame)
    assert (len(large.data), set(large.flags)) == (70_000, {"END_STREAM"})


@given(values=st.dictionaries(st.integers(7, 65535), st.integers(0, 2**32 - 1), max_size=5))
def test_settings_that_nobody_knows_may_have_any_value(values: dict[int, int]) -> None:
    assert dict(http2.read_settings(http2.settings(values)[9:])) == values


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (bytes(5), ErrorCode.FRAME_SIZE_ERROR),
        (struct.pack(">HI", http2.INITIAL_WINDOW_SIZE, 2**31), ErrorCode.FLOW_CONTROL_ERROR),
        (struct.pack(">HI", http2.MAX_FRAME_SIZE, 16383), ErrorCode.PROTOCOL_ERROR),
        (struct.pack(">HI", http2.MAX_FRAME_SIZE, 2**24), ErrorCode.PROTOCOL_ERROR),
        (struct.pack(">HI", http2.ENABLE_PUSH, 2), ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_settings_that_are_not_permitted(payload: bytes, code: ErrorCode) -> None:
    assert fault_of(lambda: list(http2.read_settings(payload))) is code


def test_numbers_lose_the_reserved_bit() -> None:
    assert http2.read_number(b"\x80\0\0\7") == 7
    for payload in (b"", bytes(3), bytes(5)):
        assert fault_of(lambda: http2.read_number(payload)) is ErrorCode.FRAME_SIZE_ERROR  # noqa: B023


@given(content=st.binary(max_size=50), padding=st.integers(0, 255))
def test_padding_is_left_out(content: bytes, padding: int) -> None:
    padded = bytes((padding,)) + content + bytes(padding)
    assert http2.unpadded(padded, http2.PADDED) == content
    assert http2.unpadded(padded, 0) == padded
    if padding > len(content):
        short = padded[: 1 + len(content)]
        assert fault_of(lambda: http2.unpadded(short, http2.PADDED)) is ErrorCode.PROTOCOL_ERROR


def test_priority_is_left_out() -> None:
    payload = memoryview(b"12345rest")
    assert bytes(http2.unprioritised(payload, http2.PRIORITISED)) == b"rest"
    assert http2.unprioritised(payload, 0) == payload
    assert fault_of(lambda: http2.unprioritised(payload[:4], http2.PRIORITISED)) is ErrorCode.FRAME_SIZE_ERROR
