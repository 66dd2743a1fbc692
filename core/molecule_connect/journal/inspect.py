"""Reading a journal from other programs, also while a connector runs; replaying and dropping messages."""

import contextlib
import json
import sqlite3
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import attrs

from molecule_connect.errors import ConfigError
from molecule_connect.files import files_folder
from molecule_connect.journal import peer_names, totals, transitions
from molecule_connect.journal.errors import journal_error
from molecule_connect.journal.files import with_paths
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.journal.models import COLUMNS, NOTICE_BEGINS, State, StoredMessage, load_message
from molecule_connect.journal.schema import check_version
from molecule_connect.journal.totals import Totals
from molecule_connect.models import canonical_id

# Seconds to wait for the connector's own commits, which take milliseconds.
BUSY_TIMEOUT = 5.0
# Changes in one transaction, for which the connector waits.
BATCH = 500
# The schema versions that added the names of peers, and what totals need.
PEER_NAMES_SINCE, TOTALS_SINCE = 6, 9
OPEN = (State.RECEIVED, State.RUNNING, State.ANSWERED, State.CLAIMED)
# Echoes, our own rows and the like are not messages. In an inbox, answers and results are.
_SHOWN = "(kind IN ('message', 'unreadable') OR (kind IN ('answer', 'result') AND state IN ('received', 'held')))"
# The conditions of two indexes, literally: of messages that are closed, and of those that aren't. An index of all
# changes would be written four times for each message.
_CLOSED = "state IN ('done', 'dead') AND kind IN ('message', 'unreadable', 'answer', 'result')"
_UNFINISHED = "state NOT IN ('done', 'dead')"
# Columns that a journal of an earlier release lacks until a connector of this release opens it, and their names here.
_NEWER = {"started": "started", "attempts": "runs", "cost_usd": "cost_usd"}
# SQLite cuts the texts, which may have megabytes. NaN and Infinity are not valid JSON for it.
_SUMMARY = (
    "workspace_id, row_id, kind, state, caller_id, context_id, time, changed, attempt,"
    " interruptions AS crash_count, replay, not_before, CASE WHEN state='held' THEN held_until END AS held_until,"
    " error, reason, progress, repeat_of,"
    f" (answer IS NOT NULL AND substr(answer, 1, {len(NOTICE_BEGINS)}) <> '{NOTICE_BEGINS}') AS has_reply,"
    " parts IS NOT NULL AS has_text,"
    " substr(CASE WHEN json_valid(parts) THEN coalesce(json_extract(parts, '$[0].text'),"
    " json_extract(parts, '$[0].file.name'), parts) ELSE parts END, 1, 400) AS text,"
    " substr(CASE WHEN json_valid(answer) THEN coalesce(json_extract(answer, '$.parts[0].text'),"
    " json_extract(answer, '$.parts[0].file.name'), json_extract(answer, '$.parts')) ELSE answer END, 1, 400)"
    " AS answer, answered_at"
)


@attrs.frozen
class Key:
    """Identifies one message of the journal."""

    workspace_id: str
    row_id: str


@attrs.frozen
class Attempt:
    """An attempt at a message.

    Attributes:
        started: Seconds since 1970 by our clock; None if unknown.
        ended: The same; None while it runs, and if it was cut short.
        error: Why it failed; None if it didn't.
    """

    started: float | None
    ended: float | None
    error: str | None

    @property
    def seconds(self) -> float | None:
        """How long it ran."""
        known = self.started is not None and self.ended is not None
        return max(0.0, self.ended - self.started) if known else None  # type: ignore[operator]


@attrs.frozen
class Only:
    """Which messages of a list are shown.

    Attributes:
        callers: Messages of these; None of everyone. In it, None stands for people.
        since: Written at this time or later, in microseconds by the platform's clock.
        search: Contained in the message, its reply or its error, in any case.
    """

    callers: tuple[str | None, ...] | None = None
    since: int | None = None
    search: str = ""


