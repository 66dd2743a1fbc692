"""What the journal knows of the files of a chat, as SQL: announced, named by messages, here, gone, or our own."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.delivery.journal.entries import Lane, dump_parts, load_parts, plain
from molecule_connect.file_names import INLINE, INLINE_ID, file_key, safe_name
from molecule_connect.models import FilePart, Inbound, Kind, Part

# A manifest that equals a note of an upload of ours is ours for so long (microseconds).
OURS_FOR = 3600 * 1_000_000
# Nothing waits for longer: what seems to, met a clock that was set back.
LONGEST_WAIT = 600.0
# Whose files are fetched; what other rows name needs only to be known as named.
_READ = (Kind.MESSAGE, Kind.ANSWER, Kind.RESULT)
_COLUMNS = (
    "file_id, uri, row_id, name, mime_type, size, time, arrived, state, path, reason, attempts, not_before, acked"
)
_NAMED = "EXISTS (SELECT 1 FROM file_use u WHERE u.workspace_id=file.workspace_id AND u.file_id=file.file_id)"
_OPEN = (
    "EXISTS (SELECT 1 FROM file_use u JOIN message m ON m.workspace_id=u.workspace_id AND m.row_id=u.row_id"
    " WHERE u.workspace_id=file.workspace_id AND u.file_id=file.file_id AND m.state NOT IN ('done', 'dead'))"
)
# Until nobody can claim it any more, a file without a message is one that a message may still name.
_REMOVABLE = f"state='here' AND {_NAMED} AND NOT {_OPEN}"


@attrs.frozen(kw_only=True)
class FileEntry:
    """One file of the chat.

    Attributes:
        row_id: The row that announced it; None when a message named it without one.
        time: When it was announced, in microseconds by the platform's clock.
        arrived: When this machine learnt of it, in seconds since 1970.
        state: "waiting" for its bytes, "here", "gone" from the platform, "failed", or "ours".
        path: Its name in the folder for files.
        reason: Why it is not here, for people.
        not_before: Nothing is tried before then (seconds since 1970).
        acked: The platform knows that it is here; of ours: that it is ours is known by its id.
    """

    file_id: str
    uri: str
    row_id: str | None
    name: str
    mime_type: str
    size: int | None
    time: int
    arrived: float
    state: str
    path: str | None
    reason: str | None
    attempts: int
    not_before: float | None
    acked: int

    @property
    def is_inline(self) -> bool:
        """Whether its bytes came in the message itself."""
        return self.file_id.startswith(INLINE_ID)


def load(rows: Sequence[tuple[Any, ...]]) -> list[FileEntry]:
    """The files in rows of ``_COLUMNS``."""
    names = _COLUMNS.split(", ")
    return [FileEntry(**dict(zip(names, row, strict=True))) for row in rows]


def receive(db: sqlite3.Connection, workspace_id: str, item: Inbound, time: int, wall: float) -> None:
    """Take in the files that a new row announces or names."""
    for part in item.parts:
        file_id = file_key(part.uri, part.name) if isinstance(part, FilePart) else None
        if file_id is None or not isinstance(part, FilePart):
            continue
        is_inline = part.uri.startswith(INLINE)
        if item.kind is Kind.UPLOAD:
            if not is_inline:
                _announce(db, workspace_id, file_id, part, item.row_id, time, wall)
            continue
        use(db, workspace_id, [file_id], item.row_id)
        if item.kind in _READ and is_inline:
            # Of its bytes, which the row keeps, only what they may need is told here.
            about = attrs.evolve(part, uri=INLINE, size=len(part.uri) * 3 // 4)
            _insert(db, workspace_id, file_id, about, None, time, wall, state="waiting", on_conflict=_AGAIN)
        elif item.kind in _READ:
            _insert(db, workspace_id, file_id, part, None, time, wall, state="waiting", on_conflict=_NAMES_OURS)


def is_own_upload(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> bool:
    """Whether *item*, which was taken in, announces nothing but files that we uploaded ourselves."""
    own = "SELECT 1 FROM file WHERE workspace_id=? AND file_id=? AND state='ours'"
    announced = [file_key(part.uri, part.name) for part in item.parts if isinstance(part, FilePart)]
    return (
        item.kind is Kind.UPLOAD
        and bool(announced)
        and all(db.execute(own, (workspace_id, file_id)).fetchone() for file_id in announced)
    )


# What passed for ours, and may be, is wanted now. To acknowledge it would take it away from the person.
_NAMES_OURS = "UPDATE SET state='waiting', acked=1, changed=excluded.changed WHERE file.state='ours'"
# The same bytes came again, after they were removed from here.
_AGAIN = (
    "UPDATE SET state='waiting', time=excluded.time, arrived=excluded.arrived, changed=excluded.changed, reason=NULL,"
    " size=excluded.size, attempts=0, not_before=NULL, acked=0 WHERE file.state IN ('gone', 'failed')"
)


def _announce(
    db: sqlite3.Connection, workspace_id: str, file_id: str, part: FilePart, row_id: str, time: int, wall: float
) -> None:
    ours = db.execute(
        "SELECT 1 FROM upload_note WHERE workspace_id=? AND name=? AND size IS ? AND abs(time - ?) < ? LIMIT 1",
        (workspace_id, safe_name(part.name), part.size, time, OURS_FOR),
    ).fetchone()
    update = "UPDATE SET row_id=excluded.row_id, name=excluded.name, mime_type=excluded.mime_type, size=excluded.size"
    state = "ours" if ours else "waiting"
    _insert(db, workspace_id, file_id, part, row_id, time, wall, state=state, on_conflict=update)


def _insert(
    db: sqlite3.Connection,
    workspace_id: str,
    file_id: str,
    part: FilePart,
    row_id: str | None,
    time: int,
    wall: float,
    *,
    state: str,
    on_conflict: str,
) -> None:
    db.execute(
        "INSERT INTO file (workspace_id, file_id, uri, row_id, name, mime_type, size, time, arrived, state, changed)"  # noqa: S608
        f" VALUES (?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO {on_conflict}",
        (
            *(workspace_id, file_id, plain(part.uri), row_id, plain(part.name), plain(part.mime_type)),
            *(part.size, time, wall, state, wall),
        ),
    )


def use(db: sqlite3.Connection, workspace_id: str, file_ids: Sequence[str], row_id: str) -> None:
    """The row names these files."""
    db.executemany(
        "INSERT OR IGNORE INTO file_use (workspace_id, file_id, row_id) VALUES (?,?,?)",
        [(workspace_id, file_id, row_id) for file_id in file_ids],
    )


def due(db: sqlite3.Connection, workspace_id: str, wall: float, most: int) -> list[FileEntry]:
    """What is to be fetched or acknowledged now; first what messages name."""
    return load(
        db.execute(
            f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND (state='waiting' OR (state='here' AND acked=0))"  # noqa: S608
            " AND (coalesce(not_before, 0) <= ? OR not_before > ?)"
            f" ORDER BY state='here', NOT {_NAMED}, time, arrived LIMIT ?",
            (workspace_id, wall, wall + LONGEST_WAIT, most),
        ).fetchall()
    )


def next_due(db: sqlite3.Connection, workspace_id: str, wall: float) -> float | None:
    """When something is to be tried again (seconds since 1970)."""
    row = db.execute(
        "SELECT min(not_before) FROM file WHERE workspace_id=? AND (state='waiting' OR (state='here' AND acked=0))"
        " AND not_before > ?",
        (workspace_id, wall),
    ).fetchone()
    return None if row[0] is None else float(row[0])


def of(db: sqlite3.Connection, workspace_id: str, file_id: str) -> FileEntry | None:
    """One file."""
    sql = f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND file_id=?"  # noqa: S608
    return next(iter(load(db.execute(sql, (workspace_id, file_id)).fetchall())), None)


def with_paths(db: sqlite3.Connection, workspace_id: str, parts: tuple[Part, ...], folder: Path) -> tuple[Part, ...]:
    """*parts* with the path of each file that is here, and for the others why not."""
    return tuple(_with_path(db, workspace_id, part, folder) if isinstance(part, FilePart) else part for part in parts)


def _with_path(db: sqlite3.Connection, workspace_id: str, part: FilePart, folder: Path) -> FilePart:
    file_id = file_key(part.uri, part.name)
    file = of(db, workspace_id, file_id) if file_id else None
    if file is None or file.state == "ours":
        return part
    path = folder / file.path if file.state == "here" and file.path else None
    if path is None or not path.is_file():
        return attrs.evolve(part, unavailable=file.reason or ("it is not here yet" if path is None else REMOVED))
    return attrs.evolve(
        part, path=path, name=part.name or file.name, mime_type=file.mime_type or part.mime_type, size=file.size
    )


REMOVED = "it was removed from this machine"


def inline(db: sqlite3.Connection, workspace_id: str, file_id: str) -> str | None:
    """The ``data:`` URI in which a row brought that file, while one that did is kept."""
    rows = db.execute(
        "SELECT m.parts FROM file_use u JOIN message m ON m.workspace_id=u.workspace_id AND m.row_id=u.row_id"
        " WHERE u.workspace_id=? AND u.file_id=? AND m.parts IS NOT NULL",
        (workspace_id, file_id),
    )
    files = (part for row in rows for part in load_parts(row[0]) if isinstance(part, FilePart))
    return next((file.uri for file in files if file_key(file.uri, file.name) == file_id), None)


def unnamed(db: sqlite3.Connection, workspace_id: str) -> list[FileEntry]:
    """The files of people that no row names, the oldest first."""
    columns = ", ".join(f"file.{name}" for name in _COLUMNS.split(", "))
    return load(
        db.execute(
            f"SELECT {columns} FROM file JOIN message m ON m.workspace_id=file.workspace_id AND m.row_id=file.row_id"  # noqa: S608
            f" WHERE file.workspace_id=? AND file.state <> 'ours' AND NOT {_NAMED} AND m.kind='upload'"
            " ORDER BY m.time, m.seq, m.arrival",
            (workspace_id,),
        ).fetchall()
    )


def gather(db: sqlite3.Connection, workspace_id: str, wall: float, quiet: float) -> tuple[str, Lane, str] | None:
    """Make one message of the files that nobody named, *quiet* seconds after the newest. Its row, lane and names.

    It stands in the conversation in which the person wrote last.
    """
    files = unnamed(db, workspace_id)
    # An arrival in the future: the clock was set back.
    if not files or wall - quiet < max(file.arrived for file in files) <= wall:
        return None
    row_id = files[0].row_id or ""
    context = db.execute(
        "SELECT context_id FROM message WHERE workspace_id=? AND caller_id IS NULL AND kind='message'"
        " ORDER BY time DESC, seq DESC LIMIT 1",
        (workspace_id,),
    ).fetchone()
    lane = Lane(None, context[0] if context else None)
    parts = tuple(FilePart(uri=file.uri, name=file.name, mime_type=file.mime_type, size=file.size) for file in files)
    changed = db.execute(
        "UPDATE message SET kind='message', state='received', caller_id=NULL, context_id=?, parts=?, changed=?"
        " WHERE workspace_id=? AND row_id=? AND kind='upload' AND state='done'",
        (lane.context_id, dump_parts(parts), wall, workspace_id, row_id),
    ).rowcount
    if changed != 1:
        return None
    use(db, workspace_id, [file.file_id for file in files], row_id)
    return row_id, lane, ", ".join(file.name or "without a name" for file in files)


def move(db: sqlite3.Connection, workspace_id: str, file: FileEntry, wall: float, **changes: Any) -> bool:
    """Change a file that is still in the state that *file* says; False: it is not."""
    assignments = ", ".join(f"{name}=?" for name in changes)
    cursor = db.execute(
        f"UPDATE file SET {assignments}, changed=? WHERE workspace_id=? AND file_id=? AND state=?",  # noqa: S608
        (*changes.values(), wall, workspace_id, file.file_id, file.state),
    )
    return cursor.rowcount == 1


def removable(db: sqlite3.Connection, workspace_id: str, *, before: float) -> list[FileEntry]:
    """Files here that only finished messages name, and that came before then, the oldest first."""
    return load(
        db.execute(
            f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND arrived < ? AND {_REMOVABLE} ORDER BY arrived",  # noqa: S608
            (workspace_id, before),
        ).fetchall()
    )


def usage(db: sqlite3.Connection, workspace_id: str) -> int:
    """Bytes of the files that are here."""
    sql = "SELECT coalesce(sum(size), 0) FROM file WHERE workspace_id=? AND state='here'"
    return int(db.execute(sql, (workspace_id,)).fetchone()[0])


def forget(db: sqlite3.Connection, workspace_id: str, *, before: float, now: int) -> None:
    """Drop what nothing needs any more: rows of files that are not here, uses of rows that are gone, old notes."""
    db.execute(
        f"DELETE FROM file WHERE workspace_id=? AND state NOT IN ('here', 'waiting') AND changed < ? AND NOT {_OPEN}",  # noqa: S608
        (workspace_id, before),
    )
    db.execute(
        "DELETE FROM file_use WHERE workspace_id=? AND NOT EXISTS (SELECT 1 FROM file f"
        " WHERE f.workspace_id=file_use.workspace_id AND f.file_id=file_use.file_id)",
        (workspace_id,),
    )
    db.execute("DELETE FROM upload_note WHERE workspace_id=? AND time < ?", (workspace_id, now - OURS_FOR))


def note(db: sqlite3.Connection, workspace_id: str, name: str, size: int, at: int) -> int:
    """Write down that we are about to upload a file. Returns the note's number."""
    values = (workspace_id, name, size, at)
    cursor = db.execute("INSERT INTO upload_note (workspace_id, name, size, time) VALUES (?,?,?,?)", values)
    return int(cursor.lastrowid or 0)


