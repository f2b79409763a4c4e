"""What a peer is: pinned packages, a command that serves the tiny model, and its own form of the request.

A peer is one folder with a ``Peer`` and its server, and one line in the registry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import Request
from models.tensor import Array

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One peer.

    Attributes:
        name: by which it is asked for.
        requirements: what pip installs into its own environment, every version pinned.
        server: a script that takes ``--model``, ``--port`` and ``--settings`` (JSON) and serves until Ctrl-C.
        ready_path: answers 200 once requests can be answered.
        request: the closest form of a request with one FP32 tensor.
        scores: the scores in an answer's body, flat.
        settings: those it is measured with: its best at 64 clients on the machine where ``tried`` was measured.
        tried: settings that ``--tune`` measures one after another.
    """

    name: str
    requirements: tuple[str, ...]
    server: Path
    ready_path: str
    request: Callable[[Array], Request]
    scores: Callable[[bytes], list[float]]
    settings: Settings
    tried: tuple[Settings, ...]
