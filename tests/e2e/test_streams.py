"""Event streams that are cut, stall, say nothing or are not there: messages are answered all the same."""

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, asked, registered


@pytest.mark.drill
@pytest.mark.parametrize("fault", ["stream-drop=0", "stream-drop=0.3", "stream-silent", "bare-status=404"])
async def test_answers_in_seconds_without_a_stream(fault: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(faults=[f"{fault},path=/events/stream"]) as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            for number in range(3):
                began = time.monotonic()
                await sandbox.say(workspace, f"{number}")
                await sandbox.answers(workspace, number + 1, timeout=15)
                assert time.monotonic() - began < 7
                await asyncio.sleep(2)
            assert await asked(sandbox, "/events/stream") < 20
            assert await asked(sandbox, "/activity") < 40
            # It comes back, and is used again.
            await sandbox.faults()
            await sandbox.say(workspace, "last")
            answers = await sandbox.answers(workspace, 4, timeout=15)
            assert await connector.stop() == 0
    assert [answer.text for answer in answers] == ["echo: 0", "echo: 1", "echo: 2", "echo: last"]


@pytest.mark.drill
@pytest.mark.timeout(120)
async def test_stalled_stream_is_reopened(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "first")
            await sandbox.answers(workspace, 1)
            opened = await asked(sandbox, "/events/stream")
            await sandbox.faults("stream-stall")
            await sandbox.say(workspace, "second")
            answers = await sandbox.answers(workspace, 2, timeout=45)
            # The echo of the next beat is missing.
            async with asyncio.timeout(45):
                while await asked(sandbox, "/events/stream") == opened:  # noqa: ASYNC110 - another process asks
                    await asyncio.sleep(0.2)
            assert await connector.stop() == 0
    assert [answer.text for answer in answers] == ["echo: first", "echo: second"]


@pytest.mark.drill
@pytest.mark.timeout(300)
async def test_catches_up_once_after_a_suspension(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "before")
            await sandbox.answers(workspace, 1)
            await connector.says("listening by stream")
            # The reads that follow a message are over.
            await asyncio.sleep(12)
            assert connector.process is not None
            os.kill(connector.process.pid, signal.SIGSTOP)
            try:
                await asyncio.sleep(90)
                await sandbox.say(workspace, "meanwhile")
                await asyncio.sleep(90)
                paths = ("/registry/register", "/registry/heartbeat", "/activity")
                before = {path: await asked(sandbox, path) for path in paths}
            finally:
                os.kill(connector.process.pid, signal.SIGCONT)
            answers = await sandbox.answers(workspace, 2, timeout=10)
            await asyncio.sleep(8)
            asked_since = {path: await asked(sandbox, path) - before[path] for path in paths}
            assert await sandbox.status(workspace) == "online"
            assert await connector.stop() == 0
    assert [answer.text for answer in answers] == ["echo: before", "echo: meanwhile"]
    assert asked_since["/registry/register"] == 0
    assert asked_since["/registry/heartbeat"] == 1
    assert 1 <= asked_since["/activity"] <= 8
