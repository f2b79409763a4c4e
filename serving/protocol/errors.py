"""The one place where an error becomes a status code and a body."""

from collections.abc import Mapping
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
_MAX_MESSAGE_CHARS: Final = 2048  # a message may quote names, which a client can make as long as its body


def http_status(error: UnderstudyError) -> int:
    """The status of the nearest class in the error's ancestry that the table lists."""
    return next(HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS)


def error_body(message: str) -> bytes:
    """The protocol's JSON for an error.

    A message of more than 2048 characters is cut; a lone surrogate, which UTF-8 cannot hold, is shown as its escape.
    """
    if len(message) > _MAX_MESSAGE_CHARS:
        message = f"{message[:_MAX_MESSAGE_CHARS]}…"
    return orjson.dumps({"error": message.encode(errors="backslashreplace").decode()})
