"""The workspaces that a process serves, which can change while it runs."""

import asyncio
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from molecule_connect import events, open_files
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.workspaces import Fault, FleetLimits, Refused, WorkspacesError, lines_of
from molecule_connect.errors import ConfigError, MoleculeError
from molecule_connect.journal.backlog import Backlog
from molecule_connect.observers import WorkspaceState
from molecule_connect.runtime import (
    Notices,
    Runtime,
    WorkspaceRunner,
    close_plugins,
    credentials_of,
    open_plugins,
    report_permissions,
)
from molecule_connect.worker.sharing import Sharing
from molecule_connect.worker.status_file import Problem, RefusedBlocksFile
from molecule_connect.worker.supervisor import Supervisor

# Workspaces whose plugins are checked at the same time.
CONCURRENT_CHECKS = 8
# The part under which refused blocks of a list are reported.
LIST = "list"


@attrs.frozen(kw_only=True)
class Plan:
    """The changes that a new list of workspaces requires, as ids in the order of the list.

    Attributes:
        wanted: The settings of all workspaces that will be served.
        new: They aren't served yet, or ended with an error.
        changed: They are served with other settings, and will be restarted.
        unchanged: They are served with these settings.
        removed: They are served, and no longer on the list.
        kept: They continue with their earlier settings, because their block is refused, or because a refused block
            without a valid id could belong to them.
        refused: The blocks of the list that can't be served.
    """

    wanted: tuple[WorkspaceSettings, ...] = attrs.field(repr=False)
    new: tuple[str, ...]
    changed: tuple[str, ...]
    unchanged: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...] = ()
    refused: tuple[Refused, ...] = ()

    @property
    def starting(self) -> list[WorkspaceSettings]:
        """The workspaces that will be started or restarted."""
        ids = {*self.new, *self.changed}
        return [one for one in self.wanted if one.workspace_id in ids]


