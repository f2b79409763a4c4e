"""What the processes of a service ask of the operating system for themselves."""

import ctypes
import gc
import os
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_GIVE_BACK_EVERY_S: Final = 30.0
_LARGE_BYTES: Final = 1 << 20


class _SchedParam(ctypes.Structure):
    _fields_ = (("sched_priority", ctypes.c_int),)


def lower_priority() -> str:
    """Give this thread, and all threads that it starts from now on, the lowest scheduling class; returns which.

    Through the C library rather than by system call: it remembers each thread's class and hands that on to the threads
    it makes. Told of the old class, a library that sets its threads' class would try to raise them, which an ordinary
    user may not.
    """
    libc = ctypes.CDLL(None)
    libc.pthread_self.restype = ctypes.c_ulong
    me = ctypes.c_ulong(libc.pthread_self())
    if libc.pthread_setschedparam(me, os.SCHED_IDLE, ctypes.byref(_SchedParam(0))) == 0:
        return "SCHED_IDLE"
    os.nice(19)
    return "nice 19"


def sessions_compete(root: Path = Path("/")) -> bool:
    """Whether the kernel divides the cores among sessions first, and looks only within one at who has a low priority.

    Then work of the lowest class takes from programs of other sessions as much as any other work does.

    Source: sched(7), "The autogroup feature": it rules the processes that are in no CPU control group.
    """
    if _read(root / "proc/sys/kernel/sched_autogroup_enabled") != "1":
        return False
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if "cpu" in controllers.split(","):
            return group == "/"
        if not controllers and (root / "sys/fs/cgroup" / group.lstrip("/") / "cpu.weight").exists():
            return False
    return True


def _read(file: Path) -> str:
    """A file of the kernel's; "" where there is none."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def limit_memory(limit_bytes: int) -> None:
    """Bound this process's private memory to what it holds now plus ``limit_bytes``; beyond, allocations fail."""
    held = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            held = int(line.split()[1]) * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = held + limit_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def keep_freed_memory() -> None:
    """Let malloc keep buffers of an image's size instead of mapping and unmapping them for every batch.

    What it keeps of a burst, ``give_back_freed_memory`` ends.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 64 << 20)
    libc.mallopt(_M_TRIM_THRESHOLD, 128 << 20)


def give_back_freed_memory(every_s: float = _GIVE_BACK_EVERY_S) -> None:
    """From now on return what was freed to the operating system: large blocks at once, the rest now and then.

    malloc itself does so at the top of its heaps only. Below, what a burst freed stays, and the heap of each of Ray's
    threads grows for hours by the holes between what lives on, though no more is in use. And it would keep all the
    larger blocks, the larger one that was freed: Python's table of interned strings, megabytes that are copied whenever
    they are full, would lie in a heap twice.
    """
    libc = ctypes.CDLL(None)
    try:
        trim, mallopt = libc.malloc_trim, libc.mallopt
    except AttributeError:
        return  # another C library than glibc
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    trim.argtypes = (ctypes.c_size_t,)
    threading.Thread(target=_give_back, args=(trim, every_s), name="give-back", daemon=True).start()


def _give_back(trim: Callable[[int], int], every_s: float) -> None:
    while True:
        time.sleep(every_s)
        trim(0)


def raise_file_limit() -> int:
    """Let this process have as many files and connections open as it may allow itself; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def spare_the_collector() -> None:
    """Let the garbage collector never again walk what was imported: a pass over it all is a pause of some 50 ms."""
    gc.collect()
    gc.freeze()
