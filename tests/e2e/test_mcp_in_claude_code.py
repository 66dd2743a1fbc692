"""``molecule mcp`` in the real Claude Code, against a stand-in for the API it talks to."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import clean_environ
from .mcp_host import environ_for
from .messages_api import MessagesApi
from .test_claude_code import environ_for as claude_environ

pytestmark = [pytest.mark.drill, pytest.mark.timeout(300)]


async def asked(
    program: Path, api: MessagesApi, sandbox: Sandbox, workspace: Workspace, folder: Path, prompt: str
) -> list[dict[str, Any]]:
    """What a session of the program tells, which has our server in its ``--mcp-config``."""
    environ = environ_for(sandbox, workspace, folder / "state")
    ours = {name: value for name, value in environ.items() if name not in clean_environ()}
    server = {"command": sys.executable, "args": ["-m", "molecule_connect", "mcp"], "env": ours}
    config = json.dumps({"mcpServers": {"molecule": server}})
    words = ["--output-format", "stream-json", "--verbose", "--strict-mcp-config", "--mcp-config", config]
    process = await asyncio.create_subprocess_exec(
        str(program),
        "-p",
        *words,
        "--allowedTools",
        "mcp__molecule",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=folder,
        # The program does not wait for its servers otherwise, and on a busy machine begins without the tools.
        env={**clean_environ(), **claude_environ(api, folder), "MCP_CONNECTION_NONBLOCKING": "false"},
    )
    async with asyncio.timeout(120):
        said, _ = await process.communicate(prompt.encode())
    return [json.loads(line) for line in said.splitlines()]


async def test_claude_code_takes_and_answers_a_message(program: Path, api: MessagesApi, tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.say(workspace, "are you there?")
        wait = '[[use mcp__molecule__wait_for_message {"timeout_secs": 20}]]'
        first = await asked(program, api, sandbox, workspace, tmp_path, wait)
        (row,) = await sandbox.rows(workspace, 1)
        answer = json.dumps({"activity_id": row["id"], "text": "here I am"})
        await asked(program, api, sandbox, workspace, tmp_path, f"[[use mcp__molecule__reply {answer}]]")
        assert [one.text for one in await sandbox.answers(workspace, 1)] == ["here I am"]
    begun = next(line for line in first if line.get("subtype") == "init")
    assert [server["status"] for server in begun["mcp_servers"]] == ["connected"]
    tools = {tool for tool in begun["tools"] if tool.startswith("mcp__molecule__")}
    assert {"mcp__molecule__wait_for_message", "mcp__molecule__reply", "mcp__molecule__inbox_pop"} <= tools
    assert len(tools) == 11
    assert "are you there?" in first[-1]["result"]
