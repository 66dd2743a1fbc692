"""A worker without a backend stores messages for the readers, sends their replies, and stays online."""

import asyncio
from pathlib import Path

import attrs
import pytest
from tests.inbox.test_inbox import FakeSession, ids
from tests.worker.kit import WORKSPACE, FakePlatform, Serving, open_journal, other_process

from molecule_connect import events
from molecule_connect.errors import BackendError, Outcome, PermanentPlatformError, TransientPlatformError
from molecule_connect.flag import Flag
from molecule_connect.inbox.inbox import ChangeSignal, Inbox
from molecule_connect.journal.inbox import InboxStore
from molecule_connect.journal.journal import Journal
from molecule_connect.models import BLANK, Kind, Progress, Request, Response
from molecule_connect.worker.status_file import read_status
from molecule_connect.worker.worker import Worker


@attrs.define
class LocalSession(FakeSession):
    """The session of a reader in the process that runs *connection*."""

    connection: Worker | None = None

    def journal_changed(self) -> None:
        if self.connection is not None:
            self.connection.journal_changed()


def reader(serving: Serving) -> Inbox:
    return Inbox(serving.journal, {WORKSPACE: LocalSession(connection=serving.connection)}, ChangeSignal())


async def test_claimed_message_reply_reaches_the_person(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        platform.write("how are you?")
        message = await inbox.wait(60)
        assert message is not None
        assert await inbox.reply(message.activity_id, Response.from_text("well")) == "delivered"
    (sent,) = platform.sent
    assert (sent.caller_id, platform.answers()) == (None, ["well"])
    assert serving.rows() == [("row-1", "done")]


async def test_reply_to_a_peer_names_its_message(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        platform.write("ping", caller="peer-1", context="talk", message_id="their-id")
        message = await reader(serving).wait(60)
        assert message is not None
        assert await reader(serving).reply(message.activity_id, Response.from_text("pong")) == "delivered"
    (sent,) = platform.sent
    assert (sent.caller_id, sent.context_id, sent.in_reply_to) == ("peer-1", "talk", "their-id")


async def test_reader_in_another_process_gets_messages(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving, open_journal(tmp_path) as elsewhere:
        attached = Inbox(elsewhere, {WORKSPACE: FakeSession()}, ChangeSignal())
        platform.write("hello")
        message = await attached.wait(60)
        assert message is not None
        replying = asyncio.ensure_future(attached.reply(message.activity_id, Response.from_text("hi")))
        await asyncio.sleep(1)
        # The supervisor does this once a second if another process changed the journal.
        serving.connection.journal_changed()
        assert await replying == "delivered"
    assert platform.answers() == ["hi"]


async def test_inbox_answers_nothing_itself(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        for number in range(20):
            platform.write(f"text {number}", caller=f"peer-{number % 3}")
        await platform.until(lambda: len(serving.rows()) == 20)
        await asyncio.sleep(7200)
        assert {state for _, state in serving.rows()} == {"received"}
        assert platform.sent == []
        assert platform.beats[-1].wedged == ""


async def test_answers_and_results_wait_for_a_reader(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        platform.write("an answer", caller="peer-1", kind=Kind.ANSWER)
        inbox, store = reader(serving), InboxStore(journal)
        await store.record_question(WORKSPACE, "key-1", "peer-1", "count")
        await store.record_delegation(WORKSPACE, "key-1", "delegation-1")
        platform.write("a result", kind=Kind.RESULT, delegation="delegation-1")
        platform.write("our own", kind=Kind.OWN)
        await platform.until(lambda: len(inbox.peek()) == 2)
        assert [message.kind for message in inbox.peek()] == ["answer", "result"]


async def test_heartbeat_counts_waiting_and_claimed_messages(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        for number in range(3):
            platform.write(f"text {number}")
        await platform.until(lambda: len(serving.rows()) == 3)
        assert await reader(serving).wait(0)
        beats = len(platform.beats)
        await platform.until(lambda: len(platform.beats) > beats)
        beat = platform.beats[-1]
        assert (beat.active_tasks, beat.current_task) == (1, "2 messages wait for a reader")


async def test_refused_reply_is_dead_and_replayable(journal: Journal) -> None:
    refusal = PermanentPlatformError("a2a: 403 not allowed", operation="a2a", status=403, body="")
    platform = FakePlatform(fail_send=[refusal])
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        platform.write("hello", caller="peer-1")
        message = await inbox.wait(60)
        assert message is not None
        outcome = await inbox.reply(message.activity_id, Response.from_text("hi"))
        assert outcome.startswith("dead: ")
        assert "403 not allowed" in outcome
        await journal.of(WORKSPACE).replay(message.activity_id)
        assert inbox.peek() == []
        serving.connection.journal_changed()
        await platform.until(lambda: platform.answers() == ["hi"])


async def test_reply_stored_until_the_platform_accepts_it(journal: Journal) -> None:
    away = [TransientPlatformError("notify: 503", operation="notify", status=503, retry_after=30.0)]
    platform = FakePlatform(fail_send=list(away))
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        platform.write("hello")
        message = await inbox.wait(60)
        assert message is not None
        assert await inbox.reply(message.activity_id, Response.from_text("hi"), patience=5) == "stored"
        await platform.until(lambda: platform.answers() == ["hi"])


async def test_reply_interrupted_by_kill_sent_once(tmp_path: Path) -> None:
    platform = FakePlatform()
    async with open_journal(tmp_path) as journal:
        async with Serving(platform, journal, None) as serving:
            platform.write("hello")
            assert await reader(serving).wait(60)
        # No worker runs: the process was killed right after the reply was stored.
        await Inbox(journal, {WORKSPACE: FakeSession()}, ChangeSignal()).reply(
            "row-1", Response.from_text("hi"), patience=0
        )
    async with open_journal(tmp_path) as journal, Serving(platform, journal, None):
        await platform.until(lambda: platform.answers() == ["hi"])
        await asyncio.sleep(600)
    assert platform.answers() == ["hi"]


async def test_interrupted_send_settled_by_its_echo(tmp_path: Path) -> None:
    cut = TransientPlatformError("notify: cut", operation="notify", outcome=Outcome.UNKNOWN)
    platform = FakePlatform(cut_after=[cut])
    async with open_journal(tmp_path) as journal, Serving(platform, journal, None, grace=0.0) as serving:
        platform.write("hello")
        assert await reader(serving).wait(60)
        await reader(serving).reply("row-1", Response.from_text("hi"), patience=0.5)
    async with open_journal(tmp_path) as journal, Serving(platform, journal, None) as serving:
        await platform.until(lambda: serving.rows() == [("row-1", "done")])
    assert platform.answers() == ["hi"]


async def test_without_presence_reads_but_never_registers(tmp_path: Path) -> None:
    platform = FakePlatform()
    async with open_journal(tmp_path) as journal, Serving(platform, journal, None, presence=False) as serving:
        platform.write("hello")
        assert await reader(serving).wait(60)
        await asyncio.sleep(120)
    assert (platform.cards, platform.beats) == ([], [])


async def test_once_reads_everything_and_answers_nothing(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("hello")
    serving = Serving(platform, journal, None, once=True)
    await serving.connection.run(Flag())
    assert serving.rows() == [("row-1", "received")]


async def test_status_file_names_the_inbox_backend(journal: Journal, tmp_path: Path) -> None:
    async with Serving(FakePlatform(), journal, None):
        await asyncio.sleep(1)
        status = read_status(tmp_path, WORKSPACE)
        assert status is not None
        assert status.inbox
    async with Serving(FakePlatform(), journal):
        await asyncio.sleep(1)
        status = read_status(tmp_path, WORKSPACE)
        assert status is not None
        assert not status.inbox


async def test_finished_messages_are_reported(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        inbox = reader(serving)
        platform.write("hello")
        platform.write("good bye")
        await platform.until(lambda: len(inbox.peek()) == 2)
        await inbox.pop("row-1")
        await asyncio.sleep(2)
        await inbox.reply("row-2", Response.from_text("bye"))
        answered = [(event.row_id, event.text, event.silent) for event in serving.events.of(events.Answered)]
        assert answered == [("row-1", "", True), ("row-2", "bye", False)]


@pytest.mark.parametrize("steps", range(1, 6))
async def test_reply_sent_even_if_caller_is_cancelled(journal: Journal, steps: int) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        platform.write("hello")
        inbox = reader(serving)
        assert await inbox.wait(60)
        replying = asyncio.ensure_future(inbox.reply("row-1", Response.from_text("hi")))
        for _ in range(steps):
            await asyncio.sleep(0)
        replying.cancel()
        await platform.until(lambda: serving.rows() == [("row-1", "done")], seconds=60)
    assert platform.answers() == ["hi"]


async def test_empty_message_waits_and_can_be_answered(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, None) as serving:
        platform.write(caller="peer-1")
        row = platform.rows[-1]
        row.item = attrs.evolve(row.item, kind=Kind.UNREADABLE, parts=(), reason=BLANK)
        message = await reader(serving).wait(60)
        assert message is not None
        assert (message.kind, message.text) == ("message", "")
        assert await reader(serving).reply(message.activity_id, Response.from_text("you said nothing")) == "delivered"
    assert platform.answers() == ["you said nothing"]


# Switching modes


async def test_backend_answers_messages_left_by_an_inbox(tmp_path: Path) -> None:
    platform = FakePlatform()
    async with open_journal(tmp_path) as journal:
        async with Serving(platform, journal, None) as serving:
            platform.write("one")
            platform.write("two")
            platform.write("an answer", caller="peer-1", kind=Kind.ANSWER)
            inbox = reader(serving)
            await platform.until(lambda: len(inbox.peek()) == 3)
            assert await inbox.wait(0)
        async with Serving(platform, journal) as serving:
            await platform.until(lambda: len(platform.sent) == 2)
        assert platform.answers() == ["echo: one", "echo: two"]
        states = journal.reader.execute("SELECT DISTINCT state FROM message").fetchall()
        assert states == [("done",)]


async def test_switch_to_inbox_keeps_waiting_messages(tmp_path: Path) -> None:
    platform = FakePlatform()
    async with open_journal(tmp_path) as journal:
        async with Serving(platform, journal, None):
            platform.write("one")
            await asyncio.sleep(10)
        with other_process(journal.path) as db:
            db.execute("UPDATE message SET state='running', attempt=1")
        async with Serving(platform, journal, None) as serving:
            assert ids([message for message in [await reader(serving).wait(60)] if message]) == ["row-1"]
            assert serving.rows("attempt, interruptions") == [(0, 0)]


async def test_failed_message_replayed_popped_or_answered_late(tmp_path: Path) -> None:
    platform = FakePlatform()

    async def broken(request: Request, progress: Progress) -> Response:
        raise BackendError("no", retryable=False)

    async with open_journal(tmp_path) as journal:
        async with Serving(platform, journal, broken) as serving:
            platform.write("one")
            await platform.until(lambda: serving.rows() == [("row-1", "dead")])
        async with Serving(platform, journal, None) as serving:
            assert await journal.of(WORKSPACE).replay("row-1")
            assert await reader(serving).pop("row-1")
            assert await reader(serving).reply("row-1", Response.from_text("late")) == "delivered"
    assert platform.answers()[1:] == ["late"]


async def test_backend_answers_messages_claimed_by_open_reader(journal: Journal, tmp_path: Path) -> None:
    platform, go = FakePlatform(), asyncio.Event()

    async def busy(request: Request, progress: Progress) -> Response:
        await go.wait()
        return Response.from_text(f"echo: {request.text}")

    async with open_journal(tmp_path) as elsewhere, Serving(platform, journal, busy, concurrency=1) as serving:
        platform.write("one")
        platform.write("two")
        await platform.until(lambda: serving.rows() == [("row-1", "running"), ("row-2", "received")])
        assert await Inbox(elsewhere, {WORKSPACE: FakeSession()}, ChangeSignal()).wait(0)
        # The supervisor does this once a second if another process changed the journal.
        serving.connection.journal_changed()
        go.set()
        await platform.until(lambda: len(platform.sent) == 2)
    assert platform.answers() == ["echo: one", "echo: two"]


@pytest.mark.parametrize("handler", [None, "echo"])
async def test_stored_reply_sent_in_both_modes(tmp_path: Path, handler: str | None) -> None:
    platform = FakePlatform()
    async with open_journal(tmp_path) as journal:
        async with Serving(platform, journal, None):
            platform.write("one")
            await asyncio.sleep(10)
        await Inbox(journal, {WORKSPACE: FakeSession()}, ChangeSignal()).reply(
            "row-1", Response.from_text("by hand"), patience=0
        )
        given = () if handler else (None,)
        async with Serving(platform, journal, *given) as serving:
            await platform.until(lambda: serving.rows() == [("row-1", "done")])
    assert platform.answers() == ["by hand"]
