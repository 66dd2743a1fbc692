"""Notifications to the person that aren't replies to a message. Each has one echo, which doesn't belong to a reply."""

import sqlite3

AGE = 24 * 3600.0
# Replaces the row id that an echo belongs to.
TOLD = "told"


def say(db: sqlite3.Connection, workspace_id: str, send_print: str, wall: float) -> int:
    """Store a notification before it is sent. Returns its number."""
    wall = no_earlier_than_rows(db, workspace_id, wall)
    db.execute("DELETE FROM told WHERE workspace_id=? AND time < ?", (workspace_id, wall - AGE))
    values = (workspace_id, send_print, wall)
    return int(db.execute("INSERT INTO told (workspace_id, send_print, time) VALUES (?,?,?)", values).lastrowid or 0)


def no_earlier_than_rows(db: sqlite3.Connection, workspace_id: str, wall: float) -> float:
    """*wall*, but not before the newest row: a clock that is set only later would make entries look old."""
    (newest,) = db.execute("SELECT max(time) FROM message WHERE workspace_id=?", (workspace_id,)).fetchone()
    return max(wall, (newest or 0) / 1e6)


def outlive(db: sqlite3.Connection, workspace_id: str, row_id: str, wall: float, *, lateness: int) -> None:
    """Keep the notice of *row_id*, which a replay deletes, as a notification if it may have been sent.

    Its echo may be stored already, at most *lateness* microseconds older than the notice, or arrive later.
    """
    notice = db.execute(
        "SELECT send_print, answered_at FROM message WHERE workspace_id=? AND row_id=? AND send_print IS NOT NULL"
        " AND echo IS NULL AND (accepted > 0 OR in_doubt>0)",
        (workspace_id, row_id),
    ).fetchone()
    if notice is None:
        return
    send_print, answered_at = notice
    stored = db.execute(
        "UPDATE message SET echo=? WHERE arrival=(SELECT arrival FROM message WHERE workspace_id=? AND kind='echo'"
        " AND fingerprint=? AND echo IS NULL AND time >= ? ORDER BY time, arrival LIMIT 1)",
        (TOLD, workspace_id, send_print, answered_at - lateness),
    )
    if stored.rowcount == 0:
        say(db, workspace_id, send_print, wall)


def unsay(db: sqlite3.Connection, number: int) -> None:
    """Delete a notification that was refused: it has no echo."""
    db.execute("DELETE FROM told WHERE rowid=? AND echo IS NULL", (number,))


def echoed(db: sqlite3.Connection, workspace_id: str, fingerprint: str, row_id: str) -> bool:
    """Whether the echo *row_id* belongs to a notification, which is then matched."""
    return (
        db.execute(
            "UPDATE told SET echo=? WHERE rowid=(SELECT rowid FROM told WHERE workspace_id=? AND send_print=?"
            " AND echo IS NULL ORDER BY rowid LIMIT 1)",
            (row_id, workspace_id, fingerprint),
        ).rowcount
        == 1
    )
