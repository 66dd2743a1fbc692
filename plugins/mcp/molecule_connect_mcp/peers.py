"""Names and roles of peers, fetched in the background so that no message waits for them."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from molecule_connect import AsyncPlatformClient, MoleculeError, endpoints
from molecule_connect_mcp import sanitize

# How long the data of a peer is fresh, and the pause after a failed request, in seconds.
TTL = 300.0
FAILURE_TTL = 60.0
MAX_PEERS = 4096
_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class Peer:
    """A workspace that writes to this one. Unknown fields are empty."""

    name: str = ""
    role: str = ""
    card_url: str = ""


UNKNOWN_PEER = Peer()


class Clients(Protocol):
    """Provides the client of a workspace."""

    def client(self, workspace_id: str) -> AsyncPlatformClient: ...


@attrs.define
class _CachedPeer:
    peer: Peer
    expires_at: float


class PeerCache:
    """Caches the peers of the served workspaces. ``get`` returns immediately and refreshes stale data."""

    def __init__(self, clients: Clients, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clients, self._clock = clients, clock
        self._cached: dict[tuple[str, str], _CachedPeer] = {}
        self._requests: dict[str, asyncio.Task[None]] = {}

    def get(self, workspace_id: str, peer_id: str | None) -> Peer:
        """Return the cached data of a peer of *workspace_id*, and start a refresh if it is missing or stale."""
        peer_id = sanitize.identifier(peer_id)
        if not peer_id:
            return UNKNOWN_PEER
        cached = self._cached.get((workspace_id, peer_id))
        if cached is None or cached.expires_at <= self._clock():
            self.refresh(workspace_id, missing=peer_id)
        return cached.peer if cached else self._unnamed(workspace_id, peer_id)

    def refresh(self, workspace_id: str, *, missing: str = "") -> None:
        """Start fetching the peers of *workspace_id*, unless a request is in progress."""
        if workspace_id not in self._requests:
            task = asyncio.get_running_loop().create_task(self._fetch(workspace_id, missing), name="peers")
            self._requests[workspace_id] = task
            task.add_done_callback(lambda _: self._requests.pop(workspace_id, None))

    def update(self, workspace_id: str, rows: list[dict[str, Any]]) -> None:
        """Store the peers in *rows*, a response of the platform."""
        if len(self._cached) > MAX_PEERS:
            self._cached.clear()
        for row in rows:
            if peer_id := sanitize.identifier(row.get("id")):
                self._store(workspace_id, peer_id, self._parse(workspace_id, peer_id, row), TTL)

    async def aclose(self) -> None:
        """Cancel the requests in progress."""
        for task in (requests := list(self._requests.values())):
            task.cancel()
        await asyncio.gather(*requests, return_exceptions=True)

    async def _fetch(self, workspace_id: str, missing: str) -> None:
        try:
            rows = await self._clients.client(workspace_id).call(endpoints.peers(workspace_id))
        except MoleculeError as error:
            _log.info("fetching the peers of %s failed: %s", workspace_id, error)
            rows = []
        self.update(workspace_id, rows)
        if missing and not any(row.get("id") == missing for row in rows):
            # Don't ask a failing registry again for each message; keep the data from before.
            cached = self._cached.get((workspace_id, missing))
            peer = cached.peer if cached else self._unnamed(workspace_id, missing)
            self._store(workspace_id, missing, peer, FAILURE_TTL)

    def _store(self, workspace_id: str, peer_id: str, peer: Peer, ttl: float) -> None:
        self._cached[workspace_id, peer_id] = _CachedPeer(peer, self._clock() + ttl)

    def _parse(self, workspace_id: str, peer_id: str, row: Mapping[str, Any]) -> Peer:
        name, role = sanitize.name(row.get("name")), sanitize.name(row.get("role"))
        return attrs.evolve(self._unnamed(workspace_id, peer_id), name=name, role=role)

    def _unnamed(self, workspace_id: str, peer_id: str) -> Peer:
        address = self._clients.client(workspace_id).address
        return Peer(card_url=address.url(f"/registry/discover/{peer_id}"))
