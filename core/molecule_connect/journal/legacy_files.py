"""Migration of the file rows of a release in which files did not belong to callers."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator

from molecule_connect.files import INLINE, INLINE_ID, inline_id

# The ids of this release have the row's id after a second colon.
_IS_INLINE = f"substr(file_id, 1, {len(INLINE_ID)})='{INLINE_ID}'"
_IS_OLD_INLINE = f"({_IS_INLINE} AND NOT instr(substr(file_id, {len(INLINE_ID) + 1}), ':'))"


def adopt(db: sqlite3.Connection, workspace_id: str) -> None:
    """Set the owner of each file of the workspace, and delete files that only peers named or announced.

    Runs under the lease: a process of the earlier release may serve other workspaces from the same journal.
    """
    _give_rows_their_inline_files(db, workspace_id)
    for statement in _OWNERS:
        db.execute(statement, {"workspace_id": workspace_id})


_OWNERS = (
    f"DELETE FROM file_use WHERE workspace_id=:workspace_id AND NOT {_IS_INLINE} AND EXISTS (SELECT 1 FROM message m"  # noqa: S608
    " WHERE m.workspace_id=file_use.workspace_id AND m.row_id=file_use.row_id AND (m.kind IN ('answer', 'result')"
    " OR (m.caller_id IS NOT NULL AND m.kind NOT IN ('echo', 'own'))))",
    "UPDATE file SET row_id=NULL WHERE workspace_id=:workspace_id AND EXISTS (SELECT 1 FROM message m"
    " WHERE m.workspace_id=file.workspace_id AND m.row_id=file.row_id AND m.caller_id IS NOT NULL)",
    "UPDATE file SET named=1 WHERE workspace_id=:workspace_id AND named=0 AND EXISTS (SELECT 1 FROM file_use u"
    " WHERE u.workspace_id=file.workspace_id AND u.file_id=file.file_id)",
    "DELETE FROM file WHERE workspace_id=:workspace_id AND row_id IS NULL AND named=0 AND state <> 'ours'"  # noqa: S608
    f" AND NOT {_IS_INLINE}",
)


def _give_rows_their_inline_files(db: sqlite3.Connection, workspace_id: str) -> None:
    """Give each row its own inline files: their ids were hashes of bytes and name, which rows shared."""
    rows = db.execute(
        "SELECT arrival, row_id, caller_id, kind FROM message WHERE workspace_id=? AND row_id IN"  # noqa: S608
        f" (SELECT row_id FROM file_use WHERE workspace_id=? AND {_IS_OLD_INLINE}) ORDER BY arrival",
        (workspace_id, workspace_id),
    ).fetchall()
    for arrival, row_id, caller_id, kind in rows:
        owner = caller_id or (None if kind == "message" else workspace_id)
        (parts,) = db.execute("SELECT parts FROM message WHERE arrival=?", (arrival,)).fetchone()
        if parts is None:
            # The message is finished; only the size of its files matters.
            db.execute(
                "UPDATE file SET caller_id=coalesce(caller_id, ?) WHERE workspace_id=? AND file_id IN"  # noqa: S608
                f" (SELECT file_id FROM file_use WHERE workspace_id=? AND row_id=? AND {_IS_OLD_INLINE})",
                (owner, workspace_id, workspace_id, row_id),
            )
            continue
        db.execute(
            f"DELETE FROM file_use WHERE workspace_id=? AND row_id=? AND {_IS_OLD_INLINE}",  # noqa: S608
            (workspace_id, row_id),
        )
        for number, old_id in _inline_ids(parts):
            _copy(db, workspace_id, old_id, inline_id(row_id, number), row_id, owner)
    db.execute(
        f"DELETE FROM file WHERE workspace_id=? AND {_IS_OLD_INLINE} AND NOT EXISTS (SELECT 1 FROM file_use u"  # noqa: S608
        " WHERE u.workspace_id=file.workspace_id AND u.file_id=file.file_id)",
        (workspace_id,),
    )


def _copy(db: sqlite3.Connection, workspace_id: str, old_id: str, new_id: str, row_id: str, owner: str | None) -> None:
    """Copy a file for a row. The first row gets the file on disk; others unpack their message's bytes."""
    db.execute(
        "INSERT OR IGNORE INTO file (workspace_id, file_id, uri, name, mime_type, size, time, arrived, state, path,"
        " reason, attempts, not_before, acked, changed, caller_id) SELECT workspace_id, ?, uri, name, mime_type, size,"
        " time, arrived, state, path, reason, attempts, not_before, acked, changed, ? FROM file"
        " WHERE workspace_id=? AND file_id=?",
        (new_id, owner, workspace_id, old_id),
    )
    db.execute(
        "UPDATE file SET state='waiting', path=NULL, acked=0 WHERE workspace_id=? AND file_id=? AND state='here'",
        (workspace_id, old_id),
    )
    db.execute("INSERT OR IGNORE INTO file_use VALUES (?,?,?)", (workspace_id, new_id, row_id))


def _inline_ids(parts: str) -> Iterator[tuple[int, str]]:
    """The numbers of the inline parts, and the old ids of their files."""
    for number, part in enumerate(json.loads(parts)):
        file = part.get("file") or {}
        if file.get("uri", "").startswith(INLINE):
            content = f"{file['uri']}\0{file['name']}".encode("utf-8", "replace")
            yield number, INLINE_ID + hashlib.blake2b(content, digest_size=16).hexdigest()
