"""Presence: reads follow the event stream, polling without it, and rare safety reads when idle."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from typing import Any

import attrs
import pytest
from tests.worker.kit import FakePlatform, Serving

from molecule_connect import events
from molecule_connect.errors import PlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Signal
from molecule_connect.worker.feed import Read
from molecule_connect.worker.polling import Polling, Trigger

HOUR = 3600.0
NOTHING = Read(messages=0, whole=True)
ONE = Read(messages=1, whole=True)
PART = Read(messages=1, whole=False)


def now() -> float:
    return asyncio.get_running_loop().time()


def gaps(times: Sequence[float]) -> list[float]:
    return [round(later - earlier, 2) for earlier, later in itertools.pairwise(times)]


def reads(platform: FakePlatform, since: float = 0.0) -> list[float]:
    """When the feed was asked, after *since*."""
    return [fetch["at"] for fetch in platform.fetches if fetch["at"] > since]


async def trusted(platform: FakePlatform, serving: Serving) -> None:
    """Wait until the stream alone wakes the reader, and all that follows that is over."""
    await platform.until(lambda: bool(listening(serving)) and listening(serving)[-1] == "stream")
    await asyncio.sleep(10)


def listening(serving: Serving) -> list[str]:
    return [event.by for event in serving.events.of(events.Listening)]


# With a stream that tells all


async def test_a_row_that_is_announced_is_read_at_once(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        platform.write("hi", caller="peer")
        await asyncio.sleep(0.01)
        assert platform.answers() == ["echo: hi"]
        assert reads(platform, at - 0.001) == [at]


@pytest.mark.parametrize("signal", [Signal.OTHER, Signal.BEAT, Signal.STATUS, Signal.ROTATED])
async def test_what_announces_no_row_wakes_nobody(journal: Journal, signal: Signal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        for _ in range(10):
            platform.signal(signal)
        await asyncio.sleep(15)
        assert len(reads(platform, at)) <= 1


async def test_while_the_stream_is_trusted_only_safety_reads_are_made(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        await asyncio.sleep(300)
        assert gaps(reads(platform, at)) == [30.0] * 9


async def test_an_idle_hour_costs_at_most_250_requests(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        await asyncio.sleep(HOUR)
        counted = [reads(platform), platform.beat_times, platform.looks, platform.opens]
        assert sum(time > at for times in counted for time in times) <= 250
    assert serving.events.of(events.Trouble) == []


async def test_a_row_that_is_late_behind_its_event_is_read_after_one_or_five_seconds(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        for late, found in ((0.9, 1.0), (4.5, 5.0)):
            at = now()
            platform.write(f"{late}", caller="peer", late=late)
            platform.signal(Signal.ROW)
            await asyncio.sleep(9)
            assert reads(platform, at - 0.001)[:3] == pytest.approx([at, at + 1, at + 5])
            assert platform.tried[-1] == pytest.approx(at + found)


async def test_many_events_that_bring_nothing_are_followed_by_a_bounded_number_of_reads(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        for _ in range(100):
            platform.signal(Signal.ROW)
            await asyncio.sleep(0.1)
        last = now()
        await asyncio.sleep(8)
        # Twenty at once, then one a second, and what follows a wake-up after one and five seconds.
        assert len(reads(platform, at)) <= 20 + 8 + 15
        # The last one has its read after five seconds too.
        assert last + 4 < max(time for time in reads(platform) if time < last + 7) <= last + 6


async def test_a_stream_that_announces_what_does_not_come_costs_two_reads_a_second(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        for _ in range(6_000):
            platform.signal(Signal.ROW)
            await asyncio.sleep(0.01)
        assert len(reads(platform, at)) <= 60 * 2 + 25
        # Nobody waits for long, and one who came ends it.
        wrote = now()
        platform.write("hi", caller="peer")
        await platform.until(lambda: len(platform.sent) == 1)
        assert now() - wrote <= 1.1
        wrote = now()
        platform.write("again", caller="peer")
        await asyncio.sleep(0.01)
        assert platform.answers() == ["echo: hi", "echo: again"]


# With a stream that is not to be trusted


async def test_a_stream_without_our_own_beats_is_polled_beside_and_opened_again(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True, echoes_beats=False)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(200)
        assert listening(serving) == ["polling"]
        assert max(gaps(reads(platform))) <= 5
        first_beat_on_it = next(time for time in platform.beat_times if time >= platform.opens[0])
        assert platform.opens[1] == pytest.approx(first_beat_on_it + 5.5, abs=0.6)
        assert any("heartbeats" in event.reason for event in serving.events.of(events.Trouble))
        platform.echoes_beats = True
        await trusted(platform, serving)
    assert [event.part for event in serving.events.of(events.Recovered)] == ["stream"]


async def test_a_stream_that_stalls_is_opened_again_within_a_beat_and_a_few_seconds(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        opened, at = len(platform.opens), now()
        platform.echoes_beats = False
        await platform.until(lambda: len(platform.opens) > opened)
        assert now() - at <= 30 + 5 + 1.2


async def test_after_a_safety_read_that_brought_a_message_nobody_announced_it_polls_for_five_minutes(
    journal: Journal,
) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        platform.write("unannounced", caller="peer", signal=False)
        await platform.until(lambda: len(platform.sent) == 1)
        found = now()
        assert found - at <= 30.2
        await asyncio.sleep(290)
        assert max(gaps(reads(platform, found))) <= 5
        assert listening(serving)[-1] == "polling"
        await asyncio.sleep(60)
        at = now()
        await asyncio.sleep(90)
        assert gaps(reads(platform, at)) == [30.0, 30.0]


async def test_a_stream_that_is_accepted_and_closed_at_once_does_not_spin(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True, closes_stream=True)
    async with Serving(platform, journal):
        platform.write("hi", caller="peer", age=-1)
        await asyncio.sleep(HOUR)
        assert len(platform.opens) <= 2 * HOUR / 60 + 10
    assert platform.answers() == ["echo: hi"]


async def test_a_platform_without_a_stream_is_asked_for_it_once_an_hour(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(HOUR + 60)
        assert serving.events.of(events.Trouble) == []
        platform.has_stream = True
        await asyncio.sleep(HOUR)
        assert len(platform.opens) == 1


# Polling


async def test_polls_come_every_second_after_traffic_and_ease_to_five(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        platform.write("hi", caller="peer")
        await asyncio.sleep(60)
        assert gaps(reads(platform))[-4:] == [5.0] * 4
        at = now()
        platform.write("hi again", caller="peer")
        await asyncio.sleep(30)
        eased = gaps(reads(platform, at))
        assert eased[0] == 1.0
        assert eased == sorted(eased)
        assert eased[-1] == 5.0


@pytest.mark.parametrize("interval", [0.02, 2.0, 60.0])
async def test_an_interval_that_was_given_is_kept_exactly(journal: Journal, interval: float) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, poll_interval=interval):
        platform.write("hi", caller="peer")
        await asyncio.sleep(10 * interval + interval / 2)
        # The first read is the one that must succeed before anything else; the second begins the polling.
        assert gaps(reads(platform, 0.0)) == [interval] * 9


# A feed that has much


async def test_in_a_busy_feed_wake_ups_read_from_the_tip_and_whole_reads_follow(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        for number in range(150):
            platform.write(f"{number}", caller=f"peer-{number}", age=1 - number / 1000, signal=False)
        platform.signal(Signal.ROW)
        await platform.until(lambda: len(platform.sent) == 150)
        await asyncio.sleep(15)
        tip, at = platform.rows[-1].item.row_id, now()
        # Behind the tip, and announced.
        platform.write("behind", caller="peer", age=1, late=2.0)
        platform.write("new", caller="peer")
        await asyncio.sleep(11)
        asked = [
            (round(fetch["at"] - at, 1), fetch["since_id"] == tip) for fetch in platform.fetches if fetch["at"] >= at
        ]
        assert asked[:4] == [(0.0, True), (1.0, False), (3.0, False), (10.0, False)]
    assert platform.answers()[-2:] == ["echo: new", "echo: behind"]


class Line:
    """A stream that a test speaks into."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Signal | PlatformError | None] = asyncio.Queue()
        self.opens: list[float] = []

    async def signals(self) -> AsyncIterator[Signal]:
        self.opens.append(now())
        while (signal := await self.queue.get()) is not None:
            if isinstance(signal, PlatformError):
                raise signal
            yield signal


