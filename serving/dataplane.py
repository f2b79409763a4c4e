"""The data plane: what the endpoint offers, once for all transports.

A transport decodes, calls a method here and encodes what comes back. An ``Engine`` (routing, batching, replicas)
does the work behind it.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from typing import Any, Final, Protocol

from models.spec import ModelSpec, TensorSpec
from models.tensor import Tensor
from serving.errors import (
    InvalidArgumentError,
    ModelFailedError,
    NotFoundError,
    ServingError,
    UnavailableError,
    UnsupportedError,
)
from serving.protocol.classification import classify
from serving.protocol.messages import InferRequest, InferResponse, RequestedOutput
from serving.protocol.validation import Signature
from serving.stages import Stages
from serving.statistics import Statistics, total

SERVER_NAME: Final = "understudy"
EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
)
ARMS: Final = frozenset({"baseline", "candidate"})
_US_PER_S: Final = 1_000_000


class Engine(Protocol):
    """What answers requests. Everything but ``infer`` returns at once."""

    def models(self) -> Mapping[str, Mapping[int, ModelSpec]]:
        """Every model, with those of its versions that can be asked for at present."""

    def default_version(self, model: str) -> int:
        """The version whose signature a request must have that names none: the baseline."""

    def ready(self, model: str, version: int | None) -> bool:
        """Whether a version (None: the default) has a replica that can answer."""

    @property
    def statistics(self) -> Statistics:
        """What was answered so far."""

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answer a checked request; its caller going away must not disturb any other request.

        Raises:
            serving.errors.ServingError: no answer; its class says why.
        """


def _own_version() -> str:
    try:
        return installed_version(SERVER_NAME)
    except PackageNotFoundError:  # run from a source tree
        return "0+source"


