"""The feed: read, report and acknowledge activity, and the event stream."""

import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.a2a import storable
from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.clock import from_rfc3339
from molecule_connect_sandbox.event_stream import EventStream
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import GONE, Refusal, json_response, raw_json_response, read_object, to_json
from molecule_connect_sandbox.rows import Row, Window
from molecule_connect_sandbox.store import is_uuid

LIMIT, MAX_LIMIT = 100, 500
MAX_SINCE_SECS = 30 * 24 * 3600
REPORTED = ("a2a_send", "a2a_receive", "task_update", "agent_log", "skill_promotion", "memory_write", "error")
_ROW_ID = re.compile(r'\{"id":"[^"]*"')
_WHOLE = re.compile(r"[+-]?\d{1,18}")


def _limit(text: str | None) -> int:
    if text is None or not _WHOLE.fullmatch(text) or int(text) <= 0:
        return LIMIT
    return min(int(text), MAX_LIMIT)


def _since_secs(text: str) -> int:
    if not _WHOLE.fullmatch(text) or int(text) < 1:
        raise Refusal(400, "since_secs must be a positive integer")
    return min(int(text), MAX_SINCE_SECS)


def _before(text: str) -> int:
    try:
        return from_rfc3339(text)
    except ValueError as exc:
        raise Refusal(400, "before_ts must be an RFC3339 timestamp (e.g. 2026-05-01T00:00:00Z)") from exc


