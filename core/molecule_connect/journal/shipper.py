"""Ships the changes of shared workspaces to the mirror, and tells when they are there."""

import asyncio
import collections
import contextlib
import functools
import shutil
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.errors import JournalError
from molecule_connect.journal import outbox
from molecule_connect.journal.errors import journal_error
from molecule_connect.journal.outbox import Start
from molecule_connect.journal.writer import Writer
from molecule_connect.mirrors import JournalMirror, Lease, MirrorError, Row

# Seconds for which changes that another machine would repeat wait for others, with which they share a transaction.
LAZY = 0.05
# Prefix of the folders of loads, and seconds after which none is used any more.
_SCRATCH, _LONGEST_LOAD = ".load.", 3600.0
_RETRIES = Backoff(first=0.1, cap=2.0)


class Shipper:
    """Copies the changes of the workspaces whose leases this process has.

    Each transaction of the mirror takes everything that changed, so that its copy is always a state that the journal
    had. While the mirror can't be reached, changes stay in the outbox.

    Args:
        reader: A connection of its own, which sees one state of the journal while it is shipped.
        lost: Called with a workspace whose lease turned out to be lost.
        notice: Called with a text and a hint for the operator.

    Attributes:
        session: The session of this process, which has the leases.
        error: Why the last transaction failed; None after one succeeded.
    """

    def __init__(
        self,
        mirror: JournalMirror,
        writer: Writer,
        reader: sqlite3.Connection,
        path: Path,
        *,
        lost: Callable[[str], None],
        notice: Callable[[str, str], None],
    ) -> None:
        self._mirror = mirror
        self._writer = writer
        self._reader = reader
        self._rows = outbox.RowReader(reader)
        self._path = path
        self._lost = lost
        self._notice = notice
        self._leases: dict[str, Lease] = {}
        # The number of the newest change of each workspace that the mirror has. Its outbox may be emptied later.
        self._shipped: dict[str, int] = {}
        self._through = 0
        # Results that wait until the changes up to a number are in the mirror, oldest first.
        self._waiting: collections.deque[tuple[int, asyncio.Future[Any], Any]] = collections.deque()
        self._changed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self.session = ""
        self.error: Exception | None = None

    # Leases

    async def begin(self, lease: Lease, *, has_file: Callable[[str], bool]) -> Start:
        """Make the workspace's part of the journal current, and ship its changes from now on.

        Args:
            has_file: Whether a file that another machine fetched is on this one.

        Raises:
            JournalError: The journal can't be used.
            MirrorError: The copy can't be read.
        """
        name, target = lease.workspace_id, self._mirror.where

        def begin(db: sqlite3.Connection) -> Start:
            start = outbox.find_start(db, lease, target)
            if start in (Start.KEPT, Start.SEEDED):
                outbox.begin(db, lease, target=target, is_complete=start is Start.KEPT)
            return start

        start = await self._writer.put(begin)
        if start is Start.AHEAD and not await self._replace(lease):
            start = Start.LOADED
        if start is Start.LOADED:
            await self._load(lease, has_file)
        self._shipped.pop(name, None)
        self._leases[name] = lease
        self.wake()
        return start

    def end(self, workspace_id: str) -> None:
        """Ship no more changes of the workspace. They stay in the outbox."""
        self._leases.pop(workspace_id, None)

    @property
    def leased(self) -> frozenset[str]:
        """The workspaces whose changes are shipped."""
        return frozenset(self._leases)

    async def flush(self, workspace_id: str) -> None:
        """Wait until the mirror has all changes of the workspace up to now, or its lease is lost.

        Raises:
            JournalError: The journal can't be used.
        """
        # Its changes can be older than what was shipped before the lease was taken. The next transaction has them all.
        await self._writer.put(functools.partial(outbox.renumber_last, workspace_id=workspace_id), durable=True)

    async def is_behind(self, workspace_id: str) -> bool:
        """Whether the mirror doesn't have all changes of the workspace.

        Raises:
            JournalError: The journal can't be used.
        """
        newest = await self._writer.put(functools.partial(outbox.last_number_of, workspace_id=workspace_id))
        return newest > self._shipped.get(workspace_id, 0)

    async def _replace(self, lease: Lease) -> bool:
        """Note everything that makes the mirror's copy equal to this journal. False: the copy is newer."""
        name, target = lease.workspace_id, self._mirror.where
        keys, position = list[tuple[str, str]](), None
        async with contextlib.aclosing(self._mirror.load(name)) as parts:
            async for rows in parts:
                keys += [(row.table, row.key) for row in rows]
                position = next((row for row in rows if row.table == "workspace"), position)

        def replace(db: sqlite3.Connection) -> bool:
            if outbox.is_newer(db, name, position):
                return False
            outbox.note_rows(db, name, keys)
            outbox.begin(db, lease, target=target, is_complete=False)
            return True

        return await self._writer.put(replace)

    async def _load(self, lease: Lease, has_file: Callable[[str], bool]) -> None:
        try:
            await self._load_part(lease, has_file)
        except (sqlite3.Error, OSError) as exc:
            raise journal_error(exc, self._path, "written") from exc

    async def _load_part(self, lease: Lease, has_file: Callable[[str], bool]) -> None:
        self._remove_leftovers()
        with tempfile.TemporaryDirectory(dir=self._path.parent, prefix=_SCRATCH) as scratch:
            loader = outbox.Loader(Path(scratch) / self._path.name, lease.workspace_id)
            try:
                async with contextlib.aclosing(self._mirror.load(lease.workspace_id)) as parts:
                    async for rows in parts:
                        await asyncio.to_thread(loader.add, rows)
                await asyncio.to_thread(loader.finish, self._path, lease, target=self._mirror.where, has_file=has_file)
            finally:
                loader.close()

    def _remove_leftovers(self) -> None:
        """Remove the folders of loads that a kill cut short, unless another process may still use them."""
        for folder in self._path.parent.glob(f"{_SCRATCH}*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.stat().st_mtime > _LONGEST_LOAD:
                    shutil.rmtree(folder)

    # Changes

    def wake(self) -> None:
        """The journal may have changed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changed.set()

    def wake_later(self) -> None:
        """The journal has changed, in a way that may wait a moment for other changes."""
        if self._timer is None and not self._changed.is_set():
            self._timer = asyncio.get_running_loop().call_later(LAZY, self.wake)

    def resolve(self, number: int, outcome: "asyncio.Future[Any]", result: Any) -> None:
        """Set *result* once the mirror has all changes up to *number*."""
        if number <= self._through:
            _set_result(outcome, result)
        else:
            self._waiting.append((number, outcome, result))
            self.wake()

    async def run(self) -> None:
        """Ship changes until cancelled."""
        failures = 0
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._ship()
            except Exception as exc:  # a bug must not keep all results waiting for ever
                failures += 1
                self.error = exc
                if not isinstance(exc, MirrorError | JournalError):
                    context = {"message": "storing changes in the database failed", "exception": exc}
                    asyncio.get_running_loop().call_exception_handler(context)
                self._changed.set()
                await asyncio.sleep(_RETRIES.delay(failures))
            else:
                failures, self.error = 0, None

    def close(self) -> None:
        """Fail the operations that still wait: their changes stay in the outbox."""
        if self._timer is not None:
            self._timer.cancel()
        for _, outcome, _ in self._waiting:
            if not outcome.done():
                outcome.set_exception(JournalError("the journal is closed"))
                outcome.exception()
        self._waiting.clear()

    async def _ship(self) -> None:
        with outbox.snapshot(self._reader):
            through, leases = outbox.last_number(self._reader), dict(self._leases)
            noted = [
                entry
                for entry in outbox.entries(self._reader, leases)
                if entry.number > self._shipped.get(entry.workspace_id, 0)
            ]
            if noted:
                epochs = {entry.workspace_id: leases[entry.workspace_id].epoch for entry in noted}
                commits = await self._mirror.ship(self.session, epochs, self._parts(noted))
        if noted:
            await self._settle({name: leases[name] for name in epochs}, commits, through)
        self._through = max(self._through, through)
        while self._waiting and self._waiting[0][0] <= self._through:
            _, outcome, result = self._waiting.popleft()
            _set_result(outcome, result)
        if self._waiting:
            self.wake()

    async def _parts(self, noted: Sequence[outbox.Entry]) -> AsyncIterator[Mapping[str, Sequence[Row]]]:
        for number, part in enumerate(self._rows.parts(noted)):
            if number:
                await asyncio.sleep(0)
            yield part

    async def _settle(self, leases: Mapping[str, Lease], commits: Mapping[str, int], through: int) -> None:
        behind = {name for name, number in commits.items() if number <= leases[name].commits}
        for name in behind:
            await self._writer.put(functools.partial(outbox.note_all, workspace_id=name))
            self._notice(
                f"{self._mirror.where} has lost changes of {name}, which it confirmed; it gets all messages again",
                "after a failover of the database: use synchronous replication, so that it loses nothing",
            )
        # Of leases that ended meanwhile, the outbox may belong to the next one.
        leases = {name: lease for name, lease in leases.items() if self._leases.get(name) is lease}
        kept = {name: number for name, number in commits.items() if name in leases}
        for name, lease in leases.items():
            if name in kept:
                self._leases[name] = attrs.evolve(lease, commits=kept[name])
                self._shipped[name] = 0 if name in behind else through
            else:
                # No result may be taken for stored before this: its reply would be sent.
                self.end(name)
                self._lost(name)
        # Not awaited: it is repeated by the next transaction if this process is killed before it.
        self._writer.put(lambda db: outbox.shipped(db, kept.keys() - behind, through, commits=kept), patient=True)


def _set_result(outcome: "asyncio.Future[Any]", result: Any) -> None:
    if not outcome.done():
        outcome.set_result(result)
