"""From the flags of ``molecule connect`` to a connection that runs until it is told to stop."""

import asyncio
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from molecule_connect import environment, state_folder
from molecule_connect.cli import exit_codes
from molecule_connect.cli.signals import StopSignals
from molecule_connect.console.screen import Screen, Summary
from molecule_connect.errors import AuthError, BackendNotFoundError, ConfigError
from molecule_connect.platform.address import parse_address
from molecule_connect.plugins import discovery
from molecule_connect.plugins.options import parse_options
from molecule_connect.plugins.scan import BACKENDS
from molecule_connect.settings import DEFAULT_BACKEND, ConnectionSettings, check_workspace_id


def run(flags: Mapping[str, Any], *, api_url: str, screen: Screen) -> None:
    """Serve, or rehearse, what *flags* and the environment ask for.

    Raises:
        MoleculeError: What was asked for makes no sense, or serving ended with it.
    """
    workspace_id = environment.workspace_id(flags["workspace_id"], os.environ)
    check_workspace_id(workspace_id)
    parse_address(api_url, insecure=flags["insecure"])
    source = environment.token_source(flags["token"], flags["token_file"], os.environ)
    planned = state_folder.preview(flags["state_dir"], os.environ, home=environment.home())
    # What an earlier register handed out is kept there, and is enough.
    if source is None and not (planned / f"{workspace_id}.token").exists():
        raise environment.no_token()
    if flags["mode"] == "push" and not flags["dry_run"]:
        raise ConfigError("--mode push is not built yet", hint="use --mode poll, which needs no public address")
    _check_backend(flags["backend"])
    settings = _settings(flags, workspace_id, api_url, source)
    if flags["dry_run"]:
        # No state is touched; a token that is kept there is read all the same.
        _rehearse(settings, _summary(settings, flags["mode"], planned), None if source else planned, screen)
        return
    with StopSignals(grace=settings.grace, spell=screen.last_words) as signals:
        folder = state_folder.resolve(flags["state_dir"], os.environ, home=environment.home())
        screen.open([_summary(settings, flags["mode"], folder)])
        with _log_to(screen):
            asyncio.run(_serve(settings, folder, screen, signals))


async def _serve(settings: ConnectionSettings, folder: Path, screen: Screen, signals: StopSignals) -> None:
    from molecule_connect.serve import serve

    stop = asyncio.Event()
    signals.bind(stop)
    try:
        await serve([settings], state_dir=folder, listener=screen, stop=stop)
    except AuthError as error:
        source = settings.token_source if settings.token else settings.token_file or folder
        error.hint = f"workspace {settings.workspace_id}, token from {source}: {error.hint}"
        raise
    signals.outcome = exit_codes.CLEAN


def _rehearse(settings: ConnectionSettings, summary: Summary, folder: Path | None, screen: Screen) -> None:
    from molecule_connect.serve import rehearse

    screen.open([summary])
    with _log_to(screen):
        problems = asyncio.run(rehearse([settings], state_dir=folder, listener=screen))
    for problem in problems:
        screen.note("ERROR", problem)
    screen.note("INFO", "dry run: nothing was started")
    if problems:
        raise ConfigError(
            f"the backend is not ready: {len(problems)} problem{'s' if len(problems) > 1 else ''}",
            hint="mend what is listed above, then try again",
        )


def _settings(
    flags: Mapping[str, Any], workspace_id: str, api_url: str, source: environment.TokenSource | None
) -> ConnectionSettings:
    interval = flags["interval_ms"]
    return ConnectionSettings(
        workspace_id=workspace_id,
        api_url=api_url,
        org_id=flags["org_id"] or os.environ.get(environment.ORG_VARIABLE) or None,
        token=source.token if source else None,
        token_source=source.name if source else "the state folder",
        token_file=source.file if source else None,
        backend=flags["backend"],
        options=parse_options(flags["backend_opts"]),
        middleware=flags["middleware"],
        middleware_options=parse_options(flags["middleware_opts"]),
        strict=flags["strict"],
        poll_interval=None if interval is None else interval / 1000,
        since_secs=float(flags["since_secs"]),
        concurrency=flags["concurrency"],
        grace=flags["grace"],
        peer_budget=flags["peer_budget"],
        max_cost_per_day=flags["max_cost_per_day"],
        agent_name=flags["agent_name"],
        once=flags["once"],
        unpause=flags["unpause"],
        insecure=flags["insecure"],
    ).check()


def _check_backend(name: str) -> None:
    try:
        discovery.find(BACKENDS, name)
    except BackendNotFoundError as error:
        others = f"; or choose an installed one with --backend {error.available[0]}" if error.available else ""
        if name == DEFAULT_BACKEND:
            error.hint += others
        raise


def _summary(settings: ConnectionSettings, mode: str, folder: Path) -> Summary:
    return Summary(
        workspace_id=settings.workspace_id,
        backend=str(settings.backend),
        mode=mode,
        api_url=settings.api_url,
        state_dir=str(folder),
    )


class _ScreenHandler(logging.Handler):
    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.WARNING)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        level = "ERROR" if record.levelno >= logging.ERROR else "WARNING"
        cause = record.exc_info[1] if record.exc_info else None
        ending = f" ({type(cause).__name__}: {cause})" if cause is not None else ""
        self._screen.note(level, f"{record.name}: {record.getMessage()}{ending}")


@contextmanager
def _log_to(screen: Screen) -> Iterator[None]:
    """While it lasts, warnings and errors of libraries and plugins are lines of *screen*."""
    handler = _ScreenHandler(screen)
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
