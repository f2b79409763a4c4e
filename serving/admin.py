"""The admin door: control and labels over HTTP, with OpenAPI at ``/docs``. The only way to steer a rollout."""

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from models.errors import UnderstudyError
from rollout.errors import RolloutError
from serving.operations import Operations, Start

_MAX_LABELS = 10_000
Text = Annotated[str, Field(max_length=500)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StartBody(_Body):
    """A rollout to begin."""

    model: str
    candidate: int = Field(ge=1)
    policy: str | None = None
    stages: tuple[int, ...] | None = None
    supersede: bool = False
    actor: Text = "operator"
    notes: Annotated[tuple[Text, ...], Field(max_length=10)] = ()


class ActionBody(_Body):
    """Who acts, and why; ``to`` is promote's weight in percent."""

    actor: Text = "operator"
    reason: Text = ""
    to: int | None = Field(default=None, ge=0, le=100)


class LabelBody(_Body):
    """The true class of one item of a request."""

    request_id: str = Field(min_length=1, max_length=1000)
    item: int = Field(default=0, ge=0)
    label: int = Field(ge=0)


class LabelsBody(_Body):
    """Late ground truth; for the active rollout, or else the last, if none is named by its id."""

    rollout: Annotated[str, Field(max_length=200)] | None = None
    labels: list[LabelBody] = Field(max_length=_MAX_LABELS)


def create_app(operations: Operations, *, token: str | None) -> FastAPI:
    """The door; with a token every call must bring it as ``Authorization: Bearer``. Errors are ``{"error": "…"}``."""
    app = FastAPI(title="Understudy admin", version="1", redoc_url=None)
    if token is not None:
        _guard(app, token)
    for kind, handler in _REFUSALS.items():
        app.add_exception_handler(kind, handler)

    @app.get("/models")
    def models() -> dict[str, Any]:
        return operations.models()

    @app.get("/processes")
    def processes() -> dict[str, Any]:
        return operations.processes()

    @app.post("/rollouts")
    def start(body: StartBody) -> dict[str, Any]:
        return operations.start(Start(**body.model_dump()))

    @app.get("/rollouts/{model}")
    def status(model: str) -> dict[str, Any]:
        return operations.status(model)

    @app.post("/rollouts/{model}/{action}")
    def act(model: str, action: str, body: ActionBody) -> dict[str, Any]:
        return operations.act(model, action, actor=body.actor, reason=body.reason, to=body.to)

    @app.post("/labels/{model}")
    def add_labels(model: str, body: LabelsBody) -> dict[str, Any]:
        return operations.add_labels(model, [label.model_dump() for label in body.labels], rollout=body.rollout)

    return app


def _guard(app: FastAPI, token: str) -> None:
    @app.middleware("http")
    async def guard(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not secrets.compare_digest(given.encode(), token.encode()):
            return JSONResponse({"error": "a bearer token is needed"}, status_code=401)
        return await call(request)


def _refuse(_: Request, error: Exception) -> Response:
    conflict = isinstance(error, RolloutError) and "is active" in str(error)
    return JSONResponse({"error": str(error)}, status_code=409 if conflict else 400)


def _refuse_body(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
    return JSONResponse({"error": f"{where}: {first['msg']}"}, status_code=422)


def _refuse_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse({"error": what}, status_code=error.status_code, headers=error.headers)


def _apologise(_: Request, error: Exception) -> Response:
    """For a fault of ours, which uvicorn logs."""
    return JSONResponse({"error": f"internal error: {type(error).__name__}"}, status_code=500)


_REFUSALS: Final[Mapping[type[Exception], Callable[[Request, Exception], Response]]] = {
    UnderstudyError: _refuse,
    RequestValidationError: _refuse_body,
    HTTPException: _refuse_path,
    Exception: _apologise,
}
