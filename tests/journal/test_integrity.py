"""A journal after an unclean stop, a damaged one, and one that can't be read."""

import shutil
import sqlite3
import struct
from pathlib import Path

import pytest
from tests.worker.kit import EPOCH, WORKSPACE, inbound, open_journal

from molecule_connect.errors import JournalError
from molecule_connect.journal import integrity
from molecule_connect.journal.errors import journal_error
from molecule_connect.journal.journal import FILE_NAME, Journal

NOW = round(EPOCH * 1e6)
FRAME = 24 + 4096


async def killed(folder: Path, *, commits: int = 5) -> Path:
    """The journal that a killed process leaves behind: its changes are in the write-ahead log alone."""
    async with open_journal(folder) as journal:
        journal.reader.execute("PRAGMA wal_checkpoint")
        for number in range(commits):
            await journal.of(WORKSPACE).add([inbound("x" * 5000, row_id=f"row-{number}")], now=NOW)
        shutil.copytree(folder, folder / "killed")
    return folder / "killed" / FILE_NAME


def break_frame(path: Path, number: int) -> None:
    wal = integrity.wal_of(path)
    data = bytearray(wal.read_bytes())
    data[32 + number * FRAME + 24 + 100] ^= 0xFF
    wal.write_bytes(data)


async def reopened(path: Path) -> tuple[int, list[tuple[str, str]]]:
    """How many messages are left, and what was said."""
    notices: list[tuple[str, str]] = []

    def notice(text: str, hint: str) -> None:
        notices.append((text, hint))

    async with Journal.open(path.parent, wall=lambda: EPOCH, notice=notice) as journal:
        return journal.reader.execute("SELECT count(*) FROM message").fetchone()[0], notices


async def test_log_of_a_killed_process_is_whole(tmp_path: Path) -> None:
    path = await killed(tmp_path)
    assert integrity.committed_frames(integrity.wal_of(path)) > 5
    assert await reopened(path) == (5, [])


async def test_reports_a_damaged_log_and_its_risk(tmp_path: Path) -> None:
    path = await killed(tmp_path)
    break_frame(path, integrity.committed_frames(integrity.wal_of(path)) // 2)
    count, notices = await reopened(path)
    assert 0 < count < 5
    ((text, hint),) = notices
    assert str(path) in text
    assert "answered again" in hint


async def test_torn_end_of_a_log_costs_nothing(tmp_path: Path) -> None:
    path = await killed(tmp_path)
    with integrity.wal_of(path).open("ab") as wal:
        wal.write(struct.pack(">II", 1, 0) + b"torn")
    assert await reopened(path) == (5, [])


@pytest.mark.parametrize("size", [0, 10, 32])
def test_log_without_frames_has_no_commits(tmp_path: Path, size: int) -> None:
    wal = tmp_path / "log"
    wal.write_bytes(bytes(size))
    assert integrity.committed_frames(wal) == 0
    assert integrity.committed_frames(tmp_path / "missing") == 0


async def test_rejects_a_damaged_journal_with_instructions(tmp_path: Path) -> None:
    path = await killed(tmp_path, commits=40)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    data = bytearray(path.read_bytes())
    data[20_000:] = b"\x55" * (len(data) - 20_000)
    path.write_bytes(data)
    with pytest.raises(JournalError, match="damaged") as caught:
        integrity.check(path)
    assert all(f"{path}{end}" in caught.value.hint for end in ("", "-wal", "-shm"))


def test_checking_a_large_journal_has_a_deadline(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE t AS WITH RECURSIVE n(i) AS (SELECT 1 UNION SELECT i+1 FROM n LIMIT 50000) SELECT * FROM n"
        )
    db.close()
    integrity.check(path, seconds=-1.0)


async def test_failed_read_says_what_to_do(tmp_path: Path) -> None:
    async with open_journal(tmp_path) as journal:
        for failing in ("SELECT * FROM missing", "SELECT json(1, 2)"):
            with pytest.raises(JournalError, match="cannot be read") as caught:
                journal.reader.execute(failing)
            assert caught.value.hint
        rows = journal.reader.execute("SELECT json(value) FROM json_each('[1, 2]')")
        assert [row[0] for row in rows] == ["1", "2"]
        with pytest.raises(JournalError, match="cannot be read"):
            journal.reader.execute("SELECT json('{') FROM json_each('[1]')").fetchall()
        with pytest.raises(JournalError, match="cannot be read"):
            list(journal.reader.execute("SELECT json(iif(value = 1, '1', '{')) FROM json_each('[1, 2]')"))


def test_locked_journal_is_not_a_full_disk(tmp_path: Path) -> None:
    first, second = (sqlite3.connect(tmp_path / FILE_NAME, isolation_level=None, timeout=0) for _ in range(2))
    first.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError) as caught:
        second.execute("BEGIN IMMEDIATE")
    first.close()
    second.close()
    error = journal_error(caught.value, tmp_path / FILE_NAME, "written", is_running=True)
    assert "locked" in str(error)
    assert "another program" in error.hint
    assert "disk" not in error.hint
