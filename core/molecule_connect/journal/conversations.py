"""Reads of the open messages and conversations of one workspace."""

import json
import sqlite3
from collections.abc import Callable, Collection, Iterator
from typing import Any

from molecule_connect.journal.models import COLUMNS, NOTICE_BEGINS, Conversation, StoredMessage, load_message

# Messages that the dispatcher works on. In an inbox, messages belong to its readers, and the dispatcher only sends
# replies, including those of replayed messages.
_OPEN = "state IN ('received', 'running', 'answered')"
_WITHOUT_TEXT = COLUMNS.replace(" parts,", " NULL,").replace(" raw,", " NULL,")
_INBOX_OPEN = "(state='answered' OR (state='received' AND answer IS NOT NULL))"


class ConversationReads:
    """The open messages of one workspace. Reads are immediate and see committed changes.

    Args:
        inbox: Messages belong to readers, and conversations only send replies.
    """

    def __init__(
        self, reader: sqlite3.Connection, wall: Callable[[], float], workspace_id: str, *, inbox: bool
    ) -> None:
        self.workspace_id = workspace_id
        self._reader = reader
        self._wall = wall
        self._open = _INBOX_OPEN if inbox else _OPEN
        # The oldest open message of each conversation of one caller: bare columns are those of the row with min().
        self._heads = (
            "SELECT context_id, state, not_before, min(place) AS place FROM message WHERE workspace_id=?"  # noqa: S608
            f" AND caller_id IS ? AND {self._open} AND row_id NOT IN (SELECT value FROM json_each(?))"
            " GROUP BY context_id"
        )
        # Sent replies whose transition is not committed yet: the reader still sees their messages as open.
        self._ending: dict[str, Conversation] = {}

    def next(self, conversation: Conversation) -> StoredMessage | None:
        """The oldest open message of *conversation*."""
        row = self._head(conversation, COLUMNS)
        return None if row is None else load_message(row)

    def next_id(self, conversation: Conversation) -> str | None:
        """The row id of ``next``, also if that message cannot be loaded."""
        row = self._head(conversation, "workspace_id, row_id")
        return None if row is None else str(row[1])

    def _head(self, conversation: Conversation, columns: str) -> tuple[Any, ...] | None:
        pending = [row_id for row_id, its_conversation in self._ending.items() if its_conversation == conversation]
        rows = self._reader.execute(
            f"SELECT {columns} FROM message WHERE workspace_id=? AND caller_id IS ? AND context_id IS ?"  # noqa: S608
            f" AND {self._open} ORDER BY place, seq, arrival LIMIT ?",
            (self.workspace_id, conversation.caller_id, conversation.context_id, 1 + len(pending)),
        )
        return next((row for row in rows if row[1] not in pending), None)

    def message(self, row_id: str) -> StoredMessage:
        """The message *row_id*, which must exist."""
        return load_message(
            self._one(f"SELECT {COLUMNS} FROM message WHERE workspace_id=? AND row_id=?", self.workspace_id, row_id)  # noqa: S608
        )

    def message_to_send(self, row_id: str) -> StoredMessage | None:
        """The message *row_id* while its reply is to be sent."""
        if row_id in self._ending:
            return None
        sql = f"SELECT {COLUMNS} FROM message WHERE workspace_id=? AND row_id=? AND state='answered'"  # noqa: S608
        row = self._one(sql, self.workspace_id, row_id)
        return None if row is None else load_message(row)

    def callers(self) -> list[str | None]:
        """The callers that have an open message."""
        rows = self._reader.execute(
            f"SELECT DISTINCT caller_id FROM message WHERE workspace_id=? AND {self._open}",  # noqa: S608
            (self.workspace_id,),
        )
        return [row[0] for row in rows]

    def due_conversations(
        self, caller_id: str | None, most: int, *, may_begin: bool = True, without: Collection[Conversation] = ()
    ) -> list[Conversation]:
        """Up to *most* conversations of one caller that are due, oldest first, except those in *without*.

        Unless *may_begin*, only those with a reply to send.
        """
        rows = self._reader.execute(
            f"SELECT context_id FROM ({self._heads}) WHERE coalesce(not_before, 0) <= ? AND (? OR state <> 'received')"  # noqa: S608
            " ORDER BY place LIMIT ?",
            (self.workspace_id, caller_id, self._ended(), self._wall(), may_begin, most + len(without)),
        )
        conversations = (Conversation(caller_id, row[0]) for row in rows)
        return [conversation for conversation in conversations if conversation not in without][:most]

    def next_due(self, caller_id: str | None) -> float | None:
        """When the next deferred conversation of one caller is due, in seconds since 1970."""
        row = self._one(
            f"SELECT min(not_before) FROM ({self._heads}) WHERE not_before > ?",  # noqa: S608
            *(self.workspace_id, caller_id, self._ended(), self._wall()),
        )
        return None if row is None or row[0] is None else float(row[0])

    def has_other_due(self, message: StoredMessage) -> bool:
        """Whether *message*'s caller has another message that is due."""
        row = self._one(
            f"SELECT 1 FROM message WHERE workspace_id=? AND caller_id IS ? AND {self._open} AND row_id<>?"  # noqa: S608
            " AND coalesce(not_before, 0) <= ? AND row_id NOT IN (SELECT value FROM json_each(?)) LIMIT 1",
            *(self.workspace_id, message.caller_id, message.row_id, self._wall(), self._ended()),
        )
        return row is not None

    def exchanges(self, since: int, most: int) -> Iterator[tuple[StoredMessage, int]]:
        """Messages of peers whose reply was accepted after *since* (platform time in us), and when; oldest first.

        The newest *most* of each peer. They are loaded one by one and without their texts, which together can be as
        large as the journal.
        """
        found = self._reader.execute(
            "SELECT arrival, accepted FROM (SELECT arrival, accepted, row_number() OVER (PARTITION BY caller_id"
            " ORDER BY accepted DESC, arrival DESC) AS number FROM message WHERE workspace_id=? AND time > ?"
            " AND kind='message' AND caller_id IS NOT NULL AND answer IS NOT NULL AND accepted > ?)"
            " WHERE number <= ? ORDER BY accepted, arrival",
            (self.workspace_id, since, since, most),
        ).fetchall()
        for arrival, accepted in found:
            row = self._one(f"SELECT {_WITHOUT_TEXT} FROM message WHERE arrival=?", arrival)  # noqa: S608
            yield load_message(row), accepted

    def has_claims(self) -> bool:
        """Whether a reader of an inbox has a claim."""
        sql = "SELECT 1 FROM message INDEXED BY message_held WHERE workspace_id=? AND state='held' LIMIT 1"
        return self._one(sql, self.workspace_id) is not None

    def waiting(self) -> int:
        """The number of open messages."""
        row = self._one(
            f"SELECT count(*) FROM message WHERE workspace_id=? AND {self._open}"  # noqa: S608
            " AND row_id NOT IN (SELECT value FROM json_each(?))",
            *(self.workspace_id, self._ended()),
        )
        return int(row[0]) if row else 0

    def all_deferred_for(self, seconds: float) -> bool:
        """Whether there are open messages, and every conversation is deferred for more than *seconds*."""
        callers = self.callers()
        heads = f"SELECT 1 FROM ({self._heads}) WHERE coalesce(not_before, 0) <= ? LIMIT 1"  # noqa: S608
        due = self._wall() + seconds
        return bool(callers) and not any(
            self._one(heads, self.workspace_id, caller, self._ended(), due) for caller in callers
        )

    def _ended(self) -> str:
        return json.dumps(list(self._ending))

    def noticed_since(self, conversation: Conversation, since: int) -> bool:
        """Whether *conversation* got a notice after *since* (platform time in us), also one deleted by a replay."""
        row = self._one(
            "SELECT 1 FROM message WHERE workspace_id=? AND caller_id IS ? AND context_id IS ? AND answered_at > ?"
            " AND (substr(answer, 1, ?) = ? OR (answer IS NULL AND replay > 0)) LIMIT 1",
            *(
                self.workspace_id,
                conversation.caller_id,
                conversation.context_id,
                since,
                len(NOTICE_BEGINS),
                NOTICE_BEGINS,
            ),
        )
        return row is not None

    def _one(self, sql: str, *values: object) -> Any:
        return self._reader.execute(sql, values).fetchone()
