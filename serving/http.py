"""The protocol over HTTP: decodes a request, delegates to the data plane and encodes what comes back."""

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import unquote

import orjson

from models.errors import UnderstudyError
from models.tensor import Buffer
from serving.arena import Arena
from serving.dataplane import DataPlane
from serving.door import uncleared
from serving.errors import (
    InvalidArgumentError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedError,
)
from serving.http_server import JSON, Headers, HttpRequest, Reply
from serving.intake import Intake
from serving.protocol import compression
from serving.protocol.binary import DecodedInfer, EncodedInfer, LongWorkError, decode_infer, encode_infer
from serving.protocol.errors import error_body, http_status
from serving.protocol.headers import ARM, KEY, REQUEST_ID, header_safe
from serving.protocol.json_data import parse
from serving.protocol.messages import InferRequest
from serving.stages import Timing
from serving.telemetry import log_event

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
MAX_JSON_BYTES: Final = 16 * 1024 * 1024
_OFFLOAD_COMPRESS_BYTES: Final = 64 * 1024  # below, the work costs less than handing it to a thread
_HEADER_LENGTH: Final = b"inference-header-content-length"
_KEY, _ARM, _REQUEST_ID = KEY.encode(), ARM.encode(), REQUEST_ID.encode()
_OCTETS: Final = (b"content-type", b"application/octet-stream")
_LONG_TARGET_BYTES: Final = 512  # what nobody asks for again and again, and is not worth remembering
_VERSION: Final = re.compile(r"[0-9]{1,18}")
_NOT_OFFERED: Final = frozenset({"systemsharedmemory", "cudasharedmemory", "trace", "logging"})

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Call:
    """One HTTP request on its way. ``request_id`` becomes the client's id once that is known.

    ``held`` is how many bytes of its body count at the intake, ``inflated`` how many of what that decompressed to.
    """

    method: str
    headers: Headers
    body: Buffer
    request_id: str
    received: float
    held: int = 0
    inflated: int = 0


class _WrongMethodError(Exception):
    """A known path with another method; carries the one it takes."""


