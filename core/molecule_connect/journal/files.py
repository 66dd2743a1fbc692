"""What the journal knows of the files of a chat, as SQL: announced, named by messages, here, gone, or our own."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.files import INLINE, INLINE_ID, inline_id, is_file, pending_id, safe_name
from molecule_connect.journal.models import Conversation, dump_parts, load_parts, plain, plain_or_none
from molecule_connect.models import FilePart, Inbound, Kind, Part, UploadLimits

# A message may bring as many files as one upload to the platform (contract 2.12).
MOST_FILES = 64
# Bytes of the files inside a message: of one, and of all. The uploads of a 2026-05 platform may have as many.
MOST_INLINE, MOST_INLINE_IN_ALL = UploadLimits().per_file, UploadLimits().per_request
# A message waits at most this long for its files, in seconds: a minute of fetching and its overhead.
FILES_TIMEOUT = 65.0
NOT_THEIRS = "it is not a file of this sender; another workspace sends a file's bytes in the message itself"
# A manifest that equals a note of an upload of ours is ours for so long (microseconds).
OURS_FOR = 3600 * 1_000_000
# Nothing waits for longer: what seems to, met a clock that was set back.
LONGEST_WAIT = 600.0
# Whose files are fetched; what other rows name needs only to be known as named.
_READ = (Kind.MESSAGE, Kind.ANSWER, Kind.RESULT)
_COLUMNS = (
    "file_id, caller_id, uri, row_id, name, mime_type, size, time, arrived, state, path, reason, attempts, not_before,"
    " acked"
)
_OPEN = (
    "EXISTS (SELECT 1 FROM file_use u JOIN message m ON m.workspace_id=u.workspace_id AND m.row_id=u.row_id"
    " WHERE u.workspace_id=file.workspace_id AND u.file_id=file.file_id AND m.state NOT IN ('done', 'dead'))"
)
# Until nobody can claim it any more, a file without a message is one that a message may still name.
_REMOVABLE = f"state='here' AND named AND NOT {_OPEN}"
_DUE = "(coalesce(not_before, 0) <= ? OR not_before > ?)"
_UNNAMED = "named=0 AND file.state <> 'ours'"


@attrs.frozen(kw_only=True)
class StoredFile:
    """One file of the chat.

    Attributes:
        caller_id: The workspace whose message holds its bytes; None for a file of people.
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
    caller_id: str | None
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


def load(rows: Sequence[tuple[Any, ...]]) -> list[StoredFile]:
    """The files in rows of ``_COLUMNS``."""
    names = _COLUMNS.split(", ")
    return [StoredFile(**dict(zip(names, row, strict=True))) for row in rows]


def accepted(item: Inbound) -> Inbound:
    """*item* with a marker, which says why, in the place of each file that is not taken.

    Only people can name uploads: the platform would give us any upload of our chat, whoever names it.
    """
    if not any(isinstance(part, FilePart) for part in item.parts):
        return item
    may_name, room = _may_name_uploads(item), MOST_INLINE_IN_ALL
    parts: list[Part] = []
    count = further_at = 0
    for part in item.parts:
        if isinstance(part, FilePart):
            count += 1
            if count > MOST_FILES:
                further_at = further_at or len(parts)
                continue
            if part.uri.startswith(INLINE):
                size = _inline_size(part)
                part = _checked(part, size, room)
                room -= 0 if part.unavailable else size
            elif not may_name and pending_id(part.uri) is not None:
                part = attrs.evolve(part, unavailable=NOT_THEIRS)
        parts.append(part)
    if further := count - MOST_FILES if count > MOST_FILES else 0:
        name = f"{further:,} more file{'s' if further > 1 else ''}"
        why = f"a message may bring at most {MOST_FILES} files"
        parts.insert(further_at, FilePart(uri="", name=name, unavailable=why))
    return attrs.evolve(item, parts=parts)


def _may_name_uploads(item: Inbound) -> bool:
    if item.kind in (Kind.ECHO, Kind.OWN):
        return True
    # Results of delegations are written by peers, and their rows may have no source, or ours.
    return item.caller_id is None and item.kind in (Kind.MESSAGE, Kind.HISTORY, Kind.UPLOAD)


def _inline_size(part: FilePart) -> int:
    return (len(part.uri) - part.uri.find(",") - 1) * 3 // 4


def _checked(part: FilePart, size: int, room: int) -> FilePart:
    """An inline file as it is, or without its bytes when it is too large."""
    if size > MOST_INLINE:
        why = f"it has {size >> 20} MiB, more than the {MOST_INLINE >> 20} MiB that are taken"
    elif size > room:
        why = f"the files inside its message have more than the {MOST_INLINE_IN_ALL >> 20} MiB that are taken"
    else:
        return part
    return attrs.evolve(part, uri="", size=size, unavailable=why)


