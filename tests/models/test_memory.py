from pathlib import Path

import numpy as np
import pytest

from models.memory import MemoryMeter

MIB = 1 << 20
linux_only = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


def touch(size_bytes: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.ones(size_bytes, dtype=np.uint8)


@linux_only
def test_the_peak_of_a_batch_is_seen_after_the_memory_was_freed() -> None:
    with MemoryMeter() as meter:
        meter.mark_loaded()
        meter.reset()
        touch(64 * MIB)
        peak_bytes = meter.peak_bytes()
        assert peak_bytes is not None
        assert 60 * MIB < peak_bytes < 96 * MIB


@linux_only
def test_each_batch_has_its_own_peak() -> None:
    with MemoryMeter() as meter:
        meter.mark_loaded()
        touch(64 * MIB)
        meter.reset()
        small_bytes = meter.peak_bytes()
        assert small_bytes is not None
        assert small_bytes < 32 * MIB


@linux_only
def test_memory_that_a_batch_leaves_behind_counts_for_the_next() -> None:
    with MemoryMeter() as meter:
        meter.mark_loaded()
        leaked = touch(64 * MIB)
        assert meter.reset()
        peak_bytes = meter.peak_bytes()
        assert peak_bytes is not None
        assert peak_bytes > 60 * MIB
        del leaked


@linux_only
def test_memory_of_the_loaded_model_does_not_count() -> None:
    with MemoryMeter() as meter:
        model = touch(64 * MIB)
        meter.mark_loaded()
        meter.reset()
        peak_bytes = meter.peak_bytes()
        assert peak_bytes is not None
        assert peak_bytes < 32 * MIB
        del model


def test_without_proc_the_peak_is_unknown(tmp_path: Path) -> None:
    meter = MemoryMeter(tmp_path / "absent")
    meter.mark_loaded()
    assert not meter.reset()
    assert meter.peak_bytes() is None


def test_where_the_peak_cannot_be_reset_it_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmHWM:\t 1024 kB\n")
    meter = MemoryMeter(tmp_path)
    assert meter.peak_bytes() is None


def test_a_status_without_the_field_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("Name:\tpython\n")
    (tmp_path / "clear_refs").write_text("")
    with MemoryMeter(tmp_path) as meter:
        assert meter.reset()
        assert meter.peak_bytes() is None


@linux_only
def test_closing_twice_leaves_no_file_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    meter = MemoryMeter()
    meter.close()
    meter.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert meter.peak_bytes() is None
