"""What the journal keeps of each attempt, and how the history is filtered."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, FakePlatform, Serving, inbound, open_journal

from molecule_connect.errors import BackendError
from molecule_connect.journal.inspect import Attempt, Inspection, MessageSummary, Only
from molecule_connect.journal.journal import FILE_NAME, Journal
from molecule_connect.journal.models import State, StoredReply
from molecule_connect.journal.schema import MIGRATIONS, TABLES
from molecule_connect.journal.transitions import CUT_SHORT, MAX_ATTEMPTS, STOPPED
from molecule_connect.models import DataPart, FilePart, Progress, Request, Response, TextPart, Usage

NOW = round(EPOCH * 1e6)


def only(folder: Path) -> MessageSummary:
    with Inspection.open(folder) as journal:
        (found,) = journal.summaries()
        return found


def state(folder: Path) -> list[State]:
    with Inspection.open(folder) as journal:
        return [one.state for one in journal.summaries()]


def shown(folder: Path, **given: object) -> list[str]:
    with Inspection.open(folder) as journal:
        found = journal.summaries(only=Only(**given))  # type: ignore[arg-type]
        assert journal.total(only=Only(**given)) == len(found)  # type: ignore[arg-type]
        return [one.row_id for one in found]


async def running(journal: Journal, row_id: str = "row-1") -> None:
    mine = journal.of(WORKSPACE)
    await mine.add([inbound(row_id=row_id)], now=NOW)
    assert await mine.start(mine.message(row_id))


async def test_each_attempt_is_kept_with_its_error(journal: Journal, tmp_path: Path) -> None:
    platform, calls = FakePlatform(), 0

    async def handler(request: Request, progress: Progress) -> Response:
        nonlocal calls
        calls += 1
        await asyncio.sleep(3)
        if calls == 1:
            raise BackendError("overloaded: \x00 \ud800", usage=Usage(cost_usd=0.25))
        return Response.from_text("forty-two", usage=Usage(cost_usd=0.5))

    async with Serving(platform, journal, handler):
        platform.write()
        await platform.until(lambda: state(tmp_path) == [State.DONE])

    found = only(tmp_path)
    first, second = found.runs
    assert (first.error, second.error) == ("overloaded: \x00 ?", None)
    assert [round(run.seconds or 0) for run in found.runs] == [3, 3]
    assert round(found.seconds(0) or 0) == 6
    assert (second.started or 0) > (first.ended or 0) >= EPOCH
    assert (found.cost_usd, found.answer) == (0.75, "forty-two")


async def test_attempt_that_gave_up_is_kept(journal: Journal, tmp_path: Path) -> None:
    platform = FakePlatform()

    async def handler(request: Request, progress: Progress) -> Response:
        raise BackendError("cannot", retryable=False)

    async with Serving(platform, journal, handler):
        platform.write()
        await platform.until(lambda: state(tmp_path) == [State.DEAD])

    assert [run.error for run in only(tmp_path).runs] == ["cannot"]
    assert only(tmp_path).cost_usd is None


async def test_silent_answer_ends_an_attempt(journal: Journal, tmp_path: Path) -> None:
    await running(journal)
    mine = journal.of(WORKSPACE)
    assert only(tmp_path).seconds(EPOCH + 1e9) is not None
    assert await mine.finish_without_reply(mine.message("row-1"))
    assert [run.error for run in only(tmp_path).runs] == [None]


async def test_crash_is_an_attempt_without_an_end(journal: Journal, tmp_path: Path) -> None:
    await running(journal)
    await journal.of(WORKSPACE).recover()

    (run,) = only(tmp_path).runs
    assert (run.ended, run.seconds, run.error) == (None, None, CUT_SHORT)
    assert only(tmp_path).seconds(EPOCH) is None


async def test_stop_is_kept_as_an_attempt(journal: Journal, tmp_path: Path) -> None:
    await running(journal)
    await journal.of(WORKSPACE).requeue_running()
    assert [run.error for run in only(tmp_path).runs] == [STOPPED]


async def test_start_without_a_run_leaves_no_attempt(journal: Journal, tmp_path: Path) -> None:
    await running(journal)
    mine = journal.of(WORKSPACE)
    assert await mine.requeue(mine.message("row-1"), counts=False)
    assert only(tmp_path).runs == ()


async def test_internal_error_ends_the_attempt(journal: Journal, tmp_path: Path) -> None:
    await running(journal)
    assert await journal.of(WORKSPACE).mark_dead_by_id("row-1", None, "internal error", "Traceback ...")
    assert [run.error for run in only(tmp_path).runs] == ["internal error"]


async def test_attempts_are_bounded(journal: Journal, tmp_path: Path) -> None:
    mine = journal.of(WORKSPACE)
    await mine.add([inbound(row_id="row-1")], now=NOW)
    for number in range(MAX_ATTEMPTS + 3):
        assert (message := await mine.start(mine.message("row-1")))
        assert await mine.requeue(message, counts=False, error=f"start {number} {'x' * 5000} end")

    runs = only(tmp_path).runs
    assert len(runs) == MAX_ATTEMPTS
    assert str(runs[0].error).startswith("start 3 ")
    assert all(str(run.error).endswith(" end") and len(str(run.error)) < 1100 for run in runs)


async def test_searches_message_reply_and_error(journal: Journal, tmp_path: Path) -> None:
    mine = journal.of(WORKSPACE)
    parts = {
        "text": (TextPart("Où est le CAFE\u0301? 100%"),),
        "file": (FilePart(uri="data:text/plain;base64,Y2Fm", name="invoice.pdf"),),
        "data": (DataPart({"key": ["needle", True, 17]}),),
        "odd": (DataPart({"x": float("nan"), "y": "straße"}),),
        "half a pair": (TextPart("a\ud800b"),),
    }
    await mine.add([inbound(row_id=name, parts=given) for name, given in parts.items()], now=NOW)
    await running(journal, "answered")
    reply = StoredReply(parts=(TextPart("the reply says hi"),), usage=Usage(input_tokens=9876))
    assert await mine.store_reply(mine.message("answered"), reply, at=NOW, send_print=None)
    await running(journal, "failed")
    assert await mine.requeue(mine.message("failed"), counts=True, error='{"code": "overload"}')

    for text, row_id in {
        "café": "text",
        "100%": "text",
        "INVOICE": "file",
        "needle": "data",
        "17": "data",
        "STRASSE": "odd",
        "SAYS HI": "answered",
        "overload": "failed",
    }.items():
        assert shown(tmp_path, search=text) == [row_id]
    for text in ("Y2Fm", "_NEEDLE", "true", "9876", "is_notice", "key"):
        assert shown(tmp_path, search=text) == []


async def test_filters_by_caller_and_time(journal: Journal, tmp_path: Path) -> None:
    mine = journal.of(WORKSPACE)
    rows = [("old", None, NOW - 10), ("a", None, NOW), ("b", "peer-1", NOW), ("c", "peer-2", NOW + 10)]
    await mine.add([inbound(row_id=row, caller_id=caller, time=time) for row, caller, time in rows], now=NOW)

    assert shown(tmp_path, callers=(None,)) == ["a", "old"]
    assert shown(tmp_path, callers=("peer-1", "peer-2")) == ["c", "b"]
    assert shown(tmp_path, callers=()) == []
    assert shown(tmp_path, callers=(None,), since=NOW) == ["a"]
    with Inspection.open(tmp_path) as journal_:
        assert journal_.callers() == ["peer-1", "peer-2"]


async def test_changes_are_found_by_an_index(journal: Journal, tmp_path: Path) -> None:
    await running(journal)
    statements: list[str] = []
    with Inspection.open(tmp_path) as looked:
        looked._db.set_trace_callback(statements.append)
        assert [one.row_id for one in looked.changed_since(0)] == ["row-1"]
        assert looked.changed_since(looked.newest_change() + 1) == []
        looked._db.set_trace_callback(None)
        for sql in statements:
            plan = " ".join(str(row["detail"]) for row in looked._db.execute(f"EXPLAIN QUERY PLAN {sql}"))
            assert "message_closed" in plan, (sql, plan)
            assert "SCAN message\n" not in f"{plan}\n", (sql, plan)


async def test_migration_keeps_the_costs_of_replies(tmp_path: Path) -> None:
    _older_journal(tmp_path)
    async with open_journal(tmp_path):
        found = only(tmp_path)
    assert (found.cost_usd, found.runs, found.started) == (0.25, (), None)
    assert found.seconds(0) == 2.0


def test_older_journal_can_be_read(tmp_path: Path) -> None:
    _older_journal(tmp_path)
    with Inspection.open(tmp_path) as looked:
        assert [one.row_id for one in looked.changed_since(0)] == ["row-1"]
        assert looked.newest_change() == 5.0
        (found,) = looked.summaries()
    assert (found.cost_usd, found.runs, found.answer) == (None, (), "yes")


@pytest.mark.parametrize("run", [Attempt(5.0, 3.0, None), Attempt(None, 3.0, None)])
def test_clock_set_back_gives_no_negative_time(run: Attempt) -> None:
    assert run.seconds in (0.0, None)


def _older_journal(folder: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / FILE_NAME, isolation_level=None)) as db:
        for script in (TABLES, *MIGRATIONS[:4]):
            db.executescript(script)
        db.execute("PRAGMA user_version=5")
        answer = '{"is_notice": false, "parts": [{"text": "yes"}], "reason": "", "usage": {"cost_usd": 0.25}}'
        db.execute(
            "INSERT INTO message (workspace_id, row_id, kind, state, time, seq, place, message_id, idempotency_key,"
            " method, fingerprint, parts, raw, size, changed, answer, answered_at)"
            " VALUES ('ws-1', 'row-1', 'message', 'done', 1, 0, 1, 'm', 'k', '', '', '[]', '{}', 8, 5.0, ?, 2000001)",
            (answer,),
        )
