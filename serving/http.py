"""The protocol over HTTP: an ASGI callable that parses, delegates to the data plane and encodes; and its server."""

import asyncio
import logging
import re
import socket
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import quote, unquote

import orjson
import uvicorn

from models.errors import UnderstudyError
from serving.dataplane import DataPlane
from serving.errors import (
    InvalidArgumentError,
    LaunchError,
    NotFoundError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedError,
)
from serving.protocol import compression
from serving.protocol.binary import EncodedInfer, decode_infer, encode_infer
from serving.protocol.errors import error_body, http_status
from serving.protocol.json_data import parse
from serving.protocol.messages import InferRequest
from serving.telemetry import log_event

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = Mapping[bytes, bytes]

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
# Below these sizes the work costs less than handing it to a thread; a byte can decompress to a thousand.
_OFFLOAD_COMPRESS_BYTES: Final = 64 * 1024
_OFFLOAD_DECOMPRESS_BYTES: Final = 4 * 1024
_HEADER_LENGTH: Final = b"inference-header-content-length"
_JSON: Final = (b"content-type", b"application/json")
_OCTETS: Final = (b"content-type", b"application/octet-stream")
_PLAIN_ID: Final = re.compile(r"[!-$&-~]*")  # visible ASCII but %, which starts an escape
_VERSION: Final = re.compile(r"[0-9]{1,18}")
_NOT_OFFERED: Final = frozenset({"systemsharedmemory", "cudasharedmemory", "trace", "logging"})

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Reply:
    """A response before its framing."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)


@dataclass(slots=True)
class Call:
    """One HTTP request on its way. ``request_id`` becomes the client's id once that is known."""

    method: str
    headers: Headers
    receive: Receive
    request_id: str


class _ClientGoneError(Exception):
    """The client left before its request was complete: there is nobody to answer."""


class _WrongMethodError(Exception):
    """A known path with another method; carries the one it takes."""


