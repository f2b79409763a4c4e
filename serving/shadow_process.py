"""A router's shadow process: everything that mirroring costs besides sampling and sending happens here.

It has the lowest weight of the normal scheduling class, not the class below, in which its replicas run: on a machine
without an idle core it still comes to record, a little at a time, what the candidate fails. A comparator of a user's
that hangs or crashes takes this process along, and no client notices.
"""

import asyncio
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from serving.place import Place

_NICE: Final = 19


class ShadowProcess:
    """The router's side: starts the process, with ``connection`` as its end of a socket.

    It ends when the router hangs up, and has then all made durable.
    """

    def __init__(self, place: "Place", arena: str | None, connection: socket.socket) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.shadow_process", str(connection.fileno())],
            pass_fds=[connection.fileno()],
            stdin=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        with self._process.stdin as told:
            told.write(pickle.dumps((place, arena)))
        threading.Thread(target=self._process.wait, name="shadow-end", daemon=True).start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def end(self) -> None:
        """See ``serving.mirror.Shadow``."""
        self._process.kill()


def _serve(connection: socket.socket) -> None:
    """The child: rehearses for the router that started it, until that hangs up."""
    os.nice(_NICE)  # before whatever takes time
    import uvloop

    from serving.process import keep_freed_memory, spare_the_collector
    from serving.rehearsal import Rehearsal

    place: Place
    place, arena = pickle.loads(sys.stdin.buffer.read())
    place.set_up_process("shadow")
    keep_freed_memory()
    spare_the_collector()

    async def rehearse() -> None:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        rehearsal = Rehearsal(place.config, place.directory, connection, loop=loop, arena=arena, on_end=ended.set)
        assert rehearsal is not None  # it lives as long as this waits
        await ended.wait()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(rehearse())


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # it ends with its router, which is told to end first
        signal.signal(number, signal.SIG_IGN)
    _serve(socket.socket(fileno=int(sys.argv[1])))
