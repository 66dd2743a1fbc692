"""Connectors that write to each other, and peers that answer everything: each exchange stops by itself."""

import asyncio
import contextlib
import json
from pathlib import Path

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, registered
from .test_operating import molecule


async def exchanged(tmp_path: Path, sandbox: Sandbox, *workspaces: Workspace) -> list[tuple[int, int]]:
    """Each writes to the next while connectors serve all: how many answers each gave, and how many came to it."""
    async with contextlib.AsyncExitStack() as stack:
        connectors = [
            await stack.enter_async_context(Connector(sandbox, workspace, tmp_path / workspace.id))
            for workspace in workspaces
        ]
        for workspace in workspaces:
            await registered(sandbox, workspace)
        for workspace, following in zip(workspaces, workspaces[1:] + workspaces[:1], strict=True):
            await sandbox.say(following, "hello", sender=workspace)
        for workspace in workspaces:
            # Its own question, and its answer.
            await sandbox.answers(workspace, 2)
        for connector in connectors:
            await connector.says("answer from")
        # A second round would come by now.
        await asyncio.sleep(1)
        for connector in connectors:
            assert await connector.stop() == 0
        return [
            (len(await sandbox.answers(workspace)) - 1, connector.output.count("answer from"))
            for workspace, connector in zip(workspaces, connectors, strict=True)
        ]


async def test_two_connectors_answer_each_other_once(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        assert await exchanged(tmp_path, sandbox, *await sandbox.pair()) == [(1, 1)] * 2


async def test_three_connectors_answer_once_each(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        parent, child = await sandbox.pair()
        other = await sandbox.workspace("other", parent=parent)
        assert await exchanged(tmp_path, sandbox, parent, child, other) == [(1, 1)] * 3


async def test_repeating_peer_becomes_dead_and_is_replayable(
    tmp_path: Path,
) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, parrot = await sandbox.pair()
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            for number in range(5):
                await sandbox.say(workspace, "Ready.", sender=parrot)
                await sandbox.answers(workspace, number + 1)
            await sandbox.say(workspace, "Ready.", sender=parrot)
            await connector.says(f"given up: loop: 5 identical exchanges in a row with {parrot.id}")
            code, _ = await molecule(tmp_path, "messages", "replay", "--all-dead", "--reason", "loop", "--yes")
            assert code == 0
            answers = await sandbox.answers(workspace, 6)
            assert await connector.stop() == 0
    assert [answer.text for answer in answers] == ["echo: Ready."] * 6


async def test_talkative_peer_exhausts_its_budget(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        async with Connector(sandbox, workspace, tmp_path, "--backend", "mock", "--peer-budget", "4/600") as connector:
            await registered(sandbox, workspace)
            # The first message answers nothing of ours.
            for number in range(5):
                await sandbox.say(workspace, f"and then {number}?", sender=peer)
                assert len(await sandbox.answers(workspace, number + 1)) == number + 1
            await sandbox.say(workspace, "and then 5?", sender=peer)
            await connector.says("loop brake")
            await sandbox.say(workspace, "I am a person")
            await sandbox.answers(workspace, 6)
            _, document = await molecule(tmp_path, "messages", "list", "--state", "received", "--json")
            assert await connector.stop() == 0
        texts = [answer.text for answer in await sandbox.answers(workspace)]
    assert texts == [*(f"echo: and then {number}?" for number in range(5)), "echo: I am a person"]
    (waiting,) = json.loads(document)["messages"]
    assert waiting["text"] == "and then 5?"
    assert f"{peer.id} has used up its 4 turns a minute" in str(waiting)