def add(
    db: sqlite3.Connection, workspace_id: str, item: Inbound, time: int, wall: float, *, is_repeat: bool = False
) -> None:
    """Take in the files that a new row, as ``accepted`` gave it, announces or names.

    The bytes in the *repeat* of a message that is known are not stored a second time.
    """
    if item.kind is Kind.UPLOAD:
        for part in item.parts:
            file_id = pending_id(part.uri) if isinstance(part, FilePart) else None
            if file_id is not None and isinstance(part, FilePart):
                _announce(db, workspace_id, file_id, part, item.row_id, time, wall)
        return
    named = {file_id: part for _, file_id, part in _files_of(item.row_id, item.parts)}
    if item.kind not in _READ or is_repeat:
        named = {file_id: part for file_id, part in named.items() if not part.uri.startswith(INLINE)}
    use(db, workspace_id, list(named), item.row_id)
    if item.kind not in _READ:
        return
    # The result of a delegation may come without the peer that wrote it: it is not a person's.
    owner = item.caller_id or (None if item.kind is Kind.MESSAGE else workspace_id)
    for file_id, part in named.items():
        if part.uri.startswith(INLINE):
            # The message keeps the bytes. Here is only noted how much room they need.
            about = attrs.evolve(part, uri=INLINE, size=_inline_size(part))
            _insert(db, workspace_id, file_id, about, None, time, wall, owner=owner, on_conflict="NOTHING")
        else:
            _insert(db, workspace_id, file_id, part, None, time, wall, on_conflict=_NAMES_OURS)


def _files_of(row_id: str, parts: Sequence[Part]) -> Iterator[tuple[int, str, FilePart]]:
    """The files that the row names and that are taken, each with the part's number and the file's id."""
    for number, part in enumerate(parts):
        if isinstance(part, FilePart) and not part.unavailable:
            file_id = inline_id(row_id, number) if part.uri.startswith(INLINE) else pending_id(part.uri)
            if file_id is not None:
                yield number, file_id, part


def is_own_upload(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> bool:
    """Whether *item*, which was taken in, announces nothing but files that we uploaded ourselves."""
    if item.kind is not Kind.UPLOAD:
        return False
    own = "SELECT 1 FROM file WHERE workspace_id=? AND file_id=? AND state='ours'"
    announced = [pending_id(part.uri) for part in item.parts if isinstance(part, FilePart)]
    return bool(announced) and all(db.execute(own, (workspace_id, one)).fetchone() for one in announced)


# What passed for ours, and may be, is wanted now. To acknowledge it would take it away from the person.
_NAMES_OURS = "UPDATE SET state='waiting', acked=1, changed=excluded.changed WHERE file.state='ours'"


def _announce(
    db: sqlite3.Connection, workspace_id: str, file_id: str, part: FilePart, row_id: str, time: int, wall: float
) -> None:
    ours = db.execute(
        "SELECT 1 FROM upload_note WHERE workspace_id=? AND name=? AND size IS ? AND abs(time - ?) < ? LIMIT 1",
        (workspace_id, safe_name(part.name), part.size, time, OURS_FOR),
    ).fetchone()
    # The first announcement counts: a later one of the same upload is not the platform's.
    update = (
        "UPDATE SET row_id=excluded.row_id, name=excluded.name, mime_type=excluded.mime_type, size=excluded.size"
        " WHERE file.row_id IS NULL"
    )
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
    owner: str | None = None,
    state: str = "waiting",
    on_conflict: str,
) -> None:
    db.execute(
        "INSERT INTO file (workspace_id, file_id, caller_id, uri, row_id, name, mime_type, size, time, arrived, state,"  # noqa: S608
        " changed, named) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,"
        f" EXISTS (SELECT 1 FROM file_use WHERE workspace_id=? AND file_id=?)) ON CONFLICT DO {on_conflict}",
        (
            *(workspace_id, file_id, plain_or_none(owner), plain(part.uri), row_id, plain(part.name)),
            *(plain(part.mime_type), part.size, time, wall, state, wall, workspace_id, file_id),
        ),
    )


def use(db: sqlite3.Connection, workspace_id: str, file_ids: Sequence[str], row_id: str) -> None:
    """The row names these files."""
    db.executemany(
        "INSERT OR IGNORE INTO file_use (workspace_id, file_id, row_id) VALUES (?,?,?)",
        [(workspace_id, file_id, row_id) for file_id in file_ids],
    )
    db.executemany(
        "UPDATE file SET named=1 WHERE workspace_id=? AND file_id=?", [(workspace_id, file_id) for file_id in file_ids]
    )


