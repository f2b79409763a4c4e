"""The protocol without Ray: real models run in this process behind real HTTP and gRPC servers on real sockets."""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvloop

from models.backend import Backend
from models.backends import open_backend
from models.errors import ModelError, RejectedInputError
from models.preprocess import Preprocess, open_preprocess
from models.repository import Repository
from models.spec import ModelSpec
from models.tensor import Array, from_numpy
from serving.dataplane import DataPlane
from serving.door import Limits, bind
from serving.errors import DeadlineError, InvalidArgumentError, ModelFailedError, ServingError, UnavailableError
from serving.grpc import GrpcServer
from serving.http import MAX_BODY_BYTES, HttpApp
from serving.http_server import HttpServer
from serving.protocol.messages import InferRequest, InferResponse
from serving.statistics import Statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a server listens: HTTP on ``port``."""

    host: str
    port: int
    grpc_port: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"{self.host}:{self.grpc_port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


class _Replica:
    """One model in one thread, with a bounded queue before it."""

    def __init__(self, spec: ModelSpec, backend: Backend, max_queue: int | None, statistics: Statistics) -> None:
        self.spec = spec
        self._statistics = statistics
        self._backend = backend
        self.preprocess: Preprocess | None = None
        self._slots = None if max_queue is None else max_queue + 1
        self._pending = 0
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._thread.submit(backend.load).result()

    async def infer(self, request: InferRequest) -> InferResponse:
        arrived = time.perf_counter_ns()
        try:
            response, queue_ns, infer_ns = await self._answer(request, arrived)
        except ServingError:
            elapsed = time.perf_counter_ns() - arrived
            self._statistics.record_failure(self.spec.name, self.spec.version, total_ns=elapsed)
            raise
        rows = next(iter(request.inputs.values())).shape[0] if self.spec.max_batch_size else 1
        self._statistics.record(
            self.spec.name,
            self.spec.version,
            requests=1,
            rows=rows,
            total_ns=time.perf_counter_ns() - arrived,
            queue_ns=queue_ns,
            input_ns=0,
            infer_ns=infer_ns,
            output_ns=0,
        )
        return response

    async def _answer(self, request: InferRequest, arrived: int) -> tuple[InferResponse, int, int]:
        if self._slots is not None and self._pending >= self._slots:
            raise UnavailableError(f"model {self.spec.name!r}: the queue is full")
        self._pending += 1
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._run, request, arrived)
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(future), request.timeout_s)
        except TimeoutError:
            raise DeadlineError(f"no answer within {request.timeout_s} s") from None

    def _done(self, future: "asyncio.Future[tuple[InferResponse, int, int]]") -> None:
        self._pending -= 1
        if not future.cancelled():
            future.exception()  # taken note of, where the client left before

    def _run(self, request: InferRequest, arrived: int) -> tuple[InferResponse, int, int]:
        """The answer, the nanoseconds that it waited, and those that it took to compute."""
        started = time.perf_counter_ns()
        try:
            outputs = self._backend.run(self._prepared({name: each.numpy() for name, each in request.inputs.items()}))
        except RejectedInputError as error:
            raise InvalidArgumentError(str(error)) from None
        except ModelError as error:
            raise ModelFailedError(str(error)) from None
        tensors = {
            output.name: from_numpy(output.name, output.datatype, outputs[output.name]) for output in self.spec.outputs
        }
        response = InferResponse(model=self.spec.name, version=self.spec.version, outputs=tensors)
        return response, started - arrived, time.perf_counter_ns() - started

    def _prepared(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        if self.preprocess is None:
            return inputs
        rows = len(next(iter(inputs.values()))) if self.spec.max_batch_size else 1
        prepared = self.preprocess.run(inputs, [rows])
        for failure in prepared.failures.values():
            raise failure
        return prepared.inputs

    def close(self) -> None:
        self._thread.submit(self._backend.close).result()
        self._thread.shutdown()


class LocalEngine:
    """Version 1 of every model of a repository; ``queues`` bounds how many requests of a model may wait."""

    def __init__(self, repository: Path, backends: Mapping[str, str], queues: Mapping[str, int]) -> None:
        opened = Repository(repository)
        self.statistics = Statistics()
        self._replicas: dict[str, _Replica] = {}
        for model in opened.models():
            version = opened.open(model, 1)
            backend = open_backend(version, backends)
            replica = _Replica(version.spec, backend, queues.get(model), self.statistics)
            replica.preprocess = open_preprocess(version)
            self._replicas[model] = replica
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
    """Real HTTP and gRPC servers for ``plane``, on any free ports, in one thread of their own."""
    sock = bind("127.0.0.1", 0)
    host, port = sock.getsockname()
    started = threading.Event()
    stopping: list[tuple[asyncio.AbstractEventLoop, asyncio.Event, int]] = []

    async def serve() -> None:
        server = HttpServer(
            HttpApp(plane, max_body_bytes=max_body_bytes), sock, limits=Limits(body_bytes=max_body_bytes)
        )
        grpc = GrpcServer(plane, host, 0)
        await server.start()
        await grpc.start()
        stop = asyncio.Event()
        stopping.append((asyncio.get_running_loop(), stop, grpc.port))
        started.set()
        await stop.wait()
        await asyncio.gather(server.stop(grace_s), grpc.stop(grace_s))

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run, name="endpoint")
    thread.start()
    assert started.wait(10), "the server did not start"
    loop, stop, grpc_port = stopping[0]
    try:
        yield Endpoint(host=host, port=port, grpc_port=grpc_port)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"
