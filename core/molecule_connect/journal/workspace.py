"""One workspace's part of the journal: its messages, its reading position and its costs."""

import asyncio
import datetime
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from molecule_connect.errors import ConfigError
from molecule_connect.flag import Flag
from molecule_connect.journal import (
    copies,
    first_start,
    incoming,
    legacy_files,
    outbox,
    peer_names,
    quotas,
    schema,
    totals,
    transitions,
)
from molecule_connect.journal.first_start import Look
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.models import (
    COLUMNS,
    NOTICE_BEGINS,
    Conversation,
    State,
    StoredMessage,
    StoredReply,
    load_message,
    plain,
    plain_or_none,
    with_changes,
)
from molecule_connect.journal.writer import Writer
from molecule_connect.models import FeedPosition, Inbound, Kind

T = TypeVar("T")

# Seconds between attempts to commit that a reply was sent, while the journal cannot be written.
RETRY = 5.0
# How long the texts of a finished message are kept (seconds), and its row (microseconds).
BODY_AGE = 24 * 3600.0
ROW_AGE = 7 * 24 * 3600 * 1_000_000
# Messages of a conversation that are read at once, up to the first with a longer request (in characters).
READ_AHEAD, SMALL = 8, 8192
# Columns that a StoredMessage doesn't have.
_NOT_LOADED = frozenset({"send_print", "echo", "started"})
# Messages that the dispatcher works on. In an inbox, messages belong to its readers, and the dispatcher only sends
# replies, including those of replayed messages.
_OPEN = "state IN ('received', 'running', 'answered')"
_WITHOUT_TEXT = COLUMNS.replace(" parts,", " NULL,").replace(" raw,", " NULL,")
_INBOX_OPEN = "(state='answered' OR (state='received' AND answer IS NOT NULL))"


# The oldest open message of each conversation of one caller: bare columns are those of the row with min().
_HEADS, _INBOX_HEADS = (
    "SELECT context_id, state, not_before, min(place) AS place FROM message WHERE workspace_id=?"  # noqa: S608
    f" AND caller_id IS ? AND {is_open} AND row_id NOT IN (SELECT value FROM json_each(?))"
    " GROUP BY context_id"
    for is_open in (_OPEN, _INBOX_OPEN)
)


