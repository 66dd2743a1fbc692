"""Conversations don't block each other: each is answered in order, all in parallel, with few in memory."""

import asyncio
import gc
from pathlib import Path
from typing import Any

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving, echo, inbound, other_process

from molecule_connect import events
from molecule_connect.config.settings import PeerBudget
from molecule_connect.errors import BackendError, JournalError, PlatformError, TransientPlatformError
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import Conversation, StoredMessage
from molecule_connect.models import Progress, Request, Response, Usage


async def test_retries_and_failed_sends_keep_the_order(journal: Journal) -> None:
    platform = FakePlatform()
    tries: dict[str, int] = {}

    async def handler(request: Request, progress: Progress) -> Response:
        tries[request.text] = tries.get(request.text, 0) + 1
        if int(request.text) % 3 == 0 and tries[request.text] < 3:
            raise BackendError("not yet")
        return Response.from_text(request.text)

    cut: list[PlatformError] = [TransientPlatformError("a2a: 503", operation="a2a", status=503) for _ in range(4)]
    platform.fail_send = cut
    for number in range(9):
        platform.write(str(number), caller="peer-1", age=9 - number)
    async with Serving(platform, journal, handler):
        await platform.until(lambda: len(platform.sent) == 9)
    assert platform.answers() == [str(number) for number in range(9)]


async def test_next_message_starts_after_an_accepted_reply(journal: Journal) -> None:
    platform, began = FakePlatform(send_delay=3.0), []

    async def handler(request: Request, progress: Progress) -> Response:
        began.append((request.text, len(platform.sent)))
        return Response.from_text(request.text)

    for number in range(3):
        platform.write(str(number), age=3 - number)
    async with Serving(platform, journal, handler):
        await platform.until(lambda: len(platform.sent) == 3)
    assert began == [("0", 0), ("1", 1), ("2", 2)]


