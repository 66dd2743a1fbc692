"""What is done beside serving: the cursor file follows the journal, and the journal forgets what is over."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable

from molecule_connect.errors import JournalError
from molecule_connect.journal.journal import Journal, WorkspaceJournal
from molecule_connect.journal.quotas import PEER_POOL, PEOPLE_POOL, Caller
from molecule_connect.worker.cursor import CursorFile
from molecule_connect.worker.status import Status

CURSOR_INTERVAL = 1.0
PRUNE_INTERVAL = 3600.0
# The share of the journal's quota from which on it is reported.
WARN_AT = 0.8


class JournalSize:
    """Watches how much of its quota the journal uses, and makes room at the quota.

    Args:
        journal: The whole file; *own* is the workspace's part.
        quota: Bytes.
    """

    def __init__(self, journal: Journal, own: WorkspaceJournal, quota: int, *, status: Status) -> None:
        self._journal = journal
        self._own = own
        self._quota = quota
        self._status = status
        self._told: set[str | None] = set()

    async def check(self) -> None:
        """Look at the size, and report what was deleted to keep it.

        Raises:
            JournalError: The journal can't be used.
        """
        if self._journal.used() >= self._quota:
            self._report_lost(await self._journal.make_room(self._quota))
        used = self._journal.used()
        if used < self._quota * WARN_AT:
            self._status.clear("journal size")
        elif used < self._quota:
            self._warn(f"more than {WARN_AT:.0%} of {_in_mib(self._quota)} are used")
        else:
            self._warn(f"{_in_mib(self._quota)} are used up by messages that wait")
        for caller_id, count in self._own.trimmed().items():
            self._report_trimmed(caller_id, count)

    def _warn(self, reason: str) -> None:
        hint = "discard dead letters with 'molecule messages drop', or start with a larger --journal-quota"
        self._status.report("journal size", reason, hint)

    def _report_lost(self, lost: "Counter[Caller]") -> None:
        for caller, count in lost.items():
            who = f"{_who(caller.caller_id)} in {caller.workspace_id}"
            self._status.notice(
                f"the journal was full: the texts of {count} old messages of {who} were deleted",
                "what became of them is still shown; start with a larger --journal-quota to keep more",
            )

    def _report_trimmed(self, caller_id: str | None, count: int) -> None:
        if caller_id in self._told:
            return
        self._told.add(caller_id)
        pool = PEOPLE_POOL if caller_id is None else PEER_POOL
        self._status.notice(
            f"{count} old dead letters of {_who(caller_id)} lost their text to newer ones:"
            f" {pool.letters:,} letters and {_in_mib(pool.size)} are kept",
            "look at what fails with 'molecule messages list --state dead'",
        )


class Upkeep:
    """Keeps one workspace's files in order."""

    def __init__(
        self,
        journal: WorkspaceJournal,
        cursor: CursorFile,
        *,
        size: JournalSize,
        status: Status,
        now: Callable[[], int],
    ) -> None:
        self._journal = journal
        self._cursor = cursor
        self._size = size
        self._status = status
        self._now = now
        self._one_at_a_time = asyncio.Lock()

    async def export_cursor(self) -> None:
        """Write the cursor file and look at the journal's size after changes, at most once a second."""
        while True:
            await self._size.check()
            await self._status.messages_changed.wait()
            self._status.report_finished()
            self._status.messages_changed.clear()
            await self.save_cursor()
            await asyncio.sleep(CURSOR_INTERVAL)

    async def save_cursor(self) -> None:
        """Write the cursor file now. That it cannot be written is told, and stops nothing."""
        async with self._one_at_a_time:
            try:
                # It ends with an fsync, which the other workspaces of a fleet need not wait for.
                await asyncio.to_thread(self._cursor.save, self._journal.cursor())
                self._status.clear("cursor file")
            except JournalError as exc:
                self._status.report("cursor file", str(exc), exc.hint)

    async def tidy(self) -> None:
        """Prune the journal once an hour until cancelled."""
        while True:
            # What fails here fails in the intake too, which says so.
            with contextlib.suppress(JournalError):
                await self._journal.prune(self._now())
            await asyncio.sleep(PRUNE_INTERVAL)


def _in_mib(size: int) -> str:
    return f"{size >> 20:,} MiB"


def _who(caller_id: str | None) -> str:
    return "people" if caller_id is None else f"peer {caller_id}"
