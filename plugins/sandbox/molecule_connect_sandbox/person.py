"""Acts as a person in the canvas: writes to a workspace and reads its replies, over HTTP."""

import contextlib
import uuid
from collections.abc import AsyncIterator
from typing import Self

import httpx

from molecule_connect import MoleculeError
from molecule_connect_sandbox.default_workspace import DefaultWorkspace

TIMEOUT = 30.0
CONTEXT = "chat"


class Person:
    """A person in one conversation with one workspace."""

    def __init__(self, client: httpx.AsyncClient, workspace: DefaultWorkspace, admin_token: str | None) -> None:
        self._client = client
        self._workspace = workspace
        self._admin = {"Authorization": f"Bearer {admin_token}"} if admin_token else {}
        self._seen: set[str] = set()
        self._cursor: str | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def at(cls, url: str, workspace: DefaultWorkspace, admin_token: str | None) -> AsyncIterator[Self]:
        """A person on the platform at *url*."""
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, trust_env=False) as client:
            yield cls(client, workspace, admin_token)

    async def say(self, text: str) -> None:
        """Write a message, without U+0000: the platform accepts messages that contain it, but doesn't store them.

        Raises:
            MoleculeError: The request failed.
        """
        message = {
            "role": "user",
            "messageId": str(uuid.uuid4()),
            "contextId": CONTEXT,
            "parts": [{"kind": "text", "text": text.replace("\x00", "")}],
        }
        body = {"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": message}}
        await self._request("POST", f"/workspaces/{self._workspace.id}/a2a", json=body, headers=self._admin)

    async def hear(self) -> list[str]:
        """The replies since the last call, oldest first.

        Raises:
            MoleculeError: The request failed.
        """
        query = {"type": "a2a_receive", "source": "canvas", "limit": "500"}
        if self._cursor is not None:
            query["since_id"] = self._cursor
        headers = {"Authorization": f"Bearer {self._workspace.token}"}
        path = f"/workspaces/{self._workspace.id}/activity"
        rows = (await self._request("GET", path, params=query, headers=headers)).json()
        if self._cursor is None:
            rows.reverse()
        new = [row for row in rows if row["id"] not in self._seen]
        self._seen.update(row["id"] for row in new)
        self._cursor = rows[-1]["id"] if rows else self._cursor
        # On 2026-05, anonymous messages can have this method too, but not this body.
        bodies = [row.get("response_body") for row in new if row["method"] == "notify"]
        return [body["result"] for body in bodies if isinstance(body, dict) and "result" in body]

    async def _request(self, method: str, path: str, **content: object) -> httpx.Response:
        try:
            response = await self._client.request(method, path, **content)  # type: ignore[arg-type]
        except httpx.TransportError as exc:
            raise MoleculeError(f"the request to the sandbox failed: {type(exc).__name__}") from exc
        if not response.is_success:
            raise MoleculeError(f"the sandbox rejected {method} {path}: {response.status_code} {response.text[:200]}")
        return response
