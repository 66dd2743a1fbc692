"""``POST /workspaces/:id/a2a``: authorizes the sender and stores the message as a row."""

import asyncio
import base64
import hashlib
import uuid
from typing import Any

import attrs
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal, parse, raw_json_response, read_body, to_json
from molecule_connect_sandbox.rows import Row
from molecule_connect_sandbox.store import Workspace

DENIED = "access denied: workspaces cannot communicate per hierarchy rules"
NO_CONTENT = "params.message must contain either 'parts' (v0.3) or 'content' (v0.2 compat)"
NO_CONTENT_HINT = 'v0.3 example: {"parts":[{"kind":"text","text":"..."}]}'
BAD_CONTENT = "invalid params.message.content type"
BAD_CONTENT_HINT = "content must be a string (v0.2 compat) or omitted in favour of parts (v0.3)"


@attrs.frozen(kw_only=True)
class Envelope:
    """A normalized message; ``body`` is JSON text, or None if the database would reject it."""

    method: str
    message_id: str | None
    body: str | None


def canvas_context(workspace_id: str) -> str:
    """The context that 2026-08 assigns to messages of people; constant for a workspace."""
    digest = hashlib.sha256(f"canvas:{workspace_id}".encode()).digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _fill_parts(message: dict[str, Any]) -> None:
    if "parts" in message:
        return
    if "content" not in message:
        raise Refusal(400, NO_CONTENT, hint=NO_CONTENT_HINT)
    content = message.pop("content")
    if isinstance(content, str):
        message["parts"] = [{"kind": "text", "text": content}]
    elif isinstance(content, list):
        message["parts"] = content
    else:
        raise Refusal(400, BAD_CONTENT, hint=BAD_CONTENT_HINT)


def _rename_kinds(message: dict[str, Any]) -> None:
    parts = message.get("parts")
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, dict) and "type" in part:
            kind = part.pop("type")
            part.setdefault("kind", kind)


def storable(text: str) -> str | None:
    """JSON text that the database can store, or None if it contains U+0000."""
    return None if "\\u0000" in text and _has_nul(parse(text.encode())) else text


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(_has_nul(key) or _has_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(_has_nul(item) for item in value)


def normalize(body: Any, *, uniform: bool, canvas: str | None) -> Envelope:
    """Normalize a body as the proxy does.

    Args:
        canvas: The workspace in whose canvas a person wrote the message, on platforms that mark it.

    Raises:
        Refusal: The body isn't a message.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "invalid JSON")
    if "jsonrpc" not in body:
        body = {"jsonrpc": "2.0", "id": str(uuid.uuid4()), "method": body.get("method"), "params": body.get("params")}
    params = body.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    if isinstance(message, dict):
        message.setdefault("messageId", str(uuid.uuid4()))
        _fill_parts(message)
        if uniform:
            message.setdefault("role", "user")
            _rename_kinds(message)
        if canvas is not None and isinstance(params, dict):
            message.setdefault("contextId", canvas_context(canvas))
            known = params.get("metadata")
            about = {"source": "canvas_user", "user_identity_status": "UNAUTHENTICATED"}
            params["metadata"] = {**(known if isinstance(known, dict) else {}), **about}
    method, message_id = body.get("method"), message.get("messageId") if isinstance(message, dict) else None
    return Envelope(
        method=method if isinstance(method, str) else "",
        message_id=message_id if isinstance(message_id, str) else None,
        body=storable(to_json(body)),
    )


class Proxy:
    """Accepts messages for workspaces in poll mode."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._platform = platform
        self._auth = auth

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        return [
            Route("/workspaces/{id}/a2a", self.post, methods=["POST"]),
            Route("/workspaces/{id}/a2a/queue/{queue_id}", self.queue_item, methods=["GET"]),
        ]

    async def post(self, request: Request) -> Response:
        """Queue a message."""
        target_id: str = request.path_params["id"]
        caller = self._auth.caller(request, target_id)
        generation = self._platform.generation
        if caller is not None and not self._auth.may_talk(caller, target_id):
            raise Refusal(403, DENIED)
        raw, more = await read_body(request, generation.a2a_cap)
        if more and not generation.a2a_cut:
            raise Refusal(413, "request body too large", truncated=True, max_bytes=generation.a2a_cap)
        try:
            body = parse(raw)
        except ValueError as exc:
            raise Refusal(400, "invalid JSON") from exc
        return raw_json_response(self.deliver(target_id, caller, body))

    def deliver(self, target_id: str, caller: str | None, body: Any) -> str:
        """Queue a parsed body for *target_id* and return the response as JSON text.

        Raises:
            Refusal: The workspace doesn't exist or isn't reachable.
        """
        platform = self._platform
        target = platform.store.workspace(target_id)
        if target is None:
            raise Refusal(404, "workspace not found")
        canvas = target_id if caller is None and not platform.generation.anonymous_people else None
        envelope = normalize(body, uniform=platform.generation.uniform_parts, canvas=canvas)
        if target.delivery_mode != "poll":
            raise _unreachable(target)
        self.queue(target, caller, envelope)
        return to_json({"delivery_mode": "poll", "method": envelope.method, "status": "queued"})

    def queue(self, target: Workspace, caller: str | None, envelope: Envelope) -> str | None:
        """Store a message for a workspace in poll mode and return its row id, or None if no row is written."""
        platform = self._platform
        if envelope.body is None:
            return None
        row = Row(
            workspace_id=target.id,
            source_id=caller,
            target_id=target.id,
            method=envelope.method,
            summary=f"{envelope.method} → {target.name} ({platform.generation.summary_suffix})",
            request_body=envelope.body,
            message_id=envelope.message_id,
            late=True,
        )
        if not platform.generation.stored_before_answer:
            asyncio.get_running_loop().call_soon(lambda: platform.log(row, then=platform.publish_activity))
        elif envelope.message_id and platform.rows.has_message(target.id, envelope.message_id):
            platform.publish_activity(row)
            return None
        else:
            platform.log(row, then=platform.publish_activity)
        return row.id

    async def queue_item(self, request: Request) -> Response:
        """Always 404: the queue holds pushed messages, and the sandbox doesn't push."""
        extra = {"retryable": True} if self._platform.generation.stored_before_answer else {}
        raise Refusal(404, "queue item not found", **extra)


def _unreachable(target: Workspace) -> Refusal:
    if not target.url:
        return Refusal(503, "workspace has no URL", status=target.status)
    return Refusal(502, "failed to reach workspace agent")
