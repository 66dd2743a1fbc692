"""The files of a chat, from announcement to removal, and our own uploads."""

import asyncio
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from molecule_connect.files import INLINE_ID, is_file, pending_id
from molecule_connect.journal import transitions
from molecule_connect.journal.incoming_files import MOST_FILES, OURS_FOR, files_of, insert, use
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import (
    Conversation,
    State,
    StoredMessage,
    StoredReply,
    dump_parts,
    load_parts,
    plain,
)
from molecule_connect.journal.writer import Operation
from molecule_connect.models import FilePart, Part

T = TypeVar("T")

# A message waits at most this long for its files, in seconds: a minute of fetching and its overhead.
FILES_TIMEOUT = 65.0
REMOVED = "it was removed from this machine"
# A longer wait (seconds) was stored before the clock was set back.
_LONGEST_WAIT = 600.0
_COLUMNS = "file_id, caller_id, uri, row_id, name, mime_type, size, time, state, path, reason, attempts, not_before"
_OPEN = (
    "EXISTS (SELECT 1 FROM file_use u JOIN message m ON m.workspace_id=u.workspace_id AND m.row_id=u.row_id"
    " WHERE u.workspace_id=file.workspace_id AND u.file_id=file.file_id AND m.state NOT IN ('done', 'dead'))"
)
# A file without a message stays: a later message can still name it.
_REMOVABLE = f"state='here' AND named AND NOT {_OPEN}"
_DUE = "(coalesce(not_before, 0) <= ? OR not_before > ?)"
_UNNAMED = "named=0 AND file.state <> 'ours'"
# Inline files of a message that this machine removed, or had no room for. Their bytes are still in the message.
_REPEATABLE = (
    "workspace_id=? AND file_id IN (SELECT file_id FROM file_use WHERE workspace_id=? AND row_id=?)"
    " AND substr(file_id, 1, ?)=? AND (state='gone' OR (state='waiting' AND not_before IS NOT NULL))"
)


@attrs.frozen(kw_only=True)
class StoredFile:
    """One file of the chat.

    Attributes:
        caller_id: The workspace whose message holds its bytes; None for a file of people.
        row_id: The row that announced it; None if a message named it without one.
        time: When it was announced, in microseconds by the platform's clock.
        arrived: When this machine first saw it, in seconds since 1970.
        state: "waiting" for its bytes, "here", "gone" from the platform, "failed", or "ours".
        path: Its name in the folder for files.
        reason: The reason why it is not here, for people.
        not_before: When it is tried again, in seconds since 1970.
        acked: Whether the platform knows that it is here. For a file of ours: whether it is known by its id.
    """

    file_id: str
    caller_id: str | None
    uri: str
    row_id: str | None
    name: str
    mime_type: str
    size: int | None
    time: int
    state: str
    path: str | None
    reason: str | None
    attempts: int
    not_before: float | None

    @property
    def is_inline(self) -> bool:
        """Whether its bytes are in the message itself."""
        return self.file_id.startswith(INLINE_ID)


def _load(rows: Sequence[tuple[Any, ...]]) -> list[StoredFile]:
    names = _COLUMNS.split(", ")
    return [StoredFile(**dict(zip(names, row, strict=True))) for row in rows]


