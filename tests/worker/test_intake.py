"""Keeping the journal up to date: through failures, refused tokens, full disks, and feeds with habits of their own."""

import asyncio
import itertools
import re
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, Disk, FakePlatform, Serving, echo, open_journal

from molecule_connect import events
from molecule_connect.errors import (
    AuthError,
    BackendError,
    Outcome,
    PageTooLargeError,
    PermanentPlatformError,
    PlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
)
from molecule_connect.journal.journal import Journal
from molecule_connect.models import FeedPosition, Kind, Page, Progress, Request, Response, Signal, WorkspaceStatus

SECOND = 1_000_000


def now() -> float:
    return asyncio.get_running_loop().time()


def unavailable(retry_after: float | None = None) -> TransientPlatformError:
    return TransientPlatformError("activity: 503", operation="activity", status=503, retry_after=retry_after)


def refused() -> AuthError:
    return AuthError("activity: 401", operation="activity", status=401, body="", hint="give a current token")


def utc(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(EPOCH + at))


def fetched(platform: FakePlatform, since: float = 0.0) -> list[float]:
    return [fetch["at"] for fetch in platform.fetches if fetch["at"] >= since]


def troubles(serving: Serving) -> list[tuple[str, str]]:
    return [(event.part, event.reason) for event in serving.events.of(events.Trouble)]


# Failures


@pytest.mark.parametrize(
    "error",
    [
        unavailable(),
        TransientPlatformError("activity: 200 no JSON", operation="activity", status=200, outcome=Outcome.UNKNOWN),
        TransientPlatformError("activity: cut", operation="activity", outcome=Outcome.WRITTEN),
        TransientPlatformError("activity: 404", operation="activity", status=404),
        PermanentPlatformError("activity: 403 no", operation="activity", status=403, body="no"),
        PermanentPlatformError("activity: 404 no", operation="activity", status=404, body="no"),
    ],
    ids=str,
)
async def test_failed_reads_are_retried_until_they_succeed(journal: Journal, error: PlatformError) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.fail_fetch = [error] * 10
        platform.write("meanwhile", caller="peer")
        await platform.until(lambda: len(platform.sent) == 1)
        assert troubles(serving) == [("intake", str(error))]
        assert [event.part for event in serving.events.of(events.Recovered)] == ["intake"]


async def test_failed_reads_back_off_with_retry_after(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(60)
        at = now()
        platform.fail_fetch = [*(unavailable() for _ in range(8)), unavailable(25.0), unavailable(7200.0)]
        await platform.until(lambda: not platform.fail_fetch)
        await asyncio.sleep(60)
    times = fetched(platform, at)
    waits = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
    for wait, nominal in zip(waits, (1, 2, 4, 8, 16, 30, 30), strict=False):
        assert nominal / 2 <= round(wait, 6) <= nominal
    assert waits[7] >= 24.9
    assert waits[8] == pytest.approx(30)


async def test_keeps_the_pages_before_a_failure(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(1200):
        platform.write(f"{number}", caller=f"peer-{number % 7}", age=25 - number / 100)
    platform.fail_fetch = [unavailable()]
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.fetches) >= 3)
        platform.fail_fetch = [unavailable()]
        await platform.until(lambda: len(platform.sent) == 1200)
    assert Counter(state for _, state in serving.rows()) == {"done": 1200}
    for caller in range(7):
        theirs = [sent.parts[0].text for sent in platform.sent if sent.caller_id == f"peer-{caller}"]  # type: ignore[union-attr]
        assert theirs == sorted(theirs, key=lambda text: int(text.removeprefix("echo: ")))


async def test_first_start_runs_the_oldest_message_first(journal: Journal) -> None:
    platform = FakePlatform(fetch_delay=1.0)
    for number in range(700):
        platform.write(f"{number}", caller="peer", age=29 - number / 100)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) >= 3)
    assert platform.answers()[:3] == ["echo: 0", "echo: 1", "echo: 2"]


async def test_answers_people_during_a_long_backward_read(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal):
        await platform.until(lambda: bool(platform.opens))
        for number in range(4000):
            platform.write(f"{number}", caller=f"peer-{number % 7}", kind=Kind.ANSWER, age=5 - number / 1000)
        count = "SELECT count(*) FROM message"
        await platform.until(lambda: journal.reader.execute(count).fetchone()[0] == 4000)
        platform.fetch_delay, at = 1.0, now()
        await platform.until(lambda: platform.fetches[-1]["before"] is not None and platform.fetches[-1]["at"] > at)
        platform.write("hello")
        await platform.until(lambda: bool(platform.sent), seconds=2.5)
        # The read back still goes on.
        await platform.until(lambda: platform.fetches[-1]["before"] is not None, seconds=1.5)


