"""Downloads the files of a chat, acknowledges them, and provides messages with their paths."""

import asyncio
import contextlib
import re
import traceback
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import PurePath
from typing import IO, Protocol

import attrs

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.errors import (
    AuthError,
    JournalError,
    PageTooLargeError,
    PermanentPlatformError,
    PlatformError,
)
from molecule_connect.files import inline_bytes, type_by_name
from molecule_connect.flag import Flag
from molecule_connect.journal.files import FILES_TIMEOUT, FileJournal, StoredFile
from molecule_connect.journal.incoming_files import MOST_INLINE
from molecule_connect.journal.models import StoredMessage
from molecule_connect.models import FilePart
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.file_quota import FolderLimits, FolderQuota, NoRoomError, NotTakenError
from molecule_connect.worker.ports import Files
from molecule_connect.worker.status import Status

# Concurrent downloads and acknowledgements of people's files, and how many of them may be acknowledgements.
CONCURRENT, CONCURRENT_ACKNOWLEDGEMENTS = 4, 2
# Concurrent peers whose inline files are unpacked, beside the above.
CONCURRENT_UNPACKING = 2
# Seconds until a peer whose files had no room has its next turn, unless one of its messages is about to run.
NO_ROOM_DELAY = 10.0
# Timeout of a download: this many seconds, and the time that its bytes take at the minimum speed (per second).
DOWNLOAD_TIMEOUT, MIN_SPEED = 300.0, 16 << 10
# Files that no message names within this time become a message, in seconds.
UNNAMED_AFTER = 60.0
JOURNAL_DELAY = 5.0
RETRIES = Backoff(first=1.0, cap=300.0)
MIN_SLEEP, MAX_SLEEP = 1.0, 60.0
# The platform keeps an upload for a day.
GIVE_UP_AFTER = 24 * 3600 * SECOND
_PLAIN_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}")


class SizeMismatchError(Exception):
    """The downloaded bytes aren't the file."""


@attrs.define(eq=False)
class _Wait:
    """A message that waits for files. ``done`` is set when none is missing any more."""

    missing: set[str]
    done: Flag = attrs.field(factory=Flag)


class Wakeable(Protocol):
    """Is notified of new messages."""

    def wake_all(self) -> None:
        """Any conversation may have a message that is due."""
        ...


