"""Names and roles of peers, looked up beside everything else: whoever asks gets what is known at this moment."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from molecule_connect import AsyncPlatformClient, MoleculeError, endpoints
from molecule_connect_mcp import harmless
from molecule_connect_mcp.shapes import NOBODY, Peer

KEPT = 300.0
# A registry that fails is left alone for this long; what was known stays.
KEPT_FAILURE = 60.0
MOST = 4096
_log = logging.getLogger(__name__)


class Clients(Protocol):
    """Where a workspace's client comes from."""

    def client(self, workspace_id: str) -> AsyncPlatformClient: ...


@attrs.define
class _Known:
    peer: Peer
    good_until: float


class PeerBook:
    """What is known of peers. ``of`` answers at once, and has a look-up begin where nothing fresh is known."""

    def __init__(self, clients: Clients, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients, self._clock = clients, clock
        self._known: dict[tuple[str, str], _Known] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    def of(self, workspace_id: str, peer_id: str | None) -> Peer:
        """What is known of *peer_id* as a peer of *workspace_id*. Never waits."""
        peer_id = harmless.identifier(peer_id)
        if not peer_id:
            return NOBODY
        known = self._known.get((workspace_id, peer_id))
        if known is None or known.good_until <= self._clock():
            self.refresh(workspace_id, missing=peer_id)
        return known.peer if known else self._blank(workspace_id, peer_id)

    def refresh(self, workspace_id: str, *, missing: str = "") -> None:
        """Begin to look up the peers of *workspace_id*, unless that is under way."""
        if workspace_id not in self._asking:
            task = asyncio.get_running_loop().create_task(self._ask(workspace_id, missing), name="peers")
            self._asking[workspace_id] = task
            task.add_done_callback(lambda _: self._asking.pop(workspace_id, None))

    def learn(self, workspace_id: str, rows: list[dict[str, Any]]) -> None:
        """Keep what a list of peers says."""
        if len(self._known) > MOST:
            self._known.clear()
        for row in rows:
            if peer_id := harmless.identifier(row.get("id")):
                self._keep(workspace_id, peer_id, self._read(workspace_id, peer_id, row), KEPT)

    async def aclose(self) -> None:
        """End what is being looked up."""
        for task in (asking := list(self._asking.values())):
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _ask(self, workspace_id: str, missing: str) -> None:
        try:
            rows = await self._clients.client(workspace_id).call(endpoints.peers(workspace_id))
        except MoleculeError as error:
            _log.info("the peers of %s could not be looked up: %s", workspace_id, error)
            rows = []
        self.learn(workspace_id, rows)
        if missing and not any(row.get("id") == missing for row in rows):
            known = self._known.get((workspace_id, missing))
            peer = known.peer if known else self._blank(workspace_id, missing)
            self._keep(workspace_id, missing, peer, KEPT_FAILURE)

    def _keep(self, workspace_id: str, peer_id: str, peer: Peer, seconds: float) -> None:
        self._known[workspace_id, peer_id] = _Known(peer, self._clock() + seconds)

    def _read(self, workspace_id: str, peer_id: str, row: Mapping[str, Any]) -> Peer:
        return attrs.evolve(
            self._blank(workspace_id, peer_id), name=harmless.name(row.get("name")), role=harmless.name(row.get("role"))
        )

    def _blank(self, workspace_id: str, peer_id: str) -> Peer:
        address = self._clients.client(workspace_id).address
        return Peer(card_url=address.url(f"/registry/discover/{peer_id}"))
