"""Run ``molecule connect``: read the settings, then serve until a signal, or check them with ``--dry-run``."""

import asyncio
import contextlib
import gc
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from molecule_connect import open_files
from molecule_connect.cli.errors import CLEAN
from molecule_connect.cli.observing import Observation
from molecule_connect.cli.options import JOURNAL_VARIABLE
from molecule_connect.cli.service_report import ServiceReport
from molecule_connect.cli.signals import StopSignals
from molecule_connect.cli.workspaces import WorkspaceSource
from molecule_connect.config.settings import DEFAULT_API_URL, WorkspaceSettings
from molecule_connect.config.state_dir import resolve_state_dir
from molecule_connect.config.tokens import TOKEN_VARIABLE
from molecule_connect.config.workspaces import Listing, WorkspacesError
from molecule_connect.console.screen import Screen, Summary
from molecule_connect.errors import ConfigError, without_credentials
from molecule_connect.executors import PatientExecutor
from molecule_connect.plugins.mirrors import create_mirror
from molecule_connect.process.notify import ServiceManager
from molecule_connect.worker.sharing import SharedJournal
from molecule_connect.worker.status_file import ReloadFile

# New objects after which the garbage collector runs.
_COLLECT_AFTER = 20_000


def run(options: Mapping[str, Any], given: Mapping[str, Any], *, screen: Screen) -> None:
    """Serve the workspaces of the command line and the environment, or check them with ``--dry-run``.

    Args:
        options: The parameters of the command.
        given: The settings on the command line, by field name.

    Raises:
        MoleculeError: A setting is missing or invalid, or serving failed.
    """
    manager = ServiceManager.take_from(os.environ)
    with _one_line_per_fault(screen):
        if options["mode"] == "push" and not options["dry_run"]:
            raise ConfigError("--mode push is not available yet", hint="use --mode poll, which needs no public address")
        source = WorkspaceSource(
            given,
            os.environ,
            config=options["config"],
            state_dir=options["state_dir"],
            profile=options["profile"],
            may_be_new=options["save"],
        )
        listing = source.read()
        if "token" in given:
            # Every user can read /proc/PID/cmdline, and so can every program that a backend starts.
            screen.note(
                "WARNING",
                "--token shows the token in the process list, where every program on this machine can read it",
                f"use --token-file, or {TOKEN_VARIABLE}",
            )
        if source.assumes_address:
            screen.note(
                "WARNING",
                f"no address given: using {DEFAULT_API_URL}",
                "pass --api-url, set MOLECULE_API_URL, or save it with 'molecule init'",
            )
        observation = Observation.of(
            options["http"], os.environ, screen, workspace_labels=not options["no_workspace_labels"]
        )
        open_files.raise_limit()
        if options["save"]:
            if source.name or options["dry_run"]:
                other = "--dry-run" if options["dry_run"] else source.name
                raise ConfigError(
                    f"--save can't be combined with {other}",
                    hint="save the settings of one workspace, when it is served",
                )
            _save(listing.settings[0], options, source, screen)
        if options["dry_run"]:
            _dry_run(listing, options["mode"], source.state_dir, screen)
            return
        grace = max(one.grace for one in listing.settings)
        with StopSignals(grace=grace, spell=screen.last_words, reloads=source.reloads) as signals:
            folder = resolve_state_dir(options["state_dir"], os.environ, saved=source.own_state_dir)
            shared = _shared(options["journal_url"], source, listing, screen)
            with _log_to(screen):
                report = ServiceReport(manager, file=ReloadFile(folder, os.getpid()) if source.reloads else None)
                asyncio.run(
                    _serve(source, listing, options["mode"], folder, screen, signals, report, observation, shared)
                )


async def _serve(
    source: WorkspaceSource,
    listing: Listing,
    mode: str,
    folder: Path,
    screen: Screen,
    signals: StopSignals,
    report: ServiceReport,
    observation: Observation,
    shared: SharedJournal | None,
) -> None:
    from molecule_connect.app import deploy
    from molecule_connect.cli.reloading import follow_the_list, with_next_step

    def summary(settings: WorkspaceSettings) -> Summary:
        return _summary(settings, mode, folder)

    asyncio.get_running_loop().set_default_executor(PatientExecutor())
    stop, reload = asyncio.Event(), asyncio.Event()
    signals.bind(stop, reload)
    screen.open([summary(one) for one in listing.settings])
    if shared is not None:
        screen.note("INFO", f"the journal is shared with other machines through {shared.mirror.where}")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(observation.running())
        listener = observation.following(report.following(with_next_step(screen, reloads=source.reloads)))
        deployment = await stack.enter_async_context(
            deploy(listing, folder, listener, strict=source.strict, tracer=observation.tracer, shared=shared)
        )
        observation.attach(deployment)
        following = follow_the_list(
            source,
            reload,
            deployment,
            screen=screen,
            listener=listener,
            signals=signals,
            summary=summary,
            report=report,
        )
        helpers = [
            asyncio.ensure_future(following),
            asyncio.ensure_future(report.run(deployment, stop, signals)),
            asyncio.ensure_future(observation.follow(stop)),
        ]
        # The objects of the start live as long as the process; collections would visit them in vain.
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)
        try:
            await deployment.run(stop)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
    signals.outcome = CLEAN


