"""What was asked of peers, so that an answer can be shown beside its question."""

import sqlite3

from molecule_connect.delivery.journal.entries import plain
from molecule_connect.models import Inbound

AGE = 7 * 24 * 3600.0
# Enough to recognise a question by.
LONGEST = 4000


def ask(db: sqlite3.Connection, workspace_id: str, message_id: str, peer_id: str, text: str, wall: float) -> None:
    """Write down a question before it is sent, and forget old ones."""
    db.execute("DELETE FROM asked WHERE workspace_id=? AND time < ?", (workspace_id, wall - AGE))
    db.execute(
        "REPLACE INTO asked (workspace_id, message_id, peer_id, text, time) VALUES (?,?,?,?,?)",
        (workspace_id, message_id, plain(peer_id), plain(text[:LONGEST]), wall),
    )


def delegated(db: sqlite3.Connection, workspace_id: str, message_id: str, delegation_id: str) -> None:
    """The platform gave the delegation this id."""
    db.execute(
        "UPDATE asked SET delegation_id=? WHERE workspace_id=? AND message_id=?",
        (delegation_id, workspace_id, message_id),
    )


def close(db: sqlite3.Connection, workspace_id: str, message_id: str) -> None:
    """Nobody waits for an answer to it any more."""
    db.execute("UPDATE asked SET is_open=0 WHERE workspace_id=? AND message_id=?", (workspace_id, message_id))


def answered_by(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> str | None:
    """The message id of the question that *item* answers; None where that is not certain. It is open no more."""
    found = _named(db, workspace_id, item) or _only_open(db, workspace_id, item)
    if found is not None:
        close(db, workspace_id, found)
    return found


def text(db: sqlite3.Connection, workspace_id: str, message_id: str) -> str:
    """The question's words, "" once it is forgotten."""
    row = db.execute(
        "SELECT text FROM asked WHERE workspace_id=? AND message_id=?", (workspace_id, message_id)
    ).fetchone()
    return str(row[0]) if row else ""


def _named(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> str | None:
    # The reason of an answer is what it says that it replies to. A delegation's message has the delegation's id.
    names = (("message_id", item.reason), ("delegation_id", item.reason), ("delegation_id", item.delegation_id))
    for column, value in names:
        if not value:
            continue
        row = db.execute(
            f"SELECT message_id FROM asked WHERE workspace_id=? AND {column}=?",  # noqa: S608
            (workspace_id, plain(value)),
        ).fetchone()
        if row is not None:
            return str(row[0])
    return None


def _only_open(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> str | None:
    if item.reason or item.delegation_id or item.caller_id is None or item.caller_id == workspace_id:
        return None
    rows = db.execute(
        "SELECT message_id FROM asked WHERE workspace_id=? AND peer_id=? AND is_open LIMIT 2",
        (workspace_id, plain(item.caller_id)),
    ).fetchall()
    return str(rows[0][0]) if len(rows) == 1 else None
