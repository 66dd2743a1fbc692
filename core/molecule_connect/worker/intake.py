"""Keeping the journal up to date: read when it is due, go on after failures, and know when it cannot go on."""

import asyncio
from collections.abc import Awaitable, Callable

from molecule_connect.backoff import Backoff
from molecule_connect.errors import (
    AuthError,
    JournalError,
    MoleculeError,
    PlatformError,
    TransientPlatformError,
)
from molecule_connect.worker.feed import Read, Reader
from molecule_connect.worker.polling import Polling, Trigger

# A refused token can be a blip of the platform's database: so often, and over so long a time, it is none.
REFUSALS, REFUSED_FOR = 3, 60.0
REFUSED_WAIT = Backoff(first=2.0, cap=30.0)
READ_WAIT = Backoff(first=0.5, cap=30.0)
JOURNAL_WAIT = 5.0
EXPIRED_TOO_OFTEN = 2
# A read that fails for so many seconds, or must not be tried again for so long, is no blip, even if it is the first.
LASTING = 10.0
# A page that takes so long, by a trickle of bytes or a rate limit: meanwhile nobody is heard.
QUIET = 25.0


class Intake:
    """Reads one workspace's feed until cancelled, or until the workspace is gone.

    Args:
        raise_if_deleted: Asked when the token is refused, which is what happens when the workspace is deleted.
        is_queued: Whether a page waits for its turn under the rate limit: our own waiting is no trouble.
        trouble: Told what stops the reading and what to do; "" when it works again. The
            flag says whether it is more than a first failure.
    """

    def __init__(
        self,
        reader: Reader,
        wakeups: Polling,
        *,
        raise_if_deleted: Callable[[], Awaitable[None]],
        is_queued: Callable[[], bool] = lambda: False,
        trouble: Callable[[str, str, bool], None],
        waits: Backoff = READ_WAIT,
    ) -> None:
        self._reader = reader
        self._wakeups = wakeups
        self._raise_if_deleted, self._is_queued = raise_if_deleted, is_queued
        self._trouble = trouble
        self._waits = waits
        self._one_at_a_time = asyncio.Lock()
        self._whole_began = float("-inf")
        self._seconds = 0.0
        self._lasting = False
        self._asked_at = float("-inf")
        reader.asking = self._asking

    async def run(self) -> None:
        """Read whenever it is due.

        Raises:
            WorkspaceDeletedError: There is nothing to read any more.
        """
        while True:
            trigger = await self._wakeups.next()
            read = await self._read_until_it_works(trigger)
            self._wakeups.told(read, trigger, seconds=self._seconds)

    async def read_once(self) -> None:
        """One whole read, however long it takes to get it."""
        await self._read_until_it_works(Trigger.REGULAR)

    async def reread(self) -> bool:
        """Whether a whole read that began after this call succeeded."""
        asked = _now()
        try:
            async with self._one_at_a_time:
                if self._whole_began <= asked:
                    await self._timed_read()
        except (PlatformError, JournalError):
            return False
        return True

    async def _read_until_it_works(self, trigger: Trigger) -> Read:
        failures, refused_since, began = 0, None, _now()
        while True:
            try:
                async with self._one_at_a_time:
                    read = await self._timed_read(woken=trigger in (Trigger.WOKEN, Trigger.POLL))
            except AuthError as exc:
                refused_since = refused_since if refused_since is not None else _now()
                failures += 1
                await self._refused(exc, failures, _now() - refused_since)
                wait = REFUSED_WAIT.delay(failures)
            except (PlatformError, JournalError) as exc:
                refused_since = None
                failures += 1
                wait = self._wait_after(exc, failures)
                self._broken(exc, lasting=failures > 1 or _now() - began + wait >= LASTING)
            else:
                self._works()
                return read
            await asyncio.sleep(wait)
            trigger = Trigger.DUE

    async def _timed_read(self, *, woken: bool = False) -> Read:
        began = _now()
        self._look_after(QUIET)
        try:
            read = await self._reader.read(woken=woken)
        finally:
            self._watch.cancel()
        self._seconds = _now() - began
        if read.whole:
            self._whole_began = began
        return read

    def _asking(self) -> None:
        self._asked_at = _now()

    def _look_after(self, seconds: float) -> None:
        self._watch = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        if self._is_queued():
            self._asked_at = _now()
        wait = self._asked_at + QUIET - _now()
        self._look_after(wait if wait > 0 else QUIET)
        if wait <= 0 and not self._lasting:
            self._lasting = True
            self._trouble(
                f"activity: a page of the feed was asked for {QUIET:g} s ago and is not here yet",
                "messages wait until it is; look at the network, and at the platform's rate limit",
                True,
            )

    def _wait_after(self, exc: MoleculeError, failures: int) -> float:
        if isinstance(exc, JournalError):
            return JOURNAL_WAIT
        asked = exc.retry_after if isinstance(exc, TransientPlatformError) else None
        return self._waits.delay(failures, at_least=asked)

    def _works(self) -> None:
        self._lasting = False
        if self._reader.expired_in_a_row >= EXPIRED_TOO_OFTEN:
            self._trouble(
                "the platform answers each read with 410: it does not know the rows that it showed before",
                "messages are still read, from the newest back; tell the platform's operator",
                True,
            )
        else:
            self._trouble("", "", False)

    def _broken(self, exc: MoleculeError, *, lasting: bool) -> None:
        self._lasting = self._lasting or lasting
        self._trouble(str(exc), exc.hint, lasting)

    async def _refused(self, exc: AuthError, failures: int, seconds: float) -> None:
        await self._raise_if_deleted()
        lasting = failures >= REFUSALS and seconds >= REFUSED_FOR
        hint = exc.hint if lasting else "it may be a blip; trying again"
        self._trouble(str(exc), hint, failures > 1)


async def insist_on(
    write: Callable[[], Awaitable[bool]], *, trouble: Callable[[str, str], None], closed: Callable[[], bool]
) -> bool:
    """The result of *write*, tried again every 5 s while the journal cannot be written."""
    while True:
        try:
            result = await write()
        except JournalError as exc:
            if closed():
                raise
            trouble(str(exc), exc.hint)
            await asyncio.sleep(JOURNAL_WAIT)
        else:
            trouble("", "")
            return result


def _now() -> float:
    return asyncio.get_running_loop().time()
