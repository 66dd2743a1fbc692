"""An inbox: readers claim, finish and answer the messages that wait in the journal."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from molecule_connect.config.settings import MAX_SECONDS, is_same_workspace
from molecule_connect.errors import ConfigError, FleetError, MoleculeError
from molecule_connect.inbox.replies import ReplyResult, refusal, to_stored_reply
from molecule_connect.journal.fairness import Place, Turns, in_turn
from molecule_connect.journal.inbox import PASSED_OVER, InboxMessage, InboxStore, is_gone, new_reader_id
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State
from molecule_connect.models import Response, canonical_id

if TYPE_CHECKING:
    from molecule_connect.platform.client import AsyncPlatformClient

# All intervals are in seconds. Other processes change the journal without a signal, so it is polled.
POLL_INTERVAL, MIN_POLL_INTERVAL = 0.2, 0.01
# Messages that arrive in a burst are collected into batches, so that senders take turns within each batch.
BATCH_INTERVAL, BATCH_SIZE = 0.1, 50
DEFAULT_HOLD = 300.0
DEFAULT_ASK_TIMEOUT = 60.0
DEFAULT_PATIENCE = 10.0
# How often to check whether the processes with claims are still alive.
READER_CHECK_INTERVAL = 2.0
# How often to check messages whose files are being downloaded.
FILES_CHECK_INTERVAL = 5.0


class ChangeSignal:
    """Wakes the waiting readers of this process."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake every waiting reader."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        """Wait until ``notify`` is called, for at most *seconds*."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


class Sender(Protocol):
    """Sends messages to the person and the peers of one workspace."""

    async def tell_user(self, text: str, files: Sequence[Path]) -> None: ...

    async def ask(self, peer_id: str, text: str, *, timeout: float) -> Any: ...

    async def delegate(self, peer_id: str, task: str) -> str: ...


class Session(Protocol):
    """One workspace of an inbox.

    Attributes:
        trouble: The problems that keep messages from arriving or replies from being sent; empty if there are none.
        ended: The error that ended the workspace permanently.
    """

    @property
    def client(self) -> "AsyncPlatformClient": ...

    @property
    def sender(self) -> Sender: ...

    @property
    def trouble(self) -> str: ...

    @property
    def ended(self) -> MoleculeError | None: ...

    def journal_changed(self) -> None:
        """Notify the worker of the workspace that a reader changed the journal."""
        ...


class Inbox:
    """The messages of one or more workspaces. Use ``open_inbox`` to create it.

    Any number of processes may read the same inbox.
    """

    def __init__(self, journal: Journal, sessions: Mapping[str, Session], changes: ChangeSignal) -> None:
        self._store = InboxStore(journal)
        self._sessions = dict(sessions)
        self._changes = changes
        self._turns = Turns()
        self.reader_id = new_reader_id()
        self.workspace_ids = tuple(self._sessions)

    @property
    def ended(self) -> Mapping[str, MoleculeError]:
        """The workspaces that ended permanently, with the error: a refused token, or a deleted workspace."""
        ended = {one: session.ended for one, session in self._sessions.items()}
        return MappingProxyType({one: error for one, error in ended.items() if error is not None})

    def trouble(self, workspace_id: str) -> str:
        """The problems that keep messages from arriving or replies from being sent; empty if there are none.

        Raises:
            ConfigError: The workspace isn't served here.
        """
        session = self._session(workspace_id)
        return str(session.ended) if session.ended is not None else session.trouble

    def client(self, workspace_id: str) -> "AsyncPlatformClient":
        """The platform client of the workspace.

        Raises:
            ConfigError: The workspace isn't served here.
        """
        return self._session(workspace_id).client

    # Reading

    async def wait(self, seconds: float, *, hold: float = DEFAULT_HOLD) -> InboxMessage | None:
        """Claim an available message for *hold* seconds, or return None if there is none within *seconds*.

        Senders take turns, each with its oldest message. People count as one sender, which gets every other turn.

        Raises:
            ConfigError: A time is out of range.
            JournalError: The journal can't be used.
            MoleculeError: The only workspace ended with this error, and no message is available. If all of several
                workspaces ended, it is a FleetError.
        """
        for name, value in (("wait", seconds), ("hold", hold)):
            if not 0 <= value <= MAX_SECONDS:
                raise ConfigError(
                    f"{name} must be between 0 and {MAX_SECONDS} seconds, not {value}",
                    hint="use a number within these bounds",
                )
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while True:
            version = self._store.version()
            await self._release_claims_of_dead_readers()
            message = await self._claim(hold)
            if message is None:
                self._check_not_all_ended()
            remaining = deadline - loop.time()
            if message is not None or remaining <= 0:
                return message
            await self._wait_for_change(version, self._until_next_expiry(remaining))

    def peek(self, limit: int = 10) -> list[InboxMessage]:
        """List at most *limit* pending messages, oldest first, claimed or not. It doesn't claim or remove them.

        If more messages are pending, the senders with the most messages are cut first.
        """
        chosen = in_turn(self._pending(max(limit, 0)))[: max(limit, 0)]
        messages = (self._store.at(place) for place in sorted(chosen))
        return [message for message in messages if message is not None]

    def get(self, activity_id: str, *, workspace_id: str | None = None) -> InboxMessage | None:
        """Return one message, up to a day after it was finished."""
        found = (self._store.message(one, activity_id) for one in self._candidates(workspace_id))
        return next((message for message in found if message is not None), None)

    async def arrivals(self) -> AsyncIterator[InboxMessage]:
        """Yield each pending message once, starting with those that already wait.

        Senders take turns, each with its oldest message.

        Raises:
            JournalError: The journal can't be used.
            MoleculeError: The only workspace ended with this error. If all of several workspaces ended, it is a
                FleetError.
        """
        yielded: set[Place] = set()
        while True:
            version = self._store.version()
            waiting = self._pending()
            pending = {place for places in waiting.values() for place in places}
            remaining = {
                caller_id: list(itertools.islice((one for one in places if one not in yielded), PASSED_OVER))
                for caller_id, places in waiting.items()
            }
            new = list(itertools.islice(filter(self._store.is_ready, in_turn(remaining)), BATCH_SIZE))
            yielded = yielded.intersection(pending).union(new)
            for place in new:
                message = self._store.at(place)
                if message is not None:
                    yield message
            if new:
                await asyncio.sleep(BATCH_INTERVAL if len(new) < BATCH_SIZE else 0)
            else:
                self._check_not_all_ended()
                # A message whose files don't arrive becomes ready after a timeout, without a change to the journal.
                await self._wait_for_change(version, FILES_CHECK_INTERVAL if len(yielded) < len(pending) else None)

    # Finishing

    async def pop(self, activity_id: str, *, workspace_id: str | None = None) -> bool:
        """Mark a message as done. Returns False if it wasn't pending, so calling it twice is safe.

        Raises:
            JournalError: The journal can't be written.
        """
        for one in self._candidates(workspace_id):
            if await self._commit(one, self._store.pop(one, activity_id)):
                return True
        return False

    async def reply(
        self,
        activity_id: str,
        response: Response,
        *,
        workspace_id: str | None = None,
        patience: float = DEFAULT_PATIENCE,
    ) -> ReplyResult:
        """Reply to the sender of a message: the person in the canvas, or the peer.

        The reply is on disk before it is sent, and is sent once, despite restarts.

        Args:
            patience: How long to wait for the platform to accept the reply, in seconds.

        Returns:
            "delivered", "stored" (still being sent), or "dead: " and the reason.

        Raises:
            ConfigError: The row isn't a message, or was answered before, or the reply is empty.
            JournalError: The journal can't be written.
        """
        reply = to_stored_reply(response)
        owner = self._owner(activity_id, workspace_id)
        if not await self._commit(owner, self._store.answer(owner, activity_id, reply)):
            raise refusal(activity_id, self._store.standing(owner, activity_id))
        return await self._wait_for_delivery(owner, activity_id, patience)

    async def _wait_for_delivery(self, workspace_id: str, activity_id: str, patience: float) -> ReplyResult:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while True:
            version = self._store.version()
            standing = self._store.standing(workspace_id, activity_id)
            if standing is None or standing.state is State.DONE:
                return ReplyResult("delivered")
            if standing.state is State.DEAD:
                return ReplyResult("dead", standing.reason)
            remaining = deadline - loop.time()
            if remaining <= 0:
                return ReplyResult("stored")
            await self._wait_for_change(version, remaining)

    # New messages

    async def tell_user(self, workspace_id: str, text: str, files: Sequence[Path | str] = ()) -> None:
        """Send a new message to the person in the canvas, with optional files.

        Raises:
            ConfigError: The workspace isn't served here, or a file can't be sent.
            PlatformError: The platform didn't accept it.
        """
        await self._session(workspace_id).sender.tell_user(text, [Path(file) for file in files])

    async def ask(self, workspace_id: str, peer_id: str, text: str, *, timeout: float = DEFAULT_ASK_TIMEOUT) -> Any:
        """Ask a peer, and return the platform's response. The peer's own answer may arrive later.

        Raises:
            ConfigError: The workspace isn't served here, the peer is the workspace itself, or the text is empty.
            PlatformError: The platform didn't accept it.
            TimeoutError: There was no response within *timeout* seconds. The peer may have the question all the same.
        """
        session = self._session_with_peer(workspace_id, peer_id, text)
        return await session.sender.ask(canonical_id(peer_id), text, timeout=timeout)

    async def delegate(self, workspace_id: str, peer_id: str, task: str) -> str:
        """Delegate a task to a peer, and return the delegation's id. The result arrives later.

        Raises:
            ConfigError: The workspace isn't served here, the peer is the workspace itself, or the task is empty.
            PlatformError: The platform didn't accept it.
        """
        session = self._session_with_peer(workspace_id, peer_id, task)
        return await session.sender.delegate(canonical_id(peer_id), task)

    # Internals

    async def close(self) -> None:
        """Release the claims of this reader."""
        await self._store.release(self.reader_id)

    def _pending(self, limit: int = -1) -> dict[str | None, list[Place]]:
        """The pending messages by caller, oldest first; at most *limit* per caller and workspace."""
        waiting: dict[str | None, list[Place]] = {}
        for one in self.workspace_ids:
            for caller_id, places in self._store.pending(one, limit).items():
                waiting[caller_id] = sorted([*waiting.get(caller_id, ()), *places])
        return waiting

    def _session(self, workspace_id: str) -> Session:
        session = self._sessions.get(canonical_id(workspace_id))
        if session is None:
            raise ConfigError(
                f"workspace {workspace_id!r} is not served here", hint=f"use one of {', '.join(self.workspace_ids)}"
            )
        return session

    def _session_with_peer(self, workspace_id: str, peer_id: str, text: str) -> Session:
        session = self._session(workspace_id)
        if is_same_workspace(peer_id, workspace_id):
            raise ConfigError(f"{peer_id} is this workspace itself", hint="name a peer")
        if not text.strip():
            raise ConfigError("there is nothing to ask of the peer", hint="pass a non-empty text")
        return session

    def _check_not_all_ended(self) -> None:
        ended = self.ended
        if len(ended) == len(self._sessions):
            raise next(iter(ended.values())) if len(ended) == 1 else FleetError(ended, of=len(ended))

    def _candidates(self, workspace_id: str | None) -> tuple[str, ...]:
        """The given workspace, or all."""
        if workspace_id is None:
            return self.workspace_ids
        self._session(workspace_id)
        return (canonical_id(workspace_id),)

    def _owner(self, activity_id: str, workspace_id: str | None) -> str:
        candidates = self._candidates(workspace_id)
        known = (one for one in candidates if self._store.standing(one, activity_id) is not None)
        return next(known, candidates[0])

    async def _commit(self, workspace_id: str, change: Coroutine[Any, Any, bool]) -> bool:
        """Await *change* and notify the session, even if the caller is cancelled before the commit."""
        committing = asyncio.ensure_future(change)
        committing.add_done_callback(lambda _: self._changed(workspace_id))
        return await asyncio.shield(committing)

    def _changed(self, workspace_id: str) -> None:
        self._sessions[workspace_id].journal_changed()
        self._changes.notify()

    async def _claim(self, seconds: float) -> InboxMessage | None:
        """Claim a message. If the caller is cancelled meanwhile, release it."""
        claim = self._store.claim(self.workspace_ids, self.reader_id, seconds, turns=self._turns)
        claiming = asyncio.ensure_future(claim)
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            message = await claiming
            if message is not None:
                await self._store.unclaim(message, self.reader_id)
            raise

    async def _release_claims_of_dead_readers(self) -> None:
        for reader_id, _ in self._store.claims(self.workspace_ids):
            if is_gone(reader_id):
                await self._store.release(reader_id)

    def _until_next_expiry(self, seconds: float) -> float:
        """The time until a claim expires or its reader is checked again, at most *seconds*."""
        claims = self._store.claims(self.workspace_ids)
        if any(reader_id != self.reader_id for reader_id, _ in claims):
            seconds = min(seconds, READER_CHECK_INTERVAL)
        return max(MIN_POLL_INTERVAL, min([seconds, *(until - self._store.wall for _, until in claims)]))

    async def _wait_for_change(self, version: int, seconds: float | None) -> None:
        """Wait until the journal changes or a workspace ends, for at most *seconds*."""
        loop = asyncio.get_running_loop()
        deadline = None if seconds is None else loop.time() + seconds
        ended = len(self.ended)
        while self._store.version() == version and len(self.ended) == ended:
            remaining = POLL_INTERVAL if deadline is None else min(POLL_INTERVAL, deadline - loop.time())
            if remaining <= 0:
                return
            await self._changes.wait(remaining)
