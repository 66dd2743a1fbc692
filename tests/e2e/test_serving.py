"""``molecule connect`` as its user runs it, against a platform of either generation."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from molecule_connect.journal.inspect import Inspection
from molecule_connect_sandbox.testing import Sandbox

from .kit import Connector, registered

GENERATIONS = pytest.mark.parametrize("platform", ["2026-05", "2026-08"])


@GENERATIONS
async def test_answers_people_and_peers_in_order(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            for number in range(5):
                await sandbox.say(workspace, f"person {number}")
                await sandbox.say(workspace, f"peer {number}", sender=peer)
            answers = await sandbox.answers(workspace, 10)
            assert await connector.stop() == 0
        for to in (None, peer.id):
            who = "peer" if to else "person"
            assert [a.text for a in answers if a.to == to] == [f"echo: {who} {number}" for number in range(5)]
        assert len(await sandbox.answers(workspace)) == 10
        rows = [row["id"] for row in await sandbox.rows(workspace)]
        messages = [row["id"] for row in await sandbox.rows(workspace) if row["method"] == "message/send"]
    cursor = tmp_path / f"{workspace.id}.json"
    # The echo of the last answer may not have been read yet.
    assert rows.index(json.loads(cursor.read_text())["last_since_id"]) >= rows.index(messages[-1])
    assert cursor.stat().st_mode & 0o777 == 0o600
    assert workspace.token not in connector.output


@GENERATIONS
async def test_learns_the_names_of_peers(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        async with Connector(
            sandbox, workspace, tmp_path, "--backend", "mock", "--log-format", "json", "--log-level", "debug"
        ) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hello", sender=peer)
            await connector.says('"event": "peer_named"')
    with Inspection.open(tmp_path) as journal:
        assert journal.peer_names(workspace.id) == {peer.id: peer.name}


@GENERATIONS
async def test_backlog_is_answered_oldest_first(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        for number in range(30):
            await sandbox.say(workspace, f"{number}", sender=peer)
            await sandbox.rows(workspace, number + 1)
        async with Connector(sandbox, workspace, tmp_path, "--backend", "mock", "--once") as connector:
            assert await connector.ended() == 0
        answers = await sandbox.answers(workspace, 30)
    assert [answer.text for answer in answers] == [f"echo: {number}" for number in range(30)]


async def test_stored_reply_survives_a_kill(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = f"cat; echo run >> {runs}"
    async with Sandbox.over_loopback(faults=["unavailable=1,path=notify"]) as sandbox:
        workspace = await sandbox.workspace()
        options = ("--backend", "exec", "--backend-opt", f"cmd={command}")
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as first:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "hello")
            async with asyncio.timeout(20):
                while not any(path.endswith("/notify") for _, path in await sandbox.requests()):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            await first.stop(signal.SIGKILL)
        await sandbox.faults()
        async with Connector(sandbox, workspace, tmp_path / "state", *options):
            answers = await sandbox.answers(workspace, 1, timeout=30)
    assert [answer.text for answer in answers] == ["hello"]
    assert runs.read_text() == "run\n"


async def test_second_process_of_a_workspace_exits_5(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as first:
            await registered(sandbox, workspace)
            async with Connector(sandbox, workspace, tmp_path) as second:
                assert await second.ended() == 5
            assert first.process is not None
            assert f"process {first.process.pid}" in second.output


async def test_deleted_workspace_exits_4_with_a_hint(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            await sandbox.delete(workspace)
            assert await connector.ended() == 4
    assert "Create a replacement workspace" in connector.output
