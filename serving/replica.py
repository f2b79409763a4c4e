"""A model replica's worker: one thread that takes batches from routers and runs the backend.

Nothing here knows Ray: ``serving.deployments`` hosts it.
"""

import faulthandler
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from models.backend import Backend
from models.errors import BackendError, MalformedOutputError, RejectedInputError
from models.memory import MemoryMeter
from models.preprocess import Prepared, Preprocess
from models.signature import check_outputs
from models.spec import ModelSpec
from models.tensor import Array, Buffer, Tensor, from_numpy, to_numpy
from models.warm_up import zeros
from rollout.traffic import Priority
from serving.arena import Window
from serving.directory import Directory, Replica
from serving.errors import MalformedMessageError
from serving.reception import Peer, Reception
from serving.starvation import Starvation
from serving.wire import (
    BatchHeader,
    Layout,
    ReplyHeader,
    Segment,
    decode_batch_header,
    decode_hello,
    encode_reply_header,
    encode_welcome,
)

_log = logging.getLogger("understudy.replica")
_POLL_MS: Final = 200
_DRAIN_MS: Final = 150  # routers look every 100 ms who has withdrawn
_WATCH_S: Final = 0.25
_STARVED_TIMES: Final = 10  # at the lowest priority the watchdog itself may not come to run for so many timeouts
HANG_EXIT_STATUS: Final = 70


@dataclass(frozen=True, slots=True)
class _Run:
    """The end of some consecutive requests: their outputs, or why there are none."""

    requests: int
    outputs: Mapping[str, Array] | None = None
    kind: str = "ok"
    error: str = ""


class _Clocks:
    """The CPU time of this thread and of its process from now on."""

    def __init__(self) -> None:
        self._thread, self._process = time.thread_time_ns(), time.process_time_ns()

    def spent_us(self) -> tuple[int, int]:
        """Microseconds of both so far."""
        return (time.thread_time_ns() - self._thread) // 1000, (time.process_time_ns() - self._process) // 1000


