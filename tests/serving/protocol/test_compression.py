import gzip
import random
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import InvalidArgumentError, PayloadTooLargeError, UnsupportedMediaTypeError
from serving.protocol.compression import ENCODINGS, check_encoding, compress, decompress

ENCODING = st.sampled_from(sorted(ENCODINGS))


@given(st.binary(max_size=2000), ENCODING)
def test_what_is_compressed_comes_back(data: bytes, encoding: str) -> None:
    assert decompress(compress(data, encoding), encoding, len(data)) == data


@given(st.binary(min_size=1, max_size=500), ENCODING)
def test_one_byte_over_the_limit_is_too_large(data: bytes, encoding: str) -> None:
    with pytest.raises(PayloadTooLargeError):
        decompress(compress(data, encoding), encoding, len(data) - 1)


@given(st.binary(max_size=100), ENCODING)
def test_other_bytes_are_refused(data: bytes, encoding: str) -> None:
    with pytest.raises(InvalidArgumentError, match=encoding):
        decompress(b"\x00" + data, encoding, 1000)


@pytest.mark.parametrize("size", [0, 1, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
@pytest.mark.parametrize("period", [1, 1000, 300_000])
def test_a_large_body_comes_back_whole_and_to_the_byte(size: int, period: int) -> None:
    data = (random.Random(period).randbytes(period) * (size // period + 1))[:size]
    for encoding in ENCODINGS:
        packed = compress(data, encoding)
        assert decompress(packed, encoding, size) == data
        for wrong in (packed[:-1], packed + b"x", packed + bytes(100_000)):
            with pytest.raises(InvalidArgumentError, match="cut short or has bytes after"):
                decompress(wrong, encoding, size)
        with pytest.raises(PayloadTooLargeError):
            decompress(packed + b"x", encoding, size - 1)


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(PayloadTooLargeError):
            decompress(bomb, "gzip", 8 << 20)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20


def test_others_read_it() -> None:
    assert gzip.decompress(compress(b"abc", "gzip")) == b"abc"
    assert zlib.decompress(compress(b"abc", "deflate")) == b"abc"


def test_only_gzip_and_deflate_are_spoken() -> None:
    check_encoding("gzip")
    check_encoding("deflate")
    with pytest.raises(UnsupportedMediaTypeError, match="'br'"):
        check_encoding("br")
