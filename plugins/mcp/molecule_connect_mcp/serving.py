"""One session with a host: the protocol on one side, the inbox on the other, and how both end."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from molecule_connect import ConnectionSettings, Inbox, MoleculeError, events
from molecule_connect_mcp.channel import STILL, host_command, missing_for_host
from molecule_connect_mcp.desk import Desk
from molecule_connect_mcp.flags import Flags
from molecule_connect_mcp.outbox import Outbox
from molecule_connect_mcp.push import push_arrivals
from molecule_connect_mcp.server import CHANNEL_NOTIFICATION, create_server
from molecule_connect_mcp.stdio import Descriptors, LineReader, LineWriter
from molecule_connect_mcp.streams import Incoming, Outgoing, Talk
from molecule_connect_mcp.tools import Tools

# The inbox is opened once the host has its first answer, or after this long.
HEAD_START = 1.0
# How long answers that are being sent are waited for at the end. What is left goes out at the next start.
DRAIN = 5.0
LOOK = 0.5
_log = logging.getLogger(__name__)

Opener = Callable[..., AbstractAsyncContextManager[Inbox]]


async def serve(
    workspaces: Sequence[ConnectionSettings],
    flags: Flags,
    descriptors: Descriptors,
    *,
    opener: Opener | None = None,
) -> None:
    """Serve until the host closes its side, or a signal comes.

    Raises:
        MoleculeError: The inbox cannot be opened, or no workspace of it is left.
    """
    talk, stop = Talk(), asyncio.Event()
    writer = LineWriter(descriptors.writing)
    outgoing = Outgoing(writer, talk)
    desk = Desk([one.workspace_id for one in workspaces], reads=flags.reads)
    session = _Session(workspaces, flags, desk, talk, outgoing, opener or _open)
    server = create_server(Tools(desk, hold=flags.hold).call)
    incoming = Incoming(LineReader(descriptors.reading), talk)
    with stopping(stop.set):
        protocol = asyncio.create_task(server.run(incoming, outgoing, server.create_initialization_options()))
        work = asyncio.create_task(session.run())
        ends = [asyncio.create_task(event.wait()) for event in (stop, writer.broken)]
        try:
            await asyncio.wait([protocol, work, *ends], return_when=asyncio.FIRST_COMPLETED)
            await _end([protocol, *ends])
            session.leave.set()
            await _drain(work, stop)
        finally:
            await _end([protocol, work, *ends])
    if not work.cancelled():
        work.result()


def _open(workspaces: Sequence[ConnectionSettings], **options: Any) -> AbstractAsyncContextManager[Inbox]:
    # Loaded late: the host has had its first answer by then.
    from molecule_connect import open_inbox

    opened: AbstractAsyncContextManager[Inbox] = open_inbox(workspaces, **options)
    return opened


class _Session:
    """The inbox's side of a session."""

    def __init__(
        self,
        workspaces: Sequence[ConnectionSettings],
        flags: Flags,
        desk: Desk,
        talk: Talk,
        outgoing: Outgoing,
        opener: Opener,
    ) -> None:
        self._workspaces, self._flags, self._desk = workspaces, flags, desk
        self._talk, self._outgoing, self._opener = talk, outgoing, opener
        self.leave = asyncio.Event()

    async def run(self) -> None:
        """Open the inbox, push what arrives, and close it when it is time to leave."""
        await _within(HEAD_START, self._talk.begun)
        if not self._flags.reads:
            async with Outbox.opened(self._workspaces) as outbox:
                self._desk.opened_for_sending(outbox)
                await self.leave.wait()
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
                await self._watch(inbox)
            finally:
                await _end([pushing])
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

    async def _watch(self, inbox: Inbox) -> None:
        """Until it is time to leave. Raises what ended the last workspace."""
        told: set[str] = set()
        while not self.leave.is_set():
            for workspace_id, error in inbox.ended.items():
                if workspace_id not in told:
                    told.add(workspace_id)
                    _log.error("%s: %s%s", workspace_id, error, f" -> {error.hint}" if error.hint else "")
                if len(told) == len(inbox.workspace_ids):
                    raise error
            await _within(LOOK, self.leave)


def told_in_the_log(event: events.Event) -> None:
    """A listener: what the operator should know of, one line each."""
    if isinstance(event, events.Trouble):
        hint = f" -> {event.hint}" if event.hint else ""
        _log.warning("%s: %s: %s%s", event.workspace_id, event.part, event.reason, hint)
    elif isinstance(event, events.Notice):
        hint = f" -> {event.hint}" if event.hint else ""
        _log.warning("%s: %s%s", event.workspace_id, event.text, hint)
    elif isinstance(event, events.Recovered):
        _log.info("%s: %s is well again", event.workspace_id, event.part)
    elif isinstance(event, events.Registered):
        _log.info("%s: registered", event.workspace_id)
    elif isinstance(event, events.Dead):
        _log.warning("%s: message %s was given up: %s", event.workspace_id, event.row_id, event.reason)


@contextlib.contextmanager
def stopping(stop: Callable[[], object]) -> Iterator[None]:
    """The first SIGTERM or Ctrl-C calls *stop*; a second one ends the program as usual."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def first() -> None:
        restore()
        stop()

    # Only the main thread can have handlers; elsewhere signals are somebody else's affair.
    with contextlib.suppress(ValueError, RuntimeError):
        for number in numbers:
            loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        restore()


async def _drain(work: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    """Let *work* end by itself; a host that is in a hurry (it closed its side, then sent SIGTERM) is not kept."""
    hurry = None if stop.is_set() else asyncio.create_task(stop.wait())
    await asyncio.wait([work, *([hurry] if hurry else [])], timeout=DRAIN, return_when=asyncio.FIRST_COMPLETED)
    if hurry is not None:
        await _end([hurry])


async def _end(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _within(seconds: float, event: asyncio.Event) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
