"""The workspaces of a session: their inbox and peers, and the choice of one for a tool call."""

import asyncio
from collections.abc import Sequence

from molecule_connect import ArgumentError, AsyncPlatformClient, ConfigError, Inbox
from molecule_connect_mcp.arguments import Arguments
from molecule_connect_mcp.peers import PeerCache
from molecule_connect_mcp.sender import Sender

# Tool calls wait this long for the inbox to open, in seconds. Opening it makes no request.
OPEN_TIMEOUT = 30.0


class Workspaces:
    """The workspaces that this server serves.

    Attributes:
        has_inbox: Whether messages are read; if not, only sending works.
    """

    def __init__(self, workspace_ids: Sequence[str], *, has_inbox: bool) -> None:
        self.workspace_ids = tuple(workspace_ids)
        self.has_inbox = has_inbox
        self.peers = PeerCache(self)
        self._opened = asyncio.Event()
        self._inbox: Inbox | None = None
        self._sender: Sender | None = None

    def set_inbox(self, inbox: Inbox) -> None:
        """Make the open *inbox* available to the tools."""
        self._inbox = inbox
        self.set_sender(inbox)

    def set_sender(self, sender: Sender) -> None:
        """Make *sender* available to the tools."""
        self._sender = sender
        self._opened.set()

    async def inbox(self) -> Inbox:
        """Return the inbox, as soon as it is open.

        Raises:
            ConfigError: It isn't open after ``OPEN_TIMEOUT``.
        """
        await self._wait_until_open()
        if self._inbox is None:
            raise ConfigError("the inbox is not open", hint="see the server's log")
        return self._inbox

    def sender(self) -> Sender:
        """The sender. ``resolve`` has waited for it."""
        if self._sender is None:
            raise ConfigError("the inbox is not open yet", hint="try again in a moment")
        return self._sender

    def client(self, workspace_id: str) -> AsyncPlatformClient:
        """The client of the workspace."""
        return self.sender().client(workspace_id)

    def find(self, arguments: Arguments) -> str | None:
        """The workspace that a call names, or None if it names none.

        Raises:
            ArgumentError: It isn't served here.
        """
        requested = arguments.optional("workspace_id")
        # The platform compares ids without regard to case.
        found = next((one for one in self.workspace_ids if one.lower() == requested.lower()), None)
        if requested and found is None:
            raise ArgumentError(
                "workspace_id is none of the workspaces of this server",
                hint=f"leave it out, or use one of: {', '.join(self.workspace_ids)}",
            )
        return found

    async def resolve(self, arguments: Arguments) -> str:
        """The workspace that a call names, or else the only one. Waits until the sender is available.

        Raises:
            ArgumentError: It isn't served here, or there are several and the call names none.
        """
        found = self.find(arguments)
        if found is None and len(self.workspace_ids) > 1:
            raise ArgumentError(
                "this server has several workspaces", hint=f"give workspace_id: {', '.join(self.workspace_ids)}"
            )
        await self._wait_until_open()
        return found or self.workspace_ids[0]

    async def _wait_until_open(self) -> None:
        try:
            async with asyncio.timeout(OPEN_TIMEOUT):
                await self._opened.wait()
        except TimeoutError:
            raise ConfigError(
                "the inbox is not open yet", hint="try again in a moment; the server's log has the reason"
            ) from None
