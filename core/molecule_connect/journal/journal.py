"""The journal of all messages: one SQLite file with one writer."""

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from molecule_connect.errors import StateLostError
from molecule_connect.executors import PatientExecutor
from molecule_connect.files import identity, is_at, make_folder
from molecule_connect.journal import integrity, outbox, quotas
from molecule_connect.journal.schema import copy_file, open_file, open_reader
from molecule_connect.journal.shipper import Shipper
from molecule_connect.journal.workspace import WorkspaceJournal
from molecule_connect.journal.writer import Writer
from molecule_connect.mirrors import JournalMirror

FILE_NAME = "journal.sqlite3"
_log = logging.getLogger(__name__)


class Journal:
    """The file with the messages of all workspaces. ``of`` returns one workspace's part."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        executor: Executor,
        reader: sqlite3.Connection,
        wall: Callable[[], float],
    ) -> None:
        self.path = path
        self.writer = Writer(connection, path, executor, guard=self._check_place)
        self.reader = reader
        self.wall = wall
        self._connection, self._executor = connection, executor
        self._identity = identity(path.lstat())
        self._watchers: dict[object, tuple[Callable[[], None], Callable[[StateLostError], None]]] = {}
        self._lost: StateLostError | None = None
        self._writing_back: asyncio.Future[None] | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        folder: Path,
        *,
        wall: Callable[[], float],
        opener: Callable[[Path], sqlite3.Connection] = open_file,
        notice: Callable[[str, str], None] = lambda text, hint: None,
    ) -> "AsyncIterator[Journal]":
        """Open the journal in *folder*, which must exist. Closing commits waiting operations.

        After an unclean stop, or beside another process, the file is checked for damage first.

        Args:
            wall: Returns seconds since 1970.
            opener: Opens the file for writing.
            notice: Called with a text and a hint if changes were lost, so that messages may be answered again.

        Raises:
            JournalError: The file can't be used, or is damaged.
            ConfigError: No thread can be started.
        """
        path = folder / FILE_NAME
        thread = PatientExecutor(1, thread_name_prefix="journal")
        committed = integrity.committed_frames(integrity.wal_of(path))
        connection = opener(path)
        try:
            if committed:
                await asyncio.get_running_loop().run_in_executor(thread, integrity.check, path)
                if lost := integrity.lost_frames(connection, path, committed):
                    notice(*_lost_words(path, lost))
            reader = open_reader(path)
        except BaseException:
            connection.close()
            raise
        journal = cls(path, connection, thread, reader, wall)
        journal.writer.start()
        try:
            yield journal
        finally:
            try:
                await journal.writer.stop()
                if journal._writing_back is not None:
                    await journal._writing_back
            finally:
                reader.close()
                connection.close()
                thread.shutdown(wait=False)

    def of(self, workspace_id: str, *, inbox: bool = False, quota: int = quotas.UNLIMITED) -> WorkspaceJournal:
        """The part that belongs to one workspace.

        Args:
            inbox: Messages belong to readers, and no backend answers.
            quota: Bytes that the whole file may take.
        """
        return WorkspaceJournal(self.writer, self.reader, self.wall, workspace_id, inbox=inbox, quota=quota)

    @asynccontextmanager
    async def sharing(
        self, mirror: JournalMirror, *, lost: Callable[[str], None], notice: Callable[[str, str], None]
    ) -> AsyncIterator[Shipper]:
        """Ship changes of shared workspaces to *mirror* inside the block. See ``Shipper`` for *lost* and *notice*."""
        await self.writer.put(outbox.install_triggers)
        reader = open_reader(self.path)
        shipper = Shipper(mirror, self.writer, reader, self.path, lost=lost, notice=notice)
        task = asyncio.get_running_loop().create_task(shipper.run(), name="shipper")
        self.writer.shipper = shipper
        try:
            yield shipper
        finally:
            self.writer.shipper = None
            task.cancel()
            try:
                await asyncio.gather(task, return_exceptions=True)
            finally:
                shipper.close()
                reader.close()

    @property
    def is_shared(self) -> bool:
        """Whether changes are shipped to a mirror."""
        return self.writer.shipper is not None

    def spend(self) -> dict[str, dict[str | None, float]]:
        """US dollars spent today (UTC) in each workspace, for each peer, and under None for people."""
        names = [row[0] for row in self.reader.execute("SELECT DISTINCT workspace_id FROM spend").fetchall()]
        return {name: self.of(name).spend_by_caller() for name in names}

    def used(self) -> int:
        """The used bytes of the file."""
        return quotas.used(self.reader)

    async def make_room(self, quota: int) -> "Counter[quotas.Caller]":
        """Delete texts of finished messages of all workspaces. Returns the number of deleted texts of each caller."""
        return await self.writer.put(lambda db: quotas.make_room(db, quota), large=True)

    @contextmanager
    def watched(
        self, lost: Callable[[StateLostError], None], *, check: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Call *lost* when the journal is removed or replaced, or when *check* raises StateLostError.

        Both are checked by each ``data_version``, the journal also before each commit.
        """
        key = object()
        self._watchers[key] = check, lost
        try:
            yield
        finally:
            del self._watchers[key]

    async def data_version(self) -> int:
        """A number that changes when another process writes to the file.

        Raises:
            StateLostError: The file was removed or replaced.
        """
        version = await self.writer.put(lambda db: int(db.execute("PRAGMA data_version").fetchone()[0]))
        for check, lost in list(self._watchers.values()):
            try:
                check()
            except StateLostError as exc:
                lost(exc)
        return version

    def _check_place(self) -> None:
        """Raises StateLostError when the journal was removed or replaced: no other process sees later commits."""
        if self._lost is None and not is_at(self.path, self._identity):
            self._lost = StateLostError(
                f"the journal {self.path} was removed or replaced while this process served with it"
            )
            for _, lost in list(self._watchers.values()):
                lost(self._lost)
            self._writing_back = asyncio.get_running_loop().run_in_executor(
                self._executor, _write_back, self._connection, self.path
            )
        if self._lost is not None:
            raise self._lost


def _write_back(connection: sqlite3.Connection, path: Path) -> None:
    """Restore a removed journal, unless there is another one, so that the next start doesn't answer again."""
    try:
        make_folder(path.parent)
        copy_file(connection, path)
    except FileExistsError:
        _log.warning("another journal exists at %s by now; it was not changed", path)
    except (OSError, sqlite3.Error) as exc:
        _log.error("the journal could not be restored at %s: %s", path, exc)
    else:
        _log.warning("the journal was restored at %s", path)


def _lost_words(path: Path, frames: int) -> tuple[str, str]:
    return (
        f"the write-ahead log of {path} is damaged: its last {frames} pages of changes were lost",
        "messages that were answered shortly before the last stop may be answered again; check the disk",
    )
