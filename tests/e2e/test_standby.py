"""Two connectors on one machine: a rolling restart, and a kill, lose and double nothing."""

import itertools
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


@pytest.mark.drill
@pytest.mark.timeout(400)
async def test_rolling_restart_of_many_loses_nothing(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        workspaces = [await sandbox.workspace() for _ in range(200)]
        blocks = (f'[[workspace]]\nid = "{one.id}"\ntoken = "{one.token}"\n' for one in workspaces)
        config.write_text(f'[defaults]\napi_url = "{sandbox.url}"\nbackend = "mock"\n' + "".join(blocks))
        config.chmod(0o600)
        connectors = [Connector.of_a_list(config, tmp_path / "state", "--standby") for _ in range(3)]
        sent = 0
        async with connectors[0]:
            for one in workspaces:
                await registered(sandbox, one)
            for old, new in itertools.pairwise(connectors):
                await new.start()
                await new.says("is served by process")
                for _ in range(3):
                    for one in workspaces:
                        await sandbox.say(one, f"message {sent}")
                        sent += 1
                        if sent % 600 == 300:
                            old.send(signal.SIGTERM)
                assert await old.ended(120) == 0
            answers = [await sandbox.answers(one, 6) for one in workspaces]
            assert await connectors[-1].stop() == 0
        texts = [answer.text.removeprefix("echo: ") for each in answers for answer in each]
        assert sorted(texts) == sorted(f"message {number}" for number in range(sent))
