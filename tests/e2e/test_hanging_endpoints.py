"""One endpoint of the platform hangs: everything that doesn't need it goes on, for all workspaces of a process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from molecule_connect import Request, Response, events, hookimpl
from molecule_connect.app import serve
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect_sandbox.testing import Sandbox, Workspace

MANY = 30


class Echo:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(request.text)


@contextlib.asynccontextmanager
async def served(
    sandbox: Sandbox, workspaces: list[Workspace], folder: Path, told: list[events.Event]
) -> AsyncIterator[None]:
    stop = asyncio.Event()
    settings = [
        WorkspaceSettings(
            workspace_id=one.id,
            token=one.token,
            api_url=sandbox.url,
            backend=Echo(),
            poll_interval=0.2,
            heartbeat_interval=0.5,
        )
        for one in workspaces
    ]
    serving = asyncio.ensure_future(serve(settings, state_dir=folder, listener=told.append, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await serving


async def test_hanging_feed_stops_no_heartbeat(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspaces = [await sandbox.workspace(f"one of {MANY}: {number}") for number in range(MANY)]
        await sandbox.faults("slow-answers=60,path=/activity")
        async with served(sandbox, workspaces, tmp_path, []):
            for workspace in workspaces:
                assert len(await sandbox.beats(workspace, 4, timeout=20)) >= 4


@pytest.mark.parametrize("path", ["/ack", "/registry/heartbeat", "/events/stream"])
async def test_messages_are_answered_while_another_endpoint_hangs(path: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform="2026-05") as sandbox:
        workspaces = [await sandbox.workspace(f"{number}") for number in range(4)]
        await sandbox.faults(f"slow-answers=60,path={path}")
        async with served(sandbox, workspaces, tmp_path, []):
            for workspace in workspaces:
                await sandbox.say(workspace, "are you there?")
            for workspace in workspaces:
                assert [one.text for one in await sandbox.answers(workspace, 1, timeout=20)] == ["are you there?"]
