"""The inbox: readers, also in other processes, claim, release, finish and answer messages."""

import json
import os
import socket
import sqlite3
import uuid
from collections.abc import Iterable, Iterator, Sequence

import attrs

from molecule_connect.files import files_folder
from molecule_connect.journal import delegations, sent
from molecule_connect.journal.fairness import Place, Turns
from molecule_connect.journal.files import FILES_TIMEOUT, FileJournal, awaited
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import COLUMNS, State, StoredReply, dump_reply, load_message, plain
from molecule_connect.models import Part, TextPart

# A clock that was set back by more than this (seconds) must not extend a claim.
SET_BACK = 5.0
# Messages of one caller that are passed over while their files are fetched.
PASSED_OVER = 200

_UNFINISHED = "state NOT IN ('done', 'dead')"
_SHOWN = "kind IN ('message', 'answer', 'result') AND repeat_of IS NULL"
# A replayed message whose reply was kept waits to be sent again, not to be read.
_PENDING = f"{_UNFINISHED} AND (state='held' OR (state='received' AND answer IS NULL)) AND {_SHOWN}"
_FREE = f"{_PENDING} AND (state='received' OR held_until <= ? OR changed > ?)"
_BY_CALLER = "INDEXED BY message_waiting WHERE workspace_id=? AND caller_id IS ?"
_NEXT = f"FROM message INDEXED BY message_waiting WHERE workspace_id=:workspace_id AND {_UNFINISHED}"
_CALLERS = (
    f"WITH RECURSIVE peer(id) AS (SELECT min(caller_id) {_NEXT} UNION ALL"  # noqa: S608
    f" SELECT (SELECT min(caller_id) {_NEXT} AND caller_id > peer.id) FROM peer WHERE peer.id IS NOT NULL)"
    " SELECT id FROM peer WHERE id IS NOT NULL"
)