def request_ids(prefix: str) -> Iterator[str]:
    """Unique request ids: ``prefix``, unique to the process, and a running number."""
    return (f"{prefix}-{number:x}" for number in itertools.count(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One version in the repository's index."""

    name: str
    version: int
    ready: bool

    def to_json(self) -> dict[str, str]:
        """The protocol's form."""
        entry = {"name": self.name, "version": str(self.version), "state": "READY" if self.ready else "UNAVAILABLE"}
        return entry if self.ready else entry | {"reason": "no replica can answer"}


class DataPlane:
    """Checks and completes requests, hands them to the engine, and describes the models. Used from one thread.

    ``ids`` makes the request ids, by default from a random prefix. ``stages`` counts where requests' time goes.
    ``others`` gives the entries of statistics that other routers behind the same ports counted, of any version.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        ids: Iterator[str] | None = None,
        stages: Stages | None = None,
        others: Callable[[], Iterable[Mapping[str, Any]]] = tuple,
    ) -> None:
        self._engine, self._stages, self._others = engine, stages, others
        self._ids = request_ids(secrets.token_hex(8)) if ids is None else ids
        self._version = _own_version()
        self._signatures: dict[tuple[str, int], Signature] = {}

    def new_request_id(self) -> str:
        """An id for a request whose client gave none."""
        return next(self._ids)

    def live(self) -> bool:
        """Whether the server runs."""
        return True

    def ready(self) -> bool:
        """Whether every model can answer; a server that knows of no model yet cannot."""
        models = self._engine.models()
        return bool(models) and all(self._engine.ready(model, None) for model in models)

    def model_ready(self, model: str, version: int | None = None) -> bool:
        """Whether a version (None: the default) can answer; False for an unknown one."""
        versions = self._engine.models().get(model, {})
        known = bool(versions) if version is None else version in versions
        return known and self._engine.ready(model, version)

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": SERVER_NAME, "version": self._version, "extensions": list(EXTENSIONS)}

    def model_metadata(self, model: str, version: int | None = None) -> dict[str, Any]:
        """A version's signature, as the protocol's ``model_metadata``; shapes include the batch dimension.

        Raises:
            NotFoundError: an unknown model or version.
        """
        spec = self._signature(model, version).spec
        return {
            "name": spec.name,
            "versions": [str(number) for number in sorted(self._engine.models()[model])],
            "platform": spec.backend,
            "inputs": [_tensor_metadata(tensor) for tensor in spec.inputs],
            "outputs": [_tensor_metadata(tensor) for tensor in spec.outputs],
        }

    def model_config(self, model: str, version: int | None = None) -> dict[str, Any]:
        """A version's signature, as Triton's ``ModelConfig``; dims leave the batch dimension out.

        Raises:
            NotFoundError: an unknown model or version.
        """
        spec = self._signature(model, version).spec
        batched = spec.max_batch_size > 0
        config: dict[str, Any] = {
            "name": spec.name,
            "platform": spec.backend,
            "backend": spec.backend,
            "max_batch_size": spec.max_batch_size,
            "input": [_tensor_config(tensor, batched) for tensor in spec.inputs],
            "output": [_tensor_config(tensor, batched) for tensor in spec.outputs],
            "model_transaction_policy": {"decoupled": False},
        }
        return config | {"dynamic_batching": {}} if batched else config

    def repository_index(self, *, ready: bool = False) -> list[IndexEntry]:
        """Every version that can be asked for, in order; with ``ready`` those alone that can answer."""
        entries = [
            IndexEntry(name=model, version=version, ready=self._engine.ready(model, version))
            for model, versions in sorted(self._engine.models().items())
            for version in sorted(versions)
        ]
        return [entry for entry in entries if entry.ready] if ready else entries

    def model_statistics(self, model: str | None = None, version: int | None = None) -> list[dict[str, Any]]:
        """The protocol's ``model_stats``: of every model (None), of every version of one (None), or of one version.

        Raises:
            NotFoundError: an unknown model or version.
        """
        models = self._engine.models()
        if model is None:
            asked = [(name, number) for name in sorted(models) for number in sorted(models[name])]
        elif version is None:
            asked = [(model, number) for number in sorted(self._versions(model))]
        elif version in self._versions(model):
            asked = [(model, version)]
        else:
            raise _unknown_version(model, version, models[model])
        others = list(self._others())
        return [
            total(
                [
                    self._engine.statistics.of(name, number),
                    *[each for each in others if (each["name"], each["version"]) == (name, str(number))],
                ]
            )
            for name, number in asked
        ]

    def load(self, model: str) -> None:
        """Say that a model is served; it loads nothing, for rollouts alone do.

        Raises:
            NotFoundError: an unknown model.
            UnavailableError: its baseline cannot answer yet.
        """
        if not self._versions(model) or not self._engine.ready(model, None):
            raise UnavailableError(f"model {model!r}: its baseline has no replica that can answer yet")

    def unload(self, model: str) -> None:
        """Refuse: a client of the endpoint does not decide what is served.

        Raises:
            NotFoundError: an unknown model.
            UnsupportedError: any other.
        """
        self._versions(model)
        raise UnsupportedError(f"unload of model {model!r} is not offered here: rollouts load and unload versions")

    async def infer(self, request: InferRequest, requested: Sequence[RequestedOutput] = ()) -> InferResponse:
        """Check ``request`` against the signature of its version, complete it, and have it answered.

        Sets ``request_id`` where empty, and ``key``; the parameter ``timeout`` may lower ``timeout_s``. The response
        holds the ``requested`` outputs in that order (none: all that the model declares), classified where that was
        asked for.

        Raises:
            NotFoundError: an unknown model or version.
            UnavailableError: a known model whose default version has no replica yet.
            InvalidArgumentError: a request that does not fit the version's signature.
            serving.errors.ServingError: the engine's.
        """
        self._complete(request)
        signature = self._signature(request.model, request.version)
        signature.check(request, requested)
        response = await self._engine.infer(request)
        if request.timing is not None:
            request.timing.resumed = time.monotonic()
        if not requested:
            return response
        outputs = {output.name: self._pick(response, output, signature.spec) for output in requested}
        return InferResponse(model=response.model, version=response.version, outputs=outputs)

    async def infer_raw(self, request: InferRequest, body: memoryview) -> InferResponse:
        """Answer a request whose only input is ``body``, as it is; else like ``infer``.

        Raises:
            InvalidArgumentError: a model for which that is ambiguous.
        """
        tensor = self._signature(request.model, request.version).raw_input(body)
        request.inputs = {tensor.name: tensor}
        return await self.infer(request)

    def answered(self, request: InferRequest, response: InferResponse) -> None:
        """Take note that the transport has encoded an answer."""
        if self._stages is not None and request.timing is not None:
            self._stages.observe(response.model, response.version, request.timing, time.monotonic())

    def _pick(self, response: InferResponse, output: RequestedOutput, checked: ModelSpec) -> Tensor:
        """One requested output; ``checked`` stands in for the spec of a version that has gone since it answered."""
        tensor = response.outputs.get(output.name)
        if tensor is None:
            raise ModelFailedError(
                f"model {response.model!r} version {response.version} gave no output {output.name!r}"
            )
        if not output.classification:
            return tensor
        spec = self._engine.models().get(response.model, {}).get(response.version, checked)
        return classify(tensor, output.classification, spec.labels, batched=spec.max_batch_size > 0)

    def _complete(self, request: InferRequest) -> None:
        """Fill in what the rest of the way relies on, wherever the client left it open."""
        request.request_id = request.id or request.request_id or self.new_request_id()
        if request.arm is not None:
            _check_arm(request)
        parameters = request.parameters
        sequence = parameters.get("sequence_id")
        request.key = str(sequence) if sequence else request.key or request.request_id  # 0 and "" mean none
        timeout_us = parameters.get("timeout")
        if timeout_us:
            wished_s = timeout_us / _US_PER_S
            request.timeout_s = wished_s if request.timeout_s is None else min(wished_s, request.timeout_s)

    def _versions(self, model: str) -> Mapping[int, ModelSpec]:
        versions = self._engine.models().get(model)
        if versions is None:
            raise NotFoundError(f"unknown model {model!r}")
        return versions

    def _signature(self, model: str, version: int | None) -> Signature:
        versions = self._versions(model)
        number = self._engine.default_version(model) if version is None else version
        spec = versions.get(number)
        if spec is None:
            raise _missing(model, version, number, versions)
        signature = self._signatures.get((model, number))
        if signature is None or signature.spec is not spec:
            signature = self._signatures[model, number] = Signature(spec)
        return signature


def _missing(model: str, asked: int | None, number: int, versions: Iterable[int]) -> ServingError:
    if asked is None:
        return UnavailableError(f"model {model!r}: its version {number} has no replica yet")
    return _unknown_version(model, number, versions)


def _unknown_version(model: str, number: int, versions: Iterable[int]) -> NotFoundError:
    known = ", ".join(str(version) for version in sorted(versions)) or "none at present"
    return NotFoundError(f"model {model!r} has no version {number}; it has {known}")


def _check_arm(request: InferRequest) -> None:
    if request.arm not in ARMS:
        raise InvalidArgumentError(f"x-understudy-version must be 'baseline' or 'candidate', got {request.arm!r}")
    if request.version is not None:
        raise InvalidArgumentError("x-understudy-version and a version in the URL exclude each other")


def _tensor_metadata(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


def _tensor_config(tensor: TensorSpec, batched: bool) -> dict[str, Any]:
    data_type = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
    return {"name": tensor.name, "data_type": data_type, "dims": list(tensor.shape[1:] if batched else tensor.shape)}
