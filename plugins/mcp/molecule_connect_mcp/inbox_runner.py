"""Opens the inbox of a session, pushes new messages to the host, and closes the inbox."""

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from molecule_connect import Inbox, InboxMessage, MoleculeError, WorkspaceSettings, events, open_inbox
from molecule_connect_mcp.channel import FALLBACK, host_command, missing_for_host
from molecule_connect_mcp.peers import PeerCache
from molecule_connect_mcp.results import push_params
from molecule_connect_mcp.sendable import SendableFiles
from molecule_connect_mcp.sender import DirectSender
from molecule_connect_mcp.server import CHANNEL_NOTIFICATION
from molecule_connect_mcp.settings import ServerSettings
from molecule_connect_mcp.streams import HostSession, Outgoing
from molecule_connect_mcp.tools import Tools
from molecule_connect_mcp.workspaces import Workspaces

InboxOpener = Callable[..., AbstractAsyncContextManager[Inbox]]

# Seconds between two checks for workspaces that ended.
ENDED_CHECK_INTERVAL = 0.5
_log = logging.getLogger(__name__)


class Arrivals(Protocol):
    """Yields new messages, like ``Inbox``."""

    @property
    def workspace_ids(self) -> tuple[str, ...]: ...

    def arrivals(self) -> AsyncIterator[InboxMessage]: ...


class Notifier(Protocol):
    """Sends notifications to the host, like ``Outgoing``."""

    async def notify(self, method: str, params: dict[str, Any]) -> bool: ...


class InboxRunner:
    """The inbox of one session, and the tools that work on it."""

    def __init__(
        self,
        workspaces: Sequence[WorkspaceSettings],
        settings: ServerSettings,
        host: HostSession,
        outgoing: Outgoing,
        opener: InboxOpener | None = None,
    ) -> None:
        self._workspace_settings, self._settings = workspaces, settings
        self._host, self._outgoing = host, outgoing
        self._open = opener or open_inbox
        self._workspaces = Workspaces([one.workspace_id for one in workspaces], has_inbox=settings.inbox)
        files = SendableFiles.of(workspaces, named=settings.files_roots, state_dir=settings.state_dir)
        self.tools = Tools(self._workspaces, claim_seconds=settings.claim_seconds, files=files)

    async def run(self, stop: asyncio.Event) -> None:
        """Open the inbox and push new messages until *stop* is set, then close it.

        Raises:
            MoleculeError: The inbox can't be opened, or every workspace ended.
        """
        if not self._settings.inbox:
            async with DirectSender.open(self._workspace_settings) as sender:
                self._workspaces.set_sender(sender)
                await stop.wait()
            return
        opening = self._open(
            self._workspace_settings,
            state_dir=self._settings.state_dir,
            listener=log_event,
            heartbeat=self._settings.heartbeat,
        )
        async with opening as inbox:
            self._workspaces.set_inbox(inbox)
            for workspace_id in inbox.workspace_ids:
                self._workspaces.peers.refresh(workspace_id)
            pushing = asyncio.create_task(self._push(inbox))
            try:
                await _wait_until_ended(inbox, stop)
            finally:
                pushing.cancel()
                await asyncio.gather(pushing, return_exceptions=True)
                await self._workspaces.peers.aclose()

    async def _push(self, inbox: Inbox) -> None:
        await self._host.accepts_notifications.wait()
        for condition in missing_for_host(self._host.name, await asyncio.to_thread(host_command), os.environ):
            _log.info("channel push: %s; %s", condition, FALLBACK)
        try:
            await push_arrivals(inbox, self._workspaces.peers, self._outgoing)
        except MoleculeError as error:
            _log.warning("pushing messages stopped: %s", error)


async def push_arrivals(inbox: Arrivals, peers: PeerCache, notifier: Notifier) -> None:
    """Push each new message once, until the host is gone. A message stays pending whether or not it is shown."""
    several = len(inbox.workspace_ids) > 1
    async for message in inbox.arrivals():
        peer = peers.get(message.workspace_id, message.caller_id)
        if not await notifier.notify(CHANNEL_NOTIFICATION, push_params(message, peer, several=several)):
            return


async def _wait_until_ended(inbox: Inbox, stop: asyncio.Event) -> None:
    """Wait for *stop*, and log the workspaces that end. Raises the error of the last one."""
    logged: set[str] = set()
    while not stop.is_set():
        for workspace_id, error in inbox.ended.items():
            if workspace_id not in logged:
                logged.add(workspace_id)
                _log.error("%s: %s%s", workspace_id, error, _hint(error.hint))
            if len(logged) == len(inbox.workspace_ids):
                raise error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENDED_CHECK_INTERVAL):
                await stop.wait()


def log_event(event: events.Event) -> None:
    """Log an event that matters to the operator as one line."""
    if isinstance(event, events.Trouble):
        _log.warning("%s: %s: %s%s", event.workspace_id, event.part, event.reason, _hint(event.hint))
    elif isinstance(event, events.Notice):
        _log.warning("%s: %s%s", event.workspace_id, event.text, _hint(event.hint))
    elif isinstance(event, events.Recovered):
        _log.info("%s: %s has recovered", event.workspace_id, event.part)
    elif isinstance(event, events.Registered):
        _log.info("%s: registered", event.workspace_id)
    elif isinstance(event, events.Dead):
        _log.warning("%s: message %s became a dead letter: %s", event.workspace_id, event.row_id, event.reason)


def _hint(hint: str) -> str:
    return f" -> {hint}" if hint else ""
