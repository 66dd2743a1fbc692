"""No message is lost: rows appear late, behind newer ones, while six peers write at once."""

import asyncio
import random
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, registered

PEERS = 6


@pytest.mark.drill
@pytest.mark.timeout(240)
@pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
async def test_thousand_late_messages_are_answered_once(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform, faults=["late-commits=1-30"]) as sandbox:
        workspace = await sandbox.workspace("target")
        peers = [await sandbox.workspace(f"peer-{number}", parent=workspace) for number in range(PEERS)]
        async with Connector(sandbox, workspace, tmp_path) as connector:
            await registered(sandbox, workspace)
            await asyncio.gather(
                *(write(sandbox, workspace, peer, number) for number, peer in enumerate(peers)),
                upload(sandbox, workspace),
            )
            for _ in range(4):
                await sandbox.answers(workspace, 1000, timeout=20)
            # What would come a second time would come by now.
            await asyncio.sleep(5)
            answers = await sandbox.answers(workspace)
            assert await connector.stop() == 0
    texts = sorted(answer.text for answer in answers)
    assert texts == sorted(f"echo: {number}-{index}" for number in range(PEERS) for index in range(share(number)))


def share(number: int) -> int:
    """How many of the thousand are this peer's."""
    return 1000 // PEERS + (1 if number < 1000 % PEERS else 0)


async def write(sandbox: Sandbox, workspace: Workspace, peer: Workspace, number: int) -> None:
    chance = random.Random(number)
    for index in range(share(number)):
        answered = await sandbox.say(workspace, f"{number}-{index}", sender=peer)
        assert answered.status_code == 200
        await asyncio.sleep(chance.random() / 5)


async def upload(sandbox: Sandbox, workspace: Workspace) -> None:
    mark = "boundary"
    body = (
        f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n'
        f"Content-Type: text/plain\r\n\r\nalpha\r\n--{mark}--\r\n"
    ).encode()
    for _ in range(15):
        answered = await sandbox.call(
            "POST",
            f"/workspaces/{workspace.id}/chat/uploads",
            body,
            token=workspace.token,
            Content_Type=f"multipart/form-data; boundary={mark}",
        )
        assert answered.status_code == 200
        await asyncio.sleep(1)
