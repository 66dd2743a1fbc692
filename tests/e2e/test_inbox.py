"""Readers and connectors of one inbox as separate processes, killed at the worst moments."""

import asyncio
import signal
import sys
from pathlib import Path

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, clean_environ, registered, until, until_asked

# It prints each message, and answers those that ask for it.
READER = """
import asyncio, sys
from pathlib import Path
from molecule_connect import WorkspaceSettings, Response, open_inbox

async def main():
    workspace_id, url, token, state = sys.argv[1:]
    settings = WorkspaceSettings(workspace_id=workspace_id, api_url=url, token=token)
    async with open_inbox([settings], state_dir=Path(state)) as inbox:
        while True:
            message = await inbox.wait(300)
            print("took", message.text, flush=True)
            if message.text.startswith("answer me"):
                print(await inbox.reply(message.activity_id, Response.from_text("re: " + message.text)), flush=True)

asyncio.run(main())
"""


class Reader:
    """A program that reads an inbox, inside ``async with``; it is killed at the end of the block."""

    def __init__(self, sandbox: Sandbox, workspace: Workspace, state: Path) -> None:
        self._arguments = (workspace.id, sandbox.url, workspace.token, str(state))
        self.output = ""

    async def __aenter__(self) -> "Reader":
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", READER, *self._arguments), stdout=asyncio.subprocess.PIPE, env=clean_environ()
        )
        self._reading = asyncio.get_running_loop().create_task(self._read())
        return self

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while piece := await self.process.stdout.read(1 << 16):
            self.output += piece.decode()

    async def kill(self) -> None:
        """Kill the program, like ``kill -9``."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        await self._reading

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


async def test_killed_reader_and_connector_lose_no_message(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path, "--backend", "inbox") as connector:
            await registered(sandbox, workspace)
            await connector.says("messages wait until they are read")
            await sandbox.say(workspace, "one")
            async with Reader(sandbox, workspace, tmp_path) as first:
                await until(lambda: "took one" in first.output)
                async with Reader(sandbox, workspace, tmp_path) as second:
                    await asyncio.to_thread(first.process.send_signal, signal.SIGKILL)
                    await until(lambda: "took one" in second.output)

                    await connector.stop(signal.SIGKILL)
                    await sandbox.say(workspace, "answer me: two")
                    await until(lambda: "took answer me: two" in second.output)
                    (answer,) = await sandbox.answers(workspace, 1)
    assert answer.text == "re: answer me: two"


async def test_stored_reply_sent_once_by_next_connector(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.faults("unavailable=1,path=/notify")
        async with Reader(sandbox, workspace, tmp_path) as reader:
            await sandbox.say(workspace, "answer me")
            await until(lambda: "took answer me" in reader.output)
            # A reply is kept before it is sent.
            await until_asked(sandbox, "/notify")
            await reader.kill()
        assert await sandbox.answers(workspace) == []
        await sandbox.faults()
        async with Connector(sandbox, workspace, tmp_path, "--backend", "inbox"):
            (answer,) = await sandbox.answers(workspace, 1, timeout=20)
            await asyncio.sleep(1)
        assert await sandbox.answers(workspace) == [answer]
