"""The journal and the connection as other programs see them."""

import asyncio
import fcntl
import json
import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving, inbound, open_journal

from molecule_connect.errors import (
    BackendError,
    ConfigError,
    JournalError,
    LeaseError,
    PermanentPlatformError,
    PlatformError,
)
from molecule_connect.journal.inspect import BATCH, Inspection, Key, drop, replay
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.models import State, StoredReply
from molecule_connect.models import DataPart, FilePart, Inbound, Kind, Progress, Request, Response, TextPart
from molecule_connect.worker.lease import holder, lease
from molecule_connect.worker.status_file import SavedStatus, read_status, status_path

NOW = round(EPOCH * 1e6)


async def store(journal: Journal, *items: Inbound, workspace: str = WORKSPACE) -> None:
    await journal.of(workspace).add(items, now=NOW)


async def kill(journal: Journal, *row_ids: str, reason: str = "it failed", workspace: str = WORKSPACE) -> None:
    part = journal.of(workspace)
    for row_id in row_ids:
        entry = next(
            e
            for e in [part.next(conversation) for conversation in part.due_conversations(None, 99)]
            if e and e.row_id == row_id
        )
        assert await part.mark_dead(entry, reason)


def looking(folder: Path, workspace: str | None = None) -> list[tuple[str, str]]:
    with Inspection.open(folder) as journal:
        return [(glance.row_id, glance.state.value) for glance in journal.summaries(workspace)]


def waits_until(folder: Path, row_id: str) -> float:
    with Inspection.open(folder) as journal:
        return next((one.not_before or 0.0 for one in journal.summaries() if one.row_id == row_id), 0.0)


async def failing(request: Request, progress: Progress) -> Response:
    raise BackendError("cannot", retryable=False)


# Reading


async def test_lists_newest_first_without_other_rows(journal: Journal, tmp_path: Path) -> None:
    kinds = [Kind.MESSAGE, Kind.ECHO, Kind.OWN, Kind.ANSWER, Kind.RESULT, Kind.UPLOAD, Kind.HISTORY, Kind.UNREADABLE]
    await store(journal, *(inbound(row_id=f"row-{kind}", kind=kind) for kind in kinds))

    assert looking(tmp_path) == [("row-unreadable", "dead"), ("row-message", "received")]


async def test_filters_by_state_workspace_and_limit(journal: Journal, tmp_path: Path) -> None:
    await store(journal, *(inbound(row_id=f"a{n}", context_id=f"c{n}") for n in range(5)))
    await store(journal, inbound(row_id="b"), workspace="ws-2")
    await kill(journal, "a1", "a3")

    with Inspection.open(tmp_path) as looked:
        assert [glance.row_id for glance in looked.summaries(WORKSPACE, [State.DEAD])] == ["a3", "a1"]
        assert [glance.row_id for glance in looked.summaries(limit=2)] == ["b", "a4"]
        assert (looked.total(), looked.total("ws-2"), looked.total(None, [State.DEAD])) == (6, 1, 2)
        assert looked.workspaces() == [WORKSPACE, "ws-2"]
        assert looked.counts(WORKSPACE)[State.DEAD] == 2
        assert looked.counts("unheard of")[State.RECEIVED] == 0
        assert looked.oldest(WORKSPACE) == NOW


async def test_shows_the_beginning_of_any_text(journal: Journal, tmp_path: Path) -> None:
    parts = {
        "long": (TextPart("x" * 10_000_000),),
        "half a pair": (TextPart("a\ud800b"),),
        "file": (FilePart(uri="platform:1", name="cat.png"),),
        "data": (DataPart({"a": 1}),),
        "no number": (DataPart({"a": float("inf"), "b": float("nan")}),),
        "nothing": (),
    }
    await store(journal, *(inbound(row_id=name, parts=given) for name, given in parts.items()))

    with Inspection.open(tmp_path) as looked:
        shown = {glance.row_id: glance.text for glance in looked.summaries()}
        assert looked.message(Key(WORKSPACE, "half a pair")).parts == parts["half a pair"]
    assert shown["long"] == "x" * 400
    assert shown["half a pair"].startswith("a")
    assert (shown["file"], shown["data"], shown["nothing"]) == ("cat.png", '[{"data": {"a": 1}}]', "[]")
    assert shown["no number"] == '[{"data": {"a": Infinity, "b": NaN}}]'


