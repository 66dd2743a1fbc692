"""Decides when to read: after events of a trusted stream, else by polling, and always after a longer interval."""

import asyncio
import contextlib
import enum
from collections.abc import AsyncIterator

from molecule_connect import events
from molecule_connect.backoff import Backoff
from molecule_connect.errors import PlatformError, TransientPlatformError
from molecule_connect.models import Signal
from molecule_connect.worker.clock import loop_time
from molecule_connect.worker.ports import Pace, Stream
from molecule_connect.worker.status import Status

# Delays of further reads, in seconds. A row can be late behind its own event; after a read of the newest rows, rows can
# be late behind them.
LATE_READS = (1.0, 5.0)
WHOLE_READS = (1.0, 3.0, 10.0)
# A whole read repeats all rows of the last minute, so wait this many times its duration before the next one.
WHOLE_READ_REST = 10.0
# After this many wake-ups in a row without a new row, read at most once per this many seconds.
EMPTY_WAKEUPS, EMPTY_WAKEUP_REST = 20, 1.0
DISTRUST = 300.0
ECHO_TIMEOUT = 5.0
STABLE_LIFE = 30.0
ABSENT = 3600.0
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
        stream: Stream,
        pace: Pace,
        status: Status,
        *,
        poll_interval: float | None,
        safety_interval: float,
    ) -> None:
        self._stream = stream
        self._pace = pace
        self._status = status
        self._poll = poll_interval
        self._safety = safety_interval
        self._backoff = Backoff()
        self._easing = FASTEST_POLL
        self._reported_trust: bool | None = None
        self._signals: asyncio.Queue[Signal] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._pending = False
        self._event_since_read = False
        self._connected = False
        self._echoed = False
        self._distrusted_until = float("-inf")
        self._trigger = Trigger.DUE
        self._last_read: float | None = None
        self._retry_at: float | None = None
        self._is_requested = False
        self._is_stopped = False
        self._late_reads: list[float] = []
        self._whole_reads: list[float] = []
        self._rests_until = float("-inf")
        self._dead_stream = asyncio.Event()
        self._reopening = False
        self._echo_timer: asyncio.TimerHandle | None = None
        self._opened_at = self._heard_at = float("-inf")
        self._taken = False
        self._empty_wakeups = 0
        self.was_trusted = False

    @property
    def trusted(self) -> bool:
        """Whether the stream announces every row."""
        return self._connected and self._echoed and loop_time() >= self._distrusted_until

    async def signals(self) -> AsyncIterator[Signal]:
        """The signals other than new rows: the stream was opened, the workspace changed, the token was replaced."""
        while True:
            yield await self._signals.get()

    # When to read

    async def next(self) -> Trigger:
        """Wait until a read is due."""
        while (due := self.due_at()) > loop_time():
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(None if due == float("inf") else due):
                    await self._wake.wait()
        return self._begin()

    def wake(self) -> None:
        """Read as soon as the current read has ended: a row may be readable."""
        self._pending = True
        self._event_since_read = True
        self._wake.set()

    def take(self) -> bool:
        """Whether a wake-up arrived since the last read began, or since the last call."""
        pending, self._pending = self._pending, False
        self._taken = self._taken or pending
        return pending

    def request(self) -> None:
        """Make a whole read as soon as the current read has ended."""
        self._is_requested = True
        self._wake.set()

    def stop(self) -> None:
        """From now on, read only on request."""
        self._is_stopped = True
        self._wake.set()

    def read_failed(self, *, retry_after: float) -> None:
        """The read failed: make a whole read in *retry_after* seconds, and none before, except on request."""
        self._retry_at = loop_time() + retry_after

    def read_ended(self, *, whole: bool, rows: int, messages: int, seconds: float) -> None:
        """The read succeeded.

        Args:
            whole: It started at the watermark, or went back to the floor.
            rows: The number of new rows.
            messages: The number of those that a backend or a reader handles.
            seconds: Its duration.
        """
        now = loop_time()
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
        if is_poll and messages and self._connected and not self._event_since_read:
            self._distrusted_until = now + DISTRUST
            self._report_trust()
        if messages:
            self._easing = FASTEST_POLL
        elif is_poll:
            self._easing = min(SLOWEST_POLL, self._easing * POLL_EASING)
        if not self._pending:
            self._event_since_read = False

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
        return min([self._regular(self._last_read), reads, *([self._woken(self._last_read)] if self._pending else [])])

    def _begin(self) -> Trigger:
        now, last = loop_time(), self._last_read
        is_requested, self._is_requested = self._is_requested, False
        if self._retry_at is not None:
            # The failed read is repeated as a whole read.
            return Trigger.DUE
        # Whole reads before wake-ups: in a busy feed a wake-up is always pending.
        if is_requested or last is None or self._after_rest(self._whole_reads) <= now:
            self._trigger = Trigger.DUE
        elif self._pending and self._woken(last) <= now:
            self._trigger = Trigger.WOKEN
        elif self._regular(last) > now:
            self._trigger = Trigger.DUE
        else:
            self._trigger = Trigger.REGULAR if self._rests_until <= now else Trigger.POLL
        self._last_read = now
        self._taken = self._trigger is Trigger.WOKEN
        if self._taken:
            self._pending = False
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
        trusted = self.trusted
        safety = self._pace.safety_interval(self._safety, trusted=trusted)
        if trusted:
            return last_read + safety
        interval = self._poll if self._poll is not None else min(self._easing, safety)
        return last_read + max(interval, self._pace.poll_interval())

    # The event stream

    def beat_accepted(self, sent: float) -> None:
        """A heartbeat sent at *sent* (loop time) was accepted: the stream must show it.

        A stream that doesn't is dead, or belongs to another replica of the platform. The echo can arrive before the
        response.
        """
        if self._connected and self._opened_at <= sent and self._heard_at < sent and self._echo_timer is None:
            self._echo_timer = asyncio.get_running_loop().call_later(ECHO_TIMEOUT, self._no_echo)

    def _no_echo(self) -> None:
        self._echo_timer = None
        self._echoed = False
        self._dead_stream.set()
        self._wake.set()

    def reopen(self) -> None:
        """Open the stream again, without reporting a problem: the connection can't be relied on any more."""
        self._reopening = self._connected
        self._dead_stream.set()

    async def listen(self) -> None:
        """Keep the stream open until cancelled."""
        failures = 0
        while True:
            opened = loop_time()
            absent = False
            try:
                await self._one_connection()
                reason = "the event stream ended"
            except PlatformError as exc:
                reason, absent = str(exc), exc.status in (404, 405)
                if isinstance(exc, TransientPlatformError) and exc.is_reported:
                    reason = ""
            finally:
                self._lost()
            if self._reopening:
                self._reopening, reason = False, ""
            failures = 1 if loop_time() - opened >= STABLE_LIFE else failures + 1
            if reason and not absent:
                self._status.report("stream", reason, "messages are noticed by polling meanwhile")
            else:
                self._status.clear("stream")
            self._report_trust()
            await asyncio.sleep(ABSENT if absent else self._backoff.delay(failures))

    async def _one_connection(self) -> None:
        self._dead_stream = asyncio.Event()
        reading = asyncio.ensure_future(self._read_signals())
        dying = asyncio.ensure_future(self._dead_stream.wait())
        try:
            await asyncio.wait({reading, dying}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
            else:
                raise TransientPlatformError(
                    "the event stream does not show our own heartbeats", operation="events", status=None
                )
        finally:
            for task in (reading, dying):
                task.cancel()
            await asyncio.gather(reading, dying, return_exceptions=True)

    async def _read_signals(self) -> None:
        async for signal in self._stream.signals():
            match signal:
                case Signal.OPENED:
                    self._connected, self._opened_at = True, loop_time()
                    self._signals.put_nowait(signal)
                    self.wake()
                case Signal.ROW:
                    self.wake()
                case Signal.BEAT:
                    self._heard()
                case Signal.OTHER:
                    pass
                case _:
                    self._signals.put_nowait(signal)

    def _heard(self) -> None:
        self._heard_at = loop_time()
        if self._echo_timer is not None:
            self._echo_timer.cancel()
            self._echo_timer = None
        if not self._echoed:
            self._echoed = True
            self._status.clear("stream")
            self._report_trust()
            # Rows since the last poll were not announced by an event.
            self.wake()

    def _lost(self) -> None:
        self._connected = self._echoed = False
        if self._echo_timer is not None:
            self._echo_timer.cancel()
            self._echo_timer = None
        self._wake.set()

    def _report_trust(self) -> None:
        trusted = self.trusted
        if trusted is not self._reported_trust:
            self._reported_trust = trusted
            self.was_trusted = self.was_trusted or trusted
            by = "stream" if trusted else "polling"
            self._status.emit(events.Listening(workspace_id=self._status.workspace_id, by=by))
