"""A workspace id in capitals is the same workspace, also in the state folder of an earlier release."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.worker.kit import FakePlatform, Serving, other_process

from molecule_connect.errors import LeaseError
from molecule_connect.journal.inspect import Inspection
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State
from molecule_connect.platform.credentials import Credentials
from molecule_connect.worker.lease import holder, lease
from molecule_connect.worker.status_file import read_status

ID = "dc98486f-8e1e-44fc-94c0-ba89c005241b"
OLD = ID.upper()
TABLES = ("workspace", "message", "spend", "asked", "told", "file", "file_use", "upload_note")


def respell(path: Path) -> None:
    """Change the journal to that of an earlier release that was started with the id in capitals."""
    with closing(sqlite3.connect(path)) as db, db:
        for table in TABLES:
            db.execute(f"UPDATE {table} SET workspace_id=?", (OLD,))


def names(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        return {name for table in TABLES for (name,) in db.execute(f"SELECT workspace_id FROM {table}")}


async def test_both_spellings_share_one_lease(journal: Journal) -> None:
    with lease(journal.path.parent, ID):
        async with Serving(FakePlatform(), journal, workspace_id=OLD) as second:
            await second.ended()
    assert isinstance(second.error, LeaseError)


async def test_answers_nothing_twice_after_a_legacy_release(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("before")
    async with Serving(platform, journal, workspace_id=ID):
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(60)
    respell(journal.path)
    platform.write("after")
    async with Serving(platform, journal, workspace_id=ID) as serving:
        await platform.until(lambda: len(platform.sent) == 2)
        await asyncio.sleep(120)
    assert platform.answers() == ["echo: before", "echo: after"]
    assert [state for _, state in serving.rows()] == ["done"] * 2
    assert names(journal.path) == {ID}


async def test_joins_the_records_of_both_spellings(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("one")
    async with Serving(platform, journal, workspace_id=ID):
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(60)
    with other_process(journal.path) as db:
        for table in ("message", "workspace"):
            db.execute(f"CREATE TEMP TABLE twin AS SELECT * FROM {table}")
            db.execute("UPDATE twin SET workspace_id=?", (OLD,))
            if table == "message":
                db.execute("UPDATE twin SET arrival=arrival+1000")
            db.execute(f"INSERT INTO {table} SELECT * FROM twin")
            db.execute("DROP TABLE twin")
        db.execute("UPDATE message SET state='received' WHERE workspace_id=?", (ID,))
        db.executemany("INSERT INTO spend VALUES (?, '2026-01-01', ?)", [(ID, 1.0), (OLD, 2.0)])
    async with Serving(platform, journal, workspace_id=ID) as serving:
        await asyncio.sleep(120)
    assert platform.answers() == ["echo: one"]
    assert [state for _, state in serving.rows()] == ["done"]
    assert names(journal.path) == {ID}
    with other_process(journal.path) as db:
        assert db.execute("SELECT cost_usd FROM spend").fetchall() == [(3.0,)]


async def test_never_runs_own_rows_in_capitals(journal: Journal) -> None:
    platform = FakePlatform()
    async with Serving(platform, journal, workspace_id=ID):
        await asyncio.sleep(60)
    respell(journal.path)
    with other_process(journal.path) as db:
        db.execute(
            "INSERT INTO message (workspace_id, row_id, kind, state, time, seq, place, caller_id, message_id,"
            " idempotency_key, method, fingerprint, parts, size, changed)"
            " VALUES (?, 'own', 'message', 'received', 1, 0, 1, ?, 'own', 'own', 'message/send', '', '[]', 0, 0)",
            (OLD, ID),
        )
    async with Serving(platform, journal, workspace_id=ID):
        await asyncio.sleep(120)
    assert platform.sent == []


def test_files_of_an_earlier_release_are_renamed(tmp_path: Path) -> None:
    (tmp_path / f"{OLD}.json").write_text(json.dumps({"last_since_id": "row-1"}))
    (tmp_path / f"{OLD}.lock").touch()
    (tmp_path / f"{OLD}.token").write_text("a-token-that-was-kept\n")
    (tmp_path / f"{OLD}.token").chmod(0o600)
    (tmp_path / OLD / "files").mkdir(parents=True)
    credentials = Credentials(ID, origin="https://platform.example", state_dir=tmp_path)
    assert credentials.current() == "a-token-that-was-kept"
    with lease(tmp_path, ID):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ID, f"{ID}.json", f"{ID}.lock", f"{ID}.token"
    ]  # fmt: skip


def test_files_of_other_ids_stay(tmp_path: Path) -> None:
    (tmp_path / "WS_1.json").touch()
    (tmp_path / f"{OLD}-2.json").touch()
    with lease(tmp_path, "ws_1"), lease(tmp_path, ID):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {
        "WS_1.json", "ws_1.lock", f"{OLD}-2.json", f"{ID}.lock"
    }  # fmt: skip


def test_legacy_process_keeps_its_lease(tmp_path: Path) -> None:
    with lease(tmp_path, ID):
        (tmp_path / f"{ID}.lock").rename(tmp_path / f"{OLD}.lock")
        assert holder(tmp_path, ID) is not None
        with pytest.raises(LeaseError), lease(tmp_path, ID):
            pass


async def test_journal_in_capitals_can_be_inspected(journal: Journal) -> None:
    platform = FakePlatform()
    platform.write("before")
    async with Serving(platform, journal, workspace_id=ID):
        await platform.until(lambda: len(platform.sent) == 1)
        await asyncio.sleep(60)
    respell(journal.path)
    with Inspection.open(journal.path.parent) as inspection:
        assert inspection.counts(ID)[State.DONE] == 1
        (glance,) = inspection.summaries(ID)
        assert inspection.find(glance.row_id, ID) == glance.key
    assert read_status(journal.path.parent, ID) is None
