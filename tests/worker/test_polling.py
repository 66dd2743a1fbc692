"""Presence: reads follow the event stream, polling without it, and rare safety reads when idle."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence

import attrs
import pytest
from tests.worker.kit import WORKSPACE, Events, FakePlatform, Serving

from molecule_connect import events
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.errors import PlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.models import Signal
from molecule_connect.worker.polling import Polling, Trigger
from molecule_connect.worker.ports import Pace, Unlimited
from molecule_connect.worker.status import Status
from molecule_connect.worker.stream import EventStream

HOUR = 3600.0


@attrs.frozen(kw_only=True)
class Read:
    """The result of a read."""

    messages: int
    whole: bool
    rows: int = 0

    def end(self, polling: Polling, *, seconds: float = 0.0) -> None:
        polling.read_ended(whole=self.whole, rows=self.rows or self.messages, messages=self.messages, seconds=seconds)


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


async def test_reads_an_announced_row_at_once(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        platform.write("hi", caller="peer")
        await asyncio.sleep(0.01)
        assert platform.answers() == ["echo: hi"]
        assert reads(platform, at - 0.001) == [at]


@pytest.mark.parametrize("signal", [Signal.OTHER, Signal.BEAT, Signal.STATUS, Signal.ROTATED])
async def test_signals_without_a_row_start_no_read(journal: Journal, signal: Signal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        for _ in range(10):
            platform.signal(signal)
        await asyncio.sleep(15)
        assert len(reads(platform, at)) <= 1


async def test_makes_only_safety_reads_with_trusted_stream(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        await asyncio.sleep(300)
        assert gaps(reads(platform, at)) == [30.0] * 9


async def test_idle_hour_stays_within_250_requests(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        await asyncio.sleep(HOUR)
        counted = [reads(platform), platform.beat_times, platform.looks, platform.opens]
        assert sum(time > at for times in counted for time in times) <= 250
    assert serving.events.of(events.Trouble) == []


async def test_reads_late_rows_after_their_event(journal: Journal) -> None:
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


async def test_bounds_the_reads_after_empty_wakeups(journal: Journal) -> None:
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


async def test_throttles_reads_after_repeated_empty_wakeups(journal: Journal) -> None:
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


async def test_polls_and_reopens_stream_without_heartbeats(journal: Journal) -> None:
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


async def test_reopens_a_stalled_stream_within_a_heartbeat(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        opened, at = len(platform.opens), now()
        platform.echoes_beats = False
        await platform.until(lambda: len(platform.opens) > opened)
        assert now() - at <= 30 + 5 + 1.2


async def test_unannounced_message_causes_polling_for_five_minutes(
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


async def test_backs_off_from_a_stream_that_closes(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True, closes_stream=True)
    async with Serving(platform, journal):
        platform.write("hi", caller="peer", age=-1)
        await asyncio.sleep(HOUR)
        assert len(platform.opens) <= 2 * HOUR / 60 + 10
    assert platform.answers() == ["echo: hi"]


async def test_retries_an_absent_stream_hourly(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(HOUR + 60)
        assert serving.events.of(events.Trouble) == []
        platform.has_stream = True
        await asyncio.sleep(HOUR)
        assert len(platform.opens) == 1


# Polling


async def test_polling_eases_from_one_to_five_seconds(journal: Journal) -> None:
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
async def test_keeps_a_configured_poll_interval(journal: Journal, interval: float) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, poll_interval=interval):
        platform.write("hi", caller="peer")
        await asyncio.sleep(10 * interval + interval / 2)
        # The first read is the one that must succeed before anything else; the second begins the polling.
        assert gaps(reads(platform, 0.0)) == [interval] * 9


# A feed that has much


async def test_whole_reads_follow_newest_rows_when_busy(journal: Journal) -> None:
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


class Slow(Unlimited):
    """A rate limit, as the seconds that it leaves between reads."""

    def __init__(self, *, read_rest: float = 0.0, poll_interval: float = 0.0) -> None:
        self._read_rest, self._poll_interval = read_rest, poll_interval

    def read_rest(self) -> float:
        return self._read_rest

    def poll_interval(self) -> float:
        return self._poll_interval


@attrs.define
class Listener:
    """Polling that listens to a line."""

    line: Line
    stream: EventStream
    wakeups: Polling
    events: Events

    async def hear(self, *signals: Signal | PlatformError | None) -> None:
        for signal in signals:
            self.line.queue.put_nowait(signal)
        await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def listen(
    journal: Journal, *, pace: Pace | None = None, poll_interval: float | None = None
) -> AsyncIterator[Listener]:
    line, seen = Line(), Events()
    settings = WorkspaceSettings(workspace_id=WORKSPACE, backend="fake")
    status = Status(settings, seen, journal=journal.of(WORKSPACE))
    stream = EventStream(line, status)
    wakeups = Polling(stream, pace or Unlimited(), poll_interval=poll_interval, safety_interval=30.0)
    task = asyncio.ensure_future(stream.listen(lambda signal: None))
    try:
        await asyncio.sleep(0)
        yield Listener(line, stream, wakeups, seen)
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
        attrs.evolve(read, whole=read.whole or trigger is not Trigger.WOKEN).end(wakeups, seconds=seconds)
    return triggers


async def test_event_storm_stays_within_the_rate_limit(journal: Journal) -> None:
    async with listen(journal, pace=Slow(read_rest=2.0)) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 3, PART)
        began, reads = now(), 0
        while now() < began + 20:
            heard.stream.announce()
            await next_reads(heard.wakeups, 1, PART)
            reads += 1
        assert reads <= 12


async def test_endless_wakeups_do_not_delay_whole_reads(journal: Journal) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 3)
        began, whole = now(), []
        while now() < began + 20:
            heard.stream.announce()
            if (await next_reads(heard.wakeups, 1, PART, seconds=0.1)) == [Trigger.DUE]:
                whole.append(now() - began)
        assert [int(time) for time in whole[:3]] == [1, 3, 10]
        assert len(whole) > 3


@pytest.mark.parametrize(("took", "first"), [(0.05, 1.0), (0.5, 5.0), (4.0, 40.0)])
async def test_whole_reads_rest_ten_times_their_duration(journal: Journal, took: float, first: float) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 2, ONE)
        ONE.end(heard.wakeups, seconds=took)
        heard.stream.announce()
        await next_reads(heard.wakeups, 1, PART)
        at = now()
        while (await heard.wakeups.next()) is not Trigger.DUE:
            PART.end(heard.wakeups)
        assert now() - at == pytest.approx(first)


async def test_late_reads_wait_after_slow_whole_read(journal: Journal) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await heard.wakeups.next()
        ONE.end(heard.wakeups, seconds=2.0)
        at = now()
        heard.stream.announce()
        assert await next_reads(heard.wakeups, 2, attrs.evolve(PART, messages=0)) == [Trigger.WOKEN, Trigger.DUE]
        assert now() - at == pytest.approx(20)


async def test_wakeups_with_new_rows_are_not_throttled(journal: Journal) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        at = now()
        for _ in range(50):
            heard.stream.announce()
            await next_reads(heard.wakeups, 1, attrs.evolve(NOTHING, rows=1))
        assert now() == at


async def test_polls_newest_rows_after_slow_whole_read(journal: Journal) -> None:
    async with listen(journal, poll_interval=1.0) as heard:
        await heard.wakeups.next()
        ONE.end(heard.wakeups, seconds=0.55)
        triggers = []
        for _ in range(7):
            triggers.append(await heard.wakeups.next())
            (PART if triggers[-1] is Trigger.POLL else ONE).end(heard.wakeups)
        # After 5.5 s the whole read that follows the first poll is due too.
        assert triggers == [Trigger.POLL] * 5 + [Trigger.DUE, Trigger.REGULAR]


async def test_wakeup_during_a_read_causes_another(journal: Journal) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 4)
        at = now()
        await heard.hear(Signal.ROW)
        await heard.wakeups.next()
        await heard.hear(Signal.ROW)
        ONE.end(heard.wakeups)
        assert await heard.wakeups.next() is Trigger.WOKEN
        assert now() == pytest.approx(at, abs=0.01)


async def test_wakeup_within_a_read_has_late_reads(journal: Journal) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 4)
        await heard.wakeups.next()
        await heard.hear(Signal.ROW)
        assert heard.wakeups.take()
        NOTHING.end(heard.wakeups)
        at = now()
        assert await next_reads(heard.wakeups, 2) == [Trigger.DUE, Trigger.DUE]
        assert now() - at == pytest.approx(5)


async def test_accepts_an_echo_before_the_response(journal: Journal) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED)
        sent = now()
        await heard.hear(Signal.BEAT)
        heard.stream.heartbeat_accepted(sent)
        await asyncio.sleep(20)
        assert heard.stream.trusted
        assert len(heard.line.opens) == 1


async def test_heartbeat_before_the_stream_needs_no_echo(journal: Journal) -> None:
    async with listen(journal) as heard:
        sent = now()
        await asyncio.sleep(0.1)
        await heard.hear(Signal.OPENED)
        heard.stream.heartbeat_accepted(sent)
        await asyncio.sleep(20)
        assert heard.events.of(events.Trouble) == []
        assert not heard.stream.trusted
        assert len(heard.line.opens) == 1


async def test_missing_echo_ends_trust_after_five_seconds(journal: Journal) -> None:
    async with listen(journal) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        heard.stream.heartbeat_accepted(now())
        trust = []
        for seconds in (4.9, 0.2):
            await asyncio.sleep(seconds)
            trust.append(heard.stream.trusted)
        assert trust == [True, False]
        await asyncio.sleep(1)
        assert len(heard.line.opens) == 2


async def test_reopens_stream_after_sleep_without_a_problem(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await trusted(platform, serving)
        at = now()
        serving.connection.clock_jumped()
        await asyncio.sleep(40)
        assert [opened >= at for opened in platform.opens].count(True) == 1
        assert listening(serving)[-1] == "stream"
    assert serving.events.of(events.Trouble) == []


async def test_reopening_backs_off_and_resets_when_stable(
    journal: Journal,
) -> None:
    async with listen(journal) as heard:
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


async def test_lost_stream_is_not_trusted(journal: Journal) -> None:
    async with listen(journal, poll_interval=2.0) as heard:
        await heard.hear(Signal.OPENED, Signal.BEAT)
        await next_reads(heard.wakeups, 4)
        await heard.hear(None)
        assert not heard.stream.trusted
        at = now()
        assert await next_reads(heard.wakeups, 2) == [Trigger.REGULAR, Trigger.REGULAR]
        assert now() - at <= 4.0


async def test_trusts_a_working_stream_within_a_second(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(1)
        assert listening(serving) == ["stream"]


@pytest.mark.parametrize("poll_interval", [None, 2.0])
async def test_polling_stays_within_the_rate_limit(journal: Journal, poll_interval: float | None) -> None:
    async with listen(journal, poll_interval=poll_interval, pace=Slow(poll_interval=20.0)) as heard:
        await next_reads(heard.wakeups, 6)
        began = now()
        await next_reads(heard.wakeups, 3)
        assert now() - began == pytest.approx(60)
