"""No message is lost: real connectors over real HTTP, against feeds with traps, on both generations."""

import asyncio
import signal
from pathlib import Path

import pytest

from molecule_connect_sandbox.testing import Sandbox, Workspace

from .kit import Connector, asked, exec_options, message_row, registered, until_asked

GENERATIONS = pytest.mark.parametrize("platform", ["2026-05", "2026-08"])
LOOK_BACK = ("--backend", "mock", "--since-secs", "600", "--peer-budget", "0/0")
WAITING = 1200
PEERS = 4


async def fill(sandbox: Sandbox, workspace: Workspace) -> dict[str, str]:
    """1,200 messages of four peers become readable in one moment; each text and whose it is."""
    peers = [await sandbox.workspace(f"peer-{number}", parent=workspace) for number in range(PEERS)]
    senders = {f"{number}": peers[number % PEERS] for number in range(WAITING)}
    await sandbox.add_rows(workspace, *(message_row(text, sender=sender) for text, sender in senders.items()))
    return {text: sender.id for text, sender in senders.items()}


async def served_before(sandbox: Sandbox, workspace: Workspace, state: Path) -> None:
    """An earlier connector left a journal whose anchor is a row that was too old for it."""
    await sandbox.add_rows(workspace, message_row("before the first start"))
    # The platform tells its time in whole seconds.
    await asyncio.sleep(1.5)
    first = ("--backend", "mock", "--since-secs", "0", "--once")
    async with Connector(sandbox, workspace, state, *first) as connector:
        assert await connector.ended() == 0
    assert await sandbox.answers(workspace) == []


