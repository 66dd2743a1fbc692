"""The journal of all messages: one SQLite file with one writer."""

import asyncio
import logging
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from molecule_connect.errors import StateLostError
from molecule_connect.executors import PatientExecutor
from molecule_connect.files import identity, is_at, make_folder
from molecule_connect.journal import first_start, incoming, integrity, legacy_files, quotas, schema, transitions
from molecule_connect.journal.conversations import ConversationReads
from molecule_connect.journal.first_start import Look
from molecule_connect.journal.incoming import Stored
from molecule_connect.journal.models import State, StoredMessage, StoredReply, plain, plain_or_none
from molecule_connect.journal.schema import open_file, open_reader
from molecule_connect.journal.writer import Operation, Writer
from molecule_connect.models import FeedPosition, Inbound, Kind

T = TypeVar("T")

FILE_NAME = "journal.sqlite3"
# Seconds between tries to commit that a reply was sent, while the journal cannot be written.
RETRY = 5.0
# How long the texts of a finished message are kept (seconds), and its row (microseconds).
BODY_AGE = 24 * 3600.0
ROW_AGE = 7 * 24 * 3600 * 1_000_000
_log = logging.getLogger(__name__)


class Journal:
    """The file with the messages of all workspaces. ``of`` returns one workspace's part."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        executor: Executor,
        reader: sqlite3.Connection,
        wall: Callable[[], float],
    ) -> None:
        self.path = path
        self.writer = Writer(connection, path, executor, guard=self._check_place)
        self.reader = reader
        self.wall = wall
        self._connection, self._executor = connection, executor
        self._identity = identity(path.lstat())
        self._watchers: dict[object, tuple[Callable[[], None], Callable[[StateLostError], None]]] = {}
        self._lost: StateLostError | None = None
        self._writing_back: asyncio.Future[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path,
        *,
        wall: Callable[[], float],
        executor: Executor | None = None,
        opener: Callable[[Path], sqlite3.Connection] = open_file,
        notice: Callable[[str, str], None] = lambda text, hint: None,
    ) -> "AsyncIterator[Journal]":
        """Open the journal in *folder*, which must exist. Closing commits waiting operations.

        After an unclean stop, or beside another process, the file is checked for damage first.

        Args:
            wall: Returns seconds since 1970.
            executor: Runs commits; None for a thread of its own.
            opener: Opens the file for writing.
            notice: Called with a text and a hint if changes were lost, so that messages may be answered again.

        Raises:
            JournalError: The file can't be used, or is damaged.
            ConfigError: No thread can be started.
        """
        path = folder / FILE_NAME
        thread = executor or PatientExecutor(1, thread_name_prefix="journal")
        committed = integrity.committed_frames(integrity.wal_of(path))
        connection = opener(path)
        try:
            if committed:
                await asyncio.get_running_loop().run_in_executor(thread, integrity.check, path)
                if lost := integrity.lost_frames(connection, path, committed):
                    notice(*_lost_words(path, lost))
            reader = open_reader(path)
        except BaseException:
            connection.close()
            raise
        journal = cls(path, connection, thread, reader, wall)
        journal.writer.start()
        try:
            yield journal
        finally:
            try:
                await journal.writer.stop()
                if journal._writing_back is not None:
                    await journal._writing_back
            finally:
                reader.close()
                connection.close()
                if executor is None:
                    thread.shutdown(wait=False)

    def of(self, workspace_id: str, *, inbox: bool = False, quota: int = quotas.UNLIMITED) -> "WorkspaceJournal":
        """The part that belongs to one workspace.

        Args:
            inbox: Messages belong to readers, and no backend answers.
            quota: Bytes that the whole file may take.
        """
        return WorkspaceJournal(self, workspace_id, inbox=inbox, quota=quota)

    def used(self) -> int:
        """The used bytes of the file."""
        return quotas.used(self.reader)

    async def make_room(self, quota: int) -> "Counter[quotas.Caller]":
        """Delete texts of finished messages of all workspaces. Returns the number of deleted texts of each caller."""
        return await self.writer.put(lambda db: quotas.make_room(db, quota), large=True)

    @contextmanager
    def watched(
        self, lost: Callable[[StateLostError], None], *, check: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Call *lost* when the journal is removed or replaced, or when *check* raises StateLostError.

        Both are checked by each ``data_version``, the journal also before each commit.
        """
        key = object()
        self._watchers[key] = check, lost
        try:
            yield
        finally:
            del self._watchers[key]

    async def data_version(self) -> int:
        """A number that changes when another process writes to the file.

        Raises:
            StateLostError: The file was removed or replaced.
        """
        version = await self.writer.put(lambda db: int(db.execute("PRAGMA data_version").fetchone()[0]))
        for check, lost in list(self._watchers.values()):
            try:
                check()
            except StateLostError as exc:
                lost(exc)
        return version

    def _check_place(self) -> None:
        """Raises StateLostError when the journal was removed or replaced: no other process sees later commits."""
        if self._lost is None and not is_at(self.path, self._identity):
            self._lost = StateLostError(
                f"the journal {self.path} was removed or replaced while this process served with it"
            )
            for _, lost in list(self._watchers.values()):
                lost(self._lost)
            self._writing_back = asyncio.get_running_loop().run_in_executor(
                self._executor, _write_back, self._connection, self.path
            )
        if self._lost is not None:
            raise self._lost


