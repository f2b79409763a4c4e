"""Two of Triton's messages, encoded by hand: MLServer's own packages do not have them."""

from typing import Any, Final

_FP32: Final = 11  # TYPE_FP32 in Triton's model_config.proto


def varint(value: int) -> bytes:
    """An unsigned number as protobuf encodes it."""
    octets = bytearray()
    while value > 0x7F:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*octets, value])


def encode(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message of numbers, strings and messages: pairs of field number and value."""
    parts = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(varint(number << 3) + varint(value))
        else:
            content = value.encode() if isinstance(value, str) else value
            parts.append(varint(number << 3 | 2) + varint(len(content)) + content)
    return b"".join(parts)


def model_config(model: dict[str, Any]) -> bytes:
    """A ModelConfigResponse for a model of FP32 tensors; dimensions without the batch's."""
    (given,), (returned,) = model["inputs"], model["outputs"]
    tensor = encode((1, given["name"]), (2, _FP32), *((4, size) for size in given["shape"][1:]))
    answer = encode((1, returned["name"]), (2, _FP32), *((3, size) for size in returned["shape"][1:]))
    return encode((1, encode((1, model["name"]), (4, model["max_batch_size"]), (5, tensor), (6, answer))))


def model_statistics(model: dict[str, Any]) -> bytes:
    """A ModelStatisticsResponse without a count."""
    durations = encode(*((number, encode((1, 0), (2, 0))) for number in range(1, 9)))
    statistics = encode((1, model["name"]), (2, model["parameters"]["version"]), (6, durations))
    return encode((1, statistics))
