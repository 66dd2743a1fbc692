"""What the tools work on: the inbox once it is open, and without one the ways to the platform alone."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from molecule_connect import ArgumentError, AsyncPlatformClient, ConfigError, Inbox
from molecule_connect_mcp.arguments import Arguments
from molecule_connect_mcp.peers import PeerBook

# Opening it takes no request; whoever calls before that waits.
OPENING = 30.0


class Sender(Protocol):
    """What speaks first."""

    def client(self, workspace_id: str) -> AsyncPlatformClient: ...
    async def tell_user(self, workspace_id: str, text: str, files: Sequence[Path] = ()) -> None: ...
    async def ask(self, workspace_id: str, peer_id: str, text: str, *, timeout: float) -> Any: ...
    async def delegate(self, workspace_id: str, peer_id: str, task: str) -> str: ...


class Desk:
    """One session's inbox. *reads*: there is, or will be, one; without it only sending works."""

    def __init__(self, workspace_ids: Sequence[str], *, reads: bool) -> None:
        self.workspace_ids = tuple(workspace_ids)
        self.reads = reads
        self.peers = PeerBook(self)
        self._ready = asyncio.Event()
        self._inbox: Inbox | None = None
        self._sender: Sender | None = None

    def opened(self, inbox: Inbox) -> None:
        """The inbox is there."""
        self._inbox = self._sender = inbox
        self._ready.set()

    def opened_for_sending(self, sender: Sender) -> None:
        """There is no inbox, but a way to send."""
        self._sender = sender
        self._ready.set()

    async def inbox(self) -> Inbox:
        """The inbox, as soon as it is open.

        Raises:
            ConfigError: It is not, after a while.
        """
        await self._opened()
        if self._inbox is None:
            raise ConfigError("the inbox is not open", hint="look at the server's log")
        return self._inbox

    def sender(self) -> Sender:
        """What sends. ``chosen`` has waited for it."""
        if self._sender is None:
            raise ConfigError("the inbox is not open yet", hint="try again in a moment")
        return self._sender

    def client(self, workspace_id: str) -> AsyncPlatformClient:
        """The workspace's way to its platform."""
        return self.sender().client(workspace_id)

    async def named(self, arguments: Arguments) -> str | None:
        """The workspace of ours that a call names; None when it names none.

        Raises:
            ArgumentError: It is not ours.
        """
        named = arguments.optional("workspace_id")
        # The platform reads an id in capitals as the same one.
        ours = next((one for one in self.workspace_ids if one.lower() == named.lower()), None)
        if named and ours is None:
            raise ArgumentError(
                "workspace_id is none of the workspaces of this server",
                hint=f"leave it out, or give one of: {', '.join(self.workspace_ids)}",
            )
        return ours

    async def chosen(self, arguments: Arguments) -> str:
        """The workspace of ours that a call is about: the one it names, else the only one.

        Raises:
            ArgumentError: It is not ours, or there are several to choose from.
        """
        named = await self.named(arguments)
        if named is None and len(self.workspace_ids) > 1:
            raise ArgumentError(
                "this server has several workspaces", hint=f"give workspace_id: {', '.join(self.workspace_ids)}"
            )
        await self._opened()
        return named or self.workspace_ids[0]

    async def _opened(self) -> None:
        try:
            async with asyncio.timeout(OPENING):
                await self._ready.wait()
        except TimeoutError:
            raise ConfigError(
                "the inbox is not open yet", hint="try again in a moment; the server's log says why"
            ) from None
