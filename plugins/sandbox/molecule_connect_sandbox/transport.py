"""An httpx transport to an ASGI application in this process, with streaming responses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
from starlette.types import ASGIApp, Message, Scope

CLIENT = ("127.0.0.1", 123)


class _Exchange:
    """A request and its response."""

    def __init__(self) -> None:
        self.responses: asyncio.Queue[Message | Exception] = asyncio.Queue()
        self.disconnected = asyncio.Event()
        self._requests: list[Message] = []

    def set_body(self, body: bytes) -> None:
        self._requests = [{"type": "http.request", "body": body, "more_body": False}]

    def abort(self) -> None:
        """Cut the connection, as the server can."""
        self.responses.put_nowait(httpx.ReadError("the connection was cut"))
        self.disconnected.set()

    async def receive(self) -> Message:
        if self._requests:
            return self._requests.pop()
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if not self.disconnected.is_set():
            self.responses.put_nowait(message)

    async def next(self, timeout: float | None) -> Message:
        """The next message of the response. Raises errors of the application, and ``ReadError`` for a cut."""
        try:
            async with asyncio.timeout(timeout):
                message = await self.responses.get()
        except TimeoutError as exc:
            raise httpx.ReadTimeout("the response timed out") from exc
        if isinstance(message, Exception):
            raise message
        return message


class _Body(httpx.AsyncByteStream):
    def __init__(self, exchange: _Exchange, task: "asyncio.Task[None]", timeout: float | None) -> None:
        self._exchange = exchange
        self._task = task
        self._timeout = timeout

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self._exchange.next(self._timeout)
            more = message.get("more_body", False)
            if message.get("body"):
                yield message["body"]

    async def aclose(self) -> None:
        self._exchange.disconnected.set()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class StreamingTransport(httpx.AsyncBaseTransport):
    """Sends requests to *app* without a socket. Responses stream, so event streams work.

    Exceptions of the application are raised in the client.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = _Exchange()
        exchange.set_body(await request.aread())
        task = asyncio.create_task(self._run(exchange, _scope(request, exchange)))
        timeout = _read_timeout(request)
        try:
            head = await exchange.next(timeout)
        except BaseException:
            exchange.disconnected.set()
            task.cancel()
            raise
        return httpx.Response(head["status"], headers=head["headers"], stream=_Body(exchange, task, timeout))

    async def _run(self, exchange: _Exchange, scope: Scope) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception as exc:  # raised in the client
            exchange.responses.put_nowait(exc)
        else:
            # A client that waits for more must not hang.
            exchange.responses.put_nowait(httpx.RemoteProtocolError("the response ended early"))


def _read_timeout(request: httpx.Request) -> float | None:
    seconds: float | None = request.extensions.get("timeout", {}).get("read")
    return seconds


def _scope(request: httpx.Request, exchange: _Exchange) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": CLIENT,
        "server": (request.url.host, request.url.port or 80),
        "state": {"abort": exchange.abort},
    }