async def test_reads_people_before_large_rows(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True, row_size=100_000)
    async with Serving(platform, journal):
        await platform.until(lambda: bool(platform.opens))
        for delay in (0.0, 1.0):
            platform.fetch_delay = delay
            for number in range(600):
                platform.write(f"{number}", caller=f"peer-{number % 7}", kind=Kind.ANSWER, age=1 - number / 1000)
            await asyncio.sleep(2)
        at = now()
        platform.write("hello")
        await platform.until(lambda: bool(platform.sent), seconds=4)
        # What the flood left behind is read all the same.
        count = "SELECT count(*) FROM message WHERE kind='answer'"
        await platform.until(lambda: journal.reader.execute(count).fetchone()[0] == 1200, seconds=60)
        assert sum(fetch["at"] > at and not fetch["people"] for fetch in platform.fetches) > 10


async def test_reads_platforms_that_cannot_select_people(journal: Journal) -> None:
    class Unselective(FakePlatform):
        async def fetch(self, **query: Any) -> Page:
            if query.get("people"):
                self.refused += 1
                raise PermanentPlatformError("activity: 400", operation="activity", status=400, body="")
            return await super().fetch(**query)

        refused = 0

    platform = Unselective(has_stream=True, row_size=100_000)
    async with Serving(platform, journal) as serving:
        await platform.until(lambda: bool(platform.opens))
        for number in range(600):
            platform.write(f"{number}", caller=f"peer-{number % 7}", kind=Kind.ANSWER, age=1 - number / 1000)
        await asyncio.sleep(2)
        platform.write("hello")
        await platform.until(lambda: bool(platform.sent))
        assert platform.refused
        assert serving.events.of(events.Trouble) == []


# 410


