"""From settings to a served workspace: the one place that knows platform, plugins and delivery alike."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import attrs

from molecule_connect import events, open_files
from molecule_connect.config.load import (
    WORKSPACES_VARIABLE,
    Listing,
    Refused,
    WorkspaceList,
    WorkspacesError,
    lines_of,
    parse_variable,
    read_single,
    with_hint,
)
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.state_dir import existing_state_dir, resolve_state_dir, state_dir_problems
from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.journal.journal import Journal
from molecule_connect.platform.address import parse_address
from molecule_connect.platform.tls import Trust
from molecule_connect.platform.transports import AsyncTransport, Transports
from molecule_connect.plugins import discovery
from molecule_connect.plugins.entry_points import BACKENDS, MIDDLEWARE
from molecule_connect.runtime import Block, Ground, credentials_of, notice, plugin_host, report_permissions
from molecule_connect.worker.refused_blocks import RefusedBlocksFile
from molecule_connect.worker.status import Problem
from molecule_connect.worker.supervisor import Supervisor

# So many plugins are asked for problems at a time.
AT_ONCE = 8
# The part that troubles of a list's blocks are reported under.
LIST = "list"


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
    serving = asyncio.ensure_future(
        serve([settings], state_dir=folder, listener=listener, stop=stop, transport=transport)
    )
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        if not serving.done():
            stop.set()
            await serving
        raise


def load_workspaces(
    environ: Mapping[str, str] = os.environ, *, state_dir: Path | None = None
) -> list[WorkspaceSettings]:
    """The workspaces in the environment: those of ``MOLECULE_WORKSPACES``, or else the one of ``WORKSPACE_ID``.

    Args:
        state_dir: May contain tokens that registrations returned; None for the folder that would be used.

    Raises:
        WorkspacesError: Something is wrong with the list.
        ConfigError: The id or the token is missing, or a value is invalid.
    """
    if state_dir is None:
        state_dir = existing_state_dir(None, environ)
    if environ.get(WORKSPACES_VARIABLE):
        found = parse_variable(environ, state_dir=state_dir)
        return load_list(found).whole()
    settings = read_single({}, environ, state_dir)
    check_platform(settings)
    return [settings]


def load_list(workspaces: WorkspaceList, numbers: Collection[int] | None = None, *, plugins: bool = False) -> Listing:
    """The workspaces of a list, or only those with these *numbers*.

    Args:
        plugins: Check that the backend and the middleware are installed.

    Raises:
        WorkspacesError: The list can't be used as a whole, or no workspace of it can be served.
    """
    trust, installed = Trust(), InstalledPlugins()
    blocks = []
    for block in workspaces.blocks(numbers):
        faults = list(block.faults)
        if block.settings is not None:
            try:
                check_platform(block.settings, trust)
            except ConfigError as exc:
                faults.append(with_hint(exc))
            if plugins:
                faults += installed.faults(block.settings)
        blocks.append(attrs.evolve(block, faults=tuple(faults)))
    listing = Listing.of(workspaces.source, blocks)
    return workspaces.check(listing) if numbers is None else listing


def check_platform(settings: WorkspaceSettings, trust: Trust | None = None) -> None:
    """Check the address and the files for https.

    Raises:
        ConfigError: One of them can't be used.
    """
    (trust or Trust()).check(parse_address(settings.api_url, insecure=settings.insecure), settings.tls)


class InstalledPlugins:
    """Looks up each plugin of a list once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[str]] = {}

    def faults(self, settings: WorkspaceSettings) -> list[str]:
        """Why the backend or a middleware can't be loaded."""
        named = [(BACKENDS, settings.backend), *((MIDDLEWARE, name) for name in settings.middleware)]
        return [fault for group, name in named if isinstance(name, str) and name for fault in self._find(group, name)]

    def _find(self, group: str, name: str) -> list[str]:
        if (group, name) not in self._known:
            try:
                discovery.find(group, name)
                self._known[group, name] = []
            except MoleculeError as exc:
                self._known[group, name] = [with_hint(exc)]
        return self._known[group, name]


async def serve(
    settings: Sequence[WorkspaceSettings],
    *,
    state_dir: Path,
    listener: events.Listener,
    stop: asyncio.Event,
    transport: AsyncTransport | None = None,
) -> None:
    """Serve workspaces until *stop* is set and all have drained, or none is left.

    Raises:
        MoleculeError: As ``connect`` does.
        FleetError: Several have ended, and not all of them well.
    """
    async with serving(settings, state_dir=state_dir, listener=listener, transport=transport) as served:
        await served.run(stop)


