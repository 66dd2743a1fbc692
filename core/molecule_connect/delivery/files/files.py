"""The files of a chat: fetched side by side, kept on this machine, acknowledged, and handed to messages as paths."""

import asyncio
import contextlib
import mimetypes
import re
import time
from collections.abc import Callable
from typing import IO

import attrs

from molecule_connect.backoff import Backoff
from molecule_connect.delivery.files.folder import FileFolder
from molecule_connect.delivery.files.journal import FileJournal
from molecule_connect.delivery.journal.entries import Entry, Lane
from molecule_connect.delivery.journal.file_rows import FileEntry
from molecule_connect.delivery.ports import Files
from molecule_connect.delivery.reports import Reports
from molecule_connect.errors import (
    AuthError,
    JournalError,
    PageTooLargeError,
    PermanentPlatformError,
    PlatformError,
)
from molecule_connect.file_names import inline_bytes
from molecule_connect.models import FilePart

SIDE_BY_SIDE = 4
# A message waits for its files: a minute of fetching, and what goes on around it.
WAIT = 65.0
# One that drips in must give way to others: so many seconds, and what its bytes take at the least speed (per second).
LONGEST_FETCH, LEAST_SPEED = 300.0, 16 << 10
# Files that nobody names for so long are a message of their own.
QUIET = 60.0
TIDY_INTERVAL = 3600.0
# What became of a file is known for so long after it went.
FORGET_AFTER = 7 * 24 * 3600.0
JOURNAL_WAIT = 5.0
SHORTEST_SLEEP, LONGEST_SLEEP = 1.0, 60.0
# The platform keeps an upload for a day.
GIVE_UP = 24 * 3600.0
_PLAIN_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}")


@attrs.frozen(kw_only=True)
class FolderLimits:
    """What the folder for files may come to.

    Attributes:
        quota: Most bytes in it.
        kept_for: Seconds that the files of finished messages stay.
    """

    quota: int = 1 << 30
    kept_for: float = 7 * 24 * 3600.0


class NotTakenError(Exception):
    """A file that this machine will not keep."""


class OtherBytesError(Exception):
    """What came is not the file."""


