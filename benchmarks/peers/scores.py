"""Reading scores out of answers."""

import numpy as np
import orjson

from models.tensor import Array


def binary_scores(body: bytes) -> Array:
    """Those of the protocol's binary form: the only tensor follows the JSON header, which ends with its last brace."""
    return np.frombuffer(body[body.rindex(b"}]}") + 3 :], np.float32)


def json_scores(body: bytes) -> Array:
    """Those of the protocol's JSON form."""
    return np.array(orjson.loads(body)["outputs"][0]["data"], np.float32)


def raw_scores(body: bytes) -> Array:
    """A body of nothing but FP32 values."""
    return np.frombuffer(body, np.float32)
