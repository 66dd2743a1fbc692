"""Questions to peers, which are matched with the answers and results that arrive."""

import sqlite3

from molecule_connect.journal.models import plain, plain_or_none
from molecule_connect.journal.sent import no_earlier_than_rows
from molecule_connect.models import Inbound, Kind

AGE = 7 * 24 * 3600.0
# Characters of a question that are kept.
LONGEST = 4000


def ask(db: sqlite3.Connection, workspace_id: str, message_id: str, peer_id: str, text: str, wall: float) -> None:
    """Store a question before it is sent, and delete old ones."""
    wall = no_earlier_than_rows(db, workspace_id, wall)
    db.execute("DELETE FROM asked WHERE workspace_id=? AND time < ?", (workspace_id, wall - AGE))
    db.execute(
        "REPLACE INTO asked (workspace_id, message_id, peer_id, text, time) VALUES (?,?,?,?,?)",
        (workspace_id, message_id, plain(peer_id), plain(text[:LONGEST]), wall),
    )


def record_delegation(
    db: sqlite3.Connection, workspace_id: str, message_id: str, delegation_id: str, wall: float
) -> None:
    """Store the platform's id of the delegation. A result that was read before becomes available to readers."""
    found = db.execute(
        "UPDATE asked SET delegation_id=? WHERE workspace_id=? AND message_id=? RETURNING peer_id",
        (plain(delegation_id), workspace_id, message_id),
    ).fetchone()
    if found is None:
        return
    early = db.execute(
        "UPDATE message SET state='received', caller_id=?, question=?, changed=? WHERE workspace_id=? AND kind='result'"
        " AND state='done' AND question IS NULL AND delegation_id=? AND coalesce(caller_id, ?)=?",
        (found[0], message_id, wall, workspace_id, plain(delegation_id), found[0], found[0]),
    )
    if early.rowcount:
        close(db, workspace_id, message_id)


def close(db: sqlite3.Connection, workspace_id: str, message_id: str) -> None:
    """Stop expecting an answer to a question."""
    db.execute("UPDATE asked SET is_open=0 WHERE workspace_id=? AND message_id=?", (workspace_id, message_id))


def answered_by(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> tuple[str, str] | None:
    """Message id and peer of the question that *item* answers, which is closed; None if unknown.

    Only the peer that was asked can answer. Platforms of 2026-05 don't name the peer of a delegation's result.
    """
    found = _named(db, workspace_id, item) or _only_open(db, workspace_id, item)
    if found is not None:
        close(db, workspace_id, found[0])
    return found


def text(db: sqlite3.Connection, workspace_id: str, message_id: str) -> str:
    """The text of a question, or "" once it was deleted."""
    row = db.execute(
        "SELECT text FROM asked WHERE workspace_id=? AND message_id=?", (workspace_id, message_id)
    ).fetchone()
    return str(row[0]) if row else ""


def _named(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> tuple[str, str] | None:
    if item.caller_id is None and item.kind is not Kind.RESULT:
        return None
    # The reason of an answer is the id that it claims to reply to. A delegation's message has the delegation's id.
    names = (("message_id", item.reason), ("delegation_id", item.reason), ("delegation_id", item.delegation_id))
    for column, value in names:
        if not value:
            continue
        row = db.execute(
            f"SELECT message_id, peer_id FROM asked WHERE workspace_id=? AND {column}=?"  # noqa: S608
            " AND peer_id=coalesce(?, peer_id)",
            (workspace_id, plain(value), plain_or_none(item.caller_id)),
        ).fetchone()
        if row is not None:
            return str(row[0]), str(row[1])
    return None


def _only_open(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> tuple[str, str] | None:
    if item.kind is not Kind.ANSWER or item.reason or item.delegation_id or item.caller_id is None:
        return None
    rows = db.execute(
        "SELECT message_id, peer_id FROM asked WHERE workspace_id=? AND peer_id=? AND is_open LIMIT 2",
        (workspace_id, plain(item.caller_id)),
    ).fetchall()
    return (str(rows[0][0]), str(rows[0][1])) if len(rows) == 1 else None
