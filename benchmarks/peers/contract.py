"""What is compared: contenders, each serving one workload at a time, under loads that are the same for all.

A peer is a folder with a ``Peer``, the packages it needs, every one pinned (``requirements.txt``), and a script that
serves a model (``server.py``); and one line in the registry.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from benchmarks.load import Request, Sample
from benchmarks.workloads import Workload
from models.tensor import Array

Settings = Mapping[str, Any]
Transport = Literal["http", "grpc", "none"]
Loop = Literal["closed", "open", "direct"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One kind of load.

    Attributes:
        loop: closed: each client sends when it has its answer. open: requests are sent when they are due, answered or
            not. direct: the model is called in the benchmark's own process, one call after the other.
        amount: clients; requests a second; rows in a call.
    """

    loop: Loop
    transport: Transport
    amount: int


Measure = Callable[[Load, float], Sample]


class Contender(Protocol):
    """Something that is measured. ``running`` starts it afresh for a workload, with a folder for its files."""

    @property
    def name(self) -> str:
        """By which it is asked for."""

    @property
    def title(self) -> str:
        """What it is called in what is published."""

    def takes(self, load: Load) -> bool:
        """Can it be measured so?"""

    def settings(self, workload: Workload) -> Settings:
        """How it is set up for a workload, fit for JSON."""

    def running(self, workload: Workload, folder: Path) -> AbstractContextManager[Measure]:
        """Running it; the function measures one load for so many seconds, after a warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One peer.

    Attributes:
        name: by which it is asked for, and that of its folder.
        title: what it is called in what is published.
        ready_path: answers 200 once requests can be answered.
        request: the workload's example in the best form that the peer understands.
        scores: the scores in the body of an answer, flat.
        grpc: it speaks the Open Inference Protocol over gRPC too.
        settings: how it is measured.
        settings_of: settings that are others for a workload, by its name.
        tried: settings that ``--tune`` measures one after another.
    """

    name: str
    title: str
    ready_path: str
    request: Callable[[Workload], Request]
    scores: Callable[[bytes], Array]
    settings: Settings
    tried: tuple[Settings, ...]
    grpc: bool = False
    settings_of: Mapping[str, Settings] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its script and its list of packages are."""
        return Path(__file__).parent / self.name

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip installs into its own environment, everything pinned."""
        return tuple((self.folder / "requirements.txt").read_text(encoding="utf-8").split())

    @property
    def server(self) -> Path:
        """Takes ``--model --name --max-batch-size --port --grpc-port --folder --settings`` and serves until SIGTERM."""
        return self.folder / "server.py"

    def settings_for(self, workload: str) -> Settings:
        """All settings of one workload."""
        return {**self.settings, **self.settings_of.get(workload, {})}
