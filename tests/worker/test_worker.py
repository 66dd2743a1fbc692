"""A whole worker against a platform in memory: messages are answered once, in order."""

import asyncio
import json

import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, echo

from molecule_connect import events
from molecule_connect.config.settings import PeerBudget
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Progress, Request, Response


@pytest.mark.parametrize("has_stream", [True, False])
async def test_answers_people_and_peers_once(journal: Journal, has_stream: bool) -> None:
    platform = FakePlatform(has_stream=has_stream)
    platform.write("before", caller="peer-1", age=10)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
        platform.write("from a person")
        platform.write("from a peer", caller="peer-1")
        await platform.until(lambda: len(platform.sent) == 3)
        await asyncio.sleep(120)
    assert sorted(platform.answers()) == ["echo: before", "echo: from a peer", "echo: from a person"]
    assert [state for _, state in serving.rows()] == ["done"] * 3
    assert serving.events.of(events.Trouble) == []


async def test_answers_waiting_messages_oldest_first(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(30):
        platform.write(f"{number}", caller="peer-1", age=29 - number / 2)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 30)
    assert platform.answers() == [f"echo: {number}" for number in range(30)]


async def test_cursor_file_is_private_and_current(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("one")
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(60)
    path = journal.path.parent / f"{WORKSPACE}.json"
    assert json.loads(path.read_text()) == {"workspace_id": WORKSPACE, "last_since_id": platform.rows[-1].item.row_id}
    assert path.stat().st_mode & 0o777 == 0o600


async def test_stop_finishes_and_sends_running_message(journal: Journal) -> None:
    platform, entered, release = FakePlatform(), asyncio.Event(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        entered.set()
        await release.wait()
        return Response.from_text("done")

    platform.write("slow")
    async with Serving(platform, journal, handler) as serving:
        await entered.wait()
        serving.stop.set()
        asyncio.get_running_loop().call_later(5, release.set)
    assert platform.answers() == ["done"]
    assert platform.beats[-1].wedged == "stopped"
    assert serving.rows() == [("row-1", "done")]


async def test_unfinished_message_is_requeued_after_grace(journal: Journal) -> None:
    platform, entered = FakePlatform(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    platform.write("endless")
    async with Serving(platform, journal, handler, grace=2.0) as serving:
        await entered.wait()
    assert serving.rows("row_id, state, attempt, interruptions") == [("row-1", "received", 0, 0)]


async def test_first_heartbeat_follows_registering(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(0.9)
        assert len(platform.beats) == 1
        await asyncio.sleep(90)
    assert len(platform.beats) == 5  # at 0, 30, 60 and 90 s, and at the end


async def test_once_answers_waiting_messages_and_ends(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(3):
        platform.write(f"{number}", age=5 - number)
    serving = Serving(platform, journal, once=True)
    async with asyncio.timeout(60):
        await serving.connection.run(serving.stop)
    assert platform.answers() == ["echo: 0", "echo: 1", "echo: 2"]


async def test_410_keeps_the_order_of_conversations(
    journal: Journal,
) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        await asyncio.sleep(6.8 if request.text == "0" else 0)
        return await echo(request, progress)

    platform.write("first", caller="peer-1")
    async with Serving(platform, journal, handler, poll_interval=5.0, peer_budget=PeerBudget(per_minute=0, per_hour=0)):
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(120)
        platform.write("0", caller="peer-1", age=2)
        await platform.until(lambda: journal.of(WORKSPACE).waiting() == 1)
        platform.fetch_delay, platform.expired = 0.7, True
        for number in range(1, 1200):
            platform.write(f"{number}", caller="peer-1", age=(1200 - number) / 1000)
        await platform.until(lambda: len(platform.sent) == 1201)
    assert platform.answers()[1:] == [f"echo: {number}" for number in range(1200)]