@attrs.frozen(kw_only=True)
class Plan:
    """What a new list of workspaces means for those that are served. Ids, in the order of the list.

    Attributes:
        new: They are not served yet, or have ended with an error.
        changed: They are served, with other settings.
        same: They are served, and do not notice.
        gone: They are served, and are on the list no more.
        kept: They are served, and go on with their earlier settings: their block is refused, or a block that is
            refused doesn't say whose it is.
        refused: The blocks of the list that can't be served.
    """

    wanted: tuple[WorkspaceSettings, ...] = attrs.field(repr=False)
    new: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]
    gone: tuple[str, ...]
    kept: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()

    @property
    def starting(self) -> list[WorkspaceSettings]:
        """Those that are to be started, first or anew."""
        return [one for one in self.wanted if one.workspace_id in (*self.new, *self.changed)]


class Served:
    """The workspaces that this process serves. Made by ``serving``.

    Attributes:
        refused: The blocks of the list that can't be served.
    """

    def __init__(self, blocks: Sequence[Block], ground: Ground, *, strict: bool = True) -> None:
        self._ground, self._strict = ground, strict
        self._settings = {block.workspace_id: block.settings for block in blocks}
        self._fleet = Supervisor(blocks, ground.journal, listener=ground.listener)
        self._file = RefusedBlocksFile(ground.state_dir)
        self._told: dict[str, Problem] = {}
        self._kept: frozenset[str] = frozenset()
        self.refused: tuple[Refused, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The workspaces that are on the list, and the numbers of blocks that name none."""
        return frozenset(self._settings.keys() | self._told.keys())

    async def run(self, stop: asyncio.Event) -> None:
        """As ``serve`` does."""
        await self._fleet.run(stop)

    def say(self, text: str) -> None:
        """Tell what concerns all of them, in the name of one."""
        notice(next(iter(self._settings)), self._ground.listener)(text)

    def share_files(self) -> None:
        """Leave as many open files to event streams as the workspaces can do without, and say if those are too few.

        Raises:
            ConfigError: The limit of open files is too low for so many workspaces.
        """
        streams, warning = open_files.most_streams(len(self._settings), open_files.limit())
        self._ground.transports.most_streams = streams
        if warning:
            self.say(warning)

    def refuse(self, refused: Sequence[Refused], *, kept: Collection[str] = (), repeat: bool = True) -> None:
        """Report *refused* as the blocks that can't be served, and the end of earlier troubles with others.

        Args:
            kept: The workspaces that are served with their earlier settings.
            repeat: Report those again that were reported with the same faults.
        """
        before, listener, found = self._told, self._ground.listener, _by_name(refused)
        for name in before.keys() - found.keys():
            listener(events.Recovered(workspace_id=name, part=LIST))
        self.refused, self._told, self._kept = tuple(refused), {}, frozenset(kept)
        for name, blocks in found.items():
            known = before.get(name)
            told = _ailment(blocks, since=known.since if known else time.time(), kept=name in kept)
            self._told[name] = told
            if repeat or told != known:
                listener(events.Trouble(workspace_id=name, part=LIST, reason=told.reason, hint=told.hint))
        self._fleet.refused = {name: ConfigError(one.reason, hint=one.hint) for name, one in self._told.items()}
        self._file.write(self._told)

    def close(self) -> None:
        """Leave no trace of refused blocks."""
        self._file.remove()

    async def plan(self, wanted: Sequence[WorkspaceSettings], refused: Sequence[Refused] = ()) -> Plan:
        """What serving *wanted* of a list with *refused* blocks would mean. Everything that is to start was rehearsed.

        Raises:
            WorkspacesError: Nothing of it can be served, or not all and the list is strict; every reason is in it.
            ConfigError: The limit of open files is too low for so many workspaces.
        """
        running, known = self._fleet.running, self._settings
        # Those that are gone have theirs open until they have drained.
        ids = {one.workspace_id for one in wanted}
        open_files.most_streams(len(ids | known.keys()), open_files.limit())
        starts = [one for one in wanted if one.workspace_id not in running or one != known[one.workspace_id]]
        refused = [*refused, *await self._rehearsed(starts)]
        usable = _without(wanted, refused)
        if refused and (self._strict or not usable):
            raise WorkspacesError("the new list", lines_of(refused))
        ids, bad = {one.workspace_id for one in usable}, {one.workspace_id for one in refused}
        kept = tuple(name for name in known if name not in ids and (name in bad or None in bad))
        going_on = [one for one in usable if one.workspace_id in running]
        return Plan(
            wanted=tuple(usable),
            new=tuple(one.workspace_id for one in usable if one.workspace_id not in running),
            changed=tuple(one.workspace_id for one in going_on if one != known[one.workspace_id]),
            same=tuple(one.workspace_id for one in going_on if one == known[one.workspace_id]),
            gone=tuple(name for name in known if name not in ids and name not in kept),
            kept=kept,
            refused=tuple(refused),
        )

    async def plan_again(self, wanted: Sequence[WorkspaceSettings], refused: Sequence[Refused]) -> Plan:
        """What has become of the refused blocks: *wanted* may be served, *refused* still can't. Nothing else changes.

        Raises:
            ConfigError: The limit of open files is too low for so many workspaces.
        """
        found = await self._rehearsed(wanted)
        healed = {one.workspace_id: one for one in _without(wanted, found)}
        open_files.most_streams(len(self._settings | healed), open_files.limit())
        running = self._fleet.running
        return Plan(
            wanted=tuple({**self._settings, **healed}.values()),
            new=tuple(name for name in healed if name not in running),
            changed=tuple(name for name in healed if name in running),
            same=tuple(name for name in self._settings if name not in healed),
            gone=(),
            kept=tuple(self._kept - healed.keys()),
            refused=(*refused, *found),
        )

    async def follow(self, plan: Plan) -> None:
        """Start, drain and restart as *plan* says; returns when all has drained."""
        kept = {name: self._settings[name] for name in plan.kept}
        self._settings = {**kept, **{one.workspace_id: one for one in plan.wanted}}
        self.share_files()
        await self._fleet.change([Block(one, self._ground) for one in plan.starting], gone=plan.gone)

    async def _rehearsed(self, settings: Sequence[WorkspaceSettings]) -> list[Refused]:
        steps = [(one, _rehearsal(one, self._ground.state_dir, events.ignore)) for one in settings]
        return await _refused(steps)


def _without(settings: Sequence[WorkspaceSettings], refused: Sequence[Refused]) -> list[WorkspaceSettings]:
    # By the number too: a second block with the id of a good one is refused, and takes nothing from that.
    bad = {(one.entry, one.workspace_id) for one in refused}
    return [one for one in settings if (one.entry, one.workspace_id) not in bad]


def _by_name(refused: Sequence[Refused]) -> dict[str, list[Refused]]:
    """The blocks that concern one workspace may be several: its own, and those that have its id too."""
    found: dict[str, list[Refused]] = {}
    for one in refused:
        found.setdefault(one.name, []).append(one)
    return found


def _ailment(blocks: Sequence[Refused], *, since: float, kept: bool) -> Problem:
    lines = lines_of(blocks)
    reason, _, hint = lines[0].partition(" -> ") if len(lines) == 1 else ("; ".join(lines), "", "")
    if kept:
        reason += "; it goes on with its earlier settings"
    return Problem(part=LIST, reason=reason, hint=hint or "correct the block", since=since)


@asynccontextmanager
async def serving(
    settings: Sequence[WorkspaceSettings],
    *,
    state_dir: Path,
    listener: events.Listener,
    transport: AsyncTransport | None = None,
    refused: Sequence[Refused] = (),
    strict: bool = True,
) -> AsyncIterator[Served]:
    """What serves *settings*, built and checked, and not started. All is closed at the end.

    Args:
        refused: The other blocks of the list, which can't be served.
        strict: Serve all or nothing. Else those that can be served are, and the others are reported.

    Raises:
        ConfigError: Nothing can be served, or not all of a strict list; of several workspaces, everything is told.
        JournalError: The journal cannot be used.
    """
    if not settings:
        raise ConfigError("no workspace was given", hint="name at least one")
    several = len(settings) + len(refused) > 1
    if several and not strict:
        settings, endangered = _apart(settings, state_dir)
        refused = [*refused, *endangered]
        if not settings:
            raise WorkspacesError("the list", lines_of(refused))
    warn_of_dangers(settings, state_dir, listener)
    # Before anything is opened.
    open_files.most_streams(len(settings), open_files.limit())
    async with AsyncExitStack() as stack:
        transports = Transports(transport=transport, say=lambda text: served.say(text))
        stack.push_async_callback(transports.aclose)
        journal = await stack.enter_async_context(
            Journal.open(state_dir, wall=time.time, notice=notice(settings[0].workspace_id, listener))
        )
        ground = Ground(state_dir=state_dir, transports=transports, journal=journal, listener=listener)
        blocks = {one.workspace_id: Block(one, ground) for one in settings}
        for block in blocks.values():
            stack.push_async_callback(block.aclose)
        if several:
            refused = [*refused, *await _refused([(block.settings, _building(block)) for block in blocks.values()])]
            ready = [blocks[one.workspace_id] for one in _without(settings, refused)]
            if refused and (strict or not ready):
                raise WorkspacesError("the list", lines_of(refused))
        else:
            ready = list(blocks.values())
            if problems := await _building(ready[0])():
                raise ConfigError(
                    f"the backend is not ready: {'; '.join(problems)}", hint="mend that, then start again"
                )
        for name in blocks.keys() - {block.workspace_id for block in ready}:
            await blocks[name].aclose()
        served = Served(ready, ground, strict=strict)
        stack.callback(served.close)
        served.share_files()
        served.refuse(refused)
        yield served


def _apart(settings: Sequence[WorkspaceSettings], state_dir: Path) -> tuple[Sequence[WorkspaceSettings], list[Refused]]:
    """*settings* without those that are too strict for the state folder, and these."""
    faults = tuple(f"{text} -> {hint}" for text, hint in state_dir_problems(state_dir))
    if not faults:
        return settings, []
    refused = [Refused(entry=one.entry, workspace_id=one.workspace_id, faults=faults) for one in settings if one.strict]
    return [one for one in settings if not one.strict], refused


def warn_of_dangers(settings: Sequence[WorkspaceSettings], state_dir: Path, listener: events.Listener) -> None:
    """Report what lets other users replace the state folder.

    Raises:
        ConfigError: There is such a thing, and a workspace is served strictly.
    """
    for text, hint in state_dir_problems(state_dir):
        if any(one.strict for one in settings):
            raise ConfigError(text, hint=hint)
        listener(events.Notice(workspace_id=settings[0].workspace_id, text=text, hint=hint))


async def rehearse(
    settings: Sequence[WorkspaceSettings],
    *,
    state_dir: Path | None,
    listener: events.Listener,
    state_root: Path | None = None,
    refused: Sequence[Refused] = (),
) -> list[str]:
    """Build everything, ask the plugins for problems, close it again: no request, no state. Returns the problems.

    Args:
        state_dir: Where a token that the platform handed out may lie. Nothing is written there.
        state_root: The state folder that plugins keep out of; *state_dir* where it is None.
        refused: The other blocks of the list; their faults are problems too.

    Raises:
        ConfigError: The settings of the only workspace make no sense; those of several are problems.
    """
    several = len(settings) + len(refused) > 1
    if state_dir is not None:
        endangered: list[Refused] = []
        if several:
            settings, endangered = _apart(settings, state_dir)
        refused = [*refused, *endangered]
        if settings:
            warn_of_dangers(settings, state_dir, listener)
    open_files.most_streams(len(settings), open_files.limit())
    steps = [(one, _rehearsal(one, state_dir, listener, state_root)) for one in settings]
    return lines_of([*refused, *await _refused(steps)]) if several else await steps[0][1]()


_Step = Callable[[], Awaitable[list[str]]]


def _building(block: Block) -> _Step:
    async def step() -> list[str]:
        await block.build()
        return await block.check()

    return step


def _rehearsal(
    settings: WorkspaceSettings, state_dir: Path | None, listener: events.Listener, state_root: Path | None = None
) -> _Step:
    async def step() -> list[str]:
        token = credentials_of(settings.check(), state_dir).current()
        async with plugin_host(settings, token, None, listener, state_root=state_root or state_dir) as host:
            await report_permissions(host, settings.workspace_id, listener)
            return await host.check()

    return step


async def _refused(steps: Sequence[tuple[WorkspaceSettings, _Step]]) -> list[Refused]:
    """Those of several workspaces that can't be served. An error is a problem like others."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def take(step: _Step) -> list[str]:
        async with slots:
            try:
                return await step()
            except MoleculeError as exc:
                return [with_hint(exc)]

    found = await asyncio.gather(*(take(step) for _, step in steps))
    return [
        Refused(entry=one.entry, workspace_id=one.workspace_id, faults=tuple(problems))
        for (one, _), problems in zip(steps, found, strict=True)
        if problems
    ]
