"""A host with a ``molecule mcp`` of its own: the SDK's client over a real process."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import mcp_types as types
from mcp import Client, StdioServerParameters
from mcp.client.extension import ClientExtension, NotificationBinding
from mcp.client.stdio import stdio_client

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import clean_environ

CHANNEL = "notifications/claude/channel"
PROGRAM = [sys.executable, "-m", "molecule_connect", "mcp"]


class Push(types.NotificationParams):
    """What a channel's notification says."""

    content: str
    meta: dict[str, str]


class Channel(ClientExtension):
    """Keeps what is pushed."""

    identifier = "test.example/channel"

    def __init__(self) -> None:
        self.pushed: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        return [NotificationBinding(method=CHANNEL, params_type=Push, handler=self._keep)]

    async def _keep(self, push: Push) -> None:
        self.pushed.put_nowait({"content": push.content, "meta": push.meta})


class Session:
    """A host's session. ``errors`` is a file of what the server wrote to standard error."""

    def __init__(self, client: Client, channel: Channel, lock: Path, errors: Path) -> None:
        self.client, self.errors = client, errors
        self._channel, self._lock = channel, lock

    async def call(self, name: str, **arguments: Any) -> Any:
        """A tool's result; an error as text."""
        result = await self.client.call_tool(name, arguments)
        (content,) = result.content
        assert isinstance(content, types.TextContent)
        return content.text if result.is_error else json.loads(content.text)

    async def wait(self, seconds: float = 20) -> Any:
        """The next message."""
        return await self.call("wait_for_message", timeout_secs=seconds)

    async def pushed(self) -> dict[str, Any]:
        """The next push."""
        async with asyncio.timeout(20):
            return await self._channel.pushed.get()

    async def asleep(self, seconds: float = 0.5) -> bool:
        """Whether nothing was pushed for so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._channel.pushed.get()
        except TimeoutError:
            return True
        return False

    def kill(self) -> None:
        """kill -9 the server that holds the workspace."""
        os.kill(json.loads(self._lock.read_text())["pid"], signal.SIGKILL)


def environ_for(sandbox: Sandbox, workspace: Workspace, state: Path, **more: str) -> dict[str, str]:
    """What a host's configuration says."""
    return {
        **clean_environ(),
        "PLATFORM_URL": sandbox.url,
        "WORKSPACE_ID": workspace.id,
        "MOLECULE_WORKSPACE_TOKEN": workspace.token,
        "MOLECULE_STATE_DIR": str(state),
        **more,
    }


@contextlib.asynccontextmanager
async def host(
    sandbox: Sandbox, workspace: Workspace, folder: Path, *, mode: Any = "auto", **environ: str
) -> AsyncIterator[Session]:
    """A session until the end of the block; the server is stopped as hosts do it. *folder* holds state and log."""
    state, errors = folder / "state", folder / f"errors-{uuid.uuid4().hex}.txt"
    server = StdioServerParameters(
        command=PROGRAM[0], args=PROGRAM[1:], env=environ_for(sandbox, workspace, state, **environ)
    )
    channel = Channel()
    with errors.open("w") as file:
        transport = stdio_client(server, errlog=file)
        async with Client(transport, mode=mode, extensions=[channel]) as client:
            yield Session(client, channel, state / f"{workspace.id}.lock", errors)
