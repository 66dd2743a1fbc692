"""Looks up the names of peers in the platform's registry, beside the messages and never before them."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterable

from molecule_connect import events
from molecule_connect.errors import PermanentPlatformError, PlatformError
from molecule_connect.journal.peer_names import LONGEST_NAME
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.worker.ports import Pace, Registry
from molecule_connect.worker.status import Status

# Seconds between two lookups, and for which the result of one is kept.
PAUSE = 60.0
NAME_AGE, UNKNOWN_AGE = 24 * 3600.0, 3600.0
# Peers that are looked up one by one each time, and peers that are remembered.
FEW = 5
MOST_PEERS = 1000


class PeerDirectory:
    """Keeps the names of the peers that write to a workspace in its journal.

    One request returns the names of all peers that the workspace may write to; the others are requested one by one.
    A failure is not reported: the peer keeps its last known name, or is shown by its id.
    """

    def __init__(self, registry: Registry, journal: WorkspaceJournal, status: Status, pace: Pace) -> None:
        self._registry = registry
        self._journal = journal
        self._status = status
        self._pace = pace
        self._known = journal.peer_names()
        # The newest list, and until when it is used (loop time).
        self._listed: dict[str, str] = {}
        self._listed_until = float("-inf")
        # When each peer is due to be looked up again (loop time).
        self._due: dict[str, float] = {}
        self._wanted: dict[str, None] = {}

    def saw(self, callers: Iterable[str | None]) -> None:
        """These callers wrote messages."""
        now = asyncio.get_running_loop().time()
        for peer_id in dict.fromkeys(callers):
            if peer_id is None or self._due.get(peer_id, 0.0) > now:
                continue
            if now < self._listed_until and (name := self._listed.get(peer_id)):
                self._found(peer_id, name)
            elif len(self._wanted) < MOST_PEERS:
                self._wanted[peer_id] = None

    @property
    def is_wanted(self) -> bool:
        """Whether ``run`` has peers to look up."""
        return bool(self._wanted)

    async def run(self) -> None:
        """Look up the peers that were seen, and those of waiting messages. Ends when none is left."""
        self.saw(self._journal.callers())
        while self._wanted:
            with contextlib.suppress(PlatformError):
                if not self._pace.is_limited:
                    await self._look_up()
            await asyncio.sleep(PAUSE)

    async def _look_up(self) -> None:
        """Look up all wanted peers, some of the unlisted ones. After a transient failure, they stay wanted."""
        found: dict[str, str] = {}
        with contextlib.suppress(PermanentPlatformError):
            found = await self._registry.peer_names()
            named = ((peer_id, name[:LONGEST_NAME]) for peer_id, name in found.items())
            self._listed = found = dict(itertools.islice(named, MOST_PEERS))
            self._listed_until = asyncio.get_running_loop().time() + NAME_AGE
        for peer_id in [one for one in self._wanted if found.get(one)]:
            self._found(peer_id, found[peer_id])
        for peer_id in list(self._wanted)[:FEW]:
            self._found(peer_id, await self._unlisted(peer_id))

    async def _unlisted(self, peer_id: str) -> str:
        try:
            return await self._registry.peer_name(peer_id)
        except PlatformError as exc:
            # An answer of any status is about this peer: it may be offline (503) for long.
            if exc.status is None:
                raise
            return ""

    def _found(self, peer_id: str, name: str) -> None:
        name = name[:LONGEST_NAME]
        self._wanted.pop(peer_id, None)
        self._due.pop(peer_id, None)
        self._due[peer_id] = asyncio.get_running_loop().time() + (NAME_AGE if name else UNKNOWN_AGE)
        if len(self._due) > MOST_PEERS:
            del self._due[next(iter(self._due))]
        if name and self._known.get(peer_id) != name:
            self._known[peer_id] = name
            if len(self._known) > MOST_PEERS:
                del self._known[next(iter(self._known))]
            self._journal.add_peer_names({peer_id: name})
            self._status.emit(events.PeerNamed(workspace_id=self._status.workspace_id, peer_id=peer_id, name=name))
