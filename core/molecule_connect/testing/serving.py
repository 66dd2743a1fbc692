"""Serve a workspace of a sandbox in a test."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from molecule_connect import events
from molecule_connect.app import connect
from molecule_connect.config.settings import WorkspaceSettings


@contextlib.asynccontextmanager
async def serving(
    sandbox: Any,
    backend: str | object,
    *,
    state_dir: Path | None = None,
    listener: events.Listener = events.ignore,
    **settings: Any,
) -> AsyncIterator[Any]:
    """Serve a new workspace of *sandbox* with *backend* until the end of the block.

    An error that ends it early ends the block too.

    Args:
        state_dir: None for a temporary folder.
        settings: Other fields of ``WorkspaceSettings``.
    """
    workspace = await sandbox.workspace()
    with tempfile.TemporaryDirectory(prefix="molecule-") as folder:
        given = {"api_url": sandbox.url, "token": workspace.token, "grace": 1.0, **settings}
        served = WorkspaceSettings(workspace_id=workspace.id, backend=backend, **given)
        async with asyncio.TaskGroup() as group:
            task = group.create_task(
                connect(served, state_dir=state_dir or Path(folder), listener=listener, transport=sandbox.transport)
            )
            try:
                yield workspace
            finally:
                task.cancel()
