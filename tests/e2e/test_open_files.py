"""Real processes that run out of open files: nothing ends by it, nothing is lost, and it heals."""

import resource
from pathlib import Path

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import PROGRAM, Connector, registered

MOCK = '[defaults]\nbackend = "mock"\noptions.reply = "%s!"\n'
EXEC = '[defaults]\nbackend = "exec"\noptions.cmd = "tr a-z A-Z"\n'


def write(config: Path, url: str, workspaces: list[Workspace], defaults: str = EXEC) -> None:
    config.touch(mode=0o600)
    blocks = (f'[[workspace]]\nid = "{one.id}"\ntoken = "{one.token}"\napi_url = "{url}"\n' for one in workspaces)
    config.write_text(defaults + "".join(blocks))


class Limited(Connector):
    """A connector whose limits of open files are set before it starts."""

    soft, hard = 100, 100

    async def start(self) -> "Limited":
        # Set by a shell: this process may have more files open than the limit.
        limits = f"ulimit -S -n {self.soft} && ulimit -H -n {self.hard}"
        self.program = ["/bin/sh", "-c", f'{limits} && exec "$@"', "sh", *PROGRAM]
        await super().start()
        return self


async def test_too_low_soft_limit_is_raised(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        workspaces = [await sandbox.workspace(f"{number}") for number in range(30)]
        write(config, sandbox.url, workspaces)
        connector = Limited.of_a_list(config, tmp_path / "state")
        connector.soft, connector.hard = 60, 1000
        async with connector:
            for workspace in workspaces:
                await sandbox.say(workspace, "hi")
            for workspace in workspaces:
                assert [one.text for one in await sandbox.answers(workspace, 1, timeout=30)] == ["HI"]
            assert await connector.stop() == 0


async def test_too_low_hard_limit_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        write(config, sandbox.url, [await sandbox.workspace(f"{number}") for number in range(60)])
        async with Limited.of_a_list(config, tmp_path / "state") as connector:
            assert await connector.ended() == 2
        assert ("POST", "/registry/register") not in await sandbox.requests()
    assert "60 workspaces need 228 open files, at least 108, but this process may open only 100" in connector.output
    assert "LimitNOFILE=" in connector.output


async def test_list_with_few_files_is_polled(tmp_path: Path) -> None:
    config = tmp_path / "fleet.toml"
    async with Sandbox.over_loopback() as sandbox:
        workspaces = [await sandbox.workspace(f"{number}") for number in range(20)]
        write(config, sandbox.url, workspaces, MOCK)
        connector = Limited.of_a_list(config, tmp_path / "state")
        connector.soft = connector.hard = 93
        async with connector:
            await connector.says("15 of them are polled, without an event stream")
            for workspace in workspaces:
                await sandbox.say(workspace, "hi")
            for workspace in workspaces:
                assert [one.text for one in await sandbox.answers(workspace, 1, timeout=30)] == ["hi!"]
            assert await connector.stop() == 0
        # The warning is enough: none of the 15 reports it again.
        assert connector.output.count("open files") == 1
        assert " ERROR " not in connector.output


async def test_running_out_of_files_loses_nothing(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(
            sandbox, workspace, tmp_path, "--backend", "exec", "--backend-opt", "cmd=tr a-z A-Z"
        ) as connector:
            await registered(sandbox, workspace)
            await connector.says("listening by stream")
            assert connector.process is not None
            before = resource.prlimit(connector.process.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(connector.process.pid, resource.RLIMIT_NOFILE, (8, before[1]))
            for number in range(4):
                await sandbox.say(workspace, f"message {number}", contextId=f"c{number}")
            await connector.says("Too many open files", seconds=30)
            resource.prlimit(connector.process.pid, resource.RLIMIT_NOFILE, before)
            answers = await sandbox.answers(workspace, 4, timeout=50)
            assert sorted(one.text for one in answers) == [f"MESSAGE {number}" for number in range(4)]
            assert await connector.stop() == 0
    assert "given up" not in connector.output
