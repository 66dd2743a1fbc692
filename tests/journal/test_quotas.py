"""Limits per caller: how much of the journal one caller may fill, and what is deleted at the quota."""

import asyncio
from pathlib import Path

from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving, echo, inbound, open_journal, other_process

from molecule_connect import events
from molecule_connect.errors import BackendError
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.models import State
from molecule_connect.journal.quotas import PEER_FULL, PEERS_FULL, used
from molecule_connect.journal.schema import TABLES, VERSION
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.models import Inbound, Kind, Progress, Request, Response

NOW = round(EPOCH * 1e6)
MIB = 1 << 20


def unreadable(row_id: str, size: int = 10, caller: str | None = "peer-1") -> Inbound:
    """A row that is a dead letter at once."""
    return inbound(
        row_id=row_id, kind=Kind.UNREADABLE, caller_id=caller, raw="x" * size, parts=(), reason="odd", time=NOW
    )


def states(journal: Journal, columns: str = "row_id, state, raw IS NOT NULL") -> list[tuple[object, ...]]:
    return journal.reader.execute(f"SELECT {columns} FROM message ORDER BY arrival").fetchall()


def kept(journal: Journal) -> int:
    """The texts of all rows, added up from the texts themselves; so must ``kept`` say."""
    real, counted = journal.reader.execute(
        "SELECT coalesce(sum(coalesce(length(CAST(parts AS BLOB)), 0) + coalesce(length(CAST(raw AS BLOB)), 0)"
        " + coalesce(length(CAST(answer AS BLOB)), 0)), 0), coalesce(sum(kept), 0) FROM message"
    ).fetchone()
    assert real == counted
    return int(real)


# Dead letters


async def test_oldest_dead_letters_lose_text_beyond_pool(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)
    await mine.add([unreadable("other", 9 * MIB, caller="peer-2"), unreadable("person", 30 * MIB, None)], now=NOW)
    for number in range(5):
        await mine.add([unreadable(f"row-{number}", 5 * MIB)], now=NOW)
    assert states(journal) == [
        *(("other", "dead", 1), ("person", "dead", 1)),
        *(("row-0", "dead", 0), ("row-1", "dead", 0), ("row-2", "dead", 1), ("row-3", "dead", 1), ("row-4", "dead", 1)),
    ]
    assert states(journal, "reason")[2] == ("unreadable: odd",)
    assert mine.trimmed() == {"peer-1": 2}
    assert mine.trimmed() == {}
    assert kept(journal) < 55 * MIB


async def test_drops_dead_letters_beyond_a_thousand(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)
    await mine.add([unreadable(f"row-{number}") for number in range(1010)], now=NOW)
    assert [state for _, state, _ in states(journal)] == ["done"] * 10 + ["dead"] * 1000
    assert mine.is_known("row-0")


async def test_people_keep_more_dead_letters_than_peers(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)
    for number in range(9):
        await mine.add([unreadable(f"row-{number}", 8 * MIB, None)], now=NOW)
    assert [has_text for *_, has_text in states(journal)] == [0, 0, 1, 1, 1, 1, 1, 1, 1]


async def test_failing_peer_cannot_grow_the_journal(journal: Journal) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("no", retryable=False)

    for number in range(30):
        platform.write("x" * 2 * MIB, caller="peer", context=f"talk-{number}")
    async with Serving(platform, journal, handler) as serving:
        await platform.until(lambda: {state for _, state in serving.rows()} == {"dead"})
        await asyncio.sleep(5)
        notices = [event.text for event in serving.events.of(events.Notice)]
    assert len(notices) == 1
    assert "old dead letters of peer peer" in notices[0]
    assert kept(journal) <= 16 * MIB


async def test_dead_letter_without_text_is_not_replayed(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)
    await mine.add([inbound("x" * 20 * MIB, caller_id="peer", sender_key="k")], now=NOW)
    entry = mine.next(mine.due_conversations("peer", 1)[0])
    assert entry is not None
    await mine.mark_dead(entry, "no")
    assert states(journal) == [("row-1", "dead", 0)]
    assert not await mine.replay("row-1")
    # The sender tries again: there is the text.
    (stored,) = await mine.add([inbound("x" * 20 * MIB, caller_id="peer", sender_key="k", row_id="row-2")], now=NOW)
    assert stored.state is State.RECEIVED
    (stored,) = await mine.add([inbound("x" * 20 * MIB, caller_id="peer", sender_key="k", row_id="row-3")], now=NOW)
    assert stored.repeats == "row-2"


# Unfinished messages


async def test_one_peer_uses_half_of_the_quota(journal: Journal) -> None:
    mine = journal.of(WORKSPACE, quota=10 * MIB)
    big = 2 * MIB
    await mine.add([inbound("x" * big, row_id="row-0", caller_id="peer", context_id="0")], now=NOW)
    stored = await mine.add(
        [inbound("x" * big, row_id=f"row-{n}", caller_id="peer", context_id=str(n)) for n in range(1, 4)]
        + [inbound("x" * big, row_id="other", caller_id="peer-2"), inbound("x" * 9 * MIB, row_id="person")],
        now=NOW,
    )
    assert [one.state for one in stored] == ["received", "dead", "dead", "received", "received"]
    dead = [row for row in states(journal, "row_id, reason, parts, raw, kept, state") if row[-1] == "dead"]
    assert dead == [(f"row-{n}", PEER_FULL, None, None, 0, "dead") for n in (2, 3)]
    assert all(one.conversation is None for one in stored if one.state is State.DEAD)
    kept(journal)


