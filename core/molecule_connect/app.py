"""The composition root: builds everything that serves workspaces from their settings."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs

from molecule_connect import events, open_files
from molecule_connect.config.load import WORKSPACES_VARIABLE, WorkspaceList, parse_variable
from molecule_connect.config.saved import find_saved
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.single import read_single
from molecule_connect.config.state_dir import (
    existing_state_dir,
    named_state_dir,
    resolve_state_dir,
    state_dir_problems,
)
from molecule_connect.config.workspaces import Block, Fault, Listing, Refused, WorkspacesError, lines_of
from molecule_connect.deployment import Deployment, PluginCheck, check_all, without_refused
from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.journal.journal import Journal
from molecule_connect.observers import Tracer
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.tls import Trust
from molecule_connect.platform.transports import AsyncTransport, Transports
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import BACKENDS, MIDDLEWARE
from molecule_connect.plugins.options import BackendConfig, declared_class
from molecule_connect.plugins.raw_options import GivenOptions
from molecule_connect.runtime import Notices, Runtime, WorkspaceRunner
from molecule_connect.worker.fleet import Fleet
from molecule_connect.worker.sharing import SharedJournal, Sharing


async def connect(
    settings: WorkspaceSettings,
    *,
    state_dir: Path | None = None,
    listener: events.Listener = events.ignore,
    transport: AsyncTransport | None = None,
) -> None:
    """Serve one workspace until cancelled.

    Cancelling it works like SIGTERM: messages in progress are finished within ``settings.grace``.

    Args:
        state_dir: The folder of the journal; None for the one that ``molecule connect`` would use.
        listener: Called with each event.
        transport: Replaces the network.

    Raises:
        ConfigError: A setting is missing or invalid; before any request. Or the platform has no such workspace.
        AuthError: The platform refused the token.
        PermanentPlatformError, TransientPlatformError: Registering failed.
        WorkspaceDeletedError: The workspace was deleted on the platform.
        LeaseError: Another process on this machine serves it.
        JournalError: The journal can't be used.
        CloseError: Only closing a plugin failed.
    """
    settings.check()
    folder = resolve_state_dir(state_dir, os.environ)
    stop = asyncio.Event()
    task = asyncio.ensure_future(serve([settings], state_dir=folder, listener=listener, stop=stop, transport=transport))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            stop.set()
            await task
        raise


def load_workspaces(
    environ: Mapping[str, str] = os.environ, *, state_dir: Path | None = None, profile: str | None = None
) -> list[WorkspaceSettings]:
    """The workspaces in the environment: those of ``MOLECULE_WORKSPACES``, or else the one of ``WORKSPACE_ID``.

    Settings that ``molecule init`` saved complete the environment of a single workspace, as for ``molecule connect``.
    ``settings_file`` is then set; pass ``saved_state_dir()`` as the state folder when you serve it.

    Args:
        state_dir: May contain tokens that registrations returned; None for the folder that would be used.
        profile: The saved profile; None for that of ``MOLECULE_PROFILE``, or the default one.

    Raises:
        WorkspacesError: The list has errors.
        ConfigError: The id or the token is missing, or a value is invalid.
    """
    saved = find_saved(profile, environ)
    if state_dir is None:
        state_dir = existing_state_dir(None, environ, saved=None if saved is None else saved.state_dir)
    if environ.get(WORKSPACES_VARIABLE):
        found = parse_variable(environ, state_dir=state_dir)
        return load_list(found).whole()
    settings = read_single({}, environ, state_dir, saved)
    check_platform(settings)
    return [settings]


def saved_state_dir(environ: Mapping[str, str] = os.environ, *, profile: str | None = None) -> Path | None:
    """The state folder of the saved settings that ``load_workspaces`` uses.

    None if they name none, or the environment names another.

    Raises:
        ConfigError: The saved settings can't be used.
    """
    saved = find_saved(profile, environ)
    return None if saved is None or named_state_dir(None, environ) is not None else saved.state_dir


def load_list(workspaces: WorkspaceList, numbers: Collection[int] | None = None, *, plugins: bool = False) -> Listing:
    """The workspaces of a list, or those with these *numbers*.

    Args:
        plugins: Check that the backend and the middleware are installed.

    Raises:
        WorkspacesError: The list can't be used as a whole, or no workspace of it can be served.
    """
    blocks = check_blocks(workspaces, numbers, plugins=plugins)
    listing = Listing.of(workspaces.source, blocks, workspaces.fleet)
    return workspaces.check(listing) if numbers is None else listing


def check_blocks(
    workspaces: WorkspaceList,
    numbers: Collection[int] | None = None,
    *,
    plugins: bool = True,
    secrets: bool = True,
    options: bool = False,
) -> list[Block]:
    """The blocks of a list, or those with these *numbers*, with all faults that are found without starting anything.

    Args:
        plugins: Check that the backend and the middleware are installed.
        secrets: Read the tokens.
        options: Import the backends, and check their options as far as they declare them.

    Raises:
        ConfigError: A variable has an invalid value.
    """
    trust, blocks = Trust(), []
    for block in workspaces.blocks(numbers, secrets=secrets):
        faults = list(block.faults)
        if block.settings is not None:
            try:
                check_platform(block.settings, trust)
            except ConfigError as exc:
                faults.append(Fault.of(exc, workspaces.line(block, "api_url")))
            if plugins:
                faults += _plugin_faults(workspaces, block, block.settings)
            if options:
                faults += _option_faults(workspaces, block, block.settings)
        blocks.append(attrs.evolve(block, faults=tuple(faults)))
    return blocks


def check_platform(settings: WorkspaceSettings, trust: Trust | None = None) -> None:
    """Check the address and the files for https.

    Raises:
        ConfigError: One of them can't be used.
    """
    (trust or Trust()).check(parse_address(settings.api_url, insecure=settings.insecure), settings.tls)


def _plugin_faults(workspaces: WorkspaceList, block: Block, settings: WorkspaceSettings) -> list[Fault]:
    """Why the backend or a middleware can't be loaded."""
    faults = []
    wanted = [("backend", BACKENDS, settings.backend), *(("use", MIDDLEWARE, name) for name in settings.middleware)]
    for key, group, name in wanted:
        if isinstance(name, str) and name:
            try:
                discovery.find(group, name)
            except MoleculeError as exc:
                faults.append(Fault.of(exc, workspaces.line(block, key)))
    return faults


