"""tritonclient's clients, and the ways in which each asks, behind one face: a case is written once for all of them."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from tests.contract.local_engine import Endpoint

Array = np.ndarray[Any, Any]
Stock = Any  # tritonclient has no types
_WAIT_S: Final = 20
_GRPC_STATUS: Final[Mapping[int, str]] = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """An input; ``binary`` matters over HTTP alone."""

    name: str
    array: Array
    datatype: str | None = None
    binary: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An output that is asked for; ``binary`` matters over HTTP alone."""

    name: str
    classes: int = 0
    binary: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``response`` is what the client shows of it; outputs are in the order in which they came."""

    id: str
    model: str
    version: str
    outputs: Mapping[str, Array]
    response: Any


class Blocking:
    """An aio client with blocking calls, on an event loop of its own."""

    def __init__(self, make: Callable[[], Stock]) -> None:
        self._runner = asyncio.Runner()

        async def made() -> Stock:
            return make()

        self._client = self._runner.run(made())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            async def run() -> Any:
                return await method(*arguments, **options)

            return self._runner.run(run())

        return call

    def stream_infer(self, **request: Any) -> Any:
        """The answer to the only request of a stream."""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield request

        async def run() -> Any:
            async for result, error in self._client.stream_infer(requests()):
                if error is not None:
                    raise error
                return result
            raise AssertionError("the stream ended without an answer")

        return self._runner.run(run())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


class Client:
    """One stock client, and one way to ask with it."""

    http: bool
    _library: Any

    def __init__(self, stock: Stock, ask: Callable[..., Any], *, status_in_errors: bool = True) -> None:
        self.stock, self._ask, self._status_in_errors = stock, ask, status_in_errors

    def infer(self, model: str, inputs: Sequence[Given], outputs: Sequence[Asked] = (), **options: Any) -> Answer:
        """Ask, and wait for the answer; ``options`` are the stock client's."""
        tensors = [self.tensor(each) for each in inputs]
        wishes = [self.wish(each) for each in outputs] or None
        return self.read(self._ask(self.stock, model_name=model, inputs=tensors, outputs=wishes, **options))

    def tensor(self, given: Given) -> Any:
        datatype = given.datatype or np_to_triton_dtype(given.array.dtype)
        tensor = self._library.InferInput(given.name, list(given.array.shape), datatype)
        self._fill(tensor, given)
        return tensor

    def _fill(self, tensor: Any, given: Given) -> None:
        raise NotImplementedError

    def mislabel(self, tensor: Any, datatype: str) -> None:
        """Give a tensor a datatype that the client itself would refuse."""
        raise NotImplementedError

    def wish(self, asked: Asked) -> Any:
        raise NotImplementedError

    def read(self, result: Any) -> Answer:
        raise NotImplementedError

    def metadata(self, model: str, version: str = "") -> Any:
        """The model's metadata, with integers as such."""
        return self._plain(self.stock.get_model_metadata(model, version, **self._as_json))

    def config(self, model: str) -> Any:
        config = self._plain(self.stock.get_model_config(model, **self._as_json))
        return config if self.http else config["config"]

    def server_metadata(self) -> Any:
        return self._plain(self.stock.get_server_metadata(**self._as_json))

    def index(self) -> Any:
        index = self.stock.get_model_repository_index(**self._as_json)
        return index if self.http else index["models"]

    def statistics(self, model: str = "", version: str = "") -> Any:
        return self._plain(self.stock.get_inference_statistics(model, version, **self._as_json))["model_stats"]

    @property
    def _as_json(self) -> Mapping[str, Any]:
        return {} if self.http else {"as_json": True}

    def _plain(self, value: Any) -> Any:
        """JSON that was made of protobuf has 64-bit integers as strings."""
        if self.http:
            return value
        if isinstance(value, dict):
            return {key: each if key in _TEXTS else self._plain(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._plain(each) for each in value]
        return int(value) if isinstance(value, str) and value.lstrip("-").isdigit() else value

    @contextmanager
    def refused(self, status: int, *fragments: str, grpc: str = "") -> Iterator[Any]:
        """A refusal with this HTTP status, or gRPC's for it (or ``grpc``), whose message names each fragment."""
        code = str(status) if self.http else f"StatusCode.{grpc or _GRPC_STATUS[status]}"
        start = rf"^\[{code}\] " if self._status_in_errors else "^"
        pattern = f"(?s){start}" + "".join(rf"(?=.*{fragment})" for fragment in fragments)
        with pytest.raises(InferenceServerException, match=pattern) as raised:
            yield raised

    def close(self) -> None:
        self.stock.close()


_TEXTS: Final = frozenset({"version", "versions", "name", "id", "model_version"})


class HttpClient(Client):
    http = True
    _library = tritonclient.http

    def _fill(self, tensor: Any, given: Given) -> None:
        tensor.set_data_from_numpy(given.array, binary_data=given.binary)

    def mislabel(self, tensor: Any, datatype: str) -> None:
        tensor._datatype = datatype

    def wish(self, asked: Asked) -> Any:
        return tritonclient.http.InferRequestedOutput(asked.name, binary_data=asked.binary, class_count=asked.classes)

    def read(self, result: Any) -> Answer:
        response = result.get_response()
        return Answer(
            id=response.get("id", ""),
            model=response["model_name"],
            version=response["model_version"],
            outputs={output["name"]: result.as_numpy(output["name"]) for output in response["outputs"]},
            response=response,
        )


class GrpcClient(Client):
    http = False
    _library = tritonclient.grpc

    def _fill(self, tensor: Any, given: Given) -> None:
        tensor.set_data_from_numpy(given.array)

    def mislabel(self, tensor: Any, datatype: str) -> None:
        tensor._input.datatype = datatype

    def wish(self, asked: Asked) -> Any:
        return tritonclient.grpc.InferRequestedOutput(asked.name, class_count=asked.classes)

    def read(self, result: Any) -> Answer:
        response = result.get_response()
        return Answer(
            id=response.id,
            model=response.model_name,
            version=response.model_version,
            outputs={output.name: result.as_numpy(output.name) for output in response.outputs},
            response=response,
        )


def _plainly(stock: Stock, **request: Any) -> Any:
    return stock.infer(**request)


def _by_handle(stock: Stock, **request: Any) -> Any:
    return stock.async_infer(**request).get_result(timeout=_WAIT_S)


def _by_callback(stock: Stock, **request: Any) -> Any:
    answers = Answers()
    stock.async_infer(callback=answers, **request)
    return answers.next()


def _by_stream(stock: Stock, **request: Any) -> Any:
    answers = Answers()
    stock.start_stream(answers)
    try:
        stock.async_stream_infer(**request)
        return answers.next()
    finally:
        stock.stop_stream()


def _by_aio_stream(stock: Stock, **request: Any) -> Any:
    return stock.stream_infer(**request)


class Answers:
    """A callback of tritonclient's that keeps what it is told."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[Any, Any]] = queue.Queue()

    def __call__(self, result: Any, error: Any) -> None:
        self._queue.put((result, error))

    def next(self) -> Any:
        """The next result.

        Raises:
            InferenceServerException: the server's refusal.
        """
        result, error = self._queue.get(timeout=_WAIT_S)
        if error is not None:
            raise error
        return result


def _http(endpoint: Endpoint) -> Stock:
    return tritonclient.http.InferenceServerClient(endpoint.address)


def _grpc(endpoint: Endpoint) -> Stock:
    return tritonclient.grpc.InferenceServerClient(endpoint.grpc_address)


def _http_aio(endpoint: Endpoint) -> Stock:
    return Blocking(lambda: tritonclient.http.aio.InferenceServerClient(endpoint.address))


def _grpc_aio(endpoint: Endpoint) -> Stock:
    return Blocking(lambda: tritonclient.grpc.aio.InferenceServerClient(endpoint.grpc_address))


STOCK: Final[Mapping[str, Callable[[Endpoint], Client]]] = {
    "http": lambda endpoint: HttpClient(_http(endpoint), _plainly),
    "http.aio": lambda endpoint: HttpClient(_http_aio(endpoint), _plainly),
    "grpc": lambda endpoint: GrpcClient(_grpc(endpoint), _plainly),
    "grpc.aio": lambda endpoint: GrpcClient(_grpc_aio(endpoint), _plainly),
}
WAYS: Final[Mapping[str, Callable[[Endpoint], Client]]] = {
    **STOCK,
    "http.async_infer": lambda endpoint: HttpClient(_http(endpoint), _by_handle),
    "grpc.async_infer": lambda endpoint: GrpcClient(_grpc(endpoint), _by_callback),
    "grpc.stream": lambda endpoint: GrpcClient(_grpc(endpoint), _by_stream, status_in_errors=False),
    "grpc.aio.stream": lambda endpoint: GrpcClient(_grpc_aio(endpoint), _by_aio_stream, status_in_errors=False),
}
