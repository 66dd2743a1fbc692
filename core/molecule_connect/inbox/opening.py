"""From settings to an open inbox: the connections beside it, or another process's, read through its journal."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from molecule_connect import events, open_files
from molecule_connect.app import load_workspaces, report_state_dir_problems
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.state_dir import all_state_dirs, home_dir, resolve_state_dir
from molecule_connect.errors import ConfigError, JournalError, MoleculeError
from molecule_connect.inbox import legacy_cursor
from molecule_connect.inbox.inbox import Inbox
from molecule_connect.inbox.session import InboxDesk, refuse_a_backend
from molecule_connect.journal.journal import Journal
from molecule_connect.platform.transports import AsyncTransport, Transports
from molecule_connect.runtime import Notices, Runtime
from molecule_connect.worker.supervisor import Supervisor


@asynccontextmanager
async def open_inbox(
    workspaces: Sequence[WorkspaceSettings] | None = None,
    *,
    state_dir: Path | None = None,
    listener: events.Listener = events.ignore,
    environ: Mapping[str, str] = os.environ,
    heartbeat: bool = True,
    transport: AsyncTransport | None = None,
) -> AsyncIterator[Inbox]:
    """The inbox of *workspaces*, kept filled while it is open. It registers, beats and reads beside the caller.

    Where another process on this machine serves a workspace as an inbox, this one reads through the same journal,
    and takes over when that process is gone. What ends a workspace later is in ``Inbox.ended``. At the end what is
    held is given back, and answers that are being sent get the workspace's ``grace``.

    Args:
        workspaces: None: those that the environment names.
        state_dir: Where the journal lies; None: where ``molecule connect`` would keep it.
        heartbeat: False: another program keeps the workspaces online; this one neither registers nor beats.
        transport: Stands in for the network.

    Raises:
        ConfigError: Something is missing or makes no sense; before any request.
        LeaseError: Another process on this machine answers for a workspace with a backend.
        JournalError: The journal cannot be used.
    """
    folder = resolve_state_dir(state_dir, environ)
    settings = _checked(load_workspaces(environ, state_dir=folder) if workspaces is None else workspaces)
    report_state_dir_problems(settings, folder, listener)
    for one in settings:
        await refuse_a_backend(folder, one.workspace_id)
    say = Notices(settings[0].workspace_id, listener)
    streams, warning = open_files.most_streams(len(settings), open_files.limit())
    if warning:
        say(warning)
    async with AsyncExitStack() as stack:
        transports = Transports(transport=transport, say=say)
        transports.streams.most = streams
        stack.push_async_callback(transports.aclose)
        journal = await stack.enter_async_context(Journal.open(folder, wall=time.time, notice=say))
        runtime = Runtime(state_dir=folder, transports=transports, journal=journal, listener=listener)
        desks = []
        for one in settings:
            client = runtime.client(one)
            stack.push_async_callback(client.aclose)
            desks.append(InboxDesk(one, client, runtime, presence=heartbeat))
        folders = legacy_cursor.folders(environ, home=home_dir())
        ids = {desk.workspace_id for desk in desks}
        for name in ids:
            await legacy_cursor.take_over(journal, folder, name, folders, others=ids - {name})
        async with _filled(Inbox(journal, {desk.workspace_id: desk for desk in desks}), desks, runtime) as inbox:
            yield inbox


def state_folders(environ: Mapping[str, str] = os.environ, *, state_dir: Path | None = None) -> list[Path]:
    """The folder where ``open_inbox`` keeps its journal, then every other one where this user's journals may be.

    A program that sends files which an agent names must keep them out of it: journals and tokens are in these folders.
    Received files are in ``WORKSPACE/files`` of the first.

    Raises:
        ConfigError: The folder can't be used.
    """
    return all_state_dirs(state_dir, environ)


@asynccontextmanager
async def _filled(inbox: Inbox, desks: Sequence[InboxDesk], runtime: Runtime) -> AsyncIterator[Inbox]:
    """*inbox* while its *desks* are at work."""
    for desk in desks:
        desk.ring = inbox.ring
    stop = asyncio.Event()
    fleet = Supervisor(desks, runtime.journal, listener=runtime.listener)
    serving = asyncio.get_running_loop().create_task(_serve(fleet, stop), name="inbox")
    try:
        yield inbox
    finally:
        stop.set()
        try:
            await serving
        finally:
            # What cannot be given back is free when its time is over.
            with contextlib.suppress(JournalError):
                await inbox.close()


async def _serve(fleet: Supervisor, stop: asyncio.Event) -> None:
    try:
        await fleet.run(stop)
    except MoleculeError:
        # The desks have kept what each of them ended with.
        await stop.wait()


def _checked(workspaces: Sequence[WorkspaceSettings]) -> list[WorkspaceSettings]:
    settings = [one.check() for one in workspaces]
    if not settings:
        raise ConfigError("no workspace was given", hint="name at least one")
    ids = [one.workspace_id for one in settings]
    if doubled := next((name for name in ids if ids.count(name) > 1), None):
        raise ConfigError(f"workspace {doubled} is given twice", hint="leave out one of them")
    return settings