class HttpApp:
    """The protocol's routes as an ASGI callable; whatever happens, the client gets the protocol's JSON."""

    def __init__(self, plane: DataPlane, *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._plane = plane
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request (ASGI 3)."""
        call = Call(scope["method"], dict(scope["headers"]), receive, self._plane.new_request_id())
        try:
            reply = await self._guarded(scope["raw_path"], call)
        except _ClientGoneError:
            return
        headers = [
            *reply.headers,
            (b"content-length", b"%d" % len(reply.body)),
            (b"x-understudy-request-id", _header_safe(call.request_id)),
        ]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _guarded(self, raw_path: bytes, call: Call) -> Reply:
        try:
            return await self._route(_segments(raw_path), call)
        except UnderstudyError as error:
            return Reply(error_body(str(error)), http_status(error))
        except _WrongMethodError as error:
            allowed = str(error)
            return Reply(error_body(f"use {allowed} here"), 405, (_JSON, (b"allow", allowed.encode())))
        except _ClientGoneError:
            raise
        except Exception:  # noqa: BLE001 - the transport's edge: one request's surprise stays that request's
            log_event(logger, "internal error", logging.ERROR, exc_info=True, request_id=call.request_id)
            return Reply(error_body("internal error"), 500)

    async def _route(self, segments: list[str], call: Call) -> Reply:
        match segments:
            case ["v2", "models", model, "infer"]:
                return await self._infer(model, None, call)
            case ["v2", "models", model, "versions", version, "infer"]:
                return await self._infer(model, _version(version), call)
            case ["v2", "models", "stats"]:
                raise UnsupportedError("stats are not offered")
            case ["v2", "models", _, *_]:
                return self._model(segments[2], segments[3:], call)
            case ["v2", "repository", *rest]:
                return await self._repository(rest, call)
            case ["v2", *rest]:
                return self._server(rest, call)
        raise NotFoundError("unknown path; the protocol's begin with /v2")

    def _server(self, rest: list[str], call: Call) -> Reply:
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

    def _model(self, model: str, rest: list[str], call: Call) -> Reply:
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
            case ["stats"] | ["trace", "setting"]:
                raise UnsupportedError(f"{rest[0]} of a model is not offered")
        raise NotFoundError(f"unknown path below model {model!r}: {'/'.join(rest)}")

    async def _repository(self, rest: list[str], call: Call) -> Reply:
        match rest:
            case ["index"]:
                _expect(call, "POST")
                return await self._index(call)
            case ["models", _, ("load" | "unload") as action]:
                _expect(call, "POST")
                raise UnsupportedError(f"{action} is not offered here: a rollout loads and unloads versions")
        raise NotFoundError(f"unknown path /v2/repository/{'/'.join(rest)}")

    async def _index(self, call: Call) -> Reply:
        body = await self._body(call)
        wish = parse(memoryview(body)) if body else {}
        if type(wish) is not dict or not isinstance(wish.get("ready", False), bool | None):
            raise InvalidArgumentError("a repository index request must be an object; 'ready' a boolean")
        entries = [entry for entry in self._plane.repository_index() if entry.ready or not wish.get("ready")]
        return _json(
            [
                {
                    "name": entry.name,
                    "version": str(entry.version),
                    "state": "READY" if entry.ready else "UNAVAILABLE",
                    **({} if entry.ready else {"reason": "no replica can answer"}),
                }
                for entry in entries
            ]
        )

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
        self, model: str, version: int | None, body: bytes, header_length: int | None, call: Call
    ) -> EncodedInfer:
        decoded = decode_infer(model, version, body, header_length)
        request = decoded.request
        if request.id:
            call.request_id = request.id
        _apply_headers(request, call)
        response = await self._plane.infer(request, decoded.outputs)
        return encode_infer(
            response, client_id=request.id, requested=decoded.outputs, binary_default=decoded.binary_default
        )

    async def _infer_raw(self, model: str, version: int | None, body: bytes, call: Call) -> EncodedInfer:
        request = InferRequest(model=model, version=version)
        _apply_headers(request, call)
        response = await self._plane.infer_raw(request, memoryview(body))
        return encode_infer(response, client_id="", requested=(), binary_default=True)

    async def _body(self, call: Call) -> bytes:
        """The whole body, decompressed; at no time more than the limit of it."""
        limit = self._max_body_bytes
        encoding = call.headers.get(b"content-encoding", b"identity").decode("latin-1").lower()
        if encoding != "identity":
            compression.check_encoding(encoding)
        declared = call.headers.get(b"content-length")
        if declared is not None and int(declared) > limit:
            raise _too_large(limit)
        body = await _read(call.receive, limit)
        if encoding == "identity":
            return body
        if len(body) < _OFFLOAD_DECOMPRESS_BYTES:
            return compression.decompress(body, encoding, limit)
        return await asyncio.to_thread(compression.decompress, body, encoding, limit)


async def _read(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _ClientGoneError
        chunk = message["body"]
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message["more_body"]:
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body is over the limit of {limit} bytes")


async def _infer_reply(encoded: EncodedInfer, accept_encoding: bytes | None) -> Reply:
    if encoded.header_length is None:
        headers: tuple[tuple[bytes, bytes], ...] = (_JSON,)
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


def _segments(raw_path: bytes) -> list[str]:
    """A path's segments, each percent-decoded on its own: an encoded slash is part of a name."""
    path = raw_path.decode("latin-1")
    segments = path.split("/")[1:]
    return [unquote(segment) for segment in segments] if "%" in path else segments


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
    if (key := call.headers.get(b"x-understudy-key")) is not None:
        request.key = key.decode("latin-1")
    if (arm := call.headers.get(b"x-understudy-version")) is not None:
        request.arm = arm.decode("latin-1")


def _header_safe(request_id: str) -> bytes:
    """An id as a header's value: percent-encoded wherever it is not visible ASCII."""
    if _PLAIN_ID.fullmatch(request_id):
        return request_id.encode()
    return quote(request_id, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}~").encode()


def _json(document: Any) -> Reply:
    return Reply(orjson.dumps(document))


def bind(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """A socket bound to ``host`` and ``port`` (0: any free one), not yet listening.

    ``reuse_port`` lets several processes listen on one port; the kernel spreads the connections over them.

    Raises:
        LaunchError: the address is in use, not of this machine, or not permitted; names it.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise LaunchError(f"cannot bind {host}:{port}: {error.strerror}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise LaunchError(f"cannot bind {host}:{port}: {error.strerror}") from None
    return sock


class HttpServer:
    """uvicorn on a bound socket, inside an event loop that already runs. ``keep_alive_s`` bounds idle connections."""

    def __init__(self, app: HttpApp, sock: socket.socket, *, backlog: int = 2048, keep_alive_s: int = 75) -> None:
        self._socket = sock
        self._config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            backlog=backlog,
            timeout_keep_alive=keep_alive_s,
        )
        self._server = uvicorn.Server(self._config)

    async def start(self) -> None:
        """Listen; requests are answered from here on.

        Raises:
            LaunchError: someone else began to listen on the same address since it was bound.
        """
        self._config.load()
        self._server.lifespan = self._config.lifespan_class(self._config)
        try:
            await self._server.startup(sockets=[self._socket])
        except OSError as error:
            self._socket.close()
            raise LaunchError(f"cannot listen on {self._socket}: {error.strerror}") from None

    async def stop(self, grace_s: float) -> None:
        """Accept no more, let requests under way finish for up to ``grace_s``, then cancel them."""
        self._config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]  # it waits for any float
        await self._server.shutdown(sockets=[self._socket])
        if left := list(self._server.server_state.tasks):
            await asyncio.wait(left, timeout=1.0)
