"""The journal's file: who may read it, what it survives, and what it says of many messages at once."""

import asyncio
import sqlite3
from pathlib import Path

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, Disk, inbound, open_journal, other_process

from molecule_connect.errors import JournalError
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.models import Conversation, StoredMessage, StoredReply
from molecule_connect.journal.schema import TABLES, VERSION, open_file
from molecule_connect.journal.workspace import READ_AHEAD, SMALL, WorkspaceJournal
from molecule_connect.models import DataPart, FeedPosition, FilePart, Inbound, Kind, TextPart

NOW = round(EPOCH * 1e6)
SECOND = 1_000_000
DAY = 24 * 3600
PERSON = Conversation(None, None)


async def stored(journal: Journal, *items: Inbound) -> WorkspaceJournal:
    """One workspace's part of *journal*, with *items* in it."""
    mine = journal.of(WORKSPACE)
    await mine.add(items, now=NOW)
    return mine


def head(mine: WorkspaceJournal, conversation: Conversation = PERSON) -> StoredMessage:
    entry = mine.next(conversation)
    assert entry is not None
    return entry


async def finish(mine: WorkspaceJournal, conversation: Conversation = PERSON) -> None:
    """The head of *conversation* is run and chooses silence."""
    entry = head(mine, conversation)
    assert (running := await mine.start(entry))
    assert await mine.finish_without_reply(running)


async def test_files_are_readable_only_by_owner(journal: Journal) -> None:
    await stored(journal, inbound())
    folder = journal.path.parent
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.glob(f"{FILE_NAME}*")}
    assert modes == {FILE_NAME: 0o600, f"{FILE_NAME}-wal": 0o600, f"{FILE_NAME}-shm": 0o600}


