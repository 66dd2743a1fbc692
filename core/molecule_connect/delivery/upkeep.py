"""What is done beside serving: the cursor file follows the journal, and the journal forgets what is over."""

import asyncio
import contextlib
from collections.abc import Callable

from molecule_connect.delivery.cursor_file import CursorFile
from molecule_connect.delivery.journal.journal import WorkspaceJournal
from molecule_connect.delivery.reports import Reports
from molecule_connect.errors import JournalError

CURSOR_INTERVAL = 1.0
PRUNE_INTERVAL = 3600.0


class Upkeep:
    """Keeps one workspace's files in order.

    Args:
        look: Called whenever the cursor may have moved, at most once a second.

    Attributes:
        changed: Set it when a message was stored or has ended: the cursor may have moved.
    """

    def __init__(
        self,
        journal: WorkspaceJournal,
        cursor: CursorFile,
        *,
        reports: Reports,
        now: Callable[[], int],
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self._journal = journal
        self._cursor = cursor
        self._reports = reports
        self._now = now
        self._look = look
        self._one_at_a_time = asyncio.Lock()
        self.changed = asyncio.Event()

    async def export_cursor(self) -> None:
        """Write the cursor file when something changed, at most once a second, until cancelled."""
        while True:
            await self.changed.wait()
            self._look()
            self.changed.clear()
            await self.save_cursor()
            await asyncio.sleep(CURSOR_INTERVAL)

    async def save_cursor(self) -> None:
        """Write the cursor file now. That it cannot be written is told, and stops nothing."""
        async with self._one_at_a_time:
            try:
                # It ends with an fsync, which the other workspaces of a fleet need not wait for.
                await asyncio.to_thread(self._cursor.save, self._journal.cursor())
                self._reports.trouble("cursor file", "")
            except JournalError as exc:
                self._reports.trouble("cursor file", str(exc), exc.hint)

    async def tidy(self) -> None:
        """Prune the journal once an hour until cancelled."""
        while True:
            # What fails here fails in the intake too, which says so.
            with contextlib.suppress(JournalError):
                await self._journal.prune(self._now())
            await asyncio.sleep(PRUNE_INTERVAL)
