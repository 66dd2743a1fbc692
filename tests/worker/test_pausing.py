"""A paused workspace: online and reading, but running nothing until it is resumed."""

import asyncio
from typing import Any

from tests.worker.kit import FakePlatform, Serving

from molecule_connect import events
from molecule_connect.errors import TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Page, Progress, Request, Response, Signal, WorkspaceStatus


async def test_paused_at_the_start_reads_without_registering(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.PAUSED)
    platform.write("hi")
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(100)
        assert (platform.cards, platform.sent) == ([], [])
        assert len(platform.beats) == 4
        assert serving.rows() == [("row-1", "received")]
        assert len(serving.events.of(events.Paused)) == 1


async def test_unpause_registers_a_paused_workspace(journal: Journal) -> None:
    class Unpausing(FakePlatform):
        async def register(self, card: dict[str, object]) -> str:
            self.status = WorkspaceStatus.ACTIVE
            return await super().register(card)

    platform = Unpausing(status=WorkspaceStatus.PAUSED)
    platform.write("hi")
    async with Serving(platform, journal, unpause=True):
        await asyncio.sleep(700)
    assert len(platform.cards) == 1
    assert platform.answers() == ["echo: hi"]


async def test_stream_announces_a_pause(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(40)
        platform.status = WorkspaceStatus.PAUSED
        platform.signal(Signal.STATUS)
        await asyncio.sleep(1)
        platform.write("hi")
        await asyncio.sleep(60)
        assert serving.rows() == [("row-1", "received")]
        platform.status = WorkspaceStatus.ACTIVE
        platform.signal(Signal.STATUS)
        await asyncio.sleep(1)
        assert platform.answers() == ["echo: hi"]
    assert len(platform.cards) == 2  # registers again after the pause


async def test_checks_every_five_minutes_without_stream(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        platform.status = WorkspaceStatus.PAUSED
        await asyncio.sleep(301)
        platform.write("hi")
        await asyncio.sleep(60)
        assert serving.rows() == [("row-1", "received")]
        platform.status = WorkspaceStatus.ACTIVE
        await asyncio.sleep(300)
        assert platform.answers() == ["echo: hi"]


async def test_pause_finishes_running_messages_only(
    journal: Journal,
) -> None:
    platform, entered, release = FakePlatform(has_stream=True), asyncio.Event(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        entered.set()
        await release.wait()
        return Response.from_text(request.text)

    platform.write("runs", context="a", age=2)
    platform.write("waits for a slot", context="b", age=1)
    platform.write("is behind", context="a")
    async with Serving(platform, journal, handler, concurrency=1) as serving:
        await entered.wait()
        platform.status = WorkspaceStatus.PAUSED
        platform.signal(Signal.STATUS)
        await asyncio.sleep(5)
        release.set()
        await asyncio.sleep(60)
        assert platform.answers() == ["runs"]
        assert [state for _, state in serving.rows()] == ["done", "received", "received"]
        platform.status = WorkspaceStatus.ACTIVE
        platform.signal(Signal.STATUS)
        await platform.until(lambda: len(platform.sent) == 3, seconds=5)


async def test_endless_status_events_cause_few_checks(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal):
        await asyncio.sleep(5)
        before = len(platform.looks)
        for _ in range(500):
            platform.signal(Signal.STATUS)
            await asyncio.sleep(0.02)
        assert 1 <= len(platform.looks) - before <= 11


async def test_sends_stored_replies_while_paused(journal: Journal) -> None:
    cut = TransientPlatformError("a2a: 503", operation="a2a", status=503, retry_after=200.0)
    platform = FakePlatform(fail_send=[cut])
    platform.write("hi", caller="peer-1")
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(5)
        assert serving.rows() == [("row-1", "answered")]
    platform.status = WorkspaceStatus.PAUSED
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(300)
    assert platform.answers() == ["echo: hi"]


async def test_pause_survives_a_restart(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal):
        platform.status = WorkspaceStatus.PAUSED
        platform.signal(Signal.STATUS)
        await asyncio.sleep(5)
        platform.write("before")
        await asyncio.sleep(60)
    platform.write("between")
    async with Serving(platform, journal) as serving:
        platform.write("after")
        await asyncio.sleep(60)
        assert platform.sent == []
        assert [state for _, state in serving.rows()] == ["received"] * 3
        platform.status = WorkspaceStatus.ACTIVE
        platform.signal(Signal.STATUS)
        await asyncio.sleep(10)
    assert platform.answers() == ["echo: before", "echo: between", "echo: after"]


async def test_unknown_state_changes_nothing(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.UNKNOWN)
    platform.write("one")
    async with Serving(platform, journal):
        await asyncio.sleep(10)
        assert len(platform.sent) == 1
    platform.status = WorkspaceStatus.PAUSED
    platform.write("two")
    async with Serving(platform, journal):
        await asyncio.sleep(10)
        platform.status = WorkspaceStatus.UNKNOWN
        await asyncio.sleep(700)
        assert len(platform.sent) == 1


async def test_resumes_although_registering_fails(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.PAUSED)
    platform.write("hi")
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(1)
        platform.fail_register = [TransientPlatformError("register: 503", operation="register", status=503)] * 5
        platform.status = WorkspaceStatus.ACTIVE
        serving.connection._registration.check_soon()
        await asyncio.sleep(60)
        assert platform.answers() == ["echo: hi"]


async def test_once_ends_for_a_paused_workspace(journal: Journal) -> None:
    platform = FakePlatform(status=WorkspaceStatus.PAUSED)
    platform.write("hi")
    async with Serving(platform, journal, once=True) as serving:
        await serving.ended()
    assert serving.rows() == [("row-1", "received")]
    assert "paused" in serving.events.of(events.Notice)[-1].text


async def test_resume_during_the_first_read_keeps_order(journal: Journal) -> None:
    class SlowFeed(FakePlatform):
        async def fetch(self, **given: Any) -> Page:
            await asyncio.sleep(5)
            return await super().fetch(**given)

    platform = SlowFeed(status=WorkspaceStatus.PAUSED)
    for number in range(700):
        platform.write(str(number), caller="peer-1", age=20 - number / 100)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(7)  # the first page, with the newest rows, is stored
        platform.status = WorkspaceStatus.ACTIVE
        serving.connection._registration.check_soon()
        await platform.until(lambda: len(platform.sent) == 700, seconds=60)
    assert platform.answers() == [f"echo: {number}" for number in range(700)]
