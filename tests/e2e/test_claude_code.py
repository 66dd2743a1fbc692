"""``--backend claude-code`` with the real program, installed from npm, against a stand-in for the API it talks to."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from molecule_connect.testing import check_backend
from molecule_connect_sandbox.testing import Answer, Sandbox, Workspace

from .kit import Connector, registered
from .messages_api import MessagesApi, spoken

# It takes 240 MB and some seconds to install.
pytestmark = [pytest.mark.drill, pytest.mark.timeout(300)]


def environ_for(api: MessagesApi, folder: Path) -> dict[str, str]:
    """What turns the program to the stand-in, and away from whoever is logged in here."""
    return {
        "ANTHROPIC_BASE_URL": api.url,
        "ANTHROPIC_API_KEY": "test",
        "CLAUDE_CONFIG_DIR": str(folder / "config"),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }


class Served:
    """Connectors of one workspace that answer with the program, one after the other."""

    def __init__(self, sandbox: Sandbox, workspace: Workspace, folder: Path, program: Path, api: MessagesApi) -> None:
        self.sandbox, self.workspace, self.folder = sandbox, workspace, folder
        (folder / "work").mkdir()
        self._program = program
        self._environ = environ_for(api, folder)

    def connector(self, **options: str) -> Connector:
        given = {"bin": str(self._program), "cwd": str(self.folder / "work"), **options}
        words = [word for key, value in given.items() for word in ("--backend-opt", f"{key}={value}")]
        return Connector(
            self.sandbox, self.workspace, self.folder / "state", "--backend", "claude-code", *words, **self._environ
        )

    async def ask(self, text: str, count: int, **fields: Any) -> Answer:
        await self.sandbox.say(self.workspace, text, **fields)
        return (await self.sandbox.answers(self.workspace, count, timeout=60))[-1]


async def test_conversations_continue_after_a_restart(program: Path, api: MessagesApi, tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        served = Served(sandbox, workspace, tmp_path, program, api)
        async with served.connector() as first:
            await registered(sandbox, workspace)
            answers = [
                await served.ask("hello", 1),
                await served.ask("and now", 2),
                await served.ask("somebody else", 3, sender=peer),
            ]
            assert await first.stop() == 0
        async with served.connector() as second:
            answers += [await served.ask("still there", 4), await served.ask("me too", 5, sender=peer)]
            assert await second.stop() == 0
    texts = [answer.text for answer in answers]
    assert texts == [
        "turn 1: hello",
        "turn 2: and now",
        "turn 1: somebody else",
        "turn 3: still there",
        "turn 2: me too",
    ]
    assert f'from="the workspace {peer.id}"' in spoken(api.seen[-1])[-1]
    assert workspace.token not in first.output + second.output


async def test_real_program_passes_the_backend_checks(
    program: Path, api: MessagesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ_for(api, tmp_path).items():
        monkeypatch.setenv(name, value)

    await check_backend("claude-code", {"bin": str(program), "cwd": str(tmp_path)})


async def test_failures_of_the_program_are_distinguished(program: Path, api: MessagesApi, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the-secret-itself")
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        served = Served(sandbox, workspace, tmp_path, program, api)
        async with served.connector() as connector:
            await registered(sandbox, workspace)
            refused = await served.ask(f'[[use Read {{"file_path": "{secret}"}}]]', 1)
            mentioned = await served.ask(f"look at @{secret}", 2)
            shutil.rmtree(tmp_path / "config" / "projects")
            healed = await served.ask("again", 3)
            overflow = await served.ask("[[overflow]]", 4)
            after = await served.ask("and on", 5)
            assert await connector.stop() == 0
    assert refused.text.endswith("[not permitted here: Read]")
    assert mentioned.text.startswith("turn 2: look at @")
    assert "the-secret-itself" not in str(api.seen)
    assert healed.text == "turn 1: again"
    assert "could not be answered" in overflow.text
    assert "does not fit into the model's context" in connector.output
    assert after.text.endswith("and on")


async def test_only_files_in_the_outbox_are_written(program: Path, api: MessagesApi, tmp_path: Path) -> None:
    beside = tmp_path / "beside.txt"
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        served = Served(sandbox, workspace, tmp_path, program, api)
        async with served.connector() as connector:
            await registered(sandbox, workspace)
            await served.ask('[[use Write {"file_path": "OUTBOX/plot.txt", "content": "drawn"}]]', 1)
            refused = await served.ask(f'[[use Write {{"file_path": "{beside}", "content": "drawn"}}]]', 2)
            assert await connector.stop() == 0
        rows = [row for row in await sandbox.rows(workspace) if row["method"] == "notify"]
        (part,) = rows[0]["response_body"]["parts"]
        path = f"/workspaces/{workspace.id}/pending-uploads/{part['file']['uri'].rpartition('/')[2]}/content"
        kept = await sandbox.call("GET", path, token=workspace.token)
    assert (part["file"]["name"], kept.content) == ("plot.txt", b"drawn")
    assert "[not permitted here: Write]" in refused.text
    assert not beside.exists()