async def test_peers_leave_a_quarter_to_people(journal: Journal) -> None:
    mine, other = journal.of(WORKSPACE, quota=20 * MIB), journal.of("ws-2", quota=20 * MIB)
    size = 2 * MIB - 10_000
    await other.add([inbound("x" * size, row_id="row-0", caller_id="peer-0")], now=NOW)
    stored = await mine.add(
        [inbound("x" * size, row_id=f"row-{n}", caller_id=f"peer-{n}") for n in range(1, 9)]
        + [inbound("x" * 4 * MIB, row_id="person")],
        now=NOW,
    )
    assert [one.reason for one in stored] == [None] * 6 + [PEERS_FULL] * 2 + [None]
    kept(journal)


# The quota of the whole file


async def finished(mine: WorkspaceJournal, row_id: str, size: int, caller: str | None) -> None:
    """A message that was answered with silence."""
    await mine.add([inbound("x" * size, row_id=row_id, caller_id=caller, context_id=row_id)], now=NOW)
    entry = next(e for e in map(mine.next, mine.due_conversations(caller, 99)) if e is not None and e.row_id == row_id)
    assert (running := await mine.start(entry))
    assert await mine.finish_without_reply(running)


async def test_quota_removes_texts_of_the_biggest_caller(journal: Journal) -> None:
    mine, other = journal.of(WORKSPACE), journal.of("ws-2")
    for number in range(4):
        await finished(mine, f"big-{number}", MIB, "big")
    await finished(other, "small", MIB, "small")
    await finished(mine, "person", MIB, None)
    await mine.add([inbound("x" * 4 * MIB, row_id="waits")], now=NOW)
    lost = await journal.make_room(round(9.5 * MIB))
    assert {(who.workspace_id, who.caller_id): count for who, count in lost.items()} == {(WORKSPACE, "big"): 2}
    assert [row_id for row_id, _, has_text in states(journal) if not has_text] == ["big-0", "big-1"]
    # Nobody's waiting message, even where nothing else is left.
    await journal.make_room(MIB)
    assert [row_id for row_id, _, has_text in states(journal) if has_text] == ["waits"]
    kept(journal)


async def test_journal_at_its_quota_is_reported(journal: Journal) -> None:
    platform = FakePlatform(has_stream=True)
    quota = 8 * MIB
    async with Serving(platform, journal, echo, journal_quota=quota) as serving:
        await asyncio.sleep(1)
        for number in range(40):
            platform.write(f"{number}" + "x" * (MIB // 4), caller=f"peer-{number % 3}")
            await asyncio.sleep(3)
            assert journal.used() < quota + MIB
        await platform.until(lambda: len(platform.sent) == 40)
        troubles = [trouble.reason for trouble in serving.events.of(events.Trouble)]
        assert troubles[0] == "more than 80% of 8 MiB are used"
        assert any("the journal was full" in notice.text for notice in serving.events.of(events.Notice))
    assert {state for _, state in serving.rows()} == {"done"}
    assert (journal.path.stat().st_size) < quota + 2 * MIB


async def test_start_reports_a_journal_near_its_quota(journal: Journal) -> None:
    await journal.of(WORKSPACE).add([unreadable("row-1", 9 * MIB)], now=NOW)
    async with Serving(FakePlatform(), journal, echo, journal_quota=10 * MIB) as serving:
        await asyncio.sleep(1)
        (trouble,) = serving.events.of(events.Trouble)
    assert (trouble.part, trouble.reason) == ("journal size", "more than 80% of 10 MiB are used")
    assert "--journal-quota" in trouble.hint


async def test_room_that_was_freed_is_used_again(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)
    sizes = []
    for turn in range(4):
        for number in range(10):
            await finished(mine, f"row-{turn}-{number}", MIB, "peer")
        await journal.make_room(1)
        await journal.writer.put(lambda db: db.execute("SELECT 1").fetchone())
        sizes.append(journal.reader.execute("PRAGMA page_count").fetchone()[0] * 4096)
    assert sizes[-1] <= sizes[0] + MIB


# Older journals


async def test_migration_computes_sizes(
    tmp_path: Path,
) -> None:
    with other_process(tmp_path / FILE_NAME) as db:
        db.executescript(TABLES)
        db.execute("PRAGMA user_version=1")
        db.execute(
            "INSERT INTO message (workspace_id, row_id, kind, state, time, seq, place, message_id, idempotency_key,"
            " method, fingerprint, parts, raw, size, changed)"
            " VALUES ('ws-1', 'row-1', 'message', 'dead', 1, 0, 1, 'm', 'k', '', '', '[]', '{\"a\": 1}', 8, 0)"
        )
    async with open_journal(tmp_path) as journal:
        assert journal.reader.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert kept(journal) == 10
        assert used(journal.reader) > 0
