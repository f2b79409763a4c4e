"""The protocol without Ray: real models run in this process behind a real HTTP server on a real socket."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from models.backend import Backend
from models.backends import open_backend
from models.errors import ModelError
from models.repository import Repository
from models.spec import ModelSpec
from models.tensor import from_numpy
from serving.dataplane import DataPlane
from serving.errors import DeadlineError, ModelFailedError, UnavailableError
from serving.http import MAX_BODY_BYTES, HttpApp, HttpServer, bind
from serving.protocol.messages import InferRequest, InferResponse


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server listens."""

    host: str
    port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


class _Replica:
    """One model in one thread, with a bounded queue before it."""

    def __init__(self, spec: ModelSpec, backend: Backend, max_queue: int | None) -> None:
        self.spec = spec
        self._backend = backend
        self._slots = None if max_queue is None else max_queue + 1
        self._pending = 0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._thread.submit(backend.load).result()

    async def infer(self, request: InferRequest) -> InferResponse:
        if self._slots is not None and self._pending >= self._slots:
            raise UnavailableError(f"model {self.spec.name!r}: the queue is full")
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._run, request)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(future), request.timeout_s)
        except TimeoutError:
            raise DeadlineError(f"no answer within {request.timeout_s} s") from None

    def _done(self, future: "asyncio.Future[InferResponse]") -> None:
        self._pending -= 1
        if not future.cancelled():
            future.exception()  # taken note of, where the client left before

    def _run(self, request: InferRequest) -> InferResponse:
        try:
            outputs = self._backend.run({name: tensor.numpy() for name, tensor in request.inputs.items()})
        except ModelError as error:
            raise ModelFailedError(str(error)) from None
        tensors = {
            output.name: from_numpy(output.name, output.datatype, outputs[output.name]) for output in self.spec.outputs
        }
        return InferResponse(model=self.spec.name, version=self.spec.version, outputs=tensors)

    def close(self) -> None:
        self._thread.submit(self._backend.close).result()
        self._thread.shutdown()


class LocalEngine:
    """Version 1 of every model of a repository; ``queues`` bounds how many requests of a model may wait."""

    def __init__(self, repository: Path, backends: Mapping[str, str], queues: Mapping[str, int]) -> None:
        opened = Repository(repository)
        self._replicas: dict[str, _Replica] = {}
        for model in opened.models():
            version = opened.open(model, 1)
            self._replicas[model] = _Replica(version.spec, open_backend(version, backends), queues.get(model))
        self._models = {model: {1: replica.spec} for model, replica in self._replicas.items()}

    def models(self) -> Mapping[str, Mapping[int, ModelSpec]]:
        return self._models

    def default_version(self, model: str) -> int:
        return 1

    def ready(self, model: str, version: int | None) -> bool:
        return True

    async def infer(self, request: InferRequest) -> InferResponse:
        return await self._replicas[request.model].infer(request)

    def close(self) -> None:
        for replica in self._replicas.values():
            replica.close()


@contextmanager
def served(plane: DataPlane, *, max_body_bytes: int = MAX_BODY_BYTES, grace_s: float = 1.0) -> Iterator[Endpoint]:
    """A real HTTP server for ``plane``, on any free port, in a thread of its own."""
    sock = bind("127.0.0.1", 0)
    host, port = sock.getsockname()
    started = threading.Event()
    stopping: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        server = HttpServer(HttpApp(plane, max_body_bytes=max_body_bytes), sock)
        await server.start()
        stop = asyncio.Event()
        stopping.append((asyncio.get_running_loop(), stop))
        started.set()
        await stop.wait()
        await server.stop(grace_s)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="endpoint")
    thread.start()
    assert started.wait(10), "the server did not start"
    try:
        yield Endpoint(host=host, port=port)
    finally:
        (loop, stop), *_ = stopping
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
