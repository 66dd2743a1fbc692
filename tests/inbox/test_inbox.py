"""Promise (docs/inbox.md): two readers never claim the same message, none is lost, and each is answered once."""

import asyncio
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Sequence
from pathlib import Path
from typing import Any, Self

import attrs
import pytest
from tests.worker.kit import EPOCH, WORKSPACE, inbound, open_journal, other_process

from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.inbox.inbox import ChangeSignal, Inbox
from molecule_connect.journal.inbox import InboxMessage, InboxStore
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import Conversation
from molecule_connect.journal.schema import open_file
from molecule_connect.models import DataPart, FilePart, Inbound, Kind, Response, TextPart
from molecule_connect.platform.workspace_client import WorkspaceClient

NOW = round(EPOCH * 1e6)
SECOND = 1_000_000


@attrs.define
class FakeSession:
    """A session without a worker, which records what it sends."""

    trouble: str = ""
    ended: MoleculeError | None = None
    changes: int = 0
    asked: list[tuple[str, str]] = attrs.field(factory=list)
    files: list[Path] = attrs.field(factory=list)
    timeout: float = 0.0

    @property
    def client(self) -> WorkspaceClient:
        raise AssertionError("not used here")

    @property
    def sender(self) -> Self:
        return self

    def journal_changed(self) -> None:
        self.changes += 1

    async def tell_user(self, text: str, files: Sequence[Path]) -> None:
        self.asked.append(("user", text))
        self.files += files

    async def ask(self, peer_id: str, text: str, *, timeout: float) -> Any:
        self.timeout = timeout
        self.asked.append((peer_id, text))

    async def delegate(self, peer_id: str, task: str) -> str:
        self.asked.append((peer_id, task))
        return "delegation-1"


async def arrive(journal: Journal, *items: Inbound, workspace: str = WORKSPACE) -> None:
    await journal.of(workspace, inbox=True).add(items, now=NOW)


def message(number: int, **given: Any) -> Inbound:
    given.setdefault("time", NOW + number * SECOND)
    return inbound(f"text {number}", row_id=f"row-{number}", **given)


def open_inbox(journal: Journal, *workspaces: str) -> Inbox:
    return Inbox(journal, {one: FakeSession() for one in workspaces or (WORKSPACE,)}, ChangeSignal())


def ids(messages: Sequence[InboxMessage]) -> list[str]:
    return [message.activity_id for message in messages]


@pytest.fixture
async def second(journal: Journal) -> AsyncIterator[Journal]:
    """The same journal, opened by another process."""
    async with open_journal(journal.path.parent) as second:
        yield second


# Claiming


async def test_wait_returns_the_oldest_without_removing_it(journal: Journal) -> None:
    await arrive(journal, message(2), message(1))
    inbox = open_inbox(journal)
    taken = await inbox.wait(0)
    assert taken is not None
    assert (taken.activity_id, taken.text, taken.kind) == ("row-1", "text 1", "message")
    assert taken.held_until == EPOCH + 300
    assert ids(inbox.peek()) == ["row-1", "row-2"]


async def test_two_waiters_never_get_the_same_message(journal: Journal, second: Journal) -> None:
    await arrive(journal, *(message(number) for number in range(20)))
    inboxes = [open_inbox(journal), open_inbox(second)]
    taken = await asyncio.gather(*(inboxes[number % 2].wait(0) for number in range(20)))
    assert sorted(one.activity_id for one in taken if one) == sorted(f"row-{number}" for number in range(20))
    assert await inboxes[0].wait(0) is None


async def test_claim_expires_and_message_is_available_again(journal: Journal) -> None:
    await arrive(journal, message(1))
    inbox = open_inbox(journal)
    assert await inbox.wait(0, hold=30)
    assert await inbox.wait(29) is None
    again = await inbox.wait(10)
    assert again is not None
    assert again.activity_id == "row-1"


async def test_claims_survive_a_clock_set_back(tmp_path: Path) -> None:
    shift = 0.0
    async with Journal.open(tmp_path, wall=lambda: EPOCH + shift) as journal:
        await arrive(journal, message(1))
        inbox = open_inbox(journal)
        assert await inbox.wait(0)
        shift = -3600.0
        assert await inbox.wait(0)


