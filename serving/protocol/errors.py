"""The one place where an error becomes a status code and a body."""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final

import orjson

from models.errors import UnderstudyError
from serving.errors import (
    DeadlineError,
    InvalidArgumentError,
    ModelFailedError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedError,
    UnsupportedMediaTypeError,
)


class Code(IntEnum):
    """gRPC's status codes, as far as they are given here."""

    OK = 0
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


HTTP_STATUS: Final[Mapping[type[UnderstudyError], int]] = {
    InvalidArgumentError: 400,
    NotFoundError: 404,
    PayloadTooLargeError: 413,
    UnsupportedMediaTypeError: 415,
    ModelFailedError: 500,
    UnsupportedError: 501,
    UnavailableError: 503,
    DeadlineError: 504,
    UnderstudyError: 500,
}
GRPC_STATUS: Final[Mapping[type[UnderstudyError], Code]] = {
    InvalidArgumentError: Code.INVALID_ARGUMENT,
    NotFoundError: Code.NOT_FOUND,
    PayloadTooLargeError: Code.RESOURCE_EXHAUSTED,
    UnsupportedMediaTypeError: Code.UNIMPLEMENTED,
    ModelFailedError: Code.INTERNAL,
    UnsupportedError: Code.UNIMPLEMENTED,
    UnavailableError: Code.UNAVAILABLE,
    DeadlineError: Code.DEADLINE_EXCEEDED,
    UnderstudyError: Code.INTERNAL,
}
# gRPC carries a message in a header, percent-encoded (three bytes for one), and clients bound their headers at 8 KiB.
_MAX_DETAILS_BYTES: Final = 2048
_MAX_MESSAGE_CHARS: Final = 2048  # a message may quote names, which a client can make as long as its body


def http_status(error: UnderstudyError) -> int:
    """The status of the nearest class in the error's ancestry that the table lists."""
    return next(HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS)


def grpc_status(error: UnderstudyError) -> Code:
    """The status of the nearest class in the error's ancestry that the table lists."""
    return next(GRPC_STATUS[kind] for kind in type(error).__mro__ if kind in GRPC_STATUS)


def error_details(message: str) -> str:
    """An error's message as gRPC's details: one of more than 2048 bytes is cut; see also ``error_body``."""
    encoded = message.encode(errors="backslashreplace")
    if len(encoded) > _MAX_DETAILS_BYTES:
        return f"{encoded[:_MAX_DETAILS_BYTES].decode(errors='ignore')}…"
    return encoded.decode()


def error_body(message: str) -> bytes:
    """The protocol's JSON for an error.

    A message of more than 2048 characters is cut; a lone surrogate, which UTF-8 cannot hold, is shown as its escape.
    """
    if len(message) > _MAX_MESSAGE_CHARS:
        message = f"{message[:_MAX_MESSAGE_CHARS]}…"
    return orjson.dumps({"error": message.encode(errors="backslashreplace").decode()})
