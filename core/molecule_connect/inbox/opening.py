"""Opens an inbox: the journal, and a session for each workspace."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from molecule_connect import events, open_files
from molecule_connect.app import load_workspaces, report_state_dir_problems, saved_state_dir
from molecule_connect.config.saved import config_home
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.state_dir import all_state_dirs, home_dir, resolve_state_dir
from molecule_connect.errors import ConfigError, JournalError, MoleculeError
from molecule_connect.inbox import legacy_cursor
from molecule_connect.inbox.inbox import ChangeSignal, Inbox
from molecule_connect.inbox.session import InboxSession, require_no_backend
from molecule_connect.journal.journal import Journal
from molecule_connect.platform.transports import AsyncTransport, Transports
from molecule_connect.runtime import Notices, Runtime
from molecule_connect.worker.fleet import Fleet
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
    """Open the inbox of *workspaces*. While it is open, registration, heartbeats and reading run in the background.

    If another process on this machine serves a workspace as an inbox, this one uses the same journal, and takes over
    when that process ends. Errors that end a workspace later are in ``Inbox.ended``. When the inbox is closed, claims
    are released, and replies that are being sent have the workspace's ``grace`` period to finish.

    Args:
        workspaces: None uses the workspaces in the environment and the saved settings, see ``load_workspaces``.
        state_dir: The folder of the journal; None uses the same one as ``molecule connect``.
        heartbeat: Whether to register and send heartbeats. If not, another program has to keep the workspaces online.
        transport: Replaces the network in tests.

    Raises:
        ConfigError: A setting is missing or invalid. It is raised before any request.
        LeaseError: Another process on this machine serves a workspace with a backend.
        JournalError: The journal can't be used.
    """
    saved = saved_state_dir(environ) if workspaces is None else None
    folder = resolve_state_dir(state_dir, environ, saved=saved)
    settings = _checked(load_workspaces(environ, state_dir=folder) if workspaces is None else workspaces)
    report_state_dir_problems(settings, folder, listener)
    for one in settings:
        await require_no_backend(folder, one.workspace_id)
    say = Notices(settings[0].workspace_id, listener)
    streams, warning = open_files.most_streams(len(settings), open_files.limit())
    if warning:
        say(warning)
    async with AsyncExitStack() as stack:
        transports = Transports(transport=transport, say=say)
        transports.streams.most = streams
        stack.push_async_callback(transports.aclose)
        journal = await stack.enter_async_context(Journal.open(folder, wall=time.time, notice=say))
        runtime = Runtime(
            state_dir=folder, transports=transports, journal=journal, listener=listener, fleet=Fleet(dict)
        )
        changes = ChangeSignal()
        sessions = {}
        for one in settings:
            client = runtime.client(one)
            stack.push_async_callback(client.aclose)
            sessions[one.workspace_id] = InboxSession(one, client, runtime, changes, presence=heartbeat)
        folders = legacy_cursor.folders(environ, home=home_dir())
        for workspace_id in sessions:
            await legacy_cursor.migrate(journal, folder, workspace_id, folders, others=sessions.keys() - {workspace_id})
        inbox = Inbox(journal, sessions, changes)
        async with _running(Supervisor([*sessions.values()], journal, listener=listener), inbox):
            yield inbox


def state_folders(environ: Mapping[str, str] = os.environ, *, state_dir: Path | None = None) -> list[Path]:
    """The state folder of ``open_inbox``, then all other folders where this user may have state or saved settings.

    These folders contain journals and tokens: a program that sends files on behalf of an agent must not send files from
    them. Received files are in ``WORKSPACE/files`` of the first folder.

    Args:
        state_dir: The same as for ``open_inbox``; or the one of ``saved_state_dir``.

    Raises:
        ConfigError: The folder can't be used.
    """
    return list(dict.fromkeys([*all_state_dirs(state_dir, environ), config_home(environ)]))


@asynccontextmanager
async def _running(supervisor: Supervisor, inbox: Inbox) -> AsyncIterator[None]:
    """Run the sessions of *inbox*, and close it at the end."""
    stop = asyncio.Event()
    serving = asyncio.get_running_loop().create_task(_serve(supervisor, stop), name="inbox")
    try:
        yield
    finally:
        stop.set()
        try:
            await serving
        finally:
            # Claims that can't be released expire.
            with contextlib.suppress(JournalError):
                await inbox.close()


async def _serve(supervisor: Supervisor, stop: asyncio.Event) -> None:
    try:
        await supervisor.run(stop)
    except MoleculeError:
        # Readers get the errors from the sessions.
        await stop.wait()


def _checked(workspaces: Sequence[WorkspaceSettings]) -> list[WorkspaceSettings]:
    settings = [one.check() for one in workspaces]
    if not settings:
        raise ConfigError("no workspace was given", hint="pass at least one")
    ids = [one.workspace_id for one in settings]
    if duplicate := next((name for name in ids if ids.count(name) > 1), None):
        raise ConfigError(f"workspace {duplicate} is given twice", hint="remove one of them")
    return settings