class Worker:
    """Serves batches from ``directory``'s routers until ``stop``; ``start`` returns when the model is loaded and warm.

    ``warm_up`` are the sizes of the batches of zeros that it runs before routers learn of it.
    """

    def __init__(
        self,
        *,
        replica_id: str,
        spec: ModelSpec,
        backend: Backend,
        preprocess: Preprocess | None = None,
        directory: Directory,
        priority: Priority,
        timeout_s: float,
        warm_up: Sequence[int] = (),
        exit_process: Callable[[int], None] = os._exit,
    ) -> None:
        self._spec, self._backend, self._directory = spec, backend, directory
        self._preprocess = preprocess
        self._timeout_s, self._exit = timeout_s, exit_process
        self._warm_up_sizes, self._warm = tuple(warm_up), threading.Event()
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
        """Load the model, warm it up and begin to serve.

        Raises:
            models.errors.BackendError: the backend cannot load it.
        """
        self._backend.load()
        # Before the warm-up: what the runtime then reserves for batches, and keeps, is theirs and not the weights'. A
        # model whose batches need more would otherwise hide it in the size that its peaks are measured from.
        self._meter.mark_loaded()
        self._thread.start()
        self._warm.wait()
        self._watchdog.start()

    @property
    def alive(self) -> bool:
        """Whether the worker still serves."""
        return self._thread.is_alive() and not self._ended

    def stop(self, wait_s: float = 1.0) -> None:
        """End the worker and free the model; waits for what it has been sent, at most ``wait_s``."""
        self._stopping.set()
        self._directory.withdraw(self._announcement.id)
        for thread in (self._thread, self._watchdog):
            if thread.is_alive():
                thread.join(timeout=wait_s)
        faulthandler.cancel_dump_traceback_later()  # after the watchdog, which would arm it again

    def _warm_up(self) -> None:
        """Run the batches of zeros, however long a runtime takes to prepare; no time or failure of theirs is evidence.

        In the thread that serves, as some of what a runtime prepares belongs to its thread. A model may refuse zeros.
        """
        try:
            for rows in self._warm_up_sizes:
                try:
                    self._backend.run(zeros(self._spec, rows))
                except Exception as error:  # noqa: BLE001 — as in ``_run``: a user's backend may raise anything
                    _log.warning("the warm-up with a batch of %d failed: %s", rows, _reason(error))
        finally:
            self._warm.set()

    def _serve(self) -> None:
        self._warm_up()
        self._arm()
        reception = Reception(self._announcement.address)
        self._directory.announce(self._announcement)
        try:
            while not self._stopping.is_set():
                if (message := reception.receive(_POLL_MS)) is not None:
                    self._answer(reception, *message)
                elif not self._stopping.is_set():
                    self._directory.announce(self._announcement)
            self._directory.withdraw(self._announcement.id)  # it may have been announced again since ``stop``
            while (message := reception.receive(_DRAIN_MS)) is not None:
                self._answer(reception, *message)
        finally:
            self._ended = True  # though closing the model may hang
            self._directory.withdraw(self._announcement.id)
            reception.close()  # before all else: that is how routers learn of it
            self._backend.close()

    def _answer(self, reception: Reception, peer: Peer, message: Sequence[memoryview]) -> None:
        try:
            self._answer_message(reception, peer, message)
        except MalformedMessageError as error:
            reception.refuse(peer, str(error))

    def _answer_message(self, reception: Reception, peer: Peer, message: Sequence[memoryview]) -> None:
        head, *frames = message
        if (arena := decode_hello(head)) is not None:
            peer.window = _open(arena)
            reception.reply(peer, [encode_welcome(peer.window is not None)])
            return
        header = decode_batch_header(head)
        self._busy_since = time.monotonic()
        try:
            reply = self._process(header, frames, peer.window)
        finally:
            self._busy_since = None
        reception.reply(peer, reply)

    def _process(self, header: BatchHeader, frames: Sequence[Buffer], window: Window | None) -> list[Buffer]:
        started = preparing = computing = time.perf_counter_ns()
        clocks: _Clocks | None = None
        batched = self._spec.max_batch_size > 0
        try:
            inputs = _stack(header, frames, window, batched=batched)
            if header.measure:
                self._meter.reset()
                clocks = _Clocks()
            preparing = computing = time.perf_counter_ns()
            prepared = self._prepare(inputs, header.rows)
            computing = time.perf_counter_ns()
            runs = self._run(prepared.inputs, prepared.rows) if prepared.rows else []
            if prepared.failures:
                runs = _with_failures(runs, prepared)
        except MemoryError as error:  # no room to put the batch together: the replica goes on
            runs = [_Run(len(header.rows), kind="error", error=_reason(error))]
        done = time.perf_counter_ns()
        cpu_us, process_cpu_us = clocks.spent_us() if clocks is not None else (0, 0)
        peak = self._meter.peak_bytes() if header.measure else None
        segments, buffers = self._segments(runs, batched=batched)
        reply = ReplyHeader(
            id=header.id,
            segments=tuple(segments),
            copy_us=(preparing - started) // 1000,
            preprocess_us=(computing - preparing) // 1000,
            compute_us=(done - computing) // 1000,
            peak_bytes=peak,
            cpu_us=cpu_us,
            process_cpu_us=process_cpu_us,
        )
        return [encode_reply_header(reply), *buffers]

    def _prepare(self, inputs: Mapping[str, Array], rows: tuple[int, ...]) -> Prepared:
        return Prepared(inputs=inputs, rows=rows) if self._preprocess is None else self._preprocess.run(inputs, rows)

    def _run(self, inputs: Mapping[str, Array], rows: tuple[int, ...]) -> list[_Run]:
        """Run a batch; when it fails, in halves, so that one bad request fails alone."""
        try:
            outputs = self._backend.run(inputs)
            check_outputs(self._spec, outputs, sum(rows))
            return [_Run(len(rows), outputs)]
        except MalformedOutputError as error:
            return [_Run(len(rows), kind="malformed", error=_line(str(error)))]
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
        """End the process when a batch runs too long; a backend that hangs in C with the GIL held is ended too.

        The time in which others had the cores is not the batch's.
        """
        starvation, watched, starved_s = Starvation(), self._busy_since, 0.0
        while not self._stopping.wait(_WATCH_S):
            busy_since = self._busy_since
            if busy_since != watched:
                starvation, watched, starved_s = Starvation(), busy_since, 0.0
            elif busy_since is not None:
                starved_s += starvation.since()
            if busy_since is not None and time.monotonic() - busy_since - starved_s > self._timeout_s:
                _log.error("a batch ran longer than %.1f s: ending the process", self._timeout_s)
                self._directory.withdraw(self._announcement.id)
                self._exit(HANG_EXIT_STATUS)
            self._arm()

    def _arm(self) -> None:
        """faulthandler's timer runs without the GIL: it fires when the watchdog could not re-arm it in time."""
        if self._exit is os._exit:
            in_shadow = self._announcement.priority is Priority.SHADOW
            patience_s = self._timeout_s * (_STARVED_TIMES if in_shadow else 1)
            faulthandler.dump_traceback_later(patience_s + 1, exit=True)