class HttpApp:
    """The protocol's routes; whatever happens, the client gets the protocol's JSON."""

    def __init__(
        self,
        plane: DataPlane,
        *,
        max_body_bytes: int = MAX_BODY_BYTES,
        max_json_bytes: int = MAX_JSON_BYTES,
        arena: Arena | None = None,
        intake: Intake | None = None,
    ) -> None:
        self._plane, self._arena = plane, arena
        self._max_body_bytes, self._max_json_bytes = max_body_bytes, max_json_bytes
        self._intake = intake or Intake(16 * max_body_bytes)
        self._long_work = asyncio.Lock()  # threads that parse take turns anyway, and each takes some memory

    def allocate(self, size: int, headers: Headers) -> memoryview:
        """Where a body shall be received: in the arena if it is worth it, with its first tensor aligned."""
        lead = headers.get(_HEADER_LENGTH, b"")
        block = (
            self._arena.allocate(size, int(lead) if lead.isdigit() and len(lead) < 12 else 0)
            if self._arena is not None
            else None
        )
        return uncleared(size, headers) if block is None else block

    async def __call__(self, request: HttpRequest) -> Reply:
        """Answer one request."""
        call = Call(
            request.method,
            request.headers,
            request.body,
            self._plane.new_request_id(),
            request.received,
            held=request.held,
        )
        try:
            reply = await self._guarded(request.target, call)
        finally:
            self._intake.release(call.inflated)
        reply.headers = (*reply.headers, (_REQUEST_ID, header_safe(call.request_id).encode()))
        return reply

    async def _guarded(self, target: bytes, call: Call) -> Reply:
        try:
            return await self._route(_segments(target), call)
        except UnderstudyError as error:
            return Reply(error_body(str(error)), http_status(error))
        except _WrongMethodError as error:
            allowed = str(error)
            return Reply(error_body(f"use {allowed} here"), 405, (JSON, (b"allow", allowed.encode())))
        except Exception:  # noqa: BLE001 - the transport's edge: one request's surprise stays that request's
            log_event(logger, "internal error", logging.ERROR, exc_info=True, request_id=call.request_id)
            return Reply(error_body("internal error"), 500)

    async def _route(self, segments: Sequence[str], call: Call) -> Reply:
        match segments:
            case ["v2", "models", model, "infer"]:
                return await self._infer(model, None, call)
            case ["v2", "models", model, "versions", version, "infer"]:
                return await self._infer(model, _version(version), call)
            case ["v2", "models", "stats"]:
                _expect(call, "GET")
                return _json({"model_stats": self._plane.model_statistics()})
            case ["v2", "models", _, *_]:
                return self._model(segments[2], segments[3:], call)
            case ["v2", "repository", *rest]:
                return await self._repository(rest, call)
            case ["v2", *rest]:
                return self._server(rest, call)
        raise NotFoundError("unknown path; the protocol's begin with /v2")

    def _server(self, rest: Sequence[str], call: Call) -> Reply:
        match rest:
            case []:
                _expect(call, "GET")
                return _json(self._plane.server_metadata())
            case ["health", "live"]:
                _expect(call, "GET")
                return _json({"live": self._plane.live()})
            case ["health", "ready"]:
                _expect(call, "GET")
                if not self._plane.ready():
                    raise UnavailableError("the server is not ready: a model has no replica that can answer")
                return _json({"ready": True})
        if rest[0] in _NOT_OFFERED:
            raise UnsupportedError(f"{rest[0]} is not offered")
        raise NotFoundError(f"unknown path /v2/{'/'.join(rest)}")

    def _model(self, model: str, rest: Sequence[str], call: Call) -> Reply:
        version = None
        if len(rest) > 1 and rest[0] == "versions":
            version, rest = _version(rest[1]), rest[2:]
        match rest:
            case []:
                _expect(call, "GET")
                return _json(self._plane.model_metadata(model, version))
            case ["config"]:
                _expect(call, "GET")
                return _json(self._plane.model_config(model, version))
            case ["ready"]:
                _expect(call, "GET")
                if not self._plane.model_ready(model, version):
                    raise InvalidArgumentError(f"model {model!r} is unknown or not ready")
                return _json({"name": model, "ready": True})
            case ["stats"]:
                _expect(call, "GET")
                return _json({"model_stats": self._plane.model_statistics(model, version)})
            case ["trace", "setting"]:
                raise UnsupportedError("trace of a model is not offered")
        raise NotFoundError(f"unknown path below model {model!r}: {'/'.join(rest)}")

    async def _repository(self, rest: Sequence[str], call: Call) -> Reply:
        match rest:
            case ["index"]:
                _expect(call, "POST")
                return await self._index(call)
            case ["models", model, "load"]:
                _expect(call, "POST")
                if (await self._object(call, "load")).get("parameters"):
                    raise UnsupportedError("load takes no parameters here: rollouts load and unload versions")
                self._plane.load(model)
                return Reply(b"")
            case ["models", model, "unload"]:
                _expect(call, "POST")
                self._plane.unload(model)
        raise NotFoundError(f"unknown path /v2/repository/{'/'.join(rest)}")

    async def _index(self, call: Call) -> Reply:
        wish = await self._object(call, "index")
        if not isinstance(wish.get("ready", False), bool | None):
            raise InvalidArgumentError("a repository index request must be an object; 'ready' a boolean")
        return _json([entry.to_json() for entry in self._plane.repository_index(ready=bool(wish.get("ready")))])

    async def _object(self, call: Call, what: str) -> dict[str, Any]:
        """A request's body as a JSON object; an empty body is an empty one."""
        body = await self._body(call)
        self._check_json(len(body))
        value = parse(memoryview(body)) if body else {}
        if type(value) is not dict:
            raise InvalidArgumentError(f"a repository {what} request must be an object")
        return value

    async def _infer(self, model: str, version: int | None, call: Call) -> Reply:
        _expect(call, "POST")
        body = await self._body(call)
        header_length = _header_length(call.headers, len(body))
        if header_length == 0:
            encoded = await self._infer_raw(model, version, body, call)
        else:
            encoded = await self._infer_decoded(model, version, body, header_length, call)
        return await _infer_reply(encoded, call.headers.get(b"accept-encoding"))

    async def _infer_decoded(
        self, model: str, version: int | None, body: Buffer, header_length: int | None, call: Call
    ) -> EncodedInfer:
        decoded = await self._decode(model, version, body, header_length)
        request = decoded.request
        if request.id:
            call.request_id = request.id
        _apply_headers(request, call)
        response = await self._plane.infer(request, decoded.outputs)
        encode = partial(
            encode_infer,
            response,
            client_id=request.id,
            requested=decoded.outputs,
            binary_default=decoded.binary_default,
        )
        try:
            encoded = encode(patient=False)
        except LongWorkError:
            async with self._long_work:
                encoded = await asyncio.to_thread(encode)
        self._plane.answered(request, response)
        return encoded

    async def _decode(self, model: str, version: int | None, body: Buffer, header_length: int | None) -> DecodedInfer:
        self._check_json(len(body) if header_length is None else header_length)
        try:
            return decode_infer(model, version, body, header_length, patient=False)
        except LongWorkError:
            async with self._long_work:
                return await asyncio.to_thread(decode_infer, model, version, body, header_length)

    def _check_json(self, size: int) -> None:
        if size > self._max_json_bytes:
            raise PayloadTooLargeError(
                f"the request's JSON of {size} bytes is over the limit of {self._max_json_bytes} bytes;"
                " send its tensors as binary data"
            )

    async def _infer_raw(self, model: str, version: int | None, body: Buffer, call: Call) -> EncodedInfer:
        request = InferRequest(model=model, version=version)
        _apply_headers(request, call)
        response = await self._plane.infer_raw(request, memoryview(body))
        encoded = encode_infer(response, client_id="", requested=(), binary_default=True)
        self._plane.answered(request, response)
        return encoded

    async def _body(self, call: Call) -> Buffer:
        """The body, decompressed: never to more than the limit of a plain one."""
        encoding = call.headers.get(b"content-encoding")
        if encoding is None or encoding.lower() == b"identity":
            return call.body
        name = encoding.decode("latin-1").lower()
        compression.check_encoding(name)
        body, call.inflated = await self._intake.decompress(call.body, name, self._max_body_bytes, held=call.held)
        return body


