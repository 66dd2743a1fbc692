"""Who may use the backend next: fair between callers, and careful while the backend fails."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs

from molecule_connect.delivery.journal.entries import Entry

FIRST_PROBE, LAST_PROBE = 5.0, 60.0
FAILURES, MESSAGES = 3, 2


class Breaker:
    """Open after three failures in a row over at least two messages; then one message at a time probes."""

    def __init__(self, changed: Callable[[str], None] = lambda reason: None) -> None:
        self._changed = changed
        self._failures = 0
        self._failed: set[str] = set()
        self._delay = FIRST_PROBE
        self.is_open = False
        self.next_probe = 0.0

    def failed(self, entry: Entry, reason: str) -> None:
        """An attempt failed, and not because of its message."""
        self._failures += 1
        self._failed.add(entry.row_id)
        if not self.is_open and self._failures >= FAILURES and len(self._failed) >= MESSAGES:
            self.is_open, self._delay = True, FIRST_PROBE
            self.next_probe = asyncio.get_running_loop().time() + self._delay
            self._changed(reason)

    def succeeded(self) -> None:
        """The backend answered."""
        self._failures = 0
        self._failed.clear()
        if self.is_open:
            self.is_open = False
            self._changed("")

    def probe(self, now: float) -> None:
        """One message is tried; the next one after twice the time."""
        self._delay = min(LAST_PROBE, self._delay * 2)
        self.next_probe = now + self._delay


@attrs.define(eq=False)
class _Waiter:
    entry: Entry
    granted: "asyncio.Future[None]"


class Slots:
    """At most *capacity* messages at the backend. Free slots go round by caller, then by lane.

    The last free slot goes only to a caller that holds none, so that one who floods leaves room.
    """

    def __init__(self, capacity: int, breaker: Breaker) -> None:
        self._capacity = capacity
        self._breaker = breaker
        self._holding: dict[str | None, int] = {}
        self._waiting: OrderedDict[str | None, deque[_Waiter]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._full_since: float | None = None
        # A message during which this process died twice runs without company of its kind.
        self._suspects = asyncio.Lock()

    @property
    def busy(self) -> int:
        """Slots in use."""
        return sum(self._holding.values())

    @property
    def waiting(self) -> int:
        """Messages that wait for a slot."""
        return sum(len(waiters) for waiters in self._waiting.values())

    def full_for(self) -> float:
        """Seconds since which nobody got a slot although somebody waits; 0 while nobody does."""
        return 0.0 if self._full_since is None else asyncio.get_running_loop().time() - self._full_since

    @asynccontextmanager
    async def hold(self, entry: Entry) -> AsyncIterator[None]:
        """Wait for a slot, and keep it inside the block."""
        if entry.interruptions >= 2:
            async with self._suspects:
                await self._acquire(entry)
                try:
                    yield
                finally:
                    self._release(entry.caller_id)
            return
        await self._acquire(entry)
        try:
            yield
        finally:
            self._release(entry.caller_id)

    def reconsider(self) -> None:
        """Hand out what is free: the breaker may have closed."""
        while (waiter := self._choose()) is not None:
            self._take(waiter)
        if not self._waiting:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = asyncio.get_running_loop().time()

    async def _acquire(self, entry: Entry) -> None:
        waiter = _Waiter(entry, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(entry.caller_id, deque()).append(waiter)
        self.reconsider()
        try:
            await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.cancelled():
                self._forget(waiter)
                self.reconsider()
            else:
                self._release(entry.caller_id)
            raise

    def _choose(self) -> _Waiter | None:
        free = self._capacity - self.busy
        if free <= 0 or not self._waiting:
            return None
        if self._breaker.is_open:
            return self._choose_probe()
        for caller, waiters in self._waiting.items():
            if free > 1 or self._capacity == 1 or not self._holding.get(caller):
                return waiters[0]
        return None

    def _choose_probe(self) -> _Waiter | None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now < self._breaker.next_probe:
            if self._timer is not None and self._timer.when() > self._breaker.next_probe:
                self._timer.cancel()
                self._timer = None
            if self._timer is None:
                self._timer = loop.call_at(self._breaker.next_probe, self._probe_is_due)
            return None
        self._breaker.probe(now)
        everybody = [waiter for waiters in self._waiting.values() for waiter in waiters]
        untried = [waiter for waiter in everybody if waiter.entry.first_failed is None]
        return (untried or everybody)[0]

    def _probe_is_due(self) -> None:
        self._timer = None
        self.reconsider()

    def _take(self, waiter: _Waiter) -> None:
        caller = waiter.entry.caller_id
        self._forget(waiter)
        if caller in self._waiting:
            self._waiting.move_to_end(caller)
        if waiter.granted.cancelled():
            # Its task has not noticed yet.
            return
        self._holding[caller] = self._holding.get(caller, 0) + 1
        self._full_since = None
        waiter.granted.set_result(None)

    def _release(self, caller: str | None) -> None:
        self._holding[caller] -= 1
        if not self._holding[caller]:
            del self._holding[caller]
        self.reconsider()

    def _forget(self, waiter: _Waiter) -> None:
        caller = waiter.entry.caller_id
        waiters = self._waiting.get(caller)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[caller]
