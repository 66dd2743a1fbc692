"""Serve a workspace of a sandbox in a test."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from molecule_connect.app import connect


@contextlib.asynccontextmanager
async def serving(sandbox: Any, backend: str | object, **settings: Any) -> AsyncIterator[Any]:
    """A new workspace of *sandbox*, answered by *backend*; *settings* are those of ``connect``.

    It is stopped after the block. An error that ends it early ends the block too.
    """
    workspace = await sandbox.workspace()
    with tempfile.TemporaryDirectory(prefix="molecule-") as folder:
        given = {"api_url": sandbox.url, "token": workspace.token, "state_dir": Path(folder), "grace": 1.0, **settings}
        async with asyncio.TaskGroup() as group:
            task = group.create_task(connect(workspace.id, backend=backend, transport=sandbox.transport, **given))
            try:
                yield workspace
            finally:
                task.cancel()
