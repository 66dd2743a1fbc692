"""When to read: woken by the event stream while it can be trusted, by polling while it cannot, and by a safety read."""

import asyncio
import contextlib
import enum
from collections.abc import Callable

from molecule_connect.backoff import Backoff
from molecule_connect.errors import PlatformError, TransientPlatformError
from molecule_connect.models import Signal
from molecule_connect.worker.feed import Read
from molecule_connect.worker.ports import Stream

# A row can be late behind its own event; after a read from the tip, rows can be late behind the tip.
LATE_READS = (1.0, 5.0)
WHOLE_READS = (1.0, 3.0, 10.0)
# A whole read reads all rows of the last minute again: the next one waits for this many times what it took.
WHOLE_READ_REST = 10.0
# After so many wake-ups in a row that brought nothing, the next ones are answered once in so many seconds.
FRUITLESS, FRUITLESS_REST = 20, 1.0
DISTRUST = 300.0
ECHO_TIMEOUT = 5.0
STABLE_LIFE = 30.0
ABSENT = 3600.0
FASTEST_POLL, SLOWEST_POLL, POLL_EASING = 1.0, 5.0, 1.5


class Trigger(enum.Enum):
    """Why a read is due."""

    WOKEN = "a wake-up"
    DUE = "a read that follows another"
    REGULAR = "a poll, or a safety read"
    POLL = "a poll while whole reads rest"


