"""The program on ``docs/inbox.md`` works as printed, and its tables name every method and field."""

import asyncio
import contextlib
import inspect
import os
import re
import sys
from pathlib import Path

import attrs
from tests.docs.pages import block, page

from molecule_connect import Inbox, InboxMessage
from molecule_connect_sandbox.testing import Sandbox

PAGE = page("inbox.md")


async def test_program_on_the_page_answers(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(block(PAGE, "python", '"""Answer messages'))
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "PLATFORM_URL": sandbox.url,
            "WORKSPACE_ID": workspace.id,
            "MOLECULE_WORKSPACE_TOKEN": workspace.token,
            "MOLECULE_STATE_DIR": str(tmp_path / "state"),
        }
        program = await asyncio.create_subprocess_exec(*(sys.executable, "program.py"), cwd=tmp_path, env=environment)
        try:
            await sandbox.say(workspace, "", parts=[{"kind": "data", "data": {"no": "text"}}])
            await sandbox.say(workspace, "hello")
            (answer,) = await sandbox.answers(workspace, 1, timeout=20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                program.kill()
            await program.wait()
    assert answer.text == "HELLO"


def test_page_names_every_public_inbox_method() -> None:
    public = {name for name, value in inspect.getmembers(Inbox) if not name.startswith("_") and name != "close"}
    assert public <= set(re.findall(r"inbox\.(\w+)", PAGE))


def test_page_names_every_message_field() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert {field.name for field in attrs.fields(InboxMessage)} <= named
