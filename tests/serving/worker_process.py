"""A replica as a process: ``python -m tests.serving.worker_process`` and the arguments of ``main``."""

import sys
import time
from pathlib import Path

from rollout.traffic import Priority
from serving.directory import Directory
from serving.process import limit_memory
from serving.replica import Worker
from tests.serving.doubler import Doubler, spec_of


def main(
    folder: str, replica_id: str, version: str, priority: str, fault: str, timeout_s: str, limit_bytes: str
) -> None:
    """Serve until killed; a limit of 0 bytes is none."""
    if int(limit_bytes):
        limit_memory(int(limit_bytes))
    worker = Worker(
        replica_id=replica_id,
        spec=spec_of(int(version)),
        backend=Doubler(fault),
        directory=Directory(Path(folder)),
        priority=Priority(priority),
        timeout_s=float(timeout_s),
    )
    worker.start()
    while worker.alive:
        time.sleep(0.05)


if __name__ == "__main__":
    main(*sys.argv[1:])
