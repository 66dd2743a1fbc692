"""Reading a journal from other programs, also while a connector runs; replaying and dropping messages."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from molecule_connect.errors import ConfigError, JournalError
from molecule_connect.files import files_folder
from molecule_connect.journal import peer_names, transitions
from molecule_connect.journal.errors import journal_error
from molecule_connect.journal.files import with_paths
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.journal.models import COLUMNS, NOTICE_BEGINS, State, StoredMessage, load_message
from molecule_connect.journal.schema import VERSION
from molecule_connect.models import canonical_id

# Seconds to wait for the connector's own commits, which take milliseconds.
BUSY_TIMEOUT = 5.0
# Changes in one transaction, for which the connector waits.
BATCH = 500
# The schema version that added the names of peers.
PEER_NAMES_SINCE = 6
OPEN = (State.RECEIVED, State.RUNNING, State.ANSWERED, State.CLAIMED)
# Echoes, our own rows and the like are not messages. In an inbox, answers and results are.
_SHOWN = "(kind IN ('message', 'unreadable') OR (kind IN ('answer', 'result') AND state IN ('received', 'held')))"
# SQLite cuts the text, which may have megabytes. NaN and Infinity are not valid JSON for it.
_SUMMARY = (
    "workspace_id, row_id, kind, state, caller_id, context_id, time, changed, attempt,"
    " interruptions AS crash_count, replay, not_before, CASE WHEN state='held' THEN held_until END AS held_until,"
    " error, reason, progress, repeat_of,"
    f" (answer IS NOT NULL AND substr(answer, 1, {len(NOTICE_BEGINS)}) <> '{NOTICE_BEGINS}') AS has_reply,"
    " parts IS NOT NULL AS has_text,"
    " substr(CASE WHEN json_valid(parts) THEN coalesce(json_extract(parts, '$[0].text'),"
    " json_extract(parts, '$[0].file.name'), parts) ELSE parts END, 1, 400) AS text"
)


@attrs.frozen
class Key:
    """Identifies one message of the journal."""

    workspace_id: str
    row_id: str


@attrs.frozen(kw_only=True)
class MessageSummary:
    """One message in a list: a ``StoredMessage`` without its texts.

    Attributes:
        text: The beginning of its first part.
        has_text: Whether its parts are kept.
        has_reply: Whether it has a reply that is not a notice.
    """

    workspace_id: str
    row_id: str
    kind: str
    state: State
    caller_id: str | None
    context_id: str | None
    time: int
    changed: float
    attempt: int
    crash_count: int
    replay: int
    not_before: float | None
    held_until: float | None
    error: str | None
    reason: str | None
    progress: str | None
    repeat_of: str | None
    has_reply: bool
    has_text: bool
    text: str

    @property
    def key(self) -> Key:
        """The workspace and row id."""
        return Key(self.workspace_id, self.row_id)

    @property
    def is_readable(self) -> bool:
        """Whether the row is a message."""
        return self.kind == "message"

    @property
    def is_replayable(self) -> bool:
        """Whether the message can be replayed once it is dead."""
        return self.is_readable and self.has_text

    def is_deferred(self, now: float) -> bool:
        """Whether it is not due yet."""
        return self.state is State.RECEIVED and self.not_before is not None and self.not_before > now


class Inspection:
    """A journal opened for reading. Use ``open``."""

    def __init__(self, db: sqlite3.Connection, folder: Path) -> None:
        self._db = db
        self._folder = folder

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path) -> Iterator[Self]:
        """The journal in *folder*, whether a connector has it open or not.

        Raises:
            ConfigError: There is no journal.
            JournalError: It cannot be read, or was written by a newer release.
        """
        with _opened(folder, "ro") as db:
            yield cls(db, folder)

    def workspaces(self) -> list[str]:
        """The ids of the workspaces in it, sorted."""
        rows = self._db.execute("SELECT workspace_id FROM workspace UNION SELECT DISTINCT workspace_id FROM message")
        return sorted(row[0] for row in rows)

    def _spelled(self, workspace_id: str) -> str:
        # An earlier release stored ids as given; they are corrected when the workspace is served again.
        names = self.workspaces()
        known = (name for name in names if canonical_id(name) == canonical_id(workspace_id))
        return workspace_id if workspace_id in names else next(known, workspace_id)

    def peer_names(self, workspace_id: str) -> dict[str, str]:
        """The names of peers by id, as the registry gave them: unchecked text. See ``console.names``."""
        if self._db.execute("PRAGMA user_version").fetchone()[0] < PEER_NAMES_SINCE:
            return {}
        return peer_names.load(self._db, self._spelled(workspace_id))

    def counts(self, workspace_id: str) -> dict[State, int]:
        """The number of messages in each state."""
        rows = self._db.execute(
            f"SELECT state, count(*) FROM message WHERE workspace_id=? AND {_SHOWN} GROUP BY state",  # noqa: S608
            (self._spelled(workspace_id),),
        )
        counts = {State(row[0]): int(row[1]) for row in rows}
        return {state: counts.get(state, 0) for state in State}

    def oldest(self, workspace_id: str) -> int | None:
        """When the oldest waiting message was written, in microseconds by the platform's clock."""
        found = self._db.execute(
            "SELECT min(time) FROM message WHERE workspace_id=? AND state='received'", (self._spelled(workspace_id),)
        )
        time: int | None = found.fetchone()[0]
        return time

    def total(self, workspace_id: str | None = None, states: Sequence[State] = ()) -> int:
        """The number of messages that ``summaries`` returns without a limit."""
        where, values = _filter(workspace_id and self._spelled(workspace_id), states)
        return int(self._db.execute(f"SELECT count(*) FROM message WHERE {where}", values).fetchone()[0])  # noqa: S608

    def summaries(
        self, workspace_id: str | None = None, states: Sequence[State] = (), *, limit: int | None = None
    ) -> list[MessageSummary]:
        """Messages, the newest first."""
        where, values = _filter(workspace_id and self._spelled(workspace_id), states)
        rows = self._db.execute(
            f"SELECT {_SUMMARY} FROM message WHERE {where} ORDER BY arrival DESC LIMIT ?",  # noqa: S608
            (*values, -1 if limit is None else limit),
        )
        return [_summary(row) for row in rows]

    def dead(self, workspace_id: str | None = None, reason: str = "") -> list[MessageSummary]:
        """Dead letters that can be replayed and whose reason begins with *reason*, oldest first."""
        return [
            summary
            for summary in reversed(self.summaries(workspace_id, [State.DEAD]))
            if summary.is_replayable and (summary.reason or "").casefold().startswith(reason.casefold())
        ]

    def find(self, row_id: str, workspace_id: str | None = None) -> Key:
        """The message whose row id is *row_id*, or begins with it.

        Raises:
            ConfigError: No message matches, or more than one.
        """
        found: list[Key] = []
        for one in [self._spelled(workspace_id)] if workspace_id else self.workspaces():
            rows = self._db.execute(
                f"SELECT row_id FROM message WHERE workspace_id=? AND row_id>=? AND row_id<? AND {_SHOWN}"  # noqa: S608
                " ORDER BY row_id LIMIT 4",
                (one, row_id, f"{row_id}\U0010ffff"),
            )
            found += [Key(one, row[0]) for row in rows]
        exact = [key for key in found if key.row_id == row_id]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if not found:
            raise ConfigError(
                f"no message has a row id that starts with {row_id!r}", hint="'molecule messages list' shows the ids"
            )
        names = ", ".join(f"{key.row_id} of {key.workspace_id}" for key in found[:3])
        raise ConfigError(
            f"{row_id!r} matches more than one message: {names}", hint="enter more of the id, or pass --workspace"
        )

    def summary(self, key: Key) -> MessageSummary:
        """The summary of one message.

        Raises:
            ConfigError: It is no longer in the journal.
        """
        return _summary(self._row(_SUMMARY, key))

    def message(self, key: Key) -> StoredMessage:
        """One message, with the paths of its files.

        Raises:
            ConfigError: It is no longer in the journal.
        """
        message = load_message(tuple(self._row(COLUMNS, key)))
        folder = files_folder(self._folder, key.workspace_id)
        parts = with_paths(self._db, key.workspace_id, key.row_id, message.parts, folder)
        return attrs.evolve(message, parts=parts)

    def _row(self, columns: str, key: Key) -> Any:
        sql = f"SELECT {columns} FROM message WHERE workspace_id=? AND row_id=?"  # noqa: S608
        row = self._db.execute(sql, (key.workspace_id, key.row_id)).fetchone()
        if row is None:
            raise ConfigError(f"{key.row_id} is no longer in the journal")
        return row

    def short_ids(self, keys: Iterable[Key]) -> list[str]:
        """The shortest beginnings of row ids that are unique for ``find``, of at least eight characters."""
        names = self.workspaces()
        return [key.row_id[: max(8, self._distinct(key.row_id, names))] for key in keys]

    def _distinct(self, row_id: str, names: Sequence[str]) -> int:
        """The number of characters that distinguish a row id from its neighbors in sort order."""
        length = 0
        for name in names:
            for sql in (
                "SELECT max(row_id) FROM message WHERE workspace_id=? AND row_id<?",
                "SELECT min(row_id) FROM message WHERE workspace_id=? AND row_id>?",
            ):
                neighbour = self._db.execute(sql, (name, row_id)).fetchone()[0] or ""
                length = max(length, _alike(neighbour, row_id) + 1)
        return length


