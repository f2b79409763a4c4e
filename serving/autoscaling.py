"""How many replicas a version needs: Ray Serve's controller asks this policy several times a second.

It reads what the routers posted, so it works on while the control side is away. Nothing here imports Ray.
"""

import math
from pathlib import Path
from typing import Any, Protocol

from serving.board import Board, demand_key


class Context(Protocol):
    """What is used of Ray Serve's ``AutoscalingContext``."""

    target_num_replicas: int


class QueuePolicy:
    """As many replicas as keep ``target_queue`` items of clients, waiting or running, on each.

    Serve bounds the answer by the deployment's limits, and waits for its delays before it acts. While no router tells
    anything the number stays as it is: silence is not idleness.
    """

    def __init__(self, *, folder: str, model: str, version: int, target_queue: float) -> None:
        self._board = Board(Path(folder))
        self._key, self._target_queue = demand_key(model, version), target_queue

    def __call__(self, context: Context) -> tuple[int, dict[str, Any]]:
        """The number of replicas wanted, and no state to keep."""
        try:
            notices = self._board.notices()
        except OSError:  # the folder goes with the run
            notices = []
        if not notices:
            return context.target_num_replicas, {}
        demand = sum(notice.demand.get(self._key, 0.0) for notice in notices)
        return math.ceil(demand / self._target_queue), {}
