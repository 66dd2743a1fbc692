"""No reply is sent twice: the backend runs once, and its reply arrives once or becomes a dead letter."""

import asyncio
import collections
import json
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, exec_options, registered
from .test_operating import molecule

GENERATIONS = pytest.mark.parametrize("platform", ["2026-05", "2026-08"])

# The first sends to a peer meet this; how often the peer gets the answer, on the newer platform and on the older.
ACCEPTED_IN_THE_END = {
    "status=500,times=2": (1, 1),
    "status=401,times=1": (1, 1),
    "bare-status=404,times=1": (1, 1),
    "bare-status=502,times=1": (1, 1),
    "unavailable=1,times=2": (1, 1),
    "rate-limited=1,times=2": (1, 1),
    "html,times=1": (1, 1),
    "cut-before,times=1": (1, 1),
    # The platform took it and could not say so.
    "cut-after,times=1": (1, 2),
    "cut-short,times=1": (1, 2),
    "empty-answers": (1, 1),
    "accepted": (1, 1),
    "delivery-confirmed": (1, 1),
    "slow-answers=3": (1, 1),
}
REFUSED = {
    "status=400": "400",
    "status=403": "403 access denied",
    "status=404": "404 workspace not found",
    "status=413": "413",
    "rpc-error": "the peer refused",
}


@pytest.mark.drill
@pytest.mark.timeout(120)
@GENERATIONS
async def test_peer_reply_arrives_or_is_dead(platform: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    trouble = [*ACCEPTED_IN_THE_END, *REFUSED]
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace = await sandbox.workspace("target")
        peers = {fault: await sandbox.workspace(f"p{n}", parent=workspace) for n, fault in enumerate(trouble)}
        await sandbox.faults(*(aimed_at(fault, peer) for fault, peer in peers.items()))
        options = exec_options(answer_and_note(runs), concurrency="32")
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            await registered(sandbox, workspace)
            for fault, peer in peers.items():
                await sandbox.say(workspace, fault, sender=peer)
            expected = sum(accepted[platform == "2026-05"] for accepted in ACCEPTED_IN_THE_END.values())
            await sandbox.answers(workspace, expected, timeout=60)
            await asyncio.sleep(2)
            _, document = await molecule(tmp_path / "state", "messages", "list", "--state", "dead", "--json")
            # A conversation whose answer was refused goes on.
            await sandbox.faults()
            for fault in REFUSED:
                await sandbox.say(workspace, f"after {fault}", sender=peers[fault])
            answers = await sandbox.answers(workspace, expected + len(REFUSED), timeout=20)
            assert await connector.stop() == 0
    got = collections.Counter(answer.text for answer in answers)
    wanted = {fault: accepted[platform == "2026-05"] for fault, accepted in ACCEPTED_IN_THE_END.items()}
    assert got == wanted | {f"after {fault}": 1 for fault in REFUSED}
    assert len({answer.message_id for answer in answers}) == len(got)
    reasons = {message["text"]: message["reason"] for message in json.loads(document)["messages"]}
    assert reasons.keys() == REFUSED.keys()
    for fault, words in REFUSED.items():
        assert words in reasons[fault]
    assert sorted(runs.read_text().splitlines()) == sorted([*trouble, *(f"after {fault}" for fault in REFUSED)])


def answer_and_note(runs: Path) -> str:
    """A command that answers with what it is asked, and adds it to a file."""
    return f'text=$(cat); printf \'%s\\n\' "$text" >> {runs}; printf %s "$text"'


def aimed_at(fault: str, peer: Workspace) -> str:
    """*fault*, for what is sent to *peer* alone."""
    return f"{fault},path=/workspaces/{peer.id}/a2a"


@pytest.mark.drill
@pytest.mark.timeout(120)
@GENERATIONS
async def test_reply_to_person_arrives_once_despite_failures(platform: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    trouble = ["cut-before", "cut-after", "cut-short", "status=500", "unavailable=1", "html", "empty-answers"]
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace = await sandbox.workspace()
        options = exec_options(answer_and_note(runs))
        async with Connector(sandbox, workspace, tmp_path / "state", *options) as connector:
            await registered(sandbox, workspace)
            for number, fault in enumerate(trouble):
                await sandbox.faults(f"{fault},path=/notify,times=1")
                await sandbox.say(workspace, fault)
                assert len(await sandbox.answers(workspace, number + 1, timeout=30)) == number + 1
            # One that the feed shows already would be said again by now.
            await asyncio.sleep(8)
            assert await connector.stop() == 0
        answers = await sandbox.answers(workspace)
    assert [answer.text for answer in answers] == trouble
    assert runs.read_text().splitlines() == trouble


@pytest.mark.drill
@pytest.mark.timeout(180)
@pytest.mark.parametrize("fault", ["bare-status=503", "status=500", "cut-before", "status=401"])
@pytest.mark.parametrize("to_people", [True, False], ids=["people", "peers"])
async def test_refused_replies_are_reported_and_sent_later(fault: str, to_people: bool, tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace = await sandbox.workspace("target")
        peers = [await sandbox.workspace(f"p{number}", parent=workspace) for number in range(3)]
        senders = [None] if to_people else peers
        aimed = [f"{fault},path=/notify"] if to_people else [aimed_at(fault, peer) for peer in peers]
        async with Connector(sandbox, workspace, tmp_path / "state", *exec_options("cat")) as connector:
            await registered(sandbox, workspace)
            await sandbox.faults(*aimed)
            for number, sender in enumerate(senders):
                await sandbox.say(workspace, f"{number}", sender=sender)
            await connector.says("sending: no reply to ", seconds=90)
            while (await molecule(tmp_path / "state", "status", workspace.id))[0] != 1:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.2)
            await sandbox.faults()
            answers = await sandbox.answers(workspace, len(senders), timeout=30)
            await connector.says("sending: recovered")
            assert await connector.stop() == 0
    assert sorted(answer.text for answer in answers) == [f"{number}" for number in range(len(senders))]
