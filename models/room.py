"""The memory that is free, and whether what versions declare as their ``resources`` fits into it."""

import ctypes
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from models.errors import RoomError
from models.spec import ModelSpec, Resources

_MEBIBYTE: Final = 1 << 20
_NVML: Final = "libnvidia-ml.so.1"  # comes with the driver
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
_OK: Final = 0  # NVML_SUCCESS
# Of a control group: its limit, what it uses, and what of that the kernel can take back at once.
_CGROUP: Final = ("memory.max", "memory.current", "inactive_file")
_CGROUP_V1: Final = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


class Room(Protocol):
    """Where replicas may be loaded. Asked anew each time, and only for what is needed."""

    def memory(self) -> int:
        """Bytes of main memory that are free."""

    def gpus(self) -> Sequence[int]:
        """Bytes that are free on each GPU that a replica may be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """This machine; fulfils ``Room``.

    ``device`` is a GPU as a process counts those that it is shown; where None, all of the machine's are meant, whatever
    this process is shown of them.
    """

    device: int | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")
    load_library: Callable[[str], Any] = ctypes.CDLL

    def memory(self) -> int:
        """See ``Room.memory``: what the kernel can give without swapping, as far as control groups let this process.

        Source: proc(5), ``MemAvailable``; the kernel's documents on control groups, versions 1 and 2.
        """
        available = next(
            int(line.split()[1]) * 1024
            for line in (self.proc / "meminfo").read_text(encoding="ascii").splitlines()
            if line.startswith("MemAvailable:")
        )
        return max(0, min([available, *self._left_by_groups()]))

    def gpus(self) -> Sequence[int]:
        """See ``Room.gpus``; none where NVML is missing or knows none.

        NVML is asked, as CUDA would first make a context, which takes some hundred megabytes of the device. Where GPUs
        differ, CUDA counts them as NVML does only with ``CUDA_DEVICE_ORDER=PCI_BUS_ID``.

        Source: NVML API reference, ``nvmlDeviceGetMemoryInfo``; CUDA programming guide, ``CUDA_VISIBLE_DEVICES``.
        """
        with _nvml(self.load_library) as nvml:
            if nvml is None:
                return ()
            names = _all(nvml) if self.device is None else self._shown(self.device)
            return tuple(free for free in (_free(nvml, name) for name in names) if free is not None)

    def _shown(self, device: int) -> list[str]:
        """The name of a GPU that CUDA counts as ``device``: an index or a UUID."""
        visible = self.environment.get(_VISIBLE)
        if visible is None:
            return [str(device)]
        return [name.strip() for name in visible.split(",")][device : device + 1]

    def _left_by_groups(self) -> Iterator[int]:
        """What each control group leaves, from this process's own up to the root of those that it can see."""
        for line in (self.proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, files = (self.cgroups / "memory", _CGROUP_V1) if controllers else (self.cgroups, _CGROUP)
            group = root / path.lstrip("/")
            for folder in (group, *group.parents):
                if (left := _left(folder, *files)) is not None:
                    yield left
                if folder == root:
                    break


def require_room(spec: ModelSpec, room: Room | None = None) -> None:
    """See that one replica of a version fits where this process runs, on the GPU that its ``device_id`` names.

    Raises:
        RoomError: names the model, the version, what it declares and what is free.
    """
    lacks = shortage([spec.resources], room or Machine(device=_device(spec)))
    if lacks:
        raise RoomError(f"{spec.name}: no room to load version {spec.version}: it needs {lacks}")


def shortage(needs: Iterable[Resources], room: Room) -> str:
    """What is missing for replicas with these needs to be loaded together; "" where nothing is.

    Which GPU each replica will have is not known here: missing is what fits on none of them, or not on all together.
    """
    declared = list(needs)
    on_host = [each.memory for each in declared if each.memory]
    on_gpu = [each.gpu_memory for each in declared if each.gpu_memory]
    short = [_short(on_host, room.memory(), "memory")] if on_host else []
    if on_gpu:
        free = room.gpus()
        largest = _short([max(on_gpu)], max(free, default=0), "memory on one GPU")
        short.append(largest or _short(on_gpu, sum(free), "GPU memory"))
    return " and ".join(each for each in short if each)


def mebibytes(size: int, *, up: bool = False) -> str:
    """A size for people. Needs are rounded up, what there is down: two that do not fit never read the same."""
    return f"{(math.ceil if up else math.floor)(size / _MEBIBYTE)} MiB"


def _short(needs: Sequence[int], free: int, what: str) -> str:
    if sum(needs) <= free:
        return ""
    replicas = f" for {len(needs)} replicas" if len(needs) > 1 else ""
    return f"{mebibytes(sum(needs), up=True)} of {what}{replicas} (free: {mebibytes(free)})"


def _device(spec: ModelSpec) -> int:
    device = spec.parameters.get("device_id", 0)
    return device if isinstance(device, int) and device >= 0 else 0


def _left(folder: Path, limit: str, used: str, reclaimable: str) -> int | None:
    """Bytes that a control group leaves; None where it has no limit."""
    try:
        bound, taken = (int((folder / name).read_text(encoding="ascii")) for name in (limit, used))
        statistics = (folder / "memory.stat").read_text(encoding="ascii").split()
    except (OSError, ValueError):  # no such group, or "max"
        return None
    freed = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(reclaimable, "0")
    return bound - taken + int(freed)


class _Memory(ctypes.Structure):
    """``nvmlMemory_t``, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


@contextmanager
def _nvml(load_library: Callable[[str], Any]) -> Iterator[Any | None]:
    """The library, ready to be asked; None where there is none, or no driver beneath it."""
    try:
        nvml = load_library(_NVML)
    except OSError:
        nvml = None
    if nvml is None or nvml.nvmlInit_v2() != _OK:
        yield None
        return
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _all(nvml: Any) -> list[str]:
    count = ctypes.c_uint()
    return (
        [str(index) for index in range(count.value)] if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) == _OK else []
    )


def _free(nvml: Any, name: str) -> int | None:
    """Free bytes of a GPU, or of a part of one (MIG), by index or UUID; None of one that NVML does not know."""
    handle, memory = ctypes.c_void_p(), _Memory()
    if name.isdecimal():
        status = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(name)), ctypes.byref(handle))
    else:
        status = nvml.nvmlDeviceGetHandleByUUID(name.encode(), ctypes.byref(handle))
    if status != _OK or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) != _OK:
        return None
    return int(memory.free)
