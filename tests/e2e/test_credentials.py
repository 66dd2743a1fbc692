"""Tokens that change, are refused for a moment, or belong to somebody else."""

import asyncio
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, registered


async def test_replaced_token_file_needs_no_restart(tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        file.touch(mode=0o600)
        file.write_text(workspace.token)
        options = ("--backend", "mock", "--token-file", str(file))
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "before")
            await sandbox.answers(workspace, 1)
            rotated = await sandbox.rotate(workspace)
            await sandbox.say(workspace, "meanwhile")
            await connector.says("401")
            assert len(await sandbox.answers(workspace)) == 1
            file.write_text(rotated.token)
            await sandbox.say(workspace, "after")
            answers = await sandbox.answers(workspace, 3, timeout=30)
            assert await connector.stop() == 0
    assert [answer.text for answer in answers] == ["echo: before", "echo: meanwhile", "echo: after"]
    assert workspace.token not in connector.output
    assert rotated.token not in connector.output


@pytest.mark.drill
async def test_brief_401_everywhere_loses_nothing(tmp_path: Path) -> None:
    blip = [f"status=401,path={path},times=1" for path in ("/activity", "/heartbeat", "/notify", "/events/stream")]
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            await sandbox.faults(*blip)
            await sandbox.say(workspace, "hello")
            answers = await sandbox.answers(workspace, 1, timeout=20)
            await asyncio.sleep(1)
            assert await connector.stop() == 0
        assert await sandbox.answers(workspace) == answers
    assert [answer.text for answer in answers] == ["echo: hello"]


async def test_token_of_another_workspace_is_refused(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        # Both own tokens by then, so none is handed out.
        mixed_up = {"MOLECULE_WORKSPACE_TOKEN": peer.token}
        async with Connector(sandbox, workspace, tmp_path, **mixed_up) as connector:
            assert await connector.ended() == 3
        assert await sandbox.beats(workspace) == []
    assert f"workspace {workspace.id}, token from MOLECULE_WORKSPACE_TOKEN" in connector.output
    assert peer.token not in connector.output