class Deployment:
    """Runs workspaces and applies changes to them. Created by ``app.deploy``.

    Args:
        notices: Emits notices about the whole process, in the name of one of its workspaces.
        strict: Refuse a new list if any of its workspaces can't be served.

    Attributes:
        refused: The blocks of the list that can't be served.
    """

    def __init__(
        self, runners: Sequence[WorkspaceRunner], runtime: Runtime, notices: Notices, *, strict: bool = True
    ) -> None:
        self._runtime, self._notices, self._strict = runtime, notices, strict
        self._settings = {runner.workspace_id: runner.settings for runner in runners}
        self._runners = {runner.workspace_id: runner for runner in runners}
        self._supervisor = Supervisor(runners, runtime.journal, listener=runtime.listener)
        self._file = RefusedBlocksFile(runtime.state_dir)
        self._problems: dict[str, Problem] = {}
        self._kept: frozenset[str] = frozenset()
        self.refused: tuple[Refused, ...] = ()

    @property
    def names(self) -> frozenset[str]:
        """The workspaces on the list, and the labels of blocks without an id."""
        return frozenset(self._settings.keys() | self._problems.keys())

    @property
    def unread(self) -> frozenset[str]:
        """The running workspaces whose feed was not yet read to its end."""
        return frozenset(runner.workspace_id for runner in self._running() if not runner.has_read)

    def stalled(self, seconds: float) -> list[str]:
        """The workspaces whose reading has made no progress for longer than this."""
        return [runner.workspace_id for runner in self._running() if runner.stalled_for > seconds]

    def states(self, backlogs: Mapping[str, Backlog] | None = None) -> Iterator[WorkspaceState]:
        """The states of the workspaces that are served, or ended with an error.

        Args:
            backlogs: Their messages by workspace; None if unknown.
        """
        running = self._supervisor.running
        for name, runner in list(self._runners.items()):
            backlog = None if backlogs is None else backlogs.get(name) or Backlog()
            yield runner.state(up=name in running, backlog=backlog)

    @property
    def journal_path(self) -> Path:
        """The journal of the workspaces."""
        return self._runtime.journal.path

    def _running(self) -> list[WorkspaceRunner]:
        running = self._supervisor.running
        return [runner for name, runner in self._runners.items() if name in running]

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until *stop* is set and all workspaces have drained, or until all have ended.

        Raises:
            MoleculeError: See ``Supervisor.run``.
        """
        if self._runtime.sharing is None:
            await self._supervisor.run(stop)
            return
        stopping = asyncio.ensure_future(_stop_sharing(self._runtime.sharing, stop))
        try:
            await self._supervisor.run(stop)
        finally:
            stopping.cancel()

    def limit_streams(self) -> None:
        """Reserve enough open files for all workspaces, and warn if that leaves too few for their event streams.

        Raises:
            ConfigError: The limit of open files is too low for the workspaces.
        """
        self._notices.workspace_id = next(iter(self._settings))
        streams, warning = open_files.most_streams(len(self._settings), open_files.limit())
        self._runtime.transports.streams.most = streams
        if warning:
            self._notices(warning)

    def report_refused(self, refused: Sequence[Refused], *, kept: Collection[str] = (), repeat: bool = True) -> None:
        """Report *refused* as the blocks that can't be served, and clear earlier reports that no longer apply.

        Args:
            kept: The workspaces that continue with their earlier settings.
            repeat: Also report blocks that have the same faults as before.
        """
        before, listener, found = self._problems, self._runtime.listener, _by_name(refused)
        for name in before.keys() - found.keys():
            listener(events.Recovered(workspace_id=name, part=LIST))
        self.refused, self._problems, self._kept = tuple(refused), {}, frozenset(kept)
        for name, blocks in found.items():
            known = before.get(name)
            problem = _problem(blocks, since=known.since if known else time.time(), kept=name in kept)
            self._problems[name] = problem
            if repeat or problem != known:
                listener(events.Trouble(workspace_id=name, part=LIST, reason=problem.reason, hint=problem.hint))
        self._supervisor.refused = {
            name: ConfigError(one.reason, hint=one.hint) for name, one in self._problems.items()
        }
        self._file.write(self._problems)

    def close(self) -> None:
        """Stop reporting refused blocks."""
        self._file.remove()

    def set_fleet_limits(self, limits: FleetLimits) -> None:
        """Change the limits for all workspaces together."""
        self._runtime.fleet.set_limits(limits)

    async def plan(self, wanted: Sequence[WorkspaceSettings], refused: Sequence[Refused] = ()) -> Plan:
        """The changes for a new list. Workspaces that will start are built and checked first.

        Raises:
            WorkspacesError: None of the workspaces can be served, or not all of a strict list.
            ConfigError: The limit of open files is too low for the workspaces.
        """
        running, known = self._supervisor.running, self._settings
        # Removed workspaces keep their files open until they have drained.
        ids = {one.workspace_id for one in wanted}
        open_files.most_streams(len(ids | known.keys()), open_files.limit())
        starts = [one for one in wanted if one.workspace_id not in running or one != known[one.workspace_id]]
        refused = [*refused, *await self._check(starts)]
        usable = without_refused(wanted, refused)
        if refused and (self._strict or not usable):
            raise WorkspacesError("the new list", lines_of(refused))
        ids, bad = {one.workspace_id for one in usable}, {one.workspace_id for one in refused}
        kept = tuple(name for name in known if name not in ids and (name in bad or None in bad))
        served = [one for one in usable if one.workspace_id in running]
        return Plan(
            wanted=tuple(usable),
            new=tuple(one.workspace_id for one in usable if one.workspace_id not in running),
            changed=tuple(one.workspace_id for one in served if one != known[one.workspace_id]),
            unchanged=tuple(one.workspace_id for one in served if one == known[one.workspace_id]),
            removed=tuple(name for name in known if name not in ids and name not in kept),
            kept=kept,
            refused=tuple(refused),
        )

    async def plan_retry(self, wanted: Sequence[WorkspaceSettings], refused: Sequence[Refused]) -> Plan:
        """The changes after another check of refused blocks: *wanted* can be served now, *refused* still can't.

        Raises:
            ConfigError: The limit of open files is too low for the workspaces.
        """
        found = await self._check(wanted)
        corrected = {one.workspace_id: one for one in without_refused(wanted, found)}
        open_files.most_streams(len(self._settings | corrected), open_files.limit())
        running = self._supervisor.running
        return Plan(
            wanted=tuple({**self._settings, **corrected}.values()),
            new=tuple(name for name in corrected if name not in running),
            changed=tuple(name for name in corrected if name in running),
            unchanged=tuple(name for name in self._settings if name not in corrected),
            removed=(),
            kept=tuple(self._kept - corrected.keys()),
            refused=(*refused, *found),
        )

    async def apply(self, plan: Plan) -> None:
        """Start, restart and drain workspaces as planned. Return when all changes are complete."""
        kept = {name: self._settings[name] for name in plan.kept}
        self._settings = {**kept, **{one.workspace_id: one for one in plan.wanted}}
        self.limit_streams()
        if self._runtime.sharing is not None:
            self._runtime.sharing.change(self._settings)
        starting = [WorkspaceRunner(one, self._runtime) for one in plan.starting]
        self._runners.update((runner.workspace_id, runner) for runner in starting)
        await self._supervisor.change(starting, gone=plan.removed)
        for name in plan.removed:
            self._runners.pop(name, None)

    async def _check(self, settings: Iterable[WorkspaceSettings]) -> list[Refused]:
        return await check_all([PluginCheck(one, self._runtime.state_dir) for one in settings])


@attrs.frozen
class PluginCheck:
    """Checks the plugins of a workspace without a request, and without writing to the state folder.

    Attributes:
        state_dir: May contain a token that a registration returned.
        state_root: The state folder, to which plugins deny their programs access; None for *state_dir*.
    """

    settings: WorkspaceSettings
    state_dir: Path | None
    listener: events.Listener = events.ignore
    state_root: Path | None = None

    async def find_problems(self) -> list[str]:
        """The problems that prevent the plugins from working.

        Raises:
            ConfigError: A setting is invalid, or a plugin can't be created.
        """
        settings, listener = self.settings.check(), self.listener
        token = credentials_of(settings, self.state_dir).current()
        state_root = self.state_root or self.state_dir
        host = await open_plugins(settings, token, None, listener, state_root=state_root)
        try:
            await report_permissions(host, settings.workspace_id, listener)
            return await host.check()
        finally:
            await close_plugins(host, Notices(settings.workspace_id, listener))


async def _stop_sharing(sharing: Sharing, stop: asyncio.Event) -> None:
    await stop.wait()
    sharing.stop()


async def check_all(checks: Iterable[WorkspaceRunner | PluginCheck]) -> list[Refused]:
    """The workspaces that have problems. An error of a check is a problem of its workspace."""
    limit = asyncio.Semaphore(CONCURRENT_CHECKS)

    async def check(one: WorkspaceRunner | PluginCheck) -> list[Refused]:
        async with limit:
            try:
                faults = [Fault(problem) for problem in await one.find_problems()]
            except MoleculeError as exc:
                faults = [Fault.of(exc)]
        return [Refused.of(one.settings, faults)] if faults else []

    found = await asyncio.gather(*map(check, checks))
    return [refused for each in found for refused in each]


def without_refused(settings: Iterable[WorkspaceSettings], refused: Iterable[Refused]) -> list[WorkspaceSettings]:
    """*settings* without the workspaces of refused blocks."""
    # Compare the number too: a second block with the id of a valid one is refused, but the valid one isn't.
    bad = {(one.entry, one.workspace_id) for one in refused}
    return [one for one in settings if (one.entry, one.workspace_id) not in bad]


def _by_name(refused: Sequence[Refused]) -> dict[str, list[Refused]]:
    """Several blocks may concern one workspace: its own, and others with the same id."""
    found: dict[str, list[Refused]] = {}
    for one in refused:
        found.setdefault(one.name, []).append(one)
    return found


def _problem(blocks: Sequence[Refused], *, since: float, kept: bool) -> Problem:
    reason, hint = "; ".join(lines_of(blocks)), ""
    if len(blocks) == 1 and len(blocks[0].faults) == 1:
        (fault,) = blocks[0].faults
        reason, hint = f"{blocks[0].label}: {fault.text}", fault.hint
    if kept:
        reason += "; it continues with its earlier settings"
    return Problem(part=LIST, reason=reason, hint=hint or "correct the block", since=since)
