"""``molecule mcp --check``: is everything there, who holds the workspaces, and would pushed messages be shown?"""

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
    PermanentPlatformError,
    TransientPlatformError,
    WorkspaceDeletedError,
    WorkspaceSettings,
    endpoints,
)
from molecule_connect_mcp import harmless
from molecule_connect_mcp.channel import (
    LAUNCH,
    MANAGED_SETTINGS,
    installed_version,
    missing_login,
    missing_permission,
    missing_version,
)
from molecule_connect_mcp.flags import NO_HEARTBEAT, NO_INBOX, Flags, read_flags
from molecule_connect_mcp.outbox import Outbox
from molecule_connect_mcp.running import read_workspaces
from molecule_connect_mcp.sendable import working_root

# As the group's own commands exit; the worst comes first.
REFUSED, DELETED, ELSEWHERE, OUT_OF_REACH = 3, 4, 5, 6
_WORST_FIRST = (REFUSED, DELETED, ELSEWHERE, OUT_OF_REACH)


@attrs.frozen
class Finding:
    """One line of the report. ``code`` is what the program exits with because of it."""

    mark: str
    text: str
    code: int = 0


def run_check(environ: Mapping[str, str], *, state_dir: Path | None, files_roots: Sequence[str] = ()) -> int:
    """Report on standard output; the exit code.

    Raises:
        ConfigError: The configuration is not complete.
    """
    flags = read_flags(environ, state_dir=state_dir, files_roots=files_roots)
    workspaces = read_workspaces(environ, state_dir=state_dir)
    findings = [*asyncio.run(_platform_findings(workspaces))]
    findings += [_held(one.workspace_id, holder(one.workspace_id, state_dir)) for one in workspaces]
    findings += [*_flag_findings(flags), _files_finding(flags), *_channel_findings(environ)]
    for finding in findings:
        click.echo(f"{finding.mark:5} {finding.text}")
    codes = {finding.code for finding in findings}
    return next((code for code in _WORST_FIRST if code in codes), 0)


async def _platform_findings(workspaces: Sequence[WorkspaceSettings]) -> list[Finding]:
    return [await _asked(one) for one in workspaces]


async def _asked(settings: WorkspaceSettings) -> Finding:
    if settings.token is None and settings.token_file is None:
        kept = "its token is the one that the platform handed out earlier; it was not tried"
        return Finding("note", f"{settings.workspace_id} at {settings.api_url}: {kept}")
    async with Outbox.opened([settings]) as outbox:
        return await _tried(outbox, settings)


async def _tried(outbox: Outbox, settings: WorkspaceSettings) -> Finding:
    name, client = settings.workspace_id, outbox.client(settings.workspace_id)
    source = settings.token_source if settings.token else str(settings.token_file or "the state folder")
    try:
        peers = await client.call(endpoints.peers(name))
        info = await client.call(endpoints.workspace(name))
    except AuthError as error:
        return Finding("miss", f"{name}: the token from {source} was refused: {error}", REFUSED)
    except WorkspaceDeletedError as error:
        return Finding("miss", f"{name}: {error}", DELETED)
    except (PermanentPlatformError, TransientPlatformError) as error:
        return Finding("miss", f"{name}: {error}", OUT_OF_REACH)
    except MoleculeError as error:
        return Finding("miss", f"{name}: {error}", OUT_OF_REACH)
    called = harmless.name(info.name)
    return Finding(
        "ok", f"{name}{f' ({called})' if called else ''} at {settings.api_url}: token accepted, {len(peers)} peers"
    )


def holder(workspace_id: str, state_dir: Path | None) -> dict[str, Any]:
    """What ``molecule status`` tells of the workspace on this machine; empty when it tells nothing."""
    more = ["--state-dir", str(state_dir)] if state_dir else []
    words = [sys.executable, "-m", "molecule_connect", "status", workspace_id, "--json", *more]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - ourselves
    try:
        found: dict[str, Any] = json.loads(done.stdout)["workspaces"][0]
    except (ValueError, LookupError, TypeError):
        return {}
    return found


def _held(workspace_id: str, told: Mapping[str, Any]) -> Finding:
    if not told.get("pid"):
        return Finding("ok", f"{workspace_id}: no process on this machine serves it")
    process = f"process {told['pid']} on {told.get('host')}"
    if told.get("backend") == "inbox":
        return Finding("ok", f"{workspace_id}: {process} serves it as an inbox; another server reads through it")
    text = (
        f"{workspace_id}: {process} serves it with the backend {told.get('backend')}, which answers by itself: "
        "stop it, or start it with --backend inbox"
    )
    return Finding("miss", text, ELSEWHERE)


def _flag_findings(flags: Flags) -> list[Finding]:
    found = []
    if not flags.heartbeat:
        found.append(Finding("note", f"{NO_HEARTBEAT} is set: another program has to keep the workspace online"))
    if not flags.reads:
        found.append(Finding("note", f"{NO_INBOX} is set: nothing is read, and the inbox's tools say so"))
    return found


def _files_finding(flags: Flags) -> Finding:
    roots = [root for root in (working_root(), *flags.files_roots) if root is not None]
    named = ", ".join(map(str, roots)) or "none here"
    return Finding("note", f"folders that files may be sent from: {named}; also the host's roots, and received files")


def _channel_findings(environ: Mapping[str, str]) -> list[Finding]:
    """What is missing for messages to come by themselves in Claude Code; never a reason to fail."""
    found = [Finding("ok", "channel push: this server declares itself a channel")]
    program = shutil.which("claude", path=environ.get("PATH"))
    if program is None:
        found.append(Finding("note", "channel push: there is no 'claude' on the search path"))
    else:
        version = installed_version(program, environ)
        lacks = [*missing_version(version), *missing_login(environ), *missing_permission(MANAGED_SETTINGS)]
        found += [Finding("miss", f"channel push: {lack}") for lack in lacks]
        if not lacks:
            found.append(
                Finding("ok", f"channel push: Claude Code {version or 'of an unknown version'} can show channels")
            )
    found.append(
        Finding("note", f"channel push: start Claude Code as '{LAUNCH}', with the name that it has in its config")
    )
    found.append(Finding("note", "channel push: without it, wait_for_message gets the same messages"))
    return found