async def test_finds_messages_by_row_id_prefix(journal: Journal, tmp_path: Path) -> None:
    await store(journal, *(inbound(row_id=row_id) for row_id in ("abc-1", "abc-12", "b%", "echo-1")))
    await store(journal, inbound(row_id="abd", kind=Kind.ECHO), inbound(row_id="é"))

    with Inspection.open(tmp_path) as looked:
        assert looked.find("abc-12").row_id == "abc-12"
        assert looked.find("abc-1").row_id == "abc-1"
        assert looked.find("b").row_id == "b%"
        with pytest.raises(ConfigError, match="more than one message: abc-1 of ws-1, abc-12 of ws-1"):
            looked.find("abc")
        for unknown in ("%", "abd", "zzz"):
            with pytest.raises(ConfigError, match="no message has"):
                looked.find(unknown)


async def test_ambiguous_row_id_needs_the_workspace(journal: Journal, tmp_path: Path) -> None:
    await store(journal, inbound(row_id="row"))
    await store(journal, inbound(row_id="row"), workspace="ws-2")

    with Inspection.open(tmp_path) as looked:
        with pytest.raises(ConfigError, match="row of ws-1, row of ws-2"):
            looked.find("row")
        assert looked.find("row", "ws-2") == Key("ws-2", "row")


async def test_short_ids_are_unambiguous(journal: Journal, tmp_path: Path) -> None:
    ids = ["12345678-a", "12345678-b", "1234567", "x", "abcdefgh-ijkl"]
    await store(journal, *(inbound(row_id=row_id) for row_id in ids))

    with Inspection.open(tmp_path) as looked:
        short = looked.short_ids(Key(WORKSPACE, row_id) for row_id in ids)
        assert short == ["12345678-a", "12345678-b", "1234567", "x", "abcdefgh"]
        assert [looked.find(one).row_id for one in short] == ids


