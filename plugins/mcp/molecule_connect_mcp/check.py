"""``molecule mcp --check``: checks the settings, the process that serves the workspaces, and the channel push."""

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from molecule_connect import (
    AuthError,
    MoleculeError,
    WorkspaceDeletedError,
    WorkspaceSettings,
    endpoints,
)
from molecule_connect_mcp import sanitize
from molecule_connect_mcp.channel import (
    LAUNCH,
    MANAGED_SETTINGS,
    installed_version,
    missing_login,
    missing_permission,
    missing_version,
)
from molecule_connect_mcp.sendable import working_root
from molecule_connect_mcp.sender import DirectSender
from molecule_connect_mcp.settings import NO_HEARTBEAT, NO_INBOX, ServerSettings, read_settings, read_workspaces

# The exit codes of ``molecule``, in the order of their priority.
REFUSED, DELETED, SERVED_ELSEWHERE, UNREACHABLE = EXIT_CODES = (3, 4, 5, 6)


@attrs.frozen
class Finding:
    """A line of the report, and the exit code that it causes."""

    mark: str
    text: str
    code: int = 0


def run_check(
    environ: Mapping[str, str],
    *,
    state_dir: Path | None,
    files_roots: Sequence[str] = (),
    profile: str | None = None,
) -> int:
    """Print the report to standard output and return the exit code.

    Raises:
        ConfigError: A setting is missing or invalid.
    """
    settings = read_settings(environ, state_dir=state_dir, files_roots=files_roots)
    workspaces = read_workspaces(environ, state_dir=state_dir, profile=profile)
    findings = [Finding("note", f"settings saved in {file}") for one in workspaces if (file := one.settings_file)]
    findings += asyncio.run(_check_platform(workspaces))
    findings += [_check_process(one.workspace_id, local_status(one.workspace_id, state_dir)) for one in workspaces]
    findings += [*_list_settings(settings), _list_folders(settings), *_check_channel(environ)]
    for finding in findings:
        click.echo(f"{finding.mark:5} {finding.text}")
    codes = {finding.code for finding in findings}
    return next((code for code in EXIT_CODES if code in codes), 0)


async def _check_platform(workspaces: Sequence[WorkspaceSettings]) -> list[Finding]:
    return [await _check_workspace(one) for one in workspaces]


async def _check_workspace(settings: WorkspaceSettings) -> Finding:
    if settings.token is None and settings.token_file is None:
        unchecked = "it uses the token that the platform issued at registration, which was not checked"
        return Finding("note", f"{settings.workspace_id} at {settings.api_url}: {unchecked}")
    async with DirectSender.open([settings]) as sender:
        return await _check_token(sender, settings)


async def _check_token(sender: DirectSender, settings: WorkspaceSettings) -> Finding:
    name, client = settings.workspace_id, sender.client(settings.workspace_id)
    source = settings.token_source if settings.token else str(settings.token_file or "the state folder")
    try:
        peers = await client.call(endpoints.peers(name))
        info = await client.call(endpoints.workspace(name))
    except AuthError as error:
        return Finding("miss", f"{name}: the token from {source} was refused: {error}", REFUSED)
    except WorkspaceDeletedError as error:
        return Finding("miss", f"{name}: {error}", DELETED)
    except MoleculeError as error:
        return Finding("miss", f"{name}: {error}", UNREACHABLE)
    title = sanitize.name(info.name)
    return Finding(
        "ok", f"{name}{f' ({title})' if title else ''} at {settings.api_url}: token accepted, {len(peers)} peers"
    )


def local_status(workspace_id: str, state_dir: Path | None) -> dict[str, Any]:
    """The output of ``molecule status`` for the workspace; empty if there is none."""
    options = ["--state-dir", str(state_dir)] if state_dir else []
    command = [sys.executable, "-m", "molecule_connect", "status", workspace_id, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - own program
    try:
        status: dict[str, Any] = json.loads(done.stdout)["workspaces"][0]
    except (ValueError, LookupError, TypeError):
        return {}
    return status


def _check_process(workspace_id: str, status: Mapping[str, Any]) -> Finding:
    if not status.get("pid"):
        return Finding("ok", f"{workspace_id}: no process on this machine serves it")
    process = f"process {status['pid']} on {status.get('host')}"
    if status.get("backend") == "inbox":
        return Finding("ok", f"{workspace_id}: {process} serves it as an inbox; another server reads through it")
    text = (
        f"{workspace_id}: {process} serves it with the backend {status.get('backend')}, which answers the messages "
        "itself: stop it, or restart it with --backend inbox"
    )
    return Finding("miss", text, SERVED_ELSEWHERE)


def _list_settings(settings: ServerSettings) -> list[Finding]:
    found = []
    if not settings.heartbeat:
        found.append(Finding("note", f"{NO_HEARTBEAT} is set: another program must keep the workspace online"))
    if not settings.inbox:
        found.append(Finding("note", f"{NO_INBOX} is set: no messages are read, and the inbox tools return an error"))
    return found


def _list_folders(settings: ServerSettings) -> Finding:
    roots = [root for root in (working_root(), *settings.files_roots) if root is not None]
    listed = ", ".join(map(str, roots)) or "none"
    return Finding("note", f"folders that files may be sent from: {listed}; also the host's roots, and received files")


def _check_channel(environ: Mapping[str, str]) -> list[Finding]:
    """Check the conditions for channel push in Claude Code. They don't affect the exit code."""
    found = [Finding("ok", "channel push: this server declares the channel capability")]
    program = shutil.which("claude", path=environ.get("PATH"))
    if program is None:
        found.append(Finding("note", "channel push: 'claude' is not in PATH"))
    else:
        version = installed_version(program, environ)
        problems = [*missing_version(version), *missing_login(environ), *missing_permission(MANAGED_SETTINGS)]
        found += [Finding("miss", f"channel push: {problem}") for problem in problems]
        if not problems:
            found.append(Finding("ok", f"channel push: Claude Code {version or '(unknown version)'} can show channels"))
    found.append(
        Finding("note", f"channel push: start Claude Code as '{LAUNCH}', with the name of this server in its config")
    )
    found.append(Finding("note", "channel push: without it, wait_for_message returns the same messages"))
    return found
