"""Heartbeats: sent from start to stop, and never healthy while something is broken."""

import asyncio
import itertools

import pytest
from tests.worker.kit import FakePlatform, Serving, echo

from molecule_connect import events
from molecule_connect.errors import (
    AuthError,
    BackendError,
    Outcome,
    PermanentPlatformError,
    TransientPlatformError,
)
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Presence, Progress, Request, Response, Signal
from molecule_connect.worker.ports import Unlimited

UNAVAILABLE = TransientPlatformError("activity: 503", operation="activity", status=503)


def refused(status: int = 400) -> PermanentPlatformError:
    return PermanentPlatformError(f"heartbeat: {status}", operation="heartbeat", status=status, body="{}")


async def failing(request: Request, progress: Progress) -> Response:
    raise BackendError("out of order")


def gaps(times: list[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


# Time


async def test_retries_after_one_two_and_four_seconds(journal: Journal) -> None:
    tries: list[float] = []

    class Registry(FakePlatform):
        async def heartbeat(self, presence: Presence) -> None:
            tries.append(asyncio.get_running_loop().time())
            await super().heartbeat(presence)

    platform = Registry(fail_beat=[UNAVAILABLE] * 4)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
    waits = gaps(tries)
    for wait, nominal in zip(waits, (1, 2, 4, 30), strict=False):
        assert nominal / 2 <= round(wait, 6) <= nominal
    assert [event.part for event in serving.events.of(events.Trouble)] == ["heartbeat"]
    assert [event.part for event in serving.events.of(events.Recovered)] == ["heartbeat"]


async def test_continues_during_a_long_attempt(journal: Journal) -> None:
    async def slow(request: Request, progress: Progress) -> Response:
        for minute in range(40):
            progress(f"minute {minute}")
            await asyncio.sleep(60)
        return Response.from_text("done")

    platform = FakePlatform(has_stream=True)
    platform.write("long", caller="peer")
    async with Serving(platform, journal, slow):
        await platform.until(lambda: len(platform.sent) == 1)
        assert max(gaps(platform.beat_times)) == pytest.approx(30)
        busy = [beat for beat in platform.beats if beat.active_tasks]
        assert len(busy) == pytest.approx(80, abs=2)
        assert busy[-1].current_task == "minute 39"
        assert busy[-1].uptime_seconds > 2300
        assert {beat.wedged for beat in platform.beats} == {""}
        await asyncio.sleep(31)
        assert platform.beats[-1].active_tasks == 0


async def test_continues_while_reads_and_sends_hang(journal: Journal) -> None:
    platform = FakePlatform(fetch_delay=100.0, send_delay=100.0)
    platform.write("hi")
    async with Serving(platform, journal):
        await asyncio.sleep(500)
        assert max(gaps(platform.beat_times)) <= 30.01


async def test_acts_once_after_the_machine_slept(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(serving.events.of(events.Listening)))
        await asyncio.sleep(45)
        at = asyncio.get_running_loop().time()
        serving.connection.clock_jumped()
        await asyncio.sleep(0.2)
        assert [time for time in platform.beat_times if time >= at] == [at]
        assert len([fetch for fetch in platform.fetches if fetch["at"] >= at]) == 1
        await asyncio.sleep(10)
        assert len([time for time in platform.opens if time >= at]) == 1
        assert len([time for time in platform.beat_times if time >= at]) == 1


class Limited(Unlimited):
    """A rate limit that leaves room for regular heartbeats, and delays reads."""

    interval = 0.0

    def heartbeat_interval(self, usual: float) -> float:
        return max(usual, self.interval)

    @property
    def is_limited(self) -> bool:
        return True


async def test_rate_limit_leaves_regular_heartbeats_alone(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, pace=Limited()):
        await asyncio.sleep(45)
        platform.fail_fetch = [UNAVAILABLE] * 5
        platform.signal(Signal.ROW)
        await asyncio.sleep(200)
        assert gaps(platform.beat_times) == pytest.approx([30] * 8)


async def test_queued_read_is_not_a_problem(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, pace=Limited()) as serving:
        await asyncio.sleep(31)
        platform.is_queued, platform.fetch_delay = True, 200.0
        await asyncio.sleep(150)
        assert serving.events.of(events.Trouble) == []
        platform.is_queued = False
        await platform.until(lambda: "a page of the feed" in platform.beats[-1].wedged, 60)


async def test_longer_interval_applies_after_the_next_heartbeat(journal: Journal) -> None:
    pace, platform = Limited(), FakePlatform()
    async with Serving(platform, journal, pace=pace):
        await asyncio.sleep(31)
        pace.interval = 60.0
        await asyncio.sleep(150)
        assert gaps(platform.beat_times) == pytest.approx([30, 30, 60, 60])


# Errors


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_continues_after_a_refusal(journal: Journal, status: int) -> None:
    platform = FakePlatform(fail_beat=[refused(status)] * 5)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(platform.beats), 90)
        (trouble,) = serving.events.of(events.Trouble)
        assert (trouble.part, trouble.reason) == ("heartbeat", f"heartbeat: {status}")
        assert "offline" in trouble.hint
        assert [event.part for event in serving.events.of(events.Recovered)] == ["heartbeat"]


async def test_continues_after_a_refused_token(journal: Journal) -> None:
    error = AuthError("heartbeat: 401", operation="heartbeat", status=401, body="")
    platform = FakePlatform(fail_beat=[error] * 5)
    async with Serving(platform, journal):
        await asyncio.sleep(150)
        assert len(platform.beats) > 1


async def test_fails_independently_of_reads(journal: Journal) -> None:
    platform = FakePlatform(fail_beat=[UNAVAILABLE] * 50, fail_fetch=[UNAVAILABLE] * 50)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(20)
        assert {event.part for event in serving.events.of(events.Trouble)} == {"heartbeat", "intake"}
        platform.fail_beat.clear()
        await asyncio.sleep(40)
        assert [event.part for event in serving.events.of(events.Recovered)] == ["heartbeat"]
        assert platform.beats[-1].wedged.startswith("intake: ")


# Wedged


async def test_broken_intake_shows_while_it_lasts(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(31)
        at = asyncio.get_running_loop().time()
        platform.fail_fetch = [UNAVAILABLE] * 1000
        await platform.until(lambda: "503" in platform.beats[-1].wedged, 30)
        assert asyncio.get_running_loop().time() - at <= 8
        await asyncio.sleep(100)
        assert {
            beat.wedged for beat, time in zip(platform.beats, platform.beat_times, strict=True) if time > at + 8
        } == {"intake: activity: 503"}
        platform.fail_fetch.clear()
        await platform.until(lambda: platform.beats[-1].wedged == "", 31)
        assert platform.beat_times[-1] - platform.fetches[-1]["at"] < 1


async def test_timed_out_read_shows_within_35_seconds(
    journal: Journal,
) -> None:
    timeout = TransientPlatformError("activity: no answer", operation="activity", outcome=Outcome.WRITTEN)
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(31)
        at = asyncio.get_running_loop().time()
        platform.fetch_delay, platform.fail_fetch = 30.0, [timeout] * 100
        await platform.until(lambda: platform.beats[-1].wedged != "")
        assert asyncio.get_running_loop().time() - at <= 35
        await platform.until(lambda: "no answer" in platform.beats[-1].wedged, 60)


async def test_endless_read_shows_within_half_a_minute(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(31)
        platform.fetch_delay = 200.0
        fetches = len(platform.fetches)
        await platform.until(lambda: len(platform.fetches) > fetches)
        at = asyncio.get_running_loop().time()
        await platform.until(lambda: "a page of the feed" in platform.beats[-1].wedged, 60)
        assert asyncio.get_running_loop().time() - at <= 30
        platform.fetch_delay = 0.0
        await asyncio.sleep(300)
        assert platform.beats[-1].wedged == ""


async def test_long_retry_after_shows_at_once(journal: Journal) -> None:
    refused = TransientPlatformError("activity: 429", operation="activity", status=429, retry_after=100_000.0)
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(29.5)
        platform.fail_fetch = [refused]
        await platform.until(lambda: platform.beats[-1].wedged == "intake: activity: 429", 6)


async def test_single_failed_read_does_not_show(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(29.5)
        platform.fail_fetch = [UNAVAILABLE]
        await asyncio.sleep(60)
        assert {beat.wedged for beat in platform.beats} == {""}


async def test_failing_backend_shows_until_it_answers(journal: Journal) -> None:
    broken = True

    async def handler(request: Request, progress: Progress) -> Response:
        return await (failing if broken else echo)(request, progress)

    platform = FakePlatform()
    for number in range(3):
        platform.write(f"{number}", caller=f"peer-{number}")
    async with Serving(platform, journal, handler):
        await platform.until(lambda: any(beat.wedged == "backend: out of order" for beat in platform.beats), 60)
        broken = False
        await platform.until(lambda: len(platform.sent) == 3)
        await asyncio.sleep(1)
        assert platform.beats[-1].wedged == ""


async def test_wedged_is_empty_while_all_is_well(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(100)
    assert [beat.wedged for beat in platform.beats] == [""] * (len(platform.beats) - 1) + ["stopped"]
