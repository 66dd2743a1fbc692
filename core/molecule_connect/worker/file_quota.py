"""The quota of the folder for files: the share of each caller, and the files that are removed for a new one."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import attrs

from molecule_connect.journal.files import FileJournal, StoredFile
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.status import Status

TIDY_INTERVAL = 3600.0
# Seconds that the journal keeps the state of a removed file.
FORGET_AFTER = 7 * 24 * 3600.0
# Seconds between notices about the files of one peer.
NOTICE_INTERVAL = 60.0
# The folder holds at least this many files, however small.
_MIN_FILES = 1 << 16
_BATCH = 64


@attrs.frozen(kw_only=True)
class FolderLimits:
    """Limits of the folder for files.

    Attributes:
        quota: Bytes. Peers together may use three quarters, one peer a quarter, and people all of it.
        kept_for: Seconds that the files of finished messages are kept.
    """

    quota: int = 1 << 30
    kept_for: float = 7 * 24 * 3600.0

    @property
    def of_peers(self) -> int:
        """Bytes that the files of all peers may use together."""
        return self.quota * 3 // 4

    def of_peer(self, largest: int) -> int:
        """Bytes that the files of one peer may use: a quarter, or a file of *largest* bytes if it fits."""
        return max(self.quota // 4, min(largest, self.of_peers))

    @property
    def least(self) -> int:
        """Bytes that a file counts as at least: a file system can run out of inodes."""
        return self.quota // _MIN_FILES


class NotTakenError(Exception):
    """The file is too large to be stored on this machine."""


class NoRoomError(Exception):
    """There is no room for the file while other messages aren't finished."""


@attrs.frozen
class _Limit:
    """A limit for the files of some callers.

    Attributes:
        most: Bytes.
        counts: Whether it applies to the files of this caller.
        gives: Whether files of this caller are removed to meet it.
    """

    most: int
    counts: Callable[[str | None], bool]
    gives: Callable[[str | None], bool]
    reason: str

    def excess(self, used: Mapping[str | None, int]) -> int:
        """Bytes in use beyond the limit."""
        return sum(size for caller, size in used.items() if self.counts(caller)) - self.most


class FolderQuota:
    """Reserves room for files in the folder of one workspace."""

    def __init__(
        self,
        journal: FileJournal,
        folder: FileFolder,
        limits: FolderLimits,
        *,
        status: Status,
        clock: Clock,
    ) -> None:
        self.limits = limits
        self._journal = journal
        self._folder = folder
        self._status = status
        self._clock = clock
        # Callers and sizes of the files in progress.
        self._reserved: dict[str, tuple[str | None, int]] = {}
        self._noticed: dict[str, float] = {}
        self._tidied = float("-inf")

    async def make(self, file: StoredFile, *, largest: int) -> None:
        """Reserve room for *file* until ``release``; files of finished messages are removed if necessary.

        Files of people are never removed for a peer's.

        Raises:
            NotTakenError: It has more than *largest* bytes, or more than its caller may use.
            NoRoomError: The files of unfinished messages use the room.
        """
        size = max(file.size or 0, self.limits.least)
        if file.size is not None and file.size > largest:
            raise NotTakenError(f"it has {file.size >> 20} MiB, more than the limit of {largest >> 20} MiB")
        limits = list(self._limits_of(file.caller_id, largest))
        for limit in limits:
            if size > limit.most:
                raise NotTakenError(f"it has {_mib(size)}: {limit.reason}")
        self._reserved[file.file_id] = (file.caller_id, size)
        used = self._used()
        removed = sum([await self._meet(limit, used) for limit in limits])
        if removed:
            self.notice(file.caller_id, f"{_removed(removed)}: the folder holds {_mib(self.limits.quota)}")
        for limit in limits:
            if limit.excess(used) > 0:
                raise NoRoomError(f"{limit.reason}, and none of their messages is finished")

    def release(self, file: StoredFile) -> None:
        """End the reservation: *file* is in the folder, or was given up."""
        self._reserved.pop(file.file_id, None)

    def notice(self, caller_id: str | None, text: str) -> None:
        """Report a problem with a caller's file. For a peer, at most once a minute."""
        if caller_id is not None:
            now = asyncio.get_running_loop().time()
            self._noticed = {caller: when for caller, when in self._noticed.items() if now - when < NOTICE_INTERVAL}
            if caller_id in self._noticed:
                return
            self._noticed[caller_id] = now
            text = f"{text} (files of {caller_id[:100]})"
        self._status.notice(text)

    async def tidy(self) -> None:
        """Once an hour, remove old files of finished messages, and the state of files removed long ago."""
        if asyncio.get_running_loop().time() - self._tidied < TIDY_INTERVAL:
            return
        self._tidied = asyncio.get_running_loop().time()
        days = f"{self.limits.kept_for / 86400:g} days"
        before = self._clock.wall() - self.limits.kept_for
        old = [file for caller in self._used() for file in self._journal.removable(caller, before=before)]
        count = sum([await self._remove(file, f"it was removed from this machine after {days}") for file in old])
        if count:
            self._status.notice(f"{_removed(count)}: files are kept for {days}")
        await self._journal.forget(before=self._clock.wall() - FORGET_AFTER, now=self._clock.now())

    def _limits_of(self, caller_id: str | None, largest: int) -> Iterator[_Limit]:
        limits, all_of = self.limits, (lambda caller: True)
        if caller_id is not None:
            most = limits.of_peer(largest)
            own = f"the files of one workspace may use {_mib(most)} on this machine"
            yield _Limit(most, lambda caller: caller == caller_id, lambda caller: caller == caller_id, own)
            peers = f"the files of other workspaces may use {_mib(limits.of_peers)} on this machine"
            yield _Limit(limits.of_peers, _is_peer, _is_peer, peers)
        full = f"the folder for files is full: it holds {_mib(limits.quota)}"
        yield _Limit(limits.quota, all_of, all_of if caller_id is None else _is_peer, full)

    async def _meet(self, limit: _Limit, used: dict[str | None, int]) -> int:
        """Remove files until *limit* is met, first of the peer that uses most, last of people. Returns the number."""
        count = 0
        if limit.excess(used) <= 0:
            return count
        for caller in sorted(filter(limit.gives, used), key=lambda caller: (caller is None, -used[caller])):
            while old := self._journal.removable(caller, before=self._clock.wall(), most=_BATCH):
                for file in old:
                    if limit.excess(used) <= 0:
                        return count
                    if await self._remove(file, "it was removed from this machine to make room"):
                        used[caller] -= max(file.size or 0, self.limits.least)
                        count += 1
        return count

    def _used(self) -> dict[str | None, int]:
        """Bytes in use or reserved, by caller."""
        used = self._journal.usage(self.limits.least)
        for caller, size in self._reserved.values():
            used[caller] = used.get(caller, 0) + size
        return used

    async def _remove(self, file: StoredFile, reason: str) -> bool:
        if not await self._journal.removed(file, reason):
            return False
        await asyncio.to_thread(self._folder.remove, file.path or "")
        return True


def _is_peer(caller_id: str | None) -> bool:
    return caller_id is not None


def _removed(count: int) -> str:
    return f"{count:,} file{' of finished messages was' if count == 1 else 's of finished messages were'} removed"


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"
