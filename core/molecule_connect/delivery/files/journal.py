"""The files of one workspace's chat in the journal. Reads are immediate, changes resolve when they are committed."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from molecule_connect.delivery.journal import file_rows, transitions
from molecule_connect.delivery.journal.committer import Operation
from molecule_connect.delivery.journal.entries import Answer, Entry, Lane, plain
from molecule_connect.delivery.journal.file_rows import FileEntry
from molecule_connect.delivery.journal.journal import Journal
from molecule_connect.file_names import file_key
from molecule_connect.models import FilePart, Part

T = TypeVar("T")


class FileJournal:
    """What is known of the files of *workspace_id*; they lie in *folder*."""

    def __init__(self, journal: Journal, workspace_id: str, folder: Path) -> None:
        self.workspace_id = workspace_id
        self._journal = journal
        self._folder = folder

    # Reading

    def due(self, most: int) -> list[FileEntry]:
        """What is to be fetched or acknowledged now."""
        return file_rows.due(self._journal.reader, self.workspace_id, self._journal.wall(), most)

    def next_due(self) -> float | None:
        """When something is to be tried again (seconds since 1970)."""
        return file_rows.next_due(self._journal.reader, self.workspace_id, self._journal.wall())

    def waits_for(self, parts: Collection[Part]) -> bool:
        """Whether *parts* name a file that is not here yet, and may come."""
        ids = (file_key(part.uri, part.name) for part in parts if isinstance(part, FilePart))
        files = (file_rows.of(self._journal.reader, self.workspace_id, one) for one in ids if one)
        return any(file is not None and file.state == "waiting" for file in files)

    def with_paths(self, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """*parts* with the path of each file that is here, and for the others why not."""
        return file_rows.with_paths(self._journal.reader, self.workspace_id, parts, self._folder)

    def inline(self, file_id: str) -> str | None:
        """The ``data:`` URI in which a message brought that file, while one that did is kept."""
        return file_rows.inline(self._journal.reader, self.workspace_id, file_id)

    def gathers_at(self, quiet: float) -> float | None:
        """When the files that nobody named become a message, *quiet* seconds after the newest (since 1970)."""
        files = file_rows.unnamed(self._journal.reader, self.workspace_id)
        return max(file.arrived for file in files) + quiet if files else None

    def names(self) -> set[str]:
        """The names of all files in the folder that the journal knows of."""
        sql = "SELECT path FROM file WHERE workspace_id=? AND state='here'"
        return {row[0] for row in self._journal.reader.execute(sql, (self.workspace_id,))}

    def usage(self) -> int:
        """Bytes of the files that are here."""
        return file_rows.usage(self._journal.reader, self.workspace_id)

    def removable(self, *, before: float) -> list[FileEntry]:
        """Files that only finished messages name, and that came before then, the oldest first."""
        return file_rows.removable(self._journal.reader, self.workspace_id, before=before)

    # Changing

    async def stored(self, file: FileEntry, *, path: str, size: int, mime_type: str) -> bool:
        """waiting -> here, on the disk when this returns. False: somebody said otherwise meanwhile."""
        changes = {"state": "here", "path": path, "size": size, "mime_type": mime_type, "reason": None}
        if file.is_inline:
            changes["acked"] = 1
        return await self._move(file, {**changes, "attempts": 0, "not_before": None}, durable=True)

    async def not_fetched(self, file: FileEntry, reason: str, *, not_before: float | None, state: str) -> bool:
        """waiting -> waiting until then, or -> gone or failed for good."""
        changes = {"state": state, "reason": plain(reason), "not_before": not_before}
        return await self._move(file, {**changes, "attempts": file.attempts + 1})

    async def acknowledged(self, file: FileEntry) -> bool:
        """The platform may forget it."""
        return await self._move(file, {"acked": 1, "not_before": None})

    async def not_acknowledged(self, file: FileEntry, *, not_before: float) -> bool:
        """Telling the platform is tried again then."""
        return await self._move(file, {"attempts": file.attempts + 1, "not_before": not_before})

    async def removed(self, file: FileEntry, reason: str) -> bool:
        """here -> gone: this machine keeps it no longer. False: an open message names it."""

        def run(db: Any) -> bool:
            still = {one.file_id for one in file_rows.removable(db, self.workspace_id, before=file.arrived + 1)}
            changes = {"state": "gone", "path": None, "reason": reason, "acked": 1}
            return file.file_id in still and file_rows.move(db, self.workspace_id, file, self._wall(), **changes)

        return await self._put(run)

    async def gather(self, quiet: float) -> tuple[str, Lane, str] | None:
        """Make one message of the files that nobody named: its row, its lane, and their names."""
        return await self._put(lambda db: file_rows.gather(db, self.workspace_id, self._wall(), quiet))

    async def forget(self, *, before: float, now: int) -> None:
        """Drop what nothing needs any more."""
        await self._put(lambda db: file_rows.forget(db, self.workspace_id, before=before, now=now))

    async def note(self, files: Sequence[tuple[str, int]], *, at: int) -> list[int]:
        """Write down, before it happens, that we upload files of these names and sizes. Returns the notes' numbers."""
        return await self._put(
            lambda db: [file_rows.note(db, self.workspace_id, name, size, at) for name, size in files],
            durable=True,
        )

    async def uploaded(self, files: Sequence[FilePart], notes: Sequence[int], *, at: int) -> None:
        """The platform took files of ours."""
        await self._put(
            lambda db: file_rows.uploaded(db, self.workspace_id, files, notes, at, self._wall()), durable=True
        )

    async def attached(
        self,
        entry: Entry,
        answer: Answer,
        *,
        send_print: str | None,
        files: Sequence[FilePart] = (),
        notes: Sequence[int] = (),
        at: int,
    ) -> bool:
        """answered -> answered, with what the platform calls *files* of ours, all in one commit."""

        def run(db: Any) -> bool:
            file_rows.uploaded(db, self.workspace_id, files, notes, at, self._wall())
            return transitions.shortened(db, entry, answer, self._wall(), send_print=send_print)

        return await self._put(run, durable=True)

    async def _move(self, file: FileEntry, changes: dict[str, Any], *, durable: bool = False) -> bool:
        return await self._put(
            lambda db: file_rows.move(db, self.workspace_id, file, self._wall(), **changes), durable=durable
        )

    def _put(self, run: Operation[T], *, durable: bool = False) -> "asyncio.Future[T]":
        return self._journal.committer.put(run, durable=durable)

    @property
    def _wall(self) -> Callable[[], float]:
        return self._journal.wall
