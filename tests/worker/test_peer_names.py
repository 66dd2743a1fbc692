"""Looking up the names of peers."""

import asyncio

from tests.worker.kit import WORKSPACE, FakePlatform, Serving

from molecule_connect import events
from molecule_connect.errors import PermanentPlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.worker.peer_names import FEW, NAME_AGE, PAUSE, UNKNOWN_AGE
from molecule_connect.worker.ports import Pace


def named(serving: Serving) -> list[tuple[str, str]]:
    return [(event.peer_id, event.name) for event in serving.events.of(events.PeerNamed)]


async def test_keeps_the_names_of_peers_that_write(journal: Journal) -> None:
    platform = FakePlatform(listed={"peer-a": "Ops", "peer-b": "Silent"})
    platform.write(caller="peer-a")
    platform.write()
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(named(serving)))
        platform.write(caller="peer-a")
        await platform.until(lambda: len(platform.sent) == 3)

    assert named(serving) == [("peer-a", "Ops")]
    assert journal.of(WORKSPACE).peer_names() == {"peer-a": "Ops"}
    assert platform.lookups == ["*"]


async def test_one_list_names_later_peers_at_once(journal: Journal) -> None:
    platform = FakePlatform(listed={"peer-a": "Ops", "peer-b": "Research"})
    platform.write(caller="peer-a")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(named(serving)))
        platform.write(caller="peer-b")
        await platform.until(lambda: len(named(serving)) == 2, PAUSE / 2)

    assert platform.lookups == ["*"]


async def test_asks_for_unlisted_peers_one_by_one(journal: Journal) -> None:
    platform = FakePlatform(unlisted={"peer-a": "Ops"})
    for number in range(FEW + 2):
        platform.write(caller=f"peer-{number}")
    platform.write(caller="peer-a")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(named(serving)))

    assert named(serving) == [("peer-a", "Ops")]
    assert platform.lookups.count("*") == 2
    assert len(set(platform.lookups)) == len(platform.lookups) - 1 == FEW + 4


async def test_refused_lookups_are_silent_and_repeated_later(journal: Journal) -> None:
    platform = FakePlatform(listed={"peer-a": "Ops"})
    refused = PermanentPlatformError("peers: no such endpoint", operation="peers", status=404, body="")
    platform.fail_lookup = [refused, refused]
    platform.write(caller="peer-a")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.lookups) == 2 and len(platform.sent) == 1)
        await asyncio.sleep(UNKNOWN_AGE)
        platform.write(caller="peer-a")
        await platform.until(lambda: bool(named(serving)))

    assert not serving.events.of(events.Trouble)
    assert not serving.events.of(events.Notice)


async def test_unreachable_registry_is_asked_again(journal: Journal) -> None:
    platform = FakePlatform(listed={"peer-a": "Ops"})
    platform.fail_lookup = [TransientPlatformError("peers: 503", operation="peers")]
    platform.write(caller="peer-a")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(named(serving)), 2 * PAUSE)

    assert platform.lookups == ["*", "*"]
    assert not serving.events.of(events.Trouble)


async def test_names_are_refreshed_after_a_day(journal: Journal) -> None:
    platform = FakePlatform(listed={"peer-a": "Ops"})
    platform.write(caller="peer-a")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(named(serving)))
        platform.listed = {"peer-a": "Operations"}
        await asyncio.sleep(NAME_AGE)
        platform.write(caller="peer-a")
        await platform.until(lambda: len(named(serving)) == 2)

    assert named(serving) == [("peer-a", "Ops"), ("peer-a", "Operations")]


class Limited(Pace):
    @property
    def is_limited(self) -> bool:
        return True


async def test_no_lookups_under_a_low_rate_limit(journal: Journal) -> None:
    platform = FakePlatform(listed={"peer-a": "Ops"})
    platform.write(caller="peer-a")
    async with Serving(platform, journal, pace=Limited()):
        await platform.until(lambda: len(platform.sent) == 1)

    assert platform.lookups == []
