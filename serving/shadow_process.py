"""A router's shadow process: everything that mirroring costs besides sampling and sending happens here.

It has the lowest scheduling class, as its replicas have: a core that runs nothing else counts as idle when a client's
request wakes somebody up, which one that runs a process of the normal class does not, however low its weight. A user's
comparator that hangs or crashes takes this process along, and no client notices.
"""

import asyncio
import pickle
import signal
import socket
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.place import Place


class ShadowProcess:
    """The router's side: starts the process, with ``connection`` as its end of a socket.

    It ends when the router hangs up, and has then all made durable.
    """

    def __init__(self, place: "Place", arena: str | None, connection: socket.socket) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.shadow_process", str(connection.fileno())],
            pass_fds=[connection.fileno()],
            stdin=subprocess.PIPE,
            process_group=0,  # Ray ends a killed router's group: this one has still to make all durable
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
    from serving.process import keep_freed_memory, lower_priority, spare_the_collector

    lower_priority()  # before whatever takes time
    import uvloop

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
