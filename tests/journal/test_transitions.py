"""States of a message: every allowed change and no other; each is a compare-and-set."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
from tests.worker.kit import EPOCH, WORKSPACE, fingerprint, inbound, other_process

from molecule_connect.journal import delegations, sent, transitions
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import Conversation, State, StoredMessage, StoredReply
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import DataPart, Inbound, Kind, TextPart, Usage

NOW = round(EPOCH * 1e6)
SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
PERSON = Conversation(None, None)
ANSWER = StoredReply(parts=(TextPart("ok"),))
NOTICE = StoredReply(parts=(TextPart("sorry"),), is_notice=True, reason="it failed")
PRINT = fingerprint("ok")

Act = Callable[[WorkspaceJournal, StoredMessage], Awaitable[object]]


async def mark_sent(mine: WorkspaceJournal, message: StoredMessage, reply: StoredReply) -> bool:
    before = facts_of(mine)
    mine.mark_sent(attrs.evolve(message, reply=reply), at=NOW)
    await mine.sends_committed()
    return facts_of(mine) != before


def facts_of(mine: WorkspaceJournal) -> object:
    return mine._reader.execute("SELECT * FROM message").fetchall()


# The transitions of a message: from which states, and the state that each ends in.
ARROWS: dict[str, tuple[Act, set[State], State]] = {
    "start": (lambda mine, one: mine.start(one), {State.RECEIVED}, State.RUNNING),
    "requeue": (
        lambda mine, one: mine.requeue(one, counts=True, failed_at=EPOCH, not_before=EPOCH + 5, error="no"),
        {State.RUNNING},
        State.RECEIVED,
    ),
    "store reply": (
        lambda mine, one: mine.store_reply(one, ANSWER, at=NOW, send_print=None),
        {State.RUNNING},
        State.ANSWERED,
    ),
    "reuse reply": (
        lambda mine, one: mine.reuse_reply(one, at=NOW, send_print=None),
        {State.RECEIVED},
        State.ANSWERED,
    ),
    "finish without reply": (lambda mine, one: mine.finish_without_reply(one), {State.RUNNING}, State.DONE),
    "prepare send": (
        lambda mine, one: mine.prepare_send(one, at=NOW, send_print=None),
        {State.ANSWERED},
        State.ANSWERED,
    ),
    "replace reply": (
        lambda mine, one: mine.replace_reply(one, ANSWER, send_print=None),
        {State.ANSWERED},
        State.ANSWERED,
    ),
    "fail to send": (
        lambda mine, one: mine.record_failed_send(one, not_before=None, in_doubt=1),
        {State.ANSWERED},
        State.ANSWERED,
    ),
    "send reply": (lambda mine, one: mark_sent(mine, one, ANSWER), {State.ANSWERED}, State.DONE),
    "send notice": (lambda mine, one: mark_sent(mine, one, NOTICE), {State.ANSWERED}, State.DEAD),
    "defer": (
        lambda mine, one: mine.defer(one, not_before=EPOCH + 5, error="later"),
        {State.RECEIVED},
        State.RECEIVED,
    ),
    "mark dead when received": (
        lambda mine, one: mine.mark_dead(attrs.evolve(one, state=State.RECEIVED), "no"),
        {State.RECEIVED},
        State.DEAD,
    ),
    "mark dead when running": (
        lambda mine, one: mine.mark_dead(attrs.evolve(one, state=State.RUNNING), "no"),
        {State.RUNNING},
        State.DEAD,
    ),
    "mark dead when answered": (
        lambda mine, one: mine.mark_dead(attrs.evolve(one, state=State.ANSWERED), "no"),
        {State.ANSWERED},
        State.DEAD,
    ),
    "replay": (lambda mine, one: mine.replay(one.row_id), {State.DEAD}, State.RECEIVED),
}


@pytest.fixture
async def mine(journal: Journal) -> WorkspaceJournal:
    return journal.of(WORKSPACE)


def head(mine: WorkspaceJournal, conversation: Conversation = PERSON) -> StoredMessage:
    entry = mine.next(conversation)
    assert entry is not None
    return entry


def facts(journal: Journal, columns: str, row_id: str = "row-1") -> tuple[object, ...]:
    row = journal.reader.execute(f"SELECT {columns} FROM message WHERE row_id=?", (row_id,)).fetchone()
    assert isinstance(row, tuple)
    return row


async def receive(mine: WorkspaceJournal, *items: Inbound) -> list[tuple[str, str | None, bool]]:
    """Store *items*. Returns state, what it repeats, and whether that is replayed, of each new one."""
    return [
        (one.state.value, one.repeats, one.repeats is not None and one.conversation is not None)
        for one in await mine.add(items, now=NOW)
    ]


async def answer(
    mine: WorkspaceJournal, conversation: Conversation = PERSON, *, text: str = "ok", at: int = NOW
) -> StoredMessage:
    """The head of *conversation* is run, and its answer stored."""
    entry = head(mine, conversation)
    assert (running := await mine.start(entry))
    stored = StoredReply(parts=(TextPart(text),))
    assert await mine.store_reply(
        running, stored, at=at, send_print=fingerprint(text) if conversation.caller_id is None else None
    )
    return head(mine, conversation)


async def die(mine: WorkspaceJournal, conversation: Conversation = PERSON) -> None:
    entry = head(mine, conversation)
    assert await mine.mark_dead(entry, "given up")


@pytest.mark.parametrize("name", ARROWS)
async def test_transitions_start_in_their_states_only(journal: Journal, mine: WorkspaceJournal, name: str) -> None:
    act, starts, end = ARROWS[name]
    await receive(mine, inbound())
    entry = head(mine)
    with other_process(journal.path) as db:
        for state in State:
            attempt = 1 if state is State.RUNNING else 0
            db.execute("UPDATE message SET state=?, attempt=?, replay=0", (state.value, attempt))
            before = db.execute("SELECT * FROM message").fetchall()
            message = attrs.evolve(entry, state=state, attempt=attempt)
            assert bool(await act(mine, message)) is (state in starts), state
            if state in starts:
                assert facts(journal, "state") == (end.value,)
            else:
                assert db.execute("SELECT * FROM message").fetchall() == before, state


@pytest.mark.parametrize("name", [name for name in ARROWS if name != "replay"])
@pytest.mark.parametrize("changed", ["attempt=attempt+1", "replay=replay+1"])
async def test_stale_attempts_and_replays_fail(
    journal: Journal, mine: WorkspaceJournal, name: str, changed: str
) -> None:
    await receive(mine, inbound())
    entry = head(mine)
    act, starts, _ = ARROWS[name]
    (state,) = starts
    with other_process(journal.path) as db:
        attempt = 1 if state is State.RUNNING else 0
        db.execute("UPDATE message SET state=?, attempt=?", (state.value, attempt))
        db.execute(f"UPDATE message SET {changed}")
        assert not await act(mine, attrs.evolve(entry, state=state, attempt=attempt))


async def test_keeps_only_attempts_that_count(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    entry = head(mine)
    assert (running := await mine.start(entry))
    assert await mine.requeue(running, counts=False)
    assert facts(journal, "attempt, first_failed, not_before") == (0, None, None)
    entry = head(mine)
    assert (running := await mine.start(entry))
    assert await mine.requeue(running, counts=True, failed_at=EPOCH, not_before=EPOCH + 5, error="no")
    assert facts(journal, "attempt, first_failed, not_before, error") == (1, EPOCH, EPOCH + 5, "no")


async def test_clock_set_back_extends_no_wait(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound(), inbound(row_id="row-2", caller_id="peer"))
    ahead = 6 * 3600.0
    with other_process(journal.path) as db:
        db.execute("UPDATE message SET changed=?, not_before=?", (EPOCH + ahead, EPOCH + ahead + 90))
        db.execute("UPDATE message SET changed=? WHERE row_id='row-2'", (EPOCH - 60,))
        db.execute(
            "INSERT INTO file (workspace_id, file_id, uri, name, mime_type, time, arrived, state, not_before, changed,"
            " named) VALUES ('ws-1', 'f', 'u', 'n', '', 0, 0, 'waiting', ?, ?, 1)",
            (EPOCH + ahead + 90, EPOCH + ahead),
        )
    await mine.recover()
    waits = journal.reader.execute("SELECT not_before FROM message UNION ALL SELECT not_before FROM file").fetchall()
    # The second one was meant to wait for six hours.
    assert [round(when - EPOCH) for (when,) in waits] == [90, ahead + 90, 90]


@pytest.mark.parametrize(("state", "most"), [("received", 31 * 24 * 3600), ("answered", 600)])
async def test_waits_are_bounded_by_their_kind(journal: Journal, mine: WorkspaceJournal, state: str, most: int) -> None:
    await receive(mine, inbound(caller_id="peer"))
    with other_process(journal.path) as db:
        db.execute("UPDATE message SET state=?, not_before=?", (state, EPOCH + 10**8))
    await mine.recover()
    assert facts(journal, "not_before") == (EPOCH + most,)


async def test_clock_decades_behind_forgets_no_question(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    with other_process(journal.path) as db:
        delegations.ask(db, WORKSPACE, "m-1", "peer", "before the clock was set", 100.0)
        sent.say(db, WORKSPACE, "print-1", 100.0)
        delegations.ask(db, WORKSPACE, "m-2", "peer", "after", EPOCH + 60)
        sent.say(db, WORKSPACE, "print-2", EPOCH + 60)
        assert delegations.text(db, WORKSPACE, "m-1") == "before the clock was set"
        assert sent.echoed(db, WORKSPACE, "print-1", "echo-1")


# The end of a process


async def test_killed_run_counts_as_crash_not_attempt(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound(), inbound(row_id="row-2", caller_id="peer"))
    for conversation in (PERSON, Conversation("peer", None)):
        assert await mine.start(head(mine, conversation))
    assert await mine.recover() == 2
    assert facts(journal, "state, attempt, interruptions") == ("received", 0, 1)
    assert await mine.recover() == 0


async def test_requested_stop_counts_as_nothing(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    assert await mine.start(head(mine))
    assert await mine.requeue_running() == 1
    assert facts(journal, "state, attempt, interruptions") == ("received", 0, 0)


async def test_after_restart_only_people_wait_for_echoes(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound(), inbound(row_id="row-2", caller_id="peer"))
    await answer(mine)
    await answer(mine, Conversation("peer", None))
    await mine.recover()
    assert facts(journal, "in_doubt, not_before") == (1, EPOCH + transitions.ECHO_DELAY)
    assert facts(journal, "in_doubt, not_before", "row-2") == (1, None)


async def test_echo_after_restart_has_its_time_also_after_an_outage(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    await answer(mine)
    await asyncio.sleep(60)
    await mine.recover()
    await mine.retry_sends_now()
    await mine.bound_waits()
    assert facts(journal, "in_doubt, not_before") == (1, EPOCH + 60 + transitions.ECHO_DELAY)


async def test_recovery_affects_only_its_workspace(journal: Journal) -> None:
    for name in ("ws-1", "ws-2"):
        await journal.of(name).add([inbound()], now=NOW)
        assert await journal.of(name).start(head(journal.of(name)))
    assert await journal.of("ws-1").recover() == 1
    assert await journal.of("ws-2").requeue_running() == 1


# Receiving


async def test_the_same_row_is_stored_once(mine: WorkspaceJournal) -> None:
    assert await receive(mine, inbound(), inbound()) == [("received", None, False)]
    assert await receive(mine, inbound("changed")) == []


@pytest.mark.parametrize(
    ("changes", "is_repeat"),
    [
        ({"time": NOW + 59 * MINUTE}, True),
        ({"time": NOW - 59 * MINUTE}, True),
        ({"time": NOW + 61 * MINUTE}, False),
        ({"context_id": "another"}, True),
        ({"caller_id": "peer-2"}, False),
        ({"sender_key": "key-2"}, False),
        ({"sender_key": None}, False),
        ({"fingerprint": fingerprint("else")}, False),
    ],
    ids=str,
)
async def test_repeat_has_same_caller_key_and_parts(
    mine: WorkspaceJournal, changes: dict[str, Any], is_repeat: bool
) -> None:
    first = inbound(caller_id="peer", sender_key="key")
    await receive(mine, first)
    second = attrs.evolve(first, row_id="row-2", **changes)
    assert await receive(mine, second) == [("done", "row-1", False) if is_repeat else ("received", None, False)]


async def test_constant_message_id_makes_no_repeats(mine: WorkspaceJournal) -> None:
    items = [inbound(f"{n}", row_id=f"row-{n}", sender_key="1", message_id="1") for n in range(5)]
    assert await receive(mine, *items) == [("received", None, False)] * 5


async def test_messages_without_a_key_never_repeat(mine: WorkspaceJournal) -> None:
    assert await receive(mine, inbound(), inbound(row_id="row-2")) == [("received", None, False)] * 2


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind is not Kind.MESSAGE], ids=str)
async def test_only_messages_wait_for_a_backend(journal: Journal, mine: WorkspaceJournal, kind: Kind) -> None:
    await receive(mine, inbound(kind=kind, reason="why"))
    assert facts(journal, "state") == ("dead" if kind is Kind.UNREADABLE else "done",)
    assert mine.waiting() == 0


async def test_unreadable_row_is_kept_but_never_run(journal: Journal, mine: WorkspaceJournal) -> None:
    await receive(mine, inbound(kind=Kind.UNREADABLE, raw='{"what": "this"}', reason="no parts"))
    assert facts(journal, "raw, reason") == ('{"what": "this"}', "unreadable: no parts")
    assert not await mine.replay("row-1")


async def test_rows_without_time_keep_their_order(mine: WorkspaceJournal) -> None:
    await receive(mine, *(inbound(f"{n}", row_id=f"row-{9 - n}", time=None) for n in range(3)))
    order = []
    while mine.next(PERSON) is not None:
        order.append(head(mine).text)
        await die(mine)
    assert order == ["0", "1", "2"]


# Replays


async def test_repeat_of_a_dead_message_replays_it(journal: Journal, mine: WorkspaceJournal) -> None:
    first = inbound(sender_key="key")
    await receive(mine, first)
    await die(mine)
    assert await receive(mine, attrs.evolve(first, row_id="row-2")) == [("done", "row-1", True)]
    assert facts(journal, "state, replay, attempt, reason") == ("received", 1, 0, None)
    assert mine.waiting() == 1


async def test_repeat_names_the_conversation_of_its_original(mine: WorkspaceJournal) -> None:
    first = inbound(sender_key="key", caller_id="peer", context_id="old")
    await receive(mine, first)
    await die(mine, Conversation("peer", "old"))
    (stored,) = await mine.add([attrs.evolve(first, row_id="row-2", context_id="new")], now=NOW)
    assert stored.conversation == Conversation("peer", "old")


async def test_replayed_message_joins_the_conversations_tail(mine: WorkspaceJournal) -> None:
    await receive(mine, *(inbound(f"{n}", row_id=f"row-{n}", time=NOW + n) for n in range(3)))
    await die(mine)
    assert await mine.replay("row-0")
    order = []
    while mine.next(PERSON) is not None:
        order.append(head(mine).text)
        await die(mine)
    assert order == ["1", "2", "0"]


@pytest.mark.parametrize(
    "parts", [(TextPart("ok"),), (TextPart('"is_notice": true'),), (DataPart({"is_notice": True}),)], ids=str
)
async def test_unsent_answer_is_kept_for_replay(mine: WorkspaceJournal, parts: tuple[TextPart | DataPart, ...]) -> None:
    await receive(mine, inbound())
    entry = head(mine)
    assert (running := await mine.start(entry))
    assert await mine.store_reply(running, StoredReply(parts=parts), at=NOW, send_print=None)
    await die(mine)
    assert await mine.replay("row-1")
    assert head(mine).state is State.RECEIVED
    assert head(mine).reply == StoredReply(parts=parts)
    assert not mine.noticed_since(PERSON, NOW - HOUR)


async def test_notice_is_not_kept_for_replay(mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    entry = head(mine)
    assert (running := await mine.start(entry))
    assert await mine.store_reply(running, NOTICE, at=NOW, send_print=None)
    assert mine.noticed_since(PERSON, NOW - HOUR)
    await die(mine)
    assert await mine.replay("row-1")
    assert head(mine).reply is None


async def test_replayed_answer_has_a_new_message_id(mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    first = await answer(mine)
    assert await mine.record_failed_send(first, not_before=None, in_doubt=True)
    resent = head(mine)
    await mine.recover()
    after_restart = head(mine)
    await die(mine)
    assert await mine.replay("row-1")
    ids = [entry.outgoing_id() for entry in (first, resent, after_restart, head(mine))]
    assert ids[0] == ids[1] == ids[2] != ids[3]


async def test_no_two_answers_share_a_message_id(mine: WorkspaceJournal) -> None:
    await receive(mine, *(inbound(row_id=f"row-{n}", message_id="1", caller_id=f"peer-{n}") for n in range(2)))
    entries = [head(mine, Conversation(f"peer-{n}", None)) for n in range(2)]
    entries += [attrs.evolve(entry, reply=NOTICE) for entry in entries]
    entries += [attrs.evolve(entries[0], workspace_id="ws-2"), attrs.evolve(entries[0], replay=1)]
    assert len({entry.outgoing_id() for entry in entries}) == len(entries)


# Echoes


def shown(text: str, number: int, *, after: int = SECOND) -> Inbound:
    """The row by which the feed shows that *text* was said to a person."""
    time = NOW + after
    return inbound(text, row_id=f"echo-{number}", kind=Kind.ECHO, time=time, method="notify")


async def in_doubt(mine: WorkspaceJournal, count: int) -> list[StoredMessage]:
    """*count* answers of the same text, whose sends were cut, the oldest first."""
    conversations = [Conversation(None, f"context-{n}") for n in range(count)]
    await receive(
        mine,
        *(
            inbound(row_id=f"row-{n}", context_id=conversation.context_id)
            for n, conversation in enumerate(conversations)
        ),
    )
    for number, conversation in enumerate(conversations):
        entry = await answer(mine, conversation, at=NOW + number)
        assert await mine.record_failed_send(entry, not_before=None, in_doubt=True)
    return [head(mine, conversation) for conversation in conversations]


async def test_echo_settles_its_answer(journal: Journal, mine: WorkspaceJournal) -> None:
    (entry,) = await in_doubt(mine, 1)
    assert not await mine.settle(entry)
    await receive(mine, shown("something else", 1))
    assert not await mine.settle(entry)
    await receive(mine, shown("ok", 2))
    assert await mine.settle(entry)
    assert facts(journal, "echo", "row-0") == ("echo-2",)
    assert facts(journal, "echo", "echo-2") == ("row-0",)


async def test_echo_settles_the_older_identical_answer(mine: WorkspaceJournal) -> None:
    older, newer = await in_doubt(mine, 2)
    await receive(mine, shown("ok", 1))
    assert not await mine.settle(newer)
    assert await mine.settle(older)


async def test_settled_answer_stays_settled(mine: WorkspaceJournal) -> None:
    entries = await in_doubt(mine, 3)
    await receive(mine, *(shown("ok", n) for n in range(3)))
    assert [await mine.settle(entry) for entry in reversed(entries)] == [True, True, True]


async def test_accepted_answer_consumes_its_echo(mine: WorkspaceJournal) -> None:
    accepted, cut = await in_doubt(mine, 2)
    mine.mark_sent(accepted, at=NOW + SECOND)
    await mine.sends_committed()
    await receive(mine, shown("ok", 1))
    assert not await mine.settle(cut)
    await receive(mine, shown("ok", 2))
    assert await mine.settle(cut)


async def test_late_accepted_answer_consumes_its_own_echo(
    mine: WorkspaceJournal,
) -> None:
    late = 3 * HOUR
    await receive(mine, inbound(row_id="row-a", context_id="a"), inbound(row_id="row-b", context_id="b"))
    accepted = await answer(mine, Conversation(None, "a"), at=NOW)
    mine.mark_sent(accepted, at=NOW + late)
    await mine.sends_committed()
    cut = await answer(mine, Conversation(None, "b"), at=NOW + late)
    assert await mine.record_failed_send(cut, not_before=None, in_doubt=True)
    await receive(mine, shown("ok", 1, after=late))
    assert not await mine.settle(head(mine, Conversation(None, "b")))


async def test_old_accepted_answer_keeps_new_echoes(mine: WorkspaceJournal) -> None:
    late = 30 * MINUTE
    await receive(mine, inbound(row_id="row-a", context_id="a"), inbound(row_id="row-b", context_id="b"))
    accepted = await answer(mine, Conversation(None, "a"), at=NOW)
    mine.mark_sent(accepted, at=NOW)
    await mine.sends_committed()
    cut = await answer(mine, Conversation(None, "b"), at=NOW + late)
    assert await mine.record_failed_send(cut, not_before=None, in_doubt=True)
    await receive(mine, shown("ok", 1, after=late))
    assert await mine.settle(head(mine, Conversation(None, "b")))


@pytest.mark.parametrize(("before", "settles"), [(44, True), (46, False)])
async def test_echo_may_be_slightly_older_than_answer(mine: WorkspaceJournal, before: int, settles: bool) -> None:
    (entry,) = await in_doubt(mine, 1)
    await receive(mine, shown("ok", 1, after=-before * SECOND))
    assert await mine.settle(entry) is settles


async def test_echo_never_settles_a_peers_answer(mine: WorkspaceJournal) -> None:
    await receive(mine, inbound(caller_id="peer"))
    entry = await answer(mine, Conversation("peer", None))
    await receive(mine, shown("ok", 1))
    assert not await mine.settle(entry)


async def test_recognizes_an_echo_of_another_sender(mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    await answer(mine)
    stored = await mine.add([shown("ok", 1), shown("who said that?", 2)], now=NOW)
    assert [one.foreign_echo for one in stored] == [False, True]


async def test_recognizes_equal_answers_of_another_connector(mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    entry = await answer(mine)
    (first,) = await mine.add([shown("ok", 1)], now=NOW)
    assert await mine.record_failed_send(entry, not_before=None, in_doubt=True)
    resent, foreign = await mine.add([shown("ok", 2), shown("ok", 3)], now=NOW)
    assert [one.foreign_echo for one in (first, resent, foreign)] == [False, False, True]


async def give_up(mine: WorkspaceJournal, *, at: int = NOW) -> StoredMessage:
    """The person's message is run, and the notice that it cannot be answered is stored."""
    entry = head(mine)
    assert (running := await mine.start(entry))
    assert await mine.store_reply(running, NOTICE, at=at, send_print=fingerprint("sorry"))
    return head(mine)


