"""Who may use the backend next: fair between callers, and careful while the backend fails."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import attrs

from molecule_connect.journal.models import Conversation, StoredMessage
from molecule_connect.worker.circuit_breaker import CircuitBreaker, party_of

# Seconds without a free slot, while messages wait, after which the heartbeat says so.
CROWDED = 300.0
# A message during which this process died so often runs without others of its kind.
SUSPECT = 2


@attrs.define(eq=False)
class _Waiter:
    entry: StoredMessage
    granted: "asyncio.Future[None]"
    is_trusted_try: bool = False

    @property
    def is_suspect(self) -> bool:
        return self.entry.crash_count >= SUSPECT


class ConcurrencyLimit:
    """At most *capacity* messages at the backend.

    Free slots go round by caller: people are one caller here, and their conversations take turns among themselves.
    So that one who floods leaves room for others:

    - With a capacity of at least 3, peers together use at most all slots but one, which is reserved for people, and
      the last slot that peers can have goes only to a peer that holds none.
    - With a capacity of 2, the last slot goes to a peer or conversation that holds none, and is lent to any other
      while none of those waits.
    - A single slot goes round.
    """

    def __init__(self, capacity: int, breaker: CircuitBreaker) -> None:
        self._capacity = capacity
        self._breaker = breaker
        self._holding: Counter[Conversation] = Counter()
        self._held_by_peers = 0
        self._waiting: OrderedDict[str | None, deque[_Waiter]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._full_since: float | None = None
        self._suspect_runs = False
        self._trusted_tries: set[str | None] = set()

    @property
    def busy(self) -> int:
        """ConcurrencyLimit in use."""
        return self._holding.total()

    @property
    def waiting(self) -> int:
        """Messages that wait for a slot."""
        return sum(len(waiters) for waiters in self._waiting.values())

    def full_for(self) -> float:
        """How long messages that could be tried have waited without any of them getting a slot, in seconds."""
        return 0.0 if self._full_since is None else asyncio.get_running_loop().time() - self._full_since

    def remark(self) -> str:
        """What the operator should know of the slots, for the heartbeat; empty if there is nothing."""
        if self.full_for() < CROWDED or not self.waiting:
            return ""
        return f"all slots busy for {int(self.full_for() // 60)} minutes, {self.waiting} conversations wait"

    @asynccontextmanager
    async def hold(self, entry: StoredMessage) -> AsyncIterator[None]:
        """Wait for a slot, and keep it inside the block."""
        waiter = await self._acquire(entry)
        try:
            yield
        finally:
            self._release(waiter)

    def reconsider(self) -> None:
        """Hand out what is free: a circuit may have closed."""
        while (waiter := self._choose()) is not None:
            self._take(waiter)
        if next(self._due(), None) is None:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = asyncio.get_running_loop().time()
        self._set_timer()

    async def _acquire(self, entry: StoredMessage) -> _Waiter:
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
                self._release(waiter)
            raise
        return waiter

    def _choose(self) -> _Waiter | None:
        if self.busy >= self._capacity or not self._waiting:
            return None
        if (waiter := next(self._due(fitting=True), None)) is not None:
            return waiter
        if self._breaker.is_open:
            return self._choose_probe()
        return next(self._due(), None) if self._capacity == 2 else None

    def _choose_probe(self) -> _Waiter | None:
        if asyncio.get_running_loop().time() < self._breaker.next_probe:
            return None
        # Callers in good standing have their own turns.
        callers = (caller for caller in self._waiting if not self._breaker.trusts(caller))
        for caller in sorted(callers, key=self._breaker.turn):
            for waiter in self._waiting[caller]:
                if self._may_run(waiter) and (self._fits(waiter) or self._capacity == 2):
                    return waiter
        return None

    def _due(self, *, fitting: bool = False) -> Iterator[_Waiter]:
        """Messages that no circuit holds back, in the order of their turns; only those for which there is a slot."""
        now = asyncio.get_running_loop().time()
        for caller, waiters in self._waiting.items():
            if self._breaker.is_open and (caller in self._trusted_tries or not self._breaker.trusts(caller)):
                continue
            for waiter in waiters:
                if fitting and not self._fits(waiter):
                    # For all messages of a peer it is the same, and no conversation of people holds a slot already.
                    break
                if self._may_run(waiter) and self._breaker.held_until(waiter.entry) <= now:
                    yield waiter

    def _may_run(self, waiter: _Waiter) -> bool:
        return not (waiter.is_suspect and self._suspect_runs)

    def _fits(self, waiter: _Waiter) -> bool:
        """Whether a free slot is one that this caller may have."""
        free = self._capacity - self.busy
        holds_none = not self._holding[party_of(waiter.entry)]
        if self._capacity == 1:
            return free > 0
        if self._capacity == 2:
            return free > 1 or holds_none
        if waiter.entry.caller_id is None:
            return free > 0
        left = min(free, self._capacity - 1 - self._held_by_peers)
        return left > 1 or (left == 1 and holds_none)

    def _set_timer(self) -> None:
        """Look again when the next probe is due."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        times = [self._breaker.next_probe] if self._waiting and self._breaker.is_open else []
        if self._breaker.holds_callers:
            waiting = (waiter.entry for waiters in self._waiting.values() for waiter in waiters)
            times += map(self._breaker.held_until, waiting)
        when = min((time for time in times if time > loop.time()), default=None)
        if when is not None:
            self._timer = loop.call_at(when, self.reconsider)

    def _take(self, waiter: _Waiter) -> None:
        caller = waiter.entry.caller_id
        self._forget(waiter)
        if caller in self._waiting:
            self._waiting.move_to_end(caller)
        if waiter.granted.cancelled():
            # Its task has not noticed yet.
            return
        if self._breaker.is_open and self._breaker.trusts(caller):
            waiter.is_trusted_try = True
            self._trusted_tries.add(caller)
        self._breaker.tries(waiter.entry)
        self._suspect_runs = self._suspect_runs or waiter.is_suspect
        self._holding[party_of(waiter.entry)] += 1
        self._held_by_peers += caller is not None
        self._full_since = None
        waiter.granted.set_result(None)

    def _release(self, waiter: _Waiter) -> None:
        party = party_of(waiter.entry)
        self._holding[party] -= 1
        if not self._holding[party]:
            del self._holding[party]
        self._held_by_peers -= waiter.entry.caller_id is not None
        if waiter.is_suspect:
            self._suspect_runs = False
        if waiter.is_trusted_try:
            self._trusted_tries.discard(waiter.entry.caller_id)
        self.reconsider()

    def _forget(self, waiter: _Waiter) -> None:
        caller = waiter.entry.caller_id
        waiters = self._waiting.get(caller)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[caller]
