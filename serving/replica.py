"""A model replica's worker: one thread that owns the ZeroMQ socket and runs the backend.

Nothing here knows Ray: ``serving.deployments`` hosts it.
"""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import zmq

from models.backend import Backend
from models.errors import BackendError, MalformedOutputError
from models.memory import MemoryMeter
from models.signature import check_outputs
from models.spec import ModelSpec
from models.tensor import Array, Buffer, Tensor, from_numpy, to_numpy
from rollout.traffic import Priority
from serving.directory import Directory, Replica
from serving.wire import BatchHeader, Layout, ReplyHeader, Segment, decode_batch_header, encode_reply_header

_log = logging.getLogger("understudy.replica")
_POLL_MS: Final = 200
_DRAIN_MS: Final = 150  # routers look every 100 ms who has withdrawn
_LINGER_MS: Final = 500
_WATCH_S: Final = 0.25
HANG_EXIT_STATUS: Final = 70


@dataclass(frozen=True, slots=True)
class _Run:
    """The end of some consecutive requests: their outputs, or why there are none."""

    requests: int
    outputs: Mapping[str, Array] | None = None
    kind: str = "ok"
    error: str = ""


class Worker:
    """Serves batches from ``directory``'s routers until ``stop``; ``start`` returns when the model is loaded."""

    def __init__(
        self,
        *,
        replica_id: str,
        spec: ModelSpec,
        backend: Backend,
        directory: Directory,
        priority: Priority,
        timeout_s: float,
        exit_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._spec, self._backend, self._directory = spec, backend, directory
        self._timeout_s, self._exit = timeout_s, exit_process
        self._announcement = Replica(
            id=replica_id,
            model=spec.name,
            version=spec.version,
            priority=priority,
            address=directory.socket_address(replica_id),
            pid=os.getpid(),
            spec=spec.to_json(),
        )
        self._meter = MemoryMeter()
        self._busy_since: float | None = None
        self._ended = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="replica-worker", daemon=True)
        self._watchdog = threading.Thread(target=self._watch, name="replica-watchdog", daemon=True)

    def start(self) -> None:
        """Load the model and begin to serve.

        Raises:
            models.errors.BackendError: the backend cannot load or run it.
        """
        self._backend.load()
        self._meter.mark_loaded()
        self._arm()
        self._thread.start()
        self._watchdog.start()

    @property
    def alive(self) -> bool:
        """Whether the worker still serves."""
        return self._thread.is_alive() and not self._ended

    def stop(self) -> None:
        """End the worker and free the model; waits for what it has been sent, at most a second."""
        self._stopping.set()
        self._directory.withdraw(self._announcement.id)
        for thread in (self._thread, self._watchdog):
            if thread.is_alive():
                thread.join(timeout=1)
        faulthandler.cancel_dump_traceback_later()  # after the watchdog, which would arm it again

    def _serve(self) -> None:
        context = zmq.Context()
        socket = context.socket(zmq.ROUTER)
        socket.linger = _LINGER_MS
        socket.sndhwm = socket.rcvhwm = 0
        socket.bind(self._announcement.address)
        self._directory.announce(self._announcement)
        try:
            while not self._stopping.is_set():
                if socket.poll(_POLL_MS):
                    self._answer(socket)
                elif not self._stopping.is_set():
                    self._directory.announce(self._announcement)
            self._directory.withdraw(self._announcement.id)  # it may have been announced again since ``stop``
            while socket.poll(_DRAIN_MS):
                self._answer(socket)
        finally:
            self._ended = True  # though closing the model may hang
            self._directory.withdraw(self._announcement.id)
            socket.close()  # before all else: that is how routers learn of it
            self._backend.close()
            context.term()
            Path(self._announcement.address.removeprefix("ipc://")).unlink(missing_ok=True)

    def _answer(self, socket: "zmq.Socket[bytes]") -> None:
        peer, head = socket.recv(), socket.recv()
        frames: list[Buffer] = []
        while socket.rcvmore:
            frames.append(socket.recv(copy=False).buffer)
        header = decode_batch_header(head)
        self._busy_since = time.monotonic()
        try:
            reply = self._process(header, frames)
        finally:
            self._busy_since = None
        socket.send_multipart([peer, *reply], copy=False)

    def _process(self, header: BatchHeader, frames: Sequence[Buffer]) -> list[Buffer]:
        started = time.perf_counter_ns()
        batched = self._spec.max_batch_size > 0
        inputs = _stack(header, frames, batched=batched)
        if header.measure:
            self._meter.reset()
        computing = time.perf_counter_ns()
        runs = self._run(inputs, header.rows)
        done = time.perf_counter_ns()
        peak = self._meter.peak_bytes() if header.measure else None
        segments, buffers = self._segments(runs, batched=batched)
        reply = ReplyHeader(
            id=header.id,
            segments=tuple(segments),
            copy_us=(computing - started) // 1000,
            compute_us=(done - computing) // 1000,
            peak_bytes=peak,
        )
        return [encode_reply_header(reply), *buffers]

    def _run(self, inputs: Mapping[str, Array], rows: tuple[int, ...]) -> list[_Run]:
        """Run a batch; when it fails, in halves, so that one bad request fails alone."""
        try:
            outputs = self._backend.run(inputs)
            check_outputs(self._spec, outputs, sum(rows))
            return [_Run(len(rows), outputs)]
        except MalformedOutputError as error:
            return [_Run(len(rows), kind="malformed", error=str(error))]
        except (BackendError, MemoryError) as error:
            if len(rows) == 1:
                return [_Run(1, kind="error", error=_reason(error))]
        except Exception as error:  # noqa: BLE001 — a user's backend may raise anything; it must not end the replica
            if len(rows) == 1:
                return [_Run(1, kind="error", error=_reason(error))]
        half = len(rows) // 2
        cut = sum(rows[:half])
        left = {name: array[:cut] for name, array in inputs.items()}
        right = {name: array[cut:] for name, array in inputs.items()}
        return [*self._run(left, rows[:half]), *self._run(right, rows[half:])]

    def _segments(self, runs: Sequence[_Run], *, batched: bool) -> tuple[list[Segment], list[Buffer]]:
        segments: list[Segment] = []
        buffers: list[Buffer] = []
        for run in runs:
            kind, error = run.kind, run.error
            try:
                tensors = self._tensors(run.outputs or {})
            except Exception as fault:  # noqa: BLE001 — an array of objects may hold anything but bytes
                tensors, kind, error = [], "malformed", _reason(fault)
            layouts = tuple(
                Layout(each.name, each.datatype, each.shape[1:] if batched else each.shape, True) for each in tensors
            )
            buffers += [each.data for each in tensors]
            segments.append(Segment(requests=run.requests, kind=kind, error=error, outputs=layouts))
        return segments, buffers

    def _tensors(self, outputs: Mapping[str, Array]) -> list[Tensor]:
        """The declared outputs in wire form; none of none."""
        return [from_numpy(spec.name, spec.datatype, outputs[spec.name]) for spec in self._spec.outputs if outputs]

    def _watch(self) -> None:
        """End the process when a batch runs too long; a backend that hangs in C with the GIL held is ended too."""
        while not self._stopping.wait(_WATCH_S):
            busy_since = self._busy_since
            if busy_since is not None and time.monotonic() - busy_since > self._timeout_s:
                _log.error("a batch ran longer than %.1f s: ending the process", self._timeout_s)
                self._directory.withdraw(self._announcement.id)
                self._exit(HANG_EXIT_STATUS)
            self._arm()

    def _arm(self) -> None:
        """faulthandler's timer runs without the GIL: it fires when the watchdog could not re-arm it in time."""
        if self._exit is os._exit:
            faulthandler.dump_traceback_later(self._timeout_s + 1, exit=True)


def _reason(error: BaseException) -> str:
    """An error as one line, fit for a client."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _stack(header: BatchHeader, frames: Sequence[Buffer], *, batched: bool) -> dict[str, Array]:
    """The batch's arrays: views of joined frames, else one concatenation."""
    inputs, at, total = {}, 0, sum(header.rows)
    for layout in header.inputs:
        if layout.joined:
            shape = (total, *layout.shape) if batched else layout.shape
            inputs[layout.name] = to_numpy(layout.datatype, shape, frames[at])
            at += 1
            continue
        parts = [
            to_numpy(layout.datatype, (rows, *layout.shape), frame)
            for rows, frame in zip(header.rows, frames[at : at + len(header.rows)], strict=True)
        ]
        inputs[layout.name] = np.concatenate(parts)
        at += len(header.rows)
    return inputs
