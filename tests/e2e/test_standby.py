"""Two connectors on one machine: a rolling restart, and a kill, lose and double nothing."""

import signal
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, exec_options, registered


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_standby_continues_without_loss(tmp_path: Path, how: signal.Signals) -> None:
    options = (*exec_options("sleep 0.1; cat"), "--concurrency", "3")
    texts = [f"message {number}" for number in range(20)]
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with (
            Connector(sandbox, workspace, tmp_path, *options) as first,
        ):
            await registered(sandbox, workspace)
            async with Connector(sandbox, workspace, tmp_path, *options, "--standby") as second:
                await second.says("is served by process")
                for text in texts:
                    await sandbox.say(workspace, text, contextId=text)
                await sandbox.answers(workspace, 3)
                first.send(how)
                await first.ended()
                await sandbox.answers(workspace, 20)
                assert await second.stop() == 0
        assert sorted(answer.text for answer in await sandbox.answers(workspace)) == sorted(texts)