async def test_wait_ends_when_a_message_arrives(journal: Journal, second: Journal) -> None:
    inbox = open_inbox(second)
    waiting = asyncio.ensure_future(inbox.wait(60))
    await asyncio.sleep(5)
    assert not waiting.done()
    await arrive(journal, message(1))
    taken = await waiting
    assert taken is not None
    assert asyncio.get_running_loop().time() < 6


@pytest.mark.parametrize("steps", range(12))
async def test_cancelled_wait_never_keeps_a_claim(journal: Journal, steps: int) -> None:
    await arrive(journal, message(1))
    inbox = open_inbox(journal)
    waiting = asyncio.ensure_future(inbox.wait(60))
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel()
    (outcome,) = await asyncio.gather(waiting, return_exceptions=True)
    again = await inbox.wait(0)
    assert (again is None) == isinstance(outcome, InboxMessage)


async def test_wait_returns_none_on_timeout(journal: Journal) -> None:
    assert await open_inbox(journal).wait(7) is None
    assert asyncio.get_running_loop().time() == pytest.approx(7)


async def test_oldest_across_workspaces_is_first(journal: Journal) -> None:
    await arrive(journal, message(2), workspace="ws-a")
    await arrive(journal, message(1), workspace="ws-b")
    await arrive(journal, message(0), workspace="ws-of-others")
    inbox = open_inbox(journal, "ws-a", "ws-b")
    assert [one.workspace_id for one in inbox.peek()] == ["ws-b", "ws-a"]
    taken = [await inbox.wait(0), await inbox.wait(0), await inbox.wait(0)]
    assert [one and one.workspace_id for one in taken] == ["ws-b", "ws-a", None]


