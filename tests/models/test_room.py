"""What is free on a machine, and what declared needs lack of it."""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import RoomError
from models.room import Machine, Room, mebibytes, require_room, shortage
from models.spec import ModelSpec, Resources

MIB: Final = 1 << 20
GIB: Final = 1 << 30
BROKEN: Final = 999  # of NVML


@dataclass(frozen=True)
class Free:
    """Room of a given size."""

    main: int = 0
    devices: Sequence[int] = ()

    def memory(self) -> int:
        return self.main

    def gpus(self) -> Sequence[int]:
        return self.devices


class Unasked:
    """Room whose size nobody may ask for."""

    def memory(self) -> int:
        raise AssertionError("main memory is not needed")

    def gpus(self) -> Sequence[int]:
        raise AssertionError("no GPU is needed")


def spec_of(*, parameters: Mapping[str, Any] | None = None, **resources: int) -> ModelSpec:
    return ModelSpec(
        name="m",
        version=2,
        backend="b",
        artifact="a",
        sha256="0" * 64,
        max_batch_size=1,
        inputs=(),
        outputs=(),
        parameters=parameters or {},
        resources=Resources(**resources),
    )


# What is lacking


@pytest.mark.parametrize(
    ("needs", "room", "lacking"),
    [
        ([Resources(memory=GIB)] * 2, Free(main=2 * GIB), ""),
        ([Resources(memory=GIB)], Free(main=GIB - 1), "1024 MiB of memory (free: 1023 MiB)"),
        ([Resources(memory=GIB)] * 3, Free(main=2 * GIB), "3072 MiB of memory for 3 replicas (free: 2048 MiB)"),
        ([Resources(gpu_memory=GIB)] * 2, Free(devices=[GIB, GIB]), ""),
        ([Resources(gpu_memory=GIB)], Free(), "1024 MiB of memory on one GPU (free: 0 MiB)"),
        (
            [Resources(gpu_memory=GIB), Resources(gpu_memory=2 * GIB)],
            Free(devices=[GIB, GIB]),
            "2048 MiB of memory on one GPU (free: 1024 MiB)",
        ),
        (
            [Resources(gpu_memory=GIB)] * 3,
            Free(devices=[GIB, GIB]),
            "3072 MiB of GPU memory for 3 replicas (free: 2048 MiB)",
        ),
        (
            [Resources(memory=2 * GIB, gpu_memory=3 * GIB), Resources()],
            Free(main=GIB, devices=[GIB]),
            "2048 MiB of memory (free: 1024 MiB) and 3072 MiB of memory on one GPU (free: 1024 MiB)",
        ),
    ],
)
def test_what_is_lacking_is_said_with_what_is_free(needs: list[Resources], room: Room, lacking: str) -> None:
    assert shortage(needs, room) == lacking


def test_where_nothing_is_declared_nothing_is_asked_of_the_machine() -> None:
    assert shortage([Resources()] * 3, Unasked()) == ""
    assert shortage([], Unasked()) == ""


sizes = st.integers(0, 1 << 40)


@given(
    needs=st.lists(st.builds(Resources, memory=sizes, gpu_memory=sizes), max_size=4),
    room=st.builds(Free, main=sizes, devices=st.lists(sizes, max_size=3)),
)
def test_needs_that_are_free_together_on_the_smallest_device_lack_nothing_and_others_never_read_as_if_they_fitted(
    needs: list[Resources], room: Free
) -> None:
    memory, gpu = sum(each.memory for each in needs), sum(each.gpu_memory for each in needs)
    lacking = shortage(needs, room)
    if memory <= room.main and gpu <= min(room.devices, default=0):
        assert lacking == ""
    if memory > room.main:
        assert lacking.startswith(f"{mebibytes(memory, up=True)} of memory")
        assert mebibytes(memory, up=True) != mebibytes(room.main)
    if gpu > sum(room.devices):
        assert "GPU" in lacking


def test_a_replica_that_does_not_fit_names_its_model_and_version() -> None:
    require_room(spec_of(memory=GIB), Free(main=GIB))
    with pytest.raises(RoomError) as refused:
        require_room(spec_of(memory=2 * GIB), Free(main=GIB))
    assert str(refused.value) == "m: no room to load version 2: it needs 2048 MiB of memory (free: 1024 MiB)"


def test_on_this_machine_a_byte_fits_and_a_pebibyte_does_not() -> None:
    require_room(spec_of(memory=1))
    with pytest.raises(RoomError, match="of memory"):
        require_room(spec_of(memory=1 << 50))


# Main memory


