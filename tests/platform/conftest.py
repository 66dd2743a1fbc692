from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from tests.platform.kit import API, TOKEN, Connect, Respond

from molecule_connect.platform.workspace_client import WorkspaceClient


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients over a script; they are closed at the end."""
    clients: list[WorkspaceClient] = []

    def make(script: Respond, **more: Any) -> WorkspaceClient:
        given: dict[str, Any] = {
            "workspace_id": "ws-1",
            "token": TOKEN,
            "transport": httpx.MockTransport(script),
        } | more
        clients.append(WorkspaceClient(given.pop("api_url", API), **given))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()
