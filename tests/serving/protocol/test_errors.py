import json

import pytest

from models.errors import BackendError, UnderstudyError
from serving import errors
from serving.protocol.errors import HTTP_STATUS, error_body, http_status


def test_every_error_of_a_request_has_a_status_of_its_own() -> None:
    internal = {errors.ServingError, errors.ConfigError, errors.LaunchError, errors.MalformedMessageError}
    declared = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, UnderstudyError)}
    assert declared - internal <= HTTP_STATUS.keys()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidArgumentError("x"), 400),
        (errors.NotFoundError("x"), 404),
        (errors.PayloadTooLargeError("x"), 413),
        (errors.UnsupportedMediaTypeError("x"), 415),
        (errors.ModelFailedError("x"), 500),
        (errors.UnsupportedError("x"), 501),
        (errors.UnavailableError("x"), 503),
        (errors.DeadlineError("x"), 504),
        (BackendError("x"), 500),
    ],
)
def test_statuses_are_those_of_the_protocol(error: UnderstudyError, status: int) -> None:
    assert http_status(error) == status


def test_a_subclass_has_the_status_of_its_nearest_ancestor() -> None:
    class QueueFullError(errors.UnavailableError):
        pass

    assert http_status(QueueFullError("x")) == 503


def test_a_message_with_a_lone_surrogate_still_makes_json() -> None:
    assert json.loads(error_body("file \udcff")) == {"error": "file \\udcff"}


def test_a_message_is_cut_at_a_bound() -> None:
    assert len(json.loads(error_body("x" * 10_000_000))["error"]) == 2049
