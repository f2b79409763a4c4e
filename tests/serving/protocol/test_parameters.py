from typing import Any

import pytest

from serving.errors import InvalidArgumentError, UnsupportedError
from serving.protocol.parameters import check_request_parameters, check_tensor_parameters


def test_scalars_and_well_typed_reserved_parameters_pass() -> None:
    check_request_parameters({"a": 1, "b": -0.5, "c": "x", "d": True})
    check_request_parameters({"sequence_id": 2**63, "sequence_start": True, "sequence_end": False, "priority": 0})
    check_request_parameters({"sequence_id": "s", "timeout": 5, "binary_data_output": False})
    check_tensor_parameters("t", {"note": "x", "triton_like": 1})


@pytest.mark.parametrize("value", [None, [], {}, [1]])
def test_values_that_are_no_scalars_are_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="'x'"):
        check_request_parameters({"x": value})
    with pytest.raises(InvalidArgumentError, match="'x'"):
        check_tensor_parameters("t", {"x": value})


def test_shared_memory_is_unsupported() -> None:
    with pytest.raises(UnsupportedError, match="'t': shared memory"):
        check_tensor_parameters("t", {"shared_memory_region": "r"})
