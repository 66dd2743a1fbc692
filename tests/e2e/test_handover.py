"""A workspace that is handed to another machine with a backlog: nothing is lost and nothing is answered twice."""

import asyncio
import sys
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox

from .kit import PROGRAM, Connector, clean_environ, exec_options, registered


async def _molecule(*arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(*PROGRAM, *arguments, env=clean_environ(), stderr=sys.stderr)
    assert await process.wait() == 0


@pytest.mark.parametrize("generation", ["2026-05", "2026-08"])
async def test_handover_loses_and_doubles_nothing(tmp_path: Path, generation: str) -> None:
    here, there, archive = tmp_path / "here", tmp_path / "there", tmp_path / "archive.tar.gz"
    options = (*exec_options("sleep 0.2; cat"), "--concurrency", "2", "--grace", "0")
    texts = [f"message {number}" for number in range(20)]
    async with Sandbox.over_loopback(platform=generation) as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, here, *options) as connector:
            await registered(sandbox, workspace)
            for text in texts[:15]:
                await sandbox.say(workspace, text, contextId=text)
            await sandbox.answers(workspace, 4)
            assert await connector.stop() == 0
        await _molecule("journal", "export", workspace.id, str(archive), "--state-dir", str(here))
        for text in texts[15:]:
            await sandbox.say(workspace, text, contextId=text)
        async with Connector(sandbox, workspace, here, *options) as connector:
            assert await connector.ended() == 2
            assert "molecule journal import" in connector.output
        await _molecule("journal", "import", str(archive), "--state-dir", str(there))
        async with Connector(sandbox, workspace, there, *options, "--grace", "20") as connector:
            await sandbox.answers(workspace, 20)
            assert await connector.stop() == 0
        assert sorted(answer.text for answer in await sandbox.answers(workspace)) == sorted(texts)