async def test_replayed_message_moves_to_the_end(journal: Journal) -> None:
    platform, release = FakePlatform(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "first" and not release.is_set():
            raise BackendError("no", retryable=False)
        await release.wait()
        return Response.from_text(request.text)

    for number, text in enumerate(("first", "second", "third")):
        platform.write(text, age=3 - number)
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(1)
        await journal.of(WORKSPACE).replay("row-1")
        serving.connection.journal_changed()
        release.set()
        await platform.until(lambda: len(platform.sent) == 4)
    assert platform.answers()[1:] == ["second", "third", "first"]


async def test_nobody_waits_for_somebody_elses_slow_conversation(journal: Journal) -> None:
    platform, release = FakePlatform(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "slow":
            await release.wait()
        return Response.from_text(request.text)

    for caller, context in (("peer-1", "a"), ("peer-2", None), (None, "chat")):
        platform.write("slow", caller=caller, context=context, age=1)
    async with Serving(platform, journal, handler):
        for caller, context in (("peer-1", "b"), ("peer-1", None), ("peer-2", "a"), (None, None), (None, "chat-2")):
            platform.write(f"{caller} {context}", caller=caller, context=context)
        await platform.until(lambda: len(platform.sent) == 5, seconds=10)
        assert "slow" not in platform.answers()
        release.set()


async def test_start_runs_waiting_conversations_oldest_first(journal: Journal) -> None:
    platform = FakePlatform()
    for number in range(30):
        platform.write(str(number), context=f"talk-{number}", age=29 - number / 2)
    async with Serving(platform, journal, echo, concurrency=1):
        await platform.until(lambda: len(platform.sent) == 30)
    assert platform.answers() == [f"echo: {number}" for number in range(30)]


async def test_late_message_runs_before_younger_ones(journal: Journal) -> None:
    platform, release = FakePlatform(has_stream=True), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        await release.wait()
        return Response.from_text(request.text)

    platform.write("0", age=3)
    async with Serving(platform, journal, handler):
        platform.write("1", age=2, late=20)
        platform.write("2", age=1)
        await asyncio.sleep(40)
        release.set()
        await platform.until(lambda: len(platform.sent) == 3)
    assert platform.answers() == ["0", "1", "2"]


async def test_older_message_runs_before_those_read_ahead(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "0":
            late = inbound("1", row_id="late", time=journal.of(WORKSPACE).message("row-2").time - 1)
            await journal.of(WORKSPACE).add([late], now=late.time or 0)
            serving.connection.journal_changed()
        return Response.from_text(request.text)

    for number in (0, 2, 3):
        platform.write(str(number), age=4 - number)
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: len(platform.sent) == 4)
    assert platform.answers() == ["0", "1", "2", "3"]


async def test_failed_message_runs_before_those_read_ahead(journal: Journal) -> None:
    platform, tries = FakePlatform(), []

    async def handler(request: Request, progress: Progress) -> Response:
        tries.append(request.text)
        if tries == ["0", "1"]:
            raise BackendError("not yet")
        return Response.from_text(request.text)

    for number in range(4):
        platform.write(str(number), age=4 - number)
    async with Serving(platform, journal, handler):
        await platform.until(lambda: len(platform.sent) == 4)
    assert tries == ["0", "1", "1", "2", "3"]


async def test_message_that_was_read_ahead_and_dropped_is_not_run(journal: Journal) -> None:
    platform, ran = FakePlatform(), []

    async def handler(request: Request, progress: Progress) -> Response:
        ran.append(request.text)
        if request.text == "0":
            with other_process(journal.path) as db:
                db.execute("UPDATE message SET state='done' WHERE row_id='row-2'")
        return Response.from_text(request.text)

    for number in range(4):
        platform.write(str(number), age=4 - number)
    async with Serving(platform, journal, handler):
        await platform.until(lambda: len(platform.sent) == 3)
    assert ran == ["0", "2", "3"]


async def test_message_during_a_conversations_end_is_handled(journal: Journal) -> None:
    """One comes at each step of the loop around the end of the one before it."""
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, echo) as serving:
        await asyncio.sleep(40)
        for steps in range(30):
            platform.write("one", caller=f"peer-{steps}")
            for _ in range(steps):
                await asyncio.sleep(0)
            platform.write("two", caller=f"peer-{steps}")
            await platform.until(lambda steps=steps: len(platform.sent) == 2 * steps + 2, seconds=5)  # type: ignore[misc]
    assert {state for _, state in serving.rows()} == {"done"}


async def test_incomplete_read_starts_no_waiting_message(journal: Journal) -> None:
    platform, release, began = FakePlatform(has_stream=True), asyncio.Event(), []

    async def handler(request: Request, progress: Progress) -> Response:
        began.append(request.text)
        if request.text == "slow":
            await release.wait()
        return Response.from_text(request.text)

    async with Serving(platform, journal, handler, concurrency=1) as serving:
        await asyncio.sleep(1)
        platform.write("slow", caller="peer-1")
        platform.write("waits for the slot", caller="peer-2")
        await asyncio.sleep(1)
        platform.fetch_delay, dispatcher = 60.0, serving.connection._dispatcher
        dispatcher.wake(complete=False)
        release.set()
        await asyncio.sleep(1)
        assert began == ["slow"]
        dispatcher.wake()
        await platform.until(lambda: len(platform.sent) == 2, seconds=5)


# How much is in memory


async def test_hundred_conversations_delay_no_other_caller(journal: Journal) -> None:
    platform, most = FakePlatform(has_stream=True), 0

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal most
        most = max(most, serving.connection._dispatcher.active)
        await asyncio.sleep(1)
        return Response.from_text(request.text)

    for number in range(300):
        platform.write("flood", caller="flooder", context=f"talk-{number % 100}", age=20)
    async with Serving(platform, journal, handler) as serving:
        await asyncio.sleep(5)
        platform.write("other", caller="peer-2")
        await asyncio.sleep(3)
        assert "other" in platform.answers()
        await platform.until(lambda: len(platform.sent) == 301)
    assert most <= 64 + 1
    assert {state for _, state in serving.rows()} == {"done"}


async def test_backlogs_leave_turns_to_other_conversations(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    began: list[str] = []

    async def handler(request: Request, progress: Progress) -> Response:
        began.append(request.text)
        await asyncio.sleep(1)
        return Response.from_text(request.text)

    for number in range(64 * 20):
        platform.write("backlog", context=f"talk-{number % 64}", age=25 - number / 100)
    async with Serving(platform, journal, handler):
        await asyncio.sleep(5)
        for number in range(10):
            platform.write(f"other {number}", context=f"chat-{number}")
        await platform.until(lambda: sum("other" in answer for answer in platform.answers()) == 10, seconds=60)
        # New messages of those that had their turn do not take the place of others either.
        for number in range(64):
            platform.write("more", context=f"talk-{number}")
        platform.write("last", context="chat-last")
        await platform.until(lambda: "last" in platform.answers(), seconds=60)
        await platform.until(lambda: len(platform.sent) == 64 * 21 + 11)


async def test_deferred_conversations_have_no_tasks(journal: Journal) -> None:
    platform, calls = FakePlatform(has_stream=True), 0

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal calls
        calls += 1
        if asyncio.get_running_loop().time() < 500:
            raise BackendError("usage limit", retry_after=600)
        return Response.from_text("fine")

    for number in range(300):
        platform.write(context=f"talk-{number}", age=20)
    async with Serving(platform, journal, handler) as serving:
        await asyncio.sleep(300)
        assert calls == 300
        assert serving.connection._dispatcher.active == 0
        await platform.until(lambda: len(platform.sent) == 300)
    assert calls == 600


async def test_start_runs_deferred_conversations_when_due(journal: Journal) -> None:
    platform = FakePlatform()

    async def limited(request: Request, progress: Progress) -> Response:
        raise BackendError("usage limit", retry_after=600)

    for number in range(200):
        platform.write(context=f"talk-{number}", age=20)
    async with Serving(platform, journal, limited):
        await asyncio.sleep(60)
    async with Serving(platform, journal, echo) as serving:
        await asyncio.sleep(400)
        assert (platform.sent, serving.connection._dispatcher.active) == ([], 0)
        await platform.until(lambda: len(platform.sent) == 200, seconds=200)


async def test_backlog_of_100000_stays_in_the_journal(journal: Journal) -> None:
    callers, rows, before = 5, 100_000, entries_in_memory()
    for caller in range(callers):
        await journal.of(WORKSPACE).add([inbound(row_id=f"seed-{caller}", caller_id=f"peer-{caller}")], now=0)
    await journal.writer.put(lambda db: db.execute(_COPIES, (rows // callers,)))
    platform, entered = FakePlatform(), asyncio.Event()

    async def handler(request: Request, progress: Progress) -> Response:
        entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with Serving(platform, journal, handler, grace=0.0) as serving:
        await entered.wait()
        await asyncio.sleep(10)
        assert journal.of(WORKSPACE).waiting() == rows + callers
        assert serving.connection._dispatcher.active <= callers * 64
        # A running message is in memory as it was before its start, too; both share their texts.
        assert entries_in_memory() - before <= callers * 64 + 8


def entries_in_memory() -> int:
    gc.collect()
    return sum(isinstance(thing, StoredMessage) for thing in gc.get_objects())


_COPIES = (
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    " INSERT INTO message (workspace_id, row_id, kind, state, time, seq, place, caller_id, context_id, message_id,"
    " idempotency_key, method, fingerprint, parts, raw, size, changed)"
    " SELECT workspace_id, row_id || '-' || i, kind, state, time, seq, place + i, caller_id, 'talk-' || i, message_id,"
    " idempotency_key, method, fingerprint, parts, raw, size, changed FROM message JOIN n WHERE row_id LIKE 'seed-_'"
)


async def test_while_paused_many_conversations_cost_nothing(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, echo) as serving:
        await asyncio.sleep(30)
        dispatcher = serving.connection._dispatcher
        dispatcher.pause()
        for number in range(200):
            platform.write(context=f"talk-{number}")
        await asyncio.sleep(60)
        assert (platform.sent, dispatcher.active) == ([], 0)
        dispatcher.resume()
        await platform.until(lambda: len(platform.sent) == 200)


# Messages that killed us


@pytest.fixture
async def unlucky(journal: Journal) -> Journal:
    """A journal with messages during which the process died, as often as they are called."""
    workspace = journal.of(WORKSPACE)
    deaths = {"3": 3, "2": 2, "2 too": 2, "8": 8, "1": 1, "0": 0}
    for number, text in enumerate(deaths):
        await workspace.add([inbound(text, row_id=text, caller_id=f"peer-{number}")], now=0)
    for text, times in deaths.items():
        for _ in range(times):
            entry = workspace.next(Conversation(f"peer-{list(deaths).index(text)}", None))
            assert entry is not None
            await workspace.start(entry)
            await workspace.recover()
    return journal


async def test_message_is_dead_after_eight_crashes(unlucky: Journal) -> None:
    platform, running, together = FakePlatform(), set(), []

    async def handler(request: Request, progress: Progress) -> Response:
        running.add(request.text)
        together.append({text for text in running if text in ("3", "2", "2 too")})
        assert request.attempt == 1
        await asyncio.sleep(5)
        running.discard(request.text)
        return Response.from_text(request.text)

    async with Serving(platform, unlucky, handler) as serving:
        await platform.until(lambda: len(platform.sent) == 5)
    assert {"0", "1"} < set(platform.answers()[:3])
    assert max(len(suspects) for suspects in together) == 1
    dead = [(row_id, reason) for row_id, state, reason in serving.rows("row_id, state, reason") if state == "dead"]
    assert dead == [("8", "the process died 8 times while the backend had it")]


# Clocks


@pytest.mark.parametrize("jump", [-3600.0, -86_400.0])
async def test_clock_set_back_extends_no_wait(journal: Journal, jump: float) -> None:
    platform, tries, offset = FakePlatform(), 0, 0.0
    loop = asyncio.get_running_loop()

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BackendError("not yet")
        return Response.from_text("fine")

    platform.write("hi")
    async with Serving(platform, journal, handler, wall=lambda: EPOCH + loop.time() + offset) as serving:
        await asyncio.sleep(1)
        offset = jump
        serving.connection.clock_jumped()
        # Something else that wakes the conversation meanwhile makes no difference.
        platform.write("behind")
        await platform.until(lambda: len(platform.sent) == 2, seconds=60)


async def test_messages_due_during_sleep_run_on_wakeup(journal: Journal, tmp_path: Path) -> None:
    platform, tries, offset = FakePlatform(), 0, 0.0
    loop = asyncio.get_running_loop()

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal tries
        tries += 1
        if tries < 2:
            raise BackendError("usage limit", retry_after=5 * 3600)
        return Response.from_text("fine")

    folder = tmp_path / "other"
    folder.mkdir()
    async with Journal.open(folder, wall=lambda: EPOCH + loop.time() + offset) as own:
        platform.write("hi")
        async with Serving(platform, own, handler, wall=own.wall) as serving:
            await asyncio.sleep(60)
            offset = 6 * 3600.0
            serving.connection.clock_jumped()
            await asyncio.sleep(5)
            assert platform.answers() == ["fine"]


async def test_clock_ahead_before_a_restart_delays_nothing(journal: Journal) -> None:
    platform, tries = FakePlatform(), 0
    loop, ahead = asyncio.get_running_loop(), 6 * 3600.0

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise BackendError("not yet")
        return Response.from_text("fine")

    def wall() -> float:
        return EPOCH + loop.time() + ahead

    journal.wall = wall
    platform.write("hi")
    platform.write("behind")
    async with Serving(platform, journal, handler, wall=wall):
        await asyncio.sleep(1)
    assert tries == 1
    ahead = 0.0
    async with Serving(platform, journal, handler, wall=wall):
        await platform.until(lambda: len(platform.sent) == 2, seconds=60)


async def test_requested_pause_survives_a_clock_correction(
    journal: Journal,
) -> None:
    platform, tried = FakePlatform(), []
    loop, ahead = asyncio.get_running_loop(), 24 * 3600.0

    async def handler(request: Request, progress: Progress) -> Response:
        tried.append(loop.time())
        if len(tried) == 1:
            raise BackendError("usage limit", retry_after=5 * 3600)
        return Response.from_text("fine")

    def wall() -> float:
        return EPOCH + loop.time() + ahead

    journal.wall = wall
    platform.write("hi")
    async with Serving(platform, journal, handler, wall=wall) as serving:
        await asyncio.sleep(60)
        ahead = 0.0
        serving.connection.clock_jumped()
        await platform.until(lambda: len(platform.sent) == 1, seconds=6 * 3600)
    assert tried[1] - tried[0] == pytest.approx(5 * 3600, abs=120)


async def test_clock_days_behind_costs_no_attempts(journal: Journal) -> None:
    platform, tries = FakePlatform(), 0
    loop, ahead = asyncio.get_running_loop(), -3 * 86_400.0

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise BackendError("not yet")
        return Response.from_text("fine")

    def wall() -> float:
        return EPOCH + loop.time() + ahead

    journal.wall = wall
    platform.write("hi", age=10)
    async with Serving(platform, journal, handler, wall=wall) as serving:
        await asyncio.sleep(1)
        ahead = 0.0
        serving.connection.clock_jumped()
        await platform.until(lambda: platform.answers() == ["fine"], seconds=300)


async def test_clock_correction_ends_a_budget_wait(journal: Journal) -> None:
    platform = FakePlatform()
    loop, ahead = asyncio.get_running_loop(), 2 * 86_400.0

    async def dear(request: Request, progress: Progress) -> Response:
        return Response.from_text(request.text, usage=Usage(cost_usd=1.0))

    def wall() -> float:
        return EPOCH + loop.time() + ahead

    journal.wall = wall
    platform.write("one", age=1)
    platform.write("two")
    async with Serving(platform, journal, dear, wall=wall, max_cost_per_day=1.0) as serving:
        await asyncio.sleep(60)
        assert len(platform.sent) == 1
        ahead = 0.0
        serving.connection.clock_jumped()
        await platform.until(lambda: len(platform.sent) == 2, seconds=60)


# Counting


async def test_accepted_reply_never_counts_as_waiting(journal: Journal) -> None:
    workspace = journal.of(WORKSPACE)
    platform, release = FakePlatform(), asyncio.Event()
    counts: list[tuple[Any, ...]] = []

    async def handler(request: Request, progress: Progress) -> Response:
        if request.text == "slow":
            await release.wait()
        return Response.from_text(request.text)

    platform.write("slow", caller="peer-1")
    platform.write("quick", caller="peer-2", age=1)
    async with Serving(platform, journal, handler) as serving:
        its_journal = serving.connection._journal
        while not serving.events.of(events.Delivered):  # noqa: ASYNC110
            await asyncio.sleep(0)
        for _ in range(20):
            counts.append((its_journal.waiting(), workspace.next(Conversation("peer-1", None)) is not None))
            await asyncio.sleep(0)
        release.set()
    assert set(counts) == {(1, True)}


async def test_budget_of_one_turn_answers_all_messages(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    async with Serving(platform, journal, echo, peer_budget=PeerBudget(per_minute=1, per_hour=0)) as serving:
        for number in range(5):
            platform.write(str(number), caller="peer-1", context=f"talk-{number}")
            await asyncio.sleep(5)
        await asyncio.sleep(400)
    assert {state for _, state in serving.rows()} == {"done"}


async def test_running_message_without_a_task_runs_again(journal: Journal) -> None:
    platform, tries = FakePlatform(), []

    async def handler(request: Request, progress: Progress) -> Response:
        tries.append(request.attempt)
        if len(tries) == 1:
            raise BackendError("not yet")
        return Response.from_text(request.text)

    platform.write("hi", caller="peer-1")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: serving.rows("state, attempt") == [("received", 1)])
        # As after a commit that took effect, and was told to have failed.
        await journal.writer.put(
            lambda db: db.execute("UPDATE message SET state='running', attempt=2, not_before=NULL").rowcount
        )
        serving.connection.journal_changed()
        await platform.until(lambda: len(platform.sent) == 1, seconds=60)
    assert tries == [1, 2]
    assert serving.rows("state, attempt, interruptions") == [("done", 2, 0)]


async def test_failed_journal_read_loses_no_wake_up(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, echo) as serving:
        await asyncio.sleep(1)
        mine, failures = journal.of(WORKSPACE), iter([True])

        def callers() -> list[str | None]:
            if next(failures, False):
                raise JournalError("the journal can't be read")
            return mine.callers()

        dispatcher = serving.connection._dispatcher
        monkeypatch.setattr(dispatcher._journal, "callers", callers)
        await mine.add([inbound("hello", row_id="late", caller_id="peer-1")], now=0)
        dispatcher.wake_all()
        await platform.until(lambda: platform.answers() == ["echo: hello"])
