"""The files of a chat: fetched side by side, kept on this machine, acknowledged, and handed to messages as paths."""

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
from molecule_connect.journal.files import FILES_TIMEOUT, FileJournal, StoredFile
from molecule_connect.journal.incoming_files import MOST_INLINE
from molecule_connect.journal.models import StoredMessage
from molecule_connect.models import FilePart
from molecule_connect.worker.clock import SECOND, Clock
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.file_quota import FolderLimits, FolderQuota, NoRoomError, NotTakenError
from molecule_connect.worker.ports import Files
from molecule_connect.worker.status import Status

# Files of people that are fetched or acknowledged at a time; acknowledgements never take all the places.
SIDE_BY_SIDE, ACKNOWLEDGED_SIDE_BY_SIDE = 4, 2
# Peers' messages whose inline files are unpacked at a time, one of each peer. They take no place of a fetch.
UNPACKED_SIDE_BY_SIDE = 2
# Seconds until a peer whose files had no room has its next turn, unless one of its messages is to be answered.
NO_ROOM_WAIT = 10.0
# One that drips in must give way to others: so many seconds, and what its bytes take at the least speed (per second).
LONGEST_FETCH, LEAST_SPEED = 300.0, 16 << 10
# Files that nobody names for so long are a message of their own.
QUIET = 60.0
JOURNAL_WAIT = 5.0
RETRIES = Backoff(first=1.0, cap=300.0)
SHORTEST_SLEEP, LONGEST_SLEEP = 1.0, 60.0
# The platform keeps an upload for a day.
GIVE_UP = 24 * 3600.0
_PLAIN_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}")


class OtherBytesError(Exception):
    """What came is not the file."""


@attrs.define(eq=False)
class _Wait:
    """A message that waits for the files *left*."""

    left: set[str]
    over: asyncio.Event = attrs.field(factory=asyncio.Event)


