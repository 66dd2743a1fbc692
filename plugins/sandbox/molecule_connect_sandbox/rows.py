"""Feed rows: the table and its queries."""

import sqlite3
import uuid
from typing import Any

import attrs

from molecule_connect_sandbox.clock import to_rfc3339
from molecule_connect_sandbox.responses import to_json


def _uuid4() -> str:
    return str(uuid.uuid4())


@attrs.frozen(kw_only=True)
class Row:
    """A row of ``activity``. Bodies are JSON text.

    Attributes:
        late: Whether the fault *late-commits* can delay it: a row that the platform writes under a workspace's lock.
        message_id: The id of an ``a2a`` message; 2026-08 stores each once per receiver.
    """

    workspace_id: str
    activity_type: str = "a2a_receive"
    source_id: str | None = None
    target_id: str | None = None
    method: str | None = None
    summary: str | None = None
    duration_ms: int | None = None
    status: str = "ok"
    error_detail: str | None = None
    request_body: str | None = None
    response_body: str | None = None
    message_id: str | None = None
    late: bool = False
    id: str = attrs.field(factory=_uuid4)

    def wire(self, created_at: int, seq: int | None) -> str:
        """The row as JSON text, as the feed returns it."""
        head = {
            "id": self.id,
            "workspace_id": self.workspace_id,
            "activity_type": self.activity_type,
            "source_id": self.source_id,
            "target_id": self.target_id,
            "method": self.method,
            "summary": self.summary,
            "duration_ms": self.duration_ms,
            "status": self.status,
            "error_detail": self.error_detail,
            "created_at": to_rfc3339(created_at),
        }
        if seq is not None:
            head["seq"] = seq
        return to_json(head)[:-1] + self.bodies() + "}"

    def bodies(self) -> str:
        """The bodies that are set, as members of a JSON object."""
        text = "" if self.request_body is None else f',"request_body":{self.request_body}'
        return text if self.response_body is None else f'{text},"response_body":{self.response_body}'


@attrs.frozen(kw_only=True)
class Window:
    """The parameters of a read. Times are in microseconds; ``after`` is the time and seq of the cursor."""

    activity_type: str | None = None
    source: str | None = None
    peer_id: str | None = None
    limit: int = 100
    not_before: int | None = None
    before: int | None = None
    after: tuple[int, int] | None = None
    tuple_order: bool = True

    def sql(self, workspace_id: str, now: int) -> tuple[str, list[Any]]:
        """The SQL and its values: oldest first after a cursor, else newest first."""
        where, values = ["workspace_id = ?", "visible_at <= ?"], [workspace_id, now]

        def add(condition: str, *more: Any) -> None:
            where.append(condition)
            values.extend(more)

        if self.activity_type:
            add("activity_type = ?", self.activity_type)
        if self.source:
            add("source_id IS NULL" if self.source == "canvas" else "source_id IS NOT NULL")
        if self.peer_id:
            add("(source_id = ? OR target_id = ?)", self.peer_id, self.peer_id)
        if self.not_before is not None:
            add("created_at >= ?", self.not_before)
        if self.before is not None:
            add("created_at < ?", self.before)
        if self.after is not None and self.tuple_order:
            add("(created_at, seq) > (?, ?)", *self.after)
        elif self.after is not None:
            add("created_at > ?", self.after[0])
        direction = "DESC" if self.after is None else "ASC"
        values.append(self.limit)
        query = f"WHERE {' AND '.join(where)} ORDER BY created_at {direction}, seq {direction} LIMIT ?"
        return query, values


class Rows:
    """The table of feed rows. ``seq``: whether rows of this generation have a sequence number."""

    def __init__(self, db: sqlite3.Connection, *, seq: bool) -> None:
        self._db = db
        self._seq = seq
        last = db.execute(
            "SELECT max(created_at), (SELECT seq FROM sqlite_sequence WHERE name = 'activity') FROM activity"
        )
        newest, top = last.fetchone()
        self.newest: int = newest or 0
        self._top: int = top or 0

    def add(self, row: Row, created_at: int, visible_at: int) -> None:
        """Write a row. There is no other writer, so ``seq`` is known in advance."""
        self._top += 1
        self._db.execute(
            "INSERT INTO activity VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                self._top,
                row.id,
                row.workspace_id,
                row.activity_type,
                row.source_id,
                row.target_id,
                row.method,
                row.message_id,
                created_at,
                visible_at,
                row.wire(created_at, self._top if self._seq else None),
            ),
        )

    def show(self, row_id: str) -> None:
        """Make a late row visible now."""
        self._db.execute("UPDATE activity SET visible_at = 0 WHERE id = ?", (row_id,))

    def has_message(self, workspace_id: str, message_id: str) -> bool:
        """Whether the workspace has received this message id before."""
        found = self._db.execute(
            "SELECT 1 FROM activity WHERE workspace_id = ? AND message_id = ?", (workspace_id, message_id)
        )
        return found.fetchone() is not None

    def cursor(self, workspace_id: str, row_id: str, now: int) -> tuple[int, int] | None:
        """The position of a row, or None if it isn't visible in this workspace's feed."""
        found: tuple[int, int] | None = self._db.execute(
            "SELECT created_at, seq FROM activity WHERE id = ? AND workspace_id = ? AND visible_at <= ?",
            (row_id, workspace_id, now),
        ).fetchone()
        return found

    def read(self, workspace_id: str, window: Window, now: int) -> list[tuple[str, str | None]]:
        """The rows of a window: JSON text and source."""
        query, values = window.sql(workspace_id, now)
        return self._db.execute(f"SELECT wire, source_id FROM activity {query}", values).fetchall()  # noqa: S608

    def all(self, workspace_id: str) -> list[tuple[str, int]]:
        """All rows of a workspace in order, including late ones: JSON text, and the time they become visible."""
        return self._db.execute(
            "SELECT wire, visible_at FROM activity WHERE workspace_id = ? ORDER BY created_at, seq", (workspace_id,)
        ).fetchall()

    def answers(self, workspace_id: str) -> list[tuple[str, str]]:
        """The messages that a workspace sent, in order: the workspace in whose feed the row is, and its JSON text.

        A row of ``notify`` has no target. An anonymous message with that method, which 2026-05 accepts, has one.
        """
        return self._db.execute(
            "SELECT workspace_id, wire FROM activity WHERE activity_type = 'a2a_receive' AND "
            "(source_id = ? OR workspace_id = ? AND source_id IS NULL AND target_id IS NULL AND method = 'notify') "
            "ORDER BY seq",
            (workspace_id, workspace_id),
        ).fetchall()

    def prune(self, workspace_id: str, *, row_id: str | None = None, keep: int = 0, before: int | None = None) -> int:
        """Delete one row, those older than *before*, or all but the newest *keep*. Returns the number deleted."""
        if row_id is not None:
            done = self._db.execute("DELETE FROM activity WHERE workspace_id = ? AND id = ?", (workspace_id, row_id))
        elif before is not None:
            done = self._db.execute(
                "DELETE FROM activity WHERE workspace_id = ? AND created_at < ?", (workspace_id, before)
            )
        else:
            done = self._db.execute(
                "DELETE FROM activity WHERE workspace_id = ? AND seq NOT IN (SELECT seq FROM activity "
                "WHERE workspace_id = ? ORDER BY created_at DESC, seq DESC LIMIT ?)",
                (workspace_id, workspace_id, keep),
            )
        return done.rowcount
