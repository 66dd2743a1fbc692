"""The journal's tables, and how its file is opened."""

import contextlib
import errno
import os
import sqlite3
import tempfile
from pathlib import Path

from molecule_connect import files
from molecule_connect.errors import JournalError
from molecule_connect.journal.errors import ReadConnection, journal_error
from molecule_connect.models import canonical_id

# place orders a conversation: it is the row's time, and for a replayed message a time after all others.
# Times are microseconds by the platform's clock, not_before and the like are seconds by ours.
# question is the message_id of the question that the row answers.
# told holds notifications of inbox readers and notices of replayed messages: their echoes belong to no reply.
# accepted is when the platform accepted the reply, 0 before that; echo pairs a reply with the row that shows it.
# anchor is the watermark, answer the reply, interruptions the crash count, holder the reader that claimed the message.
TABLES = """
CREATE TABLE workspace (
    workspace_id TEXT PRIMARY KEY, anchor TEXT, anchor_time INTEGER, floor INTEGER, last_read INTEGER,
    ignores_since INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE message (
    arrival INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id TEXT NOT NULL, row_id TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL,
    time INTEGER NOT NULL, seq INTEGER NOT NULL, place INTEGER NOT NULL,
    caller_id TEXT, context_id TEXT, task_id TEXT, message_id TEXT NOT NULL, sender_key TEXT,
    idempotency_key TEXT NOT NULL, method TEXT NOT NULL, fingerprint TEXT NOT NULL, delegation_id TEXT,
    parts TEXT, raw TEXT, size INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0, interruptions INTEGER NOT NULL DEFAULT 0, replay INTEGER NOT NULL DEFAULT 0,
    not_before REAL, first_failed REAL, error TEXT, reason TEXT, progress TEXT, repeat_of TEXT,
    answer TEXT, answered_at INTEGER, send_print TEXT, sends INTEGER NOT NULL DEFAULT 0,
    in_doubt INTEGER NOT NULL DEFAULT 0, accepted INTEGER NOT NULL DEFAULT 0, echo TEXT,
    holder TEXT, held_until REAL, question TEXT, changed REAL NOT NULL,
    UNIQUE (workspace_id, row_id)
);
CREATE TABLE spend (
    workspace_id TEXT NOT NULL, day TEXT NOT NULL, cost_usd REAL NOT NULL, PRIMARY KEY (workspace_id, day)
);
CREATE TABLE asked (
    workspace_id TEXT NOT NULL, message_id TEXT NOT NULL, delegation_id TEXT, peer_id TEXT NOT NULL,
    text TEXT NOT NULL, time REAL NOT NULL, is_open INTEGER NOT NULL DEFAULT 1, PRIMARY KEY (workspace_id, message_id)
);
CREATE TABLE told (workspace_id TEXT NOT NULL, send_print TEXT NOT NULL, time REAL NOT NULL, echo TEXT);
CREATE TABLE file (
    workspace_id TEXT NOT NULL, file_id TEXT NOT NULL, uri TEXT NOT NULL, row_id TEXT, name TEXT NOT NULL,
    mime_type TEXT NOT NULL, size INTEGER, time INTEGER NOT NULL, arrived REAL NOT NULL, state TEXT NOT NULL,
    path TEXT, reason TEXT, attempts INTEGER NOT NULL DEFAULT 0, not_before REAL, acked INTEGER NOT NULL DEFAULT 0,
    changed REAL NOT NULL, PRIMARY KEY (workspace_id, file_id)
);
CREATE TABLE file_use (
    workspace_id TEXT NOT NULL, file_id TEXT NOT NULL, row_id TEXT NOT NULL,
    PRIMARY KEY (workspace_id, file_id, row_id)
) WITHOUT ROWID;
CREATE TABLE upload_note (
    note INTEGER PRIMARY KEY AUTOINCREMENT, workspace_id TEXT NOT NULL, name TEXT NOT NULL, size INTEGER NOT NULL,
    time INTEGER NOT NULL
);
CREATE INDEX file_due ON file (workspace_id, time) WHERE state='waiting' OR (state='here' AND acked=0);
CREATE INDEX file_state ON file (workspace_id, state, arrived);
CREATE INDEX message_lane ON message (workspace_id, caller_id, context_id, place, seq, arrival)
    WHERE state IN ('received', 'running', 'answered');
CREATE INDEX message_answered ON message (workspace_id, caller_id, context_id, place, seq, arrival)
    WHERE (state='answered' OR (state='received' AND answer IS NOT NULL));
CREATE INDEX message_held ON message (workspace_id, holder, held_until) WHERE state='held';
CREATE INDEX message_order ON message (workspace_id, time, seq, arrival);
CREATE INDEX message_unfinished ON message (workspace_id, time, seq, arrival) WHERE state NOT IN ('done', 'dead');
CREATE INDEX message_sender ON message (workspace_id, sender_key, fingerprint) WHERE sender_key IS NOT NULL;
CREATE INDEX message_echo ON message (workspace_id, fingerprint, time) WHERE kind = 'echo';
CREATE INDEX message_sent ON message (workspace_id, send_print, answered_at) WHERE send_print IS NOT NULL;
"""

