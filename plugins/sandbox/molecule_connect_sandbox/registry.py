"""The registry: registration, heartbeats, agent cards, peers."""

from collections import deque
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.auth import Auth, bearer
from molecule_connect_sandbox.platform import HEARTBEATS_KEPT, Platform
from molecule_connect_sandbox.responses import Refusal, json_response, read_object, to_json
from molecule_connect_sandbox.store import Workspace, is_uuid

DEGRADED_FROM, RECOVERED_BELOW = 0.5, 0.1
MODES = ("push", "poll")
MAX_SPEND = 1_000_000_000_000


def peer_entry(workspace: Workspace) -> dict[str, Any]:
    """A workspace as its peers see it."""
    return {
        "active_tasks": workspace.active_tasks,
        "agent_card": workspace.card,
        "id": workspace.id,
        "name": workspace.name,
        "parent_id": workspace.parent_id,
        "role": workspace.role,
        "status": workspace.status,
        "tier": workspace.tier,
        "url": workspace.url,
    }


def next_status(status: str, *, wedged: bool, state: str, error_rate: float, recoverable: frozenset[str]) -> str:
    """The status after a heartbeat."""
    if status in recoverable:
        status = "online"
    if status == "online" and (wedged or error_rate >= DEGRADED_FROM):
        return "degraded"
    if status == "degraded" and error_rate < RECOVERED_BELOW and not state:
        return "online"
    return status