class Polling:
    """Says when the next read is due, and learns from what it brought.

    Args:
        poll_interval: Seconds; None eases from 1 s after traffic to 5 s.
        safety_interval: Seconds between reads that nothing asked for.
        read_rest: Seconds from a read to the next one that an event asks for.
        least_poll: Seconds between polls at the least, by the platform's rate limit.
        on_signal: Told of signals that are not about rows: status, rotation, stream opened.
        trouble: Told why the stream is not there, and "" when it is back.
        listening: Told whether the stream alone wakes us, when that is known and when it changes.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        poll_interval: float | None,
        safety_interval: Callable[[], float],
        read_rest: Callable[[], float] = lambda: 0.0,
        least_poll: Callable[[], float] = lambda: 0.0,
        on_signal: Callable[[Signal], None] = lambda signal: None,
        trouble: Callable[[str], None] = lambda reason: None,
        listening: Callable[[bool], None] = lambda trusted: None,
        backoff: Backoff | None = None,
    ) -> None:
        self._stream = stream
        self._poll = poll_interval
        self._easing = FASTEST_POLL
        self._safety = safety_interval
        self._rest = read_rest
        self._least_poll = least_poll
        self._on_signal = on_signal
        self._trouble = trouble
        self._listening = listening
        self._told_trusted: bool | None = None
        self._backoff = backoff or Backoff(first=1.0, cap=60.0)
        self._wake = asyncio.Event()
        self._pending = False
        self._event_since_read = False
        self._connected = False
        self._echoed = False
        self._distrusted_until = float("-inf")
        self._last_read = float("-inf")
        self._late_reads: list[float] = []
        self._whole_reads: list[float] = []
        self._rests_until = float("-inf")
        self._dead_stream: asyncio.Event = asyncio.Event()
        self._reopening = False
        self._echo_timer: asyncio.TimerHandle | None = None
        self._opened_at = self._heard_at = float("-inf")
        self._taken = False
        self._fruitless = 0

    @property
    def trusted(self) -> bool:
        """Whether the stream alone may be relied on to wake us."""
        return self._connected and self._echoed and _now() >= self._distrusted_until

    def _tell(self) -> None:
        if self._told_trusted is not self.trusted:
            self._told_trusted = self.trusted
            self._listening(self._told_trusted)

    def wake(self) -> None:
        """A row may be readable: read as soon as the read under way has ended."""
        self._pending = True
        self._event_since_read = True
        self._wake.set()

    def take(self) -> bool:
        """Whether a wake-up came since the last read began; it is taken."""
        pending, self._pending = self._pending, False
        self._taken = self._taken or pending
        return pending

    async def next(self) -> Trigger:
        """Wait until a read is due."""
        while True:
            # Before wake-ups: a busy feed has one at any time.
            now = _now()
            if self._after_the_rest(self._whole_reads) <= now:
                return self._begin(Trigger.DUE)
            fruitless_rest = FRUITLESS_REST if self._fruitless >= FRUITLESS else 0.0
            woken = self._last_read + max(fruitless_rest, self._rest())
            if woken <= now and self.take():
                return self._begin(Trigger.WOKEN)
            regular = self._regular()
            reads = self._after_the_rest([*self._late_reads, *self._whole_reads])
            due = min([regular, reads, *([woken] if self._pending else [])])
            if due <= now:
                if regular > now:
                    return self._begin(Trigger.DUE)
                return self._begin(Trigger.REGULAR if self._rests_until <= now else Trigger.POLL)
            self._wake.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()

    def _after_the_rest(self, times: list[float]) -> float:
        """When the first of these whole reads may begin."""
        return max(min(times, default=float("inf")), self._rests_until)

    def _begin(self, trigger: Trigger) -> Trigger:
        self._last_read = now = _now()
        self._taken = trigger is Trigger.WOKEN
        if trigger not in (Trigger.WOKEN, Trigger.POLL):
            # A whole read serves for all that are due.
            self._late_reads = [when for when in self._late_reads if when > now]
            self._whole_reads = [when for when in self._whole_reads if when > now]
        return trigger

    def _regular(self) -> float:
        if self.trusted:
            return self._last_read + self._safety()
        if self._poll is not None:
            return self._last_read + max(self._poll, self._least_poll())
        return self._last_read + max(min(self._easing, self._safety()), self._least_poll())

    def told(self, read: Read, trigger: Trigger, *, seconds: float) -> None:
        """What the read that ``next`` asked for brought, and how long it took."""
        now = _now()
        if read.whole:
            self._rests_until = now + seconds * WHOLE_READ_REST
        elif not self._whole_reads:
            self._whole_reads = [now + delay for delay in WHOLE_READS]
        if self._taken and not read.messages:
            soon, later = (now + delay for delay in LATE_READS)
            self._late_reads = [min([soon, *self._late_reads]), later]
        if trigger in (Trigger.REGULAR, Trigger.POLL):
            if read.messages and self._connected and not self._event_since_read:
                self._distrusted_until = now + DISTRUST
                self._tell()
            self._easing = min(SLOWEST_POLL, self._easing * POLL_EASING)
        if self._taken:
            self._fruitless += 1
        if read.messages:
            self._easing = FASTEST_POLL
        if read.messages or read.rows:
            self._fruitless = 0
        if not self._pending:
            self._event_since_read = False

    def beat_accepted(self, sent: float) -> None:
        """A heartbeat sent then (loop time) was accepted: its echo proves that the stream is alive, and of our replica.

        The echo may be here before the answer.
        """
        if self._connected and self._opened_at <= sent and self._heard_at < sent and self._echo_timer is None:
            self._echo_timer = asyncio.get_running_loop().call_later(ECHO_TIMEOUT, self._no_echo)

    def _no_echo(self) -> None:
        self._echo_timer = None
        self._echoed = False
        self._dead_stream.set()
        self._wake.set()

    def reopen(self) -> None:
        """Open the stream again: the connection cannot be relied on any more. That is no trouble."""
        self._reopening = self._connected
        self._dead_stream.set()

    async def listen(self) -> None:
        """Keep the stream open until cancelled."""
        failures = 0
        while True:
            opened = _now()
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
            failures = 1 if _now() - opened >= STABLE_LIFE else failures + 1
            self._trouble("" if absent else reason)
            self._tell()
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
                    self._connected, self._opened_at = True, _now()
                    self._on_signal(signal)
                    self.wake()
                case Signal.ROW:
                    self.wake()
                case Signal.BEAT:
                    self._heard()
                case Signal.OTHER:
                    pass
                case _:
                    self._on_signal(signal)

    def _heard(self) -> None:
        self._heard_at = _now()
        if self._echo_timer is not None:
            self._echo_timer.cancel()
            self._echo_timer = None
        if not self._echoed:
            self._echoed = True
            self._trouble("")
            self._tell()
            # Rows that came between the last poll and this moment had nobody to announce them.
            self.wake()

    def _lost(self) -> None:
        self._connected = self._echoed = False
        if self._echo_timer is not None:
            self._echo_timer.cancel()
            self._echo_timer = None
        self._wake.set()


def _now() -> float:
    return asyncio.get_running_loop().time()
