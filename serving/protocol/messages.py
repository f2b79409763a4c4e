"""A request and its response, independent of the transport."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models.tensor import Tensor
from serving.stages import Timing


@dataclass(slots=True, kw_only=True)
class InferRequest:
    """A decoded request. ``inputs`` are views into the received body.

    ``id`` is the client's ("" if it gave none); ``request_id`` ours: the client's id if there is one, else a unique
    one. ``key`` routes (sequence_id, header x-understudy-key, else ``request_id``). ``arm`` is a header override
    ("baseline" or "candidate"); it and ``version`` pin the request, which is then evidence for nothing.
    """

    model: str
    version: int | None = None
    id: str = ""
    request_id: str = ""
    key: str = ""
    arm: str | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeout_s: float | None = None
    timing: Timing | None = None


@dataclass(slots=True, kw_only=True)
class RequestedOutput:
    """One output that the client asked for by name.

    ``binary`` is None where the client leaves the form to its request's ``binary_data_output``. ``classification``
    is the number of classes asked for, 0 for the tensor itself.
    """

    name: str
    binary: bool | None = None
    classification: int = 0


@dataclass(slots=True, kw_only=True)
class InferResponse:
    """What the model answered: every declared output by name; the data plane picks those that were asked for."""

    model: str
    version: int
    outputs: Mapping[str, Tensor]
