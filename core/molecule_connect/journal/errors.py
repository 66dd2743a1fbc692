"""Translation of SQLite's errors, for the connection that writes and those that read."""

import sqlite3
from pathlib import Path
from typing import Any, Self

from molecule_connect.errors import JournalError

_PATH = 2  # the file name's column in PRAGMA database_list


def journal_error(exc: Exception, path: Path | str, doing: str, *, is_running: bool = False) -> JournalError:
    """The error for *exc* of the journal at *path*, with a hint.

    Args:
        doing: The operation that failed: "opened", "read" or "written".
        is_running: The journal is open, so its path is known already.
    """
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    name = "the journal" if is_running else f"the journal {path}"
    error = JournalError(f"{name} cannot be {doing}: {exc}", hint=_hint(code, path))
    error.__cause__ = exc
    return error


def damaged(path: Path | str, what: str) -> JournalError:
    """The error for a damaged journal at *path*."""
    return JournalError(f"the journal {path} is damaged: {what}", hint=_way_out(path))


def _hint(code: int, path: Path | str) -> str:
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"another program, such as a backup or a database browser, has locked it: find it with 'lsof {path}'"
        case sqlite3.SQLITE_FULL:
            return "free disk space"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return _way_out(path)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_CANTOPEN:
            return "make the file and its folder writable for this user, or pass another folder with --state-dir"
        case sqlite3.SQLITE_IOERR:
            return "check the disk for errors and free space; a network file system can't hold the journal"
    return "check the state folder and its disk (not a network file system), or pass another with --state-dir"


def _way_out(path: Path | str) -> str:
    return (
        f"stop molecule, move {path}, {path}-wal and {path}-shm to another folder, and start it again: reading"
        " continues from the cursor file of each workspace, and messages since then are handled again"
    )


class ReadCursor(sqlite3.Cursor):
    """A cursor whose errors are ``JournalError``."""

    # No context manager or decorator, for speed: a message takes tens of reads.

    def execute(self, *args: Any) -> Self:
        try:
            super().execute(*args)
        except sqlite3.Error as exc:
            raise _read_error(exc, self.connection) from exc
        return self

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except sqlite3.Error as exc:
            raise _read_error(exc, self.connection) from exc

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except sqlite3.Error as exc:
            raise _read_error(exc, self.connection) from exc

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except sqlite3.Error as exc:
            raise _read_error(exc, self.connection) from exc


class ReadConnection(sqlite3.Connection):
    """A connection whose reads raise ``JournalError``."""

    def execute(self, *args: Any) -> ReadCursor:
        return self.cursor(ReadCursor).execute(*args)


def _read_error(exc: sqlite3.Error, connection: sqlite3.Connection) -> Exception:
    if isinstance(exc, sqlite3.ProgrammingError):
        return exc  # a closed connection, or a bug
    return journal_error(exc, _path_of(connection), "read", is_running=True)


def _path_of(connection: sqlite3.Connection) -> str:
    try:
        return str(sqlite3.Connection.cursor(connection).execute("PRAGMA database_list").fetchone()[_PATH])
    except sqlite3.Error:
        return "journal"
