"""Delegations: tasks that one workspace gives to another."""

import asyncio
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.a2a import Proxy
from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.clock import to_rfc3339
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal, json_response, read_object, to_json
from molecule_connect_sandbox.rows import Row
from molecule_connect_sandbox.store import is_uuid

LISTED, PREVIEW = 50, 300


class Delegations:
    """The delegation endpoints.

    A delegation to a workspace in poll mode is completed as soon as the message is queued.
    """

    def __init__(self, platform: Platform, auth: Auth, proxy: Proxy) -> None:
        self._platform = platform
        self._auth = auth
        self._proxy = proxy

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        return [
            Route("/workspaces/{id}/delegate", self.delegate, methods=["POST"]),
            Route("/workspaces/{id}/delegations", self.list, methods=["GET"]),
            Route("/workspaces/{id}/delegations/record", self.record, methods=["POST"]),
            Route("/workspaces/{id}/delegations/{delegation_id}/update", self.update, methods=["POST"]),
        ]

    async def delegate(self, request: Request) -> Response:
        """Send a task to another workspace."""
        source = self._auth.workspace(request)
        body = await read_object(request, "invalid delegation request")
        target, task, key = body.get("target_id"), body.get("task"), body.get("idempotency_key")
        if not isinstance(target, str) or not target or not isinstance(task, str) or not task:
            raise Refusal(400, "invalid delegation request")
        if not is_uuid(target):
            raise Refusal(400, "target_id must be a valid UUID")
        if target == source:
            raise Refusal(400, "self-delegation not permitted")
        known = self._with_key(source, key) if isinstance(key, str) and key else None
        if known is not None:
            return json_response({**known, "idempotent_hit": True})
        delegation_id = str(uuid.uuid4())
        self._add(delegation_id, source, target, task, status="pending", key=key)
        self._platform.events.publish(source, "DELEGATION_SENT", {"delegation_id": delegation_id, "target_id": target})
        self._platform.spawn(self._run(delegation_id, source, target, task))
        return json_response({"delegation_id": delegation_id, "status": "delegated", "target_id": target}, 202)

    def _with_key(self, source: str, key: str) -> dict[str, Any] | None:
        """The delegation with this key. A failed one is deleted, so that it can be retried."""
        db = self._platform.store.db
        db.execute(
            "DELETE FROM delegations WHERE workspace_id = ? AND idempotency_key = ? AND status = 'failed'",
            (source, key),
        )
        row = db.execute(
            "SELECT id, status, target_id FROM delegations WHERE workspace_id = ? AND idempotency_key = ?",
            (source, key),
        ).fetchone()
        return None if row is None else {"delegation_id": row[0], "status": row[1], "target_id": row[2]}

    def _add(self, delegation_id: str, source: str, target: str, task: str, *, status: str, key: Any = None) -> None:
        summary = f"Delegating to {target}: {task[:80]}"
        self._platform.store.db.execute(
            "INSERT INTO delegations VALUES (?, ?, ?, ?, ?, ?, NULL, NULL, ?)",
            (delegation_id, source, target, summary, status, key or None, self._platform.now()),
        )
        body = to_json({"task": task, "delegation_id": delegation_id})
        self._platform.log(
            Row(
                workspace_id=source,
                activity_type="delegation",
                source_id=source,
                target_id=target,
                method="delegate",
                summary=summary,
                status=status,
                request_body=body,
            )
        )

    async def _run(self, delegation_id: str, source: str, target: str, task: str) -> None:
        kind = "kind" if self._platform.generation.uniform_parts else "type"
        message = {
            "role": "user",
            "messageId": delegation_id,
            "parts": [{kind: "text", "text": task}],
            "metadata": {"delegation_id": delegation_id},
        }
        for wait in (self._platform.options.retry_delegation_after, None):
            try:
                if not self._auth.may_talk(source, target):
                    raise Refusal(403, "access denied")
                body = {"method": "message/send", "params": {"message": dict(message)}}
                queued = self._proxy.deliver(target, source, body)
            except Refusal as exc:
                if wait is None:
                    self._end(source, delegation_id, "failed", error=str(exc))
                else:
                    await asyncio.sleep(wait)
            else:
                self._end(source, delegation_id, "completed", preview=queued)
                return

    def _end(
        self, source: str, delegation_id: str, status: str, *, error: str | None = None, preview: str | None = None
    ) -> None:
        self._platform.store.db.execute(
            "UPDATE delegations SET status = ?, error = ?, response_preview = ? WHERE id = ? AND workspace_id = ?",
            (status, error, preview, delegation_id, source),
        )
        event = "DELEGATION_COMPLETE" if status == "completed" else "DELEGATION_FAILED"
        self._platform.events.publish(source, event, {"delegation_id": delegation_id, "status": status})
        self._platform.changes.notify()

    async def list(self, request: Request) -> Response:
        """List the newest delegations of a workspace."""
        workspace_id = self._auth.workspace(request)
        rows = self._platform.store.db.execute(
            "SELECT id, target_id, summary, status, error, response_preview, created_at FROM delegations "
            "WHERE workspace_id = ? ORDER BY created_at DESC, rowid DESC LIMIT ?",
            (workspace_id, LISTED),
        )
        return json_response([_entry(workspace_id, *row) for row in rows])

    async def record(self, request: Request) -> Response:
        """Record a delegation that was sent by other means."""
        source = self._auth.workspace(request)
        body = await read_object(request)
        target, task, delegation_id = (body.get(key) for key in ("target_id", "task", "delegation_id"))
        if not isinstance(task, str) or not isinstance(delegation_id, str) or not task or not delegation_id:
            raise Refusal(400, "invalid request body")
        if not isinstance(target, str) or not is_uuid(target):
            raise Refusal(400, "target_id must be a valid UUID")
        self._add(delegation_id, source, target, task, status="dispatched")
        return json_response({"delegation_id": delegation_id, "status": "recorded"}, 202)

    async def update(self, request: Request) -> Response:
        """Set the outcome of a delegation; an unknown id is ignored."""
        source, delegation_id = self._auth.workspace(request), request.path_params["delegation_id"]
        body = await read_object(request)
        status, error, preview = body.get("status"), body.get("error"), body.get("response_preview")
        if status not in ("completed", "failed"):
            raise Refusal(400, "status must be 'completed' or 'failed'")
        self._end(source, delegation_id, str(status), error=error, preview=preview)
        return json_response({"delegation_id": delegation_id, "status": status})


def _entry(
    source: str,
    delegation_id: str,
    target: str,
    summary: str,
    status: str,
    error: str | None,
    preview: str | None,
    created: int,
) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": delegation_id,
        "type": "delegation",
        "source_id": source,
        "target_id": target,
        "summary": summary,
        "status": status,
        "created_at": to_rfc3339(created),
        "delegation_id": delegation_id,
    }
    if error:
        entry["error"] = error
    if preview:
        entry["response_preview"] = preview[:PREVIEW]
    return entry
