"""Copies of the journal: backups of the whole file, and one workspace's part in a file of its own."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from molecule_connect.errors import ConfigError, JournalError
from molecule_connect.journal.errors import damaged, journal_error
from molecule_connect.journal.schema import VERSION, adopt, check_version, copy_file, open_file

# Tables that describe this machine.
_OWN_TABLES = {"exported", "shared", "outbox"}


@attrs.frozen(kw_only=True)
class Export:
    """A workspace that was exported, and is served from another machine since.

    Attributes:
        time: When, in seconds since 1970.
        target: The archive.
    """

    time: float
    target: str


@attrs.frozen(kw_only=True)
class WorkspaceInfo:
    """One workspace of a journal.

    Attributes:
        messages: The number of stored rows that are messages.
        unfinished: Those that are neither done nor dead letters.
        export: Set if it was exported.
    """

    workspace_id: str
    messages: int
    unfinished: int
    export: Export | None


@attrs.frozen(kw_only=True)
class JournalInfo:
    """A journal's file.

    Attributes:
        size: Of the file and its write-ahead log, in bytes.
        schema: Its version.
        is_current: Whether this release wrote it; an older one is upgraded when a connector opens it.
    """

    path: Path
    size: int
    schema: int
    is_current: bool
    workspaces: tuple[WorkspaceInfo, ...]


def describe(journal: Path) -> JournalInfo:
    """The file, schema and workspaces of *journal*. Changes nothing.

    Raises:
        JournalError: It can't be read, or was written by a newer release.
    """
    with _errors(journal, "read"), contextlib.closing(_connect(journal, "ro")) as db:
        schema = db.execute("PRAGMA user_version").fetchone()[0]
        check_version(db, journal)
        rows = db.execute(
            "SELECT workspace_id, sum(kind='message'), sum(kind='message' AND state NOT IN ('done', 'dead'))"
            " FROM (SELECT workspace_id, kind, state FROM message UNION ALL SELECT workspace_id, '', '' FROM workspace)"
            " GROUP BY workspace_id ORDER BY workspace_id"
        ).fetchall()
        knows_exports = db.execute("SELECT 1 FROM sqlite_master WHERE name='exported'").fetchone()
        workspaces = [
            WorkspaceInfo(
                workspace_id=name,
                messages=messages,
                unfinished=unfinished,
                export=export_of(db, name) if knows_exports else None,
            )
            for name, messages, unfinished in rows
        ]
    log = journal.with_name(f"{journal.name}-wal")
    size = journal.stat().st_size + (log.stat().st_size if log.exists() else 0)
    return JournalInfo(
        path=journal, size=size, schema=schema, is_current=schema == VERSION, workspaces=tuple(workspaces)
    )


def back_up(journal: Path, target: Path) -> None:
    """Write a consistent copy of *journal* to the new file *target*, while a connector runs or not.

    Raises:
        ConfigError: *target* exists or can't be written.
        JournalError: The journal can't be read.
    """
    with _errors(journal, "read"), contextlib.closing(_connect(journal, "ro")) as db:
        try:
            copy_file(db, target)
        except FileExistsError as exc:
            raise ConfigError(f"{target} exists already", hint="choose another file, or remove this one") from exc
        except OSError as exc:
            raise ConfigError(f"{target} can't be written: {exc.strerror}", hint="choose another file") from exc


def restore(backup: Path, journal: Path, aside: Path) -> None:
    """Replace *journal* by *backup*, at once. No connector may use it.

    Args:
        aside: The new file that keeps the earlier journal, if there is one.

    Raises:
        ConfigError: There is no such file.
        JournalError: It is damaged, not a journal, or of a newer release; or *journal* can't be written.
    """
    if not backup.is_file():
        raise ConfigError(f"there is no file {backup}", hint="pass a file that 'molecule journal backup' wrote")
    with _errors(backup, "read"), contextlib.closing(_connect(backup, "ro")) as source:
        check_copy(source, backup)
        with _errors(journal, "written"):
            if journal.exists():
                try:
                    back_up(journal, aside)
                except JournalError:  # damaged
                    for suffix in ("-shm", "-wal", ""):
                        with contextlib.suppress(FileNotFoundError):
                            Path(f"{journal}{suffix}").rename(f"{aside}{suffix}")
            with contextlib.closing(open_file(journal)) as target:
                source.backup(target)
            # Upgrade the schema of an earlier release.
            open_file(journal).close()


def check_copy(db: sqlite3.Connection, path: Path) -> None:
    """Check that the file at *path*, opened as *db*, is an undamaged journal of this or an older release.

    Raises:
        JournalError: It isn't.
    """
    check_version(db, path)
    (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise damaged(path, found)


def check_known(journal: Path, workspace_id: str) -> None:
    """Check that *journal* has the workspace.

    Raises:
        ConfigError: It doesn't.
        JournalError: It can't be read.
    """
    with _errors(journal, "read"), contextlib.closing(open_file(journal)) as db:
        adopt(db, workspace_id)
        if not _is_known(db, workspace_id):
            known = "SELECT workspace_id FROM workspace UNION SELECT workspace_id FROM message ORDER BY 1 LIMIT 5"
            names = ", ".join(row[0] for row in db.execute(known))
            raise ConfigError(
                f"the journal {journal} has no workspace {workspace_id}",
                hint=f"it has {names}" if names else "no connector has used this state folder",
            )


def check_free(journal: Path, workspace_id: str) -> None:
    """Check that the workspace can be added to *journal*, which is created if it is missing.

    Raises:
        ConfigError: *journal* has the workspace, and it wasn't exported from there.
        JournalError: *journal* can't be used.
    """
    with _errors(journal, "read"), contextlib.closing(open_file(journal)) as db:
        if _is_known(db, workspace_id) and export_of(db, workspace_id) is None:
            raise ConfigError(
                f"the journal {journal} has {workspace_id} already",
                hint="a part of a journal is only replaced after it was exported; choose another state folder",
            )


def extract(journal: Path, workspace_id: str, part: Path, *, wall: float, target: str) -> Export | None:
    """Copy one workspace's part of *journal* to the new journal *part*, and record that it was exported.

    The record is committed first, so that the workspace is never served from two machines. The caller holds the
    workspace's lease.

    Args:
        wall: Seconds since 1970.
        target: Where the export goes, for the record.

    Returns:
        The earlier record of an export.

    Raises:
        ConfigError: The workspace is shared with other machines.
        JournalError: One of the files can't be used.
    """
    with _errors(journal, "read"), contextlib.closing(open_file(journal)) as db:
        if db.execute("SELECT 1 FROM shared WHERE workspace_id=?", (workspace_id,)).fetchone():
            raise ConfigError(
                f"{workspace_id} is shared with other machines, which may have changed it since",
                hint="its messages are in the database: serve it with --journal from another machine",
            )
        before = export_of(db, workspace_id)
        db.execute("REPLACE INTO exported VALUES (?, ?, ?)", (workspace_id, wall, target))
        open_file(part).close()
        db.execute("ATTACH DATABASE ? AS other", (str(part),))
        db.execute("BEGIN IMMEDIATE")
        _copy(db, workspace_id, "main", "other")
        db.execute("COMMIT")
        # A single file, without a write-ahead log beside it.
        db.execute("PRAGMA other.journal_mode=DELETE")
    return before


def merge(part: Path, journal: Path, workspace_id: str) -> None:
    """Add the workspace in *part* to *journal*, in one transaction, in place of what is left of an export.

    The caller holds the workspace's lease, and has called ``check_free``.

    Raises:
        JournalError: One of the files can't be used.
    """
    with _errors(part, "read"), contextlib.closing(_connect(part, "ro")) as db:
        check_copy(db, part)

    def forget_export(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM main.exported WHERE workspace_id=?", (workspace_id,))

    merge_part(part, journal, workspace_id, after=forget_export)


def merge_part(
    part: Path,
    journal: Path,
    workspace_id: str,
    *,
    before: Callable[[sqlite3.Connection], object] = lambda db: None,
    after: Callable[[sqlite3.Connection], object] = lambda db: None,
    order: Mapping[str, str] | None = None,
) -> None:
    """Replace the workspace's part of *journal* by *part*, in one transaction.

    Args:
        before: Called with the connection to *journal*, in the same transaction, before rows are changed; *after* at
            the end.
        order: The columns by which the rows of a table are ordered; by default, rows keep their order.

    Raises:
        JournalError: One of the files can't be used.
    """
    with _errors(part, "read"):
        open_file(part).close()  # upgrades it
    with _errors(journal, "written"), contextlib.closing(open_file(journal)) as db:
        db.execute("PRAGMA busy_timeout=5000")
        db.execute("ATTACH DATABASE ? AS other", (str(part),))
        db.execute("BEGIN IMMEDIATE")
        before(db)
        for table in copied_tables(db):
            db.execute(f"DELETE FROM main.{table} WHERE workspace_id=?", (workspace_id,))  # noqa: S608
        _copy(db, workspace_id, "other", "main", order or {})
        after(db)
        db.execute("COMMIT")


def export_of(db: sqlite3.Connection, workspace_id: str) -> Export | None:
    """The record of the workspace's export, unless it was imported again."""
    row = db.execute("SELECT time, target FROM main.exported WHERE workspace_id=?", (workspace_id,)).fetchone()
    return None if row is None else Export(time=row[0], target=row[1])


