"""The files of one workspace's chat in the journal. Reads are immediate, changes resolve when they are committed."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from molecule_connect.journal import files as file_rows
from molecule_connect.journal import transitions
from molecule_connect.journal.files import StoredFile
from molecule_connect.journal.journal import Journal
from molecule_connect.journal.models import Conversation, StoredMessage, StoredReply, plain
from molecule_connect.journal.writer import Operation
from molecule_connect.models import FilePart, Part

T = TypeVar("T")


class FileJournal:
    """What is known of the files of *workspace_id*; they lie in *folder*."""

    def __init__(self, journal: Journal, workspace_id: str, folder: Path) -> None:
        self.workspace_id = workspace_id
        self._journal = journal
        self._folder = folder

    # Reading

    def due(self, most: int, caller_id: str | None = None) -> list[StoredFile]:
        """Files of one caller, or of people, that are to be brought here now, in their order."""
        return file_rows.due(self._journal.reader, self.workspace_id, caller_id, self._journal.wall(), most)

    def next_peer(self, after: str) -> str | None:
        """The first peer after that one, by id, who has a file that is to be brought here now."""
        return file_rows.next_peer(self._journal.reader, self.workspace_id, after, self._journal.wall())

    def unacknowledged(self, most: int) -> list[StoredFile]:
        """What is to be acknowledged now."""
        return file_rows.unacknowledged(self._journal.reader, self.workspace_id, self._journal.wall(), most)

    def next_due(self) -> float | None:
        """When something is to be tried again (seconds since 1970)."""
        return file_rows.next_due(self._journal.reader, self.workspace_id, self._journal.wall())

    def is_waiting(self, file_id: str) -> bool:
        """Whether a file is not here yet, and may be."""
        return file_rows.is_waiting(self._journal.reader, self.workspace_id, file_id)

    def awaited(self, row_id: str) -> list[str]:
        """The files of a message that are not here yet, and may be."""
        return file_rows.awaited(self._journal.reader, self.workspace_id, row_id)

    def with_paths(self, row_id: str, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        """The *parts* of a message with the path of each file that is here, and for the others why not."""
        return file_rows.with_paths(self._journal.reader, self.workspace_id, row_id, parts, self._folder)

    def inline_of(self, file: StoredFile) -> list[tuple[StoredFile, str | None]]:
        """The inline files to be unpacked of the message of *file*, each with its ``data:`` URI, while that is kept."""
        return file_rows.inline_of(self._journal.reader, self.workspace_id, file.file_id)

    def gathers_at(self, quiet: float) -> float | None:
        """When the files that nobody named become a message, *quiet* seconds after the newest (since 1970)."""
        newest = file_rows.newest_unnamed(self._journal.reader, self.workspace_id)
        return None if newest is None else newest + quiet

    def names(self) -> set[str]:
        """The names of all files in the folder that the journal knows of."""
        sql = "SELECT path FROM file WHERE workspace_id=? AND state='here'"
        return {row[0] for row in self._journal.reader.execute(sql, (self.workspace_id,))}

    def usage(self, least: int) -> dict[str | None, int]:
        """Bytes of the files that are here, by caller. A smaller file counts as *least* bytes."""
        return file_rows.usage(self._journal.reader, self.workspace_id, least)

    def removable(self, caller_id: str | None, *, before: float, most: int = -1) -> list[StoredFile]:
        """Files of one caller that only finished messages name, and that came before then, the oldest first."""
        return file_rows.removable(self._journal.reader, self.workspace_id, caller_id, before=before, most=most)

    # Changing

    async def stored(self, file: StoredFile, *, path: str, size: int, mime_type: str) -> bool:
        """waiting -> here, on the disk when this returns. False: somebody said otherwise meanwhile."""
        changes = {"state": "here", "path": path, "size": size, "mime_type": mime_type, "reason": None}
        if file.is_inline:
            changes["acked"] = 1
        return await self._move(file, {**changes, "attempts": 0, "not_before": None}, durable=True)

    async def not_fetched(self, file: StoredFile, reason: str, *, not_before: float | None, state: str) -> bool:
        """waiting -> waiting until then, or -> gone or failed for good."""
        changes = {"state": state, "reason": plain(reason), "not_before": not_before}
        return await self._move(file, {**changes, "attempts": file.attempts + 1})

    async def acknowledged(self, file: StoredFile) -> bool:
        """The platform may forget it."""
        return await self._move(file, {"acked": 1, "not_before": None})

    async def not_acknowledged(self, file: StoredFile, *, not_before: float) -> bool:
        """Telling the platform is tried again then."""
        return await self._move(file, {"attempts": file.attempts + 1, "not_before": not_before})

    async def removed(self, file: StoredFile, reason: str) -> bool:
        """here -> gone: this machine keeps it no longer. False: an open message names it."""

        def run(db: Any) -> bool:
            changes = {"state": "gone", "path": None, "reason": reason, "acked": 1}
            return file_rows.is_removable(db, self.workspace_id, file.file_id) and file_rows.move(
                db, self.workspace_id, file, self._wall(), **changes
            )

        return await self._put(run)

    async def unpack_again(self, row_id: str) -> None:
        """The inline files of a message that this machine removed, or had no room for, are tried again at once."""
        if file_rows.may_unpack_again(self._journal.reader, self.workspace_id, row_id):
            await self._put(lambda db: file_rows.unpack_again(db, self.workspace_id, row_id, self._wall()))

    async def gather(self, quiet: float) -> tuple[str, Conversation, str] | None:
        """Make one message of the files that nobody named: its row, its conversation, and their names."""
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

    async def attach_uploads(
        self,
        message: StoredMessage,
        reply: StoredReply,
        *,
        send_print: str | None,
        files: Sequence[FilePart] = (),
        notes: Sequence[int] = (),
        at: int,
    ) -> bool:
        """answered -> answered, with what the platform calls *files* of ours, all in one commit."""

        def run(db: Any) -> bool:
            file_rows.uploaded(db, self.workspace_id, files, notes, at, self._wall())
            return transitions.replace_reply(db, message, reply, self._wall(), send_print=send_print)

        return await self._put(run, durable=True)

    async def _move(self, file: StoredFile, changes: dict[str, Any], *, durable: bool = False) -> bool:
        return await self._put(
            lambda db: file_rows.move(db, self.workspace_id, file, self._wall(), **changes), durable=durable
        )

    def _put(self, run: Operation[T], *, durable: bool = False) -> "asyncio.Future[T]":
        return self._journal.writer.put(run, durable=durable)

    @property
    def _wall(self) -> Callable[[], float]:
        return self._journal.wall
