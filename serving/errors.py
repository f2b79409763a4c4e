"""Errors of this package. ``serving.protocol.errors`` maps them to HTTP and gRPC status codes."""

from models.errors import UnderstudyError


class ServingError(UnderstudyError):
    """Something about serving a request or running the service."""


class ConfigError(ServingError):
    """A configuration that is wrong; names file, field and what was expected."""


class LaunchError(ServingError):
    """A service that cannot start: a port in use, a placement that cannot fit."""


class InvalidArgumentError(ServingError):
    """A request that is wrong in itself."""


class NotFoundError(ServingError):
    """An unknown model or version."""


class PayloadTooLargeError(ServingError):
    """A body over the limit."""


class UnsupportedMediaTypeError(ServingError):
    """An encoding that is not spoken here."""


class UnsupportedError(ServingError):
    """A feature of the protocol that is not offered."""


class UnavailableError(ServingError):
    """No room or no replica at present: the client may try again."""


class DeadlineError(ServingError):
    """No answer within the request's deadline."""


class ModelFailedError(ServingError):
    """The model raised; carries its message, never a traceback."""


class MalformedMessageError(ServingError):
    """What came over a connection between router and replica is no message of theirs: the connection is let go of."""
