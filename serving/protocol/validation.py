"""A request held against one version's signature."""

import math
from collections.abc import Collection, Iterable
from typing import Final

from models.spec import ModelSpec, TensorSpec
from models.tensor import NUMPY_DTYPES, Tensor
from serving.errors import InvalidArgumentError
from serving.protocol.binary import check_wire
from serving.protocol.messages import InferRequest, RequestedOutput

_BF16_BYTES: Final = 2
_LENGTH_BYTES: Final = 4


class Signature:
    """What one version takes and gives, prepared so that checking a good request costs microseconds."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self._max_batch_size = spec.max_batch_size
        self._inputs = {tensor.name: (tensor.datatype, tensor.shape) for tensor in spec.inputs}
        self._outputs = frozenset(tensor.name for tensor in spec.outputs)

    def check(self, request: InferRequest, requested: Iterable[RequestedOutput]) -> None:
        """Check a request's inputs, batch and requested outputs.

        Raises:
            InvalidArgumentError: names the tensor, the model, what was expected and what came.
        """
        inputs = request.inputs
        if inputs.keys() != self._inputs.keys():
            raise self._wrong_names(inputs)
        for name, tensor in inputs.items():
            datatype, shape = self._inputs[name]
            if tensor.datatype != datatype or not _fits(tensor.shape, shape):
                raise self._wrong_tensor(tensor)
        if self._max_batch_size:
            self._check_batch(inputs.values())
        for output in requested:
            if output.name not in self._outputs:
                raise InvalidArgumentError(
                    f"model {self.spec.name!r} has no output {output.name!r}; it has {_listed(self._outputs)}"
                )

    def _check_batch(self, tensors: Collection[Tensor]) -> None:
        size = next(iter(tensors)).shape[0]
        if len(tensors) > 1 and len(sizes := {tensor.shape[0] for tensor in tensors}) > 1:
            raise InvalidArgumentError(f"model {self.spec.name!r}: the inputs differ in batch size: {sorted(sizes)}")
        if not 1 <= size <= self._max_batch_size:
            raise InvalidArgumentError(
                f"model {self.spec.name!r}: expected a batch of 1 to {self._max_batch_size}, got {size}"
            )

    def _wrong_tensor(self, tensor: Tensor) -> InvalidArgumentError:
        datatype, shape = self._inputs[tensor.name]
        return InvalidArgumentError(
            f"input {tensor.name!r} of model {self.spec.name!r}: expected {datatype} of shape {list(shape)} "
            f"(-1 is any size), got {tensor.datatype} of shape {list(tensor.shape)}"
        )

    def _wrong_names(self, given: Iterable[str]) -> InvalidArgumentError:
        problems = [
            f"{kind} {_listed(names)}"
            for kind, names in (
                ("unknown", set(given) - self._inputs.keys()),
                ("missing", self._inputs.keys() - set(given)),
            )
            if names
        ]
        return InvalidArgumentError(f"inputs of model {self.spec.name!r}: {'; '.join(problems)}")

    def raw_input(self, body: memoryview) -> Tensor:
        """A body that is the bytes of the model's only input and nothing else, as a batch of one.

        A variable dimension follows from the body's size, so there may be but one. BYTES are one element, sent
        without its length.

        Raises:
            InvalidArgumentError: more inputs or variable dimensions than one, or a size that fits no shape.
        """
        if len(self.spec.inputs) != 1:
            raise InvalidArgumentError(
                f"model {self.spec.name!r} has {len(self.spec.inputs)} inputs: a raw body (header length 0) needs one"
            )
        declared = self.spec.inputs[0]
        if declared.datatype == "BYTES":
            shape = self._raw_shape(declared, 1)
            wire = memoryview(len(body).to_bytes(_LENGTH_BYTES, "little") + bytes(body))
        else:
            width = NUMPY_DTYPES[declared.datatype].itemsize if declared.datatype != "BF16" else _BF16_BYTES
            shape = self._raw_shape(declared, len(body) // width)
            wire = body
        check_wire(declared.name, declared.datatype, shape, math.prod(shape), wire)
        return Tensor(declared.name, declared.datatype, shape, wire)

    def _raw_shape(self, declared: TensorSpec, elements: int) -> tuple[int, ...]:
        """The declared shape with a batch of one, and its variable dimension such that it holds ``elements``."""
        batched = self.spec.max_batch_size > 0
        shape = (1, *declared.shape[1:]) if batched else declared.shape
        if shape.count(-1) > 1:
            raise InvalidArgumentError(
                f"input {declared.name!r} of model {self.spec.name!r}: a raw body (header length 0) cannot say "
                f"which of the variable dimensions of {list(declared.shape)} is how large"
            )
        fixed = math.prod(dim for dim in shape if dim != -1)
        variable = elements // fixed if fixed else 0
        return tuple(variable if dim == -1 else dim for dim in shape)


def _fits(shape: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """Whether a shape agrees with a declared one, in which −1 is any size."""
    if shape[1:] == declared[1:] and shape and declared and declared[0] in (-1, shape[0]):
        return True  # the usual case: nothing is variable but the batch
    if len(shape) != len(declared):
        return False
    for dim, want in zip(shape, declared, strict=True):  # noqa: SIM110 - a generator costs twice the time
        if dim != want != -1:
            return False
    return True


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
