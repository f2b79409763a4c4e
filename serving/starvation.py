"""How long a process was kept from running: what it may not be blamed for.

Shadow work gets what clients leave of the cores, and that may be nothing for a while. A batch that waits for a core is
not one that hangs.
"""

import os
from pathlib import Path
from typing import Final

_NS: Final = 1e-9


class Starvation:
    """Follows the threads of a process (this one, if none is named).

    Source: ``/proc/pid/task/tid/schedstat``, whose second figure is the time spent on a run queue, in nanoseconds.
    """

    def __init__(self, pid: int | None = None) -> None:
        self._tasks = Path(f"/proc/{os.getpid() if pid is None else pid}/task")
        self._waits: dict[str, int] = {}

    def since(self) -> float:
        """Seconds that its hungriest thread has waited for a core since the last call; 0 at the first, and where the
        kernel does not say.
        """
        now = self._read()
        waited = max((wait - self._waits[thread] for thread, wait in now.items() if thread in self._waits), default=0)
        self._waits = now
        return waited * _NS

    def _read(self) -> dict[str, int]:
        waits = {}
        try:
            threads = os.listdir(self._tasks)  # noqa: PTH208 - names are enough
        except OSError:
            return {}
        for thread in threads:
            try:
                waits[thread] = int((self._tasks / thread / "schedstat").read_bytes().split()[1])
            except (OSError, IndexError, ValueError):
                continue  # it has ended, or the kernel keeps no such account
        return waits
