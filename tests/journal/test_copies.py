"""Backups before an upgrade, and that every released schema can still be opened."""

import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest

from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.journal.schema import MIGRATIONS, TABLES, VERSION, copy_file, open_file, upgrade_backup


def _of_schema(folder: Path, version: int) -> Path:
    """A journal as the release with this schema left it, with one waiting message."""
    path = folder / FILE_NAME
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executescript("".join((TABLES, *MIGRATIONS)[:version]) + f"PRAGMA user_version={version}")
        db.execute(
            "INSERT INTO message (workspace_id, row_id, kind, state, time, seq, place, message_id, idempotency_key,"
            " method, fingerprint, parts, size, changed)"
            " VALUES ('ws-1', 'row', 'message', 'received', 0, 0, 0, 'm', 'k', '', '', '[]', 0, 0)"
        )
    path.chmod(0o600)
    return path


def _rows(path: Path) -> list[tuple[str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT row_id, state FROM message").fetchall()


@pytest.mark.parametrize("version", range(1, VERSION))
def test_upgrade_keeps_messages_and_a_backup(tmp_path: Path, version: int) -> None:
    path = _of_schema(tmp_path, version)
    with contextlib.closing(open_file(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)
    backup = upgrade_backup(path, version)
    assert _rows(path) == _rows(backup) == [("row", "received")]
    with contextlib.closing(sqlite3.connect(backup)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600


def test_current_journal_gets_no_backup(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    open_file(path).close()
    open_file(path).close()
    assert [each.name for each in tmp_path.iterdir()] == [FILE_NAME]


def test_upgrade_replaces_the_backup_of_an_interrupted_one(tmp_path: Path) -> None:
    path = _of_schema(tmp_path, 1)
    upgrade_backup(path, 1).write_text("of an upgrade that was killed")
    open_file(path).close()
    assert _rows(upgrade_backup(path, 1)) == [("row", "received")]


def test_copy_never_replaces_a_file(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.write_text("precious")
    with contextlib.closing(open_file(tmp_path / FILE_NAME)) as db, pytest.raises(FileExistsError):
        copy_file(db, target)
    assert target.read_text() == "precious"
    assert not list(tmp_path.glob(".copy*"))