@attrs.define
class Listener:
    """Polling that listen to a line."""

    line: Line
    wakeups: Polling
    troubles: list[str]

    async def hear(self, *signals: Signal | PlatformError | None) -> None:
        for signal in signals:
            self.line.queue.put_nowait(signal)
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def listen(**given: Any) -> AsyncIterator[Listener]:
    troubles: list[str] = []
    line = Line()
    wakeups = Polling(
        line,
        poll_interval=given.pop("poll_interval", None),
        safety_interval=lambda: 30.0,
        trouble=troubles.append,
        **given,
    )
    task = asyncio.ensure_future(wakeups.listen())
    try:
        await asyncio.sleep(0)
        yield Listener(line, wakeups, troubles)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def next_reads(wakeups: Polling, count: int, read: Read = NOTHING, seconds: float = 0.0) -> list[Trigger]:
    """What makes the next *count* reads due, each of which takes *seconds* and brings *read*."""
    triggers = []
    for _ in range(count):
        trigger = await wakeups.next()
        triggers.append(trigger)
        await asyncio.sleep(seconds)
        wakeups.told(attrs.evolve(read, whole=read.whole or trigger is not Trigger.WOKEN), trigger, seconds=seconds)
    return triggers


async def test_a_storm_of_events_reads_no_more_often_than_the_rate_limit_bears() -> None:
    async with listen(read_rest=lambda: 2.0) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 3, PART)
        began, reads = now(), 0
        while now() < began + 20:
            heard.wakeups.wake()
            await next_reads(heard.wakeups, 1, PART)
            reads += 1
        assert reads <= 12