def due(db: sqlite3.Connection, workspace_id: str, caller_id: str | None, wall: float, most: int) -> list[StoredFile]:
    """What is to be brought here now for one caller: first what was announced, of that what messages name."""
    sql = (
        f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND caller_id IS ? AND state='waiting' AND {_DUE}"  # noqa: S608
        " ORDER BY row_id IS NULL, named DESC, time LIMIT ?"
    )
    return load(db.execute(sql, (workspace_id, caller_id, wall, wall + LONGEST_WAIT, most)).fetchall())


def next_peer(db: sqlite3.Connection, workspace_id: str, after: str, wall: float) -> str | None:
    """The first peer after that one, by id, for whom something is to be brought here now."""
    row = db.execute(
        f"SELECT caller_id FROM file WHERE workspace_id=? AND caller_id > ? AND state='waiting' AND {_DUE}"  # noqa: S608
        " ORDER BY caller_id LIMIT 1",
        (workspace_id, after, wall, wall + LONGEST_WAIT),
    ).fetchone()
    return None if row is None else str(row[0])


def unacknowledged(db: sqlite3.Connection, workspace_id: str, wall: float, most: int) -> list[StoredFile]:
    """What is to be acknowledged now."""
    sql = (
        f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND state='here' AND acked=0 AND {_DUE}"  # noqa: S608
        " ORDER BY time LIMIT ?"
    )
    return load(db.execute(sql, (workspace_id, wall, wall + LONGEST_WAIT, most)).fetchall())


def next_due(db: sqlite3.Connection, workspace_id: str, wall: float) -> float | None:
    """When something is to be tried again (seconds since 1970)."""
    row = db.execute(
        "SELECT not_before FROM file WHERE workspace_id=? AND not_before > ?"
        " AND (state='waiting' OR (state='here' AND acked=0)) ORDER BY not_before LIMIT 1",
        (workspace_id, wall),
    ).fetchone()
    return None if row is None else float(row[0])


def is_waiting(db: sqlite3.Connection, workspace_id: str, file_id: str) -> bool:
    """Whether a file is not here yet, and may be."""
    sql = "SELECT 1 FROM file WHERE workspace_id=? AND file_id=? AND state='waiting'"
    return db.execute(sql, (workspace_id, file_id)).fetchone() is not None


def awaited(db: sqlite3.Connection, workspace_id: str, row_id: str) -> list[str]:
    """The files of a row that are not here yet, and may be."""
    rows = db.execute(
        "SELECT u.file_id FROM file_use u CROSS JOIN file f ON f.workspace_id=u.workspace_id AND f.file_id=u.file_id"
        " WHERE u.workspace_id=? AND u.row_id=? AND f.state='waiting'",
        (workspace_id, row_id),
    )
    return [row[0] for row in rows]


def with_paths(
    db: sqlite3.Connection, workspace_id: str, row_id: str, parts: tuple[Part, ...], folder: Path
) -> tuple[Part, ...]:
    """The *parts* of a row with the path of each file that is here, and for the others why not."""
    files = list(_files_of(row_id, parts))
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
        return attrs.evolve(part, unavailable=reason or ("it is not here yet" if place is None else REMOVED))
    return attrs.evolve(part, path=place, name=part.name or name, mime_type=mime or part.mime_type, size=size)


REMOVED = "it was removed from this machine"


def inline_of(db: sqlite3.Connection, workspace_id: str, file_id: str) -> list[tuple[StoredFile, str | None]]:
    """The inline files to be unpacked of the row that *file_id* belongs to, each with its ``data:`` URI.

    None in its place: the row's bytes are not kept any more.
    """
    use = "SELECT row_id FROM file_use WHERE workspace_id=? AND file_id=?"
    used = db.execute(use, (workspace_id, file_id)).fetchone()
    if used is None:
        return []
    row_id = used[0]
    columns = ", ".join(f"file.{name}" for name in _COLUMNS.split(", "))
    files = load(
        db.execute(
            # Left to itself, SQLite looks at every file of the workspace.
            f"SELECT {columns} FROM file_use u CROSS JOIN file ON file.workspace_id=u.workspace_id"  # noqa: S608
            " AND file.file_id=u.file_id WHERE u.workspace_id=? AND u.row_id=? AND file.state='waiting'"
            " AND substr(file.file_id, 1, ?)=? ORDER BY file.file_id",
            (workspace_id, row_id, len(INLINE_ID), INLINE_ID),
        ).fetchall()
    )
    row = db.execute("SELECT parts FROM message WHERE workspace_id=? AND row_id=?", (workspace_id, row_id)).fetchone()
    parts = load_parts(row[0]) if row and row[0] else ()
    kept = {file_id: part.uri for _, file_id, part in _files_of(row_id, parts)}
    return [(file, kept.get(file.file_id)) for file in files]


