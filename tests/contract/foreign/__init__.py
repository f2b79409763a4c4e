"""Clients whose packages do not fit beside ours: each runs in an environment of its own, as a script of this folder.

KServe and MLServer want a protobuf before version 7. ``python -m tests.contract.foreign`` (``make foreign_clients``)
makes the environments below ``.venv-peers``.
"""

import hashlib
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
CACHE: Final = HERE.parents[2] / ".venv-peers"
CLIENTS: Final = ("kserve", "mlserver")


def script(client: str) -> Path:
    """What the client runs."""
    return HERE / f"{client}_client.py"


def requirements(client: str) -> Path:
    """Its packages, every version pinned."""
    return HERE / f"{client}.txt"


def python_of(client: str) -> Path:
    """The interpreter of its environment, whether or not that was made."""
    pins = hashlib.sha256(sys.version.encode() + requirements(client).read_bytes()).hexdigest()[:12]
    return CACHE / f"client-{client}-{pins}" / "bin" / "python"


def is_made(client: str) -> bool:
    """Whether its environment was made to its end."""
    return (python_of(client).parents[1] / ".complete").exists()