def _save(settings: WorkspaceSettings, options: Mapping[str, Any], source: WorkspaceSource, screen: Screen) -> None:
    """Check *settings*, then save them as a profile.

    Raises:
        ConfigError: A check failed, or the profile is that of another workspace.
    """
    from molecule_connect.cli import diagnostics
    from molecule_connect.cli.initializing import check, checks_failed
    from molecule_connect.config import saved, saving
    from molecule_connect.runtime import credentials_of

    profile = saved.chosen_profile(options["profile"], os.environ)
    state_dir = saving.check_state_dir(options["state_dir"], os.environ) or source.own_state_dir
    folder = saved.profile_folder(profile, os.environ)
    before = saved.read_file(folder / saved.CONFIG_NAME, profile=profile)
    if before is not None and not (
        before.is_for(settings.workspace_id) and saved.is_same_address(before.api_url, settings.api_url)
    ):
        raise ConfigError(
            f"{before.path} has the settings of workspace {before.workspace_id} at {before.api_url}",
            hint="save these under another name: --save --profile NAME; or replace them with 'molecule init'",
        )
    token = credentials_of(settings, source.state_dir).current()
    findings = check(attrs.evolve(settings, token=token), source.state_dir)
    for finding in findings:
        if finding.level in (diagnostics.WARN, diagnostics.FAIL):
            level = "ERROR" if finding.level == diagnostics.FAIL else "WARNING"
            screen.note(level, f"{finding.check}: {finding.text}", finding.hint)
    if failed := [finding for finding in findings if finding.level == diagnostics.FAIL]:
        raise checks_failed(failed, "without --save, it is started anyway")
    path = saving.write_profile(folder, saving.format_settings(settings, state_dir=state_dir), token)
    start = saved.command_with_profile("molecule connect", profile)
    screen.note("INFO", f"saved {path}, and the token beside it; from now on, {start!r} is enough")


def _dry_run(listing: Listing, mode: str, planned: Path, screen: Screen) -> None:
    from molecule_connect.app import find_problems

    screen.plan([_summary(one, mode, planned) for one in listing.settings])
    with _log_to(screen):
        # Nothing is written to the state folder, but a token that is kept there is read.
        problems = asyncio.run(find_problems(listing, planned, screen))
    for problem in problems:
        screen.note("ERROR", problem)
    if problems:
        what = "the backend is" if len(listing.settings) + len(listing.refused) == 1 else "the workspaces are"
        raise ConfigError(
            f"{what} not ready: {len(problems)} problem{'s' if len(problems) > 1 else ''}",
            hint="fix the errors above; nothing was started",
        )
    screen.note("INFO", "ready: nothing was started")


def _shared(given: str | None, source: WorkspaceSource, listing: Listing, screen: Screen) -> SharedJournal | None:
    """The database of ``--journal``, or of the file.

    Raises:
        ConfigError: It can't be used.
    """
    settings = source.journal
    url = given or settings.url
    if not url:
        return None
    for name in ("once", "standby"):
        if any(getattr(one, name) for one in listing.settings):
            raise ConfigError(f"--{name} can't be combined with --journal", hint=f"leave out --{name}")
    mirror = create_mirror(url)
    if given and given != os.environ.get(JOURNAL_VARIABLE) and urlsplit(given).password:
        screen.note(
            "WARNING",
            "--journal shows the password of the database in the process list",
            f"use {JOURNAL_VARIABLE}, PGPASSWORD or ~/.pgpass",
        )
    return SharedJournal(mirror=mirror, capacity=settings.capacity)


@contextlib.contextmanager
def _one_line_per_fault(screen: Screen) -> Iterator[None]:
    """Show each error of a list on its own line, and raise an error with their number."""
    try:
        yield
    except WorkspacesError as error:
        if len(error.faults) == 1:
            raise
        for fault in error.faults:
            screen.note("ERROR", fault)
        raise ConfigError(f"{error.source} has {len(error.faults)} errors, listed above", hint=error.hint) from error


def _summary(settings: WorkspaceSettings, mode: str, folder: Path) -> Summary:
    return Summary(
        workspace_id=settings.workspace_id,
        backend=str(settings.backend),
        mode=mode,
        api_url=settings.api_url,
        state_dir=str(folder),
        settings_file=str(settings.settings_file or ""),
    )


class _ScreenHandler(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        level = "ERROR" if record.levelno >= logging.ERROR else "WARNING"
        cause = record.exc_info[1] if record.exc_info else None
        ending = f" ({type(cause).__name__}: {cause})" if cause is not None else ""
        self._screen.note(level, without_credentials(f"{record.name}: {record.getMessage()}{ending}"))


@contextlib.contextmanager
def _log_to(screen: Screen) -> Iterator[None]:
    """Show warnings and errors that libraries and plugins log."""
    handler = _ScreenHandler(screen)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
