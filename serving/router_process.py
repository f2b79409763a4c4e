"""A router's own process: the data plane without Ray in it.

Ray's threads in a process share its interpreter, and every event loop of a process on which grpc.aio runs is woken for
every call on any of them (docs/decisions/0011 has the figures). So the Serve replica that hosts a router starts this as
a child, carries its exchange with the control side, and ends with it; the child ends with its parent.
"""

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

from serving.errors import LaunchError

if TYPE_CHECKING:
    from serving.place import Place

_log = logging.getLogger("understudy.router")
_START_S: Final = 60.0
_ANSWER_S: Final = 10.0
_STOP_S: Final = 4.0
_WATCH_S: Final = 0.5
_FAILED: Final = 70


class RouterProcess:
    """The parent's side.

    Raises:
        LaunchError: the child's data plane did not start; says why.
    """

    def __init__(self, place: "Place") -> None:
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        self._lock = threading.Lock()
        self._asked = 0
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.router_process", str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )
        try:
            failure = self._ask(pickle.dumps(place), _START_S)
        except (OSError, EOFError) as error:
            failure = str(error) or "the router's process ended"
        if failure:
            self._process.kill()
            raise LaunchError(str(failure))

    @property
    def alive(self) -> bool:
        """Whether it still serves: a child that cannot ends itself."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()

    def report(self) -> dict[str, Any]:
        """What the control side is told; see ``DataServer.report``.

        Raises:
            OSError, EOFError: the child has ended, or does not answer.
        """
        return dict(self._ask(None, _ANSWER_S))

    def receive(self, table: Mapping[str, Any]) -> None:
        """Hand over the control side's table."""
        self._ask(dict(table), _ANSWER_S)

    def stop(self) -> None:
        """Let it answer what is in flight and make its evidence durable."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _ask(self, message: Any, timeout_s: float) -> Any:
        with self._lock:
            self._asked += 1
            self._connection.send((self._asked, message))
            ends = time.monotonic() + timeout_s
            while self._connection.poll(max(ends - time.monotonic(), 0)):
                number, answer = self._connection.recv()
                if number == self._asked:  # and not one that came too late for who had asked
                    return answer
            raise TimeoutError(f"the router's process did not answer within {timeout_s:.0f} s")


def _serve(connection: Connection) -> None:
    """The child: starts the data plane of the place it is sent, then answers the parent until that ends."""
    from serving.dataserver import DataServer
    from serving.process import keep_freed_memory, raise_file_limit

    number, pickled = connection.recv()
    place: Place = pickle.loads(pickled)
    place.set_up_process("router")
    keep_freed_memory()
    raise_file_limit()
    server = DataServer(place)
    try:
        server.start()
    except LaunchError as error:
        connection.send((number, str(error)))
        return
    connection.send((number, ""))
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    threading.Thread(target=_answer, args=(connection, server, stopping), name="parent", daemon=True).start()
    while not stopping.wait(_WATCH_S):
        if not server.alive:
            _log.error("the data plane is stuck or has ended: ending the process")
            os._exit(_FAILED)
    server.stop()


def _answer(connection: Connection, server: Any, stopping: threading.Event) -> None:
    """Reports and tables, until the parent is gone: then there is nobody left to say who shall answer."""
    try:
        while True:
            number, message = connection.recv()
            if message is None:
                connection.send((number, server.report()))
            else:
                server.receive(message)
                connection.send((number, None))
    except (EOFError, OSError):
        if not stopping.is_set():
            os._exit(_FAILED)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the launcher's, who stops everything in order
    _serve(Connection(int(sys.argv[1])))
