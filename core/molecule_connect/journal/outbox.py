"""The outbox: changes of shared workspaces, noted by triggers in the same transaction, until the mirror has them."""

import contextlib
import enum
import json
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.files import INLINE_ID
from molecule_connect.journal.copies import merge_part, table_info
from molecule_connect.journal.models import State
from molecule_connect.journal.schema import open_file
from molecule_connect.mirrors import Lease, MirrorError, Row

# The columns that identify a row of a workspace. Numbers that the journal assigns itself differ between machines, so
# they are only used where nothing else is unique; see ``_RENUMBERED``.
KEYS: Mapping[str, tuple[str, ...]] = {
    "workspace": (),
    "message": ("row_id",),
    "spend": ("day",),
    "peer_spend": ("day", "caller_id"),
    "cost": ("quarter",),
    "asked": ("message_id",),
    "told": ("rowid",),
    "file": ("file_id",),
    "file_use": ("file_id", "row_id"),
    "upload_note": ("note",),
    "peer_name": ("peer_id",),
}
_RENUMBERED = ("told", "upload_note")
# The texts of a message, which the mirror gets only when they change: they can be most of its size.
_BODY = ("parts", "raw")
# Columns that each machine assigns itself.
_OWN = {"message": {"arrival"}, "upload_note": {"note"}}
# The order in which a copy's rows are numbered anew.
_ORDER = {"message": "time, seq, arrival", "told": "time, rowid", "upload_note": "time, note"}
# Precedes the target of a workspace whose copy is being deleted. No host is named so.
_LEAVING = "leaving "
# Seconds after which another machine may have handled a message, and deleted it.
_RECENT = 3600.0
# Rows and bytes that are read at once, on the event loop.
PART_ROWS, PART_BYTES = 200, 1 << 20
try:
    # Of Linux. Elsewhere, each kill counts as a loss of power.
    BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
except OSError:
    BOOT = ""
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class Start(enum.Enum):
    """How the local part of a workspace came to be current when its lease was taken."""

    KEPT = "kept"  # nobody else served since
    LOADED = "loaded"  # replaced by the mirror's copy
    SEEDED = "seeded"  # the mirror had no copy
    AHEAD = "ahead"  # the mirror lost changes, and gets them again


@attrs.frozen(kw_only=True)
class Shared:
    """What is known of a shared workspace.

    Attributes:
        target: The database, as in ``JournalMirror.where``.
        epoch: Of the lease that this journal had last.
        commits: The last known number of transactions that changed the mirror's copy.
        is_leaving: The copy is being deleted.
        boot: Identifies the start of the machine in which the lease began; empty if unknown.
    """

    target: str
    epoch: int
    commits: int
    is_leaving: bool
    boot: str


@attrs.frozen(kw_only=True)
class Entry:
    """A changed row. ``number`` grows with each change."""

    number: int
    workspace_id: str
    table: str
    key: str
    is_body: bool


def install_triggers(db: sqlite3.Connection) -> None:
    """Note all changes of shared workspaces from now on, also those of other processes."""
    for table, columns in KEYS.items():
        is_message = table == "message"
        _trigger(db, table, "insert", "INSERT", _note("NEW", table, columns, body="1" if is_message else "0"))
        _trigger(db, table, "update", "UPDATE", _note("NEW", table, columns, body="0"))
        _trigger(db, table, "delete", "DELETE", _note("OLD", table, columns, body="0"))
        _trigger(db, table, "move", "UPDATE OF workspace_id", _note("OLD", table, columns, body="0"))
        if is_message:
            # The mirror doesn't have the texts of a row that came from another workspace.
            of = f"UPDATE OF workspace_id, {', '.join(_BODY)}"
            _trigger(db, table, "body", of, _note("NEW", table, columns, body="1"))