class Registry:
    """The registry endpoints."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._platform = platform
        self._auth = auth

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        return [
            Route("/registry/heartbeat", self.heartbeat, methods=["POST"]),
            Route("/registry/register", self.register, methods=["POST"]),
            Route("/registry/update-card", self.update_card, methods=["POST"]),
            Route("/registry/check-access", self.check_access, methods=["POST"]),
            Route("/registry/discover/{id}", self.discover, methods=["GET"]),
            Route("/registry/{id}/peers", self.peers, methods=["GET"]),
        ]

    async def register(self, request: Request) -> Response:
        """Register a connector for a workspace. An unknown id creates the workspace."""
        body = await read_object(request)
        workspace_id, card, mode = body.get("id"), body.get("agent_card"), body.get("delivery_mode") or ""
        url = body.get("url") or ""
        if (
            not isinstance(workspace_id, str)
            or not workspace_id
            or not isinstance(card, dict)
            or not isinstance(url, str)
        ):
            raise Refusal(400, "invalid request body")
        if mode and mode not in MODES:
            raise Refusal(400, "delivery_mode must be 'push' or 'poll'")
        if not is_uuid(workspace_id):
            raise Refusal(500, "registration failed")
        self._auth.registry(request, workspace_id)
        known = self._platform.store.workspace(workspace_id)
        effective = mode or (known.delivery_mode if known else "push")
        if effective == "push" and not url:
            raise Refusal(400, "url is required for push-mode workspaces")
        return self._registered(workspace_id, known, effective, url, to_json(card))

    def _registered(self, workspace_id: str, known: Workspace | None, mode: str, url: str, card: str) -> Response:
        platform, store, now = self._platform, self._platform.store, self._platform.now()
        columns: dict[str, Any] = {"agent_card": card, "delivery_mode": mode, "url": url, "last_beat": now}
        if known is None:
            runtime = platform.generation.bare_runtime
            store.add_workspace(workspace_id, name=workspace_id, status="online", runtime=runtime, **columns)
        elif not known.removed:
            store.change(workspace_id, **columns)
        workspace = store.workspace(workspace_id)
        assert workspace is not None  # noqa: S101
        kept = {"removed"} if platform.generation.register_resumes else {"removed", "paused", "hibernated"}
        if workspace.status not in kept:
            platform.set_status(workspace, "online", "WORKSPACE_ONLINE")
        reply = {"delivery_mode": mode, "platform_inbound_secret": workspace.inbound_secret, "status": "registered"}
        kind = "instance" if platform.generation.keyed_by_token else None
        if not store.live_tokens(workspace_id, kind):
            reply["auth_token"] = store.add_token(workspace_id, "instance", now)
        return json_response(reply)

    async def heartbeat(self, request: Request) -> Response:
        """Accept a heartbeat. Missing fields count as zero."""
        body = await read_object(request)
        workspace_id = body.get("workspace_id")
        if not isinstance(workspace_id, str) or not workspace_id:
            raise Refusal(400, "invalid request body")
        heartbeat = _heartbeat_columns(body)
        self._auth.registry(request, workspace_id)
        platform = self._platform
        workspace = platform.store.workspace(workspace_id)
        reply: dict[str, Any] = {"status": "ok"}
        if workspace is not None:
            reply["platform_inbound_secret"] = workspace.inbound_secret
            if not workspace.removed:
                self._apply_heartbeat(workspace, heartbeat, body)
        if platform.generation.seq:
            reply["generation"] = 0
        return json_response(reply)

    def _apply_heartbeat(self, workspace: Workspace, heartbeat: dict[str, Any], body: dict[str, Any]) -> None:
        platform = self._platform
        spend = min(heartbeat.pop("monthly_spend"), MAX_SPEND) or workspace.monthly_spend
        state = heartbeat.pop("runtime_state")
        platform.store.change(workspace.id, last_beat=platform.now(), monthly_spend=spend, **heartbeat)
        platform.heartbeats.setdefault(workspace.id, deque(maxlen=HEARTBEATS_KEPT)).append(body)
        platform.changes.notify()
        platform.events.publish(workspace.id, "WORKSPACE_HEARTBEAT", {"runtime_state": state, **heartbeat})
        if heartbeat["current_task"] != workspace.current_task:
            task = {"current_task": heartbeat["current_task"], "active_tasks": heartbeat["active_tasks"]}
            platform.events.publish(workspace.id, "TASK_UPDATED", task)
        status = next_status(
            workspace.status,
            wedged=state == "wedged",
            state=state,
            error_rate=heartbeat["error_rate"],
            recoverable=platform.generation.recoverable,
        )
        if status != workspace.status:
            platform.set_status(workspace, status, f"WORKSPACE_{status.upper()}")

    async def update_card(self, request: Request) -> Response:
        """Replace the agent card."""
        body = await read_object(request)
        workspace_id, card = body.get("workspace_id"), body.get("agent_card")
        if not isinstance(workspace_id, str) or not workspace_id or not isinstance(card, dict):
            raise Refusal(400, "invalid request body")
        self._auth.registry(request, workspace_id)
        self._platform.store.change(workspace_id, agent_card=to_json(card))
        self._platform.events.publish(workspace_id, "AGENT_CARD_UPDATED", {"agent_card": card})
        return json_response({"status": "updated"})

    async def check_access(self, request: Request) -> Response:
        """Whether one workspace may write to another; requires no token."""
        body = await read_object(request)
        caller, target = body.get("caller_id"), body.get("target_id")
        if not isinstance(caller, str) or not isinstance(target, str) or not caller or not target:
            raise Refusal(400, "invalid request body")
        return json_response({"allowed": self._auth.may_talk(caller, target)})

    async def peers(self, request: Request) -> Response:
        """List the peers of a workspace: siblings, children, parent."""
        workspace_id: str = request.path_params["id"]
        self._auth.registry(request, workspace_id)
        store = self._platform.store
        me = store.workspace(workspace_id)
        if me is None or me.removed:
            raise Refusal(404, "workspace not found")
        # On 2026-05, the other roots are siblings of a root; on 2026-08, it has none.
        has_siblings = me.parent_id is not None or self._platform.generation.roots_are_peers
        found = store.workspaces(
            "status != 'removed' AND id != ? AND (? AND parent_id IS ? OR parent_id = ? OR id = ?)",
            *(me.id, has_siblings, me.parent_id, me.id, me.parent_id),
        )
        wanted = request.query_params.get("q", "").lower()
        return json_response([peer_entry(peer) for peer in found if wanted in f"{peer.name} {peer.role or ''}".lower()])

    async def discover(self, request: Request) -> Response:
        """The URL that a workspace registered."""
        caller, target_id = request.headers.get("x-workspace-id", ""), request.path_params["id"]
        if not caller:
            raise Refusal(400, "X-Workspace-ID header is required")
        token = bearer(request)
        if not token:
            raise Refusal(401, "missing workspace auth token")
        if self._platform.store.token_owner(token) != caller and not self._auth.is_admin(token):
            raise Refusal(401, "invalid workspace auth token")
        if not self._auth.may_talk(caller, target_id):
            raise Refusal(403, "not authorized to discover this workspace")
        target = self._platform.store.workspace(target_id)
        if target is None:
            raise Refusal(404, "workspace not found")
        if target.removed or not target.url:
            raise Refusal(503, "workspace not available", status=target.status)
        return json_response({"id": target.id, "url": target.url, "name": target.name})


def _heartbeat_columns(body: dict[str, Any]) -> dict[str, Any]:
    """The columns that a heartbeat updates."""
    shape: tuple[tuple[str, type, Any], ...] = (
        ("active_tasks", int, 0),
        ("current_task", str, ""),
        ("uptime_seconds", int, 0),
        ("error_rate", float, 0.0),
        ("sample_error", str, ""),
        ("monthly_spend", int, 0),
        ("runtime_state", str, ""),
    )
    columns = {}
    for name, kind, missing in shape:
        value = body.get(name)
        value = missing if value is None else value
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise Refusal(400, "invalid request body")
        columns[name] = value
    return columns
