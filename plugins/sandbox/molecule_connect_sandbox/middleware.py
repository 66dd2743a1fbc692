"""ASGI middleware: host and origin checks, organization, rate limit, faults, request counts."""

import re
from email.utils import formatdate

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from molecule_connect_sandbox.fault_effects import REPLACING, SPOILING, replace_response, spoil_response
from molecule_connect_sandbox.hosts import reject_foreign
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.ratelimit import RateLimit
from molecule_connect_sandbox.responses import json_response

OPEN_TO_ALL = ("/health", "/buildinfo", "/registry/register", "/registry/heartbeat")
# Endpoints that the real platform doesn't have.
OWN = ("/sandbox/", "/_sandbox/")
_ID = re.compile(r"/[0-9a-fA-F]{8}-[0-9a-fA-F-]{27}")


class SandboxMiddleware:
    """Checks and counts requests. For the page and under ``/sandbox/``, only the host and origin are checked."""

    def __init__(self, app: ASGIApp, platform: Platform) -> None:
        self._app = app
        self._platform = platform
        options = platform.options
        self._limit = RateLimit(options.rate_limit, options.now, by_token=platform.generation.keyed_by_token)
        self._date = (0, b"")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = reject_foreign(Headers(scope=scope))
        if refused is not None:
            await refused(scope, receive, send)
            return
        if scope["path"].startswith(OWN) or scope["path"] == "/":
            await self._app(scope, receive, send)
            return
        headers, wait = self._limit.take(scope)
        headers.append((b"date", self._today()))
        key = (scope["method"], _ID.sub("/:id", scope["path"]))

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                # Title case: some clients compare header names case-sensitively.
                message["headers"] = [(name.title(), value) for name, value in (*message["headers"], *headers)]
                self._platform.requests[(*key, message["status"])] += 1
            await send(message)

        refusal = _over(wait) if wait else self._outside(scope)
        if refusal is not None:
            await refusal(scope, receive, send_marked)
        elif self._platform.faults:
            await self._through_faults(key, scope, receive, send_marked)
        else:
            await self._app(scope, receive, send_marked)

    async def _through_faults(self, key: tuple[str, str], scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        faults = self._platform.faults
        has_origin = any(name == b"origin" for name, _ in scope["headers"])
        wanted = tuple(name for name in REPLACING if name != "origin-required" or not has_origin)
        fault = faults.strike(*wanted, path=path, method=method)
        if fault is not None:
            if fault.kind.name == "cut-before":
                self._platform.requests[(*key, 0)] += 1
            await replace_response(fault, scope, receive, send)
            return
        streaming = path.endswith("/events/stream")
        fault = None if streaming else faults.strike(*SPOILING, path=path, method=method)
        if fault is None:
            await self._app(scope, receive, send)
            return
        if fault.kind.name == "cut-after":
            self._platform.requests[(*key, 0)] += 1
        await spoil_response(fault, self._app, scope, receive, send)

    def _today(self) -> bytes:
        second = int(self._platform.options.now())
        if self._date[0] != second:
            self._date = (second, formatdate(second, usegmt=True).encode())
        return self._date[1]

    def _outside(self, scope: Scope) -> Response | None:
        """The error for a request without the right organization, else None."""
        org, path = self._platform.options.org_id, scope["path"]
        if org is None or path in OPEN_TO_ALL:
            return None
        named = Headers(scope=scope).get("x-molecule-org-id")
        if named == org:
            return None
        if named is not None or self._platform.generation.anonymous_people:
            return Response(status_code=404)
        missing = {
            "error": "missing tenant routing header",
            "code": "TENANT_ORG_HEADER_REQUIRED",
            "required_header": "X-Molecule-Org-Id",
        }
        return json_response(missing, 400)


def _over(wait: int) -> Response:
    response = json_response({"error": "rate limit exceeded", "retry_after": wait}, 429)
    response.headers["retry-after"] = str(wait)
    return response