@attrs.frozen(kw_only=True)
class InboxMessage:
    """A message, a peer's answer, or the result of a delegation.

    Attributes:
        activity_id: The platform's id of its row, which identifies it in every other call.
        kind: "message", "answer" or "result".
        caller_id: The peer workspace, or None when a person wrote it.
        raw: The platform's ``request_body`` as JSON text.
        created_at: Microseconds since 1970 by the platform's clock.
        question: The question that an answer or a result belongs to, if known; else empty.
        held_until: When a reader's claim ends, in seconds since 1970; None if it is not claimed.
    """

    workspace_id: str
    activity_id: str
    kind: str
    caller_id: str | None
    context_id: str | None
    task_id: str | None
    message_id: str
    method: str
    parts: tuple[Part, ...]
    raw: str = attrs.field(repr=False)
    created_at: int
    delegation_id: str | None
    question: str = ""
    held_until: float | None = None

    @property
    def text(self) -> str:
        """The text parts, joined in order without a separator."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@attrs.frozen(kw_only=True)
class Standing:
    """The state of a row. ``reason`` says why it is dead."""

    state: State
    kind: str
    has_answer: bool
    reason: str
    repeat_of: str | None


class InboxStore:
    """Messages that readers claim. Reads are immediate, writes resolve when they are committed."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    @property
    def wall(self) -> float:
        """Seconds since 1970 by the journal's clock."""
        return self._journal.wall()

    def version(self) -> int:
        """A number that changes with each write to the journal, also by this process."""
        return int(self._journal.reader.execute("PRAGMA data_version").fetchone()[0])

    # Reading

    def pending(self, workspace_id: str, limit: int = -1) -> dict[str | None, list[Place]]:
        """Unfinished messages by caller, also claimed ones: the oldest first, at most *limit* of each caller."""
        db, waiting = self._journal.reader, {}
        for caller_id in _callers(db, workspace_id):
            rows = db.execute(
                f"SELECT time, seq, arrival FROM message {_BY_CALLER} AND {_PENDING}"  # noqa: S608
                " ORDER BY time, seq, arrival LIMIT ?",
                (workspace_id, caller_id, limit),
            )
            waiting[caller_id] = [Place(row[0], row[1], row[2], workspace_id) for row in rows]
        return waiting

    def is_ready(self, place: Place) -> bool:
        """Whether the files of the message at *place* are here, or the wait for them timed out."""
        return _is_ready(self._journal.reader, place, self.wall)

    def at(self, place: Place) -> InboxMessage | None:
        """The message at *place* while it is pending."""
        sql = f"SELECT {COLUMNS} FROM message WHERE arrival=? AND workspace_id=? AND {_PENDING}"  # noqa: S608
        return self._load(sql, place.arrival, place.workspace_id)

    def message(self, workspace_id: str, row_id: str) -> InboxMessage | None:
        """The message of a row, also a finished one while its text is kept."""
        sql = f"SELECT {COLUMNS} FROM message WHERE workspace_id=? AND row_id=? AND {_SHOWN} AND raw IS NOT NULL"  # noqa: S608
        return self._load(sql, workspace_id, plain(row_id))

    def standing(self, workspace_id: str, row_id: str) -> Standing | None:
        """The state of a row, or None if the row is unknown."""
        row = self._journal.reader.execute(
            "SELECT state, kind, answer IS NOT NULL OR (state='done' AND answered_at IS NOT NULL),"
            " coalesce(reason, ''), repeat_of FROM message WHERE workspace_id=? AND row_id=?",
            (workspace_id, plain(row_id)),
        ).fetchone()
        if row is None:
            return None
        return Standing(state=State(row[0]), kind=row[1], has_answer=bool(row[2]), reason=row[3], repeat_of=row[4])

    def counts(self, workspace_id: str) -> tuple[int, int]:
        """The numbers of free and of claimed messages."""
        row = self._journal.reader.execute(
            f"SELECT count(*), coalesce(sum(state='held' AND held_until > ? AND changed <= ?), 0)"  # noqa: S608
            f" FROM message WHERE workspace_id=? AND {_PENDING}",
            (self.wall, self.wall + SET_BACK, workspace_id),
        ).fetchone()
        return int(row[0] - row[1]), int(row[1])

    def finished(self, workspace_id: str, row_ids: Iterable[str]) -> list[str]:
        """Those of *row_ids* that are done without a reply."""
        rows = self._journal.reader.execute(
            "SELECT row_id FROM message WHERE workspace_id=? AND row_id IN (SELECT value FROM json_each(?))"
            " AND state='done' AND answer IS NULL",
            (workspace_id, json.dumps(list(row_ids))),
        )
        return [row[0] for row in rows]

    def claims(self, workspace_ids: Iterable[str]) -> list[tuple[str, float]]:
        """The readers that have claims, and when the first claim of each ends, in seconds since 1970."""
        return self._journal.reader.execute(
            "SELECT holder, min(held_until) FROM message INDEXED BY message_held WHERE state='held'"
            " AND workspace_id IN (SELECT value FROM json_each(?)) GROUP BY holder",
            (json.dumps(list(workspace_ids)),),
        ).fetchall()

    def _files(self, workspace_id: str) -> FileJournal:
        folder = files_folder(self._journal.path.parent, workspace_id)
        return FileJournal(self._journal, workspace_id, folder)

    def _load(self, sql: str, *values: object) -> InboxMessage | None:
        row = self._journal.reader.execute(sql, values).fetchone()
        if row is None:
            return None
        message = load_message(row)
        asked = message.question
        return InboxMessage(
            workspace_id=message.workspace_id,
            activity_id=message.row_id,
            kind=message.kind,
            caller_id=message.caller_id,
            context_id=message.context_id,
            task_id=message.task_id,
            message_id=message.message_id,
            method=message.method,
            parts=self._files(message.workspace_id).with_paths(message.row_id, message.parts),
            raw=message.raw or "{}",
            created_at=message.time,
            delegation_id=message.delegation_id,
            question=delegations.text(self._journal.reader, message.workspace_id, asked) if asked else "",
            held_until=message.held_until,
        )

    # Changing

    async def claim(
        self, workspace_ids: Sequence[str], reader_id: str, seconds: float, *, turns: Turns
    ) -> InboxMessage | None:
        """received -> held: claim a free message for *reader_id*. Two readers never get the same one.

        It is the oldest one of the caller whose turn it is. A message whose files are still being fetched is passed
        over until ``FILES_TIMEOUT``.
        """
        wall = self.wall

        def find(db: sqlite3.Connection) -> Iterator[tuple[Place, str | None]]:
            for workspace_id in workspace_ids:
                for caller_id in _callers(db, workspace_id):
                    if (place := _oldest_free(db, workspace_id, caller_id, wall)) is not None:
                        yield place, caller_id

        def run(db: sqlite3.Connection) -> int | None:
            chosen = turns.choose(find(db))
            if chosen is None:
                return None
            place, caller_id = chosen
            arrival = place.arrival
            turns.take(caller_id)
            db.execute(
                "UPDATE message SET state='held', holder=?, held_until=?, changed=? WHERE arrival=?",
                (reader_id, wall + seconds, wall, arrival),
            )
            return arrival

        if next(find(self._journal.reader), None) is None:
            # Avoid a commit that changes nothing.
            return None
        arrival = await self._journal.writer.put(run)
        if arrival is None:
            return None
        return self._load(f"SELECT {COLUMNS} FROM message WHERE arrival=?", arrival)  # noqa: S608

    async def release(self, reader_id: str) -> None:
        """held -> received, for all claims of *reader_id*."""
        await self._journal.writer.put(
            lambda db: db.execute(
                "UPDATE message INDEXED BY message_held SET state='received', holder=NULL, held_until=NULL, changed=?"
                " WHERE state='held' AND holder=?",
                (self.wall, reader_id),
            )
        )

    async def unclaim(self, message: InboxMessage, reader_id: str) -> None:
        """held -> received, for one claim of *reader_id*."""
        await self._journal.writer.put(
            lambda db: db.execute(
                "UPDATE message SET state='received', holder=NULL, held_until=NULL, changed=?"
                " WHERE workspace_id=? AND row_id=? AND state='held' AND holder=?",
                (self.wall, message.workspace_id, message.activity_id, reader_id),
            )
        )

    async def pop(self, workspace_id: str, row_id: str) -> bool:
        """received or held -> done. False if it was neither."""
        wall = self.wall

        def run(db: sqlite3.Connection) -> bool:
            cursor = db.execute(
                # A replayed message may have sent the notice of a backend before: a late reply is its first.
                "UPDATE message SET state='done', holder=NULL, held_until=NULL, answered_at=NULL, send_print=NULL,"  # noqa: S608
                f" changed=? WHERE workspace_id=? AND row_id=? AND {_PENDING}",
                (wall, workspace_id, plain(row_id)),
            )
            return cursor.rowcount == 1

        return await self._journal.writer.put(run, durable=True)

    async def answer(self, workspace_id: str, row_id: str, reply: StoredReply) -> bool:
        """received, held, or done without an answer -> answered, on the disk when this returns.

        The process that sends the reply stores its time and fingerprint. Replies of a conversation are sent in the
        order in which they were stored.
        """
        wall, text = self.wall, dump_reply(reply)

        def run(db: sqlite3.Connection) -> bool:
            cursor = db.execute(
                "UPDATE message SET state='answered', answer=?, kept=kept+?, answered_at=NULL, send_print=NULL,"
                " not_before=NULL, sends=0, in_doubt=0, accepted=0, echo=NULL, holder=NULL, held_until=NULL, changed=?,"
                " place=max(place, coalesce((SELECT max(other.place) + 1 FROM message AS other WHERE"
                " other.workspace_id=message.workspace_id AND other.caller_id IS message.caller_id"
                " AND other.context_id IS message.context_id AND other.state='answered'), 0))"
                " WHERE workspace_id=? AND row_id=? AND kind='message' AND repeat_of IS NULL AND answer IS NULL"
                # Of a reply that was sent days ago, only the time is kept.
                " AND (state IN ('received', 'held') OR (state='done' AND answered_at IS NULL))",
                (text, len(text), wall, workspace_id, plain(row_id)),
            )
            return cursor.rowcount == 1

        return await self._journal.writer.put(run, durable=True)

    # Questions and notifications

    async def record_question(self, workspace_id: str, message_id: str, peer_id: str, text: str) -> None:
        """Store a question before it is sent."""
        wall = self.wall
        await self._journal.writer.put(
            lambda db: delegations.ask(db, workspace_id, message_id, peer_id, text, wall), durable=True
        )

    async def record_delegation(self, workspace_id: str, message_id: str, delegation_id: str) -> None:
        """Store the id that the platform gave a delegation."""
        wall = self.wall
        await self._journal.writer.put(
            lambda db: delegations.record_delegation(db, workspace_id, message_id, delegation_id, wall)
        )

    async def close_question(self, workspace_id: str, message_id: str) -> None:
        """Stop expecting an answer: it arrived at once, or the question was not accepted."""
        await self._journal.writer.put(lambda db: delegations.close(db, workspace_id, message_id))

    async def record_notification(self, workspace_id: str, send_print: str) -> int:
        """Store a notification to the person before it is sent. Returns its number for ``forget_notification``."""
        wall = self.wall
        return await self._journal.writer.put(lambda db: sent.say(db, workspace_id, send_print, wall), durable=True)

    async def forget_notification(self, number: int) -> None:
        """Delete a notification that was not sent: it has no echo."""
        await self._journal.writer.put(lambda db: sent.unsay(db, number))


