"""What an operator does beside a connector that runs: look, mend, replay; all with real processes."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

from molecule_connect_sandbox.testing import Sandbox

from .kit import PROGRAM, Connector, clean_environ, registered


async def molecule(state: Path, *arguments: str) -> tuple[int | None, str]:
    """Run a command to its end: its code and its standard output."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
        env={**clean_environ(), "MOLECULE_STATE_DIR": str(state)},
    )
    out, _ = await process.communicate()
    return process.returncode, out.decode()


async def listed(state: Path) -> list[tuple[str, str]]:
    """Row id and state of every message."""
    _, document = await molecule(state, "messages", "list", "--json")
    return [(message["row_id"], message["state"]) for message in json.loads(document)["messages"]]


async def until(state: Path, wanted: str) -> str:
    """Wait until the only message is in this state; its row id."""
    async with asyncio.timeout(20):
        while True:
            for row_id, found in await listed(state):
                if found == wanted:
                    return row_id
            await asyncio.sleep(0.1)


async def test_replayed_dead_letter_is_answered_once(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    # Printing nothing is no answer, and is not tried again.
    command = f"if test -e {mended}; then tr a-z A-Z; fi"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        options = ("--backend", "exec", "--backend-opt", f"cmd={command}")
        async with Connector(sandbox, workspace, tmp_path, *options) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hello")
            row_id = await until(tmp_path, "dead")
            _, shown = await molecule(tmp_path, "messages", "show", row_id[:8])
            assert "the command printed no answer" in shown

            mended.touch()
            code, told = await molecule(tmp_path, "messages", "replay", row_id[:8])
            assert (code, "processes it within a second" in told) == (0, True)
            notice, answer = await sandbox.answers(workspace, 2)
            assert "could not be answered" in notice.text
            assert answer.text == "HELLO"
            assert await until(tmp_path, "done") == row_id
            assert await connector.stop() == 0
        assert len(await sandbox.answers(workspace)) == 2


async def test_status_distinguishes_running_killed_and_stopped(tmp_path: Path) -> None:
    async def status() -> tuple[int | None, dict[str, Any]]:
        code, document = await molecule(tmp_path, "status", workspace.id, "--json")
        (found,) = json.loads(document)["workspaces"]
        return code, found

    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            assert connector.process is not None
            # What changes is written once a second.
            async with asyncio.timeout(20):
                while not (found := (await status())[1])["last_beat"]:
                    pass
            assert (found["state"], found["pid"]) == ("running", connector.process.pid)
            assert (await status())[0] == 0
            await connector.stop(signal.SIGKILL)
            code, found = await status()
            assert (code, found["state"], found["pid"]) == (1, "died", None)
        beats = len(await sandbox.beats(workspace))
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await sandbox.beats(workspace, beats + 1)
            assert await connector.stop() == 0
        code, found = await status()
        assert (code, found["state"]) == (1, "stopped")