class Feed:
    """The feed endpoints."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._platform = platform
        self._auth = auth

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        routes = [
            Route("/workspaces/{id}/activity", self.read, methods=["GET"]),
            Route("/workspaces/{id}/activity", self.report, methods=["POST"]),
            Route("/workspaces/{id}/events/stream", self.stream, methods=["GET"]),
        ]
        if self._platform.generation.seq:
            routes.append(Route("/workspaces/{id}/activity/ack", self.acknowledge, methods=["POST"]))
        return routes

    async def read(self, request: Request) -> Response:
        """Return a page of rows."""
        workspace_id = self._auth.workspace(request)
        query = request.query_params
        platform = self._platform
        window = self._window(workspace_id, dict(query))
        rows = platform.rows.read(workspace_id, window, platform.now())
        texts = [text for text, _ in rows]
        if platform.generation.seq and "peer_info" in query.get("include", "").split(","):
            base = f"{request.url.scheme}://{request.url.netloc}"
            texts = [self._with_peer(text, source, base) for text, source in rows]
        if platform.faults and platform.faults.strike("blank-ids", path=request.url.path, method="GET"):
            texts = [_ROW_ID.sub('{"id":""', text, count=1) for text in texts]
        return raw_json_response(f"[{','.join(texts)}]")

    def _window(self, workspace_id: str, query: dict[str, str]) -> Window:
        platform = self._platform
        source, peer, since = query.get("source"), query.get("peer_id"), query.get("since_secs")
        if source and source not in ("canvas", "agent"):
            raise Refusal(400, "source must be 'canvas' or 'agent'")
        if peer and not is_uuid(peer):
            raise Refusal(400, "peer_id must be a UUID")
        not_before = platform.now() - _since_secs(since) * 1_000_000 if since else None
        before = _before(query["before_ts"]) if query.get("before_ts") else None
        return Window(
            activity_type=query.get("type"),
            source=source,
            peer_id=peer,
            limit=_limit(query.get("limit")),
            not_before=not_before,
            before=before,
            after=self._cursor(workspace_id, query["since_id"]) if query.get("since_id") else None,
            tuple_order=platform.generation.seq,
        )

    def _cursor(self, workspace_id: str, row_id: str) -> tuple[int, int] | None:
        faults, path = self._platform.faults, f"/workspaces/{workspace_id}/activity"
        if not is_uuid(row_id):
            raise Refusal(500, "cursor lookup failed")
        if faults.strike("no-cursor", path=path, method="GET"):
            return None
        if faults.strike("prune", path=path, method="GET"):
            self._platform.rows.prune(workspace_id, row_id=row_id)
        found = self._platform.rows.cursor(workspace_id, row_id, self._platform.now())
        if found is None:
            raise Refusal(410, GONE)
        return found

    def _with_peer(self, text: str, source: str | None, base: str) -> str:
        more: dict[str, Any] = {}
        peer = self._platform.store.workspace(source) if source else None
        if peer is not None:
            more["peer_name"] = peer.name
            if peer.role:
                more["peer_role"] = peer.role
            more["agent_card_url"] = f"{base}/registry/discover/{peer.id}"
        attachments = _attachments(json.loads(text).get("request_body"))
        if attachments:
            more["attachments"] = attachments
        return f"{text[:-1]},{to_json(more)[1:]}" if more else text

    async def report(self, request: Request) -> Response:
        """Write a row to the workspace's own feed."""
        workspace_id = self._auth.workspace(request)
        body = await read_object(request)
        kind, source = body.get("activity_type"), body.get("source_id") or workspace_id
        if kind not in REPORTED:
            raise Refusal(400, f"invalid activity_type; must be one of: {', '.join(REPORTED)}")
        if source != workspace_id:
            raise Refusal(403, "source_id must match authenticated workspace")
        request_body, response_body = body.get("request_body", body.get("metadata")), body.get("response_body")
        texts = [None if value is None else storable(to_json(value)) for value in (request_body, response_body)]
        lost = any(
            value is not None and text is None for value, text in zip((request_body, response_body), texts, strict=True)
        )
        row = Row(
            workspace_id=workspace_id,
            activity_type=str(kind),
            source_id=source,
            target_id=body.get("target_id"),
            method=body.get("method"),
            summary=body.get("summary"),
            duration_ms=body.get("duration_ms"),
            status=body.get("status") or "ok",
            error_detail=body.get("error_detail"),
            request_body=texts[0],
            response_body=texts[1],
        )
        if not lost:
            self._platform.log(row, then=self._platform.publish_activity)
        return json_response({"status": "logged"})

    async def acknowledge(self, request: Request) -> Response:
        """Allow the rows up to a sequence number to be pruned early."""
        workspace_id = self._auth.workspace(request)
        body = await read_object(request)
        seq = body.get("acked_seq")
        if not isinstance(seq, int) or isinstance(seq, bool) or set(body) != {"acked_seq"}:
            raise Refusal(400, "acked_seq is required")
        if seq < 0:
            raise Refusal(400, "acked_seq must be >= 0")
        workspace = self._platform.store.workspace(workspace_id)
        highest = max(seq, workspace.acked_seq if workspace else 0)
        self._platform.store.change(workspace_id, acked_seq=highest)
        return json_response({"last_acked_seq": highest})

    async def stream(self, request: Request) -> EventStream:
        """Stream the events of a workspace until the client disconnects."""
        workspace_id = self._auth.workspace(request)
        if self._platform.store.workspace(workspace_id) is None:
            raise Refusal(404, "workspace not found")
        return EventStream(self._platform.events, self._platform.faults, workspace_id)


def _attachments(body: Any) -> list[dict[str, Any]]:
    if not isinstance(body, dict):
        return []
    if "file_id" in body and "uri" in body:
        named = {"kind": "file", "uri": body["uri"], "mime_type": body.get("mimeType"), "name": body.get("name")}
        return [{key: value for key, value in named.items() if value}]
    params = body.get("params")
    message = params.get("message") if isinstance(params, dict) else None
    parts = message.get("parts") if isinstance(message, dict) else None
    return [found for part in parts or () if isinstance(part, dict) and (found := _attachment(part))]


def _attachment(part: dict[str, Any]) -> dict[str, Any] | None:
    kind = part.get("kind") or part.get("type")
    if kind not in ("file", "image", "audio", "video"):
        return None
    file = part.get("file") if isinstance(part.get("file"), dict) else part
    # In messages, the platform reads only the snake-case key.
    found = {key: file[key] for key in ("uri", "mime_type", "name") if file and file.get(key)}
    return {"kind": kind, **found} if "uri" in found else None