async def test_reads_a_closed_or_killed_journal(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        await store(journal, inbound(row_id="row"))
        killed = tmp_path / "killed"
        killed.mkdir()
        # What a kill leaves: the log of what was committed, and no one to fold it in.
        for name in (FILE_NAME, f"{FILE_NAME}-wal"):
            (killed / name).write_bytes((tmp_path / name).read_bytes())

    assert looking(tmp_path) == looking(killed) == [("row", "received")]


async def test_reports_missing_newer_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no journal in"), Inspection.open(tmp_path):
        pass
    assert not (tmp_path / FILE_NAME).exists()
    async with open_journal(tmp_path) as journal:
        await store(journal, inbound())
    with sqlite3.connect(tmp_path / FILE_NAME) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(JournalError, match="newer"), Inspection.open(tmp_path):
        pass
    (tmp_path / FILE_NAME).write_bytes(b"")
    with pytest.raises(JournalError, match="not a journal"), Inspection.open(tmp_path):
        pass
    (tmp_path / FILE_NAME).write_bytes(b"nothing that SQLite would know" * 100)
    with pytest.raises(JournalError, match="cannot be read"), Inspection.open(tmp_path):
        pass


async def test_who_reads_cannot_write(journal: Journal, tmp_path: Path) -> None:
    await store(journal, inbound())

    with pytest.raises(JournalError, match="readonly"), Inspection.open(tmp_path) as looked:
        looked._db.execute("DELETE FROM message")


# Replay and drop


async def test_replays_only_readable_dead_letters(journal: Journal, tmp_path: Path) -> None:
    await store(journal, inbound(row_id="dead"), inbound(row_id="bad", kind=Kind.UNREADABLE))
    await kill(journal, "dead")
    await store(journal, inbound(row_id="open", context_id="c"))

    keys = [Key(WORKSPACE, row_id) for row_id in ("dead", "bad", "open", "gone")]
    assert replay(tmp_path, keys, EPOCH) == [Key(WORKSPACE, "dead")]
    assert looking(tmp_path) == [("open", "received"), ("bad", "dead"), ("dead", "received")]


async def test_dropped_message_cannot_be_replayed(journal: Journal, tmp_path: Path) -> None:
    await store(journal, inbound(row_id="dead"), inbound(row_id="bad", kind=Kind.UNREADABLE))
    await kill(journal, "dead")
    await store(journal, inbound(row_id="open", context_id="c"))

    keys = [Key(WORKSPACE, row_id) for row_id in ("dead", "bad", "open", "gone")]
    assert drop(tmp_path, keys, EPOCH) == keys[:2]
    assert replay(tmp_path, keys, EPOCH) == []
    assert looking(tmp_path) == [("open", "received"), ("bad", "done"), ("dead", "done")]


async def test_selects_dead_letters_by_reason_prefix(journal: Journal, tmp_path: Path) -> None:
    await store(journal, inbound(row_id="bad", kind=Kind.UNREADABLE))
    for row_id, reason in (("one", "loop: five in a row"), ("two", "no answer: a loop"), ("three", "loop: again")):
        await store(journal, inbound(row_id=row_id, context_id=row_id))
        await kill(journal, row_id, reason=reason)

    with Inspection.open(tmp_path) as looked:
        assert [glance.row_id for glance in looked.dead(reason="Loop")] == ["one", "three"]
        assert [glance.row_id for glance in looked.dead()] == ["one", "two", "three"]
        assert looked.dead("ws-2") == []


async def test_more_than_a_batch_is_replayed(journal: Journal, tmp_path: Path) -> None:
    await store(journal, *(inbound(row_id=f"{n}", kind=Kind.MESSAGE) for n in range(BATCH + 1)))
    await journal.writer.put(lambda db: db.execute("UPDATE message SET state='dead'"))
    with Inspection.open(tmp_path) as looked:
        keys = [glance.key for glance in looked.dead()]

    assert len(replay(tmp_path, keys, EPOCH)) == BATCH + 1


async def test_change_waits_for_another_commit(journal: Journal, tmp_path: Path) -> None:
    await store(journal, inbound(row_id="dead"))
    await kill(journal, "dead")
    other = sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    timer = threading.Timer(0.1, other.execute, ("ROLLBACK",))
    timer.start()
    changed = replay(tmp_path, [Key(WORKSPACE, "dead")], EPOCH)
    timer.join()
    other.close()

    assert changed == [Key(WORKSPACE, "dead")]


async def test_replay_runs_the_backend_within_a_second(journal: Journal, tmp_path: Path) -> None:
    # The fleet looks at the data version once a second and says so; its part is told here.
    platform, works = FakePlatform(), False

    async def handler(request: Request, progress: Progress) -> Response:
        if not works:
            raise BackendError("cannot", retryable=False)
        return Response.from_text("now it can")

    async with Serving(platform, journal, handler) as serving:
        row = platform.write()
        await platform.until(lambda: looking(tmp_path) == [(row, "dead")])
        before, works = await journal.data_version(), True
        replay(tmp_path, [Key(WORKSPACE, row)], serving.clock())
        assert await journal.data_version() != before
        serving.connection.journal_changed()
        await platform.until(lambda: looking(tmp_path) == [(row, "done")])

    assert platform.answers()[1:] == ["now it can"]


async def test_replay_skips_a_long_wait(journal: Journal, tmp_path: Path) -> None:
    platform, is_out = FakePlatform(), True

    async def handler(request: Request, progress: Progress) -> Response:
        if is_out:
            raise BackendError("the usage limit is reached", retryable=True, retry_after=8 * 86_400.0)
        return Response.from_text(f"now it can: {request.text}")

    async with Serving(platform, journal, handler) as serving:
        row = platform.write("one")
        await platform.until(lambda: waits_until(tmp_path, row) > serving.clock() + 86_400)
        is_out = False
        assert replay(tmp_path, [Key(WORKSPACE, row)], serving.clock()) == [Key(WORKSPACE, row)]
        serving.connection.journal_changed()
        await platform.until(lambda: looking(tmp_path) == [(row, "done")])

    assert platform.answers() == ["now it can: one"]


async def test_replay_keeps_an_echo_deadline(journal: Journal, tmp_path: Path) -> None:
    await store(journal, inbound(row_id="out"))
    await journal.writer.put(lambda db: db.execute("UPDATE message SET state='answered', not_before=9e9"))

    assert replay(tmp_path, [Key(WORKSPACE, "out")], EPOCH) == []


async def test_replay_reports_stored_answers_except_notices(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, failing):
        row = platform.write()
        await platform.until(lambda: looking(tmp_path) == [(row, "dead")])
    with Inspection.open(tmp_path) as looked:
        (summary,) = looked.summaries()
        message = looked.message(summary.key)
    assert isinstance(message.reply, StoredReply)
    assert (message.reply.is_notice, summary.has_reply, summary.reason) == (True, False, "cannot")
    assert message.accepted > 0

    await store(journal, inbound(row_id="stored", context_id="c"))
    part = journal.of(WORKSPACE)
    (conversation,) = part.due_conversations(None, 9)
    entry = part.next(conversation)
    assert entry is not None
    answer = StoredReply(parts=(TextPart("forty-two"),))
    assert (running := await part.start(entry))
    assert (answered := await part.store_reply(running, answer, at=NOW, send_print=None))
    assert await part.mark_dead(answered, "refused")
    with Inspection.open(tmp_path) as looked:
        assert looked.summary(looked.find("stored")).has_reply


# The status file


async def test_status_is_removed_after_a_clean_stop(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await platform.until(lambda: _status(tmp_path).last_beat is not None)
        told = _status(tmp_path)
        assert (told.workspace_id, told.backend, told.registered, told.ended) == (WORKSPACE, "fake", True, None)
        assert told.pid == getattr(holder(tmp_path, WORKSPACE), "pid", 0) > 0
        assert stat.S_IMODE(status_path(tmp_path, WORKSPACE).stat().st_mode) == 0o600

    assert not [name for name in os.listdir(tmp_path) if ".status" in name]  # noqa: PTH208 - the loop is virtual
    assert holder(tmp_path, WORKSPACE) is None


async def test_status_shows_a_problem_until_it_ends(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal):
        await platform.until(lambda: bool(_status(tmp_path).last_beat))
        platform.fail_fetch = [PlatformError("no feed", operation="activity", status=None) for _ in range(9)]
        await platform.until(lambda: [one.part for one in _status(tmp_path).ailments] == ["intake"])
        (ailment,) = _status(tmp_path).ailments
        assert "no feed" in ailment.reason
        assert EPOCH < ailment.since <= _status(tmp_path).written
        await platform.until(lambda: not _status(tmp_path).ailments)


async def test_status_is_refreshed_without_events(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, heartbeat_interval=1e6):
        await platform.until(lambda: bool(_status(tmp_path).last_beat))
        before = _status(tmp_path).written
        await asyncio.sleep(65)
        assert _status(tmp_path).written - before >= 60


async def test_many_changes_are_written_once_a_second(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal) as serving:
        await asyncio.sleep(5)
        written: set[float] = set()
        for _ in range(100):
            serving.connection._status.report("intake", str(len(written)))
            serving.connection._status.clear("intake")
            await asyncio.sleep(0.02)
            written.add(_status(tmp_path).written)
        assert 2 <= len(written) <= 4


async def test_status_keeps_the_fatal_error(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    platform.fail_register = [
        PermanentPlatformError("register: 400", operation="register", status=400, body="", hint="do this")
    ]
    async with Serving(platform, journal) as serving:
        await serving.ended()

    ended = _status(tmp_path).ended
    assert ended is not None
    assert (ended.reason, ended.hint) == ("register: 400", "do this")
    assert holder(tmp_path, WORKSPACE) is None


async def test_rejected_process_keeps_the_status(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    with lease(tmp_path, WORKSPACE):
        status_path(tmp_path, WORKSPACE).write_text("of the first")
        async with Serving(platform, journal) as serving:
            await serving.ended()

    assert isinstance(serving.error, LeaseError)
    assert status_path(tmp_path, WORKSPACE).read_text() == "of the first"


async def test_unwritable_status_affects_nothing_else(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()
    (tmp_path / f".{WORKSPACE}.status.new").mkdir()
    async with Serving(platform, journal):
        platform.write("hello")
        await platform.until(lambda: platform.answers() == ["echo: hello"])

    assert read_status(tmp_path, WORKSPACE) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"workspace_id": 1, "ailments": [{"x": 1}]}', "\xff"])
def test_invalid_status_is_none(tmp_path: Path, content: str) -> None:
    status_path(tmp_path, "ws").write_bytes(content.encode("latin-1"))

    assert read_status(tmp_path, "ws") is None


def test_reads_known_fields_of_newer_status(tmp_path: Path) -> None:
    status_path(tmp_path, "ws").write_text(json.dumps({"workspace_id": "ws", "pid": 3, "mood": "sunny"}))

    assert read_status(tmp_path, "ws") == SavedStatus(workspace_id="ws", pid=3)


def test_cursor_and_status_paths_never_collide(tmp_path: Path) -> None:
    assert status_path(tmp_path, "a").suffix != ".json"


# The lease


def test_lease_owner_can_be_read_without_blocking(tmp_path: Path) -> None:
    assert holder(tmp_path, "ws") is None
    assert not list(tmp_path.iterdir())
    with lease(tmp_path, "ws"):
        first, second = holder(tmp_path, "ws"), holder(tmp_path, "ws")
        assert first is not None
        assert first == second
        with pytest.raises(LeaseError), lease(tmp_path, "ws"):
            pass
    assert holder(tmp_path, "ws") is None


def test_two_may_ask_at_once(tmp_path: Path) -> None:
    with lease(tmp_path, "ws"):
        pass
    with (tmp_path / "ws.lock").open() as asker:
        fcntl.flock(asker, fcntl.LOCK_SH)
        assert holder(tmp_path, "ws") is None


def test_reading_the_owner_rejects_no_start(tmp_path: Path) -> None:
    with lease(tmp_path, "ws"):
        pass
    with (tmp_path / "ws.lock").open() as asker:
        fcntl.flock(asker, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.015, fcntl.flock, (asker, fcntl.LOCK_UN))
        letting_go.start()
        with lease(tmp_path, "ws"):
            assert holder(tmp_path, "ws") is not None
        letting_go.join()


def _status(folder: Path) -> SavedStatus:
    return read_status(folder, WORKSPACE) or SavedStatus(workspace_id="")