class ChatFiles:
    """Looks after the files of one workspace's chat.

    Args:
        came: Told of a message that files became: its row, its lane, and their names.
        now: The platform's time in microseconds.
    """

    def __init__(
        self,
        platform: Files,
        journal: FileJournal,
        folder: FileFolder,
        *,
        reports: Reports,
        came: Callable[[str, Lane, str], None],
        now: Callable[[], int],
        wall: Callable[[], float] = time.time,
        backoff: Backoff | None = None,
        room: FolderLimits | None = None,
    ) -> None:
        self._platform = platform
        self._journal = journal
        self._folder = folder
        self._reports = reports
        self._came = came
        self._now = now
        self._wall = wall
        self._backoff = backoff or Backoff(first=1.0, cap=300.0)
        self._room = room or FolderLimits()
        # What is being seen to, with the bytes that it may need.
        self._active: dict[str, int] = {}
        self._woken = asyncio.Event()
        self._changed = asyncio.Event()
        self._may_gather = False
        self._tidied = float("-inf")

    def wake(self) -> None:
        """A file may have been announced or named."""
        self._woken.set()

    def read_once(self) -> None:
        """The feed was read to its end: a file that nobody named by now may have no message."""
        self._may_gather = True
        self.wake()

    def pending(self) -> bool:
        """Whether files wait that may yet become a message."""
        return self._journal.gathers_at(QUIET) is not None

    async def resolve(self, entry: Entry) -> Entry:
        """*entry* with the paths of its files, once they are here: it waits for at most 65 s."""
        if not any(isinstance(part, FilePart) for part in entry.parts):
            return entry
        if self._journal.waits_for(entry.parts):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT):
                    while self._journal.waits_for(entry.parts):
                        await self._changed.wait()
        return attrs.evolve(entry, parts=self._journal.with_paths(entry.parts))

    async def run(self) -> None:
        """Fetch and acknowledge until cancelled."""
        self._folder.sweep(self._journal.names())
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken.clear()
                self._begin_due(group)
                with contextlib.suppress(JournalError):
                    await self._gather()
                    await self._tidy()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds_to_wait()):
                        await self._woken.wait()

    def _begin_due(self, group: asyncio.TaskGroup) -> None:
        for file in self._journal.due(SIDE_BY_SIDE + len(self._active)):
            if len(self._active) >= SIDE_BY_SIDE:
                return
            if file.file_id not in self._active:
                self._active[file.file_id] = 0
                group.create_task(self._see_to(file), name=f"file {file.file_id}")

    def _seconds_to_wait(self) -> float:
        times = [self._journal.next_due(), self._journal.gathers_at(QUIET) if self._may_gather else None]
        waits = [when - self._wall() for when in times if when is not None]
        # A clock that jumps must not stop the files for longer than this.
        return max(min([*waits, LONGEST_SLEEP]), SHORTEST_SLEEP)

    async def _see_to(self, file: FileEntry) -> None:
        try:
            if file.state == "here":
                await self._acknowledge(file)
            else:
                await (self._unpack(file) if file.is_inline else self._fetch(file))
        except JournalError:
            # The intake says so. What was fetched is fetched again.
            await asyncio.sleep(JOURNAL_WAIT)
        finally:
            del self._active[file.file_id]
            self._tell_changed()
            self.wake()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # Fetching

    async def _fetch(self, file: FileEntry) -> None:
        try:
            cap = (await self._platform.upload_limits()).per_file
            await self._make_room(file, cap)
            with self._folder.new(file.name) as (name, sink):
                async with asyncio.timeout(_longest(file, cap)):
                    kind = await self._platform.fetch_file(file.file_id, sink, cap=cap)
                size = await asyncio.to_thread(self._folder.settle, sink)
                # A page of something on the way, say; to acknowledge that would take the file from the platform.
                if file.size not in (None, size):
                    raise OtherBytesError(f"{size} bytes came, and it has {file.size}")
            await self._store(file, name, size, _type(kind, file))
        except NotTakenError as exc:
            await self._give_up(file, str(exc), state="failed")
        except OtherBytesError as exc:
            await self._later(file, str(exc))
        except TimeoutError:
            await self._later(file, f"it was still coming after {_longest(file, cap):.0f} s")
        except PageTooLargeError:
            await self._give_up(file, f"it has more than {cap >> 20} MiB", state="failed")
        except AuthError as exc:
            await self._later(file, str(exc))
        except PermanentPlatformError as exc:
            gone = "the platform does not have it any more"
            await self._give_up(
                file,
                gone if exc.status == 404 else str(exc),
                state="gone" if exc.status == 404 else "failed",
            )
        except PlatformError as exc:
            await self._later(file, str(exc), at_least=getattr(exc, "retry_after", None))
        except OSError as exc:
            await self._no_place(file, exc)
        else:
            self._reports.trouble("files", "")
            self._tell_changed()

    async def _unpack(self, file: FileEntry) -> None:
        """Put a file that came in its message into the folder."""
        uri = self._journal.inline(file.file_id)
        try:
            if uri is None:
                raise NotTakenError("its message is not kept any more")
            await self._make_room(file, self._room.quota)
            with self._folder.new(file.name) as (name, sink):
                size = await asyncio.to_thread(_unpack, uri, sink, self._folder)
            await self._store(file, name, size, _type("", file))
        except NotTakenError as exc:
            await self._give_up(file, str(exc), state="failed")
        except ValueError as exc:
            await self._give_up(file, f"its bytes cannot be read: {exc}", state="failed")
        except OSError as exc:
            await self._no_place(file, exc)
        else:
            self._reports.trouble("files", "")

    async def _no_place(self, file: FileEntry, exc: OSError) -> None:
        reason = f"this machine could not store it: {exc.strerror or exc}"
        self._reports.trouble("files", reason, f"look at the folder {self._folder.path} and its disk")
        await self._later(file, reason)

    async def _store(self, file: FileEntry, name: str, size: int, kind: str) -> None:
        # When we are cut meanwhile it may be in the journal: the next start looks.
        try:
            stored = await self._journal.stored(file, path=name, size=size, mime_type=kind)
        except JournalError:
            self._folder.remove(name)
            raise
        if not stored:
            self._folder.remove(name)

    async def _later(self, file: FileEntry, reason: str, *, at_least: float | None = None) -> None:
        if self._now() - file.time > GIVE_UP * 1_000_000:
            await self._give_up(file, reason, state="failed")
            return
        not_before = self._wall() + self._backoff.delay(file.attempts + 1, at_least=at_least)
        await self._journal.not_fetched(file, reason, not_before=not_before, state="waiting")

    async def _give_up(self, file: FileEntry, reason: str, *, state: str) -> None:
        if await self._journal.not_fetched(file, reason, not_before=None, state=state):
            self._reports.notice(f"the file {(file.name or file.file_id)[:100]} is not here: {reason}")

    async def _acknowledge(self, file: FileEntry) -> None:
        try:
            await self._platform.acknowledge_file(file.file_id)
        except (AuthError, PlatformError) as exc:
            is_final = isinstance(exc, PermanentPlatformError) and not isinstance(exc, AuthError)
            if not is_final and self._now() - file.time < GIVE_UP * 1_000_000:
                not_before = self._wall() + self._backoff.delay(file.attempts + 1)
                await self._journal.not_acknowledged(file, not_before=not_before)
                return
        await self._journal.acknowledged(file)

    # Messages of files alone

    async def _gather(self) -> None:
        at = self._journal.gathers_at(QUIET) if self._may_gather else None
        if at is None or self._wall() < at <= self._wall() + QUIET:
            return
        gathered = await self._journal.gather(QUIET)
        if gathered is not None:
            self._came(*gathered)

    # Keeping the folder small

    async def _make_room(self, file: FileEntry, cap: int) -> None:
        if file.size is not None and file.size > cap:
            raise NotTakenError(f"it has {file.size >> 20} MiB, more than the {cap >> 20} MiB that are taken")
        self._active[file.file_id] = file.size or 0
        over = self._journal.usage() + sum(self._active.values()) - self._room.quota
        if over <= 0:
            return
        removed = 0
        for old in self._journal.removable(before=self._wall()):
            if over <= 0:
                break
            if await self._remove(old, "it was removed from this machine to make room"):
                over -= old.size or 0
                removed += 1
        quota = f"{self._room.quota >> 20} MiB"
        if removed:
            self._reports.notice(f"{_removed(removed)}: the folder holds {quota}")
        if over > 0:
            raise OSError(f"the folder for files is full: it holds {quota}, all of messages that are not finished")

    async def _tidy(self) -> None:
        if asyncio.get_running_loop().time() - self._tidied < TIDY_INTERVAL:
            return
        self._tidied = asyncio.get_running_loop().time()
        days = f"{self._room.kept_for / 86400:g} days"
        old = self._journal.removable(before=self._wall() - self._room.kept_for)
        count = sum([await self._remove(one, f"it was removed from this machine after {days}") for one in old])
        if count:
            self._reports.notice(f"{_removed(count)}: files are kept for {days}")
        await self._journal.forget(before=self._wall() - FORGET_AFTER, now=self._now())

    async def _remove(self, file: FileEntry, reason: str) -> bool:
        if not await self._journal.removed(file, reason):
            return False
        await asyncio.to_thread(self._folder.remove, file.path or "")
        return True


def _unpack(uri: str, sink: IO[bytes], folder: FileFolder) -> int:
    sink.write(inline_bytes(uri))
    return folder.settle(sink)


def _removed(count: int) -> str:
    return f"{count:,} file{' of finished messages was' if count == 1 else 's of finished messages were'} removed"


def _longest(file: FileEntry, cap: int) -> float:
    """Seconds that fetching *file* may take."""
    return LONGEST_FETCH + (cap if file.size is None else file.size) / LEAST_SPEED


def _type(told: str, file: FileEntry) -> str:
    """What the platform says, else what was announced, else what the name says."""
    guessed = mimetypes.guess_type(file.name)[0] or ""
    kinds = (kind.partition(";")[0].strip() for kind in (told, file.mime_type, guessed))
    return next((kind for kind in kinds if _PLAIN_TYPE.fullmatch(kind)), "application/octet-stream")
