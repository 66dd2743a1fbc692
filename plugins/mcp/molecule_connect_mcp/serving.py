"""One session with a host: the protocol, its beginning and its end. What the host does not wait for is loaded late."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from molecule_connect_mcp.flags import Flags
from molecule_connect_mcp.server import Call, create_server
from molecule_connect_mcp.stdio import Descriptors, LineReader, LineWriter
from molecule_connect_mcp.streams import Incoming, Outgoing, Talk
from molecule_connect_mcp.waiting import end

if TYPE_CHECKING:
    from molecule_connect import WorkspaceSettings
    from molecule_connect_mcp.attendance import Opener

# The rest is loaded once the host has its first answer, or after this long.
HEAD_START = 1.0
# How long answers that are being sent are waited for at the end. What is left goes out at the next start.
DRAIN = 5.0


async def serve(
    workspaces: "Sequence[WorkspaceSettings]",
    flags: Flags,
    descriptors: Descriptors,
    *,
    opener: "Opener | None" = None,
) -> None:
    """Serve until the host closes its side, or a signal comes.

    Raises:
        MoleculeError: The inbox cannot be opened, or no workspace of it is left.
    """
    talk, stop, leave = Talk(), asyncio.Event(), asyncio.Event()
    writer = LineWriter(descriptors.writing)
    outgoing = Outgoing(writer, talk)
    tools: asyncio.Future[Call] = asyncio.get_running_loop().create_future()

    async def call(name: str, given: Mapping[str, Any], roots: Sequence[Path]) -> tuple[str, bool]:
        return await (await asyncio.shield(tools))(name, given, roots)

    async def attend() -> None:
        beginnings = [asyncio.create_task(event.wait()) for event in (talk.begun, leave)]
        await asyncio.wait(beginnings, timeout=HEAD_START, return_when=asyncio.FIRST_COMPLETED)
        await end(beginnings)
        if leave.is_set():
            return
        from molecule_connect_mcp.attendance import Attendance

        attendance = Attendance(workspaces, flags, talk, outgoing, opener)
        tools.set_result(attendance.tools.call)
        await attendance.run(leave)

    server = create_server(call)
    incoming = Incoming(LineReader(descriptors.reading), talk, outgoing)
    with stopping(stop.set):
        protocol = asyncio.create_task(server.run(incoming, outgoing, server.create_initialization_options()))
        work = asyncio.create_task(attend())
        ends = [asyncio.create_task(event.wait()) for event in (stop, writer.broken)]
        try:
            await asyncio.wait([protocol, work, *ends], return_when=asyncio.FIRST_COMPLETED)
            await end([protocol, *ends])
            leave.set()
            await _drain(work, stop)
        finally:
            await end([protocol, work, *ends])
    if not work.cancelled():
        work.result()


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
        await end([hurry])