def _option_faults(workspaces: WorkspaceList, block: Block, settings: WorkspaceSettings) -> list[Fault]:
    """The errors in the options of the backend, if it can be imported and declares them."""
    if not isinstance(settings.backend, str):
        return []
    try:
        plugin = discovery.find(BACKENDS, settings.backend)
    except MoleculeError:
        return []  # reported already
    try:
        cls = declared_class(discovery.load(plugin))
    except MoleculeError as exc:
        return [Fault.of(exc, workspaces.line(block, "backend"))]
    if cls is None:
        return []
    config = BackendConfig(
        name=plugin.name, options=GivenOptions(settings.options), label=plugin.label, spelling="options."
    )
    return [Fault.of(exc, workspaces.line(block, "options", key)) for key, exc in config.option_faults(cls)]


async def serve(
    settings: Sequence[WorkspaceSettings],
    *,
    state_dir: Path,
    listener: events.Listener,
    stop: asyncio.Event,
    transport: AsyncTransport | None = None,
) -> None:
    """Serve workspaces until *stop* is set and all have drained, or until all have ended.

    Raises:
        MoleculeError: See ``connect``.
        FleetError: Several workspaces ended, at least one of them with an error.
    """
    async with deploy(Listing(settings=tuple(settings)), state_dir, listener, transport=transport) as deployment:
        await deployment.run(stop)


