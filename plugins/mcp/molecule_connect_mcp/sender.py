"""Sending messages of one's own, with or without an inbox."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from molecule_connect import AsyncPlatformClient, ConfigError, WorkspaceSettings, endpoints


class Sender(Protocol):
    """Sends to people and peers, like ``Inbox``."""

    def client(self, workspace_id: str) -> AsyncPlatformClient: ...
    async def tell_user(self, workspace_id: str, text: str, files: Sequence[Path] = ()) -> None: ...
    async def ask(self, workspace_id: str, peer_id: str, text: str, *, timeout: float) -> Any: ...
    async def delegate(self, workspace_id: str, peer_id: str, task: str) -> str: ...


class DirectSender:
    """Sends without an inbox, when reading is disabled. Use ``open`` to create it."""

    def __init__(self, clients: dict[str, AsyncPlatformClient]) -> None:
        self._clients = clients

    @classmethod
    @asynccontextmanager
    async def open(cls, workspaces: Sequence[WorkspaceSettings]) -> AsyncIterator[Self]:
        """Open the clients of *workspaces*.

        Raises:
            ConfigError: The settings of a workspace are invalid.
        """
        async with AsyncExitStack() as stack:
            clients = {one.workspace_id: await stack.enter_async_context(_client(one)) for one in workspaces}
            yield cls(clients)

    def client(self, workspace_id: str) -> AsyncPlatformClient:
        """The client of the workspace."""
        if workspace_id not in self._clients:
            raise ConfigError("this workspace is not served here", hint=f"use one of {', '.join(self._clients)}")
        return self._clients[workspace_id]

    async def tell_user(self, workspace_id: str, text: str, files: Sequence[Path] = ()) -> None:
        """Send a text to the person in the canvas. *files* is empty: the tools refuse files without an inbox."""
        await self.client(workspace_id).call(endpoints.notify(workspace_id, text))

    async def ask(self, workspace_id: str, peer_id: str, text: str, *, timeout: float) -> Any:
        """Ask a peer and return the platform's response."""
        message_id = str(uuid.uuid4())
        parts = [{"kind": "text", "text": text}]
        envelope = {
            "jsonrpc": "2.0",
            "id": message_id,
            "method": "message/send",
            "params": {"message": {"role": "user", "messageId": message_id, "parts": parts}},
        }
        async with asyncio.timeout(timeout):
            return await self.client(workspace_id).call(endpoints.a2a(peer_id, envelope))

    async def delegate(self, workspace_id: str, peer_id: str, task: str) -> str:
        """Delegate a task to a peer and return the delegation's id, or ""."""
        key = str(uuid.uuid4())
        fields = await self.client(workspace_id).call(
            endpoints.delegate(workspace_id, peer_id, task, idempotency_key=key)
        )
        return str(fields.get("delegation_id") or "")


def _client(settings: WorkspaceSettings) -> AsyncPlatformClient:
    return AsyncPlatformClient(
        settings.api_url,
        workspace_id=settings.workspace_id,
        token=settings.token,
        token_file=settings.token_file,
        org_id=settings.org_id,
        insecure=settings.insecure,
        tls=settings.tls,
    )