async def test_whole_reads_are_not_put_off_by_wake_ups_that_never_end() -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 3)
        began, whole = now(), []
        while now() < began + 20:
            heard.wakeups.wake()
            if (await next_reads(heard.wakeups, 1, PART, seconds=0.1)) == [Trigger.DUE]:
                whole.append(now() - began)
        assert [int(time) for time in whole[:3]] == [1, 3, 10]
        assert len(whole) > 3


@pytest.mark.parametrize(("took", "first"), [(0.05, 1.0), (0.5, 5.0), (4.0, 40.0)])
async def test_whole_reads_come_no_sooner_than_ten_times_what_the_last_one_took(took: float, first: float) -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 2, ONE)
        heard.wakeups.told(ONE, Trigger.DUE, seconds=took)
        heard.wakeups.wake()
        await next_reads(heard.wakeups, 1, PART)
        at = now()
        while (await heard.wakeups.next()) is not Trigger.DUE:
            heard.wakeups.told(PART, Trigger.WOKEN, seconds=0.0)
        assert now() - at == pytest.approx(first)


async def test_late_reads_wait_for_the_rest_after_a_slow_whole_read() -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        heard.wakeups.told(ONE, await heard.wakeups.next(), seconds=2.0)
        at = now()
        heard.wakeups.wake()
        assert await next_reads(heard.wakeups, 2, attrs.evolve(PART, messages=0)) == [Trigger.WOKEN, Trigger.DUE]
        assert now() - at == pytest.approx(20)


async def test_wake_ups_for_rows_that_are_no_messages_are_answered_at_once() -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        at = now()
        for _ in range(50):
            heard.wakeups.wake()
            await next_reads(heard.wakeups, 1, attrs.evolve(NOTHING, rows=1))
        assert now() == at


async def test_polls_after_a_slow_whole_read_ask_for_the_newest_rows() -> None:
    async with listen(poll_interval=1.0) as heard:
        heard.wakeups.told(ONE, await heard.wakeups.next(), seconds=0.55)
        triggers = []
        for _ in range(7):
            triggers.append(await heard.wakeups.next())
            heard.wakeups.told(PART if triggers[-1] is Trigger.POLL else ONE, triggers[-1], seconds=0.0)
        # After 5.5 s the whole read that follows the first poll is due too.
        assert triggers == [Trigger.POLL] * 5 + [Trigger.DUE, Trigger.REGULAR]


