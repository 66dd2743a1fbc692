"""Reads a workspace's feed whenever a read is due, retries failed reads, and reports problems."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from molecule_connect.backoff import Backoff
from molecule_connect.errors import AuthError, JournalError, PlatformError, TransientPlatformError
from molecule_connect.models import Page
from molecule_connect.worker.clock import loop_time
from molecule_connect.worker.feed import FeedPage, FeedReader
from molecule_connect.worker.polling import Polling, Trigger
from molecule_connect.worker.ports import Feed, Pace
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


class Intake:
    """Provides the pages of one workspace until it is cancelled, or the workspace is deleted."""

    def __init__(self, reader: FeedReader, polling: Polling, registration: Registration, status: Status) -> None:
        self._reader = reader
        self._polling = polling
        self._registration = registration
        self._status = status
        self._rereads: list[asyncio.Future[bool]] = []
        self._is_reading = self._is_waiting = False
        self._moved_at = 0.0
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
            self._resolve(self._rereads, False)

    @property
    def stalled_for(self) -> float:
        """For how many seconds a read has been due, or a page has not arrived or not been stored; 0 while neither is.

        A failed read is not a stall: it is retried, and counts as due only then.
        """
        since = max(self._moved_at, self._polling.due_at()) if self._is_waiting else self._moved_at
        return max(0.0, loop_time() - since) if self._is_reading else 0.0

    def moved(self) -> None:
        """Restart the time of ``stalled_for``: the intake did something, even if it failed."""
        self._moved_at = loop_time()

    async def reread(self) -> bool:
        """Whether a whole read that began after this call succeeded."""
        if not self._is_reading:
            return False
        result: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._rereads.append(result)
        self._polling.request()
        return await result

    async def _read(self, trigger: Trigger) -> AsyncGenerator[FeedPage, None]:
        began, whole, rows, messages, succeeded = loop_time(), False, 0, 0, False
        rereads, self._rereads = self._rereads, []
        woken = trigger in (Trigger.WOKEN, Trigger.POLL)
        try:
            async with contextlib.aclosing(self._reader.read(woken=woken, wakeups=self._polling)) as pages:
                async for page in pages:
                    self.moved()
                    rows, messages, whole = rows + len(page.items), messages + page.messages, page.caught_up
                    yield page
            succeeded = whole
        except AuthError as exc:
            self._polling.read_failed(retry_after=await self._refused(exc))
        except (PlatformError, JournalError) as exc:
            self._polling.read_failed(retry_after=self._failed(exc, began))
        else:
            self._polling.read_ended(whole=whole, rows=rows, messages=messages, seconds=loop_time() - began)
            if self._succeeded():
                yield FeedPage(now=page.now, recovered=True)
        finally:
            self._resolve(rereads, succeeded)

    def _succeeded(self) -> bool:
        """True if a lasting problem ended."""
        self._failures = self._refusals = 0
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
        lasting = self._failures > 1 or loop_time() - self._failing_since + wait >= LASTING
        self._status.report("intake", str(exc), exc.hint, lasting=lasting)
        return wait

    async def _refused(self, exc: AuthError) -> float:
        """Report a refused token. Returns the seconds until the read is retried."""
        if not self._refusals:
            self._refused_since = loop_time()
        self._failures += 1
        self._refusals += 1
        await self._registration.raise_if_deleted()
        is_blip = self._failures < REFUSALS or loop_time() - self._refused_since < REFUSED_FOR
        hint = "it may be a short outage; trying again" if is_blip else exc.hint
        self._status.report("intake", str(exc), hint, lasting=self._failures > 1)
        return REFUSED_WAIT.delay(self._failures)

    def _resolve(self, rereads: list[asyncio.Future[bool]], succeeded: bool) -> None:
        for result in rereads:
            if not result.done():
                result.set_result(succeeded)


class WatchedFeed:
    """A feed whose slow pages are reported."""

    def __init__(self, feed: Feed, pace: Pace, status: Status) -> None:
        self._feed = feed
        self._pace = pace
        self._status = status

    def now(self) -> int | None:
        """See ``Feed.now``."""
        return self._feed.now()

    async def fetch(
        self,
        *,
        since_id: str | None = None,
        before: int | None = None,
        limit: int,
        known: Callable[[str], bool],
        people: bool = False,
    ) -> Page:
        """See ``Feed.fetch``."""
        watch = asyncio.ensure_future(self._watch())
        try:
            return await self._feed.fetch(since_id=since_id, before=before, limit=limit, known=known, people=people)
        finally:
            watch.cancel()

    async def _watch(self) -> None:
        await asyncio.sleep(SLOW_PAGE)
        while self._pace.is_queued:  # noqa: ASYNC110 - a rate limit has no events
            # The request waits for its turn under the rate limit: not a problem of the platform.
            await asyncio.sleep(SLOW_PAGE)
        if not self._status.is_broken("intake"):
            self._status.report(
                "intake",
                f"activity: a page of the feed has not arrived {SLOW_PAGE:g} s after its request",
                "messages can't be read meanwhile; check the network, and the platform's rate limit",
                lasting=True,
            )
