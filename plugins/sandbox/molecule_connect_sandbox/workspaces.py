"""Workspaces: create, move, pause and delete them; their state and secrets."""

import uuid

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.clock import to_rfc3339
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.registry import MODES, peer_entry
from molecule_connect_sandbox.responses import Refusal, json_response, read_object
from molecule_connect_sandbox.store import Workspace, is_uuid
from molecule_connect_sandbox.tokens import connection


class Workspaces:
    """The workspace endpoints."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._platform = platform
        self._auth = auth

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        one = "/workspaces/{id}"
        return [
            Route("/workspaces", self.create, methods=["POST"]),
            Route(one, self.card, methods=["GET"]),
            Route(one, self.patch, methods=["PATCH"]),
            Route(one, self.delete, methods=["DELETE"]),
            Route(f"{one}/state", self.state, methods=["GET"]),
            Route(f"{one}/secrets/values", self.secrets, methods=["GET"]),
            Route(f"{one}/pause", self.pause, methods=["POST"]),
            Route(f"{one}/resume", self.resume, methods=["POST"]),
        ]

    def _existing(self, workspace_id: str) -> Workspace:
        workspace = self._platform.store.workspace(workspace_id)
        if workspace is None or workspace.removed:
            raise Refusal(404, "workspace not found")
        return workspace

    async def create(self, request: Request) -> Response:
        """Create a workspace."""
        self._auth.admin(request)
        body = await read_object(request, "invalid workspace payload")
        name, parent = body.get("name"), body.get("parent_id")
        mode, url = body.get("delivery_mode") or "push", body.get("url") or ""
        if not isinstance(name, str) or not name:
            raise Refusal(400, "invalid workspace payload")
        if mode not in MODES:
            raise Refusal(400, "delivery_mode must be 'push' or 'poll'")
        if parent is not None and not is_uuid(parent):
            raise Refusal(400, "invalid workspace payload")
        workspace_id, platform = str(uuid.uuid4()), self._platform
        platform.store.add_workspace(
            workspace_id,
            name=self._free_name(name),
            role=body.get("role"),
            tier=body.get("tier") or 1,
            parent_id=parent,
            status="online" if url else "awaiting_agent",
            runtime="external" if body.get("external") else body.get("runtime") or platform.generation.bare_runtime,
            delivery_mode=mode,
            url=url,
        )
        if url:
            return json_response({"external": True, "id": workspace_id, "status": "online"}, 201)
        token = platform.store.add_token(workspace_id, "instance", platform.now())
        made = {"connection": connection(request, workspace_id, token), "external": True, "id": workspace_id}
        return json_response({**made, "status": "awaiting_agent"}, 201)

    def _free_name(self, name: str) -> str:
        if not self._platform.generation.deletes_by_name:
            return name
        taken = {workspace.name for workspace in self._platform.store.workspaces("status != 'removed'")}
        free, number = name, 1
        while free in taken:
            number += 1
            free = f"{name} ({number})"
        return free

    async def card(self, request: Request) -> Response:
        """Return the public view of a workspace, or 410 if it was deleted."""
        workspace_id = request.path_params["id"]
        if not is_uuid(workspace_id):
            raise Refusal(400, "invalid workspace ID")
        workspace = self._platform.store.workspace(workspace_id)
        if workspace is None:
            raise Refusal(404, "workspace not found")
        if workspace.removed and request.query_params.get("include_removed") != "true":
            raise Refusal(
                410,
                "workspace removed",
                id=workspace.id,
                removed_at=to_rfc3339(workspace.removed_at or 0),
                hint=self._platform.generation.removed_hint,
            )
        more = {
            "runtime": workspace.runtime,
            "delivery_mode": workspace.delivery_mode,
            "current_task": workspace.current_task,
            "last_error_rate": workspace.error_rate,
            "last_sample_error": workspace.sample_error,
            "uptime_seconds": workspace.uptime_seconds,
            "monthly_spend": workspace.monthly_spend,
        }
        return json_response({**peer_entry(workspace), **more})

    async def patch(self, request: Request) -> Response:
        """Rename a workspace, or move it below another."""
        self._auth.admin(request)
        body = await read_object(request)
        workspace = self._existing(request.path_params["id"])
        parent = body.get("parent_id", workspace.parent_id)
        if parent is not None and self._platform.store.workspace(parent) is None:
            raise Refusal(400, "invalid request body")
        columns = {key: body[key] for key in ("name", "role", "tier") if key in body}
        self._platform.store.change(workspace.id, parent_id=parent, **columns)
        return json_response({"status": "updated"})

    async def delete(self, request: Request) -> Response:
        """Delete a workspace and its descendants, with their tokens and rows."""
        self._auth.admin(request)
        workspace_id = request.path_params["id"]
        if not is_uuid(workspace_id):
            raise Refusal(400, "invalid workspace ID")
        workspace = self._existing(workspace_id)
        store, now = self._platform.store, self._platform.now()
        below = store.descendants(workspace_id)
        if self._platform.generation.deletes_by_name:
            if request.headers.get("x-confirm-name") != workspace.name:
                raise Refusal(400, "X-Confirm-Name header must match the workspace name")
        elif below and request.query_params.get("confirm") != "true":
            children = [
                {"id": child.id, "name": child.name} for child in store.workspaces("parent_id = ?", workspace_id)
            ]
            confirmation = {"status": "confirmation_required", "children": children, "children_count": len(children)}
            return json_response(confirmation, 409)
        for removed_id in (*below, workspace_id):
            store.change(removed_id, status="removed", removed_at=now)
            store.revoke(removed_id)
            self._platform.rows.prune(removed_id)
            self._platform.events.publish(removed_id, "WORKSPACE_REMOVED", {"cascade_deleted": len(below)})
        return json_response({"cascade_deleted": len(below), "status": "removed"})

    async def state(self, request: Request) -> Response:
        """Return the state of a connector's own workspace."""
        workspace_id = self._auth.workspace(request, admin=False)
        workspace = self._platform.store.workspace(workspace_id)
        if workspace is None or workspace.removed:
            status = {"status": "removed"} if workspace else {}
            return json_response({"deleted": True, "workspace_id": workspace_id, **status}, 404)
        paused = workspace.status == "paused"
        state = {"deleted": False, "paused": paused, "status": workspace.status, "workspace_id": workspace_id}
        return json_response(state)

    async def secrets(self, request: Request) -> Response:
        """Return the secrets of a workspace, including global ones."""
        workspace_id = self._auth.workspace(request, admin=False)
        return json_response(self._platform.store.secrets_of(workspace_id))

    async def pause(self, request: Request) -> Response:
        """Pause a workspace and its descendants. Messages are still queued."""
        self._auth.admin(request)
        workspace = self._platform.store.workspace(request.path_params["id"])
        if workspace is None or workspace.status in ("removed", "paused"):
            raise Refusal(404, "workspace not found or already paused")
        below = self._platform.store.descendants(workspace.id)
        cascade = request.query_params.get("cascade") == "true"
        if below and self._platform.generation.pause_asks_cascade and not cascade:
            raise Refusal(409, "workspace has children; repeat with ?cascade=true", children_count=len(below))
        count = self._set_statuses([workspace.id, *below], "paused", ("removed", "paused"), "WORKSPACE_PAUSED")
        return json_response({"paused_count": count, "status": "paused"})

    async def resume(self, request: Request) -> Response:
        """Resume a workspace. The next heartbeat puts it online."""
        self._auth.admin(request)
        workspace = self._platform.store.workspace(request.path_params["id"])
        if workspace is None or workspace.status != "paused":
            raise Refusal(404, "workspace not found or not paused")
        parent = self._platform.store.workspace(workspace.parent_id)
        if parent is not None and parent.status == "paused":
            raise Refusal(409, f'parent workspace "{parent.name}" is paused — resume it first')
        below = self._platform.store.descendants(workspace.id)
        active = ("removed", "online", "degraded", "offline", "provisioning", "awaiting_agent", "failed")
        count = self._set_statuses([workspace.id, *below], "provisioning", active, "WORKSPACE_PROVISIONING")
        return json_response({"resumed_count": count, "status": "provisioning"})

    def _set_statuses(self, ids: list[str], status: str, unless: tuple[str, ...], event: str) -> int:
        count = 0
        for workspace_id in ids:
            workspace = self._platform.store.workspace(workspace_id)
            if workspace is not None and workspace.status not in unless:
                self._platform.set_status(workspace, status, event)
                count += 1
        return count