class ChatFiles:
    """Downloads and acknowledges the files of one workspace's chat.

    Args:
        limits: Of the folder.
    """

    def __init__(
        self,
        platform: Files,
        journal: FileJournal,
        folder: FileFolder,
        status: Status,
        clock: Clock,
        limits: FolderLimits,
    ) -> None:
        self._platform = platform
        self._journal = journal
        self._folder = folder
        self._status = status
        self._clock = clock
        self._quota = FolderQuota(journal, folder, limits, status=status, clock=clock)
        # Files in progress, and the number of tasks of each caller.
        self._active: dict[str, StoredFile] = {}
        self._busy: Counter[str | None] = Counter()
        # The peer that had its turn last, and the time (loop time) of the next turn of other peers.
        self._last_peer = ""
        self._blocked: dict[str, float] = {}
        self._waits: dict[str, set[_Wait]] = {}
        self._wakeup = Flag()
        self._may_gather = False

    def wake(self) -> None:
        """A file may have been announced or named."""
        self._wakeup.set()

    def read_once(self) -> None:
        """The feed was read to its end: files that no message has named so far may belong to none."""
        self._may_gather = True
        self.wake()

    def pending(self) -> bool:
        """Whether there are files that may become a message."""
        return self._journal.gathers_at(UNNAMED_AFTER) is not None

    async def resolve(self, message: StoredMessage) -> StoredMessage:
        """*message* with the paths of its files, after waiting for their download for at most ``FILES_TIMEOUT``."""
        if not any(isinstance(part, FilePart) for part in message.parts):
            return message
        with contextlib.suppress(JournalError):  # other writes report the error
            await self._journal.unpack_again(message.row_id)
        self._blocked.pop(message.caller_id or "", None)
        if missing := self._journal.awaited(message.row_id):
            self.wake()
            await self._wait_for(missing)
        return attrs.evolve(message, parts=self._journal.with_paths(message.row_id, message.parts))

    async def _wait_for(self, file_ids: Collection[str]) -> None:
        wait = _Wait(set(file_ids))
        for file_id in file_ids:
            self._waits.setdefault(file_id, set()).add(wait)
        try:
            await wait.done.wait(FILES_TIMEOUT)
        finally:
            for file_id in wait.missing:
                self._waits[file_id].discard(wait)
                if not self._waits[file_id]:
                    del self._waits[file_id]

    def _changed(self, file: StoredFile) -> None:
        """Notify the messages that wait for *file*, unless it is still missing."""
        if file.file_id in self._waits and not self._journal.is_waiting(file.file_id):
            for wait in self._waits.pop(file.file_id):
                wait.missing.discard(file.file_id)
                if not wait.missing:
                    wait.done.set()

    async def run(self, dispatcher: Wakeable) -> None:
        """Download and acknowledge files until cancelled. Files that no message names become a message."""
        self._folder.sweep(self._journal.names())
        async with asyncio.TaskGroup() as group:
            while True:
                self._wakeup.clear()
                self._start_due(group)
                with contextlib.suppress(JournalError):
                    await self._gather(dispatcher)
                    await self._quota.tidy()
                await self._wakeup.wait(self._seconds_to_wait())

    def _start_due(self, group: asyncio.TaskGroup) -> None:
        """Start tasks up to the limits of concurrency. Peers take turns."""
        for file in self._journal.due(CONCURRENT + len(self._active)):
            if self._busy[None] < CONCURRENT and file.file_id not in self._active:
                self._start(group, file)
        for file in self._journal.unacknowledged(CONCURRENT + len(self._active)):
            acknowledging = sum(active.state == "here" for active in self._active.values())
            is_free = self._busy[None] < CONCURRENT and acknowledging < CONCURRENT_ACKNOWLEDGEMENTS
            if is_free and file.file_id not in self._active:
                self._start(group, file)
        while self._busy.total() - self._busy[None] < CONCURRENT_UNPACKING:
            peer = self._next_peer()
            if peer is None:
                return
            self._start(group, self._journal.due(1, peer)[0])

    def _next_peer(self) -> str | None:
        """The peer whose turn it is: one with files to unpack, and no running task."""
        now = asyncio.get_running_loop().time()
        self._blocked = {peer: until for peer, until in self._blocked.items() if until > now}
        for start in (self._last_peer, ""):
            peer = self._journal.next_peer(start)
            while peer is not None and (self._busy[peer] or peer in self._blocked):
                peer = self._journal.next_peer(peer)
            if peer is not None:
                self._last_peer = peer
                return peer
        return None

    def _start(self, group: asyncio.TaskGroup, file: StoredFile) -> None:
        # All inline files of a message are processed at once: the message is read for them.
        unpacked = self._journal.inline_of(file) if file.is_inline and file.state == "waiting" else []
        files = [inline for inline, _ in unpacked] or [file]
        self._active |= {file.file_id: file for file in files}
        self._busy[file.caller_id] += 1
        uris = {inline.file_id: uri for inline, uri in unpacked}
        group.create_task(self._process_all(files, uris), name=f"file {file.file_id}")

    async def _process_all(self, files: Sequence[StoredFile], uris: dict[str, str | None]) -> None:
        try:
            for file in files:
                await self._process(file, uris.pop(file.file_id, None))
        except JournalError:
            # Other writes report the error. The file is downloaded again.
            await asyncio.sleep(JOURNAL_DELAY)
        finally:
            self._busy -= Counter([files[0].caller_id])
            for file in files:
                del self._active[file.file_id]
            self.wake()

    def _seconds_to_wait(self) -> float:
        times = [self._journal.next_due(), self._journal.gathers_at(UNNAMED_AFTER) if self._may_gather else None]
        waits = [when - self._clock.wall() for when in times if when is not None]
        now = asyncio.get_running_loop().time()
        waits += [until - now for until in self._blocked.values()]
        # This machine's clock can be set while it waits.
        return max(min([*waits, MAX_SLEEP]), MIN_SLEEP)

    async def _process(self, file: StoredFile, uri: str | None) -> None:
        try:
            if file.state == "here":
                await self._acknowledge(file)
            else:
                await (self._unpack(file, uri) if file.is_inline else self._download(file))
        except JournalError:
            raise
        except Exception as exc:  # a bug must not stop the other files
            await self._fail(file, exc)
        finally:
            self._quota.release(file)
            self._changed(file)

    async def _fail(self, file: StoredFile, exc: Exception) -> None:
        reason = f"this is a bug in molecule-connect, please report it: {_error_text(exc)}"
        if file.state == "here":
            # The platform deletes it after a day.
            await self._journal.acknowledged(file)
            self._status.notice(f"a file could not be acknowledged: {reason}")
        else:
            await self._give_up(file, reason, state="failed")

    # Downloading

    async def _download(self, file: StoredFile) -> None:
        try:
            cap = (await self._platform.upload_limits()).per_file
            await self._quota.make(file, largest=cap)
            with self._folder.new(file.name) as (name, sink):
                async with asyncio.timeout(_timeout(file, cap)):
                    kind = await self._platform.fetch_file(file.file_id, sink, cap=cap)
                size = await asyncio.to_thread(self._folder.settle, sink)
                # A proxy may have sent a page of its own. Acknowledging it would delete the file.
                if file.size not in (None, size):
                    raise SizeMismatchError(f"{size} bytes were received instead of {file.size}")
            await self._store(file, name, size, _type(kind, file))
        except NotTakenError as exc:
            await self._give_up(file, str(exc), state="failed")
        except (SizeMismatchError, AuthError) as exc:
            await self._retry_later(file, str(exc))
        except TimeoutError:
            await self._retry_later(file, f"the download was not complete after {_timeout(file, cap):.0f} s")
        except PageTooLargeError:
            await self._give_up(file, f"it is larger than {cap >> 20} MiB", state="failed")
        except PermanentPlatformError as exc:
            gone = "the platform no longer has it"
            await self._give_up(
                file,
                gone if exc.status == 404 else str(exc),
                state="gone" if exc.status == 404 else "failed",
            )
        except PlatformError as exc:
            await self._retry_later(file, str(exc), at_least=getattr(exc, "retry_after", None))
        except (OSError, NoRoomError) as exc:
            await self._could_not_store(file, exc)
        else:
            self._status.clear("files")

    async def _unpack(self, file: StoredFile, uri: str | None) -> None:
        """Store a file whose bytes are in its message."""
        try:
            if uri is None:
                raise NotTakenError("its message is no longer stored")
            await self._quota.make(file, largest=MOST_INLINE)
            with self._folder.new(file.name) as (name, sink):
                size = await asyncio.to_thread(_write_inline, uri, sink, self._folder)
            await self._store(file, name, size, _type("", file))
        except NotTakenError as exc:
            await self._give_up(file, str(exc), state="failed")
        except ValueError as exc:
            await self._give_up(file, f"its bytes cannot be read: {exc}", state="failed")
        except (OSError, NoRoomError) as exc:
            await self._could_not_store(file, exc)
        else:
            self._status.clear("files")

    async def _could_not_store(self, file: StoredFile, exc: OSError | NoRoomError) -> None:
        reason = f"this machine could not store it: {getattr(exc, 'strerror', None) or exc}"
        if isinstance(exc, NoRoomError) and file.caller_id is not None:
            # This peer, or peers together, have used up their quota.
            self._quota.notice(file.caller_id, f"a file is not available: {exc}")
            self._blocked[file.caller_id] = asyncio.get_running_loop().time() + NO_ROOM_DELAY
        else:
            self._status.report("files", reason, f"check the folder {self._folder.path} and its disk")
        await self._retry_later(file, reason)

    async def _store(self, file: StoredFile, name: str, size: int, kind: str) -> None:
        # If this is cancelled, the journal may have the file: the sweep at the next start removes it otherwise.
        try:
            stored = await self._journal.stored(file, path=name, size=size, mime_type=kind)
        except JournalError:
            self._folder.remove(name)
            raise
        if not stored:
            self._folder.remove(name)

    async def _retry_later(self, file: StoredFile, reason: str, *, at_least: float | None = None) -> None:
        if self._clock.now() - file.time > GIVE_UP_AFTER:
            await self._give_up(file, reason, state="failed")
            return
        not_before = self._clock.wall() + RETRIES.delay(file.attempts + 1, at_least=at_least)
        await self._journal.not_fetched(file, reason, not_before=not_before, state="waiting")

    async def _give_up(self, file: StoredFile, reason: str, *, state: str) -> None:
        if await self._journal.not_fetched(file, reason, not_before=None, state=state):
            name = (file.name or file.file_id)[:100]
            self._quota.notice(file.caller_id, f"the file {name} is not available: {reason}")

    async def _acknowledge(self, file: StoredFile) -> None:
        await self._journal.finished()
        try:
            await self._platform.acknowledge_file(file.file_id)
        except (AuthError, PlatformError) as exc:
            is_final = isinstance(exc, PermanentPlatformError) and not isinstance(exc, AuthError)
            if not is_final and self._clock.now() - file.time < GIVE_UP_AFTER:
                not_before = self._clock.wall() + RETRIES.delay(file.attempts + 1)
                await self._journal.not_acknowledged(file, not_before=not_before)
                return
        await self._journal.acknowledged(file)

    # Files without a message

    async def _gather(self, dispatcher: Wakeable) -> None:
        at = self._journal.gathers_at(UNNAMED_AFTER) if self._may_gather else None
        if at is None or self._clock.wall() < at <= self._clock.wall() + UNNAMED_AFTER:
            return
        gathered = await self._journal.gather(UNNAMED_AFTER)
        if gathered is None:
            return
        row_id, conversation, names = gathered
        self._status.emit(
            events.Received(
                workspace_id=self._journal.workspace_id,
                row_id=row_id,
                caller_id=None,
                context_id=conversation.context_id,
                text=names[:200],
            )
        )
        self._status.messages_changed.set()
        dispatcher.wake_all()


def _write_inline(uri: str, sink: IO[bytes], folder: FileFolder) -> int:
    sink.write(inline_bytes(uri))
    return folder.settle(sink)


def _timeout(file: StoredFile, cap: int) -> float:
    """Seconds that downloading *file* may take."""
    return DOWNLOAD_TIMEOUT + (cap if file.size is None else file.size) / MIN_SPEED


def _type(reported: str, file: StoredFile) -> str:
    """The media type that the platform reported, else the announced one, else the one of the file's name."""
    kinds = (kind.partition(";")[0].strip() for kind in (reported, file.mime_type, type_by_name(file.name)))
    return next((kind for kind in kinds if _PLAIN_TYPE.fullmatch(kind)), "application/octet-stream")


def _error_text(exc: Exception) -> str:
    """*exc* and the calls that raised it, innermost first, in one line."""
    frames = reversed(traceback.extract_tb(exc.__traceback__))
    calls = " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(exc).__name__}: {exc} ({calls})"