class WorkspaceJournal:
    """One workspace's messages. Reads are immediate, writes resolve when they are committed.

    Every transition is a compare-and-set: it returns the message as it is then, or None if the message is
    no longer in the state that the transition starts from.

    Args:
        wall: Returns seconds since 1970.
        inbox: Messages belong to readers, and conversations only send replies.
        quota: Bytes that the whole file may take.
    """

    def __init__(
        self,
        writer: Writer,
        reader: sqlite3.Connection,
        wall: Callable[[], float],
        workspace_id: str,
        *,
        inbox: bool,
        quota: int,
    ) -> None:
        self.workspace_id = workspace_id
        self.is_inbox = inbox
        self._writer = writer
        self._reader = reader
        self._wall = wall
        self._quota = quota
        self._trimmed: Counter[str | None] = Counter()
        # Sent replies whose transition is not committed yet: the reader still sees their messages as open.
        self._ending: dict[str, Conversation] = {}
        self._settled = Flag()
        self._open = _INBOX_OPEN if inbox else _OPEN
        self._heads = _INBOX_HEADS if inbox else _HEADS

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._writer.closed

    # Reading the feed

    def position(self) -> FeedPosition:
        """The reading position."""
        row = self._one("SELECT * FROM workspace WHERE workspace_id=?", self.workspace_id)
        if row is None:
            return FeedPosition()
        return FeedPosition(
            watermark=row[1], watermark_time=row[2], floor=row[3], last_read=row[4], ignores_since=bool(row[5])
        )

    async def set_position(self, position: FeedPosition) -> None:
        """Store the reading position."""
        values = (
            *(self.workspace_id, position.watermark, position.watermark_time, position.floor),
            *(position.last_read, int(position.ignores_since)),
        )
        await self._writer.put(lambda db: db.execute("REPLACE INTO workspace VALUES (?,?,?,?,?,?)", values), lazy=True)

    async def close_answered(self, older: Sequence[Inbound]) -> Look:
        """Close messages that were answered before this journal existed; see ``first_start.close_answered``."""
        wall = self._wall()
        return await self._writer.put(lambda db: first_start.close_answered(db, self.workspace_id, older, wall))

    def is_known(self, row_id: str) -> bool:
        """Whether the row is stored."""
        return (
            self._one("SELECT 1 FROM message WHERE workspace_id=? AND row_id=?", self.workspace_id, row_id) is not None
        )

    def is_awaited(self, item: Inbound) -> bool:
        """Whether a backend, or a reader of the inbox, handles rows of this kind."""
        return item.kind is Kind.MESSAGE or (self.is_inbox and item.kind in (Kind.ANSWER, Kind.RESULT))

    def rows_after(self, time: int, most: int) -> tuple[int, int]:
        """The number of rows newer than *time*, counted up to *most*, and their size in characters."""
        row = self._one(
            "SELECT count(*), coalesce(sum(size), 0) FROM (SELECT size FROM message"
            " WHERE workspace_id=? AND time > ? LIMIT ?)",
            *(self.workspace_id, time, most),
        )
        return (int(row[0]), int(row[1])) if row else (0, 0)

    async def add(self, items: Iterable[Inbound], *, now: int) -> list[Stored]:
        """Store the rows that are new, in one commit. *now* (microseconds) replaces a missing time."""
        items, wall = tuple(items), self._wall()
        if not items:
            return []
        where = (self.workspace_id, items, now, wall)

        def run(db: sqlite3.Connection) -> list[Stored]:
            stored = incoming.add(db, *where, inbox=self.is_inbox, quota=self._quota)
            self._trim(db, {one.item.caller_id for one in stored if one.state is State.DEAD})
            return stored

        return await self._writer.put(run, lazy=True, large=True)

    def cursor(self) -> str | None:
        """The newest row before which every message is finished."""
        row = self._one(
            "SELECT time, seq FROM message WHERE workspace_id=? AND state NOT IN ('done', 'dead')"
            " ORDER BY time, seq, arrival LIMIT 1",
            self.workspace_id,
        )
        # Not by arrival: a reader that starts after a row never sees other rows of the same time.
        first_open = row or (1 << 62, 0)
        newest = self._one(
            "SELECT row_id FROM message WHERE workspace_id=? AND (time, seq) < (?, ?)"
            " ORDER BY time DESC, seq DESC, arrival DESC LIMIT 1",
            *(self.workspace_id, *first_open),
        )
        return newest[0] if newest else None

    # Reading messages

    def next(self, conversation: Conversation) -> StoredMessage | None:
        """The oldest open message of *conversation*."""
        row = next(self._open_rows(conversation, COLUMNS, 1), None)
        return None if row is None else load_message(row)

    def upcoming(self, conversation: Conversation) -> list[StoredMessage]:
        """``next``, and messages after it that have no reply and were not deferred, while they are small."""
        found: list[StoredMessage] = []
        for row in self._open_rows(conversation, COLUMNS, READ_AHEAD):
            try:
                message = load_message(row)
            except Exception:  # any content; it is not the fault of the messages before it
                if found:
                    break
                raise
            if found and (message.state is not State.RECEIVED or message.reply or message.not_before):
                break
            found.append(message)
            if len(message.raw or "") > SMALL:
                break
        return found

    def next_id(self, conversation: Conversation) -> str | None:
        """The row id of ``next``, also if that message cannot be loaded."""
        row = next(self._open_rows(conversation, "workspace_id, row_id", 1), None)
        return None if row is None else str(row[1])

    def was_sent(self, row_id: str) -> bool:
        """Whether the reply was sent a moment ago, and this is not committed yet."""
        return row_id in self._ending

    def _open_rows(self, conversation: Conversation, columns: str, most: int) -> Iterator[tuple[Any, ...]]:
        pending = [row_id for row_id, its_conversation in self._ending.items() if its_conversation == conversation]
        rows = self._reader.execute(
            f"SELECT {columns} FROM message WHERE workspace_id=? AND caller_id IS ? AND context_id IS ?"  # noqa: S608
            f" AND {self._open} ORDER BY place, seq, arrival LIMIT ?",
            (self.workspace_id, conversation.caller_id, conversation.context_id, most + len(pending)),
        )
        return (row for row in rows if row[1] not in pending)

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

    # Transitions

    async def recover(self) -> int:
        """Undo unfinished work of an earlier process. Returns the number of runs that were cut short.

        Raises:
            ConfigError: The workspace was exported to another machine, or is shared with others.
        """
        wall = self._wall()

        def run(db: sqlite3.Connection) -> int:
            if export := copies.export_of(db, self.workspace_id):
                raise _exported(self.workspace_id, export)
            if self._writer.shipper is None and (known := outbox.shared(db, self.workspace_id)):
                raise _shared(self.workspace_id, known)
            schema.adopt(db, self.workspace_id)
            legacy_files.adopt(db, self.workspace_id)
            return transitions.recover(db, self.workspace_id, wall, inbox=self.is_inbox)

        return await self._writer.put(run)

    def bound_waits(self) -> "asyncio.Future[None]":
        """Shorten waits after our clock was set back."""
        return self._writer.put(lambda db: transitions.bound_waits(db, self.workspace_id, self._wall()))

    def release_claims(self) -> "asyncio.Future[None]":
        """held -> received, for all."""
        return self._writer.put(lambda db: transitions.release_claims(db, self.workspace_id, self._wall()))

    async def requeue_running(self) -> int:
        """running -> received, for all, at the end of a process: no attempt and no crash. Returns the number."""
        return await self._writer.put(lambda db: transitions.requeue_running(db, self.workspace_id, self._wall()))

    async def start(self, message: StoredMessage) -> StoredMessage | None:
        """received -> running. The attempt is committed before the backend sees the message."""
        attempt = message.attempt + 1
        changes: dict[str, Any] = {"attempt": attempt, "not_before": None, "started": self._wall()}
        return await self._move(message, State.RECEIVED, State.RUNNING, lazy=True, **changes)

    async def requeue(
        self,
        message: StoredMessage,
        *,
        counts: bool,
        failed_at: float | None = None,
        not_before: float | None = None,
        error: str = "",
    ) -> StoredMessage | None:
        """running -> received: the attempt failed or was cut short.

        Args:
            counts: Whether it was one of the message's attempts.
            failed_at: When it failed, in seconds since 1970 by the platform's clock; None if it didn't.
            error: Why; empty if the backend wasn't called.
        """
        return await self._move(
            *(message, State.RUNNING, State.RECEIVED),
            ended=error or None,
            attempt=message.attempt if counts else message.attempt - 1,
            not_before=not_before,
            error=plain(error),
            first_failed=failed_at if message.first_failed is None else message.first_failed,
            progress=None,
        )

    async def store_reply(
        self, message: StoredMessage, reply: StoredReply, *, at: int, send_print: str | None
    ) -> StoredMessage | None:
        """running -> answered, on disk when this returns.

        Args:
            at: Microseconds by the platform's clock.
            send_print: The fingerprint of the reply's echo; None for a peer.
        """
        return await self._store_reply(message, State.RUNNING, reply, at=at, send_print=send_print)

    async def reuse_reply(self, message: StoredMessage, *, at: int, send_print: str | None) -> StoredMessage | None:
        """received -> answered, for a replayed message whose reply was kept; on disk when this returns."""
        return await self._store_reply(message, State.RECEIVED, message.reply, at=at, send_print=send_print)

    def _store_reply(
        self, message: StoredMessage, frm: State, reply: StoredReply | None, *, at: int, send_print: str | None
    ) -> "asyncio.Future[StoredMessage | None]":
        return self._move(
            *(message, frm, State.ANSWERED),
            reply=reply,
            ended=(reply.reason if reply else "") if frm is State.RUNNING else None,
            durable=True,
            answered_at=at,
            send_print=send_print,
            not_before=None,
            sends=0,
            in_doubt=0,
            accepted=0,
            echo=None,
            progress=None,
        )

    async def finish_without_reply(self, message: StoredMessage) -> StoredMessage | None:
        """running -> done."""
        return await self._move(message, State.RUNNING, State.DONE, ended="", progress=None)

    async def prepare_send(self, message: StoredMessage, *, at: int, send_print: str | None) -> StoredMessage | None:
        """answered -> answered, before the first send of a reader's reply; on disk when this returns."""
        return await self._move(
            message, State.ANSWERED, State.ANSWERED, durable=True, answered_at=at, send_print=send_print
        )

    async def replace_reply(
        self, message: StoredMessage, reply: StoredReply, *, send_print: str | None
    ) -> StoredMessage | None:
        """answered -> answered, with another reply; on disk when this returns."""
        return await self._move(
            message, State.ANSWERED, State.ANSWERED, reply=reply, durable=True, send_print=send_print
        )

    async def record_failed_send(
        self, message: StoredMessage, *, not_before: float | None, in_doubt: int
    ) -> StoredMessage | None:
        """answered -> answered, to be sent again. *in_doubt*: the number of sends that may have arrived."""
        return await self._move(
            *(message, State.ANSWERED, State.ANSWERED),
            sends=message.sends + 1,
            not_before=not_before,
            in_doubt=in_doubt,
        )

    def retry_sends_now(self) -> "asyncio.Future[None]":
        """Make all deferred replies due now."""
        return self._writer.put(lambda db: transitions.retry_sends_now(db, self.workspace_id, self._wall()))

    def retry_one_send_now(self, *, most_in_doubt: int) -> "asyncio.Future[None]":
        """Make one deferred reply due now."""
        return self._writer.put(
            lambda db: transitions.retry_one_send_now(db, self.workspace_id, self._wall(), most_in_doubt=most_in_doubt)
        )

    async def mark_dead(self, message: StoredMessage, reason: str) -> StoredMessage | None:
        """Any open state -> dead."""
        changes: dict[str, Any] = {"reason": plain(reason), "not_before": None, "progress": None}
        ended = reason if message.state is State.RUNNING else None
        return await self._move(message, message.state, State.DEAD, ended=ended, **changes)

    async def mark_dead_by_id(self, row_id: str, caller_id: str | None, reason: str, error: str) -> bool:
        """Any open state -> dead, after an unexpected error with the traceback *error*."""
        wall = self._wall()

        def run(db: sqlite3.Connection) -> bool:
            is_dead = transitions.mark_dead_by_id(db, self.workspace_id, row_id, reason, error, wall)
            if is_dead:
                self._trim(db, [caller_id])
            return is_dead

        return await self._writer.put(run)

    async def defer(self, message: StoredMessage, *, not_before: float, error: str) -> StoredMessage | None:
        """received -> received: its conversation waits until *not_before*."""
        received = State.RECEIVED
        return await self._move(message, received, received, not_before=not_before, error=plain(error))

    async def settle(self, message: StoredMessage) -> bool:
        """Whether an echo shows that *message*'s reply arrived."""
        return await self._writer.put(lambda db: transitions.settle(db, message))

    async def replay(self, row_id: str) -> bool:
        """dead -> received."""
        return await self._writer.put(lambda db: transitions.replay(db, self.workspace_id, row_id, self._wall()))

    def add_spend(self, caller_id: str | None, cost_usd: float, *, row_id: str | None = None) -> None:
        """Add to the day's cost, to the caller's share of it, and to the message *row_id*; not awaited."""
        day, wall = self._day(), self._wall()

        def run(db: sqlite3.Connection) -> None:
            totals.add_cost(db, self.workspace_id, cost_usd, wall)
            db.execute(
                "INSERT INTO spend VALUES (?,?,?) ON CONFLICT DO UPDATE SET cost_usd=cost_usd+excluded.cost_usd",
                (self.workspace_id, day, cost_usd),
            )
            if caller_id is not None:
                db.execute(
                    "INSERT INTO peer_spend VALUES (?,?,?,?)"
                    " ON CONFLICT DO UPDATE SET cost_usd=cost_usd+excluded.cost_usd",
                    (self.workspace_id, day, plain(caller_id), cost_usd),
                )
            if row_id is not None:
                db.execute(
                    "UPDATE message SET cost_usd=coalesce(cost_usd, 0)+? WHERE workspace_id=? AND row_id=?",
                    (cost_usd, self.workspace_id, row_id),
                )

        self._writer.put(run, lazy=True)

    def spend_by_caller(self) -> dict[str | None, float]:
        """US dollars spent today (UTC) for each peer, and under None for people, as backends reported it."""
        sql = "SELECT caller_id, cost_usd FROM peer_spend WHERE workspace_id=? AND day=?"
        rows = self._reader.execute(sql, (self.workspace_id, self._day()))
        spent: dict[str | None, float] = {row[0]: float(row[1]) for row in rows}
        spent[None] = max(0.0, self._spend(self._day()) - sum(spent.values()))
        return spent

    def recent_costs(self, most: int) -> list[tuple[str | None, float]]:
        """Callers and costs in US dollars of the newest *most* replies, oldest first."""
        rows = self._reader.execute(
            "SELECT caller_id, CASE WHEN json_valid(answer) THEN json_extract(answer, '$.usage.cost_usd') END"
            " FROM message WHERE workspace_id=? AND kind='message' AND answer IS NOT NULL"
            " ORDER BY arrival DESC LIMIT ?",
            (self.workspace_id, most),
        ).fetchall()
        return [(caller_id, float(cost or 0)) for caller_id, cost in reversed(rows)]

    def month_spend(self) -> float:
        """US dollars spent this month (UTC), as backends reported it."""
        return self._spend(f"{self._day()[:7]}-%")

    def _spend(self, days: str) -> float:
        sql = "SELECT coalesce(sum(cost_usd), 0) FROM spend WHERE workspace_id=? AND day LIKE ?"
        return float(self._one(sql, self.workspace_id, days)[0])

    def _day(self) -> str:
        return time.strftime("%Y-%m-%d", time.gmtime(self._wall()))

    def peer_names(self) -> dict[str, str]:
        """The names of peers by id, as the registry gave them: unchecked text."""
        return peer_names.load(self._reader, self.workspace_id)

    def add_peer_names(self, names: Mapping[str, str]) -> None:
        """Keep names of peers, by id; not awaited."""
        kept, wall = dict(names), self._wall()
        self._writer.put(lambda db: peer_names.add(db, self.workspace_id, kept, wall), lazy=True)

    def progress(self, message: StoredMessage, text: str) -> None:
        """Store the progress of a running message; not awaited."""
        self._writer.put(
            lambda db: db.execute(
                "UPDATE message SET progress=? WHERE workspace_id=? AND row_id=? AND state='running'",
                (plain(text), message.workspace_id, message.row_id),
            ),
            lazy=True,
        )

    def mark_sent(self, message: StoredMessage, *, at: int) -> None:
        """answered -> done, or dead after a notice. The platform accepted the reply at *at* (us, its clock).

        Not awaited: ``next`` skips the message at once. Tried again every 5 seconds while the journal cannot be
        written.
        """
        self._ending[message.row_id] = message.conversation
        self._settled.clear()
        self._commit_sent(message, at)

    def _commit_sent(self, message: StoredMessage, at: int) -> None:
        reply = message.reply
        to = reply.then if reply else State.DONE
        reason = (plain(reply.reason) if reply else "") or None

        def run(db: sqlite3.Connection) -> None:
            self._change(
                *(db, message, State.ANSWERED, to, self._wall()),
                reason=reason,
                accepted=at,
                in_doubt=0,
                not_before=None,
            )

        outcome = self._writer.put(run)
        outcome.add_done_callback(lambda outcome: self._sent_committed(outcome, message, at))

    def _sent_committed(self, outcome: "asyncio.Future[None]", message: StoredMessage, at: int) -> None:
        if outcome.cancelled() or outcome.exception() is None:
            del self._ending[message.row_id]
        elif not self._writer.closed:
            asyncio.get_running_loop().call_later(RETRY, self._commit_sent, message, at)
            return
        if not self._ending or self._writer.closed:
            self._settled.set()

    async def sends_committed(self) -> None:
        """Wait until every ``mark_sent`` is committed."""
        if self._ending:
            await self._settled.wait()

    async def prune(self, now: int) -> None:
        """Delete texts of messages done a day ago, and rows older than the watermark and a week (*now*: us)."""
        position, wall = self.position(), self._wall()
        before = min(position.watermark_time or 0, now - ROW_AGE)

        def run(db: sqlite3.Connection) -> None:
            over = "workspace_id=? AND state IN ('done', 'dead')"
            db.execute(
                f"UPDATE message SET {quotas.NO_TEXT} WHERE {over} AND state='done'"  # noqa: S608
                " AND raw IS NOT NULL AND changed < ?",
                (self.workspace_id, wall - BODY_AGE),
            )
            db.execute(f"DELETE FROM message WHERE {over} AND state='done' AND time < ?", (self.workspace_id, before))  # noqa: S608

        await self._writer.put(run)

    def trimmed(self) -> "Counter[str | None]":
        """The number of dead letters of each caller that lost their text to newer ones since the last call."""
        trimmed, self._trimmed = self._trimmed, Counter()
        return trimmed

    def _trim(self, db: sqlite3.Connection, callers: Iterable[str | None]) -> None:
        for caller_id in callers:
            caller = quotas.Caller(self.workspace_id, plain_or_none(caller_id))
            if count := quotas.trim_dead(db, caller, self._wall()):
                self._trimmed[caller_id] += count

    def _move(
        self,
        message: StoredMessage,
        frm: State,
        to: State,
        *,
        reply: StoredReply | None = None,
        ended: str | None = None,
        durable: bool = False,
        lazy: bool = False,
        **changes: Any,
    ) -> "asyncio.Future[StoredMessage | None]":
        def run(db: sqlite3.Connection) -> StoredMessage | None:
            wall = self._wall()
            if not self._change(db, message, frm, to, wall, reply=reply, ended=ended, **changes):
                return None
            known = {name: value for name, value in changes.items() if name not in _NOT_LOADED}
            known |= {"state": to, "changed": wall, "reply": reply or message.reply}
            return with_changes(message, known)

        return self._writer.put(run, durable=durable, lazy=lazy)

    def _change(
        self,
        db: sqlite3.Connection,
        message: StoredMessage,
        frm: State,
        to: State,
        wall: float,
        *,
        reply: StoredReply | None = None,
        ended: str | None = None,
        **changes: Any,
    ) -> bool:
        is_moved = transitions.move(db, message, frm, wall, reply=reply, ended=ended, state=to.value, **changes)
        if is_moved and to is State.DEAD:
            self._trim(db, [message.caller_id])
        return is_moved

    def _one(self, sql: str, *values: object) -> Any:
        return self._reader.execute(sql, values).fetchone()


def _shared(workspace_id: str, known: outbox.Shared) -> ConfigError:
    return ConfigError(
        f"{workspace_id} is shared with other machines through {known.target}, which may serve it now",
        hint=f"pass --journal; to serve it from this machine alone, run 'molecule journal leave {workspace_id}' first",
    )


def _exported(workspace_id: str, export: copies.Export) -> ConfigError:
    moment = datetime.datetime.fromtimestamp(export.time, datetime.UTC).isoformat(" ", "minutes")
    return ConfigError(
        f"{workspace_id} was exported to {export.target} on {moment}, and may be served from another machine",
        hint="to serve it from here again, export it there and run 'molecule journal import ARCHIVE' here",
    )
