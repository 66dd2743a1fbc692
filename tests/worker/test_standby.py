"""``--standby``: a second process waits for the lease, does nothing before it has it, and then continues."""

import asyncio

from tests.worker.kit import FakePlatform, Serving

from molecule_connect import events
from molecule_connect.journal.journal import Journal


async def test_standby_takes_over_after_a_stop(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as first, Serving(platform, journal, standby=True) as second:
        platform.write("one", caller="peer")
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(60)
        assert "is served by process" in second.events.of(events.Notice)[0].text
        assert not second.events.of(events.Registered)
        first.stop.set()
        await first.ended()
        platform.write("two", caller="peer")
        await platform.until(lambda: len(platform.sent) == 2)
        assert len(second.events.of(events.Delivered)) == 1
    assert (first.error, second.error) == (None, None)


async def test_standby_handles_nothing_before_its_turn(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal), Serving(platform, journal, standby=True) as second:
        for number in range(5):
            platform.write(f"hello {number}", caller=None)
            second.connection.journal_changed()
            second.connection.clock_jumped()
        await asyncio.sleep(30)
        assert not second.events.of(events.MessageEvent)


async def test_standby_can_be_stopped_while_it_waits(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        async with Serving(platform, journal, standby=True) as second:
            await asyncio.sleep(5)
        assert second.error is None
        assert not second.events.of(events.Registered)


async def test_several_standbys_take_over_in_turn(journal: Journal) -> None:
    platform = FakePlatform()
    async with (
        Serving(platform, journal) as first,
        Serving(platform, journal, standby=True) as second,
        Serving(platform, journal, standby=True) as third,
    ):
        await asyncio.sleep(5)
        first.stop.set()
        await first.ended()
        await asyncio.sleep(5)
        assert len([*second.events.of(events.Registered), *third.events.of(events.Registered)]) == 1
    assert (second.error, third.error) == (None, None)
