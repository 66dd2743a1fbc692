"""``docs/remote-agent.md`` and the code say the same, and its first program answers."""

import asyncio
import inspect
import re
import sys
from pathlib import Path

from tests.docs.pages import block, page
from tests.e2e.kit import clean_environ

import molecule_connect
from molecule_connect import MoleculeError
from molecule_connect_agent import RemoteAgentClient
from molecule_connect_sandbox.testing import Sandbox

PAGE = page("remote-agent.md")


async def test_the_first_program_reads_and_answers(tmp_path: Path) -> None:
    program = tmp_path / "agent.py"
    program.write_text(block(PAGE, "python", "import os"))
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        await sandbox.say(workspace, "three words here")
        environ = {
            **clean_environ(),
            "HOME": str(tmp_path),
            "MOLECULE_API_URL": sandbox.url,
            "WORKSPACE_ID": workspace.id,
            "MOLECULE_WORKSPACE_TOKEN": workspace.token,
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(program), env=environ, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        answers = await sandbox.answers(workspace, 1)

    assert (process.returncode, err) == (0, b"")
    assert out == b"message three words here\n"
    assert [answer.text for answer in answers] == ["3 words"]


def test_all_programs_on_the_page_parse() -> None:
    for program in re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        compile(program, "remote-agent.md", "exec")


def test_all_members_on_the_page_exist() -> None:
    named = set(re.findall(r"`(?:client\.)?(\w+)\([^`]*\)`", PAGE)) | set(re.findall(r"client\.(\w+)\(", PAGE))
    members = {name for name, _ in inspect.getmembers(RemoteAgentClient)}

    assert named - members == set()
    assert {"register", "activity", "reply", "call_peer", "install_plugin"} <= named


def test_all_errors_in_the_table_exist() -> None:
    table = PAGE.partition("## Errors")[2].partition("## ")[0]
    errors = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)

    assert len(errors) == 6
    assert all(issubclass(getattr(molecule_connect, name), MoleculeError) for name in errors)