def _trigger(db: sqlite3.Connection, table: str, name: str, event: str, statement: str) -> None:
    row = "OLD" if name in ("delete", "move") else "NEW"
    db.execute(
        f"CREATE TRIGGER IF NOT EXISTS outbox_{table}_{name} AFTER {event} ON {table}"  # noqa: S608 - the names are literals above
        f" WHEN EXISTS (SELECT 1 FROM shared WHERE workspace_id={row}.workspace_id) BEGIN {statement}; END"
    )


def _note(row: str, table: str, columns: Sequence[str], *, body: str) -> str:
    key = f"json_array({', '.join(f'{row}.{column}' for column in columns)})"
    # Not OR REPLACE: in a trigger, the policy of the statement that fires it applies, such as IGNORE, or ABORT in the
    # update of an upsert.
    return (
        f"INSERT INTO outbox (workspace_id, tbl, key, body) VALUES ({row}.workspace_id, '{table}', {key}, {body})"  # noqa: S608
        " ON CONFLICT (workspace_id, tbl, key) DO UPDATE SET number=excluded.number, body=max(body, excluded.body)"
    )


def note_all(db: sqlite3.Connection, workspace_id: str) -> None:
    """Note all rows of a workspace."""
    for table in KEYS:
        _note_table(db, workspace_id, table)


def _note_table(db: sqlite3.Connection, workspace_id: str, table: str) -> None:
    key = f"json_array({', '.join(KEYS[table])})"
    db.execute(
        f"INSERT OR REPLACE INTO outbox (workspace_id, tbl, key, body) SELECT workspace_id, ?, {key}, 1"  # noqa: S608
        f" FROM {table} WHERE workspace_id=?",
        (table, workspace_id),
    )


# Shipping


def last_number(db: sqlite3.Connection) -> int:
    """The number of the newest change, also if it was forgotten since; 0 if there was none."""
    row = db.execute("SELECT seq FROM sqlite_sequence WHERE name='outbox'").fetchone()
    return 0 if row is None else int(row[0])


def last_number_of(db: sqlite3.Connection, workspace_id: str) -> int:
    """The number of the newest change of a workspace in the outbox; 0 if there is none."""
    row = db.execute("SELECT max(number) FROM outbox WHERE workspace_id=?", (workspace_id,)).fetchone()
    return int(row[0] or 0)


def renumber_last(db: sqlite3.Connection, workspace_id: str) -> None:
    """Give the newest change of a workspace a number that is newer than all others."""
    db.execute(
        "INSERT OR REPLACE INTO outbox (workspace_id, tbl, key, body) SELECT workspace_id, tbl, key, body FROM outbox"
        " WHERE number=?",
        (last_number_of(db, workspace_id),),
    )


def entries(db: sqlite3.Connection, workspace_ids: Collection[str]) -> list[Entry]:
    """The changes of these workspaces, oldest first."""
    found = db.execute(
        "SELECT number, workspace_id, tbl, key, body FROM outbox"
        " WHERE workspace_id IN (SELECT value FROM json_each(?)) ORDER BY number",
        (json.dumps(list(workspace_ids)),),
    ).fetchall()
    return [
        Entry(number=number, workspace_id=workspace_id, table=table, key=key, is_body=bool(body))
        for number, workspace_id, table, key, body in found
    ]