def machine(folder: Path, *, groups: str, available_kb: int = 8 << 20, files: Mapping[str, str]) -> Machine:
    """A machine whose kernel says this."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal:       9999999 kB\nMemAvailable:   {available_kb} kB\n")
    (proc / "self" / "cgroup").write_text(groups)
    for name, content in files.items():
        path = cgroups / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Machine(proc=proc, cgroups=cgroups)


def group(folder: str, limit: int | str, used: int, inactive: int = 0) -> dict[str, str]:
    return {
        f"{folder}memory.max": f"{limit}\n",
        f"{folder}memory.current": f"{used}\n",
        f"{folder}memory.stat": f"anon 1\nfile 2\ninactive_file {inactive}\n",
    }


def group_v1(folder: str, limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    return {
        f"{folder}memory.limit_in_bytes": f"{limit}\n",
        f"{folder}memory.usage_in_bytes": f"{used}\n",
        f"{folder}memory.stat": f"cache 1\ninactive_file 7\ntotal_inactive_file {inactive}\n",
    }


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/\n", group("", "max", GIB), 8 * GIB),
        ("0::/\n", group("", 4 * GIB, 3 * GIB), GIB),
        ("0::/\n", group("", 4 * GIB, 3 * GIB, inactive=GIB // 2), GIB + GIB // 2),
        ("0::/a/b\n", {**group("a/b/", 4 * GIB, GIB), **group("a/", 5 * GIB, 3 * GIB)}, 2 * GIB),
        ("0::/a/b\n", {**group("a/b/", "max", GIB), **group("a/", 5 * GIB, 3 * GIB)}, 2 * GIB),
        ("0::/../..\n", group("", 4 * GIB, 3 * GIB), GIB),
        ("0::/\n", group("", GIB, 2 * GIB), 0),
        ("4:memory:/x\n0::/\n", group_v1("memory/x/", 4 * GIB, 3 * GIB, inactive=GIB), 2 * GIB),
        ("4:cpu,memory:/of/the/host\n", group_v1("memory/", 4 * GIB, 3 * GIB), GIB),
        ("4:memory:/x\n", group_v1("memory/x/", 9223372036854771712, 3 * GIB), 8 * GIB),
        ("3:cpuset:/\n", group_v1("memory/", GIB, GIB), 8 * GIB),
    ],
)
def test_free_is_what_the_kernel_can_give_within_the_limits_of_all_control_groups(
    tmp_path: Path, groups: str, files: Mapping[str, str], free: int
) -> None:
    assert machine(tmp_path, groups=groups, files=files).memory() == free


def test_this_machine_has_memory() -> None:
    assert 0 < Machine().memory() < 1 << 50


# GPUs


class Nvml:
    """NVML with GPUs whose free memory is given, by their UUIDs."""

    def __init__(self, free: Mapping[str, int], *, broken: Sequence[str] = ()) -> None:
        self._free, self._broken = dict(free), broken
        self.open = 0

    def load(self, name: str) -> "Nvml":
        assert name == "libnvidia-ml.so.1"
        return self

    def nvmlInit_v2(self) -> int:  # noqa: N802 — NVML's
        self.open += 1
        return BROKEN if "nvmlInit_v2" in self._broken else 0

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.open -= 1
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self._free)
        return BROKEN if "nvmlDeviceGetCount_v2" in self._broken else 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        if index.value >= len(self._free):
            return BROKEN
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:  # noqa: N802
        if uuid.decode() not in self._free:
            return BROKEN
        handle._obj.value = list(self._free).index(uuid.decode()) + 1
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:  # noqa: N802
        assert ctypes.sizeof(memory._obj) == 24
        memory._obj.free = list(self._free.values())[handle.value - 1]
        return BROKEN if "nvmlDeviceGetMemoryInfo" in self._broken else 0


def gpus(nvml: Nvml, device: int | None = None, visible: str | None = None) -> tuple[int, ...]:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return tuple(Machine(device=device, environment=environment, load_library=nvml.load).gpus())


@pytest.fixture
def nvml() -> Nvml:
    return Nvml({"GPU-a": 1 * GIB, "GPU-b": 2 * GIB, "MIG-c": 3 * GIB})


def test_all_gpus_of_the_machine_are_seen_by_a_process_that_is_shown_none(nvml: Nvml) -> None:
    assert gpus(nvml, visible="") == (GIB, 2 * GIB, 3 * GIB)
    assert nvml.open == 0


@pytest.mark.parametrize(
    ("device", "visible", "free"),
    [
        (0, None, (GIB,)),
        (1, None, (2 * GIB,)),
        (7, None, ()),
        (0, "1", (2 * GIB,)),
        (1, "1,0", (GIB,)),
        (1, "1, 2", (3 * GIB,)),
        (0, "GPU-b", (2 * GIB,)),
        (0, "MIG-c", (3 * GIB,)),
        (0, "GPU-x", ()),
        (0, "", ()),
        (1, "0", ()),
    ],
)
def test_a_replica_s_gpu_is_counted_among_those_that_it_is_shown(
    nvml: Nvml, device: int, visible: str | None, free: tuple[int, ...]
) -> None:
    assert gpus(nvml, device, visible) == free
    assert nvml.open == 0


def missing(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_a_machine_without_a_driver_has_no_gpu() -> None:
    assert Machine(load_library=missing).gpus() == ()


@pytest.mark.parametrize("function", ["nvmlInit_v2", "nvmlDeviceGetCount_v2", "nvmlDeviceGetMemoryInfo"])
def test_a_gpu_that_nvml_cannot_tell_of_is_none(function: str) -> None:
    assert gpus(Nvml({"GPU-a": GIB}, broken=[function])) == ()


@pytest.mark.parametrize(
    ("parameters", "fits"),
    [({}, False), ({"device_id": 1}, True), ({"device_id": "1"}, False), ({"device_id": -1}, False)],
)
def test_a_version_is_loaded_on_the_gpu_that_its_parameters_name(
    monkeypatch: pytest.MonkeyPatch, nvml: Nvml, parameters: Mapping[str, Any], fits: bool
) -> None:
    load: Callable[[str], Any] = nvml.load
    monkeypatch.setattr("models.room.Machine", lambda device: Machine(device=device, environment={}, load_library=load))
    spec = spec_of(parameters=parameters, gpu_memory=2 * GIB)
    if fits:
        require_room(spec)
    else:
        with pytest.raises(RoomError, match=r"2048 MiB of memory on one GPU \(free: 1024 MiB\)"):
            require_room(spec)