def _callers(db: sqlite3.Connection, workspace_id: str) -> list[str | None]:
    """The callers with an unfinished message. Takes one step for each caller, not for each message."""
    rows = db.execute(_CALLERS, {"workspace_id": workspace_id})
    return [None, *(row[0] for row in rows)]


def _oldest_free(db: sqlite3.Connection, workspace_id: str, caller_id: str | None, wall: float) -> Place | None:
    rows = db.execute(
        f"SELECT time, seq, arrival FROM message {_BY_CALLER} AND {_FREE}"  # noqa: S608
        " ORDER BY time, seq, arrival LIMIT ?",
        (workspace_id, caller_id, wall, wall + SET_BACK, PASSED_OVER),
    )
    places = (Place(row[0], row[1], row[2], workspace_id) for row in rows)
    return next((place for place in places if _is_ready(db, place, wall)), None)


def _is_ready(db: sqlite3.Connection, place: Place, wall: float) -> bool:
    row = db.execute(
        "SELECT row_id FROM message WHERE arrival=? AND changed BETWEEN ? AND ?",
        (place.arrival, wall - FILES_TIMEOUT, wall),
    ).fetchone()
    return row is None or not awaited(db, place.workspace_id, row[0])


def new_reader_id() -> str:
    """A unique id for one reader of this process: ``pid@host:`` and a random suffix."""
    return f"{os.getpid()}@{socket.gethostname()}:{uuid.uuid4().hex[:8]}"


def is_gone(reader_id: str) -> bool:
    """Whether the reader's process is known to have ended: not for another host, or if its pid was reused."""
    pid, _, rest = reader_id.partition("@")
    if not pid.isdecimal() or rest.rpartition(":")[0] != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