@pytest.mark.drill
@pytest.mark.timeout(180)
@GENERATIONS
@pytest.mark.parametrize("anchored", [False, True], ids=["first-start", "with-an-anchor"])
async def test_kill_amid_a_backlog_loses_nothing(platform: str, anchored: bool, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace = await sandbox.workspace("target")
        if anchored:
            await served_before(sandbox, workspace, tmp_path)
        senders = await fill(sandbox, workspace)
        async with Connector(sandbox, workspace, tmp_path, *LOOK_BACK) as connector:
            assert len(await sandbox.answers(workspace, WAITING // 2, timeout=60)) >= WAITING // 2
            await connector.stop(signal.SIGKILL)
        assert len(await sandbox.answers(workspace)) < WAITING
        async with Connector(sandbox, workspace, tmp_path, *LOOK_BACK) as connector:
            await sandbox.answers(workspace, WAITING, timeout=60)
            # What would come a second time would come by now.
            await asyncio.sleep(2)
            answers = await sandbox.answers(workspace)
            assert await connector.stop() == 0
    # An answer of unknown outcome is sent again with its id, which an older platform cannot absorb.
    once = {(answer.text, answer.message_id): answer for answer in answers}
    assert {answer.text.removeprefix("echo: "): answer.to for answer in once.values()} == senders
    assert len(once) == WAITING
    if platform == "2026-08":
        assert len(answers) == WAITING
    for peer in set(senders.values()):
        order = [int(text.removeprefix("echo: ")) for (text, _), answer in once.items() if answer.to == peer]
        assert order == sorted(order)


@pytest.mark.drill
@pytest.mark.timeout(180)
@GENERATIONS
async def test_row_of_16_megabytes_is_answered(platform: str, tmp_path: Path) -> None:
    size = 16_000_000
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        # Each of these characters is six in JSON.
        await sandbox.add_rows(workspace, message_row("\x01" * size, sender=peer), message_row("small", sender=peer))
        options = (*exec_options("wc -c | tr -d ' '"), "--since-secs", "600", "--once")
        async with Connector(sandbox, workspace, tmp_path, *options) as connector:
            assert await connector.ended(90) == 0
        answers = await sandbox.answers(workspace, 2)
    assert [answer.text for answer in answers] == [str(size), "5"]


@pytest.mark.drill
@pytest.mark.timeout(180)
async def test_too_large_row_becomes_a_dead_letter(tmp_path: Path) -> None:
    async with Sandbox.over_loopback() as sandbox:
        workspace, peer = await sandbox.pair()
        rows = [message_row(text, sender=peer) for text in ("before", "\x01" * 24_000_000, "behind")]
        await sandbox.add_rows(workspace, *rows)
        async with Connector(
            sandbox, workspace, tmp_path, "--since-secs", "600", "--once", "--backend", "mock"
        ) as first:
            assert await first.ended(90) == 0
        answers = await sandbox.answers(workspace, 2)
    assert [answer.text for answer in answers] == ["echo: before", "echo: behind"]
    assert "given up: unreadable: it is too large to be read" in first.output


# What the reads meet, and what is said of it where it is more than a blip.
SPOILT = {
    "html": "not the platform's JSON",
    "cut-short": "activity",
    "bare-status=404": "Origin",
    "bare-status=502": "activity: 502",
    "status=500": "activity: 500",
    "status=401": "activity: 401",
    "cut-before": "activity",
    "rate-limited=1": "activity: 429",
    "prune": "no longer knows the row",
    "status=410": "activity: 410",
    "equal-times=4": "",
    "slow-bodies=1": "",
    "no-cursor": "",
}


@pytest.mark.drill
@pytest.mark.timeout(180)
@GENERATIONS
async def test_read_failures_are_reported_and_lose_nothing(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        await served_before(sandbox, workspace, tmp_path)
        async with Connector(sandbox, workspace, tmp_path, *LOOK_BACK) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "first", sender=peer)
            await sandbox.answers(workspace, 1)
            for number, (fault, words) in enumerate(SPOILT.items()):
                heard = len(connector.output)
                where = "" if fault.startswith("equal-times") else ",path=/activity,times=3"
                await sandbox.faults(fault + where)
                for index in range(4):
                    await sandbox.say(workspace, f"{fault} {index}", sender=peer)
                assert len(await sandbox.answers(workspace, 1 + 4 * (number + 1), timeout=40)) == 1 + 4 * (number + 1)
                await connector.says(words, since=heard)
            assert await connector.stop() == 0
        answers = await sandbox.answers(workspace)
    expected = ["first", *(f"{fault} {index}" for fault in SPOILT for index in range(4))]
    assert [answer.text for answer in answers] == [f"echo: {text}" for text in expected]
    assert workspace.token not in connector.output


@pytest.mark.drill
@GENERATIONS
async def test_lasting_410_is_reported_without_hammering(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        await served_before(sandbox, workspace, tmp_path)
        async with Connector(sandbox, workspace, tmp_path, *LOOK_BACK) as connector:
            await registered(sandbox, workspace)
            await sandbox.faults("status=410,path=/activity")
            before = await asked(sandbox, "/activity")
            await sandbox.say(workspace, "hello", sender=peer)
            await connector.says("intake: activity: 410")
            beats = await sandbox.beats(workspace, 2, timeout=10)
            await asyncio.sleep(8)
            assert await asked(sandbox, "/activity") - before < 20
            await sandbox.faults()
            answers = await sandbox.answers(workspace, 1, timeout=20)
            assert await connector.stop() == 0
    assert [beat["runtime_state"] for beat in beats if beat.get("runtime_state")] == ["wedged"]
    assert [answer.text for answer in answers] == ["echo: hello"]


@GENERATIONS
async def test_odd_rows_and_ids_are_harmless(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        constant = [message_row(text, sender=peer, messageId="1") for text in ("one", "two", "two", "three")]
        odd = [{}, {"method": "message/send", "status": "error"}, {"activity_type": "task_update"}]
        await sandbox.add_rows(workspace, *odd, *constant)
        await sandbox.faults("blank-ids,path=/activity,times=1")
        async with Connector(sandbox, workspace, tmp_path, *LOOK_BACK) as connector:
            await registered(sandbox, workspace)
            await until_asked(sandbox, "/activity")
            await sandbox.say(workspace, "four", sender=peer)
            answers = await sandbox.answers(workspace, 4)
            assert await connector.stop() == 0
        assert len(await sandbox.answers(workspace)) == 4
    # The same words again under the same id are a sender that retries.
    assert [answer.text for answer in answers] == ["echo: one", "echo: two", "echo: three", "echo: four"]


@GENERATIONS
async def test_nul_is_removed_from_replies(platform: str, tmp_path: Path) -> None:
    async with Sandbox.over_loopback(platform=platform) as sandbox:
        workspace, peer = await sandbox.pair()
        async with Connector(sandbox, workspace, tmp_path, *exec_options(r"printf 'a\000b'")) as connector:
            await registered(sandbox, workspace)
            await sandbox.say(workspace, "to a person")
            await sandbox.say(workspace, "to a peer", sender=peer)
            answers = await sandbox.answers(workspace, 2)
            assert await connector.stop() == 0
    assert [answer.text for answer in answers] == ["ab", "ab"]