def replay(folder: Path, keys: Iterable[Key], wall: float) -> list[Key]:
    """dead -> received, at the end of the conversation; deferred messages are due now. Returns the changed ones.

    A running connector notices within a second.

    Raises:
        JournalError: The journal cannot be written.
    """

    def run(db: sqlite3.Connection, key: Key) -> bool:
        place = (db, key.workspace_id, key.row_id, wall)
        return transitions.replay(*place) or transitions.retry_now(*place)

    return _change(folder, keys, run)


def drop(folder: Path, keys: Iterable[Key], wall: float) -> list[Key]:
    """dead -> done. Returns the changed messages.

    Raises:
        JournalError: The journal cannot be written.
    """

    def run(db: sqlite3.Connection, key: Key) -> bool:
        cursor = db.execute(
            "UPDATE message SET state='done', changed=? WHERE workspace_id=? AND row_id=? AND state='dead'",
            (wall, key.workspace_id, key.row_id),
        )
        return cursor.rowcount == 1

    return _change(folder, keys, run)


def _change(folder: Path, keys: Iterable[Key], run: Callable[[sqlite3.Connection, Key], bool]) -> list[Key]:
    changed, waiting = [], list(keys)
    with _opened(folder, "rw") as db:
        while waiting:
            batch, waiting = waiting[:BATCH], waiting[BATCH:]
            db.execute("BEGIN IMMEDIATE")
            done = [key for key in batch if run(db, key)]
            db.execute("COMMIT")
            changed += done
    return changed