@asynccontextmanager
async def deploy(
    listing: Listing,
    state_dir: Path,
    listener: events.Listener,
    *,
    strict: bool = True,
    transport: AsyncTransport | None = None,
    shared: SharedJournal | None = None,
    tracer: Tracer | None = None,
) -> AsyncIterator[Deployment]:
    """Build and check everything that serves *listing*, without starting it. Closed at the end.

    Args:
        strict: Serve all workspaces of a list or none. Otherwise, serve the valid ones and report the
            others.
        shared: The database through which other machines serve the same workspaces; closed at the end.
        tracer: Traces the messages.

    Raises:
        ConfigError: No workspace can be served, or not all of a strict list.
        MirrorError: The database can't be used.
        JournalError: The journal can't be used.
    """
    settings, refused = listing.settings, listing.refused
    several = len(settings) + len(refused) > 1
    if several and not strict:
        listing = _refuse_strict(listing, state_dir)
        settings, refused = listing.settings, listing.refused
        if not settings:
            raise WorkspacesError("the list", lines_of(refused))
    report_state_dir_problems(settings, state_dir, listener)
    # Before anything is opened.
    open_files.most_streams(len(settings), open_files.limit())
    async with AsyncExitStack() as stack:
        notices = Notices(settings[0].workspace_id, listener)
        transports = Transports(transport=transport, say=notices)
        stack.push_async_callback(transports.aclose)
        journal = await stack.enter_async_context(Journal.open(state_dir, wall=time.time, notice=notices))
        sharing = None
        if shared is not None:
            stack.push_async_callback(shared.mirror.aclose)
            sharing = Sharing(shared, journal, notice=notices)
        runtime = Runtime(
            state_dir=state_dir,
            transports=transports,
            journal=journal,
            listener=listener,
            fleet=Fleet(journal.spend, listing.fleet),
            sharing=sharing,
            tracer=tracer,
        )
        runners = [WorkspaceRunner(one, runtime) for one in settings]
        for runner in runners:
            stack.push_async_callback(runner.aclose)
        if several:
            refused = (*refused, *await check_all(runners))
            usable = without_refused(settings, refused)
            if refused and (strict or not usable):
                raise WorkspacesError("the list", lines_of(refused))
        else:
            usable = list(settings)
            if problems := await runners[0].find_problems():
                raise ConfigError(
                    f"the backend is not ready: {'; '.join(problems)}", hint="fix the problem, then start again"
                )
        ids = {one.workspace_id for one in usable}
        for runner in runners:
            if runner.workspace_id not in ids:
                await runner.aclose()
        if sharing is not None:
            await stack.enter_async_context(sharing.running(ids))
        ready = [runner for runner in runners if runner.workspace_id in ids]
        deployment = Deployment(ready, runtime, notices, strict=strict)
        stack.callback(deployment.close)
        deployment.limit_streams()
        deployment.report_refused(refused)
        yield deployment


async def find_problems(
    listing: Listing, state_dir: Path | None, listener: events.Listener, *, state_root: Path | None = None
) -> list[str]:
    """Build everything, ask the plugins for problems, and close it. Makes no request and writes nothing.

    Args:
        state_dir: May contain tokens that registrations returned.
        state_root: The state folder, to which plugins deny their programs access; None for *state_dir*.

    Raises:
        ConfigError: The only workspace has an invalid setting; those of several workspaces are problems.
    """
    several = len(listing.settings) + len(listing.refused) > 1
    if state_dir is not None:
        if several:
            listing = _refuse_strict(listing, state_dir)
        if listing.settings:
            report_state_dir_problems(listing.settings, state_dir, listener)
    open_files.most_streams(len(listing.settings), open_files.limit())
    checks = [PluginCheck(one, state_dir, listener, state_root) for one in listing.settings]
    if several:
        return lines_of([*listing.refused, *await check_all(checks)])
    return await checks[0].find_problems()


def report_state_dir_problems(
    settings: Sequence[WorkspaceSettings], state_dir: Path, listener: events.Listener
) -> None:
    """Emit a notice for each way in which other users could replace the state folder.

    Raises:
        ConfigError: There is a problem, and a workspace is strict.
    """
    for text, hint in state_dir_problems(state_dir):
        if any(one.strict for one in settings):
            raise ConfigError(text, hint=hint)
        listener(events.Notice(workspace_id=settings[0].workspace_id, text=text, hint=hint))


def _refuse_strict(listing: Listing, state_dir: Path) -> Listing:
    """Refuse the strict workspaces if other users could replace the state folder."""
    faults = tuple(Fault(text, hint) for text, hint in state_dir_problems(state_dir))
    if not faults:
        return listing
    refused = [Refused.of(one, faults) for one in listing.settings if one.strict]
    return attrs.evolve(
        listing,
        settings=tuple(one for one in listing.settings if not one.strict),
        refused=(*listing.refused, *refused),
    )
