"""Each message that arrives, once, as the channel's notification; it stays pending, whether or not a host shows it."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

from molecule_connect import InboxMessage
from molecule_connect_mcp.peers import PeerBook
from molecule_connect_mcp.shapes import push_shape


class Arrivals(Protocol):
    """What an inbox tells of new messages."""

    @property
    def workspace_ids(self) -> tuple[str, ...]: ...

    def arrivals(self) -> AsyncIterator[InboxMessage]: ...


async def push_arrivals(inbox: Arrivals, peers: PeerBook, notify: Callable[[dict[str, Any]], Awaitable[bool]]) -> None:
    """Push until the host is gone. *notify* says False when nobody reads any more."""
    several = len(inbox.workspace_ids) > 1
    async for message in inbox.arrivals():
        peer = peers.of(message.workspace_id, message.caller_id)
        if not await notify(push_shape(message, peer, several=several)):
            return