# Each migration brings a journal to the next version. Migrations only add: a process of an older release may have the
# file open, and continues with the tables that it knows.
MIGRATIONS = (
    # 2: the peers' shares of a day's cost; the rest of spend is people's.
    """
CREATE TABLE peer_spend (
    workspace_id TEXT NOT NULL, day TEXT NOT NULL, caller_id TEXT NOT NULL, cost_usd REAL NOT NULL,
    PRIMARY KEY (workspace_id, day, caller_id)
);
""",
    # 3: the owner of a file (caller_id, NULL for people), and whether a row names it. legacy_files fills them in.
    """
ALTER TABLE file ADD COLUMN caller_id TEXT;
ALTER TABLE file ADD COLUMN named INTEGER NOT NULL DEFAULT 0;
DROP INDEX file_due;
DROP INDEX file_state;
CREATE INDEX file_waiting ON file (workspace_id, caller_id, row_id IS NULL, named DESC, time) WHERE state='waiting';
CREATE INDEX file_unacked ON file (workspace_id, time) WHERE state='here' AND acked=0;
CREATE INDEX file_later ON file (workspace_id, not_before) WHERE not_before IS NOT NULL;
CREATE INDEX file_here ON file (workspace_id, caller_id, arrived, size) WHERE state='here';
CREATE INDEX file_unnamed ON file (workspace_id, arrived) WHERE named=0 AND state <> 'ours';
CREATE INDEX file_use_row ON file_use (workspace_id, row_id);
""",
    # 4: the size of the texts of each row, for the limits of a caller.
    """
ALTER TABLE message ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
UPDATE message SET kept=coalesce(length(parts), 0) + coalesce(length(raw), 0) + coalesce(length(answer), 0);
CREATE INDEX message_dead ON message (workspace_id, caller_id, arrival, kept) WHERE state='dead';
CREATE INDEX message_finished ON message (workspace_id, caller_id, arrival, kept) WHERE state='done' AND kept>0;
CREATE INDEX message_waiting ON message (workspace_id, caller_id, kept) WHERE state NOT IN ('done', 'dead');
""",
    # 5: the oldest message of each caller is found without a scan of the others.
    """
DROP INDEX message_waiting;
CREATE INDEX message_waiting ON message (workspace_id, caller_id, time, seq, arrival, kept)
    WHERE state NOT IN ('done', 'dead');
""",
    # 6: the names of peers, as the platform's registry gave them.
    """
CREATE TABLE peer_name (
    workspace_id TEXT NOT NULL, peer_id TEXT NOT NULL, name TEXT NOT NULL, seen REAL NOT NULL,
    PRIMARY KEY (workspace_id, peer_id)
) WITHOUT ROWID;
""",
    # 7: what became of each attempt, the cost of all of them, and when messages were closed. started is when the
    # running attempt started; attempts is a JSON list of [start, end, error], in seconds by our clock.
    """
ALTER TABLE message ADD COLUMN started REAL;
ALTER TABLE message ADD COLUMN attempts TEXT;
ALTER TABLE message ADD COLUMN cost_usd REAL;
UPDATE message SET cost_usd=json_extract(answer, '$.usage.cost_usd') WHERE answer IS NOT NULL AND json_valid(answer);
CREATE INDEX message_closed ON message (changed)
    WHERE state IN ('done', 'dead') AND kind IN ('message', 'unreadable', 'answer', 'result');
""",
    # 8: the workspaces that were exported to another machine.
    """
CREATE TABLE exported (workspace_id TEXT PRIMARY KEY, time REAL NOT NULL, target TEXT NOT NULL);
""",
    # 9: costs by quarter of an hour, of which the days of any time zone consist, and when messages ended.
    """
CREATE TABLE cost (
    workspace_id TEXT NOT NULL, quarter INTEGER NOT NULL, cost_usd REAL NOT NULL, PRIMARY KEY (workspace_id, quarter)
) WITHOUT ROWID;
CREATE INDEX message_ended ON message (workspace_id, changed, state) WHERE state='dead' OR (state='done'
    AND kind='message' AND reason IS NULL AND repeat_of IS NULL AND (attempt>0 OR accepted>0));
""",
    # 10: the workspaces that are shared with other machines, and their changes that are not in the mirror yet.
    # body is 1 if the texts of a message changed.
    """
CREATE TABLE shared (
    workspace_id TEXT PRIMARY KEY, target TEXT NOT NULL, epoch INTEGER NOT NULL, commits INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, workspace_id TEXT NOT NULL, tbl TEXT NOT NULL, key TEXT NOT NULL,
    body INTEGER NOT NULL, UNIQUE (workspace_id, tbl, key)
);
""",
    # 11: the start of the machine in which the lease began; empty if unknown.
    """
ALTER TABLE shared ADD COLUMN boot TEXT NOT NULL DEFAULT '';
""",
)
VERSION = 1 + len(MIGRATIONS)