# What this machine did not keep, or could not take yet. The bytes are still in the message.
_AGAIN = (
    "workspace_id=? AND file_id IN (SELECT file_id FROM file_use WHERE workspace_id=? AND row_id=?)"
    " AND substr(file_id, 1, ?)=? AND (state='gone' OR (state='waiting' AND not_before IS NOT NULL))"
)


def may_unpack_again(db: sqlite3.Connection, workspace_id: str, row_id: str) -> bool:
    """Whether ``unpack_again`` would change anything."""
    values = (workspace_id, workspace_id, row_id, len(INLINE_ID), INLINE_ID)
    return db.execute(f"SELECT 1 FROM file WHERE {_AGAIN} LIMIT 1", values).fetchone() is not None  # noqa: S608


def unpack_again(db: sqlite3.Connection, workspace_id: str, row_id: str, wall: float) -> None:
    """The inline files of the row that are not here are tried at once."""
    db.execute(
        f"UPDATE file SET state='waiting', not_before=NULL, attempts=0, acked=0, changed=? WHERE {_AGAIN}",  # noqa: S608
        (wall, workspace_id, workspace_id, row_id, len(INLINE_ID), INLINE_ID),
    )


def newest_unnamed(db: sqlite3.Connection, workspace_id: str) -> float | None:
    """When the newest of the files of people arrived that no row names (seconds since 1970)."""
    row = db.execute(
        "SELECT max(file.arrived) FROM file JOIN message m ON m.workspace_id=file.workspace_id AND m.row_id=file.row_id"  # noqa: S608
        f" WHERE file.workspace_id=? AND {_UNNAMED} AND m.kind='upload'",
        (workspace_id,),
    ).fetchone()
    return None if row[0] is None else float(row[0])


def unnamed(db: sqlite3.Connection, workspace_id: str) -> list[StoredFile]:
    """The files of people that no row names, the oldest first: as many as a message may bring."""
    columns = ", ".join(f"file.{name}" for name in _COLUMNS.split(", "))
    return load(
        db.execute(
            f"SELECT {columns} FROM file JOIN message m ON m.workspace_id=file.workspace_id AND m.row_id=file.row_id"  # noqa: S608
            f" WHERE file.workspace_id=? AND {_UNNAMED} AND m.kind='upload' ORDER BY m.time, m.seq, m.arrival LIMIT ?",
            (workspace_id, MOST_FILES),
        ).fetchall()
    )


def gather(
    db: sqlite3.Connection, workspace_id: str, wall: float, quiet: float
) -> tuple[str, Conversation, str] | None:
    """Make one message of files that nobody named, *quiet* seconds after the newest. Its row, conversation and names.

    It stands in the conversation in which the person wrote last. Files that it can't hold are left for the next one.
    """
    newest = newest_unnamed(db, workspace_id)
    # An arrival in the future: the clock was set back.
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


def move(db: sqlite3.Connection, workspace_id: str, file: StoredFile, wall: float, **changes: Any) -> bool:
    """Change a file that is still in the state that *file* says; False: it is not."""
    assignments = ", ".join(f"{name}=?" for name in changes)
    cursor = db.execute(
        f"UPDATE file SET {assignments}, changed=? WHERE workspace_id=? AND file_id=? AND state=?",  # noqa: S608
        (*changes.values(), wall, workspace_id, file.file_id, file.state),
    )
    return cursor.rowcount == 1


def removable(
    db: sqlite3.Connection, workspace_id: str, caller_id: str | None, *, before: float, most: int = -1
) -> list[StoredFile]:
    """Files here of one caller that only finished messages name, and that came before then, the oldest first."""
    sql = (
        f"SELECT {_COLUMNS} FROM file WHERE workspace_id=? AND caller_id IS ? AND arrived < ? AND {_REMOVABLE}"  # noqa: S608
        " ORDER BY arrived LIMIT ?"
    )
    return load(db.execute(sql, (workspace_id, caller_id, before, most)).fetchall())


def is_removable(db: sqlite3.Connection, workspace_id: str, file_id: str) -> bool:
    """Whether only finished messages name a file that is here."""
    sql = f"SELECT 1 FROM file WHERE workspace_id=? AND file_id=? AND {_REMOVABLE}"  # noqa: S608
    return db.execute(sql, (workspace_id, file_id)).fetchone() is not None


def usage(db: sqlite3.Connection, workspace_id: str, least: int) -> dict[str | None, int]:
    """Bytes of the files that are here, by caller. A smaller file counts as *least* bytes."""
    sql = "SELECT caller_id, sum(max(size, ?)) FROM file WHERE workspace_id=? AND state='here' GROUP BY caller_id"
    return {row[0]: int(row[1]) for row in db.execute(sql, (least, workspace_id))}


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
        if file_id := pending_id(file.uri):
            ours = "UPDATE SET state='ours', acked=1 WHERE NOT file.named"
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