def set_export(journal: Path, workspace_id: str, export: Export | None) -> None:
    """Replace the record of the workspace's export. None: it can be served again.

    Raises:
        JournalError: The journal can't be written.
    """
    with _errors(journal, "written"), contextlib.closing(open_file(journal)) as db:
        if export is None:
            db.execute("DELETE FROM exported WHERE workspace_id=?", (workspace_id,))
        else:
            db.execute("REPLACE INTO exported VALUES (?, ?, ?)", (workspace_id, export.time, export.target))


def _is_known(db: sqlite3.Connection, workspace_id: str) -> bool:
    sql = "SELECT 1 FROM main.workspace WHERE workspace_id=:id UNION SELECT 1 FROM main.message WHERE workspace_id=:id"
    return db.execute(sql, {"id": workspace_id}).fetchone() is not None


def _copy(
    db: sqlite3.Connection, workspace_id: str, source: str, target: str, order: Mapping[str, str] | None = None
) -> None:
    for table in copied_tables(db):
        info = table_info(db, table)
        keys = [row[1] for row in info if row[5]]
        # A number that the journal assigns itself is assigned anew, in the same order.
        number = next((row[1] for row in info if keys == [row[1]] and row[2] == "INTEGER"), None)
        columns = ", ".join(row[1] for row in info if row[1] != number)
        db.execute(
            f"INSERT INTO {target}.{table} ({columns}) SELECT {columns} FROM {source}.{table}"  # noqa: S608
            f" WHERE workspace_id=? ORDER BY {(order or {}).get(table) or number or (keys[0] if keys else 'rowid')}",
            (workspace_id,),
        )


def copied_tables(db: sqlite3.Connection) -> list[str]:
    """The tables with rows of workspaces."""
    names = db.execute("SELECT name FROM main.sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'").fetchall()
    found = [name for (name,) in names if name not in _OWN_TABLES]
    return [name for name in found if any(row[1] == "workspace_id" for row in table_info(db, name))]


def table_info(db: sqlite3.Connection, table: str) -> list[tuple[int, str, str, int, str, int]]:
    return db.execute(f"PRAGMA main.table_info({table})").fetchall()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=5.0)


@contextlib.contextmanager
def _errors(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise journal_error(exc, path, doing) from exc
