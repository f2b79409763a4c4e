"""What is measured: the loads, and in which modes each of them is put on the service."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import yaml

from benchmarks.load import Request
from benchmarks.workloads import BASELINE, CANDIDATE, WORKLOADS, Workload, binary_request
from models.repository import write_hash
from models.spec import MODEL_FILE

SHARES: Final = (0.3, 0.5, 0.7)  # of saturation, in the open loop
CANARY_SHARES: Final = (0.5, 0.7)
FAULT_SHARE: Final = 0.5
SIZE_SHARES: Final = (0.5, 1.2)  # with time for all mirrored work, and with time for next to none
WEIGHTS: Final = (5, 50)
# At a time, of the closed loop. The open one has at most the most of them: so many its saturation is found with.
CLIENTS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"digits": (8, 64), "images": (8, 32), "images_5mb": (8, 32), "cnn": (8, 32)}
)
_LARGE_SHAPE: Final = (1, 3, 645, 646)  # float32: 5,000,040 bytes


class Part(StrEnum):
    """One kind of measurement."""

    SATURATION = "saturation"  # closed loop, in shadow: how much is answered
    LOAD = "load"  # open loop, in shadow: how fast
    CANARY = "canary"  # the same while the candidate answers some of the clients
    FAULTS = "faults"  # the same in shadow, with a candidate that does not behave
    SIZES = "sizes"  # where every mirrored image goes


class Mode(StrEnum):
    """What the model under load has of a rollout."""

    PLAIN = "plain"  # none
    BESIDE = "beside"  # none, but each core has something of the lowest class to do
    OFF = "off"  # one of which nothing is mirrored
    ON = "on"  # one of which everything is


ROLLED_OUT: Final = frozenset({Mode.OFF, Mode.ON})
MODES: Final[Mapping[Part, tuple[Mode, ...]]] = MappingProxyType(
    {
        Part.SATURATION: (Mode.PLAIN, Mode.BESIDE, Mode.OFF, Mode.ON),
        Part.LOAD: (Mode.PLAIN, Mode.BESIDE, Mode.OFF, Mode.ON),
        Part.CANARY: (Mode.OFF, Mode.ON),  # a plain baseline would gather other batches than two versions do
        Part.FAULTS: (Mode.PLAIN, Mode.ON),  # a faulty candidate to which nothing is mirrored does nothing
        Part.SIZES: (Mode.ON,),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A candidate that does not behave: the import path of its backend, and that one's parameters."""

    title: str
    backend: str
    parameters: Mapping[str, Any]


