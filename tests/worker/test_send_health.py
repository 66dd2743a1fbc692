"""When the platform fails: replies that aren't accepted are reported, and all sent after the first success."""

import asyncio
import re
from collections.abc import Callable, Sequence

import pytest
from tests.worker.kit import WORKSPACE, FakePlatform, Serving
from tests.worker.test_sending import PEER, cut, transient

from molecule_connect import events
from molecule_connect.errors import AuthError, PlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Outgoing
from molecule_connect.worker.status_file import read_status

Refuses = Callable[[Outgoing], PlatformError | None]
REFUSED = AuthError("send: 401", operation="send", status=401, body="", hint="give a current token")
DOWN = transient(503, platform_said=True, about_peer=True)


class Picky(FakePlatform):
    """Refuses sends by their caller while ``refuses`` names an error."""

    refuses: Refuses = staticmethod(lambda outgoing: None)

    async def send(self, outgoing: Outgoing) -> None:
        if (error := self.refuses(outgoing)) is not None:
            self.tried.append(asyncio.get_running_loop().time())
            raise error
        await super().send(outgoing)


def mute(serving: Serving) -> list[str]:
    """What was said of sending, and when it was well again."""
    found = serving.events.seen
    told = [
        event for event in found if isinstance(event, events.Trouble | events.Recovered) and event.part == "sending"
    ]
    return [event.reason if isinstance(event, events.Trouble) else "well" for event in told]


def write(platform: FakePlatform, callers: Sequence[str | None]) -> None:
    for number, caller in enumerate(callers):
        platform.write(f"{number}", caller=caller, context=f"context-{number}")


@pytest.mark.parametrize("callers", [[None], [PEER, "peer-2"], [None, PEER]], ids=str)
@pytest.mark.parametrize("error", [transient(503), transient(500), cut(), REFUSED, transient(429)], ids=str)
async def test_first_success_sends_all_waiting_replies(
    journal: Journal, error: PlatformError, callers: list[str | None]
) -> None:
    platform = Picky()
    platform.refuses = lambda outgoing: error
    write(platform, callers)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(50)
        assert mute(serving) == []
        await asyncio.sleep(15)
        (reason,) = mute(serving)
        assert str(error) in reason
        assert "sending: " in platform.beats[-1].wedged
        await asyncio.sleep(2)
        status = read_status(journal.path.parent, WORKSPACE)
        assert status is not None
        assert [ailment.part for ailment in status.ailments] == ["sending"]
        platform.refuses = lambda outgoing: None
        await platform.until(lambda: len(platform.sent) == len(callers), 30)
        await asyncio.sleep(40)
    assert mute(serving) == [reason, "well"]
    assert platform.beats[-2].wedged == ""
    assert len(platform.sent) == len(callers)


async def test_first_success_ends_long_waits(journal: Journal) -> None:
    platform = Picky()
    platform.refuses = lambda outgoing: transient(429)
    write(platform, [None, *(f"peer-{number}" for number in range(40))])
    async with Serving(platform, journal):
        await asyncio.sleep(1800)
        platform.refuses = lambda outgoing: None
        await platform.until(lambda: len(platform.sent) > 0)
        await platform.until(lambda: len(platform.sent) == 41, 1)


@pytest.mark.parametrize(
    "error",
    [cut(), transient(500)],
    ids=str,
)
async def test_probes_leave_an_answer_its_last_sends(journal: Journal, error: PlatformError) -> None:
    platform = Picky()
    platform.refuses = lambda outgoing: error
    write(platform, [PEER, "peer-2", "peer-3"])
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(600)
        assert serving.events.of(events.Dead) == []
        platform.refuses = lambda outgoing: None
        await platform.until(lambda: len(platform.sent) == 3, 120)


@pytest.mark.parametrize("error", [cut(), transient(503), DOWN], ids=lambda error: f"{error} {error.about_peer}")
async def test_one_unreachable_peer_is_not_reported(journal: Journal, error: TransientPlatformError) -> None:
    platform = Picky()
    platform.refuses = lambda outgoing: error if outgoing.caller_id == PEER else None
    write(platform, [PEER, PEER, None, "peer-2"])
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(300)
    assert mute(serving) == []


async def test_unreachable_peers_are_not_reported(journal: Journal) -> None:
    platform = Picky()
    platform.refuses = lambda outgoing: DOWN
    write(platform, [PEER, "peer-2", "peer-3"])
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(300)
    assert mute(serving) == []


async def test_failing_replies_to_people_are_reported(journal: Journal) -> None:
    platform = Picky()
    platform.refuses = lambda outgoing: REFUSED if outgoing.caller_id is None else None
    write(platform, [None])
    async with Serving(platform, journal) as serving:
        for number in range(20):
            platform.write(f"p{number}", caller=PEER)
            await asyncio.sleep(5)
        (reason,) = mute(serving)
    assert re.search("no reply to people .* 401", reason)


async def test_given_up_reply_clears_the_problem(journal: Journal) -> None:
    platform = FakePlatform(fail_send=[transient(503)])
    platform.write("one")
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.tried) == 1)
        platform.fail_send = [transient(404, platform_said=False) for _ in range(2)]
        await platform.until(lambda: bool(serving.events.of(events.Dead)), 30)
        await asyncio.sleep(120)
    assert mute(serving) == []


async def test_recovered_feed_sends_waiting_replies(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(5)
        platform.fail_send = [transient(429) for _ in range(12)]
        platform.write("one", caller=PEER)
        await platform.until(lambda: len(platform.tried) == 9)
        platform.fail_fetch = [transient(503) for _ in range(5)]
        await platform.until(lambda: not platform.fail_fetch)
        platform.fail_send.clear()
        await platform.until(lambda: len(platform.sent) == 1, 60)