async def test_claim_of_killed_reader_expires(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await arrive(journal, message(1))
        assert await open_inbox(journal).wait(0)
    async with open_journal(tmp_path) as journal:
        inbox = open_inbox(journal)
        assert ids(inbox.peek()) == ["row-1"]
        assert await inbox.wait(0) is None
        assert await inbox.wait(301)


def dead_process() -> str:
    """The id of a process that has exited."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    return str(ended.pid)


async def test_claim_of_dead_process_released_immediately(journal: Journal) -> None:
    await arrive(journal, message(1))
    inbox = open_inbox(journal)
    assert await inbox.wait(0)
    waiting = asyncio.ensure_future(open_inbox(journal).wait(60))
    await asyncio.sleep(10)
    assert not waiting.done()
    with other_process(journal.path) as db:
        db.execute("UPDATE message SET holder=?", (inbox.reader_id.replace(str(os.getpid()), dead_process()),))
    again = await waiting
    assert again is not None
    assert asyncio.get_running_loop().time() < 15


async def test_close_releases_the_claims_of_the_reader(journal: Journal) -> None:
    await arrive(journal, message(1), message(2))
    closing, staying = open_inbox(journal), open_inbox(journal)
    assert await closing.wait(0)
    assert await staying.wait(0)
    await closing.close()
    again = await open_inbox(journal).wait(0)
    assert again is not None
    assert again.activity_id == "row-1"
    assert await open_inbox(journal).wait(0) is None


async def test_claims_of_unread_workspaces_cause_no_wakeups(journal: Journal) -> None:
    await arrive(journal, message(1), workspace="ws-of-others")
    assert await open_inbox(journal, "ws-of-others").wait(0, hold=1)
    assert await open_inbox(journal).wait(3600) is None


async def test_five_thousand_messages_claimed_in_order(journal: Journal) -> None:
    await arrive(journal, *(message(number, caller_id=f"peer-{number % 7}") for number in range(5000)))
    inbox = open_inbox(journal)
    arrivals = inbox.arrivals()
    announced = [(await anext(arrivals)).activity_id for _ in range(5000)]
    assert announced == [f"row-{number}" for number in range(5000)]
    for row_id in announced[:500]:
        one = await inbox.wait(0)
        assert one is not None
        assert one.activity_id == row_id
        assert await inbox.pop(row_id)
    assert len(inbox.peek(10_000)) == 4500


def flood(peers: int, each: int) -> list[Inbound]:
    """Messages of peers, followed by three of people."""
    written = [message(number, caller_id=f"peer-{number % peers}") for number in range(peers * each)]
    return [*written, *(message(len(written) + number) for number in range(3))]


async def test_person_gets_every_other_turn(journal: Journal) -> None:
    await arrive(journal, *flood(3, 100))
    inbox = open_inbox(journal)
    callers = []
    for _ in range(8):
        one = await inbox.wait(0)
        assert one is not None
        callers.append(one.caller_id)
        await inbox.pop(one.activity_id)
    assert callers == ["peer-0", None, "peer-1", None, "peer-2", None, "peer-0", "peer-1"]


async def test_flooding_person_leaves_peers_every_other_turn(journal: Journal) -> None:
    await arrive(journal, *(message(number) for number in range(100)), message(100, caller_id="peer-1"))
    inbox = open_inbox(journal)
    taken = [await inbox.wait(0), await inbox.wait(0)]
    assert [one and one.caller_id for one in taken] == [None, "peer-1"]


@pytest.mark.parametrize("limit", [1, 2, 10])
async def test_peek_shows_each_caller_during_a_flood(journal: Journal, limit: int) -> None:
    await arrive(journal, *flood(3, 100))
    shown = open_inbox(journal).peek(limit)
    assert len(shown) == limit
    assert {one.caller_id for one in shown} >= set([None, "peer-0", "peer-1", "peer-2"][:limit])
    assert shown == sorted(shown, key=lambda one: one.created_at)


async def test_person_announced_before_a_flood(journal: Journal) -> None:
    await arrive(journal, *flood(2, 1000))
    arrivals = open_inbox(journal).arrivals()
    first = [(await anext(arrivals)).caller_id for _ in range(9)]
    assert first == [None, "peer-0", "peer-1"] * 3
    await arrive(journal, message(9000, caller_id="peer-late"))
    rest = [(await anext(arrivals)).caller_id for _ in range(100)]
    assert "peer-late" in rest


async def test_awaited_files_hide_no_other_message(journal: Journal) -> None:
    file = FilePart(uri="data:;base64,eA==", name="a")
    await arrive(journal, *(message(number, caller_id="peer-1", parts=(file,)) for number in range(500)), message(500))
    one = await open_inbox(journal).wait(0)
    assert one is not None
    assert one.caller_id is None


async def test_shows_only_messages_answers_and_results(journal: Journal) -> None:
    kinds = (Kind.MESSAGE, Kind.ANSWER, Kind.RESULT, Kind.ECHO, Kind.OWN, Kind.HISTORY, Kind.UPLOAD, Kind.UNREADABLE)
    store = await asked(journal, ("key-1", "peer-1", "count"))
    await store.record_delegation(WORKSPACE, "key-1", "delegation-1")
    given = {Kind.RESULT: {"delegation_id": "delegation-1"}}
    await arrive(journal, *(message(number, kind=kind, **given.get(kind, {})) for number, kind in enumerate(kinds)))
    assert [one.kind for one in open_inbox(journal).peek()] == ["message", "answer", "result"]


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e9])
async def test_invalid_wait_times_refused_before_claiming(journal: Journal, seconds: float) -> None:
    await arrive(journal, message(1))
    inbox = open_inbox(journal)
    with pytest.raises(ConfigError, match="hold must be between"):
        await inbox.wait(0, hold=seconds)
    with pytest.raises(ConfigError, match="wait must be between"):
        await inbox.wait(seconds)
    assert await inbox.wait(0)


async def test_invalid_activity_id_matches_nothing(journal: Journal) -> None:
    await arrive(journal, message(1))
    inbox = open_inbox(journal)
    for odd in ("", "\ud800", "\0", "' OR 1=1 --", "x" * 100_000):
        assert await inbox.pop(odd) is False
        assert inbox.get(odd) is None
        with pytest.raises(ConfigError, match="no message"):
            await inbox.reply(odd, Response.from_text("hi"))
    assert ids(inbox.peek()) == ["row-1"]


# Finishing


async def test_pop_removes_message_and_is_idempotent(journal: Journal) -> None:
    await arrive(journal, message(1), message(2))
    inbox = open_inbox(journal)
    assert await inbox.pop("row-1") is True
    assert await inbox.pop("row-1") is False
    assert await inbox.pop("nobody-knows-it") is False
    assert ids(inbox.peek()) == ["row-2"]
    assert journal.of(WORKSPACE).cursor() == "row-1"
    popped = inbox.get("row-1")
    assert popped is not None
    assert popped.text == "text 1"


async def test_claimed_message_popped_by_another_reader(journal: Journal, second: Journal) -> None:
    await arrive(journal, message(1))
    assert await open_inbox(journal).wait(0)
    assert await open_inbox(second).pop("row-1")
    assert await open_inbox(journal).wait(400) is None


async def test_pop_notifies_the_session(journal: Journal) -> None:
    await arrive(journal, message(1))
    session = FakeSession()
    await Inbox(journal, {WORKSPACE: session}, ChangeSignal()).pop("row-1")
    assert session.changes == 1


async def test_reply_is_stored_until_sent(journal: Journal) -> None:
    await arrive(journal, message(1))
    inbox = open_inbox(journal)
    assert await inbox.reply("row-1", Response.from_text("yes"), patience=1) == "stored"
    entry = journal.of(WORKSPACE, inbox=True).next(Conversation(None, None))
    assert entry is not None
    assert entry.reply is not None
    assert entry.reply.parts == (TextPart("yes"),)
    assert inbox.peek() == []
    assert await inbox.wait(400) is None


async def test_reply_and_send_time_stored_before_sending(tmp_path: Path) -> None:
    levels: list[str] = []

    class Watched(sqlite3.Connection):
        level = ""

        def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
            if sql.startswith("PRAGMA synchronous="):
                self.level, sql = sql.partition("=")[2], "PRAGMA synchronous=OFF"
            elif sql == "COMMIT":
                levels.append(self.level)
            return super().execute(sql, *values)

    def watched(path: Path) -> sqlite3.Connection:
        return open_file(path, factory=Watched)

    async with Journal.open(tmp_path, wall=lambda: EPOCH, opener=watched) as journal:
        await arrive(journal, message(1))
        levels.clear()
        await open_inbox(journal).reply("row-1", Response.from_text("yes"), patience=0)
        mine = journal.of(WORKSPACE, inbox=True)
        entry = mine.next(Conversation(None, None))
        assert entry is not None
        assert await mine.prepare_send(entry, at=NOW, send_print="yes")
    assert levels == ["FULL", "FULL"]


async def test_popped_message_can_be_answered(journal: Journal) -> None:
    await arrive(journal, message(1))
    inbox = open_inbox(journal)
    assert await inbox.pop("row-1")
    assert await inbox.reply("row-1", Response.from_text("late"), patience=0) == "stored"


async def test_late_second_reply_refused_but_first_accepted(tmp_path: Path) -> None:
    later = 0.0
    async with Journal.open(tmp_path, wall=lambda: EPOCH + later) as journal:
        await arrive(journal, message(1), message(2))
        inbox, mine = open_inbox(journal), journal.of(WORKSPACE, inbox=True)
        await inbox.reply("row-1", Response.from_text("yes"), patience=0)
        entry = mine.next(Conversation(None, None))
        assert entry is not None
        assert await mine.prepare_send(entry, at=NOW, send_print=None)
        mine.mark_sent(entry, at=NOW)
        await mine.sends_committed()
        await inbox.pop("row-2")
        later = 3 * 24 * 3600.0
        await mine.prune(NOW)
        assert inbox.get("row-1") is None
        with pytest.raises(ConfigError, match="replied to already"):
            await inbox.reply("row-1", Response.from_text("again"))
        assert await inbox.reply("row-2", Response.from_text("late"), patience=0) == "stored"


async def test_second_reply_is_refused(journal: Journal, second: Journal) -> None:
    await arrive(journal, message(1))
    both = [open_inbox(journal), open_inbox(second)]
    outcomes = await asyncio.gather(
        *(inbox.reply("row-1", Response.from_text("me"), patience=0) for inbox in both), return_exceptions=True
    )
    (refused,) = (outcome for outcome in outcomes if isinstance(outcome, ConfigError))
    assert "replied to already" in str(refused)
    assert refused.hint


@pytest.mark.parametrize(
    ("row_id", "response", "complaint"),
    [
        ("nobody-knows-it", Response.from_text("hi"), "no message"),
        ("row-2", Response.from_text("hi"), "is itself an answer"),
        ("row-3", Response.from_text("hi"), "is itself an answer"),
        ("row-4", Response.from_text("hi"), "repeats row-1"),
        ("row-5", Response.from_text("hi"), "no message"),
        ("row-1", Response.from_text("  "), "empty"),
        ("row-1", Response.silent(), "reply is empty"),
        ("row-1", Response(parts=[DataPart({1, 2})]), "JSON"),
        ("row-1", Response(parts=[DataPart(float("nan"))]), "JSON"),
    ],
)
async def test_invalid_reply_refused_without_losing_message(
    journal: Journal, row_id: str, response: Response, complaint: str
) -> None:
    repeated = {"sender_key": "key", "fingerprint": "same"}
    store = await asked(journal, ("key-1", "peer-1", "count"))
    await store.record_delegation(WORKSPACE, "key-1", "delegation-1")
    await arrive(
        journal,
        message(1, **repeated),
        message(2, kind=Kind.ANSWER, caller_id="peer"),
        message(3, kind=Kind.RESULT, delegation_id="delegation-1"),
        message(4, **repeated),
        message(5, kind=Kind.ECHO),
    )
    inbox = open_inbox(journal)
    with pytest.raises(ConfigError, match=complaint) as refused:
        await inbox.reply(row_id, response)
    assert refused.value.hint
    assert ids(inbox.peek()) == ["row-1", "row-2", "row-3"]


async def test_replies_of_a_conversation_sent_in_order(journal: Journal) -> None:
    await arrive(journal, message(1), message(2), message(3))
    inbox, mine = open_inbox(journal), journal.of(WORKSPACE, inbox=True)
    order = []
    for number in (3, 1, 2):
        await inbox.reply(f"row-{number}", Response.from_text("yes"), patience=0)
    while (entry := mine.next(Conversation(None, None))) is not None:
        order.append(entry.row_id)
        mine.mark_sent(entry, at=NOW)
        await mine.sends_committed()
    assert order == ["row-3", "row-1", "row-2"]


@pytest.mark.parametrize(
    ("change", "outcome"),
    [("state='done'", "delivered"), ("state='dead', reason='too long'", "dead: too long")],
)
async def test_reply_returns_the_delivery_result(journal: Journal, change: str, outcome: str) -> None:
    await arrive(journal, message(1))
    replying = asyncio.ensure_future(open_inbox(journal).reply("row-1", Response.from_text("yes"), patience=60))
    await asyncio.sleep(3)
    with other_process(journal.path) as db:
        db.execute(f"UPDATE message SET {change}")
    assert await replying == outcome


# Arrivals


async def test_arrivals_yield_each_message_once_in_order(journal: Journal) -> None:
    await arrive(journal, message(2), message(1))
    arrivals = open_inbox(journal).arrivals()
    assert [(await anext(arrivals)).activity_id for _ in range(2)] == ["row-1", "row-2"]
    next_one = asyncio.ensure_future(anext(arrivals))
    await asyncio.sleep(1)
    await open_inbox(journal).wait(0, hold=5)
    await asyncio.sleep(10)
    assert not next_one.done()
    await arrive(journal, message(3))
    assert (await next_one).activity_id == "row-3"


async def test_arrivals_skip_messages_popped_before_their_turn(journal: Journal) -> None:
    await arrive(journal, message(1), message(2), message(3))
    inbox = open_inbox(journal)
    arrivals = inbox.arrivals()
    assert (await anext(arrivals)).activity_id == "row-1"
    await inbox.pop("row-2")
    assert (await anext(arrivals)).activity_id == "row-3"


# Answers and their questions


async def asked(journal: Journal, *questions: tuple[str, str, str]) -> InboxStore:
    """Record questions, each given as message id, peer and text."""
    store = InboxStore(journal)
    for message_id, peer, text in questions:
        await store.record_question(WORKSPACE, message_id, peer, text)
    return store


def answer(number: int, **given: Any) -> Inbound:
    return message(number, **{"kind": Kind.ANSWER, "caller_id": "peer-1", **given})


async def test_answer_that_names_its_question_shows_it(journal: Journal) -> None:
    await asked(journal, ("q-1", "peer-1", "how many?"), ("q-2", "peer-1", "how much?"))
    await arrive(journal, answer(1, reason="q-2"), answer(2, reason="q-1"), answer(3, reason="q-1"))
    assert [one.question for one in open_inbox(journal).peek()] == ["how much?", "how many?", "how many?"]


async def test_result_shows_the_delegated_task(journal: Journal) -> None:
    store = await asked(journal, ("key-1", "peer-1", "count"), ("key-2", "peer-1", "weigh"))
    await store.record_delegation(WORKSPACE, "key-2", "delegation-2")
    await store.record_delegation(WORKSPACE, "key-1", "delegation-1")
    await arrive(
        journal,
        answer(1, kind=Kind.RESULT, caller_id=None, delegation_id="delegation-2"),
        answer(2, reason="delegation-1"),
    )
    found = [(one.question, one.caller_id) for one in open_inbox(journal).peek()]
    assert found == [("weigh", "peer-1"), ("count", "peer-1")]


async def test_result_before_its_delegation_id_waits(journal: Journal) -> None:
    store = await asked(journal, ("key-1", "peer-1", "count"))
    await arrive(journal, answer(1, kind=Kind.RESULT, caller_id=None, delegation_id="delegation-1"))
    assert open_inbox(journal).peek() == []
    await store.record_delegation(WORKSPACE, "key-1", "delegation-1")
    found = [(one.kind, one.question, one.caller_id) for one in open_inbox(journal).peek()]
    assert found == [("result", "count", "peer-1")]


async def test_result_needs_a_delegation_to_that_peer(journal: Journal) -> None:
    store = await asked(journal, ("key-1", "peer-1", "count"))
    await store.record_delegation(WORKSPACE, "key-1", "delegation-1")
    await arrive(
        journal,
        answer(1, kind=Kind.RESULT, caller_id="peer-2", delegation_id="delegation-1"),
        answer(2, kind=Kind.RESULT, caller_id=None, delegation_id="delegation-9"),
        answer(3, kind=Kind.RESULT, caller_id=None, delegation_id=None),
    )
    assert open_inbox(journal).peek() == []


async def test_answer_of_another_peer_settles_no_question(journal: Journal) -> None:
    store = await asked(journal, ("q-1", "peer-1", "how many?"), ("key-1", "peer-1", "count"))
    await store.record_delegation(WORKSPACE, "key-1", "delegation-1")
    forged = [
        answer(1, caller_id="peer-2", reason="q-1"),
        answer(2, caller_id="peer-2", reason="delegation-1"),
        answer(3, caller_id="peer-2", delegation_id="delegation-1"),
        answer(4, caller_id=None, reason="q-1"),
    ]
    await arrive(journal, *forged)
    assert [(one.question, one.delegation_id) for one in open_inbox(journal).peek()] == [("", None)] * 4
    await arrive(journal, answer(5, reason="q-1"))
    assert open_inbox(journal).peek()[-1].question == "how many?"


async def test_unnamed_answer_matches_only_open_question(journal: Journal) -> None:
    store = await asked(journal, ("q-1", "peer-1", "first"), ("q-2", "peer-2", "to another"))
    await arrive(journal, answer(1))
    await asked(journal, ("q-3", "peer-1", "second"), ("q-4", "peer-1", "third"))
    await arrive(journal, answer(2), answer(3, caller_id="peer-3"), answer(4, reason="somebody else's"))
    await store.close_question(WORKSPACE, "q-3")
    await arrive(journal, answer(5), answer(6))
    shown = [one.question for one in open_inbox(journal).peek()]
    assert shown == ["first", "", "", "", "third", ""]


async def test_questions_are_truncated_and_expire(tmp_path: Path) -> None:
    later = 0.0
    async with Journal.open(tmp_path, wall=lambda: EPOCH + later) as journal:
        await asked(journal, ("q-1", "peer-1", "x" * 10_000))
        await arrive(journal, answer(1, reason="q-1"))
        assert [len(one.question) for one in open_inbox(journal).peek()] == [4000]
        later = 8 * 24 * 3600.0
        await asked(journal, ("q-2", "peer-1", "new"))
        assert [one.question for one in open_inbox(journal).peek()] == [""]


# New messages


async def test_unknown_workspace_refused_by_every_method(journal: Journal) -> None:
    inbox = open_inbox(journal, "ws-a", "ws-b")
    await arrive(journal, message(1), workspace="ws-c")
    for refused in (
        lambda: inbox.client("ws-c"),
        lambda: inbox.trouble("ws-c"),
        lambda: inbox.get("row-1", workspace_id="ws-c"),
    ):
        with pytest.raises(ConfigError, match=r"ws-c.*not served here"):
            refused()
    for coroutine in (
        inbox.pop("row-1", workspace_id="ws-c"),
        inbox.reply("row-1", Response.from_text("hi"), workspace_id="ws-c"),
        inbox.tell_user("ws-c", "hi"),
        inbox.ask("ws-c", "peer", "hi", timeout=1),
        inbox.delegate("ws-c", "peer", "hi"),
    ):
        with pytest.raises(ConfigError, match=r"ws-c.*not served here"):
            await coroutine


async def test_asking_itself_refused_before_any_request(journal: Journal) -> None:
    session = FakeSession()
    inbox = Inbox(journal, {WORKSPACE: session}, ChangeSignal())
    with pytest.raises(ConfigError, match="this workspace itself"):
        await inbox.delegate(WORKSPACE, WORKSPACE, "work")
    with pytest.raises(ConfigError, match="this workspace itself"):
        await inbox.ask(WORKSPACE, f" {WORKSPACE} ", "hi", timeout=1)
    with pytest.raises(ConfigError, match="this workspace itself"):
        await inbox.ask(WORKSPACE, WORKSPACE.upper(), "hi", timeout=1)
    assert session.asked == []


async def test_ask_timeout_defaults_to_a_minute(journal: Journal) -> None:
    session = FakeSession()
    inbox = Inbox(journal, {WORKSPACE: session}, ChangeSignal())
    for nothing in (inbox.ask(WORKSPACE, "peer", " \n"), inbox.delegate(WORKSPACE, "peer", "")):
        with pytest.raises(ConfigError, match="nothing to ask"):
            await nothing
    assert session.asked == []
    await inbox.ask(WORKSPACE, "peer", "how are you?")
    assert (session.asked, session.timeout) == ([("peer", "how are you?")], 60.0)


async def test_tell_user_accepts_file_paths_as_text(journal: Journal) -> None:
    session = FakeSession()
    await Inbox(journal, {WORKSPACE: session}, ChangeSignal()).tell_user(WORKSPACE, "look", ["/tmp/a.txt"])
    assert session.files == [Path("/tmp/a.txt")]


async def test_ended_workspace_reports_its_error_as_trouble(journal: Journal) -> None:
    sessions = {
        "ws-a": FakeSession(trouble="the platform is down"),
        "ws-b": FakeSession(ended=MoleculeError("deleted")),
    }
    inbox = Inbox(journal, sessions, ChangeSignal())
    assert (inbox.trouble("ws-a"), inbox.trouble("ws-b")) == ("the platform is down", "deleted")
    assert {one: str(error) for one, error in inbox.ended.items()} == {"ws-b": "deleted"}


async def test_wait_raises_once_all_workspaces_ended(journal: Journal) -> None:
    sessions = {"ws-a": FakeSession(), "ws-b": FakeSession(ended=MoleculeError("deleted"))}
    await arrive(journal, message(1), workspace="ws-a")
    changes = ChangeSignal()
    inbox = Inbox(journal, sessions, changes)
    assert await inbox.wait(0)
    assert await inbox.pop("row-1")
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(refused(inbox.wait(3600)))
        listening = group.create_task(refused(drained(inbox)))
        await asyncio.sleep(600)
        assert not waiting.done()
        sessions["ws-a"].ended = MoleculeError("the token was refused")
        changes.notify()
    both = "2 of 2 workspaces ended with an error: ws-a: the token was refused; ws-b: deleted"
    assert (waiting.result(), listening.result()) == (both, both)
    alone = Inbox(journal, {"ws-b": sessions["ws-b"]}, ChangeSignal())
    assert await refused(alone.wait(0)) == "deleted"


async def drained(inbox: Inbox) -> None:
    async for _ in inbox.arrivals():
        pass


async def refused(work: Awaitable[object]) -> str:
    with pytest.raises(MoleculeError) as caught:
        await work
    return str(caught.value)
