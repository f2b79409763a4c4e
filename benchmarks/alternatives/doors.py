"""HTTP servers that read a body and answer 200 bytes, one process each: ``python -m benchmarks.alternatives.doors``."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

import uvloop

HOST: Final = "127.0.0.1"
ANSWER: Final = b"x" * 200


async def understudy(port: int) -> None:
    """The data plane's own protocol, httptools under it."""
    from serving.door import bind
    from serving.http_server import HttpRequest, HttpServer, Reply

    async def handle(request: HttpRequest) -> Reply:
        return Reply(ANSWER)

    await HttpServer(handle, bind(HOST, port)).start()
    await asyncio.Event().wait()


async def uvicorn(port: int) -> None:
    """A bare ASGI application on uvicorn with httptools."""
    import uvicorn as server

    async def app(scope: Any, receive: Any, send: Any) -> None:
        chunks, more = [], True
        while more:
            message = await receive()
            chunks.append(message["body"])
            more = message["more_body"]
        b"".join(chunks)
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(ANSWER))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    config = server.Config(
        app,
        host=HOST,
        port=port,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    await server.Server(config).serve()


async def granian(port: int) -> None:
    """A bare RSGI application on Granian, embedded in an event loop of ours as the router would have it."""
    from granian.constants import Interfaces
    from granian.server.embed import Server

    async def app(scope: Any, protocol: Any) -> None:
        await protocol()
        protocol.response_bytes(200, [("content-type", "application/json")], ANSWER)

    await Server(app, address=HOST, port=port, interface=Interfaces.RSGI, log_enabled=False, log_access=False).serve()


async def aiohttp(port: int) -> None:
    """A bare handler on aiohttp's low-level server."""
    from aiohttp import web

    async def handle(request: Any) -> Any:
        await request.read()
        return web.Response(body=ANSWER, content_type="application/json")

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, HOST, port).start()
    await asyncio.Event().wait()


DOORS: Final[Mapping[str, Callable[[int], Coroutine[Any, Any, None]]]] = {
    each.__name__: each for each in (understudy, uvicorn, granian, aiohttp)
}

if __name__ == "__main__":
    from serving.process import keep_freed_memory

    keep_freed_memory()
    uvloop.run(DOORS[sys.argv[1]](int(sys.argv[2])))
