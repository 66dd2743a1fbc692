"""An inbox: messages wait in the journal until a reader takes, finishes or answers them."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from molecule_connect.config.settings import MAX_SECONDS, is_same_workspace
from molecule_connect.errors import ConfigError, FleetError, MoleculeError
from molecule_connect.inbox.replies import refusal, storable
from molecule_connect.journal.claims import is_gone, new_reader_id
from molecule_connect.journal.fairness import Place, Turns, in_turn
from molecule_connect.journal.inbox import PASSED_OVER, InboxMessage, InboxStore
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import State
from molecule_connect.models import Response, canonical_id

if TYPE_CHECKING:
    from molecule_connect.platform.client import AsyncPlatformClient

# Seconds between two looks for what other processes did.
LOOK, LEAST_LOOK = 0.2, 0.01
# A burst of arrivals is looked at together, so many at a time: callers take turns in each of them.
BURST, TOGETHER = 0.1, 50
HOLD = 300.0
ASK_TIMEOUT = 60.0
PATIENCE = 10.0
# Seconds between two looks whether those who hold messages live.
DEATH_LOOK = 2.0
# The same for messages whose files are awaited.
FILES_LOOK = 5.0


class Desk(Protocol):
    """What an inbox needs of one workspace beside the journal.

    Attributes:
        trouble: Why nothing arrives or is sent; empty while all is well.
        ended: What ended it for good.
    """

    @property
    def client(self) -> "AsyncPlatformClient": ...

    @property
    def trouble(self) -> str: ...

    @property
    def ended(self) -> MoleculeError | None: ...

    def changed(self) -> None:
        """A reader changed something in the journal."""
        ...

    async def tell_user(self, text: str, files: Sequence[Path]) -> None: ...

    async def ask(self, peer_id: str, text: str, *, timeout: float) -> Any: ...

    async def delegate(self, peer_id: str, task: str) -> str: ...


class Inbox:
    """What waits in one or more workspaces. Made by ``open_inbox``; any number of processes may read one inbox."""

    def __init__(self, journal: Journal, desks: Mapping[str, Desk]) -> None:
        self._store = InboxStore(journal)
        self._desks = dict(desks)
        self.workspace_ids = tuple(self._desks)
        self._bell = asyncio.Event()
        self._turns = Turns()
        self.holder = new_reader_id()

    @property
    def ended(self) -> Mapping[str, MoleculeError]:
        """What ended the connection of a workspace for good: its token was refused, or it was deleted."""
        ended = {one: desk.ended for one, desk in self._desks.items()}
        return MappingProxyType({one: error for one, error in ended.items() if error is not None})

    def trouble(self, workspace_id: str) -> str:
        """Why nothing arrives or is sent for the workspace; empty while all is well.

        Raises:
            ConfigError: The workspace is not served here.
        """
        desk = self._desk(workspace_id)
        return str(desk.ended) if desk.ended is not None else desk.trouble

    def client(self, workspace_id: str) -> "AsyncPlatformClient":
        """The workspace's own way to its platform.

        Raises:
            ConfigError: The workspace is not served here.
        """
        return self._desk(workspace_id).client

    # Reading

    async def wait(self, seconds: float, *, hold: float = HOLD) -> InboxMessage | None:
        """A message that nobody has, held for *hold* seconds; None after *seconds* without one.

        Senders take turns, and people, who count as one, have every other turn. Each sender's oldest is first.

        Raises:
            ConfigError: A time is not one that can be waited for.
            JournalError: The journal cannot be used.
            MoleculeError: What ended the only workspace, once nothing is left to hold; FleetError when all of several
                have ended.
        """
        for name, value in (("wait", seconds), ("hold", hold)):
            if not 0 <= value <= MAX_SECONDS:
                raise ConfigError(
                    f"{name} must lie between 0 and {MAX_SECONDS} seconds, not {value}",
                    hint="give a number within these bounds",
                )
        until = _now() + seconds
        while True:
            version = self._store.version()
            await self._release_of_the_dead()
            message = await self._hold(hold)
            if message is None:
                self._require_a_workspace()
            left = until - _now()
            if message is not None or left <= 0:
                return message
            await self._change(version, self._wait_at_most(left))

    def peek(self, limit: int = 10) -> list[InboxMessage]:
        """What waits, the oldest first, held or not. It is neither held nor removed by that.

        When more than *limit* wait, those are left out whose senders have most before them.
        """
        chosen = in_turn(self._pending(max(limit, 0)))[: max(limit, 0)]
        messages = (self._store.at(place) for place in sorted(chosen))
        return [message for message in messages if message is not None]

    def get(self, activity_id: str, *, workspace_id: str | None = None) -> InboxMessage | None:
        """One message, also one that was popped or replied to, for a day after that."""
        found = (self._store.message(one, activity_id) for one in self._among(workspace_id))
        return next((message for message in found if message is not None), None)

    async def arrivals(self) -> AsyncIterator[InboxMessage]:
        """Each pending message once, beginning with those that wait already.

        Senders take turns; each sender's oldest is first.

        Raises:
            JournalError: The journal cannot be used.
            MoleculeError: What ended the only workspace; FleetError when all of several have ended.
        """
        told: set[Place] = set()
        while True:
            version = self._store.version()
            waiting = self._pending()
            pending = {place for places in waiting.values() for place in places}
            untold = {
                caller_id: list(itertools.islice((one for one in places if one not in told), PASSED_OVER))
                for caller_id, places in waiting.items()
            }
            new = list(itertools.islice(filter(self._store.is_ready, in_turn(untold)), TOGETHER))
            told = told.intersection(pending).union(new)
            for place in new:
                message = self._store.at(place)
                if message is not None:
                    yield message
            if new:
                await asyncio.sleep(BURST if len(new) < TOGETHER else 0)
            else:
                self._require_a_workspace()
                # One whose files do not come is told of at last.
                await self._change(version, FILES_LOOK if len(told) < len(pending) else None)

    # Finishing

    async def pop(self, activity_id: str, *, workspace_id: str | None = None) -> bool:
        """The message is dealt with. False if it was not pending; twice is fine.

        Raises:
            JournalError: The journal cannot be written.
        """
        for one in self._among(workspace_id):
            if await self._told(one, self._store.pop(one, activity_id)):
                return True
        return False

    async def reply(
        self, activity_id: str, response: Response, *, workspace_id: str | None = None, patience: float = PATIENCE
    ) -> str:
        """Answer a message: the person in the canvas, or the peer that wrote it.

        The answer is on the disk before it is sent, and is sent once, over restarts too.

        Args:
            patience: Seconds to wait for the platform to take it.

        Returns:
            "delivered", "stored" (it is still being sent), or "dead: " and why it cannot be.

        Raises:
            ConfigError: There is no such message, it is no message, it was answered before, or nothing is said.
            JournalError: The journal cannot be written.
        """
        answer = storable(response)
        workspace = self._owner(activity_id, workspace_id)
        if not await self._told(workspace, self._store.answer(workspace, activity_id, answer)):
            raise refusal(activity_id, self._store.standing(workspace, activity_id))
        return await self._outcome(workspace, activity_id, patience)

    async def _outcome(self, workspace_id: str, activity_id: str, patience: float) -> str:
        until = _now() + patience
        while True:
            version = self._store.version()
            standing = self._store.standing(workspace_id, activity_id)
            if standing is None or standing.state is State.DONE:
                return "delivered"
            if standing.state is State.DEAD:
                return f"dead: {standing.reason}"
            left = until - _now()
            if left <= 0:
                return "stored"
            await self._change(version, left)

    # Speaking first

    async def tell_user(self, workspace_id: str, text: str, files: Sequence[Path | str] = ()) -> None:
        """Show the person in the canvas of the workspace a text, with files beside it.

        Raises:
            ConfigError: The workspace is not served here, or a file cannot be sent.
            PlatformError: It was not accepted.
        """
        await self._desk(workspace_id).tell_user(text, [Path(file) for file in files])

    async def ask(self, workspace_id: str, peer_id: str, text: str, *, timeout: float = ASK_TIMEOUT) -> Any:
        """Ask a peer. What the platform answers is returned; the peer's own answer may come later, as an arrival.

        Raises:
            ConfigError: The workspace is not served here, it would ask itself, or nothing is asked.
            PlatformError: It was not accepted.
            TimeoutError: No answer came in *timeout* seconds; the peer may have the question all the same.
        """
        desk = self._other_than_itself(workspace_id, peer_id)
        _require_words(text)
        return await desk.ask(canonical_id(peer_id), text, timeout=timeout)

    async def delegate(self, workspace_id: str, peer_id: str, task: str) -> str:
        """Hand a task to a peer. Returns the delegation's id; its result comes as an arrival.

        Raises:
            ConfigError: The workspace is not served here, it would delegate to itself, or there is no task.
            PlatformError: It was not accepted.
        """
        desk = self._other_than_itself(workspace_id, peer_id)
        _require_words(task)
        return await desk.delegate(canonical_id(peer_id), task)

    # Inside

    def _pending(self, limit: int = -1) -> dict[str | None, list[Place]]:
        """What waits in all workspaces by caller, of each the oldest first; of each and in each at most *limit*."""
        waiting: dict[str | None, list[Place]] = {}
        for one in self.workspace_ids:
            for caller_id, places in self._store.pending(one, limit).items():
                waiting[caller_id] = sorted([*waiting.get(caller_id, ()), *places])
        return waiting

    def _desk(self, workspace_id: str) -> Desk:
        desk = self._desks.get(canonical_id(workspace_id))
        if desk is None:
            raise ConfigError(
                f"workspace {workspace_id!r} is not served here", hint=f"it is one of {', '.join(self.workspace_ids)}"
            )
        return desk

    def _require_a_workspace(self) -> None:
        ended = self.ended
        if len(ended) == len(self._desks):
            raise next(iter(ended.values())) if len(ended) == 1 else FleetError(ended, of=len(ended))

    def _other_than_itself(self, workspace_id: str, peer_id: str) -> Desk:
        desk = self._desk(workspace_id)
        if is_same_workspace(peer_id, workspace_id):
            raise ConfigError(f"{peer_id} is this workspace itself", hint="name a peer: it would wait for itself")
        return desk

    def _among(self, workspace_id: str | None) -> tuple[str, ...]:
        if workspace_id is None:
            return self.workspace_ids
        self._desk(workspace_id)
        return (canonical_id(workspace_id),)

    def _owner(self, activity_id: str, workspace_id: str | None) -> str:
        among = self._among(workspace_id)
        return next((one for one in among if self._store.standing(one, activity_id) is not None), among[0])

    async def _told(self, workspace_id: str, change: Coroutine[Any, Any, bool]) -> bool:
        """What *change* gives. Its connection is told also when the caller stops waiting before it is committed."""
        changing = asyncio.ensure_future(change)
        changing.add_done_callback(lambda _: self._desks[workspace_id].changed())
        return await asyncio.shield(changing)

    async def _hold(self, seconds: float) -> InboxMessage | None:
        """Whoever stops waiting in the very moment of holding holds nothing."""
        holding = asyncio.ensure_future(self._store.claim(self.workspace_ids, self.holder, seconds, turns=self._turns))
        try:
            return await asyncio.shield(holding)
        except asyncio.CancelledError:
            message = await holding
            if message is not None:
                await self._store.unclaim(message, self.holder)
            raise

    async def _release_of_the_dead(self) -> None:
        """Give back at once what a process of this machine held that died without a word."""
        for holder, _ in self._store.claims(self.workspace_ids):
            if is_gone(holder):
                await self._store.release(holder)

    def _wait_at_most(self, seconds: float) -> float:
        """Less than *seconds* when somebody's hold ends before, or when its process may die."""
        holds = self._store.claims(self.workspace_ids)
        if any(holder != self.holder for holder, _ in holds):
            seconds = min(seconds, DEATH_LOOK)
        return max(LEAST_LOOK, min([seconds, *(until - self._store.wall for _, until in holds)]))

    def ring(self) -> None:
        """Something happened in this process: whoever waits need not wait for the next look."""
        self._bell.set()
        self._bell = asyncio.Event()

    async def close(self) -> None:
        """Give back what is held: whoever took it here can finish it no more."""
        await self._store.release(self.holder)

    async def _change(self, version: int, seconds: float | None) -> None:
        """Wait until somebody wrote to the journal, or a workspace ended, for at most *seconds*."""
        until = None if seconds is None else _now() + seconds
        ended = len(self.ended)
        while self._store.version() == version and len(self.ended) == ended:
            left = LOOK if until is None else min(LOOK, until - _now())
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._bell.wait()


def _require_words(text: str) -> None:
    if not text.strip():
        raise ConfigError("there is nothing to ask of the peer", hint="give a text")


def _now() -> float:
    return asyncio.get_running_loop().time()
