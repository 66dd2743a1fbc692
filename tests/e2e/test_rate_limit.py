"""Ten workspaces behind one address of an older platform, whose 600 requests a minute they share."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from molecule_connect import Request, Response, events, hookimpl
from molecule_connect.app import serve
from molecule_connect.config.settings import PeerBudget, WorkspaceSettings
from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import message_row

WINDOW = 60.0
FLOOD, ROUNDS = 700, 5


class Echo:
    @hookimpl
    async def handle_a2a(self, request: Request) -> Response:
        return Response.from_text(request.text)


def settings(sandbox: Sandbox, workspace: Workspace) -> WorkspaceSettings:
    return WorkspaceSettings(
        workspace_id=workspace.id,
        token=workspace.token,
        api_url=sandbox.url,
        backend=Echo(),
        since_secs=600.0,
        peer_budget=PeerBudget(per_minute=0, per_hour=0),
    )


@contextlib.asynccontextmanager
async def served(
    sandbox: Sandbox, workspaces: list[Workspace], folder: Path, listener: events.Listener
) -> AsyncIterator[None]:
    stop = asyncio.Event()
    given = [settings(sandbox, workspace) for workspace in workspaces]
    serving = asyncio.ensure_future(serve(given, state_dir=folder, listener=listener, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await serving


async def answers_by_status(sandbox: Sandbox, path: str) -> dict[int, int]:
    told = await sandbox.admin("GET", "/sandbox/requests")
    return {status: count for _, asked, status, count in told["requests"] if asked.endswith(path)}


def moment(row: dict[str, Any]) -> float:
    return datetime.fromisoformat(row["created_at"]).timestamp()


@pytest.mark.drill
@pytest.mark.timeout(400)
async def test_flooded_workspace_leaves_others_their_share(tmp_path: Path) -> None:
    beats: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()

    def listener(event: events.Event) -> None:
        if isinstance(event, events.Beat):
            beats.append((event.workspace_id, loop.time()))

    async with Sandbox.over_loopback(platform="2026-05", rate_limit=600) as sandbox:
        # What the test itself asks for counts too, so everything is made at once.
        busy = await sandbox.workspace("busy")
        peers = [await sandbox.workspace(f"peer-{number}", parent=busy) for number in range(8)]
        quiet = [await sandbox.workspace(f"quiet-{number}") for number in range(9)]
        writers = [await sandbox.workspace(f"writer-{number}", parent=each) for number, each in enumerate(quiet)]
        async with served(sandbox, [busy, *quiet], tmp_path, listener):
            for workspace in (busy, *quiet):
                assert await sandbox.beats(workspace, 1, timeout=30)
            flood = [message_row(f"{number}", sender=peers[number % 8]) for number in range(FLOOD)]
            await sandbox.add_rows(busy, *flood)
            for number in range(ROUNDS):
                for workspace, writer in zip(quiet, writers, strict=True):
                    await sandbox.add_rows(workspace, message_row(f"{number}", sender=writer))
                await asyncio.sleep(WINDOW / 2)
            for workspace in quiet:
                assert len(await sandbox.answers(workspace, ROUNDS, timeout=60)) == ROUNDS
            assert len(await sandbox.answers(busy, FLOOD, timeout=60)) == FLOOD
        assert set(await answers_by_status(sandbox, "/registry/heartbeat")) == {200}
        assert (await answers_by_status(sandbox, "/a2a")).get(429, 0) == 0
        for workspace in quiet:
            asked = [moment(row) for row in await sandbox.rows(workspace) if row["method"] == "message/send"]
            given = [datetime.fromisoformat(each.created_at).timestamp() for each in await sandbox.answers(workspace)]
            assert max(there - here for here, there in zip(asked, given, strict=True)) < WINDOW + 5
    for workspace in (busy, *quiet):
        times = [when for workspace_id, when in beats if workspace_id == workspace.id]
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) < WINDOW