def _write_back(connection: sqlite3.Connection, path: Path) -> None:
    """Restore a removed journal, unless there is another one, so that the next start doesn't answer again."""
    try:
        make_folder(path.parent)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
            copy = Path(scratch) / path.name
            with closing(sqlite3.connect(copy)) as target:
                connection.backup(target)
            copy.chmod(0o600)
            # A hard link never replaces another file.
            path.hardlink_to(copy)
    except FileExistsError:
        _log.warning("another journal is at %s by now; it was left alone", path)
    except (OSError, sqlite3.Error) as exc:
        _log.error("what the journal held could not be written to %s again: %s", path, exc)
    else:
        _log.warning("what the journal held was written to %s again", path)


def _lost_words(path: Path, frames: int) -> tuple[str, str]:
    return (
        f"the write-ahead log of {path} is damaged: its last {frames} pages of changes were left out",
        "messages that were answered shortly before the last stop may be answered again; check the disk",
    )


class WorkspaceJournal(ConversationReads):
    """One workspace's messages. Reads are immediate, writes resolve when they are committed.

    Every transition is a compare-and-set: it returns False if the message is no longer in the state that the
    transition starts from.
    """

    def __init__(self, journal: Journal, workspace_id: str, *, inbox: bool, quota: int) -> None:
        super().__init__(journal.reader, journal.wall, workspace_id, inbox=inbox)
        self._quota = quota
        self._trimmed: Counter[str | None] = Counter()
        self.is_inbox = inbox
        self._journal = journal
        self._settled = asyncio.Event()

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self._journal.writer.closed

    # Reading

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
        await self._put(lambda db: db.execute("REPLACE INTO workspace VALUES (?,?,?,?,?,?)", values))

    async def close_answered(self, older: Sequence[Inbound]) -> Look:
        """Close messages that were answered before this journal existed; see ``first_start.close_answered``."""
        wall = self._wall()
        return await self._put(lambda db: first_start.close_answered(db, self.workspace_id, older, wall))

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
        items, wall = tuple(items), self._journal.wall()
        if not items:
            return []
        where = (self.workspace_id, items, now, wall)

        def run(db: sqlite3.Connection) -> list[Stored]:
            stored = incoming.add(db, *where, inbox=self.is_inbox, quota=self._quota)
            self._trim(db, {one.item.caller_id for one in stored if one.state is State.DEAD})
            return stored

        return await self._put(run, large=True)

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

    # Transitions

    async def recover(self) -> int:
        """Undo unfinished work of an earlier process. Returns the number of runs that were cut short."""
        wall = self._journal.wall()

        def run(db: sqlite3.Connection) -> int:
            schema.adopt(db, self.workspace_id)
            legacy_files.adopt(db, self.workspace_id)
            return transitions.recover(db, self.workspace_id, wall, inbox=self.is_inbox)

        return await self._put(run)

    def bound_waits(self) -> "asyncio.Future[None]":
        """Shorten waits after our clock was set back."""
        return self._put(lambda db: transitions.bound_waits(db, self.workspace_id, self._journal.wall()))

    def release_claims(self) -> "asyncio.Future[None]":
        """held -> received, for all."""
        return self._put(lambda db: transitions.release_claims(db, self.workspace_id, self._journal.wall()))

    async def requeue_running(self) -> int:
        """running -> received, for all, at the end of a process: no attempt and no crash. Returns the number."""
        return await self._put(lambda db: transitions.requeue_running(db, self.workspace_id, self._journal.wall()))

    async def start(self, message: StoredMessage) -> bool:
        """received -> running. The attempt is committed before the backend sees the message."""
        return await self._move(
            message, State.RECEIVED, state=State.RUNNING.value, attempt=message.attempt + 1, not_before=None
        )

    async def requeue(
        self,
        message: StoredMessage,
        *,
        counts: bool,
        failed_at: float | None = None,
        not_before: float | None = None,
        error: str = "",
    ) -> bool:
        """running -> received: the attempt failed or was cut short.

        Args:
            counts: Whether it was one of the message's attempts.
            failed_at: When it failed, in seconds since 1970 by the platform's clock; None if it didn't.
        """
        return await self._move_running(
            message,
            State.RECEIVED,
            attempt=message.attempt + (1 if counts else 0),
            not_before=not_before,
            error=plain(error),
            first_failed=failed_at if message.first_failed is None else message.first_failed,
        )

    async def store_reply(
        self, message: StoredMessage, reply: StoredReply, *, at: int, send_print: str | None, ran: bool = True
    ) -> bool:
        """running (or received, for a replayed message: not *ran*) -> answered, on disk when this returns.

        Args:
            at: Microseconds by the platform's clock.
            send_print: The fingerprint of the reply's echo; None for a peer.
        """
        return await self._move(
            *(message, State.RUNNING if ran else State.RECEIVED),
            expected=message.attempt + (1 if ran else 0),
            reply=reply,
            durable=True,
            state=State.ANSWERED.value,
            answered_at=at,
            send_print=send_print,
            not_before=None,
            sends=0,
            in_doubt=0,
            accepted=0,
            echo=None,
            progress=None,
        )

    async def finish_without_reply(self, message: StoredMessage) -> bool:
        """running -> done."""
        return await self._move_running(message, State.DONE)

    async def prepare_send(self, message: StoredMessage, *, at: int, send_print: str | None) -> bool:
        """answered -> answered, before the first send of a reader's reply; on disk when this returns."""
        return await self._move(message, State.ANSWERED, durable=True, answered_at=at, send_print=send_print)

    async def replace_reply(self, message: StoredMessage, reply: StoredReply, *, send_print: str | None) -> bool:
        """answered -> answered, with another reply; on disk when this returns."""
        return await self._move(message, State.ANSWERED, reply=reply, durable=True, send_print=send_print)

    async def record_failed_send(self, message: StoredMessage, *, not_before: float | None, in_doubt: int) -> bool:
        """answered -> answered, to be sent again. *in_doubt*: the number of sends that may have arrived."""
        return await self._move(
            message, State.ANSWERED, sends=message.sends + 1, not_before=not_before, in_doubt=in_doubt
        )

    def retry_sends_now(self) -> "asyncio.Future[None]":
        """Make all deferred replies due now."""
        return self._put(lambda db: transitions.retry_sends_now(db, self.workspace_id, self._journal.wall()))

    def retry_one_send_now(self, *, most_in_doubt: int) -> "asyncio.Future[None]":
        """Make one deferred reply due now."""
        return self._put(
            lambda db: transitions.retry_one_send_now(
                db, self.workspace_id, self._journal.wall(), most_in_doubt=most_in_doubt
            )
        )

    async def mark_dead(self, message: StoredMessage, frm: State, reason: str) -> bool:
        """Any open state -> dead."""
        if frm is State.RUNNING:
            return await self._move_running(message, State.DEAD, reason=plain(reason), not_before=None)
        return await self._move(message, frm, state=State.DEAD.value, reason=plain(reason), not_before=None)

    async def mark_dead_by_id(self, row_id: str, caller_id: str | None, reason: str, error: str) -> bool:
        """Any open state -> dead, after an unexpected error with the traceback *error*."""
        wall = self._journal.wall()

        def run(db: sqlite3.Connection) -> bool:
            is_dead = transitions.mark_dead_by_id(db, self.workspace_id, row_id, reason, error, wall)
            if is_dead:
                self._trim(db, [caller_id])
            return is_dead

        return await self._put(run)

    async def defer(self, message: StoredMessage, *, not_before: float, error: str) -> bool:
        """received -> received: its conversation waits until *not_before*."""
        return await self._move(message, State.RECEIVED, not_before=not_before, error=plain(error))

    async def settle(self, message: StoredMessage) -> bool:
        """Whether an echo shows that *message*'s reply arrived."""
        return await self._put(lambda db: transitions.settle(db, message))

    async def replay(self, row_id: str) -> bool:
        """dead -> received."""
        return await self._put(lambda db: transitions.replay(db, self.workspace_id, row_id, self._journal.wall()))

    def add_spend(self, caller_id: str | None, cost_usd: float) -> None:
        """Add to the day's cost and to the caller's share of it; not awaited."""
        day = self._day()

        def run(db: sqlite3.Connection) -> None:
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

        self._put(run)

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
        return time.strftime("%Y-%m-%d", time.gmtime(self._journal.wall()))

    def progress(self, message: StoredMessage, text: str) -> None:
        """Store the progress of a running message; not awaited."""
        self._put(
            lambda db: db.execute(
                "UPDATE message SET progress=? WHERE workspace_id=? AND row_id=? AND state='running'",
                (plain(text), message.workspace_id, message.row_id),
            )
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
        outcome = self._move(
            *(message, State.ANSWERED),
            state=(reply.then if reply else State.DONE).value,
            reason=(plain(reply.reason) if reply else "") or None,
            accepted=at,
            in_doubt=0,
            not_before=None,
        )
        outcome.add_done_callback(lambda outcome: self._sent_committed(outcome, message, at))

    def _sent_committed(self, outcome: "asyncio.Future[bool]", message: StoredMessage, at: int) -> None:
        if outcome.cancelled() or outcome.exception() is None:
            del self._ending[message.row_id]
        elif not self._journal.writer.closed:
            asyncio.get_running_loop().call_later(RETRY, self._commit_sent, message, at)
            return
        if not self._ending or self._journal.writer.closed:
            self._settled.set()

    async def sends_committed(self) -> None:
        """Wait until every ``mark_sent`` is committed."""
        if self._ending:
            await self._settled.wait()

    async def prune(self, now: int) -> None:
        """Delete texts of messages done a day ago, and rows older than the watermark and a week (*now*: us)."""
        position, wall = self.position(), self._journal.wall()
        before = min(position.watermark_time or 0, now - ROW_AGE)

        def run(db: sqlite3.Connection) -> None:
            over = "workspace_id=? AND state IN ('done', 'dead')"
            db.execute(
                f"UPDATE message SET {quotas.NO_TEXT} WHERE {over} AND state='done'"  # noqa: S608
                " AND raw IS NOT NULL AND changed < ?",
                (self.workspace_id, wall - BODY_AGE),
            )
            db.execute(f"DELETE FROM message WHERE {over} AND state='done' AND time < ?", (self.workspace_id, before))  # noqa: S608

        await self._put(run)

    def trimmed(self) -> "Counter[str | None]":
        """The number of dead letters of each caller that lost their text to newer ones since the last call."""
        trimmed, self._trimmed = self._trimmed, Counter()
        return trimmed

    def _trim(self, db: sqlite3.Connection, callers: Iterable[str | None]) -> None:
        for caller_id in callers:
            caller = quotas.Caller(self.workspace_id, plain_or_none(caller_id))
            if count := quotas.trim_dead(db, caller, self._journal.wall()):
                self._trimmed[caller_id] += count

    def _move_running(self, message: StoredMessage, to: State, **changes: Any) -> "asyncio.Future[bool]":
        """Move *message*, as it was before ``start``."""
        expected = message.attempt + 1
        return self._move(message, State.RUNNING, expected=expected, state=to.value, progress=None, **changes)

    def _move(
        self,
        message: StoredMessage,
        frm: State,
        *,
        expected: int | None = None,
        reply: StoredReply | None = None,
        durable: bool = False,
        **changes: Any,
    ) -> "asyncio.Future[bool]":
        def run(db: sqlite3.Connection) -> bool:
            has_moved = transitions.move(
                db, message, frm, self._journal.wall(), expected=expected, reply=reply, **changes
            )
            if has_moved and changes.get("state") == State.DEAD:
                self._trim(db, [message.caller_id])
            return has_moved

        return self._put(run, durable=durable)

    def _put(self, run: Operation[T], *, durable: bool = False, large: bool = False) -> "asyncio.Future[T]":
        return self._journal.writer.put(run, durable=durable, large=large)
