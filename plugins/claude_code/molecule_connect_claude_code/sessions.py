"""The Claude Code session of each conversation, stored in a JSON file."""

import asyncio
import contextlib
import json
import logging
import os
import tempfile
import uuid
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs

from molecule_connect import Request

FILE = "sessions.json"
# For all callers together. Claude Code deletes transcripts after 30 days.
MAX_SESSIONS = 5000

_LOG = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Session:
    """A session of Claude Code.

    Attributes:
        folder: The working directory it was created in. It can't be resumed in another one.
    """

    id: str
    folder: str


def conversation_of(request: Request, *, whole_workspace: bool) -> str:
    """The key of the request's conversation."""
    conversation = [] if whole_workspace else [request.caller_id, request.context_id]
    return json.dumps([request.workspace_id, *conversation])


class Sessions:
    """The sessions by conversation.

    Above *limit*, the oldest session of the caller with the most sessions is removed, so that a caller can't evict
    the sessions of others.

    Args:
        folder: Returns the folder of the file, or None to keep the sessions in memory only.
        limit: Maximum number of sessions.
    """

    def __init__(self, folder: Callable[[], Path | None], *, limit: int = MAX_SESSIONS) -> None:
        self._folder = folder
        self._limit = limit
        self._sessions: dict[str, Session] | None = None
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._file_lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[None]:
        """Hold the exclusive right to use the session of *key*."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield

    async def find(self, key: str) -> Session | None:
        """The session of the conversation *key*, if it has one."""
        return (await self._all()).get(key)

    async def store(self, key: str, session: Session) -> None:
        """Set the session of the conversation *key*. Errors in writing the file are logged."""
        sessions = await self._all()
        previous = sessions.pop(key, None)
        sessions[key] = session  # the order is by last use
        while len(sessions) > self._limit:
            del sessions[_next_to_evict(sessions)]
        if previous == session:
            return
        async with self._file_lock:
            try:
                await asyncio.to_thread(self._save, dict(sessions))
            except OSError as exc:
                _LOG.warning(
                    "cannot write the sessions file: %s; new sessions will be started after a restart",
                    exc.strerror or exc,
                )

    async def _all(self) -> dict[str, Session]:
        if self._sessions is None:
            async with self._file_lock:
                if self._sessions is None:
                    self._sessions = await asyncio.to_thread(self._load)
        return self._sessions

    def _load(self) -> dict[str, Session]:
        folder = self._folder()
        file = folder / FILE if folder else None
        if file is None or not file.exists():
            return {}
        try:
            return _read(json.loads(file.read_bytes()))
        except (ValueError, OSError, RecursionError) as exc:
            backup = file.with_suffix(".unreadable")
            with contextlib.suppress(OSError):
                file.replace(backup)
            _LOG.warning("cannot read %s (%s): renamed it to %s; starting new sessions", file, exc, backup.name)
            return {}

    def _save(self, sessions: dict[str, Session]) -> None:
        folder = self._folder()
        if folder is None:
            return
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=FILE)  # 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"version": 1, "sessions": {key: attrs.asdict(each) for key, each in sessions.items()}}, file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(folder / FILE)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def is_session_id(text: object) -> bool:
    """Whether *text* is a UUID. Only a UUID is put on the command line as a session id."""
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _next_to_evict(sessions: dict[str, Session]) -> str:
    counts = Counter(map(_caller_of, sessions))
    # Of several callers with the same number, max() returns the one with the oldest session.
    caller = max(counts, key=counts.__getitem__)
    return next(key for key in sessions if _caller_of(key) == caller)


def _caller_of(key: str) -> str:
    """The workspace and caller of the conversation *key*, as JSON."""
    return json.dumps(json.loads(key)[:2])


def _read(data: Any) -> dict[str, Session]:
    try:
        found = {str(key): Session(id=each["id"], folder=each["folder"]) for key, each in data["sessions"].items()}
    except (TypeError, KeyError, AttributeError) as exc:
        raise ValueError("not a file of sessions") from exc
    return {_canonical(key): session for key, session in found.items() if is_session_id(session.id)}


def _canonical(key: str) -> str:
    """Convert the workspace id in *key* to lower case; earlier releases stored UUIDs as they were spelled.

    Raises:
        ValueError: *key* isn't the key of a conversation.
    """
    workspace, *conversation = json.loads(key)
    return json.dumps([workspace.lower() if is_session_id(workspace) else workspace, *conversation])
