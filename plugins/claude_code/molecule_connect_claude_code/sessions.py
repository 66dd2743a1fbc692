"""Which session of Claude Code goes on with which conversation, kept in one small file."""

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
# Over all callers. Claude Code itself deletes transcripts after 30 days.
MOST_SESSIONS = 5000

_LOG = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Session:
    """A session of Claude Code.

    Attributes:
        folder: The working directory that it was made in; it can be resumed nowhere else.
    """

    id: str
    folder: str


def conversation_of(request: Request, *, whole_workspace: bool) -> str:
    """The key of the conversation that *request* belongs to."""
    lane = [] if whole_workspace else [request.caller_id, request.context_id]
    return json.dumps([request.workspace_id, *lane])


class Sessions:
    """The sessions by conversation, at most *most* of them.

    Beyond that the caller with the most sessions loses its oldest one, so that no caller can evict those of another.

    Args:
        folder: Returns where they are kept, or None to keep them in memory alone.
    """

    def __init__(self, folder: Callable[[], Path | None], *, most: int = MOST_SESSIONS) -> None:
        self._folder = folder
        self._most = most
        self._known: dict[str, Session] | None = None
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._saving = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Nobody else writes to the session of *key* meanwhile."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield

    async def find(self, key: str) -> Session | None:
        """The session of the conversation *key*, or None when it has none."""
        return (await self._all()).get(key)

    async def keep(self, key: str, session: Session) -> None:
        """From now on *session* has the conversation *key*. A file that can't be written is logged."""
        known = await self._all()
        before = known.pop(key, None)
        known[key] = session
        while len(known) > self._most:
            del known[_oldest_of_the_biggest(known)]
        if before == session:
            return
        async with self._saving:
            try:
                await asyncio.to_thread(self._save, dict(known))
            except OSError as exc:
                _LOG.warning("sessions cannot be kept: %s; a restart begins new ones", exc.strerror or exc)

    async def _all(self) -> dict[str, Session]:
        if self._known is None:
            async with self._saving:
                if self._known is None:
                    self._known = await asyncio.to_thread(self._load)
        return self._known

    def _load(self) -> dict[str, Session]:
        folder = self._folder()
        file = folder / FILE if folder else None
        if file is None or not file.exists():
            return {}
        try:
            return _read(json.loads(file.read_bytes()))
        except (ValueError, OSError, RecursionError) as exc:
            aside = file.with_suffix(".unreadable")
            with contextlib.suppress(OSError):
                file.replace(aside)
            _LOG.warning("%s cannot be read (%s); it is now %s, and sessions begin anew", file, exc, aside.name)
            return {}

    def _save(self, known: dict[str, Session]) -> None:
        folder = self._folder()
        if folder is None:
            return
        handle, name = tempfile.mkstemp(dir=folder, prefix=FILE)  # 0600
        try:
            with os.fdopen(handle, "w") as file:
                json.dump({"version": 1, "sessions": {key: attrs.asdict(each) for key, each in known.items()}}, file)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(folder / FILE)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def is_session_id(text: object) -> bool:
    """Whether *text* can be the id of a session: nothing else is put on a command line."""
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def _oldest_of_the_biggest(known: dict[str, Session]) -> str:
    sizes = Counter(map(_caller_of, known))
    # Of equal ones, whose oldest session is the oldest.
    biggest = max(sizes, key=sizes.__getitem__)
    return next(key for key in known if _caller_of(key) == biggest)


def _caller_of(key: str) -> str:
    """Whose conversation *key* is: its workspace and caller as JSON, without the context."""
    return json.dumps(json.loads(key)[:2])


def _read(data: Any) -> dict[str, Session]:
    try:
        found = {str(key): Session(id=each["id"], folder=each["folder"]) for key, each in data["sessions"].items()}
    except (TypeError, KeyError, AttributeError) as exc:
        raise ValueError("it does not hold sessions") from exc
    return {_canonical(key): session for key, session in found.items() if is_session_id(session.id)}


def _canonical(key: str) -> str:
    """*key* with its workspace's id in lower case; an earlier release kept a UUID as it was spelled.

    Raises:
        ValueError: It isn't the key of a conversation.
    """
    workspace, *lane = json.loads(key)
    return json.dumps([workspace.lower() if is_session_id(workspace) else workspace, *lane])
