"""Memory that a router writes and replicas read."""

import itertools
import queue
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.tensor import Tensor
from serving.arena import SHARE_FROM_BYTES, Arena, Window
from serving.dataplane import DataPlane
from serving.door import uncleared
from serving.grpc import GrpcServer
from serving.http import HttpApp
from serving.replica import _stack
from serving.wire import decode_batch_header, encode_batch
from tests.serving.echo_engine import EchoEngine
from tests.serving.grpc_talker import resident_bytes

MEBIBYTE = 1 << 20


def test_a_replica_s_window_shows_what_the_router_wrote() -> None:
    arena = Arena(MEBIBYTE)
    block = arena.allocate(100_000)
    assert block is not None
    block[:5] = b"image"
    window = Window(arena.name)
    offset = arena.locate(block)
    assert offset is not None
    assert bytes(window.view(offset, 5)) == b"image"
    block[:5] = b"other"
    assert bytes(window.view(offset, 5)) == b"other"
    arena.close()
    assert bytes(window.view(offset, 5)) == b"other"  # who looks in keeps it


def test_another_process_can_read_it_but_not_write_it() -> None:
    arena = Arena(MEBIBYTE)
    block = arena.allocate(SHARE_FROM_BYTES)
    assert block is not None
    block[:4] = b"seen"
    script = f"""
import mmap, os
from serving.arena import Window
print(bytes(Window({arena.name!r}).view({arena.locate(block)}, 4)).decode())
try:
    mmap.mmap(os.open({arena.name!r}, os.O_RDWR), 0)
except PermissionError:
    print("sealed")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout.split() == ["seen", "sealed"]
    arena.close()


def test_a_window_refuses_an_arena_that_is_gone() -> None:
    arena = Arena(MEBIBYTE)
    name = arena.name
    arena.close()
    with pytest.raises(OSError, match=r"No such file|Bad file"):
        Window(name)


def test_a_block_returns_with_its_last_view_and_is_used_next() -> None:
    arena = Arena(MEBIBYTE)
    block = arena.allocate(100_000)
    assert block is not None
    offset, part = arena.locate(block), block[50:60]
    del block
    assert arena.used_bytes > 0
    del part
    assert arena.used_bytes == 0
    again = arena.allocate(100_000)
    assert again is not None
    assert arena.locate(again) == offset


def test_a_full_arena_says_so_and_takes_a_larger_free_block_first() -> None:
    arena = Arena(MEBIBYTE)
    large = arena.allocate(MEBIBYTE // 2)
    rest = arena.allocate(MEBIBYTE // 2)
    assert large is not None
    assert rest is not None
    assert arena.allocate(SHARE_FROM_BYTES) is None
    del large
    small = arena.allocate(SHARE_FROM_BYTES)
    assert small is not None
    assert arena.used_bytes == MEBIBYTE
    del small, rest
    assert arena.used_bytes == 0


def test_what_is_small_or_lies_elsewhere_is_not_shared() -> None:
    arena = Arena(MEBIBYTE)
    assert arena.allocate(SHARE_FROM_BYTES - 1) is None
    assert arena.locate(bytes(100)) is None
    assert arena.locate(np.zeros(100_000, np.uint8).data) is None


@given(sizes=st.lists(st.integers(SHARE_FROM_BYTES, 300_000), max_size=20), lead=st.integers(0, 500))
def test_blocks_never_overlap_and_what_follows_the_lead_is_aligned(sizes: list[int], lead: int) -> None:
    arena = Arena(2 * MEBIBYTE)
    held = [block for size in sizes if (block := arena.allocate(size, lead)) is not None]
    spans = sorted((arena.locate(block) or 0, len(block)) for block in held)
    assert all(offset % 64 == -lead % 64 for offset, _ in spans)
    assert all(first + size <= second for (first, size), (second, _) in itertools.pairwise(spans))
    assert all(offset + size <= 2 * MEBIBYTE for offset, size in spans)
    arena.close()


@pytest.mark.parametrize("requests", [1, 3])
def test_tensors_in_the_arena_travel_as_places_and_arrive_whole(requests: int) -> None:
    arena = Arena(4 * MEBIBYTE)
    rng = np.random.default_rng(1)
    inputs = []
    for _ in range(requests):
        block = arena.allocate(100_007, 7)
        assert block is not None
        block[7:] = rng.integers(0, 255, 100_000, np.uint8).data
        inputs.append({"x": Tensor("x", "FP32", (1, 25_000), block[7:])})
    frames = encode_batch(1, (1,) * requests, inputs, batched=True, measure=False, locate=arena.locate)
    assert len(frames) == 1
    stacked = _stack(decode_batch_header(frames[0]), [], Window(arena.name), batched=True)
    assert stacked["x"].tobytes() == b"".join(bytes(each["x"].data) for each in inputs)
    assert not stacked["x"].flags.writeable or requests > 1


def test_a_batch_with_one_tensor_elsewhere_travels_as_frames() -> None:
    arena = Arena(MEBIBYTE)
    block = arena.allocate(100_000)
    assert block is not None
    inputs = [{"x": Tensor("x", "UINT8", (1, 100_000), data)} for data in (block, bytes(100_000))]
    frames = encode_batch(1, (1, 1), inputs, batched=True, measure=False, locate=arena.locate)
    assert len(frames) == 3


async def test_blocks_that_are_reserved_and_never_filled_leave_plain_memory_to_others() -> None:
    arena, plane = Arena(MEBIBYTE), DataPlane(EchoEngine())
    app, server = HttpApp(plane, arena=arena), GrpcServer(plane, "127.0.0.1", 0, arena=arena)
    await server.start()
    reserved = [app.allocate(MEBIBYTE // 2, {}), server.listener.allocate(MEBIBYTE // 2, memoryview(b""))]
    assert all(arena.locate(block) is not None for block in reserved)
    for other in (app.allocate(100_000, {}), server.listener.allocate(100_000, memoryview(b""))):
        assert arena.locate(other) is None
        other[:] = bytes(100_000)
    del reserved[0]
    assert arena.locate(app.allocate(100_000, {})) is not None
    await server.stop(0)
    arena.close()


def test_memory_for_a_body_is_taken_only_as_the_body_comes() -> None:
    before, blocks = resident_bytes(), []
    for _ in range(64):
        block = uncleared(64 * MEBIBYTE)
        block[:65536] = bytes(65536)
        blocks.append(block)
    assert resident_bytes() - before < 64 * 2 * 65536


def test_memory_that_is_not_there_is_refused_at_any_size() -> None:
    for size in (1 << 46, 1 << 62):
        with pytest.raises(MemoryError):
            uncleared(size)


def test_an_arena_that_nobody_uses_is_whole_again() -> None:
    arena = Arena(MEBIBYTE)
    small = [arena.allocate(SHARE_FROM_BYTES) for _ in range(16)]
    assert None not in small
    assert arena.allocate(MEBIBYTE // 2) is None
    del small
    assert arena.used_bytes == 0
    assert arena.allocate(MEBIBYTE) is not None


def test_the_last_view_of_a_block_may_go_in_any_thread() -> None:
    arena = Arena(64 * MEBIBYTE)
    views: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()

    def drop() -> None:
        while (view := views.get()) is not None:
            del view

    dropping = [threading.Thread(target=drop) for _ in range(3)]
    for thread in dropping:
        thread.start()
    sizes = itertools.cycle((SHARE_FROM_BYTES, 100_000, 700_000))
    for _ in range(3000):
        views.put(arena.allocate(next(sizes)) or memoryview(b""))
        assert 0 <= arena.used_bytes <= 64 * MEBIBYTE
    for _ in dropping:
        views.put(None)
    for thread in dropping:
        thread.join()
    assert arena.used_bytes == 0