@contextlib.contextmanager
def _opened(folder: Path, mode: str) -> Iterator[sqlite3.Connection]:
    path = folder.absolute() / FILE_NAME
    if not path.exists():
        raise ConfigError(
            f"there is no journal in {folder}: no connector has used this folder",
            hint="pass the state folder that 'molecule connect' prints at its start with --state-dir",
        )
    try:
        uri = f"{path.as_uri()}?mode={mode}"
        with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT)) as db:
            # Ids and texts of peers may hold half a surrogate pair.
            db.text_factory = lambda data: data.decode("utf-8", "replace")
            db.row_factory = sqlite3.Row
            _check_version(db, path)
            yield db
    except sqlite3.Error as exc:
        raise journal_error(exc, path, "read" if mode == "ro" else "written") from exc


def _check_version(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version == 0:
        raise JournalError(f"{path} is not a journal", hint="pass the state folder of the connector with --state-dir")
    if version > VERSION:
        raise JournalError(
            f"the journal {path} was written by a newer molecule-connect (schema {version}, not {VERSION})",
            hint="update molecule-connect",
        )


def _filter(workspace_id: str | None, states: Sequence[State]) -> tuple[str, tuple[str, ...]]:
    where, values = _SHOWN, tuple(state.value for state in states)
    if states:
        where += f" AND state IN ({', '.join('?' * len(values))})"
    if workspace_id is not None:
        where, values = f"{where} AND workspace_id=?", (*values, workspace_id)
    return where, values


def _summary(row: sqlite3.Row) -> MessageSummary:
    values = dict(row)
    flags = {name: bool(values[name]) for name in ("has_reply", "has_text")}
    return MessageSummary(**{**values, **flags, "state": State(values["state"]), "text": values["text"] or ""})


def _alike(one: str, other: str) -> int:
    return next((at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), len(one))
