"""Authorization: workspace tokens, the administrator, and the hierarchy."""

import hmac

from starlette.requests import Request

from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.responses import Refusal
from molecule_connect_sandbox.store import Workspace

# Caller ids that are reserved for components of the platform.
RESERVED = ("webhook:", "system:", "test:", "channel:")
MAX_HOPS = 32


def bearer(request: Request) -> str:
    """The token of a request, or an empty string. ``Bearer`` is case-sensitive."""
    header = request.headers.get("authorization", "")
    return header[7:].strip() if header.startswith("Bearer ") else ""


class Auth:
    """The checks that endpoints share; each raises ``Refusal``."""

    def __init__(self, platform: Platform) -> None:
        self._options = platform.options
        self._generation = platform.generation
        self._store = platform.store

    def is_admin(self, token: str) -> bool:
        """Whether *token* belongs to the administrator."""
        expected = self._options.admin_token
        return bool(expected) and hmac.compare_digest(token.encode(), (expected or "").encode())

    def admin(self, request: Request) -> None:
        """Require the administrator."""
        if self._options.admin_token is None and self._generation.anonymous_people:
            return
        token = bearer(request)
        if not token:
            raise Refusal(401, "admin auth required")
        if self._options.admin_token is None and self._store.token_owner(token):
            return
        if not self.is_admin(token):
            raise Refusal(401, "invalid admin auth token")

    def control(self, request: Request) -> None:
        """Require the control token, for the endpoints under ``/sandbox/``."""
        token = bearer(request)
        if not token:
            raise Refusal(401, "admin auth required")
        if not hmac.compare_digest(token.encode(), self._options.control_token.encode()):
            raise Refusal(401, "invalid admin auth token")

    def workspace(self, request: Request, *, admin: bool = True) -> str:
        """Require the token of the workspace in the path and return its id. *admin* also admits the administrator."""
        workspace_id: str = request.path_params["id"]
        token = bearer(request)
        if not token:
            raise Refusal(401, "missing workspace auth token")
        if self._store.token_owner(token) == workspace_id:
            return workspace_id
        if self.is_admin(token) and (admin or not self._store.live_tokens(workspace_id)):
            return workspace_id
        raise Refusal(401, "invalid workspace auth token")

    def registry(self, request: Request, workspace_id: str) -> None:
        """Require the workspace's token if it has one already."""
        kind = "instance" if self._generation.keyed_by_token else None
        if not self._store.live_tokens(workspace_id, kind):
            return
        token = bearer(request)
        if not token:
            raise Refusal(401, "missing workspace auth token")
        if self._store.token_owner(token) != workspace_id:
            raise Refusal(401, "invalid workspace auth token")

    def caller(self, request: Request, target_id: str) -> str | None:
        """The id of the workspace that writes to *target_id*, or None for a person."""
        named = request.headers.get("x-workspace-id", "")
        if named.startswith(RESERVED):
            raise Refusal(403, "invalid caller ID")
        if self._generation.anonymous_people:
            return self._caller_by_name(named, bearer(request), target_id)
        return self._caller_by_token(named, bearer(request))

    def _caller_by_name(self, named: str, token: str, target_id: str) -> str | None:
        if not named:
            return self._store.token_owner(token) if token else None
        if named != target_id and self._store.live_tokens(named):
            if not token:
                raise Refusal(401, "missing caller auth token")
            if self._store.token_owner(token) != named:
                raise Refusal(401, "invalid caller auth token")
        return named

    def _caller_by_token(self, named: str, token: str) -> str | None:
        if not token:
            raise Refusal(401, "missing caller auth token")
        if self.is_admin(token):
            return named or None
        owner = self._store.token_owner(token)
        if owner is None:
            raise Refusal(401, "invalid caller auth token")
        if named and named != owner:
            raise Refusal(401, "caller ID does not match workspace auth token")
        return owner

    def may_talk(self, one: str | None, other: str | None) -> bool:
        """Whether the hierarchy allows it: the same, siblings, ancestors, descendants; on 2026-05 also two roots."""
        if one == other:
            return True
        a, b = self._store.workspace(one), self._store.workspace(other)
        if a is None or b is None:
            return False
        if a.parent_id is None and b.parent_id is None:
            return self._generation.roots_are_peers
        if a.parent_id == b.parent_id or a.parent_id == b.id or b.parent_id == a.id:
            return True
        return self._is_above(a, b) or self._is_above(b, a)

    def _is_above(self, upper: Workspace, lower: Workspace) -> bool:
        current: Workspace | None = lower
        for _ in range(MAX_HOPS):
            if current is None or current.parent_id is None:
                return False
            if current.parent_id == upper.id:
                return True
            current = self._store.workspace(current.parent_id)
        return False