def _open(arena: str) -> Window | None:
    """A router's arena, if it can be read from here."""
    try:
        return Window(arena)
    except (OSError, ValueError) as error:
        _log.info("batches come as messages, because the arena cannot be read: %s", error)
        return None


def _reason(error: BaseException) -> str:
    """An error as one line, fit for a client."""
    text = _line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(text: str) -> str:
    """A text's first line, without what UTF-8 cannot hold."""
    return next(iter(text.strip().splitlines()), "").encode(errors="backslashreplace").decode()


def _with_failures(runs: Sequence[_Run], prepared: Prepared) -> list[_Run]:
    """A run for each request of a batch, in its order: those that failed before never came to the model."""
    ran = _one_by_one(runs, prepared.rows)
    requests = range(len(prepared.rows) + len(prepared.failures))
    return [_unprepared(prepared.failures[at]) if at in prepared.failures else next(ran) for at in requests]


def _one_by_one(runs: Sequence[_Run], rows: Sequence[int]) -> Iterator[_Run]:
    counts = iter(rows)
    for run in runs:
        start = 0
        for count in itertools.islice(counts, run.requests):
            mine = {name: array[start : start + count] for name, array in (run.outputs or {}).items()}
            yield replace(run, requests=1, outputs=mine or None)
            start += count


def _unprepared(error: Exception) -> _Run:
    if isinstance(error, RejectedInputError):
        return _Run(1, kind="rejected", error=_line(str(error)))
    return _Run(1, kind="error", error=_reason(error))


def _stack(header: BatchHeader, frames: Sequence[Buffer], window: Window | None, *, batched: bool) -> dict[str, Array]:
    """The batch's arrays: views of joined frames or of the router's arena, else one concatenation.

    Raises:
        MalformedMessageError: the frames or blocks are not those that the header speaks of.
    """
    inputs, at = {}, 0
    for layout in header.inputs:
        blocks = header.blocks.get(layout.name)
        try:
            if blocks is None:
                end = at + (1 if layout.joined else len(header.rows))
                buffers, at = frames[at:end], end
            else:
                buffers = _shown(window, blocks)
            inputs[layout.name] = _input(layout, header.rows, buffers, batched=batched)
        except ValueError as error:
            raise MalformedMessageError(f"input {layout.name!r}: {error}") from None
    if at != len(frames):
        raise MalformedMessageError(f"expected {at} frames after the header, got {len(frames)}")
    return inputs


def _shown(window: Window | None, blocks: Sequence[tuple[int, int]]) -> list[Buffer]:
    """What lies in the router's arena, of which it was told that it can be read here."""
    if window is None:
        raise ValueError("expected frames, as the arena cannot be read here")
    return [window.view(offset, size) for offset, size in blocks]


def _input(layout: Layout, rows: Sequence[int], buffers: Sequence[Buffer], *, batched: bool) -> Array:
    if layout.joined:
        (whole,) = buffers
        return to_numpy(layout.datatype, (sum(rows), *layout.shape) if batched else layout.shape, whole)
    return np.concatenate(
        [to_numpy(layout.datatype, (count, *layout.shape), buffer) for count, buffer in zip(rows, buffers, strict=True)]
    )