class Wakeable(Protocol):
    """What is told of a new message."""

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
        # What is being worked on, and how many tasks each caller has for it.
        self._active: dict[str, StoredFile] = {}
        self._busy: Counter[str | None] = Counter()
        # The peer that had its turn last, and those that have none before a time (of the loop).
        self._turn = ""
        self._blocked: dict[str, float] = {}
        self._waits: dict[str, set[_Wait]] = {}
        self._woken = asyncio.Event()
        self._may_gather = False

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

    async def resolve(self, entry: StoredMessage) -> StoredMessage:
        """*entry* with the paths of its files, once they are here: it waits for at most 65 s."""
        if not any(isinstance(part, FilePart) for part in entry.parts):
            return entry
        with contextlib.suppress(JournalError):  # the intake reports it
            await self._journal.unpack_again(entry.row_id)
        self._blocked.pop(entry.caller_id or "", None)
        if left := self._journal.awaited(entry.row_id):
            self.wake()
            await self._wait_for(left)
        return attrs.evolve(entry, parts=self._journal.with_paths(entry.row_id, entry.parts))

    async def _wait_for(self, file_ids: Collection[str]) -> None:
        wait = _Wait(set(file_ids))
        for file_id in file_ids:
            self._waits.setdefault(file_id, set()).add(wait)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FILES_TIMEOUT):
                    await wait.over.wait()
        finally:
            for file_id in wait.left:
                self._waits[file_id].discard(wait)
                if not self._waits[file_id]:
                    del self._waits[file_id]

    def _changed(self, file: StoredFile) -> None:
        """Let go on what waits for *file*, unless that is still to come."""
        if file.file_id in self._waits and not self._journal.is_waiting(file.file_id):
            for wait in self._waits.pop(file.file_id):
                wait.left.discard(file.file_id)
                if not wait.left:
                    wait.over.set()

    async def run(self, dispatcher: Wakeable) -> None:
        """Download and acknowledge files until cancelled. Files that no message names become a message."""
        self._folder.sweep(self._journal.names())
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken.clear()
                self._begin_due(group)
                with contextlib.suppress(JournalError):
                    await self._gather(dispatcher)
                    await self._quota.tidy()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._seconds_to_wait()):
                        await self._woken.wait()

    def _begin_due(self, group: asyncio.TaskGroup) -> None:
        """Start what has a place: files of people have places of their own, and peers take turns."""
        for file in self._journal.due(SIDE_BY_SIDE + len(self._active)):
            if self._busy[None] < SIDE_BY_SIDE and file.file_id not in self._active:
                self._begin(group, file)
        for file in self._journal.unacknowledged(SIDE_BY_SIDE + len(self._active)):
            acknowledged = sum(one.state == "here" for one in self._active.values())
            has_place = self._busy[None] < SIDE_BY_SIDE and acknowledged < ACKNOWLEDGED_SIDE_BY_SIDE
            if has_place and file.file_id not in self._active:
                self._begin(group, file)
        while self._busy.total() - self._busy[None] < UNPACKED_SIDE_BY_SIDE:
            peer = self._next_peer()
            if peer is None:
                return
            self._begin(group, self._journal.due(1, peer)[0])

    def _next_peer(self) -> str | None:
        """The peer whose turn it is, of those that have files to be unpacked and none being unpacked."""
        now = asyncio.get_running_loop().time()
        self._blocked = {peer: until for peer, until in self._blocked.items() if until > now}
        for start in (self._turn, ""):
            peer = self._journal.next_peer(start)
            while peer is not None and (self._busy[peer] or peer in self._blocked):
                peer = self._journal.next_peer(peer)
            if peer is not None:
                self._turn = peer
                return peer
        return None

    def _begin(self, group: asyncio.TaskGroup, file: StoredFile) -> None:
        # The inline files of a message are read from it once.
        unpacked = self._journal.inline_of(file) if file.is_inline and file.state == "waiting" else []
        files = [one for one, _ in unpacked] or [file]
        self._active |= {one.file_id: one for one in files}
        self._busy[file.caller_id] += 1
        uris = {one.file_id: uri for one, uri in unpacked}
        group.create_task(self._work_on(files, uris), name=f"file {file.file_id}")

    async def _work_on(self, files: Sequence[StoredFile], uris: dict[str, str | None]) -> None:
        try:
            for file in files:
                await self._see_to(file, uris.pop(file.file_id, None))
        except JournalError:
            # The intake says so. What was fetched is fetched again.
            await asyncio.sleep(JOURNAL_WAIT)
        finally:
            self._busy -= Counter([files[0].caller_id])
            for file in files:
                del self._active[file.file_id]
            self.wake()

    def _seconds_to_wait(self) -> float:
        times = [self._journal.next_due(), self._journal.gathers_at(QUIET) if self._may_gather else None]
        waits = [when - self._clock.wall() for when in times if when is not None]
        now = asyncio.get_running_loop().time()
        waits += [until - now for until in self._blocked.values()]
        # A clock that jumps must not stop the files for longer than this.
        return max(min([*waits, LONGEST_SLEEP]), SHORTEST_SLEEP)

    async def _see_to(self, file: StoredFile, uri: str | None) -> None:
        try:
            if file.state == "here":
                await self._acknowledge(file)
            else:
                await (self._unpack(file, uri) if file.is_inline else self._fetch(file))
        except JournalError:
            raise
        except Exception as exc:  # a bug, which ends the work on this file alone
            await self._fail(file, exc)
        finally:
            self._quota.release(file)
            self._changed(file)

    async def _fail(self, file: StoredFile, exc: Exception) -> None:
        reason = f"this is a bug in molecule-connect, please report it: {_in_one_line(exc)}"
        if file.state == "here":
            # The platform forgets it in a day by itself.
            await self._journal.acknowledged(file)
            self._status.notice(f"a file could not be acknowledged: {reason}")
        else:
            await self._give_up(file, reason, state="failed")

    # Fetching

    async def _fetch(self, file: StoredFile) -> None:
        try:
            cap = (await self._platform.upload_limits()).per_file
            await self._quota.make(file, largest=cap)
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
        except (OtherBytesError, AuthError) as exc:
            await self._later(file, str(exc))
        except TimeoutError:
            await self._later(file, f"it was still coming after {_longest(file, cap):.0f} s")
        except PageTooLargeError:
            await self._give_up(file, f"it has more than {cap >> 20} MiB", state="failed")
        except PermanentPlatformError as exc:
            gone = "the platform does not have it any more"
            await self._give_up(
                file,
                gone if exc.status == 404 else str(exc),
                state="gone" if exc.status == 404 else "failed",
            )
        except PlatformError as exc:
            await self._later(file, str(exc), at_least=getattr(exc, "retry_after", None))
        except (OSError, NoRoomError) as exc:
            await self._no_place(file, exc)
        else:
            self._status.clear("files")

    async def _unpack(self, file: StoredFile, uri: str | None) -> None:
        """Put a file into the folder whose bytes are in its message."""
        try:
            if uri is None:
                raise NotTakenError("its message is not kept any more")
            await self._quota.make(file, largest=MOST_INLINE)
            with self._folder.new(file.name) as (name, sink):
                size = await asyncio.to_thread(_unpack, uri, sink, self._folder)
            await self._store(file, name, size, _type("", file))
        except NotTakenError as exc:
            await self._give_up(file, str(exc), state="failed")
        except ValueError as exc:
            await self._give_up(file, f"its bytes cannot be read: {exc}", state="failed")
        except (OSError, NoRoomError) as exc:
            await self._no_place(file, exc)
        else:
            self._status.clear("files")

    async def _no_place(self, file: StoredFile, exc: OSError | NoRoomError) -> None:
        reason = f"this machine could not store it: {getattr(exc, 'strerror', None) or exc}"
        if isinstance(exc, NoRoomError) and file.caller_id is not None:
            # Only this peer, or peers, have used up their room.
            self._quota.notice(file.caller_id, f"a file is not here: {exc}")
            self._blocked[file.caller_id] = asyncio.get_running_loop().time() + NO_ROOM_WAIT
        else:
            self._status.report("files", reason, f"look at the folder {self._folder.path} and its disk")
        await self._later(file, reason)

    async def _store(self, file: StoredFile, name: str, size: int, kind: str) -> None:
        # When we are cut meanwhile it may be in the journal: the next start looks.
        try:
            stored = await self._journal.stored(file, path=name, size=size, mime_type=kind)
        except JournalError:
            self._folder.remove(name)
            raise
        if not stored:
            self._folder.remove(name)

    async def _later(self, file: StoredFile, reason: str, *, at_least: float | None = None) -> None:
        if self._clock.now() - file.time > GIVE_UP * SECOND:
            await self._give_up(file, reason, state="failed")
            return
        not_before = self._clock.wall() + RETRIES.delay(file.attempts + 1, at_least=at_least)
        await self._journal.not_fetched(file, reason, not_before=not_before, state="waiting")

    async def _give_up(self, file: StoredFile, reason: str, *, state: str) -> None:
        if await self._journal.not_fetched(file, reason, not_before=None, state=state):
            name = (file.name or file.file_id)[:100]
            self._quota.notice(file.caller_id, f"the file {name} is not here: {reason}")

    async def _acknowledge(self, file: StoredFile) -> None:
        try:
            await self._platform.acknowledge_file(file.file_id)
        except (AuthError, PlatformError) as exc:
            is_final = isinstance(exc, PermanentPlatformError) and not isinstance(exc, AuthError)
            if not is_final and self._clock.now() - file.time < GIVE_UP * SECOND:
                not_before = self._clock.wall() + RETRIES.delay(file.attempts + 1)
                await self._journal.not_acknowledged(file, not_before=not_before)
                return
        await self._journal.acknowledged(file)

    # Messages of files alone

    async def _gather(self, dispatcher: Wakeable) -> None:
        at = self._journal.gathers_at(QUIET) if self._may_gather else None
        if at is None or self._clock.wall() < at <= self._clock.wall() + QUIET:
            return
        gathered = await self._journal.gather(QUIET)
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


def _unpack(uri: str, sink: IO[bytes], folder: FileFolder) -> int:
    sink.write(inline_bytes(uri))
    return folder.settle(sink)


def _longest(file: StoredFile, cap: int) -> float:
    """Seconds that fetching *file* may take."""
    return LONGEST_FETCH + (cap if file.size is None else file.size) / LEAST_SPEED


def _type(told: str, file: StoredFile) -> str:
    """What the platform says, else what was announced, else what the name says."""
    kinds = (kind.partition(";")[0].strip() for kind in (told, file.mime_type, type_by_name(file.name)))
    return next((kind for kind in kinds if _PLAIN_TYPE.fullmatch(kind)), "application/octet-stream")


def _in_one_line(exc: Exception) -> str:
    """*exc* and the calls that raised it, the innermost first."""
    frames = reversed(traceback.extract_tb(exc.__traceback__))
    calls = " < ".join(f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(exc).__name__}: {exc} ({calls})"
