"""Pause and shutdown: a workspace that is paused while a connector serves it, and across a restart."""

import asyncio
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, registered


@pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
async def test_pause_outlasts_a_restart(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "before")
            await sandbox.answers(workspace, 1)
            await sandbox.pause(workspace)
            await connector.says("paused on the platform")
            await sandbox.say(workspace, "first")
            await connector.says("first")
            assert await connector.stop() == 0
        beats = len(await sandbox.beats(workspace))
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await connector.says("paused on the platform")
            assert await sandbox.beats(workspace, beats + 1)
            await sandbox.say(workspace, "second")
            await connector.says("second")
            await asyncio.sleep(0.5)
            assert await sandbox.status(workspace) == "paused"
            assert len(await sandbox.answers(workspace)) == 1
            await sandbox.resume(workspace)
            answers = await sandbox.answers(workspace, 3)
            assert await connector.stop() == 0
    assert [answer.text for answer in answers] == ["echo: before", "echo: first", "echo: second"]