def uploaded(
    db: sqlite3.Connection, workspace_id: str, files: Sequence[FilePart], notes: Sequence[int], at: int, wall: float
) -> None:
    """The platform took files of ours: from now on they are known by their ids, and their notes are done with.

    Whoever uploaded an equal file meanwhile gets theirs back.
    """
    noted = {db.execute("SELECT name, size FROM upload_note WHERE note=?", (number,)).fetchone() for number in notes}
    db.executemany("DELETE FROM upload_note WHERE note=?", [(number,) for number in notes])
    for file in files:
        if file_id := file_key(file.uri, file.name):
            ours = f"UPDATE SET state='ours', acked=1 WHERE NOT {_NAMED}"
            _insert(db, workspace_id, file_id, file, None, at, wall, state="ours", on_conflict=ours)
            db.execute("UPDATE file SET acked=1 WHERE workspace_id=? AND file_id=?", (workspace_id, file_id))
    for name, size in filter(None, noted):
        # Unless an upload whose outcome is not known may have put it there.
        db.execute(
            "UPDATE file SET state='waiting', changed=? WHERE workspace_id=? AND state='ours' AND acked=0 AND name=?"
            " AND size=? AND NOT EXISTS (SELECT 1 FROM upload_note n WHERE n.workspace_id=file.workspace_id"
            " AND n.name=file.name AND n.size=file.size)",
            (wall, workspace_id, name, size),
        )
