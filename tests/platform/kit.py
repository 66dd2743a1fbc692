"""What the platform's tests share: rows, a scripted platform, and a raw server for what no fake can do."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from molecule_connect.platform.workspace_client import WorkspaceClient

API = "https://platform.example"
# For localhost, signed by ca.pem and valid until 2120. The keys in the files are no secrets.
CERTIFICATES = Path(__file__).parent / "certificates"
TOKEN = "token-of-ws-1"

Respond = Callable[[httpx.Request], httpx.Response]
Connect = Callable[..., WorkspaceClient]


def row(row_id: Any = "r1", **fields: Any) -> dict[str, Any]:
    """A row as the platform of August writes it; a field given as None is null, and ``...`` is left out."""
    whole = {
        "id": row_id,
        "workspace_id": "ws-1",
        "activity_type": "a2a_receive",
        "source_id": "peer-1",
        "target_id": "ws-1",
        "method": "message/send",
        "summary": "message/send → laptop (ingest)",
        "duration_ms": None,
        "status": "ok",
        "error_detail": None,
        "created_at": "2026-08-14T09:12:33.104518Z",
        "seq": 90311,
    } | fields
    return {name: value for name, value in whole.items() if value is not ...}


def envelope(*parts: Any, message: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
    """A ``message/send`` of *parts*."""
    base = {"role": "user", "messageId": "m1", "parts": list(parts)}
    return {
        "jsonrpc": "2.0",
        "id": "u1",
        "method": "message/send",
        "params": {"message": base | (message or {}), **params},
    }


class Script:
    """Answers requests in turn, the last one for ever, and keeps what was asked."""

    def __init__(self, *responses: httpx.Response | Respond) -> None:
        self.requests: list[httpx.Request] = []
        self._responses = list(responses)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = self._responses.pop(0) if len(self._responses) > 1 else self._responses[0]
        if callable(response):
            return response(request)
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)

    @property
    def last_json(self) -> Any:
        return json.loads(self.requests[-1].content)


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def raw_server(talk: Talk, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A TCP server that does with each connection what *talk* says; gives its http address, or https on localhost."""
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"{'https://localhost' if tls else 'http://127.0.0.1'}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """The next request on a connection: its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
    return head + body


def http(body: bytes = b"{}", status: str = "200 OK", *, length: int | None = None) -> bytes:
    """A whole HTTP answer; *length* is a Content-Length that may lie."""
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n".encode() + body
