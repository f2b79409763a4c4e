"""Flamegraphs of the service's processes by py-spy, which looks into them from outside."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving.directory import Process
from serving.errors import ServingError

_RATE: Final = 100  # samples a second
_LATE_S: Final = 20.0  # how much longer than the samples' time py-spy may take


class FlamegraphError(ServingError):
    """A flamegraph that cannot be had; says of what, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One process under observation, until ``finish``."""

    process: Process
    path: Path
    seconds: int
    spy: "subprocess.Popen[str]"

    def finish(self) -> Path:
        """Wait for the flamegraph; where it is.

        Raises:
            FlamegraphError: there is none; a file that would say nothing is removed.
        """
        try:
            _, said = self.spy.communicate(timeout=self.seconds + _LATE_S)
        except subprocess.TimeoutExpired:
            said = f"py-spy did not end within {self.seconds + _LATE_S:.0f} s"
        if self.spy.returncode == 0:
            return self.path
        self.path.unlink(missing_ok=True)
        raise FlamegraphError(f"{self.process.name}: no flamegraph: {_why(said, self.process.pid)}")

    def end(self) -> None:
        """End py-spy, if it has not ended; the process that it looks into goes on."""
        if self.spy.poll() is None:
            self.spy.kill()
            self.spy.communicate()


@contextmanager
def recording(processes: Sequence[Process], folder: Path, seconds: int) -> Iterator[list[Recording]]:
    """Observe processes side by side for some seconds, each into an SVG file of ``folder``.

    Raises:
        FlamegraphError: py-spy is not installed, or the folder cannot be written to.
    """
    command = find_spy()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FlamegraphError(f"{folder}: expected a folder for the flamegraphs: {error.strerror}") from None
    recordings: list[Recording] = []
    try:
        for process in processes:
            recordings.append(_start(command, process, folder, seconds))  # noqa: PERF401 - each is ended if one fails
        yield recordings
    finally:
        for each in recordings:
            each.end()


def find_spy() -> str:
    """Where py-spy is: on the path, or beside this Python, whose environment need not be activated.

    Raises:
        FlamegraphError: nowhere.
    """
    found = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if found is None:
        raise FlamegraphError("no flamegraphs: py-spy is not installed: it comes with the extra 'profile'")
    return found


def _start(command: str, process: Process, folder: Path, seconds: int) -> Recording:
    path = folder / f"{process.name}.svg"
    # Clients come first: to stop the process for each sample cost a busy router 30 % of its throughput, not 5 %. The
    # price: samples of a stack that changed while it was read are dropped.
    options = ["--nonblocking", "--rate", str(_RATE), "--format", "flamegraph", "--duration", str(seconds)]
    spy = subprocess.Popen(
        [command, "record", *options, "--pid", str(process.pid), "--output", str(path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    return Recording(process=process, path=path, seconds=seconds, spy=spy)


def _why(said: str, pid: int) -> str:
    """What py-spy said, in one line."""
    if "No stack counts found" in said:
        return "it was idle in every sample"
    if "ermission" in said or "not permitted" in said:
        return "py-spy may not attach: that takes root, or kernel.yama.ptrace_scope = 0 and the server's own user"
    with contextlib.suppress(PermissionError):  # another user's, but there
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return "it has ended"
    first = next((line for line in said.splitlines() if line.startswith("Error: ")), said.strip().partition("\n")[0])
    return first.removeprefix("Error: ") or "py-spy failed without a word"
