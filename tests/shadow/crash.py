"""Run in a process of its own: does work in children that are killed after the n-th line of the code under test.

``python -m tests.shadow.crash store|labels FOLDER`` makes FOLDER/<n> for every n tried, and prints how many there are.
``python -m tests.shadow.crash recorder FOLDER`` records without end, printing what it takes to be durable.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from shadow.accounting import Accounting
from shadow.labels import Label, LabelJoin
from shadow.recorder import Recorder
from shadow.rows import compact, to_table
from shadow.store import SegmentWriter
from tests.shadow.builders import COMPARATOR, DEPLOYMENT, LIMITS, header, simple_pair

LABELS = [Label(request_id=f"request-{index}", label=index % 3) for index in range(8)]


def killed_at(line: int, files: tuple[str, ...], act: Callable[[], None]) -> bool:
    """Fork, and let the child act until it reaches this line (counted as executed); False when it got to its end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal seen
            if not frame.f_code.co_filename.endswith(files):
                return None
            seen += event == "line"
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        act()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise RuntimeError(f"the child failed with status {status}")
    return os.WIFSIGNALED(status)


def write_segments(folder: Path) -> None:
    """Write segments, and note each head as reported outside, the way the database would hold it."""
    writer = SegmentWriter(folder / "evidence", header())
    for number in range(3):
        pairs = [compact(simple_pair(f"request-{number}-{index}"), COMPARATOR) for index in range(2)]
        head = writer.write(to_table(pairs, COMPARATOR, 2 * number))
        (folder / "head.json").write_bytes(orjson.dumps(head.to_json()))


def join_labels(folder: Path) -> None:
    """Join in two goes; the folder already holds the pairs."""
    with LabelJoin(folder / "evidence", DEPLOYMENT, LIMITS, within_s=60, clock=lambda: 1.0) as labels:
        for some in (LABELS[:4], LABELS[4:]):
            labels.add(some)
            labels.advance()


def prepare(folder: Path) -> None:
    """Pairs of every labelled request, in two chains."""
    for chain, numbers in (("one", range(0, 8, 2)), ("two", range(1, 8, 2))):
        writer = SegmentWriter(folder / "evidence", header(chain))
        pairs = [simple_pair(f"request-{number}", candidate=number % 2, stage=number % 2) for number in numbers]
        writer.write(to_table([compact(pair, COMPARATOR) for pair in pairs], COMPARATOR, 0))


def tour(
    root: Path, files: tuple[str, ...], stride: int, work: Callable[[Path], None], before: Callable[[Path], None]
) -> int:
    """Try line after line until the work gets to its end, each time from what was there before."""
    given = root / "given"
    given.mkdir(parents=True)
    killed_at(0, (), lambda: before(given))  # in a child, so that the parent can go on forking safely
    pa.array(np.arange(1))  # what Arrow imports for its first conversion, each child would import anew
    tries, line, alive = 0, 1, False
    while not alive:
        folder = root / str(tries)
        shutil.copytree(given, folder)
        alive = not killed_at(line, files, lambda folder=folder: work(folder))  # type: ignore[misc]
        tries, line = tries + 1, line + stride
    return tries


def record(folder: Path) -> None:
    """Record without end."""
    accounting = Accounting()
    recorder = Recorder(folder, "router", DEPLOYMENT, LIMITS, accounting, flush_interval_s=0.002)
    last = None
    while True:
        accounting.sample(1)
        if not recorder.offer(simple_pair()):
            accounting.shed(1)
        found = recorder.snapshot()
        if found.head is not None and found.head != last:
            last = found.head
            line = {"head": last.to_json(), "evidence": found.evidence.to_json()}
            sys.stdout.buffer.write(orjson.dumps(line) + b"\n")
            sys.stdout.buffer.flush()


def main(what: str, folder: Path) -> None:
    """See the module's text."""
    if what == "store":
        print(tour(folder, ("shadow/store.py",), 4, write_segments, lambda _: None))
    elif what == "labels":
        print(tour(folder, ("shadow/labels.py", "shadow/store.py"), 19, join_labels, prepare))
    else:
        record(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
