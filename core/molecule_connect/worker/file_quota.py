"""The room in the folder for files: what each caller may use of it, and what is removed for a new file."""

import asyncio
from collections.abc import Callable, Iterator, Mapping

import attrs

from molecule_connect.journal.files import FileJournal, StoredFile
from molecule_connect.worker.clock import Clock
from molecule_connect.worker.file_folder import FileFolder
from molecule_connect.worker.status import Status

TIDY_INTERVAL = 3600.0
# What became of a file is known for so long after it was removed.
FORGET_AFTER = 7 * 24 * 3600.0
# A peer can send any number of files: its notices are limited to one in so many seconds.
NOTICE_INTERVAL = 60.0
# The quota is enough for at least so many files, and most file systems for as many of any size.
_MOST_COUNTED = 1 << 16
_BATCH = 64


@attrs.frozen(kw_only=True)
class FolderLimits:
    """Limits of the folder for files.

    Attributes:
        quota: Most bytes in it. Peers together may use three quarters of them, one peer a quarter; people may use all.
        kept_for: Seconds that the files of finished messages stay.
    """

    quota: int = 1 << 30
    kept_for: float = 7 * 24 * 3600.0

    @property
    def of_peers(self) -> int:
        """Bytes that the files of all peers may use together."""
        return self.quota * 3 // 4

    def of_peer(self, largest: int) -> int:
        """Bytes that the files of one peer may use: a quarter, and room for a file of *largest* bytes if it can be."""
        return max(self.quota // 4, min(largest, self.of_peers))

    @property
    def least(self) -> int:
        """Bytes that a smaller file counts as: tiny files use up a file system, too."""
        return self.quota // _MOST_COUNTED


class NotTakenError(Exception):
    """This machine never keeps the file."""


class NoRoomError(Exception):
    """There is no room for the file until messages are finished."""


@attrs.frozen
class _Limit:
    """*counts* are the callers that may use *most* bytes together; *gives* are those whose files are removed for it."""

    most: int
    counts: Callable[[str | None], bool]
    gives: Callable[[str | None], bool]
    reason: str

    def excess(self, used: Mapping[str | None, int]) -> int:
        """Bytes that are in use beyond it."""
        return sum(size for caller, size in used.items() if self.counts(caller)) - self.most


class FolderQuota:
    """Gives files their room in the folder of one workspace."""

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
        # Files that are on their way to the folder: whose they are, and the bytes that they may need.
        self._reserved: dict[str, tuple[str | None, int]] = {}
        self._noticed: dict[str, float] = {}
        self._tidied = float("-inf")

    async def make(self, file: StoredFile, *, largest: int) -> None:
        """Reserve the room that *file* needs until ``release``, and remove files of finished messages for it.

        A peer's file never removes a person's.

        Raises:
            NotTakenError: It is larger than *largest* bytes, or than its sender may use at all.
            NoRoomError: The files of messages that are not finished use the room.
        """
        size = max(file.size or 0, self.limits.least)
        if file.size is not None and file.size > largest:
            raise NotTakenError(f"it has {file.size >> 20} MiB, more than the {largest >> 20} MiB that are taken")
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
                raise NoRoomError(f"{limit.reason}, all of messages that are not finished")

    def release(self, file: StoredFile) -> None:
        """*file* is in the folder, or will not be."""
        self._reserved.pop(file.file_id, None)

    def notice(self, caller_id: str | None, text: str) -> None:
        """Report something of a caller's files: all of a person's, of a peer's one a minute."""
        if caller_id is not None:
            now = asyncio.get_running_loop().time()
            self._noticed = {one: when for one, when in self._noticed.items() if now - when < NOTICE_INTERVAL}
            if caller_id in self._noticed:
                return
            self._noticed[caller_id] = now
            text = f"{text} (files of {caller_id[:100]})"
        self._status.notice(text)

    async def tidy(self) -> None:
        """Once an hour: remove old files of finished messages, and forget what nothing needs any more."""
        if asyncio.get_running_loop().time() - self._tidied < TIDY_INTERVAL:
            return
        self._tidied = asyncio.get_running_loop().time()
        days = f"{self.limits.kept_for / 86400:g} days"
        before = self._clock.wall() - self.limits.kept_for
        old = [file for caller in self._used() for file in self._journal.removable(caller, before=before)]
        count = sum([await self._remove(one, f"it was removed from this machine after {days}") for one in old])
        if count:
            self._status.notice(f"{_removed(count)}: files are kept for {days}")
        await self._journal.forget(before=self._clock.wall() - FORGET_AFTER, now=self._clock.now())

    def _limits_of(self, caller_id: str | None, largest: int) -> Iterator[_Limit]:
        limits, all_of = self.limits, (lambda caller: True)
        if caller_id is not None:
            most = limits.of_peer(largest)
            own = f"the files of one workspace may take {_mib(most)} on this machine"
            yield _Limit(most, lambda caller: caller == caller_id, lambda caller: caller == caller_id, own)
            peers = f"the files of other workspaces may take {_mib(limits.of_peers)} on this machine"
            yield _Limit(limits.of_peers, _is_peer, _is_peer, peers)
        full = f"the folder for files is full: it holds {_mib(limits.quota)}"
        yield _Limit(limits.quota, all_of, all_of if caller_id is None else _is_peer, full)

    async def _meet(self, limit: _Limit, used: dict[str | None, int]) -> int:
        """Remove files until *limit* is met: of the peer that uses most first, of people last. Returns how many."""
        count = 0
        if limit.excess(used) <= 0:
            return count
        for caller in sorted(filter(limit.gives, used), key=lambda one: (one is None, -used[one])):
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