FAULTS: Final[Mapping[str, Fault]] = MappingProxyType(
    {
        "slow": Fault(title="5 × as slow", backend="benchmarks.faulty:SlowBackend", parameters={"times": 5}),
        "hangs": Fault(
            title="hangs at every 50th batch", backend="benchmarks.faulty:HangingBackend", parameters={"every": 50}
        ),
        "leaks": Fault(
            title="leaks to its limit",
            backend="models.reference.leaking:LeakingBackend",
            # By far more than the process may have, at a rate that takes seconds to get there.
            parameters={"leak_bytes": 64 << 10, "leak_limit_bytes": 1 << 40, "delay_ms": 0},
        ),
        "exits": Fault(
            title="exits after each second", backend="benchmarks.faulty:ExitingBackend", parameters={"after_ms": 1000}
        ),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load, which is put on the service in each mode of its part.

    Attributes:
        connections: clients of the closed loop; of an open one, at most so many at a time.
        share: of saturation, offered in an open loop; 0 for a closed one.
        weight: percent of the clients that the candidate answers; 0 in shadow.
        fault: the candidate's, a key of ``FAULTS``; "" for one that behaves.
    """

    part: Part
    workload: str
    connections: int
    share: float = 0.0
    weight: int = 0
    fault: str = ""

    @property
    def title(self) -> str:
        """The load in words."""
        if not self.share:
            return f"{self.workload}, {self.connections} clients"
        offered = f"{self.workload}, {self.share:.0%}"
        if self.fault:
            return f"{offered}, {FAULTS[self.fault].title}"
        return f"{offered}, weight {self.weight}%" if self.weight else offered


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured: each load in each mode ``rounds`` times for ``seconds``, each time after a lead-in."""

    rounds: int = 5
    seconds: float = 5.0
    lead_in_s: float = 1.0


def loads_of(parts: Iterable[Part]) -> list[Load]:
    """All loads of some parts, in the order of the parts."""
    chosen = set(parts)
    return [load for part in Part if part in chosen for load in _LOADS[part]]


_LOADS: Final[Mapping[Part, tuple[Load, ...]]] = MappingProxyType(
    {
        Part.SATURATION: tuple(
            Load(part=Part.SATURATION, workload=workload, connections=connections)
            for workload in ("digits", "images")
            for connections in CLIENTS[workload]
        ),
        Part.LOAD: tuple(
            Load(part=Part.LOAD, workload=workload, connections=max(CLIENTS[workload]), share=share)
            for workload in ("digits", "images", "cnn")
            for share in SHARES
        ),
        Part.CANARY: tuple(
            Load(part=Part.CANARY, workload="digits", connections=max(CLIENTS["digits"]), share=share, weight=weight)
            for weight in WEIGHTS
            for share in CANARY_SHARES
        ),
        Part.FAULTS: tuple(
            Load(
                part=Part.FAULTS, workload="digits", connections=max(CLIENTS["digits"]), share=FAULT_SHARE, fault=fault
            )
            for fault in FAULTS
        ),
        Part.SIZES: tuple(
            Load(part=Part.SIZES, workload=workload, connections=max(CLIENTS[workload]), share=share)
            for workload in ("images", "images_5mb")
            for share in SIZE_SHARES
        ),
    }
)


def saturation_of(load: Load) -> str:
    """What a load's share is of: what its workload gets answered at most, alone or with a candidate at that weight."""
    return f"{load.workload}, weight {load.weight}%" if load.weight else load.workload


def model_of(load: Load, mode: Mode) -> str:
    """The model that a load is put on: one with each kind of rollout, but faulty candidates are versions of one."""
    return f"{load.workload}-{Part.FAULTS if load.fault else mode if mode in ROLLED_OUT else Mode.PLAIN}"


def request_of(load: Load, mode: Mode) -> Request:
    """One request of a load, in the protocol's binary form."""
    workload = SERVED[load.workload]
    return binary_request(model_of(load, mode), workload.input, workload.example)


def order(modes: Sequence[Mode], number: int) -> tuple[Mode, ...]:
    """The modes in the order of a round: each comes first as often as any other."""
    first = number % len(modes)
    return (*modes[first:], *modes[:first])


def amend(version: Path, **fields: Any) -> None:
    """Change fields of a version's ``model.yaml``, and sign it again.

    Raises:
        SpecError: what it says now is wrong.
    """
    file = version / MODEL_FILE
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    document.pop("sha256", None)
    file.write_text(yaml.safe_dump({**document, **fields}), encoding="utf-8")
    write_hash(version)


def _write_large(folder: Path) -> None:
    """The network of the images, for larger ones."""
    import onnx

    WORKLOADS["images"].write(folder)
    for number in (BASELINE, CANDIDATE):
        version = folder / str(number)
        model = onnx.load(version / "model.onnx")
        axes = model.graph.input[0].type.tensor_type.shape.dim[1:]
        for axis, size in zip(axes, _LARGE_SHAPE[1:], strict=True):
            axis.dim_value = size
        onnx.save(model, version / "model.onnx")
        amend(version, inputs=[{"name": "image", "datatype": "FP32", "shape": [-1, *_LARGE_SHAPE[1:]]}])


SERVED: Final[Mapping[str, Workload]] = MappingProxyType(
    {
        "digits": WORKLOADS["digits"],
        "images": WORKLOADS["images"],
        "cnn": WORKLOADS["cnn"],
        "images_5mb": Workload(
            name="images_5mb",
            title="5 MB images (3 × 645 × 646, channel means)",
            input="image",
            output="scores",
            example=np.random.default_rng(0).random(_LARGE_SHAPE, dtype=np.float32),
            write=_write_large,
            connections=CLIENTS["images_5mb"],
            rates=(),
        ),
    }
)
