"""Maintenance of one workspace's files: the cursor file, the size of the journal, pruning."""

import asyncio
import contextlib
from collections import Counter

from molecule_connect.errors import JournalError
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.quotas import PEER_POOL, PEOPLE_POOL, Caller
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.cursor import CursorFile
from molecule_connect.worker.status import Status

CURSOR_INTERVAL = 1.0
PRUNE_INTERVAL = 3600.0
# Report the size of the journal from this share of its quota.
WARN_AT = 0.8


class JournalSize:
    """Keeps the journal within its quota, and reports when it gets full.

    Args:
        journal: The whole file; *own* is the workspace's part.
        quota: Bytes.
    """

    def __init__(self, journal: Journal, own: WorkspaceJournal, quota: int, *, status: Status) -> None:
        self._journal = journal
        self._own = own
        self._quota = quota
        self._status = status
        # Callers whose lost dead letters were reported.
        self._reported: set[str | None] = set()

    async def check(self) -> None:
        """Make room if the journal is full, and report what was deleted.

        Raises:
            JournalError: The journal can't be used.
        """
        if self._journal.used() >= self._quota:
            self._report_deleted(await self._journal.make_room(self._quota))
        used = self._journal.used()
        if used < self._quota * WARN_AT:
            self._status.clear("journal size")
        elif used < self._quota:
            self._warn(f"more than {WARN_AT:.0%} of {_in_mib(self._quota)} are used")
        else:
            self._warn(f"waiting messages use all of {_in_mib(self._quota)}")
        for caller_id, count in self._own.trimmed().items():
            self._report_trimmed(caller_id, count)

    def _warn(self, reason: str) -> None:
        hint = "discard dead letters with 'molecule messages drop', or start with a larger --journal-quota"
        self._status.report("journal size", reason, hint)

    def _report_deleted(self, deleted: "Counter[Caller]") -> None:
        for caller, count in deleted.items():
            who = f"{_name(caller.caller_id)} in {caller.workspace_id}"
            self._status.notice(
                f"the journal was full: the texts of {count} old messages of {who} were deleted",
                "their states are kept; start with a larger --journal-quota to keep more texts",
            )

    def _report_trimmed(self, caller_id: str | None, count: int) -> None:
        if caller_id in self._reported:
            return
        self._reported.add(caller_id)
        pool = PEOPLE_POOL if caller_id is None else PEER_POOL
        self._status.notice(
            f"the texts of {count} old dead letters of {_name(caller_id)} were deleted in favor of newer ones:"
            f" {pool.letters:,} letters and {_in_mib(pool.size)} are kept",
            "see the reasons of the failures with 'molecule messages list --state dead'",
        )


class Maintenance:
    """Keeps the files of one workspace in order."""

    def __init__(
        self, journal: WorkspaceJournal, cursor: CursorFile, size: JournalSize, *, status: Status, clock: Clock
    ) -> None:
        self._journal = journal
        self._cursor = cursor
        self._size = size
        self._status = status
        self._clock = clock
        self._saving = asyncio.Lock()
        # Loop time.
        self._prune_at = float("-inf")

    async def run(self) -> None:
        """Until cancelled: prune the journal once an hour, and follow changes.

        After changes, at most once a second, check the journal's size and write the cursor file.
        """
        loop, changed = asyncio.get_running_loop(), self._status.messages_changed
        while True:
            await self._size.check()
            if loop.time() >= self._prune_at:
                self._prune_at = loop.time() + PRUNE_INTERVAL
                await self._prune()
            if await changed.wait(self._prune_at - loop.time()):
                self._status.report_finished()
                changed.clear()
                await self.save_cursor()
                await asyncio.sleep(CURSOR_INTERVAL)

    async def save_cursor(self) -> None:
        """Write the cursor file; reports a failure."""
        async with self._saving:
            try:
                # Writing ends with an fsync, which must not delay other workspaces of this process.
                await asyncio.to_thread(self._cursor.save, self._journal.cursor())
            except JournalError as exc:
                self._status.report("cursor file", str(exc), exc.hint)
            else:
                self._status.clear("cursor file")

    async def _prune(self) -> None:
        # Reading the feed fails then too, and reports the error.
        with contextlib.suppress(JournalError):
            await self._journal.prune(self._clock.now())


def _in_mib(size: int) -> str:
    return f"{size >> 20:,} MiB"


def _name(caller_id: str | None) -> str:
    return "people" if caller_id is None else f"peer {caller_id}"