async def test_a_wake_up_during_a_read_is_followed_by_another_read() -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 4)
        at = now()
        await heard.hear(Signal.ROW)
        trigger = await heard.wakeups.next()
        await heard.hear(Signal.ROW)
        heard.wakeups.told(ONE, trigger, seconds=0.0)
        assert await heard.wakeups.next() is Trigger.WOKEN
        assert now() == pytest.approx(at, abs=0.01)


async def test_a_wake_up_that_a_long_read_took_along_for_nothing_has_its_late_reads() -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 4)
        trigger = await heard.wakeups.next()
        await heard.hear(Signal.ROW)
        assert heard.wakeups.take()
        heard.wakeups.told(NOTHING, trigger, seconds=0.0)
        at = now()
        assert await next_reads(heard.wakeups, 2) == [Trigger.DUE, Trigger.DUE]
        assert now() - at == pytest.approx(5)


async def test_an_echo_that_outruns_its_beats_answer_is_one() -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED)
        sent = now()
        await heard.hear(Signal.BEAT)
        heard.wakeups.beat_accepted(sent)
        await asyncio.sleep(20)
        assert heard.wakeups.trusted
        assert len(heard.line.opens) == 1


async def test_a_beat_that_was_sent_before_the_stream_was_open_proves_nothing_against_it() -> None:
    async with listen() as heard:
        sent = now()
        await asyncio.sleep(0.1)
        await heard.hear(Signal.OPENED)
        heard.wakeups.beat_accepted(sent)
        await asyncio.sleep(20)
        assert heard.troubles == []
        assert not heard.wakeups.trusted
        assert len(heard.line.opens) == 1


async def test_a_beat_without_an_echo_ends_the_trust_after_five_seconds() -> None:
    async with listen() as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        heard.wakeups.beat_accepted(now())
        trust = []
        for seconds in (4.9, 0.2):
            await asyncio.sleep(seconds)
            trust.append(heard.wakeups.trusted)
        assert trust == [True, False]
        await asyncio.sleep(1)
        assert len(heard.line.opens) == 2


async def test_a_stream_that_is_opened_again_after_sleep_is_no_trouble(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        serving.connection.clock_jumped()
        await asyncio.sleep(40)
        assert [opened >= at for opened in platform.opens].count(True) == 1
        assert listening(serving)[-1] == "stream"
    assert serving.events.of(events.Trouble) == []


async def test_the_waits_before_reopening_double_to_a_minute_and_start_over_after_half_a_minute_of_life() -> None:
    async with listen() as heard:
        refused = TransientPlatformError("events: 503", operation="events", status=503)
        for _ in range(9):
            await heard.hear(refused)
            await asyncio.sleep(61)
        waits = [gap for gap in gaps(heard.line.opens) if gap]
        assert len(waits) >= 8
        opened = len(heard.line.opens)
        await heard.hear(Signal.OPENED)
        await asyncio.sleep(31)
        at = now()
        await heard.hear(None)
        await asyncio.sleep(1.1)
        assert len(heard.line.opens) == opened + 1
        assert heard.line.opens[-1] - at <= 1.01


async def test_while_the_stream_is_down_nothing_that_it_said_before_counts() -> None:
    async with listen(poll_interval=2.0) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 4)
        await heard.hear(None)
        assert not heard.wakeups.trusted
        at = now()
        assert await next_reads(heard.wakeups, 2) == [Trigger.REGULAR, Trigger.REGULAR]
        assert now() - at <= 4.0


async def test_a_stream_that_works_is_known_to_within_a_second_of_the_start(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(1)
        assert listening(serving) == ["stream"]


@pytest.mark.parametrize("poll_interval", [None, 2.0])
async def test_polls_are_no_more_frequent_than_the_rate_limit_allows(poll_interval: float | None) -> None:
    async with listen(poll_interval=poll_interval, least_poll=lambda: 20.0) as heard:
        await next_reads(heard.wakeups, 6)
        began = now()
        await next_reads(heard.wakeups, 3)
        assert now() - began == pytest.approx(60)
