"""Eight hostile peers at full speed, and a person who must not notice."""

import asyncio
import contextlib
import itertools
import json
import sys
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import PROGRAM, Connector, clean_environ, exec_options, registered
from .test_files import say_with, upload

PEERS, RATE = 8, 10.0
QUIET, LOUD, PAUSE = 10, 20, 2.0
# What the backend takes for a person's message, and what a person's wait may grow by.
RUN, MARGIN = 0.5, 1.0
# In the shell: a backend that takes more processor time than the connector would be what is measured.
BACKEND = f"""
text=$(head -c 100)
case "$text" in
    slow*) sleep 10 ;;
    *) sleep {RUN} ;;
esac
case "$text" in
    fail*) echo "I can't handle this" >&2; exit 1 ;;
esac
file=$(printf %s "$MOLECULE_FILES" | head -n 1)
echo "${{MOLECULE_CALLER_ID:-person}}: $text, $([ -z "$file" ] || wc -c < "$file") bytes"
"""


@contextlib.asynccontextmanager
async def sandbox_process(platform: str) -> AsyncIterator[Sandbox]:
    """A sandbox in a process of its own: here, this test's own requests would wait for the peers'."""
    options = SandboxOptions(platform=platform, admin_token="sandbox-admin")
    serving = ("sandbox", "--serve", "--platform", platform, "--admin-token", options.control_token)
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *serving, stdout=asyncio.subprocess.PIPE, env=clean_environ()
    )
    try:
        assert process.stdout is not None
        url = (await process.stdout.readline()).decode().strip()
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            yield Sandbox(url=url, options=options, client=client)
    finally:
        process.terminate()
        await process.wait()


@attrs.define
class Attack:
    """``taken`` is known at its end: how many messages of the peers the platform took."""

    taken: int = 0


@contextlib.asynccontextmanager
async def attacked(sandbox: Sandbox, target: Workspace) -> AsyncIterator[Attack]:
    """Peers write for as long as the block lasts."""
    peers = [await sandbox.workspace(f"hostile {number}", parent=target) for number in range(PEERS)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("hostile_peers.py")), sandbox.url, target.id, str(RATE)),
        *(sandbox.options.control_token, *(f"{peer.id}={peer.token}" for peer in peers)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    attack = Attack()
    try:
        yield attack
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        attack.taken = int(await process.stdout.read())
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def converse(sandbox: Sandbox, workspace: Workspace, name: str, count: int) -> None:
    """The person writes messages with a file, one every few seconds, whether or not there are answers."""
    for number in range(count):
        (file,) = await upload(sandbox, workspace, (f"{name}-{number}.png", bytes(100 + number)))
        await say_with(sandbox, workspace, f"{name} {number}", file)
        await asyncio.sleep(PAUSE)


async def canvas(sandbox: Sandbox, workspace: Workspace) -> list[dict[str, Any]]:
    """The rows that the person wrote and those of the answers to the person."""
    path = f"/workspaces/{workspace.id}/activity?source=canvas&limit=500"
    rows: list[dict[str, Any]] = (await sandbox.call("GET", path, token=workspace.token)).json()
    return rows


async def waits(sandbox: Sandbox, workspace: Workspace, name: str, count: int) -> list[float]:
    """How long each answer took from the moment that the message could be read, in seconds by the platform's clock."""
    expected = {f"person: {name} {number}, {100 + number} bytes": f"{name} {number}" for number in range(count)}
    async with asyncio.timeout(60):
        while True:
            rows = await canvas(sandbox, workspace)
            answers = [row for row in rows if row["method"] == "notify"]
            given = {row["response_body"]["result"]: moment(row) for row in answers}
            if expected.keys() <= given.keys():
                break
            await asyncio.sleep(0.5)
    texts = [row["response_body"]["result"] for row in answers]
    assert len(texts) == len(set(texts))
    asked = {
        row["request_body"]["params"]["message"]["parts"][0]["text"]: moment(row)
        for row in rows
        if row["method"] == "message/send"
    }
    return sorted(given[answer] - asked[text] for answer, text in expected.items())


def moment(row: dict[str, Any]) -> float:
    return datetime.fromisoformat(row["created_at"]).timestamp()


@pytest.mark.drill
@pytest.mark.timeout(300)
@pytest.mark.parametrize("generation", ["2026-05", "2026-08"])
async def test_person_is_answered_beside_eight_hostile_peers(generation: str, tmp_path: Path) -> None:
    options = (*exec_options(BACKEND, pass_meta="true"), "--log-format", "json", "--log-level", "debug", "--grace", "2")
    async with sandbox_process(generation) as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path, *options) as connector:
            await registered(sandbox, workspace)
            await converse(sandbox, workspace, "quiet", QUIET)
            quiet = await waits(sandbox, workspace, "quiet", QUIET)
            async with attacked(sandbox, workspace) as attack:
                began = time.monotonic()
                await converse(sandbox, workspace, "loud", LOUD)
                seconds = time.monotonic() - began
                loud = await waits(sandbox, workspace, "loud", LOUD)
            assert connector.process is not None
            assert connector.process.returncode is None
            answers = await sandbox.answers(workspace)
        told = [json.loads(line) for line in connector.output.splitlines()]
    beats = [datetime.fromisoformat(event["time"]).timestamp() for event in told if event["event"] == "beat"]
    to_peers = [one for one in answers if one.to is not None]
    print(json.dumps({"quiet": quiet, "loud": loud, "taken": attack.taken, "answers to peers": len(to_peers)}))
    assert attack.taken > PEERS * RATE * seconds / 2, "this machine is too busy for the attack"
    assert len({one.message_id for one in to_peers}) == len(to_peers) > LOUD
    assert all(one.text.startswith((f"{one.to}: ", "This message could not be answered")) for one in to_peers)
    assert max(later - earlier for earlier, later in itertools.pairwise(beats)) < 45
    # Of so few messages the slowest is the 99th percentile.
    assert loud[-1] <= quiet[-1] + RUN + MARGIN