class RowReader:
    """Reads changed rows in the form in which they are shipped."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        # By table, and whether the texts of a message are read: the columns, and the statement.
        self._statements: dict[tuple[str, bool], tuple[list[str], str]] = {}

    def parts(self, noted: Sequence[Entry]) -> Iterator[dict[str, list[Row]]]:
        """The present content of the changed rows, by workspace, in parts of limited size."""
        part: dict[str, list[Row]] = {}
        rows, size = 0, 0
        for entry in noted:
            row = self._read(entry)
            part.setdefault(entry.workspace_id, []).append(row)
            rows, size = rows + 1, size + len(row.data or b"") + len(row.body or b"")
            if rows >= PART_ROWS or size >= PART_BYTES:
                yield part
                part, rows, size = {}, 0, 0
        if part:
            yield part

    def _read(self, entry: Entry) -> Row:
        columns, sql = self._statement(entry.table, with_body=entry.is_body)
        found = self._db.execute(sql, (entry.workspace_id, *json.loads(entry.key))).fetchone()
        if found is None:
            return Row(table=entry.table, key=entry.key, data=None)
        # More than half of a message's columns are empty.
        values = {name: value for name, value in zip(columns, found, strict=True) if value is not None}
        if entry.table != "message":
            return Row(table=entry.table, key=entry.key, data=_dump(values))
        body = _dump([values.pop(name, None) for name in _BODY]) if entry.is_body else None
        state = values["state"] if values["kind"] == "message" else ""
        return Row(table=entry.table, key=entry.key, data=_dump(values), body=body, state=state, time=values["time"])

    def _statement(self, table: str, *, with_body: bool) -> tuple[list[str], str]:
        if (known := self._statements.get((table, with_body))) is not None:
            return known
        left_out = {"workspace_id", *_OWN.get(table, ()), *(_BODY if not with_body else ())}
        columns = sorted(_columns(self._db, table) - left_out)
        where = "".join(f" AND {column}=?" for column in KEYS[table])
        sql = f"SELECT {', '.join(columns)} FROM {table} WHERE workspace_id=?{where}"  # noqa: S608
        self._statements[table, with_body] = columns, sql
        return columns, sql


def _dump(value: Any) -> bytes:
    return _ENCODER.encode(value).encode()


def shipped(db: sqlite3.Connection, workspace_ids: Collection[str], through: int, commits: Mapping[str, int]) -> None:
    """Forget the changes of these workspaces up to the number *through*: the mirror has them.

    Args:
        commits: See ``Shared.commits``.
    """
    db.execute(
        "DELETE FROM outbox WHERE number <= ? AND workspace_id IN (SELECT value FROM json_each(?))",
        (through, json.dumps(list(workspace_ids))),
    )
    db.executemany(
        "UPDATE shared SET commits=? WHERE workspace_id=?", [(number, name) for name, number in commits.items()]
    )


# Starting to share


def shared(db: sqlite3.Connection, workspace_id: str) -> Shared | None:
    """What the journal knows of a shared workspace; None if it isn't shared."""
    sql = "SELECT target, epoch, commits, boot FROM shared WHERE workspace_id=?"
    row = db.execute(sql, (workspace_id,)).fetchone()
    if row is None:
        return None
    target, epoch, commits, boot = row
    is_leaving = target.startswith(_LEAVING)
    return Shared(target=target.removeprefix(_LEAVING), epoch=epoch, commits=commits, is_leaving=is_leaving, boot=boot)


def leave(db: sqlite3.Connection, workspace_id: str) -> None:
    """Note that the mirror's copy of a workspace is about to be deleted."""
    db.execute("UPDATE shared SET target=? || target WHERE workspace_id=?", (_LEAVING, workspace_id))


def find_start(db: sqlite3.Connection, lease: Lease, target: str, *, boot: str = BOOT) -> Start:
    """How to begin with a lease that was just taken.

    The local part is current if this journal had the previous epoch, and nothing was committed since. One commit may be
    missing from its record: the last one before a kill, whose changes are still in the outbox. After a loss of power,
    the outbox may lack some of them.

    AHEAD only means that the mirror lost changes. Another journal may have given it newer ones, see ``is_newer``.
    """
    known = shared(db, lease.workspace_id)
    if known is not None and known.target != target:
        known = None
    if lease.commits == 0:
        # There is no copy, also if others had the lease meanwhile: they stored nothing.
        return Start.SEEDED if known is None or known.commits == 0 else Start.AHEAD
    if known is None:
        return Start.LOADED
    is_ours = known.epoch == lease.epoch - 1
    if known.epoch >= lease.epoch or (is_ours and known.commits > lease.commits):
        return Start.AHEAD
    missing = lease.commits - known.commits
    is_same_boot = known.boot == boot != ""
    if is_ours and (missing == 0 or (missing == 1 and is_same_boot and entries(db, [lease.workspace_id]))):
        return Start.KEPT
    return Start.LOADED


