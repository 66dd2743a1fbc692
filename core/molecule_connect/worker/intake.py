"""Reads a workspace's feed whenever a read is due, retries failed reads, and reports problems."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator

from molecule_connect.backoff import Backoff
from molecule_connect.errors import AuthError, JournalError, PlatformError, TransientPlatformError
from molecule_connect.worker.feed import FeedPage, FeedReader
from molecule_connect.worker.polling import Polling, Trigger
from molecule_connect.worker.ports import Platform
from molecule_connect.worker.presence import Registration
from molecule_connect.worker.status import Status

# A refused token can be a short outage of the platform's database, but not after this many refusals over this many
# seconds.
REFUSALS, REFUSED_FOR = 3, 60.0
REFUSED_WAIT = Backoff(first=2.0, cap=30.0)
READ_WAIT = Backoff(first=0.5, cap=30.0)
JOURNAL_WAIT = 5.0
EXPIRED_TOO_OFTEN = 2
# A problem is lasting after this many seconds, or if the retry is further away than this.
LASTING = 10.0
# Report a page that takes this long to arrive, in seconds: no message is received meanwhile.
SLOW_PAGE = 25.0
# An intake that makes no progress for this long, in seconds, hangs. A request ends within a minute, even if the
# platform doesn't answer, and is then retried, which counts as progress: an outage doesn't end the process.
STALLED_AFTER = 180.0


class Intake:
    """Provides the pages of one workspace until it is cancelled, or the workspace is deleted."""

    def __init__(
        self, reader: FeedReader, platform: Platform, polling: Polling, registration: Registration, status: Status
    ) -> None:
        self._reader = reader
        self._platform = platform
        self._polling = polling
        self._registration = registration
        self._status = status
        self._loop = asyncio.get_running_loop()
        self._rereads: list[asyncio.Future[bool]] = []
        self._is_reading = self._is_waiting = False
        self._moved_at = 0.0
        self._read_at: float | None = None
        # When the page was requested that hasn't arrived yet.
        self._requested_at: float | None = None
        self._slow_page_timer: asyncio.TimerHandle | None = None
        self._failures = self._refusals = 0
        self._failing_since = self._refused_since = 0.0

    async def pages(self) -> AsyncGenerator[FeedPage, None]:
        """The pages of all reads. Each must be stored before the next one is requested.

        Raises:
            WorkspaceDeletedError: The workspace was deleted.
        """
        self._is_reading = True
        try:
            while True:
                self.moved()
                self._is_waiting = True
                trigger = await self._polling.next()
                self._is_waiting = False
                self.moved()
                async with contextlib.aclosing(self._read(trigger)) as pages:
                    async for page in pages:
                        yield page
        finally:
            self._is_reading = False
            _resolve(self._rereads, False)

    @property
    def stalled_for(self) -> float:
        """For how many seconds a read has been due, or a page has not arrived or not been stored; 0 while neither is.

        A failed read is not a stall: it is retried, and counts as due only then.
        """
        since = max(self._moved_at, self._polling.due_at()) if self._is_waiting else self._moved_at
        return max(0.0, self._loop.time() - since) if self._is_reading else 0.0

    @property
    def read_at(self) -> float | None:
        """When the feed was last read to its end (loop time); None before the first time."""
        return self._read_at

    def moved(self) -> None:
        """Restart the time of ``stalled_for``: the intake did something, even if it failed."""
        self._moved_at = self._loop.time()

    async def reread(self) -> bool:
        """Whether a whole read that began after this call succeeded."""
        if not self._is_reading:
            return False
        result: asyncio.Future[bool] = self._loop.create_future()
        self._rereads.append(result)
        self._polling.request()
        return await result

    async def _read(self, trigger: Trigger) -> AsyncGenerator[FeedPage, None]:
        began, whole, rows, messages, succeeded = self._loop.time(), False, 0, 0, False
        rereads, self._rereads = self._rereads, []
        woken = trigger in (Trigger.WOKEN, Trigger.POLL)
        try:
            pages = self._reader.read(woken=woken, wakeups=self._polling)
            with self._watched():
                async with contextlib.aclosing(pages):
                    async for page in pages:
                        self._requested_at = None
                        self.moved()
                        rows, messages, whole = rows + len(page.items), messages + page.messages, page.caught_up
                        yield page
                        self._requested_at = self._loop.time()
            succeeded = whole
        except AuthError as exc:
            self._polling.read_failed(retry_after=await self._refused(exc))
        except (PlatformError, JournalError) as exc:
            self._polling.read_failed(retry_after=self._failed(exc, began))
        else:
            self._polling.read_ended(whole=whole, rows=rows, messages=messages, seconds=self._loop.time() - began)
            if self._succeeded():
                yield FeedPage(now=page.now, recovered=True)
        finally:
            if rereads:
                _resolve(rereads, succeeded)

    def _succeeded(self) -> bool:
        """True if a lasting problem ended."""
        self._failures = self._refusals = 0
        self._read_at = self._loop.time()
        if self._reader.expired_in_a_row < EXPIRED_TOO_OFTEN:
            return self._status.clear("intake")
        self._status.report(
            "intake",
            "the platform answers each read with 410: it no longer knows rows that it returned before",
            "messages are still read, from the newest row back; report this to the operator of the platform",
            lasting=True,
        )
        return False

    def _failed(self, exc: PlatformError | JournalError, began: float) -> float:
        """Report a failed read. Returns the seconds until it is retried."""
        if not self._failures:
            self._failing_since = began
        self._failures += 1
        self._refusals = 0
        wait = JOURNAL_WAIT
        if isinstance(exc, PlatformError):
            retry_after = exc.retry_after if isinstance(exc, TransientPlatformError) else None
            wait = READ_WAIT.delay(self._failures, at_least=retry_after)
        lasting = self._failures > 1 or self._loop.time() - self._failing_since + wait >= LASTING
        self._status.report("intake", str(exc), exc.hint, lasting=lasting)
        return wait

    async def _refused(self, exc: AuthError) -> float:
        """Report a refused token. Returns the seconds until the read is retried."""
        if not self._refusals:
            self._refused_since = self._loop.time()
        self._failures += 1
        self._refusals += 1
        await self._registration.raise_if_deleted()
        is_blip = self._failures < REFUSALS or self._loop.time() - self._refused_since < REFUSED_FOR
        hint = "it may be a short outage; trying again" if is_blip else exc.hint
        self._status.report("intake", str(exc), hint, lasting=self._failures > 1)
        return REFUSED_WAIT.delay(self._failures)

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Report pages that take too long to arrive, inside the block."""
        self._requested_at = self._loop.time()
        self._slow_page_timer = self._loop.call_later(SLOW_PAGE, self._check_page)
        try:
            yield
        finally:
            self._slow_page_timer.cancel()

    def _check_page(self) -> None:
        now = self._loop.time()
        due_at = (now if self._requested_at is None else self._requested_at) + SLOW_PAGE
        if due_at <= now:
            due_at = now + SLOW_PAGE
            if not self._platform.is_queued and not self._status.is_broken("intake"):
                self._status.report(
                    "intake",
                    f"activity: a page of the feed has not arrived {SLOW_PAGE:g} s after its request",
                    "messages can't be read meanwhile; check the network, and the platform's rate limit",
                    lasting=True,
                )
        self._slow_page_timer = self._loop.call_at(due_at, self._check_page)


def _resolve(rereads: list[asyncio.Future[bool]], succeeded: bool) -> None:
    for result in rereads:
        if not result.done():
            result.set_result(succeeded)
