"""The embedded database: workspaces, tokens, uploads and secrets. Feed rows are in ``rows``."""

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import uuid
from typing import Any

import attrs

from molecule_connect import ConfigError

SCHEMA = """
CREATE TABLE IF NOT EXISTS workspaces (
  id TEXT PRIMARY KEY, name TEXT NOT NULL, role TEXT, tier INTEGER NOT NULL, parent_id TEXT, status TEXT NOT NULL,
  runtime TEXT NOT NULL, delivery_mode TEXT NOT NULL, url TEXT NOT NULL DEFAULT '', agent_card TEXT,
  inbound_secret TEXT NOT NULL, active_tasks INTEGER NOT NULL DEFAULT 0, current_task TEXT NOT NULL DEFAULT '',
  error_rate REAL NOT NULL DEFAULT 0, sample_error TEXT NOT NULL DEFAULT '', uptime_seconds INTEGER NOT NULL DEFAULT 0,
  monthly_spend INTEGER NOT NULL DEFAULT 0, last_beat INTEGER, removed_at INTEGER,
  acked_seq INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS children ON workspaces (parent_id);
CREATE TABLE IF NOT EXISTS tokens (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, hash TEXT NOT NULL UNIQUE, prefix TEXT NOT NULL, kind TEXT NOT NULL,
  created_at INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS tokens_of ON tokens (workspace_id);
CREATE TABLE IF NOT EXISTS activity (
  seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, workspace_id TEXT NOT NULL,
  activity_type TEXT NOT NULL, source_id TEXT, target_id TEXT, method TEXT, message_id TEXT,
  created_at INTEGER NOT NULL, visible_at INTEGER NOT NULL, wire TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS feed ON activity (workspace_id, created_at, seq);
CREATE INDEX IF NOT EXISTS messages ON activity (workspace_id, message_id);
CREATE INDEX IF NOT EXISTS sent ON activity (source_id);
CREATE TABLE IF NOT EXISTS uploads (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, name TEXT NOT NULL, mime_type TEXT NOT NULL, content BLOB NOT NULL,
  expires_at INTEGER NOT NULL, acked_at INTEGER);
CREATE TABLE IF NOT EXISTS delegations (
  id TEXT PRIMARY KEY, workspace_id TEXT NOT NULL, target_id TEXT NOT NULL, summary TEXT NOT NULL, status TEXT NOT NULL,
  idempotency_key TEXT, error TEXT, response_preview TEXT, created_at INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS delegations_of ON delegations (workspace_id, created_at);
CREATE TABLE IF NOT EXISTS secrets (
  workspace_id TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (workspace_id, key));
CREATE TABLE IF NOT EXISTS remembered (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


@attrs.frozen(kw_only=True)
class Workspace:
    """A workspace as stored. ``agent_card`` is JSON text."""

    id: str
    name: str
    role: str | None
    tier: int
    parent_id: str | None
    status: str
    runtime: str
    delivery_mode: str
    url: str
    agent_card: str | None
    inbound_secret: str = attrs.field(repr=False)
    active_tasks: int
    current_task: str
    error_rate: float
    sample_error: str
    uptime_seconds: int
    monthly_spend: int
    last_beat: int | None
    removed_at: int | None
    acked_seq: int

    @property
    def removed(self) -> bool:
        """Whether it was deleted."""
        return self.status == "removed"

    @property
    def card(self) -> Any:
        """The agent card, or None."""
        return None if self.agent_card is None else json.loads(self.agent_card)


_COLUMNS = ", ".join(field.name for field in attrs.fields(Workspace))
_NAMES = tuple(field.name for field in attrs.fields(Workspace))


def new_secret() -> str:
    """A new token of 43 characters, like the platform's."""
    return secrets.token_urlsafe(32)


def is_uuid(text: object) -> bool:
    """Whether *text* is a UUID."""
    if not isinstance(text, str):
        return False
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _open(path: str) -> sqlite3.Connection:
    if path != ":memory:":
        # The file contains secrets. SQLite creates its -wal and -shm files with the same mode.
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000;" + SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


