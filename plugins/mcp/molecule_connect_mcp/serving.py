"""One session with a host: runs the protocol and the inbox until the host leaves or a signal arrives."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molecule_connect_mcp.server import ChannelServer
from molecule_connect_mcp.settings import ServerSettings
from molecule_connect_mcp.stdio import Descriptors, LineReader, LineWriter
from molecule_connect_mcp.streams import HostSession, Incoming, Outgoing

if TYPE_CHECKING:
    from molecule_connect import WorkspaceSettings
    from molecule_connect_mcp.inbox_runner import InboxOpener, InboxRunner

# The inbox is imported after the host's first response, or after this delay, in seconds.
STARTUP_DELAY = 1.0
# How long to wait at the end for replies that are being sent, in seconds. The next start sends the others.
DRAIN_TIMEOUT = 5.0


async def serve(
    workspaces: "Sequence[WorkspaceSettings]",
    settings: ServerSettings,
    descriptors: Descriptors,
    *,
    opener: "InboxOpener | None" = None,
) -> None:
    """Serve until the host closes its side, or a signal arrives.

    Raises:
        MoleculeError: The inbox can't be opened, or every workspace ended.
    """
    session, stop = HostSession(), asyncio.Event()
    writer = LineWriter(descriptors.writing)
    outgoing = Outgoing(writer, session)
    incoming = Incoming(LineReader(descriptors.reading), session, outgoing)
    inbox = LazyInbox(workspaces, settings, opener)
    server = ChannelServer(inbox)
    with set_on_signal(stop):
        protocol = asyncio.create_task(server.run(incoming, outgoing, server.create_initialization_options()))
        reading = asyncio.create_task(inbox.run(session, outgoing))
        ends = [asyncio.create_task(event.wait()) for event in (stop, writer.broken)]
        try:
            await asyncio.wait([protocol, reading, *ends], return_when=asyncio.FIRST_COMPLETED)
            await _cancel([protocol, *ends])
            inbox.stop.set()
            await _drain(reading, stop)
        finally:
            await _cancel([protocol, reading, *ends])
    if not reading.cancelled():
        reading.result()


@contextlib.contextmanager
def set_on_signal(stop: asyncio.Event) -> Iterator[None]:
    """Set *stop* on the first SIGTERM or Ctrl-C. A second one ends the program as usual."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def restore() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)

    def first() -> None:
        restore()
        stop.set()

    # Only the main thread can have signal handlers.
    with contextlib.suppress(ValueError, RuntimeError):
        for number in numbers:
            loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        restore()


class LazyInbox:
    """The inbox and its tools. They are imported and opened after the host has its first response.

    Attributes:
        stop: Set it to close the inbox.
    """

    def __init__(
        self, workspaces: "Sequence[WorkspaceSettings]", settings: ServerSettings, opener: "InboxOpener | None"
    ) -> None:
        self._workspaces, self._settings, self._opener = workspaces, settings, opener
        self._runner: asyncio.Future[InboxRunner] = asyncio.get_running_loop().create_future()
        self.stop = asyncio.Event()

    async def call(self, name: str, arguments: Mapping[str, Any], roots: Sequence[Path]) -> tuple[str, bool]:
        """Call a tool, as soon as there are any. See ``ToolCaller``."""
        runner = await asyncio.shield(self._runner)
        return await runner.tools.call(name, arguments, roots)

    async def run(self, session: HostSession, outgoing: Outgoing) -> None:
        """Run the inbox until ``stop`` is set. Raises the errors of ``InboxRunner.run``."""
        starts = [asyncio.create_task(event.wait()) for event in (session.responded, self.stop)]
        await asyncio.wait(starts, timeout=STARTUP_DELAY, return_when=asyncio.FIRST_COMPLETED)
        await _cancel(starts)
        if self.stop.is_set():
            return
        from molecule_connect_mcp.inbox_runner import InboxRunner

        runner = InboxRunner(self._workspaces, self._settings, session, outgoing, self._opener)
        self._runner.set_result(runner)
        await runner.run(self.stop)


async def _cancel(tasks: "Sequence[asyncio.Task[Any]]") -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _drain(reading: "asyncio.Task[None]", stop: asyncio.Event) -> None:
    """Let *reading* finish. A signal that arrives meanwhile cuts this short: the host is waiting for the exit."""
    interrupt = None if stop.is_set() else asyncio.create_task(stop.wait())
    await asyncio.wait(
        [reading, *([interrupt] if interrupt else [])], timeout=DRAIN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
    )
    if interrupt is not None:
        await _cancel([interrupt])
