"""What every process of one service needs to know."""

import atexit
import sys
from dataclasses import dataclass
from pathlib import Path

from serving.board import Board
from serving.config import Config
from serving.directory import Directory
from serving.process import give_back_freed_memory
from serving.telemetry import log_to_file


@dataclass(frozen=True, slots=True)
class Place:
    """The configuration, and the folder of this run."""

    config: Config
    run_dir: Path

    @property
    def directory(self) -> Directory:
        """The folder where replicas announce themselves."""
        return Directory(self.run_dir / "replicas")

    @property
    def board(self) -> Board:
        """The folder where routers post what they count."""
        return Board(self.run_dir / "routers")

    def set_up_process(self, name: str) -> None:
        """Logging, freed memory, and where user code is imported from: beside the configuration, after all else."""
        give_back_freed_memory()
        atexit.register(log_to_file(self.config.reports / "logs" / f"{name}.jsonl").stop)
        user_code = str(self.config.directory)
        if user_code not in sys.path:
            sys.path.append(user_code)
