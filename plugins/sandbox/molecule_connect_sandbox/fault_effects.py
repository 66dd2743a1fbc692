"""The effects of faults on requests and responses."""

import asyncio
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from molecule_connect_sandbox.faults import Fault
from molecule_connect_sandbox.responses import GONE, json_response

PIECES = 10
HTML = "<!doctype html><html><head><title>Sign in</title></head><body>Sign in to the network</body></html>"
# In order of precedence: faults that prevent the effect of a request apply first.
REPLACING = (
    "cut-before",
    "origin-required",
    "rate-limited",
    "unavailable",
    "status",
    "bare-status",
    "html",
    "rpc-error",
)
SPOILING = (
    "cut-after",
    "cut-short",
    "empty-answers",
    "accepted",
    "delivery-confirmed",
    "slow-answers",
    "slow-bodies",
)
TEXTS = {
    400: "invalid request body",
    401: "invalid workspace auth token",
    402: "workspace budget limit exceeded",
    403: "access denied: workspaces cannot communicate per hierarchy rules",
    404: "workspace not found",
    410: GONE,
    413: "request body too large",
    500: "internal error",
    502: "failed to reach workspace agent",
}


def replacement(fault: Fault) -> Response:
    """The response that replaces handling the request."""
    name = fault.kind.name
    if name == "html":
        return Response(HTML, media_type="text/html")
    if name == "rpc-error":
        return json_response({"jsonrpc": "2.0", "id": None, "error": {"code": -32603, "message": "agent failed"}})
    if name == "origin-required":
        return Response(status_code=404)
    if name == "bare-status":
        return Response(status_code=fault.number)
    if name == "status":
        return json_response({"error": TEXTS.get(fault.number, "sandbox fault")}, fault.number)
    after = max(1, round(fault.seconds))
    limited = name == "rate-limited"
    reply: dict[str, Any] = {
        "error": "rate limit exceeded" if limited else "workspace is restarting",
        "retry_after": after,
    }
    if not limited:
        reply["restarting"] = True
    response = json_response(reply, 429 if limited else 503)
    response.headers["retry-after"] = str(after)
    return response


class Recorder:
    """Collects a response instead of sending it."""

    def __init__(self) -> None:
        self.start: Message = {"type": "http.response.start", "status": 500, "headers": []}
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
        else:
            self.body += message.get("body", b"")


async def cut(scope: Scope, receive: Receive) -> None:
    """Cut the connection and wait until the server notices."""
    scope["state"]["abort"]()
    while (await receive())["type"] != "http.disconnect":
        pass


async def replace_response(fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
    """Respond without handling the request."""
    if fault.kind.name == "cut-before":
        await cut(scope, receive)
    else:
        await replacement(fault)(scope, receive, send)


async def spoil_response(fault: Fault, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Handle the request, then spoil the response. Error responses are sent unchanged."""
    recorder, name = Recorder(), fault.kind.name
    await app(scope, receive, recorder)
    if name == "cut-after":
        await cut(scope, receive)
    elif name == "cut-short":
        await send(recorder.start)
        await send({"type": "http.response.body", "body": recorder.body[: len(recorder.body) // 2], "more_body": True})
        await cut(scope, receive)
    elif recorder.start["status"] >= 400 or name.startswith("slow"):
        await _slowly(fault, recorder, send)
    else:
        await _done(name)(scope, receive, send)


def _done(name: str) -> Response:
    if name == "accepted":
        return json_response({"queued": True, "queue_id": "", "queue_depth": 1, "message": "agent is busy"}, 202)
    if name == "delivery-confirmed":
        return json_response({"error": TEXTS[502], "delivery_confirmed": True}, 502)
    return Response(status_code=200)


async def _slowly(fault: Fault, recorder: Recorder, send: Send) -> None:
    if fault.kind.name == "slow-answers":
        await asyncio.sleep(fault.seconds)
    await send(recorder.start)
    if fault.kind.name == "slow-bodies":
        step = len(recorder.body) // PIECES + 1
        for start in range(0, len(recorder.body), step):
            await asyncio.sleep(fault.seconds / PIECES)
            piece = recorder.body[start : start + step]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        recorder.body = b""
    await send({"type": "http.response.body", "body": recorder.body, "more_body": False})
