"""Pause and shutdown: real connectors stopped at each step of a message, twice, and by a closing terminal."""

import asyncio
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest
from tests.plugins.distributions import backends, write_distribution

from molecule_connect_sandbox.testing import Sandbox

from .kit import PROGRAM, Connector, clean_environ, exec_options, registered, until

# A plain function, which nothing can interrupt.
PLAIN = """
import time
from molecule_connect import Response, hookimpl

class Backend:
    @hookimpl
    def handle_a2a(self, request):
        if request.text == "hang":
            time.sleep(300)
        return Response.from_text(request.text)

def make(config):
    return Backend()
"""


async def test_stop_does_not_wait_for_a_read(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            # Longer than the test waits for the stop.
            await sandbox.faults("slow-answers=60,path=/activity")
            await sandbox.say(workspace, "hello")
            await asyncio.sleep(0.2)
            assert await connector.stop() == 0
        await sandbox.faults()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            assert [answer.text for answer in await sandbox.answers(workspace, 1)] == ["echo: hello"]
            assert await connector.stop() == 0


async def test_stop_waits_for_a_running_message(tmp_path: Path) -> None:
    started = tmp_path / "started"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        options = exec_options(f"touch {started}; sleep 1; cat")
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hello")
            await until(started.exists)
            assert await connector.stop() == 0
        assert [answer.text for answer in await sandbox.answers(workspace)] == ["hello"]
        beats = await sandbox.beats(workspace)
    assert beats[-1]["runtime_state"] == "wedged"
    assert "stopped" in beats[-1]["sample_error"]


async def test_run_cut_by_grace_is_repeated_later(tmp_path: Path) -> None:
    started, mended = tmp_path / "started", tmp_path / "mended"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        options = exec_options(f"touch {started}; test -e {mended} || sleep 60; cat")
        async with Connector(sandbox, workspace, tmp_path / "state", *options, "--grace", "0.5") as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hello")
            await until(started.exists)
            # Sooner than the command would end.
            assert await connector.stop() == 0
        assert await sandbox.answers(workspace) == []
        mended.touch()
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            assert [answer.text for answer in await sandbox.answers(workspace, 1)] == ["hello"]
            assert await connector.stop() == 0


async def test_stop_waits_for_a_running_send(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            await sandbox.faults(f"slow-answers=1,path=/workspaces/{peer.id}/a2a")
            await sandbox.say(workspace, "hello", sender=peer)
            await sandbox.answers(workspace, 1)
            assert await connector.stop() == 0
        await sandbox.faults()
        async with Connector(sandbox, workspace, tmp_path, "--backend", "mock", "--once") as connector:
            assert await connector.ended() == 0
        assert [answer.text for answer in await sandbox.answers(workspace)] == ["echo: hello"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_ends_it_without_loss(number: signal.Signals, tmp_path: Path) -> None:
    started, mended = tmp_path / "started", tmp_path / "mended"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        options = exec_options(f"touch {started}; test -e {mended} || sleep 60; cat")
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hello")
            await until(started.exists)
            assert connector.process is not None
            connector.process.send_signal(signal.SIGTERM)
            await connector.says("stopping: 1 running")
            assert await connector.stop(number) == 128 + number
        mended.touch()
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            assert [answer.text for answer in await sandbox.answers(workspace, 1)] == ["hello"]
            assert await connector.stop() == 0


@pytest.mark.drill
async def test_hanging_plain_call_does_not_delay_stop(tmp_path: Path) -> None:
    site = tmp_path / "site"
    write_distribution(site, "fake-plain", entry_points=backends(plain="fake_plain:make"), fake_plain=PLAIN)
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        options, environ = ("--backend", "plain", "--grace", "0.5"), {"PYTHONPATH": str(site)}
        async with Connector(sandbox, workspace, tmp_path / "state", *options, **environ) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hang", sender=peer)
            await sandbox.say(workspace, "hello")
            # It holds up nobody else meanwhile.
            assert [answer.text for answer in await sandbox.answers(workspace, 1)] == ["hello"]
            assert await connector.stop() == 0
        async with Connector(sandbox, workspace, tmp_path / "state", "--backend", "mock") as connector:
            assert [answer.text for answer in await sandbox.answers(workspace, 2)][1:] == ["echo: hang"]
            assert await connector.stop() == 0


@pytest.mark.drill
@pytest.mark.skipif(shutil.which("tmux") is None, reason="there is no tmux")
@pytest.mark.parametrize("is_list", [False, True], ids=["single", "list"])
async def test_closed_terminal_is_a_clean_stop(tmp_path: Path, is_list: bool) -> None:
    started, pid = tmp_path / "started", tmp_path / "pid"
    socket = tmp_path / "tmux"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        options = exec_options(f"touch {started}; sleep 1; cat")
        named = [workspace.id]
        if is_list:
            config = tmp_path / "fleet.toml"
            config.touch(mode=0o600)
            config.write_text(f'[[workspace]]\nid = "{workspace.id}"\ntoken = "{workspace.token}"\n')
            named = ["--config", str(config)]
        command = [*PROGRAM, "connect", *named, "--api-url", sandbox.url]
        command += ["--state-dir", str(tmp_path / "state"), *options]
        line = f"echo $$ > {shlex.quote(str(pid))}; exec {shlex.join(command)}"
        environ = {**clean_environ(), "MOLECULE_WORKSPACE_TOKEN": workspace.token, "TERM": "xterm"}
        environ.pop("TMUX", None)
        tmux = ["tmux", "-S", str(socket), "-f", os.devnull]
        await run(*tmux, "new-session", "-d", "-x", "100", "-y", "30", "sh", "-c", line, env=environ)
        try:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hello")
            await until(started.exists)
        finally:
            await run(*tmux, "kill-server", env=environ)
        answers = await sandbox.answers(workspace, 1)
        process = int(pid.read_text())
        await until(lambda: not Path(f"/proc/{process}").exists())
        beats = await sandbox.beats(workspace)
    assert [answer.text for answer in answers] == ["hello"]
    assert "stopped" in beats[-1]["sample_error"]


async def run(*command: str, env: dict[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(*command, env=env)
    assert await process.wait() == 0
