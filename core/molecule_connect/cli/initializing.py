"""Run ``molecule init``: complete the settings, check them, and write the profile."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from molecule_connect.app import check_platform
from molecule_connect.cli import diagnostics
from molecule_connect.cli.questions import Questions
from molecule_connect.config.load import WORKSPACES_VARIABLE, merge, read_variables
from molecule_connect.config.saved import (
    CONFIG_NAME,
    SavedSettings,
    chosen_profile,
    command_with_profile,
    profile_folder,
    read_file,
)
from molecule_connect.config.saving import check_state_dir, format_settings, write_profile
from molecule_connect.config.settings import WorkspaceSettings
from molecule_connect.config.state_dir import preview_state_dir
from molecule_connect.config.tokens import TOKEN_FIELDS, TOKEN_VARIABLE, find_token, names_token, read_token_file
from molecule_connect.console.sanitize import count, one_line
from molecule_connect.errors import ConfigError

CORRECT, SAVE, QUIT = "correct", "save", "quit"


def run(options: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Save a profile, from flags, variables and, on a terminal, answers to questions.

    Args:
        options: The parameters of the command.
        given: The settings on the command line, by field name.

    Raises:
        ConfigError: A setting is missing or invalid, a check failed, or the files can't be written.
        click.Abort: The operator interrupted a question. Nothing was written.
    """
    environ = os.environ
    profile = chosen_profile(options["profile"], environ)
    folder = profile_folder(profile, environ)
    state_dir = check_state_dir(options["state_dir"], environ)
    planned = preview_state_dir(options["state_dir"], environ)
    if given.get("token"):
        click.echo(
            f"warning: --token shows the token in the process list; use --token-file, or {TOKEN_VARIABLE}", err=True
        )
    is_terminal = _is_terminal()
    before = _before(folder / CONFIG_NAME, profile, is_forced=options["force"], is_terminal=is_terminal)
    found = _given_values(given, environ)
    if is_terminal:
        questions = Questions(before)
        found = questions.complete(found)
    else:
        _refuse_missing(found)
    while True:
        settings = WorkspaceSettings(**found).check()
        check_platform(settings)
        text = format_settings(settings, state_dir=state_dir)
        if options["no_check"]:
            break
        findings = check(settings, planned)
        for line in diagnostics.lines(findings):
            click.echo(line)
        failed = [finding for finding in findings if finding.level == diagnostics.FAIL]
        if not failed:
            break
        if not is_terminal:
            raise checks_failed(failed, "molecule init --no-check saves the settings anyway")
        choice = questions.choose(f"{count(len(failed), 'check')} failed.", (CORRECT, SAVE, QUIT))
        if choice == SAVE:
            break
        if choice == QUIT:
            raise _nothing_saved()
        found = questions.ask_again(found)
    path = write_profile(folder, text, settings.token or "")
    click.echo(f"\nsaved {path}, and the token beside it")
    _warn_about_variables(environ, settings)
    click.echo(f"next: {command_with_profile('molecule connect', profile)}")


def check(settings: WorkspaceSettings, folder: Path) -> list[diagnostics.Finding]:
    """The findings of ``molecule doctor`` for *settings*."""

    async def collect() -> list[diagnostics.Finding]:
        async with contextlib.aclosing(diagnostics.settings_checkup(settings, folder, time.time())) as found:
            return [finding async for finding in found]

    return asyncio.run(collect())


def checks_failed(failed: Sequence[diagnostics.Finding], otherwise: str) -> ConfigError:
    """The error of settings that aren't saved, because of these findings."""
    first = failed[0]
    return ConfigError(
        f"nothing was saved: {count(len(failed), 'check')} failed: {first.check}: {first.text}",
        hint=f"{first.hint or 'correct it'}; {otherwise}",
    )


def _nothing_saved() -> click.exceptions.Exit:
    click.echo("nothing was saved", err=True)
    return click.exceptions.Exit(diagnostics.NOT_WELL)


def _is_terminal() -> bool:
    # sys.stdin is None in a process that was started without one.
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def _before(path: Path, profile: str, *, is_forced: bool, is_terminal: bool) -> SavedSettings | None:
    """The settings that will be replaced, after a confirmation.

    Raises:
        ConfigError: There are some, and nobody can be asked.
        click.exceptions.Exit: The operator declined.
    """
    if not os.path.lexists(path):
        return None
    try:
        found = read_file(path, profile=profile)
    except ConfigError as exc:
        found, words = None, f"it can't be used: {exc}"
    else:
        words = f"it is for workspace {found.workspace_id} at {found.api_url}" if found else "it can't be read"
    if is_forced:
        return found
    if not is_terminal:
        raise ConfigError(
            f"{path} exists; {words}",
            hint="replace it with --force, or save these settings under another name with --profile NAME",
        )
    click.echo(f"{path} exists; {one_line(words, 400)}.", err=True)
    if not click.confirm("Replace it?", err=True):
        raise _nothing_saved()
    return found


def _given_values(given: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings from flags and variables, by field name; ``token`` is the token itself."""
    flags = {name: value for name, value in given.items() if value is not None and name not in TOKEN_FIELDS}
    found = merge(read_variables(environ, single=True), flags)
    if names_token(given, environ):
        token = find_token(given, environ, workspace_id="", state_dir=None)
        file = token.get("token_file")
        found |= {"token": read_token_file(file), "token_source": f"the token file {file}"} if file else token
    return found


def _refuse_missing(found: Mapping[str, Any]) -> None:
    missing = {"workspace_id": "a workspace id", "token": "a token"}
    words = [words for name, words in missing.items() if not found.get(name)]
    if words:
        flags = {
            "workspace_id": "WORKSPACE_ID",
            "token": f"--token-file FILE (or {TOKEN_VARIABLE})",
            "api_url": "--api-url URL",
            "backend": "--backend NAME",
        }
        absent = ", ".join(flag for name, flag in flags.items() if not found.get(name))
        raise ConfigError(
            f"molecule init needs {' and '.join(words)}, and can't ask without a terminal",
            hint=f"pass {absent}; or run it on a terminal",
        )


def _warn_about_variables(environ: Mapping[str, str], settings: WorkspaceSettings) -> None:
    """Name the variables because of which the saved settings won't be used."""
    if environ.get(WORKSPACES_VARIABLE):
        click.echo(f"note: {WORKSPACES_VARIABLE} is set, and takes their place: unset it", err=True)
    named = environ.get("WORKSPACE_ID")
    if named and attrs.evolve(settings, workspace_id=named).workspace_id != settings.workspace_id:
        click.echo(f"note: WORKSPACE_ID is set to {one_line(named)}, and takes their place: unset it", err=True)