async def test_stored_messages_survive_reopening(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await stored(journal, inbound("kept"))
        await journal.of(WORKSPACE).set_position(
            FeedPosition(watermark="row-0", watermark_time=1, floor=2, last_read=3)
        )
    async with open_journal(tmp_path) as journal:
        mine = journal.of(WORKSPACE)
        assert head(mine).text == "kept"
        assert mine.position() == FeedPosition(watermark="row-0", watermark_time=1, floor=2, last_read=3)


async def test_rejects_a_newer_journal_unchanged(tmp_path: Path) -> None:
    with other_process(tmp_path / FILE_NAME) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    with pytest.raises(JournalError, match=f"newer.*schema {VERSION + 1}"):
        async with open_journal(tmp_path):
            pass
    with other_process(tmp_path / FILE_NAME) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


async def test_migrates_the_first_schema_version(tmp_path: Path) -> None:
    with other_process(tmp_path / FILE_NAME) as db:
        db.executescript(TABLES)
        db.executescript("PRAGMA user_version=1; INSERT INTO spend VALUES ('ws-1', '2027-01-15', 2.5);")
    for _ in range(2):
        async with open_journal(tmp_path) as journal:
            assert journal.reader.execute("PRAGMA user_version").fetchone() == (VERSION,)
            ours = journal.of(WORKSPACE)
            assert (ours.spend_by_caller(), ours.month_spend()) == ({None: 2.5}, 2.5)


async def test_empty_file_becomes_a_journal(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    async with open_journal(tmp_path) as journal:
        await stored(journal, inbound())
        assert journal.reader.execute("PRAGMA user_version").fetchone() == (VERSION,)


async def test_rejects_a_file_without_a_database(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database, whatever else it may be" * 100)
    with pytest.raises(JournalError, match=FILE_NAME):
        async with open_journal(tmp_path):
            pass


async def test_rejects_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="missing"):
        async with open_journal(tmp_path / "missing"):
            pass


async def test_rejects_a_partially_opened_journal_and_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sqlite3.Connection] = []

    def open_first(path: Path) -> sqlite3.Connection:
        opened.append(open_file(path))
        # What opens after this finds a file that it cannot open.
        monkeypatch.setattr(sqlite3, "connect", refuse)
        return opened[0]

    def refuse(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("unable to open database file")

    with pytest.raises(JournalError, match=f"{FILE_NAME} cannot be opened: unable"):
        async with Journal.open(tmp_path, wall=lambda: EPOCH, opener=open_first):
            pass
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        opened[0].execute("SELECT 1")


async def test_writes_that_come_together_are_one_commit(tmp_path: Path) -> None:
    disk = Disk()
    async with open_journal(tmp_path, disk) as journal:
        before = disk.commits
        mine = journal.of(WORKSPACE)
        writes = (mine.add([inbound(row_id=f"row-{n}")], now=NOW) for n in range(20))
        results = await asyncio.gather(*writes)
        assert disk.commits == before + 1
        assert [one.item.row_id for result in results for one in result] == [f"row-{n}" for n in range(20)]


async def test_failed_commit_fails_its_batch_only(tmp_path: Path) -> None:
    disk = Disk(full=True)
    async with open_journal(tmp_path, disk) as journal:
        mine = journal.of(WORKSPACE)
        lost = [mine.add([inbound(row_id=f"row-{n}")], now=NOW) for n in range(2)]
        outcomes = await asyncio.gather(*lost, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [JournalError, JournalError]
        assert "full" in str(outcomes[0])
        disk.full = False
        await mine.add([inbound(row_id="row-2")], now=NOW)
        assert [mine.is_known(f"row-{n}") for n in range(3)] == [False, False, True]


async def test_invalid_write_fails_alone(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)
    good = mine.add([inbound(row_id="good")], now=NOW)
    too_large = mine.set_position(FeedPosition(floor=1 << 70))
    forbidden = journal.writer.put(lambda db: db.execute("INSERT INTO told (workspace_id) VALUES (NULL)"))
    also_good = mine.add([inbound(row_id="also-good")], now=NOW)
    outcomes = await asyncio.gather(good, too_large, forbidden, also_good, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [list, OverflowError, sqlite3.IntegrityError, list]
    assert [mine.is_known(row) for row in ("good", "also-good")] == [True, True]


async def test_write_of_a_cancelled_caller_is_committed(journal: Journal) -> None:
    mine = journal.of(WORKSPACE)
    write = asyncio.ensure_future(mine.add([inbound()], now=NOW))
    await asyncio.sleep(0)
    write.cancel()
    await mine.add([inbound(row_id="row-2")], now=NOW)
    assert mine.is_known("row-1")


async def test_closed_journal_raises_instead_of_waiting(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        mine = journal.of(WORKSPACE)
    with pytest.raises(JournalError, match="closed"):
        await mine.add([inbound()], now=NOW)


async def test_accepted_answer_is_passed_before_its_commit(tmp_path: Path) -> None:
    disk = Disk()
    async with open_journal(tmp_path, disk) as journal:
        mine = await stored(journal, inbound("first"), inbound("second", row_id="row-2", time=NOW + 1))
        first = head(mine)
        assert (running := await mine.start(first))
        assert await mine.store_reply(running, StoredReply(parts=(TextPart("ok"),)), at=NOW, send_print=None)
        disk.full = True
        mine.mark_sent(head(mine), at=NOW)
        assert head(mine).text == "second"
        assert mine.waiting() == 1
        await asyncio.sleep(12)
        disk.full = False
        await mine.sends_committed()
        assert journal.reader.execute("SELECT state FROM message ORDER BY arrival").fetchall() == [
            ("done",),
            ("received",),
        ]


@pytest.mark.parametrize(
    "text", ["\ud800 half a pair", "a\0b", "ü" * 300_000, '"is_notice": true', "\u2028\x1b[31m"], ids=str.__len__
)
async def test_any_text_comes_back_as_it_was(journal: Journal, text: str) -> None:
    parts = (TextPart(text), DataPart({"deep": [text]}), FilePart(uri="data:,x", name=text))
    mine = await stored(journal, inbound(parts=parts, raw=text, context_id=None))
    assert head(mine).parts == parts
    answer = StoredReply(parts=parts, reason=text)
    assert (running := await mine.start(head(mine)))
    assert await mine.store_reply(running, answer, at=NOW, send_print=None)
    assert head(mine).reply == answer


@pytest.mark.parametrize(("depth", "state"), [(150, "received"), (400, "dead"), (950, "dead"), (50_000, "dead")])
async def test_too_deeply_nested_data_is_never_run(journal: Journal, depth: int, state: str) -> None:
    data: list[object] = []
    for _ in range(depth - 1):
        data = [data]
    mine = await stored(journal, inbound(parts=(DataPart(data),), raw="its text"))
    row = journal.reader.execute("SELECT state, raw, reason FROM message").fetchone()
    assert row == (state, "its text", None if state == "received" else "unreadable: it is nested too deeply")
    assert (mine.next(PERSON) is None) is (state == "dead")


async def test_notices_writes_of_other_processes_only(journal: Journal) -> None:
    mine = await stored(journal, inbound())
    before = await journal.data_version()
    await mine.set_position(FeedPosition(floor=1))
    assert await journal.data_version() == before
    with other_process(journal.path) as other:
        other.execute("UPDATE message SET state='dead'")
    assert await journal.data_version() != before
    assert mine.next(PERSON) is None


async def test_workspaces_share_the_file_and_nothing_else(journal: Journal) -> None:
    await journal.of("ws-1").add([inbound("one")], now=NOW)
    await journal.of("ws-2").add([inbound("two")], now=NOW)
    assert [head(journal.of(name)).text for name in ("ws-1", "ws-2")] == ["one", "two"]
    await finish(journal.of("ws-1"))
    assert journal.of("ws-1").waiting() == 0
    assert journal.of("ws-2").waiting() == 1


# The cursor


async def test_cursor_is_the_newest_finished_prefix(journal: Journal) -> None:
    rows = [inbound(row_id=f"row-{n}", time=NOW + n, caller_id=f"peer-{n}") for n in range(4)]
    mine = await stored(journal, *rows)
    assert mine.cursor() is None
    await finish(mine, Conversation("peer-0", None))
    await finish(mine, Conversation("peer-2", None))
    assert mine.cursor() == "row-0"
    await finish(mine, Conversation("peer-1", None))
    assert mine.cursor() == "row-2"
    assert await mine.mark_dead(head(mine, Conversation("peer-3", None)), "given up")
    assert mine.cursor() == "row-3"


async def test_cursor_avoids_rows_with_open_twins(journal: Journal) -> None:
    rows = [inbound(row_id="old", time=NOW - 1), inbound(row_id="a", caller_id="peer-a"), inbound(row_id="b")]
    mine = await stored(journal, *rows)
    await finish(mine)
    await finish(mine, Conversation("peer-a", None))
    assert mine.cursor() == "old"
    await finish(mine)
    assert mine.cursor() in ("a", "b")


async def test_numbered_twins_are_passed_separately(journal: Journal) -> None:
    mine = await stored(journal, inbound(row_id="a", seq=1), inbound(row_id="b", seq=2, caller_id="peer"))
    await finish(mine)
    assert mine.cursor() == "a"


async def test_a_held_message_holds_the_cursor_back(journal: Journal) -> None:
    mine = await stored(journal, inbound(row_id="a"), inbound(row_id="b", time=NOW + 1, caller_id="peer"))
    with other_process(journal.path) as other:
        other.execute("UPDATE message SET state='held' WHERE row_id='b'")
    await finish(mine)
    assert mine.cursor() == "a"


# Pruning


async def test_finished_message_loses_its_body_after_day(journal: Journal) -> None:
    mine = await stored(journal, inbound("secret"))
    entry = head(mine)
    assert (running := await mine.start(entry))
    assert await mine.store_reply(running, StoredReply(parts=(TextPart("secret too"),)), at=NOW, send_print="p")
    mine.mark_sent(head(mine), at=NOW)
    await mine.sends_committed()
    await asyncio.sleep(DAY - 60)
    await mine.prune(NOW)
    assert journal.reader.execute("SELECT count(parts), count(raw), count(answer) FROM message").fetchone() == (1, 1, 1)
    await asyncio.sleep(120)
    await mine.prune(NOW)
    assert journal.reader.execute("SELECT count(parts), count(raw), count(answer) FROM message").fetchone() == (0, 0, 0)
    assert mine.is_known("row-1")


@pytest.mark.parametrize(("anchored", "days", "stays"), [(True, 6.9, True), (True, 7.1, False), (False, 8.0, True)])
async def test_forgets_ids_older_than_watermark_and_week(
    journal: Journal, anchored: bool, days: float, stays: bool
) -> None:
    mine = await stored(journal, inbound())
    await finish(mine)
    await mine.set_position(FeedPosition(watermark="x", watermark_time=NOW + 1 if anchored else NOW - 1))
    await mine.prune(NOW + round(days * DAY * SECOND))
    assert mine.is_known("row-1") is stays


async def test_dead_and_open_messages_are_never_pruned(journal: Journal) -> None:
    mine = await stored(journal, inbound(row_id="open"), inbound(row_id="dead", kind=Kind.UNREADABLE))
    await asyncio.sleep(30 * DAY)
    await mine.set_position(FeedPosition(watermark="x", watermark_time=NOW + 1))
    await mine.prune(NOW + 30 * DAY * SECOND)
    rows = journal.reader.execute("SELECT row_id, parts IS NULL, raw IS NULL FROM message ORDER BY row_id").fetchall()
    assert rows == [("dead", 0, 0), ("open", 0, 0)]


async def test_only_small_new_messages_are_read_ahead(journal: Journal) -> None:
    mine = await stored(journal, *(inbound(str(n), row_id=f"row-{n}", time=NOW + n) for n in range(READ_AHEAD + 2)))
    assert [one.text for one in mine.upcoming(PERSON)] == [str(n) for n in range(READ_AHEAD)]

    assert await mine.defer(mine.message("row-3"), not_before=EPOCH + 5, error="")
    assert [one.text for one in mine.upcoming(PERSON)] == ["0", "1", "2"]
    with other_process(journal.path) as db:
        db.execute("UPDATE message SET parts='not JSON' WHERE row_id='row-2'")
        assert [one.text for one in mine.upcoming(PERSON)] == ["0", "1"]
        db.execute("UPDATE message SET raw=printf('%.*c', ?, 'x') WHERE row_id='row-0'", (SMALL + 1,))
    assert [one.text for one in mine.upcoming(PERSON)] == ["0"]
