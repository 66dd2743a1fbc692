"""Decides when to read: after events of a trusted stream, else by polling, and always after a longer interval."""

import asyncio
import enum

from molecule_connect.worker.ports import Pace
from molecule_connect.worker.stream import EventStream

# Delays of further reads, in seconds. A row can be late behind its own event; after a read of the newest rows, rows can
# be late behind them.
LATE_READS = (1.0, 5.0)
WHOLE_READS = (1.0, 3.0, 10.0)
# A whole read repeats all rows of the last minute, so wait this many times its duration before the next one.
WHOLE_READ_REST = 10.0
# After this many wake-ups in a row without a new row, read at most once per this many seconds.
EMPTY_WAKEUPS, EMPTY_WAKEUP_REST = 20, 1.0
FASTEST_POLL, SLOWEST_POLL, POLL_EASING = 1.0, 5.0, 1.5


class Trigger(enum.Enum):
    """Why a read is due."""

    WOKEN = "an event announced a row"
    DUE = "a whole read that follows another read, a failure or a request"
    REGULAR = "a poll, or a safety read"
    POLL = "a poll while whole reads rest"


class Polling:
    """Decides when the next read is due, from the event stream and from the results of reads.

    Args:
        pace: Lengthens the intervals to keep within the platform's rate limit.
        poll_interval: Seconds; None eases from 1 s after traffic to 5 s.
        safety_interval: Seconds between reads while the stream is trusted.
    """

    def __init__(
        self,
        stream: EventStream,
        pace: Pace,
        *,
        poll_interval: float | None,
        safety_interval: float,
    ) -> None:
        self._stream = stream
        self._pace = pace
        self._loop = asyncio.get_running_loop()
        self._poll = poll_interval
        self._safety = safety_interval
        self._easing = FASTEST_POLL
        self._trigger = Trigger.DUE
        self._last_read: float | None = None
        self._retry_at: float | None = None
        self._is_requested = False
        self._is_stopped = False
        self._late_reads: list[float] = []
        self._whole_reads: list[float] = []
        self._rests_until = float("-inf")
        # Whether this read takes an announcement into account, and the number of such reads in a row without a new row.
        self._taken = False
        self._empty_wakeups = 0

    async def next(self) -> Trigger:
        """Wait until a read is due."""
        while (due := self.due_at()) > self._loop.time():
            self._stream.changed.clear()
            await self._stream.changed.wait(None if due == float("inf") else due - self._loop.time())
        return self._begin()

    def take(self) -> bool:
        """Whether a wake-up arrived since the last read began, or since the last call."""
        has_news, self._stream.has_news = self._stream.has_news, False
        self._taken = self._taken or has_news
        return has_news

    def request(self) -> None:
        """Make a whole read as soon as the current read has ended."""
        self._is_requested = True
        self._stream.changed.set()

    def stop(self) -> None:
        """From now on, read only on request."""
        self._is_stopped = True
        self._stream.changed.set()

    def read_failed(self, *, retry_after: float) -> None:
        """The read failed: make a whole read in *retry_after* seconds, and none before, except on request."""
        self._retry_at = self._loop.time() + retry_after

    def read_ended(self, *, whole: bool, rows: int, messages: int, seconds: float) -> None:
        """The read succeeded.

        Args:
            whole: It started at the watermark, or went back to the floor.
            rows: The number of new rows.
            messages: The number of those that a backend or a reader handles.
            seconds: Its duration.
        """
        now = self._loop.time()
        self._retry_at = None
        if whole:
            self._rests_until = now + seconds * WHOLE_READ_REST
        elif not self._whole_reads:
            self._whole_reads = [now + delay for delay in WHOLE_READS]
        if self._taken and not messages:
            soon, later = (now + delay for delay in LATE_READS)
            self._late_reads = [min([soon, *self._late_reads]), later]
        if rows:
            self._empty_wakeups = 0
        elif self._taken:
            self._empty_wakeups += 1
        is_poll = self._trigger in (Trigger.REGULAR, Trigger.POLL)
        if is_poll and messages and self._stream.is_connected and not self._stream.has_announced:
            self._stream.distrust()
        if messages:
            self._easing = FASTEST_POLL
        elif is_poll:
            self._easing = min(SLOWEST_POLL, self._easing * POLL_EASING)
        if not self._stream.has_news:
            self._stream.has_announced = False

    def due_at(self) -> float:
        """When the next read is due (loop time)."""
        if self._is_requested:
            return float("-inf")
        if self._is_stopped:
            return float("inf")
        if self._retry_at is not None:
            return self._retry_at
        if self._last_read is None:
            return float("-inf")
        reads = self._after_rest([*self._late_reads, *self._whole_reads])
        return min(
            [self._regular(self._last_read), reads, *([self._woken(self._last_read)] if self._stream.has_news else [])]
        )

    def _begin(self) -> Trigger:
        now, last = self._loop.time(), self._last_read
        is_requested, self._is_requested = self._is_requested, False
        if self._retry_at is not None:
            # The failed read is repeated as a whole read.
            return Trigger.DUE
        # Whole reads before wake-ups: in a busy feed a wake-up is always pending.
        if is_requested or last is None or self._after_rest(self._whole_reads) <= now:
            self._trigger = Trigger.DUE
        elif self._stream.has_news and self._woken(last) <= now:
            self._trigger = Trigger.WOKEN
        elif self._regular(last) > now:
            self._trigger = Trigger.DUE
        else:
            self._trigger = Trigger.REGULAR if self._rests_until <= now else Trigger.POLL
        self._last_read = now
        self._taken = self._trigger is Trigger.WOKEN
        if self._taken:
            self._stream.has_news = False
        if self._trigger in (Trigger.DUE, Trigger.REGULAR):
            # One whole read covers all that are due.
            self._late_reads = [when for when in self._late_reads if when > now]
            self._whole_reads = [when for when in self._whole_reads if when > now]
        return self._trigger

    def _after_rest(self, times: list[float]) -> float:
        """When the first of these whole reads may start."""
        return max(min(times, default=float("inf")), self._rests_until)

    def _woken(self, last_read: float) -> float:
        rest = EMPTY_WAKEUP_REST if self._empty_wakeups >= EMPTY_WAKEUPS else 0.0
        return last_read + max(rest, self._pace.read_rest())

    def _regular(self, last_read: float) -> float:
        trusted = self._stream.trusted
        safety = self._pace.safety_interval(self._safety, trusted=trusted)
        if trusted:
            return last_read + safety
        interval = self._poll if self._poll is not None else min(self._easing, safety)
        return last_read + max(interval, self._pace.poll_interval())