class Store:
    """The database, used from one thread at a time. Each statement is a transaction."""

    def __init__(self, path: str | None = None) -> None:
        try:
            self.db = _open(path or ":memory:")
        except sqlite3.Error as exc:
            raise ConfigError(
                f"cannot use {path} as the store: {exc}", hint="choose a file in a writable folder"
            ) from exc

        # Every message looks up the same few workspaces and tokens.
        self._workspaces: dict[str | None, Workspace] = {}
        self._owners: dict[str, str] = {}

    def _invalidate(self, workspace_id: str, *, tokens: bool) -> None:
        self._workspaces.pop(workspace_id, None)
        if tokens:
            self._owners.clear()

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def workspace(self, workspace_id: str | None) -> Workspace | None:
        """The workspace, also if it was removed."""
        if workspace_id in self._workspaces:
            return self._workspaces[workspace_id]
        found = self.workspaces("id = ?", workspace_id)
        if found:
            self._workspaces[workspace_id] = found[0]
        return found[0] if found else None

    def workspaces(self, where: str = "1", *values: Any) -> list[Workspace]:
        """The workspaces that match *where*, an SQL condition, in order of creation."""
        rows = self.db.execute(f"SELECT {_COLUMNS} FROM workspaces WHERE {where} ORDER BY rowid", values)  # noqa: S608
        return [Workspace(**dict(zip(_NAMES, row, strict=True))) for row in rows]

    def add_workspace(self, workspace_id: str, **columns: Any) -> None:
        """Create a workspace; missing columns get their defaults."""
        values = {"id": workspace_id, "tier": 1, "inbound_secret": new_secret(), **columns}
        marks = ", ".join("?" * len(values))
        names = ", ".join(values)
        self.db.execute(f"INSERT INTO workspaces ({names}) VALUES ({marks})", tuple(values.values()))  # noqa: S608

    def change(self, workspace_id: str, **columns: Any) -> None:
        """Set columns of a workspace; unknown ids are ignored."""
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self._invalidate(workspace_id, tokens="status" in columns)
        self.db.execute(f"UPDATE workspaces SET {assignments} WHERE id = ?", (*columns.values(), workspace_id))  # noqa: S608

    def descendants(self, workspace_id: str) -> list[str]:
        """Ids of the descendants of a workspace, except removed ones."""
        return [
            row[0]
            for row in self.db.execute(
                "WITH RECURSIVE below(id) AS ("
                "SELECT id FROM workspaces WHERE parent_id = ? AND status != 'removed' UNION "
                "SELECT w.id FROM workspaces w JOIN below ON w.parent_id = below.id WHERE w.status != 'removed') "
                "SELECT id FROM below",
                (workspace_id,),
            )
        ]

    def add_token(self, workspace_id: str, kind: str, now: int) -> str:
        """Create a token; only its hash is stored."""
        token = new_secret()
        self._owners.clear()
        self.db.execute(
            "INSERT INTO tokens (id, workspace_id, hash, prefix, kind, created_at) VALUES (?, ?, ?, ?, ?, ?)",
            (str(uuid.uuid4()), workspace_id, _hash(token), token[:8], kind, now),
        )
        return token

    def token_owner(self, token: str) -> str | None:
        """The workspace of a token, or None if the token is invalid. Tokens of removed workspaces are invalid."""
        digest = _hash(token)
        if digest in self._owners:
            return self._owners[digest]
        row = self.db.execute(
            "SELECT workspace_id FROM tokens t JOIN workspaces w ON w.id = t.workspace_id "
            "WHERE t.hash = ? AND NOT t.revoked AND w.status != 'removed'",
            (digest,),
        ).fetchone()
        if row is None:
            return None
        self._owners[digest] = str(row[0])
        return str(row[0])

    def live_tokens(self, workspace_id: str, kind: str | None = None) -> list[tuple[str, str, str, int]]:
        """Id, prefix, kind and creation time of each active token."""
        return self.db.execute(
            "SELECT id, prefix, kind, created_at FROM tokens WHERE workspace_id = ? AND NOT revoked "
            "AND kind = coalesce(?, kind) ORDER BY created_at DESC",
            (workspace_id, kind),
        ).fetchall()

    def revoke(self, workspace_id: str, token_id: str | None = None) -> int:
        """Revoke one token of a workspace, or all. Returns the number revoked."""
        self._owners.clear()
        return self.db.execute(
            "UPDATE tokens SET revoked = 1 WHERE workspace_id = ? AND id = coalesce(?, id) AND NOT revoked",
            (workspace_id, token_id),
        ).rowcount

    def remembered(self, key: str) -> str | None:
        """The value kept by an earlier ``remember``, or None."""
        row = self.db.execute("SELECT value FROM remembered WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def remembered_with(self, prefix: str) -> set[str]:
        """The values that were kept under keys with *prefix*."""
        rows = self.db.execute("SELECT value FROM remembered WHERE substr(key, 1, ?) = ?", (len(prefix), prefix))
        return {str(value) for (value,) in rows}

    def remember(self, key: str, value: str) -> None:
        """Keep a value for the next start with this store."""
        self.db.execute("INSERT OR REPLACE INTO remembered VALUES (?, ?)", (key, value))

    def secrets_of(self, workspace_id: str) -> dict[str, str]:
        """The global secrets, overridden by the workspace's own."""
        rows = self.db.execute(
            "SELECT key, value FROM secrets WHERE workspace_id IN ('', ?) ORDER BY workspace_id", (workspace_id,)
        )
        return dict(rows.fetchall())

    def set_secrets(self, workspace_id: str, values: dict[str, str]) -> None:
        """Set secrets of a workspace; the empty id sets global ones."""
        rows = [(workspace_id, key, value) for key, value in values.items()]
        self.db.executemany("INSERT OR REPLACE INTO secrets VALUES (?, ?, ?)", rows)


def kept_token(path: str | None) -> str:
    """The generated administrator's token of this store, created on first use.

    Raises:
        ConfigError: The store can't be opened.
    """
    store = Store(path)
    try:
        token = store.remembered("admin token") or secrets.token_urlsafe(16)
        store.remember("admin token", token)
    finally:
        store.close()
    return token