def is_newer(db: sqlite3.Connection, workspace_id: str, position: Row | None) -> bool:
    """Whether a mirror's copy, which has *position* in the table ``workspace``, read the feed after this journal."""
    if position is None or position.data is None:
        return False
    found = db.execute("SELECT last_read FROM workspace WHERE workspace_id=?", (workspace_id,)).fetchone()
    ours = found[0] if found is not None else None
    return int(json.loads(position.data).get("last_read") or 0) > (ours or 0)


def note_rows(db: sqlite3.Connection, workspace_id: str, keys: Iterable[tuple[str, str]]) -> None:
    """Note rows by table and key, also those that the journal doesn't have: they are removed from the mirror."""
    db.executemany(
        "INSERT OR REPLACE INTO outbox (workspace_id, tbl, key, body) VALUES (?, ?, ?, 1)",
        [(workspace_id, table, key) for table, key in keys],
    )


def begin(db: sqlite3.Connection, lease: Lease, *, target: str, is_complete: bool = True) -> None:
    """Record the lease of a workspace whose local part is current.

    Args:
        is_complete: Whether the mirror has everything except the changes in the outbox.
    """
    values = (lease.workspace_id, target, lease.epoch, lease.commits, BOOT)
    db.execute("REPLACE INTO shared VALUES (?, ?, ?, ?, ?)", values)
    if not is_complete:
        note_all(db, lease.workspace_id)


def forget(db: sqlite3.Connection, workspace_id: str) -> None:
    """Share a workspace no more. Without its row in shared, the triggers don't note what follows."""
    for table in ("shared", "outbox"):
        db.execute(f"DELETE FROM main.{table} WHERE workspace_id=?", (workspace_id,))  # noqa: S608


class CopyWriter:
    """Writes a mirror's copies of workspaces to a new journal, in one transaction.

    Attributes:
        renumbered: The workspace, table and key of each row that gets another key in this journal.
    """

    def __init__(self, path: Path) -> None:
        self.db = open_file(path)
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("BEGIN IMMEDIATE")
        self._columns = {table: _columns(self.db, table) for table in KEYS}
        self.renumbered: list[tuple[str, str, str]] = []

    def add(self, workspace_id: str, rows: Iterable[Row]) -> None:
        """Add rows of a workspace, in the order in which ``JournalMirror.load`` returns them.

        Raises:
            MirrorError: They were written by a newer release.
        """
        for row in rows:
            values = json.loads(row.data or b"{}")
            if row.table == "message":
                values |= zip(_BODY, json.loads(row.body or b"[null,null]"), strict=True)
            if row.table not in KEYS or not values.keys() <= self._columns[row.table]:
                raise MirrorError(
                    f"the copy of {workspace_id} was written by a newer molecule-connect",
                    hint="update molecule-connect on this machine",
                )
            if row.table in _RENUMBERED:
                self.renumbered.append((workspace_id, row.table, row.key))
            values["workspace_id"] = workspace_id
            names, marks = ", ".join(values), ", ".join("?" * len(values))
            self.db.execute(f"INSERT INTO {row.table} ({names}) VALUES ({marks})", list(values.values()))  # noqa: S608

    def finish(self) -> None:
        """Commit, and close the file."""
        self.db.execute("COMMIT")
        self.db.close()

    def close(self) -> None:
        """Close the file, if ``finish`` didn't."""
        self.db.close()