@attrs.frozen(kw_only=True)
class MessageSummary:
    """One message in a list: a ``StoredMessage`` without its texts.

    Attributes:
        text: The beginning of its first part.
        has_text: Whether its parts are kept.
        has_reply: Whether it has a reply that is not a notice.
        answer: The beginning of its reply's first part; None if there is no reply, or it was deleted.
        answered_at: When its reply was stored, in microseconds by the platform's clock.
        started: When the running attempt started, in seconds since 1970 by our clock.
        runs: The newest attempts that have ended, oldest first.
        cost_usd: The cost of all attempts as far as the backend reported it; None if it reported none.
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
    answer: str | None
    answered_at: int | None
    started: float | None
    runs: tuple[Attempt, ...]
    cost_usd: float | None

    def seconds(self, now: float) -> float | None:
        """How long the backend has worked on it, in all attempts; for an inbox, how long it waited for its answer."""
        runs = [run.seconds for run in self.runs if run.seconds is not None]
        if self.state is State.RUNNING and self.started is not None:
            runs.append(max(0.0, now - self.started))
        if runs:
            return sum(runs)
        return None if self.answered_at is None else max(0.0, (self.answered_at - self.time) / 1e6)

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
        columns = {row["name"] for row in db.execute("PRAGMA table_info(message)")}
        newer = (f"{column if column in columns else 'NULL'} AS {name}" for column, name in _NEWER.items())
        self._summary = ", ".join([_SUMMARY, *newer])

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
        return peer_names.load(self._db, self._spelled(workspace_id)) if self._version() >= PEER_NAMES_SINCE else {}

    def totals(self, workspace_id: str, since: float) -> Totals:
        """Sums since *since* (seconds since 1970); without a journal of this release, zeros."""
        if self._version() < TOTALS_SINCE:
            return Totals()
        return totals.load(self._db, self._spelled(workspace_id), since)

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

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

    def total(self, workspace_id: str | None = None, states: Sequence[State] = (), only: Only = Only()) -> int:
        """The number of messages that ``summaries`` returns without a limit."""
        where, values = self._filter(workspace_id, states, only)
        return int(self._db.execute(f"SELECT count(*) FROM message WHERE {where}", values).fetchone()[0])  # noqa: S608

    def summaries(
        self,
        workspace_id: str | None = None,
        states: Sequence[State] = (),
        only: Only = Only(),
        *,
        limit: int | None = None,
    ) -> list[MessageSummary]:
        """Messages, the newest first."""
        where, values = self._filter(workspace_id, states, only)
        rows = self._db.execute(
            f"SELECT {self._summary} FROM message WHERE {where} ORDER BY arrival DESC LIMIT ?",  # noqa: S608
            (*values, -1 if limit is None else limit),
        )
        return [_summary(row) for row in rows]

    def callers(self) -> list[str]:
        """The ids of all peers that wrote a message, sorted."""
        rows = self._db.execute(f"SELECT DISTINCT caller_id FROM message WHERE {_SHOWN} AND caller_id IS NOT NULL")  # noqa: S608
        return sorted(row[0] for row in rows)

    def revision(self) -> int:
        """A number that changes with every commit of another connection. Takes microseconds."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def newest_change(self) -> float:
        """When a message changed last, in seconds since 1970 by our clock; 0 if there is none."""
        found = self._db.execute(
            f"SELECT max(changed) FROM (SELECT max(changed) AS changed FROM message WHERE {_CLOSED} UNION ALL"  # noqa: S608
            f" SELECT max(changed) FROM message WHERE {_UNFINISHED})"
        ).fetchone()[0]
        return float(found or 0)

    def changed_since(
        self,
        changed: float,
        workspace_id: str | None = None,
        states: Sequence[State] = (),
        only: Only = Only(),
    ) -> list[MessageSummary]:
        """Messages that changed at *changed* (seconds since 1970) or later, in the order of their changes."""
        where, values = self._filter(workspace_id, states, only)
        rows = self._db.execute(
            f"SELECT {self._summary} FROM message WHERE arrival IN ("  # noqa: S608
            f"SELECT arrival FROM message WHERE {_CLOSED} AND changed >= ? UNION ALL"
            f" SELECT arrival FROM message WHERE {_UNFINISHED} AND changed >= ?) AND {where}"
            " ORDER BY message.changed, arrival",
            (changed, changed, *values),
        )
        return [_summary(row) for row in rows]

    def _filter(self, workspace_id: str | None, states: Sequence[State], only: Only) -> tuple[str, list[Any]]:
        where: list[str] = [_SHOWN]
        values: list[Any] = []
        if states:
            where.append(f"state IN ({', '.join('?' * len(states))})")
            values += [state.value for state in states]
        if workspace_id is not None:
            where.append("workspace_id=?")
            values.append(self._spelled(workspace_id))
        if only.callers is not None:
            where.append(f"({' OR '.join(['caller_id IS ?'] * len(only.callers)) or '0'})")
            values += only.callers
        if only.since is not None:
            where.append("time >= ?")
            values.append(only.since)
        if only.search:
            self._db.create_function("holds", -1, _Search(only.search), deterministic=True)
            where.append("holds(parts, answer, reason, error)")
        return " AND ".join(where), values

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
        return _summary(self._row(self._summary, key))

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
                neighbor = self._db.execute(sql, (name, row_id)).fetchone()[0] or ""
                length = max(length, _alike(neighbor, row_id) + 1)
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
            check_version(db, path)
            yield db
    except sqlite3.Error as exc:
        raise journal_error(exc, path, "read" if mode == "ro" else "written") from exc


class _Search:
    """An SQL function: whether one of its texts contains *text*, in any case. Texts are plain, or JSON as stored."""

    def __init__(self, text: str) -> None:
        self._text = _folded(text)

    def __call__(self, *texts: str | None) -> bool:
        return any(self._text in _folded(line) for text in texts if text for line in _strings(text))


def _strings(text: str) -> Iterator[str]:
    """The strings and numbers in stored parts or a stored reply, without keys and inline files; or *text* itself."""
    pending: list[Any] = [text]
    with contextlib.suppress(ValueError, RecursionError, KeyError):
        loaded = json.loads(text)
        pending = [loaded["parts"] if isinstance(loaded, dict) else loaded]
    while pending:
        match pending.pop():
            case str(line) if not line.startswith("data:"):
                yield line
            case list(values):
                pending += values
            case dict(values):
                pending += values.values()
            case bool():
                pass
            case int() | float() as number:
                yield str(number)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _summary(row: sqlite3.Row) -> MessageSummary:
    values = dict(row)
    values |= {name: bool(values[name]) for name in ("has_reply", "has_text")}
    runs = tuple(Attempt(*run) for run in json.loads(values["runs"] or "[]"))
    return MessageSummary(**{**values, "state": State(values["state"]), "text": values["text"] or "", "runs": runs})


def _alike(one: str, other: str) -> int:
    return next((at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right), len(one))
