"""Workspace tokens: create, list, revoke, rotate."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from molecule_connect_sandbox.auth import Auth
from molecule_connect_sandbox.clock import to_rfc3339
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal, json_response

MAX_TOKENS = 50


class Tokens:
    """The token endpoints."""

    def __init__(self, platform: Platform, auth: Auth) -> None:
        self._platform = platform
        self._auth = auth

    def routes(self) -> list[Route]:
        """The routes of these endpoints."""
        one = "/workspaces/{id}"
        routes = [
            Route(f"{one}/tokens", self.list, methods=["GET"]),
            Route(f"{one}/tokens", self.create, methods=["POST"]),
            Route(f"{one}/tokens/{{token_id}}", self.revoke, methods=["DELETE"]),
            Route(f"{one}/external/rotate", self.rotate, methods=["POST"]),
            Route(f"{one}/external/connection", self.show_connection, methods=["GET"]),
        ]
        if self._platform.generation.anonymous_people:
            return [*routes, Route("/admin/workspaces/{id}/test-token", self.test_token, methods=["GET"])]
        return [*routes, Route("/admin/workspaces/{id}/tokens", self.admin_token, methods=["POST"])]

    async def list(self, request: Request) -> Response:
        """List the active tokens, without their values, which aren't stored."""
        workspace_id = self._auth.workspace(request)
        tokens = [
            {"id": token_id, "prefix": prefix, "created_at": to_rfc3339(created)}
            for token_id, prefix, _, created in self._platform.store.live_tokens(workspace_id)
        ]
        return json_response({"count": len(tokens), "tokens": tokens})

    def _mint(self, workspace_id: str) -> dict[str, str]:
        store = self._platform.store
        if len(store.live_tokens(workspace_id)) >= MAX_TOKENS:
            raise Refusal(429, f"maximum {MAX_TOKENS} active tokens per workspace")
        return {"auth_token": store.add_token(workspace_id, "api", self._platform.now()), "workspace_id": workspace_id}

    async def create(self, request: Request) -> Response:
        """Create a token."""
        minted = self._mint(self._auth.workspace(request))
        return json_response({**minted, "message": "Save this token now: it is not shown again."}, 201)

    async def revoke(self, request: Request) -> Response:
        """Revoke a token."""
        workspace_id = self._auth.workspace(request)
        if not self._platform.store.revoke(workspace_id, request.path_params["token_id"]):
            raise Refusal(404, "token not found")
        return json_response({"status": "revoked"})

    def _existing(self, request: Request) -> str:
        self._auth.admin(request)
        workspace = self._platform.store.workspace(request.path_params["id"])
        if workspace is None or workspace.removed:
            raise Refusal(404, "workspace not found")
        return workspace.id

    async def test_token(self, request: Request) -> Response:
        """Create a token for tests; only on 2026-05."""
        return json_response(self._mint(self._existing(request)))

    async def admin_token(self, request: Request) -> Response:
        """Create a token as the administrator; only on 2026-08."""
        return json_response(self._mint(self._existing(request)), 201)

    def _external(self, request: Request) -> str:
        workspace_id = self._auth.workspace(request)
        workspace = self._platform.store.workspace(workspace_id)
        if workspace is None or workspace.removed:
            raise Refusal(404, "workspace not found")
        if workspace.runtime != "external":
            raise Refusal(400, "workspace is not external")
        return workspace_id

    async def rotate(self, request: Request) -> Response:
        """Revoke all tokens and create a new one."""
        workspace_id, store = self._external(request), self._platform.store
        store.revoke(workspace_id)
        token = store.add_token(workspace_id, "instance", self._platform.now())
        self._platform.events.publish(workspace_id, "EXTERNAL_CREDENTIALS_ROTATED", {})
        return json_response({"connection": connection(request, workspace_id, token)})

    async def show_connection(self, request: Request) -> Response:
        """Return the connection details without a token."""
        workspace_id = self._external(request)
        return json_response({"connection": connection(request, workspace_id, "")})


def connection(request: Request, workspace_id: str, token: str) -> dict[str, Any]:
    """Connection details for the operator of an external workspace."""
    base = f"{request.url.scheme}://{request.url.netloc}"
    command = f"MOLECULE_API_URL={base} MOLECULE_WORKSPACE_TOKEN={token} molecule connect {workspace_id}"
    return {
        "workspace_id": workspace_id,
        "platform_url": base,
        "auth_token": token,
        "registry_endpoint": f"{base}/registry/register",
        "heartbeat_endpoint": f"{base}/registry/heartbeat",
        "curl_register_template": (
            f"curl -X POST {base}/registry/register "
            f"-H 'Authorization: Bearer {token}' -H 'Content-Type: application/json' "
            f'-d \'{{"id":"{workspace_id}","delivery_mode":"poll","agent_card":{{"name":"my agent"}}}}\''
        ),
        "universal_mcp_snippet": command,
    }
