"""The inbox's side of a session: open it, push what arrives, give the tools what they need, close it."""

import asyncio
import functools
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from molecule_connect import Inbox, MoleculeError, WorkspaceSettings, events, open_inbox
from molecule_connect_mcp.channel import STILL, host_command, missing_for_host
from molecule_connect_mcp.desk import Desk
from molecule_connect_mcp.flags import Flags
from molecule_connect_mcp.outbox import Outbox
from molecule_connect_mcp.push import push_arrivals
from molecule_connect_mcp.sendable import SendableFiles
from molecule_connect_mcp.server import CHANNEL_NOTIFICATION
from molecule_connect_mcp.streams import Outgoing, Talk
from molecule_connect_mcp.tools import Tools
from molecule_connect_mcp.waiting import end, within

Opener = Callable[..., AbstractAsyncContextManager[Inbox]]

LOOK = 0.5
_log = logging.getLogger(__name__)


class Attendance:
    """The inbox of one session, and the tools over it."""

    def __init__(
        self,
        workspaces: Sequence[WorkspaceSettings],
        flags: Flags,
        talk: Talk,
        outgoing: Outgoing,
        opener: Opener | None = None,
    ) -> None:
        self._workspaces, self._flags = workspaces, flags
        self._talk, self._outgoing = talk, outgoing
        self._opener = opener or open_inbox
        self._desk = Desk([one.workspace_id for one in workspaces], reads=flags.reads)
        sendable = functools.partial(SendableFiles.of, workspaces, named=flags.files_roots, state_dir=flags.state_dir)
        self.tools = Tools(self._desk, hold=flags.hold, sendable=sendable)

    async def run(self, leave: asyncio.Event) -> None:
        """Open the inbox, push what arrives, and close it when it is time to leave.

        Raises:
            MoleculeError: It cannot be opened, or no workspace of it is left.
        """
        if not self._flags.reads:
            async with Outbox.opened(self._workspaces) as outbox:
                self._desk.opened_for_sending(outbox)
                await leave.wait()
            return
        opening = self._opener(
            self._workspaces, state_dir=self._flags.state_dir, listener=told_in_the_log, heartbeat=self._flags.heartbeat
        )
        async with opening as inbox:
            self._desk.opened(inbox)
            for workspace_id in inbox.workspace_ids:
                self._desk.peers.refresh(workspace_id)
            pushing = asyncio.create_task(self._push(inbox))
            try:
                await self._watch(inbox, leave)
            finally:
                await end([pushing])
                await self._desk.peers.aclose()

    async def _push(self, inbox: Inbox) -> None:
        await self._talk.open.wait()
        for lack in missing_for_host(self._talk.host, await asyncio.to_thread(host_command), os.environ):
            _log.info("channel push: %s; %s", lack, STILL)
        try:
            await push_arrivals(
                inbox, self._desk.peers, lambda params: self._outgoing.notify(CHANNEL_NOTIFICATION, params)
            )
        except MoleculeError as error:
            _log.warning("nothing is pushed any more: %s", error)

    async def _watch(self, inbox: Inbox, leave: asyncio.Event) -> None:
        """Until it is time to leave. Raises what ended the last workspace."""
        told: set[str] = set()
        while not leave.is_set():
            for workspace_id, error in inbox.ended.items():
                if workspace_id not in told:
                    told.add(workspace_id)
                    _log.error("%s: %s%s", workspace_id, error, f" -> {error.hint}" if error.hint else "")
                if len(told) == len(inbox.workspace_ids):
                    raise error
            await within(LOOK, leave)


def told_in_the_log(event: events.Event) -> None:
    """A listener: what the operator should know of, one line each."""
    if isinstance(event, events.Trouble):
        hint = f" -> {event.hint}" if event.hint else ""
        _log.warning("%s: %s: %s%s", event.workspace_id, event.part, event.reason, hint)
    elif isinstance(event, events.Notice):
        hint = f" -> {event.hint}" if event.hint else ""
        _log.warning("%s: %s%s", event.workspace_id, event.text, hint)
    elif isinstance(event, events.Recovered):
        _log.info("%s: %s has recovered", event.workspace_id, event.part)
    elif isinstance(event, events.Registered):
        _log.info("%s: registered", event.workspace_id)
    elif isinstance(event, events.Dead):
        _log.warning("%s: message %s was given up: %s", event.workspace_id, event.row_id, event.reason)
