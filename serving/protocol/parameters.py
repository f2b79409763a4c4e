"""Request parameters: which values are legal, and what the reserved ones must be."""

from collections.abc import Mapping
from typing import Any, Final

from serving.errors import InvalidArgumentError, UnsupportedError

_SCALARS: Final = frozenset({bool, int, float, str})
_RESERVED_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "sequence_id": (int, str),
    "sequence_start": (bool,),
    "sequence_end": (bool,),
    "priority": (int,),
    "timeout": (int,),
    "binary_data_output": (bool,),
}
_RESERVED_PREFIX: Final = "triton_"
_SHARED_MEMORY_PREFIX: Final = "shared_memory_"
_NAMES: Final[Mapping[type, str]] = {bool: "a boolean", int: "an integer", str: "a string"}


def check_request_parameters(parameters: Mapping[str, Any]) -> None:
    """Check a whole request's parameters.

    Raises:
        InvalidArgumentError: a value that is not a string, number or boolean, a reserved prefix, or a reserved
            parameter of the wrong type or below zero; names the parameter.
    """
    for key, value in parameters.items():
        check_scalar(key, value)
        if key.startswith(_RESERVED_PREFIX):
            raise InvalidArgumentError(f"parameter {key!r}: the prefix {_RESERVED_PREFIX!r} is reserved")
        allowed = _RESERVED_TYPES.get(key)
        if allowed is None:
            continue
        if type(value) not in allowed:
            expected = " or ".join(_NAMES[kind] for kind in allowed)
            raise InvalidArgumentError(f"parameter {key!r}: expected {expected}, got {value!r}")
        if type(value) is int and value < 0:
            raise InvalidArgumentError(f"parameter {key!r}: expected no less than 0, got {value}")


def check_tensor_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Check the parameters of the input or output called ``name``.

    Raises:
        InvalidArgumentError: a value that is not a string, number or boolean.
        UnsupportedError: shared memory.
    """
    for key, value in parameters.items():
        if key.startswith(_SHARED_MEMORY_PREFIX):
            raise UnsupportedError(f"tensor {name!r}: shared memory is not offered")
        check_scalar(key, value)


def check_scalar(key: str, value: Any) -> None:
    """Refuse a parameter whose value is an object, a list or null.

    Raises:
        InvalidArgumentError: names the parameter.
    """
    if type(value) not in _SCALARS:
        raise InvalidArgumentError(f"parameter {key!r}: expected a string, number or boolean")
