"""Eight hostile peers at full speed, and one person who must not notice."""

import asyncio
import json
import shlex
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from molecule_connect_sandbox.testing import FORGERIES, Sandbox, Workspace

from .kit import Connector, exec_options, registered
from .test_files import say_with, upload

PEERS, MESSAGES, PAUSE = 8, 10, 2.0
# What the backend takes, and what a person's wait may grow by.
RUN, MARGIN = 0.5, 1.0
BACKEND = f"""
import json, pathlib, sys, time
request = json.load(sys.stdin)
time.sleep({RUN})
text = "".join(part.get("text", "") for part in request["parts"] if part["type"] == "text")
if text.startswith("fail"):
    sys.exit("I can't handle this")
sizes = [len(pathlib.Path(part["path"]).read_bytes()) for part in request["parts"] if part.get("path")]
print(json.dumps({{"text": f"{{request.get('caller_id')}} {{text}} {{sizes}}"}}))
"""


def attacks(target: Workspace) -> list[dict[str, Any]]:
    """The bodies of one round."""
    fake = [{"kind": "file", "file": {"uri": f"platform-pending:{target.id}/{uuid.uuid4()}"}} for _ in range(4000)]
    tiny = [{"kind": "file", "file": {"name": f"{number}", "bytes": "eA=="}} for number in range(900)]
    huge = dict.fromkeys(("messageId", "contextId"), "x" * 200000)
    said: list[dict[str, Any]] = [
        {"parts": [{"kind": "text", "text": f"fail {uuid.uuid4()}"}]},
        {"parts": [{"kind": "text", "text": f"fail {uuid.uuid4()}"}], "contextId": str(uuid.uuid4())},
        {"parts": [{"kind": "text", "text": f"flood {uuid.uuid4()}"}], "contextId": str(uuid.uuid4())},
        {"parts": fake, "contextId": str(uuid.uuid4())},
        {"parts": tiny},
        {"parts": [{"kind": "text", "text": "huge"}], **huge},
    ]
    messages = [{"role": "user", "messageId": str(uuid.uuid4()), **message} for message in said]
    return [{"jsonrpc": "2.0", "id": "1", "method": "message/send", "params": {"message": each}} for each in messages]


async def attack(sandbox: Sandbox, target: Workspace, peer: Workspace) -> None:
    while True:
        for body in attacks(target):
            await sandbox.post(target, body, sender=peer)
        await sandbox.forge(target, *FORGERIES, sender=peer)


@asynccontextmanager
async def attacked(sandbox: Sandbox, target: Workspace) -> AsyncIterator[None]:
    """Peers write for as long as the block lasts."""
    peers = [await sandbox.workspace(f"hostile {number}", parent=target) for number in range(PEERS)]
    tasks = [asyncio.ensure_future(attack(sandbox, target, peer)) for peer in peers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended


async def waits(sandbox: Sandbox, workspace: Workspace, name: str) -> list[float]:
    """How long the person waited for the answer to each message, in seconds."""
    found = []
    for number in range(MESSAGES):
        content = bytes(100 + number)
        (file,) = await upload(sandbox, workspace, (f"{name}-{number}.png", content))
        text, began = f"{name} {number}", time.monotonic()
        await say_with(sandbox, workspace, text, file)
        expected = f"None {text} [{len(content)}]"
        async with asyncio.timeout(60):
            while not any(one.to is None and one.text == expected for one in await sandbox.answers(workspace)):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        found.append(time.monotonic() - began)
        await asyncio.sleep(PAUSE)
    return found


@pytest.mark.drill
@pytest.mark.timeout(300)
@pytest.mark.parametrize("generation", ["2026-05", "2026-08"])
async def test_person_is_answered_beside_eight_hostile_peers(generation: str, tmp_path: Path) -> None:
    options = exec_options(f"{shlex.quote(sys.executable)} -c {shlex.quote(BACKEND)}", format="json", pass_meta="true")
    async with Sandbox.over_loopback(platform=generation) as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path, *options) as connector:
            await registered(sandbox, workspace)
            quiet = await waits(sandbox, workspace, "quiet")
            async with attacked(sandbox, workspace):
                loud = await waits(sandbox, workspace, "loud")
            assert connector.process is not None
            assert connector.process.returncode is None
            answers = await sandbox.answers(workspace)
    people = [one.text for one in answers if one.to is None]
    print(json.dumps({"quiet": sorted(quiet), "loud": sorted(loud), "answers": len(answers)}))
    assert sorted(people) == sorted(
        f"None {name} {number} [{100 + number}]" for name in ("quiet", "loud") for number in range(MESSAGES)
    )
    assert max(loud) <= max(quiet) + RUN + MARGIN