def open_file(path: Path, *, factory: type[sqlite3.Connection] = sqlite3.Connection) -> sqlite3.Connection:
    """The journal at *path*, created (0600) if it is missing, for the thread that writes.

    Raises:
        JournalError: It cannot be opened, is not a journal, or was written by a newer release.
    """
    try:
        before = _create(path)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0, factory=factory)
        try:
            # SQLite opens by name, and always follows links.
            _check_same(path, before)
            connection.execute("PRAGMA journal_mode=WAL")
            _ensure_tables(connection, path)
            # The writer waits for a lock itself, off the event loop.
            connection.execute("PRAGMA busy_timeout=0")
        except BaseException:
            connection.close()
            raise
    except files.ForeignError as exc:
        raise _foreign(path, exc) from exc
    except (OSError, sqlite3.Error) as exc:
        raise journal_error(exc, path, "opened") from exc
    return connection


def _create(path: Path) -> os.stat_result:
    """Check that *path* belongs to us and that neither it nor its companions are links; create it (0600) if missing."""
    for companion in ("-wal", "-shm", "-journal"):
        files.check_file(path.with_name(path.name + companion))
    # An existing file is not opened: closing it would release the locks of this process on it.
    with contextlib.suppress(FileExistsError):
        os.close(files.open_file(path, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    found = files.check_file(path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "it was removed while it was opened", str(path))
    return found


def _check_same(path: Path, before: os.stat_result) -> None:
    found = files.check_file(path)
    if found is None or (found.st_dev, found.st_ino) != (before.st_dev, before.st_ino):
        raise files.ForeignError(path, "it was replaced while it was opened")


def open_reader(path: Path) -> sqlite3.Connection:
    """A second connection, which only reads.

    Raises:
        JournalError: It cannot be opened.
    """
    try:
        connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, factory=ReadConnection)
        try:
            connection.execute("PRAGMA query_only=1")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as exc:
        raise journal_error(exc, path, "opened") from exc
    return connection


def check_version(db: sqlite3.Connection, path: Path) -> None:
    """Check that *db*, the file at *path*, is a journal that this release can read.

    Raises:
        JournalError: It isn't.
    """
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        raise JournalError(f"{path} is not a journal", hint="pass the state folder of the connector with --state-dir")
    if version > VERSION:
        raise JournalError(
            f"the journal {path} was written by a newer molecule-connect (schema {version}, not {VERSION})",
            hint="update molecule-connect",
        )


def adopt(db: sqlite3.Connection, workspace_id: str) -> None:
    """Give the rows of an earlier release, which stored an id as it was spelled, the canonical spelling.

    If both spellings were served, each message keeps the later state, so that none is answered again. The later
    position wins: everything before it was read.
    """
    spelled = db.execute(
        "SELECT workspace_id FROM workspace WHERE workspace_id<>? AND lower(workspace_id)=?",
        (workspace_id, workspace_id),
    ).fetchall()
    for (other,) in spelled:
        if canonical_id(other) == workspace_id:
            _adopt_one(db, {"ours": workspace_id, "other": other})


def _adopt_one(db: sqlite3.Connection, names: dict[str, str]) -> None:
    rank = "CASE {0}.state WHEN 'done' THEN 3 WHEN 'answered' THEN 2 WHEN 'dead' THEN 1 ELSE 0 END"
    db.execute(
        "DELETE FROM message WHERE workspace_id=:ours AND EXISTS (SELECT 1 FROM message AS twin"  # noqa: S608
        " WHERE twin.workspace_id=:other AND twin.row_id=message.row_id"
        f" AND {rank.format('twin')} > {rank.format('message')})",
        names,
    )
    db.execute(
        "DELETE FROM workspace WHERE workspace_id=:ours AND coalesce(last_read, 0) <"
        " (SELECT coalesce(last_read, 0) FROM workspace WHERE workspace_id=:other)",
        names,
    )
    db.execute(
        "INSERT INTO spend SELECT :ours, day, cost_usd FROM spend WHERE workspace_id=:other"
        " ON CONFLICT DO UPDATE SET cost_usd=cost_usd+excluded.cost_usd",
        names,
    )
    db.execute("DELETE FROM spend WHERE workspace_id=:other", names)
    for table in (
        "workspace",
        "message",
        "peer_spend",
        "asked",
        "told",
        "file",
        "file_use",
        "upload_note",
        "peer_name",
        "cost",
    ):
        db.execute(f"UPDATE OR IGNORE {table} SET workspace_id=:ours WHERE workspace_id=:other", names)  # noqa: S608
        db.execute(f"DELETE FROM {table} WHERE workspace_id=:other", names)  # noqa: S608
    # Our own messages have our id in lower case, and were stored as a peer's.
    db.execute(
        "UPDATE message SET state='done' WHERE workspace_id=:ours AND caller_id=:ours AND kind='message'"
        " AND state NOT IN ('done', 'dead')",
        names,
    )


def _foreign(path: Path, exc: files.ForeignError) -> JournalError:
    return JournalError(
        f"the journal {path} cannot be used: {exc.strerror} ({exc.filename})",
        hint="find out who created it; if it is yours, give it to this user with chown, otherwise remove it",
    )


def copy_file(connection: sqlite3.Connection, target: Path) -> None:
    """Write a consistent copy of an open journal to the new file *target* (0600), completely or not at all.

    Raises:
        FileExistsError: *target* exists.
        OSError, sqlite3.Error: Reading or writing failed.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        copy = Path(scratch) / target.name
        descriptor = files.open_file(copy, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        try:
            with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as other:
                connection.backup(other)
                # A single file, without a write-ahead log beside it.
                other.execute("PRAGMA journal_mode=DELETE")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        files.rename_new(copy, target)


def upgrade_backup(path: Path, version: int) -> Path:
    """Where the journal at *path* is copied to before it is upgraded from schema *version*."""
    return path.with_name(f"{path.name}.schema-{version}.backup")


def _back_up_before_upgrade(connection: sqlite3.Connection, path: Path) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if 0 < version < VERSION:
        target = upgrade_backup(path, version)
        # Of an upgrade that was cut short. The journal may have changed since then.
        target.unlink(missing_ok=True)
        copy_file(connection, target)


def _ensure_tables(connection: sqlite3.Connection, path: Path) -> None:
    _back_up_before_upgrade(connection, path)
    connection.execute("BEGIN IMMEDIATE")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version < VERSION:
        for script in (TABLES, *MIGRATIONS)[version:]:
            for statement in script.split(";\n"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute("COMMIT")
    if version > VERSION:
        raise JournalError(
            f"the journal {path} was written by a newer molecule-connect (schema {version}, not {VERSION})",
            hint="update molecule-connect, or use another state folder",
        )