async def test_looks_back_after_watermark_was_pruned(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(3):
        platform.write(f"{number}", caller="peer", age=20)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(90)
        platform.rows.clear()
        platform.write("late", caller="peer", age=40)
        platform.write("new", caller="peer")
        await platform.until(lambda: len(platform.sent) == 5)
        await asyncio.sleep(60)
        notices = [event.text for event in serving.events.of(events.Notice)]
    assert len(notices) == 1
    assert "no longer knows" in notices[0]
    # From the last whole read before 90 s, less the 45 s that rows can be late, less the age of the newest row read:
    # the clocks can differ by that much.
    read, expired = max(at for at in fetched(platform) if at < 90), min(at for at in fetched(platform) if at > 90)
    assert f"from {utc(read - 45 - 20)} to {utc(expired)}" in notices[0]
    assert Counter(platform.answers()).most_common(1)[0][1] == 1
    assert troubles(serving) == []


async def test_endless_410_is_reported_without_spinning(
    journal: Journal,
) -> None:
    platform = FakePlatform()
    platform.write("old", caller="peer", age=20)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(90)
        platform.expired = True
        at = now()
        for number in range(5):
            platform.write(f"{number}", caller="peer")
            await asyncio.sleep(20)
        assert len(platform.sent) == 6
        assert len(fetched(platform, at)) <= 2 * 100
        assert any("410" in reason for _, reason in troubles(serving))
        assert "410" in platform.beats[-1].wedged
        platform.expired = False
        await asyncio.sleep(60)
        assert platform.beats[-1].wedged == ""
    assert len(platform.sent) == 6


async def test_newest_row_gone_loses_nothing(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        for number in range(150):
            platform.write(f"{number}", caller=f"peer-{number}", age=1 - number / 1000, signal=False)
        platform.signal(Signal.ROW)
        await platform.until(lambda: len(platform.sent) == 150)
        await asyncio.sleep(15)
        tip = platform.rows.pop()
        platform.write("new", caller="peer")
        await asyncio.sleep(0.5)
        assert platform.fetches[-2]["since_id"] == tip.item.row_id
        assert platform.answers()[-1] == "echo: new"
        assert serving.events.of(events.Notice) == []


# Refused tokens


async def test_one_refused_token_is_not_wedged(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.fail_fetch = [refused()]
        platform.write("meanwhile", caller="peer")
        await platform.until(lambda: len(platform.sent) == 1, 10)
        assert {beat.wedged for beat in platform.beats} == {""}
        (trouble,) = serving.events.of(events.Trouble)
        assert "outage" in trouble.hint


async def test_refused_token_is_wedged_until_replaced(
    journal: Journal,
) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        at = now()
        platform.fail_fetch = [refused() for _ in range(1000)]
        platform.write("meanwhile", caller="peer")
        await asyncio.sleep(600)
        assert len(fetched(platform, at)) <= 50
        assert "401" in platform.beats[-1].wedged
        assert len(platform.beats) > 20
        assert serving.events.of(events.Trouble)[-1].hint == "give a current token"
        platform.fail_fetch.clear()
        await platform.until(lambda: len(platform.sent) == 1, 31)
        assert platform.beats[-1].wedged == ""
    assert serving.error is None


async def test_refused_token_of_deleted_workspace_ends_run(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        at = now()
        platform.status, platform.fail_fetch = WorkspaceStatus.REMOVED, [refused() for _ in range(1000)]
        await serving.ended()
    assert isinstance(serving.error, WorkspaceDeletedError)
    assert now() - at < 10


# Feeds with habits


async def test_remembers_that_since_id_is_ignored(tmp_path: Path) -> None:
    platform = FakePlatform(ignores_since=True)
    async with open_journal(tmp_path) as journal:
        platform.write("old", caller="peer", age=20)
        async with Serving(platform, journal) as serving:
            await asyncio.sleep(90)
            platform.write("one", caller="peer")
            await platform.until(lambda: len(platform.sent) == 2)
            await asyncio.sleep(60)
            assert [event.text for event in serving.events.of(events.Notice)] == [
                "the platform ignores since_id: each read starts at the newest row instead"
            ]
            assert journal.of(WORKSPACE).position().ignores_since
    async with open_journal(tmp_path) as journal:
        platform.write("two", caller="peer")
        async with Serving(platform, journal) as serving:
            await platform.until(lambda: len(platform.sent) == 3)
            assert serving.events.of(events.Notice) == []
    assert platform.answers() == ["echo: old", "echo: one", "echo: two"]


async def test_busy_feed_ignoring_since_id_delays_nothing(journal: Journal) -> None:
    platform = FakePlatform(ignores_since=True, has_stream=True)
    for number in range(200):
        platform.write("old", caller=f"peer-{number}", age=29 - number / 10)
    platform.write("older than the first start", caller="peer", age=100)
    async with Serving(platform, journal, since_secs=30.0):
        await platform.until(lambda: journal.of(WORKSPACE).position().ignores_since)
        await asyncio.sleep(30)
        platform.write("one", caller="peer")
        await platform.until(lambda: len(platform.sent) == 201, seconds=0.5)
        await asyncio.sleep(30)
    assert len(platform.sent) == 201


async def test_feed_that_shows_rows_once_loses_none(journal: Journal) -> None:
    platform = FakePlatform(empties=True)
    platform.write("first", caller="peer", timed=False)
    async with Serving(platform, journal):
        for number in range(5):
            await platform.until(lambda: len(platform.sent) == number + 1)  # noqa: B023
            platform.write(f"{number}", caller="peer", timed=number % 2 == 0)
        await asyncio.sleep(60)
    assert platform.answers() == ["echo: first", *(f"echo: {number}" for number in range(5))]


async def test_rows_without_a_time_keep_their_order(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        for number in range(5):
            platform.write(f"{number}", caller="peer", timed=False)
            await asyncio.sleep(30)
    assert platform.answers() == [f"echo: {number}" for number in range(5)]


@pytest.mark.parametrize("newer", [True, False])
async def test_equal_times_at_page_edge_lose_nothing(journal: Journal, newer: bool) -> None:
    platform = FakePlatform(newer=newer)
    async with Serving(platform, journal):
        platform.write("old", caller="peer")
        await asyncio.sleep(90)
        for number in range(498):
            platform.write(f"{number}", caller=f"peer-{number}", age=1 + number / 1000)
        for number in range(498, 600):
            platform.write(f"{number}", caller=f"peer-{number}", age=0.5)
        await platform.until(lambda: len(platform.sent) == 601, 120)


async def test_reads_one_row_per_page_if_necessary(journal: Journal) -> None:
    platform = FakePlatform(largest=1)
    for number in range(6):
        platform.write(f"{number}", caller="peer", age=20 - number)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 6)
        await asyncio.sleep(100)
        for number in range(6, 10):
            platform.write(f"{number}", caller="peer", age=2 - number / 10)
        await platform.until(lambda: len(platform.sent) == 10)
    assert platform.answers() == [f"echo: {number}" for number in range(10)]


async def test_page_grows_again_after_too_large(journal: Journal) -> None:
    platform = FakePlatform(largest=100)
    for number in range(400):
        platform.write(f"{number}", caller=f"peer-{number % 9}", age=20 - number / 100)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 400)
        assert {fetch["limit"] for fetch in platform.fetches} >= {500, 250, 125, 62, 124}
        platform.largest = None
        await asyncio.sleep(60)
        assert platform.fetches[-1]["limit"] == 500


async def test_requests_fewer_rows_while_they_are_large(journal: Journal) -> None:
    platform = FakePlatform(row_size=100_000)
    for number in range(1000):
        platform.write(f"{number}", caller=f"peer-{number % 9}", age=25 - number / 100)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 1000)
        assert [fetch["limit"] for fetch in platform.fetches[:4]] == [500, 41, 41, 41]
        platform.row_size = 1 << 20
        await platform.until(lambda: platform.fetches[-1]["limit"] == 20)
        platform.row_size = 1000
        await platform.until(lambda: platform.fetches[-1]["limit"] == 500)


async def test_reports_a_row_larger_than_any_page(journal: Journal) -> None:
    error = PageTooLargeError("activity: a row of more than 128 MiB", operation="activity")
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.fail_fetch = [error] * 500
        await asyncio.sleep(60)
        assert troubles(serving) == [("intake", str(error))]
        assert "128 MiB" in platform.beats[-1].wedged


# How far a first start looks back


async def test_first_start_looks_back_since_secs(journal: Journal) -> None:
    platform = FakePlatform()
    for age in (500, 400, 61, 59, 5):
        platform.write(f"{age}", caller="peer", age=age)
    async with Serving(platform, journal, since_secs=60.0) as serving:
        await asyncio.sleep(60)
        (notice,) = serving.events.of(events.Notice)
    assert platform.answers() == ["echo: 59", "echo: 5"]
    assert "skipped 3 rows" in notice.text
    assert "--since-secs" in notice.hint
    assert "later starts" in notice.hint


def write_failover(platform: FakePlatform) -> None:
    """Thirty questions, of which an earlier connector answered the first ten; an hour old."""
    for number in range(30):
        platform.write(f"q{number}", age=3600 - number)
    for number in range(10):
        platform.write(f"a{number}", age=3500 - number, kind=Kind.ECHO)


async def test_first_start_counts_skipped_unanswered_rows(journal: Journal) -> None:
    platform = FakePlatform()
    write_failover(platform)
    platform.write("of a peer", caller="peer", age=100)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        (notice,) = serving.events.of(events.Notice)
    assert platform.answers() == []
    assert "41 rows" in notice.text
    assert "20 messages of people without a reply and 1 message of peers" in notice.text


async def test_first_start_answers_only_unanswered_messages(journal: Journal) -> None:
    platform = FakePlatform()
    write_failover(platform)
    async with Serving(platform, journal, since_secs=7200.0) as serving:
        await platform.until(lambda: len(platform.sent) == 20)
        await asyncio.sleep(60)
        (notice,) = serving.events.of(events.Notice)
    assert platform.answers() == [f"echo: q{number}" for number in range(10, 30)]
    assert "10 messages" in notice.text


async def test_first_start_continues_after_a_kill(journal: Journal) -> None:
    platform = FakePlatform()
    write_failover(platform)
    mine, newest = journal.of(WORKSPACE), [row.item for row in platform.rows[-15:]]
    await mine.set_position(FeedPosition(floor=(newest[0].time or 0) - 7200 * 1_000_000))
    await mine.add(newest, now=newest[-1].time or 0)
    async with Serving(platform, journal, since_secs=7200.0):
        await platform.until(lambda: len(platform.sent) == 20)
        await asyncio.sleep(60)
    assert platform.answers() == [f"echo: q{number}" for number in range(10, 30)]


class Untold(FakePlatform):
    """Its time is not known before its first page."""

    def now(self) -> int | None:
        return super().now() if self.told else None

    told = False

    async def fetch(self, **query: Any) -> Page:
        page = await super().fetch(**query)
        self.told = True
        return page


async def test_cut_start_keeps_its_floor(journal: Journal) -> None:
    platform = Untold(fetch_delay=60.0)
    async with Serving(platform, journal, grace=0.0):
        await platform.until(lambda: bool(platform.fetches))
    platform.write("after that start", caller="peer")
    await asyncio.sleep(3600)
    platform.fetch_delay = 0.0
    async with Serving(platform, journal):
        await platform.until(lambda: platform.answers() == ["echo: after that start"], seconds=60)


@pytest.mark.parametrize("wrong", [86_400, -86_400])
@pytest.mark.parametrize("failures", [0, 2])
async def test_first_page_corrects_a_wrong_clock(journal: Journal, wrong: int, failures: int) -> None:
    loop, platform = asyncio.get_running_loop(), Untold(fail_fetch=[unavailable()] * failures)
    platform.write("long before", caller="peer", age=100)
    platform.write("before", caller="peer", age=10)
    async with Serving(platform, journal, wall=lambda: EPOCH + wrong + loop.time()):
        await asyncio.sleep(60)
        platform.write("after", caller="peer")
        await asyncio.sleep(60)
    assert platform.answers() == ["echo: before", "echo: after"]


async def test_wrong_clock_of_cut_start_skips_nothing(journal: Journal) -> None:
    loop, platform = asyncio.get_running_loop(), Untold(fetch_delay=60.0)
    async with Serving(platform, journal, wall=lambda: EPOCH + 86_400 + loop.time(), grace=0.0):
        await platform.until(lambda: bool(platform.fetches))
    platform.fetch_delay, platform.told = 0.0, False
    platform.write("hi", caller="peer")
    async with Serving(platform, journal):
        await platform.until(lambda: platform.answers() == ["echo: hi"], seconds=60)


async def test_skipped_rows_beyond_a_page_say_more(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(600):
        platform.write(f"{number}", caller="peer", age=100 + number)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(10)
        (notice,) = serving.events.of(events.Notice)
    assert "500 or more rows" in notice.text


async def test_skips_old_rows_of_an_empty_feed(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.write("from a clock that lags", caller="peer", age=3600)
        await asyncio.sleep(60)
        platform.write("the next one", caller="peer", age=3600)
        await asyncio.sleep(60)
        (notice,) = serving.events.of(events.Notice)
    assert platform.answers() == ["echo: the next one"]
    assert re.search("1 row .* dated before 2027-", notice.text)
    assert "Date header is far ahead" in notice.hint


async def test_first_message_survives_clocks_minutes_apart(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await asyncio.sleep(60)
        platform.write("from a clock that lags", caller="peer", age=500)
        await platform.until(lambda: platform.answers() == ["echo: from a clock that lags"])


async def test_since_secs_0_answers_only_new_messages(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("before", caller="peer", age=0.001)
    async with Serving(platform, journal, since_secs=0.0):
        await asyncio.sleep(1)
        platform.write("after", caller="peer")
        await asyncio.sleep(100)
    assert platform.answers() == ["echo: after"]


@pytest.mark.parametrize("since_secs", [0.0, 10.0])
async def test_first_start_ignores_time_spent_registering(journal: Journal, since_secs: float) -> None:
    away = TransientPlatformError("register: 503", operation="register", status=503, retry_after=45.0)
    platform = FakePlatform(fail_register=[away])
    platform.write("long before", caller="peer", age=since_secs + 5)
    async with Serving(platform, journal, since_secs=since_secs):
        await asyncio.sleep(2)
        platform.write("after the start", caller="peer")
        await platform.until(lambda: bool(platform.cards), 60)
        assert asyncio.get_running_loop().time() >= 45
        await asyncio.sleep(10)
    assert platform.answers() == ["echo: after the start"]


async def test_answers_all_messages_of_a_long_downtime(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        platform.write("one", caller="peer")
        await asyncio.sleep(60)
    for hour in range(10):
        platform.write(f"hour {hour}", caller="peer")
        await asyncio.sleep(3600)
    async with Serving(platform, journal):
        await platform.until(lambda: len(platform.sent) == 11)
        await asyncio.sleep(60)
    assert platform.answers() == ["echo: one", *(f"echo: hour {hour}" for hour in range(10))]


async def test_only_messages_reach_the_backend(journal: Journal) -> None:
    platform, seen = FakePlatform(), []

    async def handler(request: Request, progress: Progress) -> Response:
        seen.append(request.text)
        return await echo(request, progress)

    for kind in Kind:
        platform.write(kind.value, kind=kind, caller="peer", age=5)
    async with Serving(platform, journal, handler) as serving:
        await asyncio.sleep(60)
    assert seen == ["message"]
    assert {event.kind for event in serving.events.of(events.Recorded)} == {"answer", "result", "upload"}
    assert [event.reason for event in serving.events.of(events.Dead)] == ["unreadable: "]


# A disk that is full


async def test_full_disk_is_reported_and_loses_nothing(tmp_path: Path) -> None:
    disk, platform, runs = Disk(), FakePlatform(), Counter[str]()

    async def handler(request: Request, progress: Progress) -> Response:
        runs[request.text] += 1
        await asyncio.sleep(5)
        return await echo(request, progress)

    async with open_journal(tmp_path, disk) as journal, Serving(platform, journal, handler) as serving:
        platform.write("at the backend", caller="peer-1")
        platform.write("at the backend too")
        await platform.until(lambda: len(runs) == 2)
        disk.full = True
        platform.write("meanwhile", caller="peer-2")
        await asyncio.sleep(40)
        assert platform.answers() == []
        assert sorted(runs) == ["at the backend", "at the backend too"]
        assert "journal" in platform.beats[-1].wedged
        assert "intake" in platform.beats[-1].wedged
        disk.full = False
        await platform.until(lambda: len(platform.sent) == 3, 60)
        assert platform.beats[-1].wedged == ""
        await asyncio.sleep(60)
        assert {event.part for event in serving.events.of(events.Recovered)} >= {"intake", "journal"}
    assert sorted(platform.answers()) == ["echo: at the backend", "echo: at the backend too", "echo: meanwhile"]
    assert set(runs.values()) == {1}


async def test_full_disk_does_not_repeat_accepted_replies(tmp_path: Path) -> None:
    disk, platform = Disk(), FakePlatform(send_delay=1.0)
    platform.write("to a person")
    platform.write("to a peer", caller="peer")
    async with open_journal(tmp_path, disk) as journal:
        async with Serving(platform, journal):
            await platform.until(lambda: len(platform.tried) == 2)
            disk.full = True
            await asyncio.sleep(60)
            assert len(platform.sent) == 2
        disk.full = False
        async with Serving(platform, journal) as serving:
            await asyncio.sleep(100)
        assert [state for _, state in serving.rows()] == ["done", "done"]
    assert len(platform.sent) == 2


@pytest.mark.parametrize("grace", [0.0, 20.0])
async def test_full_disk_does_not_delay_the_stop(tmp_path: Path, grace: float) -> None:
    disk, platform = Disk(), FakePlatform(send_delay=1.0)
    platform.write("sent", caller="peer-1")

    async def handler(request: Request, progress: Progress) -> Response:
        await asyncio.sleep(0 if request.text == "sent" else 5)
        return await echo(request, progress)

    async with open_journal(tmp_path, disk) as journal:
        async with Serving(platform, journal, handler, grace=grace):
            await platform.until(lambda: len(platform.tried) == 1)
            platform.write("running", caller="peer-2")
            await platform.until(lambda: len(platform.fetches) > 3)
            disk.full = True
            await asyncio.sleep(3)
            at = now()
        assert now() - at <= grace + 8


async def test_full_disk_with_a_reply_in_doubt(tmp_path: Path) -> None:
    cut = TransientPlatformError("notify: cut", operation="notify", outcome=Outcome.UNKNOWN)
    disk, platform = Disk(), FakePlatform(cut_after=[cut])
    platform.write("one")
    async with open_journal(tmp_path, disk) as journal, Serving(platform, journal) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(1)
        disk.full = True
        await asyncio.sleep(60)
        assert serving.error is None
        disk.full = False
        await platform.until(lambda: serving.rows() == [("row-1", "done")])
        platform.write("two", caller="peer")
        await platform.until(lambda: len(platform.sent) == 2)
    assert serving.error is None


async def test_any_one_failed_commit_loses_nothing(tmp_path: Path) -> None:
    async def serve(folder: Path, fail_at: int) -> int:
        def fail() -> None:
            if disk.commits == fail_at:
                raise sqlite3.OperationalError("disk I/O error")

        disk = Disk(before=fail)
        cut = TransientPlatformError("send: cut", operation="send", outcome=Outcome.UNKNOWN)
        platform, runs = FakePlatform(cut_after=[cut] * 3), Counter[str]()

        async def handler(request: Request, progress: Progress) -> Response:
            runs[request.text] += 1
            if request.caller_id and runs.total() == 2:
                raise BackendError("try again")
            return await echo(request, progress)

        platform.write("to a person", age=2)
        platform.write("to a peer", caller="peer", age=1)
        platform.write("to the same peer", caller="peer")
        async with open_journal(folder, disk) as journal:
            async with Serving(platform, journal, handler) as serving:
                await asyncio.sleep(30)
            states = [state for _, state in serving.rows()]
        assert serving.error is None, f"commit {fail_at}"
        assert states == ["done"] * 3, f"commit {fail_at}"
        expected = ["echo: to a peer", "echo: to a person", "echo: to the same peer"]
        assert sorted(platform.answers()) == expected, f"commit {fail_at}"
        assert runs.total() <= 4, f"commit {fail_at}"
        return disk.commits

    # The first commit makes the tables.
    commits = await serve(Path(tempfile.mkdtemp(dir=tmp_path)), 0)
    assert commits > 20
    for number in range(2, commits + 1):
        await serve(Path(tempfile.mkdtemp(dir=tmp_path)), number)


# Clocks


async def test_local_clock_wrong_by_a_day(journal: Journal) -> None:
    loop = asyncio.get_running_loop()
    platform = FakePlatform()
    platform.write("before", caller="peer", age=10)
    async with Serving(platform, journal, wall=lambda: EPOCH + 86_400 + loop.time()):
        await asyncio.sleep(60)
        platform.write("after", caller="peer")
        await asyncio.sleep(60)
    assert platform.answers() == ["echo: before", "echo: after"]


# Reads on request


async def test_settles_a_reply_in_doubt_while_draining(journal: Journal) -> None:
    cut = TransientPlatformError("notify: cut", operation="notify", outcome=Outcome.UNKNOWN)
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(60)
        platform.cut_after = [cut]
        platform.write("one")
        await platform.until(lambda: len(platform.sent) == 1)
        platform.fetch_delay, before = 2.0, len(platform.fetches)
        await platform.until(lambda: len(platform.fetches) > before and now() - platform.tried[0] >= 5)
    assert serving.rows() == [("row-1", "done")]
    assert len(platform.sent) == 1


async def test_stop_reads_only_on_request(journal: Journal) -> None:
    platform, entered = FakePlatform(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        entered.set()
        await asyncio.sleep(15)
        return await echo(request, progress)

    platform.write("slow", caller="peer")
    async with Serving(platform, journal, handler):
        await entered.wait()
        stopped_at = now()
    assert platform.answers() == ["echo: slow"]
    assert fetched(platform, stopped_at + 1) == []


# A hung intake, for the watchdog of a service manager


async def test_an_outage_is_not_a_stall(journal: Journal) -> None:
    platform = FakePlatform(fail_fetch=[unavailable()] * 1000)
    async with Serving(platform, journal) as serving:
        for _ in range(100):
            await asyncio.sleep(9.7)
            assert serving.connection.stalled_for < 1


async def test_a_quiet_feed_is_not_a_stall(journal: Journal) -> None:
    async with Serving(FakePlatform(), journal) as serving:
        before = serving.connection.has_read
        await asyncio.sleep(1000)
        assert (before, serving.connection.has_read) == (False, True)
        assert serving.connection.stalled_for < 1
    assert serving.connection.stalled_for == 0


async def test_full_disk_is_not_a_stall(tmp_path: Path) -> None:
    disk, platform = Disk(), FakePlatform()
    async with open_journal(tmp_path, disk=disk) as journal, Serving(platform, journal) as serving:
        await asyncio.sleep(10)
        disk.full = True
        platform.write("hello")
        for _ in range(100):
            await asyncio.sleep(9.7)
            assert serving.connection.stalled_for < 10
        assert ("intake", True) in [(part, "full" in reason) for part, reason in troubles(serving)]
        disk.full = False


async def test_a_page_that_never_arrives_is_a_stall(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(10)
        platform.fetch_delay = 1000.0
        await asyncio.sleep(400)
        assert serving.connection.stalled_for > 300