class FileJournal:
    """The files of one workspace's chat. Reads are immediate, writes resolve when they are committed.

    Args:
        folder: The folder that holds the files.
    """

    def __init__(self, journal: Journal, workspace_id: str, folder: Path) -> None:
        self.workspace_id = workspace_id
        self._journal = journal
        self._reader = journal.reader
        self._wall = journal.wall
        self._folder = folder

    # Reading

    def due(self, most: int, caller_id: str | None = None) -> list[StoredFile]:
        """Up to *most* files of one caller, or of people, to fetch now: announced files first, then named ones."""
        sql = (
            f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND caller_id IS ? AND state='waiting' AND {_DUE}"  # noqa: S608
            " ORDER BY row_id IS NULL, named DESC, time LIMIT ?"
        )
        return self._files(sql, self.workspace_id, caller_id, *self._now(), most)

    def next_peer(self, after: str) -> str | None:
        """The first peer after *after*, by id, with a file to fetch now."""
        row = self._one(
            f"SELECT caller_id FROM file WHERE workspace_id=? AND caller_id > ? AND state='waiting' AND {_DUE}"  # noqa: S608
            " ORDER BY caller_id LIMIT 1",
            *(self.workspace_id, after, *self._now()),
        )
        return None if row is None else str(row[0])

    def unacknowledged(self, most: int) -> list[StoredFile]:
        """Up to *most* files to acknowledge now.

        The platform then deletes them. If other machines share the workspace, only files of finished messages: another
        machine could not fetch the others again.
        """
        which = f" AND {_REMOVABLE}" if self._journal.is_shared else ""
        sql = (
            f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND state='here' AND acked=0 AND {_DUE}{which}"  # noqa: S608
            " ORDER BY time LIMIT ?"
        )
        return self._files(sql, self.workspace_id, *self._now(), most)

    def next_due(self) -> float | None:
        """When the next deferred file is tried again, in seconds since 1970."""
        row = self._one(
            "SELECT not_before FROM file WHERE workspace_id=? AND not_before > ?"
            " AND (state='waiting' OR (state='here' AND acked=0)) ORDER BY not_before LIMIT 1",
            *(self.workspace_id, self._wall()),
        )
        return None if row is None else float(row[0])

    def is_waiting(self, file_id: str) -> bool:
        """Whether a file is still to be fetched."""
        sql = "SELECT 1 FROM file WHERE workspace_id=? AND file_id=? AND state='waiting'"
        return self._one(sql, self.workspace_id, file_id) is not None

    def awaited(self, row_id: str) -> list[str]:
        """The ids of a message's files that are still to be fetched."""
        return awaited(self._reader, self.workspace_id, row_id)

    def with_paths(self, row_id: str, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """The *parts* of a message, with the path of each file that is here, and the reason for the others."""
        return with_paths(self._reader, self.workspace_id, row_id, parts, self._folder)

    def inline_of(self, file: StoredFile) -> list[tuple[StoredFile, str | None]]:
        """The inline files to unpack of the message of *file*, each with its ``data:`` URI; None if it was deleted."""
        use_of = "SELECT row_id FROM file_use WHERE workspace_id=? AND file_id=?"
        used = self._one(use_of, self.workspace_id, file.file_id)
        if used is None:
            return []
        columns = ", ".join(f"file.{name}" for name in _COLUMNS.split(", "))
        files = self._files(
            # Without CROSS JOIN, SQLite scans every file of the workspace.
            f"SELECT {columns} FROM file_use u CROSS JOIN file ON file.workspace_id=u.workspace_id"  # noqa: S608
            " AND file.file_id=u.file_id WHERE u.workspace_id=? AND u.row_id=? AND file.state='waiting'"
            " AND substr(file.file_id, 1, ?)=? ORDER BY file.file_id",
            *(self.workspace_id, used[0], len(INLINE_ID), INLINE_ID),
        )
        row = self._one("SELECT parts FROM message WHERE workspace_id=? AND row_id=?", self.workspace_id, used[0])
        parts = load_parts(row[0]) if row and row[0] else ()
        kept = {file_id: part.uri for _, file_id, part in files_of(used[0], parts)}
        return [(one, kept.get(one.file_id)) for one in files]

    def gathers_at(self, quiet: float) -> float | None:
        """When unnamed files become a message: *quiet* seconds after the newest (seconds since 1970)."""
        newest = _newest_unnamed(self._reader, self.workspace_id)
        return None if newest is None else newest + quiet

    def names(self) -> set[str]:
        """The names of all files in the folder that the journal knows."""
        sql = "SELECT path FROM file WHERE workspace_id=? AND state='here'"
        return {row[0] for row in self._reader.execute(sql, (self.workspace_id,))}

    def usage(self, least: int) -> dict[str | None, int]:
        """Bytes of the files that are here, by caller. A smaller file counts as *least* bytes."""
        sql = "SELECT caller_id, sum(max(size, ?)) FROM file WHERE workspace_id=? AND state='here' GROUP BY caller_id"
        return {row[0]: int(row[1]) for row in self._reader.execute(sql, (least, self.workspace_id))}

    def removable(self, caller_id: str | None, *, before: float, most: int = -1) -> list[StoredFile]:
        """Files of one caller that arrived before *before* and belong to finished messages only, oldest first."""
        sql = (
            f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND caller_id IS ? AND arrived < ? AND {_REMOVABLE}"  # noqa: S608
            " ORDER BY arrived LIMIT ?"
        )
        return self._files(sql, self.workspace_id, caller_id, before, most)

    # Writing

    async def stored(self, file: StoredFile, *, path: str, size: int, mime_type: str) -> bool:
        """waiting -> here, on disk when this returns. False: its state changed meanwhile."""
        changes = {"state": "here", "path": path, "size": size, "mime_type": mime_type, "reason": None}
        if file.is_inline:
            changes["acked"] = 1
        return await self._move(file, {**changes, "attempts": 0, "not_before": None}, durable=True)

    async def not_fetched(self, file: StoredFile, reason: str, *, not_before: float | None, state: str) -> bool:
        """waiting -> waiting until *not_before*, or -> gone or failed for good."""
        changes = {"state": state, "reason": plain(reason), "not_before": not_before}
        return await self._move(file, {**changes, "attempts": file.attempts + 1})

    async def finished(self) -> None:
        """Wait until every machine that shares the workspace would know which messages are finished."""
        if self._journal.is_shared:
            await self._put(lambda db: None, durable=True)

    async def acknowledged(self, file: StoredFile) -> bool:
        """Record that the platform may delete the file."""
        return await self._move(file, {"acked": 1, "not_before": None})

    async def not_acknowledged(self, file: StoredFile, *, not_before: float) -> bool:
        """Acknowledge the file again at *not_before*."""
        return await self._move(file, {"attempts": file.attempts + 1, "not_before": not_before})

    async def removed(self, file: StoredFile, reason: str) -> bool:
        """here -> gone: removed from this machine. False: an open message names it."""
        is_removable = f"SELECT 1 FROM file WHERE workspace_id=? AND file_id=? AND {_REMOVABLE}"  # noqa: S608

        def run(db: sqlite3.Connection) -> bool:
            if db.execute(is_removable, (self.workspace_id, file.file_id)).fetchone() is None:
                return False
            return self._change(db, file, {"state": "gone", "path": None, "reason": reason, "acked": 1})

        return await self._put(run)

    async def unpack_again(self, row_id: str) -> None:
        """Retry the inline files of a message that this machine removed, or had no room for."""
        which = (self.workspace_id, self.workspace_id, row_id, len(INLINE_ID), INLINE_ID)
        if self._one(f"SELECT 1 FROM file WHERE {_REPEATABLE} LIMIT 1", *which) is None:  # noqa: S608
            return
        again = "state='waiting', not_before=NULL, attempts=0, acked=0, changed=?"
        sql = f"UPDATE file SET {again} WHERE {_REPEATABLE}"  # noqa: S608
        await self._put(lambda db: db.execute(sql, (self._wall(), *which)))

    async def gather(self, quiet: float) -> tuple[str, Conversation, str] | None:
        """Make one message of the files that no message names: its row, its conversation, and their names."""
        return await self._put(lambda db: gather(db, self.workspace_id, self._wall(), quiet))

    async def forget(self, *, before: float, now: int) -> None:
        """Delete rows of files that are not here, uses of deleted rows, and old notes of uploads."""

        def run(db: sqlite3.Connection) -> None:
            db.execute(
                "DELETE FROM file WHERE workspace_id=? AND state NOT IN ('here', 'waiting') AND changed < ?"  # noqa: S608
                f" AND NOT {_OPEN}",
                (self.workspace_id, before),
            )
            db.execute(
                "DELETE FROM file_use WHERE workspace_id=? AND NOT EXISTS (SELECT 1 FROM file f"
                " WHERE f.workspace_id=file_use.workspace_id AND f.file_id=file_use.file_id)",
                (self.workspace_id,),
            )
            db.execute("DELETE FROM upload_note WHERE workspace_id=? AND time < ?", (self.workspace_id, now - OURS_FOR))

        await self._put(run)

    # Our own uploads

    async def note(self, files: Sequence[tuple[str, int]], *, at: int) -> list[int]:
        """Record, before an upload, the names and sizes of its files. Returns the numbers of the notes."""
        sql = "INSERT INTO upload_note (workspace_id, name, size, time) VALUES (?,?,?,?)"

        def run(db: sqlite3.Connection) -> list[int]:
            return [int(db.execute(sql, (self.workspace_id, *file, at)).lastrowid or 0) for file in files]

        return await self._put(run, durable=True)

    async def uploaded(self, files: Sequence[FilePart], notes: Sequence[int], *, at: int) -> None:
        """Record that the platform took *files* of ours, whose *notes* are deleted."""
        await self._put(lambda db: self._uploaded(db, files, notes, at), durable=True)

    async def attach_uploads(
        self,
        message: StoredMessage,
        reply: StoredReply,
        *,
        send_print: str | None,
        files: Sequence[FilePart] = (),
        notes: Sequence[int] = (),
        at: int,
    ) -> bool:
        """answered -> answered, with the platform's names of our *files*, all in one commit."""

        def run(db: sqlite3.Connection) -> bool:
            self._uploaded(db, files, notes, at)
            return transitions.move(db, message, State.ANSWERED, self._wall(), reply=reply, send_print=send_print)

        return await self._put(run, durable=True)

    def _uploaded(self, db: sqlite3.Connection, files: Sequence[FilePart], notes: Sequence[int], at: int) -> None:
        find = "SELECT name, size FROM upload_note WHERE note=?"
        noted = {db.execute(find, (number,)).fetchone() for number in notes}
        db.executemany("DELETE FROM upload_note WHERE note=?", [(number,) for number in notes])
        wall = self._wall()
        for file in files:
            if file_id := pending_id(file.uri):
                ours = "UPDATE SET state='ours', acked=1 WHERE NOT file.named"
                insert(db, self.workspace_id, file_id, file, None, at, wall, state="ours", on_conflict=ours)
                db.execute("UPDATE file SET acked=1 WHERE workspace_id=? AND file_id=?", (self.workspace_id, file_id))
        for name, size in filter(None, noted):
            # An equal file that a person uploaded meanwhile belongs to people again, unless another upload of ours has
            # an
            # unknown outcome.
            db.execute(
                "UPDATE file SET state='waiting', changed=? WHERE workspace_id=? AND state='ours' AND acked=0"
                " AND name=? AND size=? AND NOT EXISTS (SELECT 1 FROM upload_note n"
                " WHERE n.workspace_id=file.workspace_id AND n.name=file.name AND n.size=file.size)",
                (wall, self.workspace_id, name, size),
            )

    async def _move(self, file: StoredFile, changes: dict[str, Any], *, durable: bool = False) -> bool:
        return await self._put(lambda db: self._change(db, file, changes), durable=durable)

    def _change(self, db: sqlite3.Connection, file: StoredFile, changes: dict[str, Any]) -> bool:
        assignments = ", ".join(f"{name}=?" for name in changes)
        cursor = db.execute(
            f"UPDATE file SET {assignments}, changed=? WHERE workspace_id=? AND file_id=? AND state=?",  # noqa: S608
            (*changes.values(), self._wall(), self.workspace_id, file.file_id, file.state),
        )
        return cursor.rowcount == 1

    def _put(self, run: Operation[T], *, durable: bool = False) -> "asyncio.Future[T]":
        return self._journal.writer.put(run, durable=durable)

    def _now(self) -> tuple[float, float]:
        wall = self._wall()
        return wall, wall + _LONGEST_WAIT

    def _one(self, sql: str, *values: object) -> Any:
        return self._reader.execute(sql, values).fetchone()

    def _files(self, sql: str, *values: object) -> list[StoredFile]:
        return _load(self._reader.execute(sql, values).fetchall())


def awaited(db: sqlite3.Connection, workspace_id: str, row_id: str) -> list[str]:
    """The ids of a row's files that are still to be fetched."""
    rows = db.execute(
        "SELECT u.file_id FROM file_use u CROSS JOIN file f ON f.workspace_id=u.workspace_id AND f.file_id=u.file_id"
        " WHERE u.workspace_id=? AND u.row_id=? AND f.state='waiting'",
        (workspace_id, row_id),
    )
    return [row[0] for row in rows]


def with_paths(
    db: sqlite3.Connection, workspace_id: str, row_id: str, parts: tuple[Part, ...], folder: Path
) -> tuple[Part, ...]:
    """The *parts* of a row, with the path of each file that is here, and the reason for the others."""
    files = list(files_of(row_id, parts))
    if not files:
        return parts
    found = db.execute(
        "SELECT f.file_id, f.state, f.path, f.reason, f.name, f.mime_type, f.size FROM file f"
        " JOIN file_use u ON u.workspace_id=f.workspace_id AND u.file_id=f.file_id AND u.row_id=?"
        " WHERE f.workspace_id=? AND f.state <> 'ours' AND f.file_id IN (SELECT value FROM json_each(?))",
        (row_id, workspace_id, json.dumps([file_id for _, file_id, _ in files])),
    )
    known = {row[0]: row[1:] for row in found}
    placed: list[Part] = list(parts)
    for number, file_id, part in files:
        if file_id in known:
            placed[number] = _with_path(part, folder, *known[file_id])
    return tuple(placed)


def _with_path(
    part: FilePart, folder: Path, state: str, path: str | None, reason: str | None, name: str, mime: str, size: int
) -> FilePart:
    place = folder / path if state == "here" and path else None
    if place is None or not is_file(place):
        return attrs.evolve(part, unavailable=reason or ("it is not downloaded yet" if place is None else REMOVED))
    return attrs.evolve(part, path=place, name=part.name or name, mime_type=mime or part.mime_type, size=size)


def _newest_unnamed(db: sqlite3.Connection, workspace_id: str) -> float | None:
    """When the newest file of people that no row names arrived, in seconds since 1970."""
    row = db.execute(
        "SELECT max(file.arrived) FROM file JOIN message m ON m.workspace_id=file.workspace_id AND m.row_id=file.row_id"  # noqa: S608
        f" WHERE file.workspace_id=? AND {_UNNAMED} AND m.kind='upload'",
        (workspace_id,),
    ).fetchone()
    return None if row[0] is None else float(row[0])


def unnamed(db: sqlite3.Connection, workspace_id: str) -> list[StoredFile]:
    """The files of people that no row names, oldest first, at most as many as a message may have."""
    columns = ", ".join(f"file.{name}" for name in _COLUMNS.split(", "))
    return _load(
        db.execute(
            f"SELECT {columns} FROM file JOIN message m ON m.workspace_id=file.workspace_id AND m.row_id=file.row_id"  # noqa: S608
            f" WHERE file.workspace_id=? AND {_UNNAMED} AND m.kind='upload' ORDER BY m.time, m.seq, m.arrival LIMIT ?",
            (workspace_id, MOST_FILES),
        ).fetchall()
    )


def gather(
    db: sqlite3.Connection, workspace_id: str, wall: float, quiet: float
) -> tuple[str, Conversation, str] | None:
    """Make one message of files that no message names, *quiet* seconds after the newest. See ``FileJournal.gather``.

    It joins the conversation in which a person wrote last. Files beyond the limit wait for the next message.
    """
    newest = _newest_unnamed(db, workspace_id)
    # The arrival is in the future if the clock was set back.
    if newest is None or wall - quiet < newest <= wall:
        return None
    files = unnamed(db, workspace_id)
    row_id = files[0].row_id or ""
    context = db.execute(
        "SELECT context_id FROM message WHERE workspace_id=? AND caller_id IS NULL AND kind='message'"
        " ORDER BY time DESC, seq DESC LIMIT 1",
        (workspace_id,),
    ).fetchone()
    conversation = Conversation(None, context[0] if context else None)
    parts = tuple(FilePart(uri=file.uri, name=file.name, mime_type=file.mime_type, size=file.size) for file in files)
    changed = db.execute(
        "UPDATE message SET kind='message', state='received', caller_id=NULL, context_id=?, parts=?, changed=?"
        " WHERE workspace_id=? AND row_id=? AND kind='upload' AND state='done'",
        (conversation.context_id, dump_parts(parts), wall, workspace_id, row_id),
    ).rowcount
    if changed != 1:
        return None
    use(db, workspace_id, [file.file_id for file in files], row_id)
    return row_id, conversation, ", ".join(file.name[:100] or "without a name" for file in files)[:200]
