"""Messages that were given up: dead letters in the journal of this machine, and failures that the platform knows."""

import asyncio
import json
import sys
from typing import Any

from molecule_connect_sandbox.clock import to_rfc3339
from molecule_connect_sandbox.page.conversation import parse_row
from molecule_connect_sandbox.platform import Platform
from molecule_connect_sandbox.store import Workspace

LISTED = 50
TIMEOUT = 20.0
MAX_TEXT = 500
# Journals are read by the command: their format belongs to the connector.
COMMAND = (sys.executable, "-m", "molecule_connect", "messages", "list")


async def dead_letters(platform: Platform, workspace: Workspace, command: tuple[str, ...] = COMMAND) -> dict[str, Any]:
    """The dead letters of *workspace* by where they are known, newest first.

    Args:
        command: Lists the dead letters of the workspace whose id and options follow it.
    """
    journal, problem = await _of_journal(workspace.id, command)
    return {
        "journal": journal,
        "problem": problem,
        "platform": [*_delegations(platform, workspace.id), *_reported(platform, workspace.id)],
    }


async def _of_journal(workspace_id: str, command: tuple[str, ...]) -> tuple[list[dict[str, Any]], str]:
    """The dead letters of the connector on this machine, and why there are none."""
    options = (workspace_id, "--state", "dead", "--limit", str(LISTED), "--json")
    pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, *options, stdin=null, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(TIMEOUT):
            output, errors = await process.communicate()
    except BaseException as exc:
        process.kill()
        await process.wait()
        if isinstance(exc, TimeoutError):
            return [], "reading the journal took too long"
        raise
    try:
        listed = json.loads(output)["messages"]
    except (ValueError, KeyError, TypeError):
        first = errors.decode("utf-8", "replace").strip().partition("\n")[0]
        return [], first.removeprefix("error: ")[:MAX_TEXT] or "the journal could not be read"
    fields = ("row_id", "time", "caller_id", "text", "reason", "attempts")
    return [{name: _short(one.get(name)) for name in fields} for one in listed], ""


def _short(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value


def _delegations(platform: Platform, workspace_id: str) -> list[dict[str, Any]]:
    rows = platform.store.db.execute(
        "SELECT id, created_at, summary, error FROM delegations WHERE status = 'failed' AND workspace_id = ? "
        "ORDER BY created_at DESC LIMIT ?",
        (workspace_id, LISTED),
    )
    return [
        {"row_id": row_id, "time": to_rfc3339(created), "text": _short(summary), "reason": _short(error) or "it failed"}
        for row_id, created, summary, error in rows
    ]


def _reported(platform: Platform, workspace_id: str) -> list[dict[str, Any]]:
    """Errors that the connector reported."""
    rows = platform.store.db.execute(
        "SELECT id, created_at, wire FROM activity WHERE workspace_id = ? AND activity_type = 'error' "
        "ORDER BY seq DESC LIMIT ?",
        (workspace_id, LISTED),
    ).fetchall()
    found = []
    for row_id, created, wire in rows:
        row = parse_row(wire) or {}
        reason = row.get("error_detail") or "an error was reported"
        found.append(
            {
                "row_id": row_id,
                "time": to_rfc3339(created),
                "text": _short(row.get("summary")),
                "reason": _short(reason),
            }
        )
    return found
