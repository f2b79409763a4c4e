"""Peak memory of one batch: how far the process's resident size rose above what it was after loading.

Shared pages do not count: what a router's arena shows of its requests is the router's memory, mapped as it is read.
"""

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Final

_PROC: Final = Path("/proc/self")
_RESET_PEAK: Final = b"5"  # proc(5), clear_refs: "reset the peak resident set size to the current value"
_STATUS_BYTES: Final = 4096
_PEAK: Final = b"VmHWM:"
_SHARED: Final = b"RssShmem:"


class MemoryMeter:
    """Reads the kernel's high-water mark of this process's resident memory (Linux, no privilege needed).

    ``mark_loaded`` once after the model is loaded; then ``reset`` before and ``peak_bytes`` after each batch. Keeps
    two files of ``/proc/self`` open, so that both calls together take some tens of microseconds. A forked child needs
    its own meter. Memory that a batch leaves behind counts for the batches after it, which is how a leak shows.

    Source: proc(5), ``/proc/pid/clear_refs``, and ``VmHWM`` and ``RssShmem`` in ``/proc/pid/status``.
    """

    def __init__(self, proc: Path = _PROC) -> None:
        self._loaded_bytes = 0
        self._status = self._clear = -1
        try:
            self._status = os.open(proc / "status", os.O_RDONLY | os.O_CLOEXEC)
            self._clear = os.open(proc / "clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            self.close()
        if self.reset():
            self._loaded_bytes = self._high_water_bytes() or 0

    def mark_loaded(self) -> None:
        """Take the present resident size as what the loaded model needs without any batch."""
        if self.reset():
            self._loaded_bytes = self._high_water_bytes() or 0

    def reset(self) -> bool:
        """Start a new peak at the present resident size; False where the kernel does not offer it."""
        if self._clear < 0:
            return False
        try:
            os.pwrite(self._clear, _RESET_PEAK, 0)
        except OSError:  # a kernel without the file's feature, or a sandbox that forbids it
            self.close()
            return False
        return True

    def peak_bytes(self) -> int | None:
        """The highest resident size since ``reset``, less that of ``mark_loaded``; None where it cannot be known."""
        high_water_bytes = self._high_water_bytes()
        return None if high_water_bytes is None else max(0, high_water_bytes - self._loaded_bytes)

    def close(self) -> None:
        """Close the files; may be called twice."""
        for descriptor in (self._status, self._clear):
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        self._status = self._clear = -1

    def __enter__(self) -> "MemoryMeter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _high_water_bytes(self) -> int | None:
        if self._status < 0:
            return None
        status = os.pread(self._status, _STATUS_BYTES, 0)
        peak_bytes, shared_bytes = _field(status, _PEAK), _field(status, _SHARED)
        return None if peak_bytes is None else peak_bytes - (shared_bytes or 0)


def _field(status: bytes, name: bytes) -> int | None:
    at = status.find(name)
    return None if at < 0 else int(status[at + len(name) : status.index(b"kB", at)]) * 1024