async def _infer_reply(encoded: EncodedInfer, accept_encoding: bytes | None) -> Reply:
    if encoded.header_length is None:
        headers: tuple[tuple[bytes, bytes], ...] = (JSON,)
    else:
        headers = (_OCTETS, (_HEADER_LENGTH, b"%d" % encoded.header_length))
    # tritonclient's http.aio always accepts "gzip, deflate, br" yet cannot read it: only one name alone is meant.
    wish = (accept_encoding or b"").decode("latin-1")
    if wish not in compression.ENCODINGS:
        return Reply(encoded.body, 200, headers)
    if len(encoded.body) < _OFFLOAD_COMPRESS_BYTES:
        body = compression.compress(encoded.body, wish)
    else:
        body = await asyncio.to_thread(compression.compress, encoded.body, wish)
    return Reply(body, 200, (*headers, (b"content-encoding", wish.encode())))


def _segments(target: bytes) -> tuple[str, ...]:
    """A path's segments, each percent-decoded on its own: an encoded slash is part of a name."""
    return _remembered_segments(target) if len(target) < _LONG_TARGET_BYTES else _read_segments(target)


def _read_segments(target: bytes) -> tuple[str, ...]:
    path = target.partition(b"?")[0].decode("latin-1")
    if not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]  # the absolute form, as proxies send it
    segments = path.split("/")[1:]
    return tuple(unquote(segment) for segment in segments) if "%" in path else tuple(segments)


_remembered_segments: Final = lru_cache(maxsize=1024)(_read_segments)


def _version(text: str) -> int:
    if _VERSION.fullmatch(text) is None:
        raise NotFoundError(f"no version {text!r}: versions are integers")
    return int(text)


def _expect(call: Call, method: str) -> None:
    if call.method != method:
        raise _WrongMethodError(method)


def _header_length(headers: Headers, body_bytes: int) -> int | None:
    raw = headers.get(_HEADER_LENGTH)
    if raw is None:
        return None
    if not raw.isdigit() or len(raw) > len(str(body_bytes)) or int(raw) > body_bytes:
        raise InvalidArgumentError(
            f"Inference-Header-Content-Length must be 0 to the body's {body_bytes} bytes, got {raw.decode('latin-1')!r}"
        )
    return int(raw)


def _apply_headers(request: InferRequest, call: Call) -> None:
    request.request_id = call.request_id
    request.timing = Timing(call.received)
    if (key := call.headers.get(_KEY)) is not None:
        request.key = key.decode("latin-1")
    if (arm := call.headers.get(_ARM)) is not None:
        request.arm = arm.decode("latin-1")


def _json(document: Any) -> Reply:
    return Reply(orjson.dumps(document))
