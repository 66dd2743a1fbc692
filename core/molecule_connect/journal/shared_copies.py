"""The copies that a mirror has of several workspaces, in one journal to be read."""

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path

from molecule_connect.journal import outbox
from molecule_connect.journal.journal import FILE_NAME
from molecule_connect.mirrors import JournalMirror

# Copies that are loaded at the same time. Most are small, so a connection for each takes longest.
_AT_ONCE = 4
_NO_FILE = "it is on the machine that fetched it"


async def load_copies(mirror: JournalMirror, workspace_ids: Iterable[str], folder: Path) -> None:
    """Write the copies of workspaces to a new journal in *folder*, for ``Inspection``.

    Raises:
        MirrorError: A copy can't be read.
        JournalError: The journal can't be written.
    """
    copies = outbox.CopyWriter(folder / FILE_NAME)
    waiting, writing = iter(workspace_ids), asyncio.Lock()

    async def load() -> None:
        for workspace_id in waiting:
            async with contextlib.aclosing(mirror.load(workspace_id)) as parts:
                async for rows in parts:
                    async with writing:
                        await asyncio.to_thread(copies.add, workspace_id, rows)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE):
                group.create_task(load())
        await asyncio.to_thread(_complete, copies)
    finally:
        copies.close()


def _complete(copies: outbox.CopyWriter) -> None:
    # Messages are listed in the order of their arrival, which is that of the workspaces until here.
    copies.db.execute(
        "UPDATE message SET arrival=-o.number FROM (SELECT arrival AS old,"
        " row_number() OVER (ORDER BY time, seq, arrival) AS number FROM message) AS o WHERE o.old=message.arrival"
    )
    copies.db.execute("UPDATE message SET arrival=-arrival")
    copies.db.execute("UPDATE file SET path=NULL, reason=coalesce(reason, ?) WHERE state='here'", (_NO_FILE,))
    copies.finish()