class Loader:
    """Writes a mirror's copy of a workspace to a journal of its own, which then replaces the part of *journal*.

    Args:
        part: The new file.
    """

    def __init__(self, part: Path, workspace_id: str) -> None:
        self._part = part
        self._workspace_id = workspace_id
        self._copy = CopyWriter(part)

    def add(self, rows: Iterable[Row]) -> None:
        """See ``CopyWriter.add``."""
        self._copy.add(self._workspace_id, rows)

    def finish(self, journal: Path, lease: Lease, *, target: str, has_file: Callable[[str], bool]) -> None:
        """Replace the workspace's part of *journal* and its changes in the outbox, and record the lease.

        Args:
            has_file: Whether a file that another machine fetched is in the folder of this one.

        Raises:
            JournalError: One of the files can't be used.
        """
        self._refetch(has_file)
        self._copy.finish()

        kept: list[tuple[str, str]] = []

        def before(db: sqlite3.Connection) -> None:
            kept.extend(("message", key) for key in _keep_crashes(db, self._workspace_id, time.time()))
            forget(db, self._workspace_id)

        def renumber(db: sqlite3.Connection) -> None:
            renumbered = [(table, key) for _, table, key in self._copy.renumbered]
            note_rows(db, self._workspace_id, [*kept, *renumbered])
            for table in _RENUMBERED:
                _note_table(db, self._workspace_id, table)
            begin(db, lease, target=target)

        merge_part(self._part, journal, self._workspace_id, before=before, after=renumber, order=_ORDER)

    def close(self) -> None:
        """Close the file, if ``finish`` didn't."""
        self._copy.close()

    def _refetch(self, has_file: Callable[[str], bool]) -> None:
        """Fetch files again that are on another machine. Those that the platform deleted can't be fetched."""
        here = self._copy.db.execute("SELECT file_id, path FROM file WHERE state='here'").fetchall()
        missing = json.dumps([file_id for file_id, path in here if not has_file(path)])
        which = "file_id IN (SELECT value FROM json_each(?))"
        unfinished = (
            "EXISTS (SELECT 1 FROM file_use u JOIN message m ON m.row_id=u.row_id WHERE u.file_id=file.file_id"  # noqa: S608
            f" AND m.state NOT IN ('{State.DONE.value}', '{State.DEAD.value}'))"
        )
        is_inline = f"substr(file_id, 1, {len(INLINE_ID)})='{INLINE_ID}'"
        again = f"(CASE WHEN {is_inline} THEN {unfinished} ELSE acked=0 END)"
        self._copy.db.execute(
            f"UPDATE file SET path=NULL, attempts=0, not_before=NULL, acked=CASE WHEN {again} THEN 0 ELSE 1 END,"  # noqa: S608
            f" reason=CASE WHEN {again} THEN NULL ELSE ? END, state=CASE WHEN {again} THEN 'waiting' ELSE 'gone' END"
            f" WHERE {which}",
            ("another machine fetched it", missing),
        )


def _keep_crashes(db: sqlite3.Connection, workspace_id: str, wall: float) -> list[str]:
    """Keep the runs of this machine that a crash cut short before the mirror had them, in the copy *other*.

    Otherwise a message that kills every machine would be tried without end. Messages that the mirror doesn't have were
    not handled by any other machine, unless that was long ago. Returns their keys.
    """
    db.execute(
        "UPDATE other.message SET interruptions=interruptions+1 WHERE state NOT IN ('done', 'dead') AND EXISTS ("
        "SELECT 1 FROM main.message ours WHERE ours.workspace_id=? AND ours.row_id=message.row_id"
        " AND ours.state='running' AND ours.started IS NOT message.started)",
        (workspace_id,),
    )
    unknown = (
        "FROM main.message WHERE workspace_id=? AND state='running' AND changed > ?"
        " AND row_id NOT IN (SELECT row_id FROM other.message)"
    )
    columns = ", ".join(sorted(_columns(db, "message") - _OWN["message"]))
    values = (workspace_id, wall - _RECENT)
    keys = [row[0] for row in db.execute(f"SELECT json_array(row_id) {unknown}", values)]
    db.execute(f"INSERT INTO other.message ({columns}) SELECT {columns} {unknown}", values)
    return keys


def _columns(db: sqlite3.Connection, table: str) -> set[str]:
    return {row[1] for row in table_info(db, table)}


@contextlib.contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """Reads of *db* inside the block see one state of the journal."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("COMMIT")