async def replay_after_a_notice(mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    mine.mark_sent(await give_up(mine), at=NOW)
    await mine.sends_committed()
    assert await mine.replay("row-1")


async def test_notice_echo_is_recognized_after_a_replay(mine: WorkspaceJournal) -> None:
    await replay_after_a_notice(mine)
    await answer(mine, at=NOW + SECOND)
    stored = await mine.add([shown("sorry", 1), shown("ok", 2), shown("sorry", 3)], now=NOW)
    assert [one.foreign_echo for one in stored] == [False, False, True]


async def test_first_notices_echo_settles_no_second_notice(mine: WorkspaceJournal) -> None:
    await replay_after_a_notice(mine)
    assert await mine.record_failed_send(await give_up(mine, at=NOW + SECOND), not_before=None, in_doubt=True)
    await receive(mine, shown("sorry", 1, after=2 * SECOND))
    assert not await mine.settle(head(mine))
    await receive(mine, shown("sorry", 2, after=3 * SECOND))
    assert await mine.settle(head(mine))


async def test_early_notice_echo_consumes_no_second_one(mine: WorkspaceJournal) -> None:
    await receive(mine, inbound())
    mine.mark_sent(await give_up(mine), at=NOW)
    await mine.sends_committed()
    await receive(mine, shown("sorry", 1, after=0))
    assert await mine.replay("row-1")
    assert await mine.record_failed_send(await give_up(mine, at=NOW + SECOND), not_before=None, in_doubt=True)
    assert not await mine.settle(head(mine))
    await receive(mine, shown("sorry", 2, after=2 * SECOND))
    assert await mine.settle(head(mine))


async def test_storing_time_is_independent_of_journal_size(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)

    async def steps(numbers: range) -> int:
        taken = 0

        def count() -> int:
            nonlocal taken
            taken += 1
            return 0

        await journal.writer.put(lambda db: db.set_progress_handler(count, 1))
        await receive(mine, *(inbound(row_id=f"row-{number}", sender_key=f"key-{number}") for number in numbers))
        await journal.writer.put(lambda db: db.set_progress_handler(None, 0))
        return taken

    few = await steps(range(20))
    await receive(mine, *(inbound(row_id=f"row-{number}", sender_key=f"key-{number}") for number in range(20, 400)))
    assert await steps(range(400, 420)) < 2 * few


@pytest.mark.parametrize("text", ["", 'q"\\\n', "\ud800", "a\0b", "é😀"])
@pytest.mark.parametrize("reply", [ANSWER, NOTICE, attrs.evolve(ANSWER, usage=Usage(cost_usd=0.5, input_tokens=7))])
async def test_stored_replies_load_unchanged(mine: WorkspaceJournal, reply: StoredReply, text: str) -> None:
    await receive(mine, inbound())
    reply = attrs.evolve(reply, parts=(TextPart(text), *reply.parts[:-1]))
    running = await mine.start(head(mine))
    assert running is not None
    await mine.store_reply(running, reply, at=NOW, send_print=None)
    assert head(mine).reply == reply
