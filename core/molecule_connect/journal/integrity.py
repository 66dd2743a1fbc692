"""Checks for damage to a journal after an unclean stop; a clean stop leaves no write-ahead log."""

import sqlite3
import struct
import time
from pathlib import Path

from molecule_connect.journal.errors import damaged, journal_error

# The check reads the whole file; a large one is checked in part.
CHECK_SECONDS = 5.0
_STEPS = 10_000
# https://www.sqlite.org/fileformat2.html#the_write_ahead_log
_HEADER, _FRAME_HEADER = 32, 24


def wal_of(path: Path) -> Path:
    """The write-ahead log of the journal at *path*."""
    return path.with_name(f"{path.name}-wal")


def committed_frames(wal: Path) -> int:
    """The number of frames up to the last commit in the write-ahead log, by the frames' headers; 0 without a log.

    SQLite silently ignores all frames from the first damaged one on.
    """
    committed = 0
    try:
        with wal.open("rb") as file:
            header = file.read(_HEADER)
            if len(header) < _HEADER:
                return 0
            page_size, salts = struct.unpack_from(">I", header, 8)[0], header[16:24]
            number = 0
            while len(frame := file.read(_FRAME_HEADER)) == _FRAME_HEADER:
                number += 1
                size_after_commit = struct.unpack_from(">I", frame, 4)[0]
                if frame[8:16] == salts and size_after_commit:
                    committed = number
                file.seek(page_size, 1)
    except OSError:
        return 0
    return committed


def lost_frames(connection: sqlite3.Connection, path: Path, committed: int) -> int:
    """How many of *committed* frames, counted before the journal was opened, SQLite ignored as damaged."""
    frames = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    # If the log has fewer now, either frames are damaged, or another process restarted the log meanwhile.
    return max(0, committed - frames) if committed_frames(wal_of(path)) >= committed else 0


def check(path: Path, *, seconds: float = CHECK_SECONDS) -> None:
    """Check the structure of the journal at *path*, for at most *seconds*.

    Raises:
        JournalError: It is damaged.
    """
    deadline = time.monotonic() + seconds
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA query_only=1")
            connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as exc:
        if getattr(exc, "sqlite_errorcode", 0) == sqlite3.SQLITE_INTERRUPT:
            return
        raise journal_error(exc, path, "read") from exc
    if found != "ok":
        raise damaged(path, found)
