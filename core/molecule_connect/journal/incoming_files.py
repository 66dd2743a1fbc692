"""The files of new rows, as SQL: which of them are accepted, and how they are stored."""

import sqlite3
from collections.abc import Iterator, Sequence

import attrs

from molecule_connect.files import INLINE, inline_id, pending_id, safe_name
from molecule_connect.journal.models import plain, plain_or_none
from molecule_connect.models import FilePart, Inbound, Kind, Part, UploadLimits

# A message may have as many files as one upload to the platform (contract 2.12).
MOST_FILES = 64
# Bytes of the files inside a message: of one file, and of all. A 2026-05 platform allows the same for an upload.
MOST_INLINE, MOST_INLINE_IN_ALL = UploadLimits().per_file, UploadLimits().per_request
NOT_THEIRS = "it is not a file of this sender; workspaces must send a file's bytes in the message itself"
# An announced file that matches a note of our own upload counts as ours for this long (microseconds).
OURS_FOR = 3600 * 1_000_000
# The kinds of rows whose files are fetched. Files of other rows are only marked as named.
_FETCHED = (Kind.MESSAGE, Kind.ANSWER, Kind.RESULT)


def accepted(item: Inbound) -> Inbound:
    """*item* with each rejected file replaced by a marker with the reason.

    Only people can name uploads: the platform serves any upload of our chat, no matter who names it.
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
        why = f"a message may have at most {MOST_FILES} files"
        parts.insert(further_at, FilePart(uri="", name=name, unavailable=why))
    return attrs.evolve(item, parts=parts)


def _may_name_uploads(item: Inbound) -> bool:
    if item.kind in (Kind.ECHO, Kind.OWN):
        return True
    # Peers write the results of delegations, and such rows may have no source, or ours.
    return item.caller_id is None and item.kind in (Kind.MESSAGE, Kind.HISTORY, Kind.UPLOAD)


def _inline_size(part: FilePart) -> int:
    return (len(part.uri) - part.uri.find(",") - 1) * 3 // 4


def _checked(part: FilePart, size: int, room: int) -> FilePart:
    """An inline file, without its bytes if it is too large."""
    if size > MOST_INLINE:
        why = f"it has {size >> 20} MiB, more than the limit of {MOST_INLINE >> 20} MiB"
    elif size > room:
        why = f"the files inside its message exceed the limit of {MOST_INLINE_IN_ALL >> 20} MiB"
    else:
        return part
    return attrs.evolve(part, uri="", size=size, unavailable=why)


def add(
    db: sqlite3.Connection, workspace_id: str, item: Inbound, time: int, wall: float, *, is_repeat: bool = False
) -> None:
    """Store the files that a new row, as ``accepted`` returned it, announces or names.

    The inline files of a repeated message are not stored a second time.
    """
    if item.kind is Kind.UPLOAD:
        for part in item.parts:
            file_id = pending_id(part.uri) if isinstance(part, FilePart) else None
            if file_id is not None and isinstance(part, FilePart):
                _announce(db, workspace_id, file_id, part, item.row_id, time, wall)
        return
    named = {file_id: part for _, file_id, part in files_of(item.row_id, item.parts)}
    if item.kind not in _FETCHED or is_repeat:
        named = {file_id: part for file_id, part in named.items() if not part.uri.startswith(INLINE)}
    use(db, workspace_id, list(named), item.row_id)
    if item.kind not in _FETCHED:
        return
    # The result of a delegation can lack the peer that wrote it; its files are not a person's.
    owner = item.caller_id or (None if item.kind is Kind.MESSAGE else workspace_id)
    for file_id, part in named.items():
        if part.uri.startswith(INLINE):
            # The message keeps the bytes; this row only records their size.
            about = attrs.evolve(part, uri=INLINE, size=_inline_size(part))
            insert(db, workspace_id, file_id, about, None, time, wall, owner=owner, on_conflict="NOTHING")
        else:
            insert(db, workspace_id, file_id, part, None, time, wall, on_conflict=_NAMES_OURS)


def files_of(row_id: str, parts: Sequence[Part]) -> Iterator[tuple[int, str, FilePart]]:
    """The accepted files that the row names: the number of the part, the id of the file, and the part."""
    for number, part in enumerate(parts):
        if isinstance(part, FilePart) and not part.unavailable:
            file_id = inline_id(row_id, number) if part.uri.startswith(INLINE) else pending_id(part.uri)
            if file_id is not None:
                yield number, file_id, part


def is_own_upload(db: sqlite3.Connection, workspace_id: str, item: Inbound) -> bool:
    """Whether *item*, which is stored, announces only files that we uploaded."""
    if item.kind is not Kind.UPLOAD:
        return False
    own = "SELECT 1 FROM file WHERE workspace_id=? AND file_id=? AND state='ours'"
    announced = [pending_id(part.uri) for part in item.parts if isinstance(part, FilePart)]
    return bool(announced) and all(db.execute(own, (workspace_id, one)).fetchone() for one in announced)


# A message names a file that counted as ours, so it may be a person's. Acknowledging it would delete it for the person.
_NAMES_OURS = "UPDATE SET state='waiting', acked=1, changed=excluded.changed WHERE file.state='ours'"


def _announce(
    db: sqlite3.Connection, workspace_id: str, file_id: str, part: FilePart, row_id: str, time: int, wall: float
) -> None:
    ours = db.execute(
        "SELECT 1 FROM upload_note WHERE workspace_id=? AND name=? AND size IS ? AND abs(time - ?) < ? LIMIT 1",
        (workspace_id, safe_name(part.name), part.size, time, OURS_FOR),
    ).fetchone()
    # The first announcement counts: a later one of the same upload doesn't come from the platform.
    update = (
        "UPDATE SET row_id=excluded.row_id, name=excluded.name, mime_type=excluded.mime_type, size=excluded.size"
        " WHERE file.row_id IS NULL"
    )
    state = "ours" if ours else "waiting"
    insert(db, workspace_id, file_id, part, row_id, time, wall, state=state, on_conflict=update)


def insert(
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
    """Record that the row names these files."""
    if not file_ids:
        return
    db.executemany(
        "INSERT OR IGNORE INTO file_use (workspace_id, file_id, row_id) VALUES (?,?,?)",
        [(workspace_id, file_id, row_id) for file_id in file_ids],
    )
    db.executemany(
        "UPDATE file SET named=1 WHERE workspace_id=? AND file_id=?", [(workspace_id, file_id) for file_id in file_ids]
    )
