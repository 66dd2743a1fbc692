"""The names of peers, as SQL. They are unchecked text of the platform's registry: sanitize them before showing them."""

import sqlite3
from collections.abc import Mapping

from molecule_connect.journal.models import plain

# Names kept per workspace, and the longest one in characters.
MOST_NAMES = 1000
LONGEST_NAME = 200


def load(db: sqlite3.Connection, workspace_id: str) -> dict[str, str]:
    """The known names of a workspace's peers, by peer id."""
    rows = db.execute("SELECT peer_id, name FROM peer_name WHERE workspace_id=?", (workspace_id,))
    return {row[0]: row[1] for row in rows}


def add(db: sqlite3.Connection, workspace_id: str, names: Mapping[str, str], wall: float) -> None:
    """Add or replace *names*, seen at *wall* (seconds since 1970). The names seen longest ago make room."""
    db.executemany(
        "REPLACE INTO peer_name VALUES (?,?,?,?)",
        [(workspace_id, plain(peer_id), plain(name[:LONGEST_NAME]), wall) for peer_id, name in names.items()],
    )
    db.execute(
        "DELETE FROM peer_name WHERE workspace_id=? AND peer_id NOT IN"
        " (SELECT peer_id FROM peer_name WHERE workspace_id=? ORDER BY seen DESC, peer_id LIMIT ?)",
        (workspace_id, workspace_id, MOST_NAMES),
    )
