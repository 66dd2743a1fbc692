"""The concurrency limit: fair between callers, and limited to probes while the backend fails."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator

import attrs

from molecule_connect.journal.models import Conversation, StoredMessage
from molecule_connect.worker.budget import DailyBudget
from molecule_connect.worker.circuit_breaker import CircuitBreaker, party_of
from molecule_connect.worker.fleet import Fleet

# Messages during which the process died this often run one at a time: each may be the one that kills it.
SUSPECT_CRASHES = 2
# Heartbeats report a queue that has been blocked for this long, in seconds.
BLOCKED_TOO_LONG = 300.0


@attrs.define(eq=False)
class _Waiter:
    """One message that waits for a slot, or holds one inside its ``async with`` block."""

    limit: "ConcurrencyLimit"
    message: StoredMessage
    party: Conversation
    is_suspect: bool
    granted: "asyncio.Future[None]"
    is_trusted_try: bool = False
    reserved: float = 0.0

    async def __aenter__(self) -> None:
        self.limit.add(self)
        try:
            await self.granted
        except asyncio.CancelledError:
            self.limit.remove(self)
            raise

    async def __aexit__(self, *_: object) -> None:
        self.limit.release(self)


class ConcurrencyLimit:
    """Limits how many handlers run at once.

    Free slots go to callers in turn. All people count as one caller here, and their conversations take turns among
    themselves. To leave room for others when one caller floods:

    - With a capacity of 3 or more, one slot is reserved for people, and the last slot that peers can use goes only to
      a peer that holds none.
    - With a capacity of 2, the last slot goes to a peer or conversation that holds none. If none of those waits, any
      other may have it.
    - A single slot goes to callers in turn.

    A slot also requires room in the daily budget, besides the running attempts, and a slot of the fleet.

    Attributes:
        busy: Number of slots in use.
    """

    def __init__(self, capacity: int, breaker: CircuitBreaker, budget: DailyBudget, fleet: Fleet) -> None:
        self._capacity = capacity
        self._fleet = fleet
        self._breaker = breaker
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self.busy = 0
        self._holding: Counter[Conversation] = Counter()
        self._held_by_peers = 0
        self._waiting: OrderedDict[str | None, deque[_Waiter]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._full_since: float | None = None
        self._suspect_runs = False
        self._trusted_tries: set[str | None] = set()

    @property
    def waiting(self) -> int:
        """Number of messages that wait for a slot."""
        return sum(len(waiters) for waiters in self._waiting.values())

    def blocked_for(self) -> float:
        """How long the queue has been blocked, in seconds. Messages held by a circuit breaker don't count."""
        return 0.0 if self._full_since is None else self._loop.time() - self._full_since

    def remark(self) -> str:
        """A remark on the queue for the heartbeat; empty if there is none."""
        if self.blocked_for() < BLOCKED_TOO_LONG or not self.waiting:
            return ""
        return f"all slots busy for {int(self.blocked_for() // 60)} minutes, {self.waiting} conversations waiting"

    def slot(self, message: StoredMessage) -> _Waiter:
        """Wait for a slot on entry of the block, and keep it inside."""
        is_suspect = message.crash_count >= SUSPECT_CRASHES
        return _Waiter(self, message, party_of(message), is_suspect, self._loop.create_future())

    def add(self, waiter: _Waiter) -> None:
        """Grant *waiter* a slot, now or later."""
        self._waiting.setdefault(waiter.message.caller_id, deque()).append(waiter)
        self.reconsider()

    def remove(self, waiter: _Waiter) -> None:
        """The task of *waiter* was cancelled while it waited."""
        if waiter.granted.cancelled():
            self._forget(waiter)
            self.reconsider()
        else:
            self.release(waiter)

    def reconsider(self) -> None:
        """Grant the free slots."""
        while self._waiting and self.busy < self._capacity and (waiter := self._choose()) is not None:
            self._take(waiter)
        if not self._waiting or next(self._due(), None) is None:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._fleet.wait(self)
            self._set_timer()

    def _choose(self) -> _Waiter | None:
        if (waiter := next(self._due(fitting=True), None)) is not None:
            return waiter
        if self._breaker.backend.is_open:
            return self._choose_probe()
        return next(self._due(), None) if self._capacity == 2 else None

    def _choose_probe(self) -> _Waiter | None:
        if self._loop.time() < self._breaker.backend.next_probe:
            return None
        # Callers in good standing don't need probes.
        callers = (
            caller for caller in self._waiting if not self._breaker.trusts(caller) and self._budget.has_room(caller)
        )
        for caller in sorted(callers, key=self._breaker.turn):
            for waiter in self._waiting[caller]:
                if self._may_run(waiter) and (self._fits(waiter) or self._capacity == 2):
                    return waiter
        return None

    def _due(self, *, fitting: bool = False) -> Iterator[_Waiter]:
        """Messages that could run now, in the order of their turns; if *fitting*, only those that fit a free slot."""
        now, is_open = self._loop.time(), self._breaker.backend.is_open
        for caller, waiters in self._waiting.items():
            if is_open and (caller in self._trusted_tries or not self._breaker.trusts(caller)):
                continue
            if not self._budget.has_room(caller):
                continue
            for waiter in waiters:
                if fitting and not self._fits(waiter):
                    # The same holds for the caller's other messages: no two of one conversation wait.
                    break
                if self._may_run(waiter) and self._breaker.held_until(waiter.party) <= now:
                    yield waiter

    def _may_run(self, waiter: _Waiter) -> bool:
        if waiter.is_suspect and self._suspect_runs:
            return False
        return self._fleet.fits(waiter.message.workspace_id, waiter.message.caller_id)

    def _fits(self, waiter: _Waiter) -> bool:
        """Whether this caller may have one of the free slots."""
        free = self._capacity - self.busy
        holds_none = waiter.party not in self._holding
        if self._capacity == 1:
            return free > 0
        if self._capacity == 2:
            return free > 1 or holds_none
        if waiter.message.caller_id is None:
            return free > 0
        left = min(free, self._capacity - 1 - self._held_by_peers)
        return left > 1 or (left == 1 and holds_none)

    def _set_timer(self) -> None:
        """Schedule ``reconsider`` for the next probe."""
        times = [self._breaker.backend.next_probe] if self._breaker.backend.is_open else []
        if self._breaker.callers:
            parties = (waiter.party for waiters in self._waiting.values() for waiter in waiters)
            times += map(self._breaker.held_until, parties)
        now = self._loop.time()
        when = min((time for time in times if time > now), default=None)
        if when is not None:
            self._timer = self._loop.call_at(when, self.reconsider)

    def _take(self, waiter: _Waiter) -> None:
        caller = waiter.message.caller_id
        self._forget(waiter)
        if caller in self._waiting:
            self._waiting.move_to_end(caller)
        if waiter.granted.cancelled():
            # Its task was cancelled and hasn't run yet.
            return
        if self._breaker.backend.is_open and self._breaker.trusts(caller):
            waiter.is_trusted_try = True
            self._trusted_tries.add(caller)
        self._breaker.attempt_started(waiter.party)
        waiter.reserved = self._budget.reserve(caller)
        self._suspect_runs = self._suspect_runs or waiter.is_suspect
        self.busy += 1
        self._holding[waiter.party] += 1
        self._held_by_peers += caller is not None
        self._fleet.take(waiter.message.workspace_id, caller)
        self._full_since = None
        waiter.granted.set_result(None)

    def release(self, waiter: _Waiter) -> None:
        """Give the slot to the next message."""
        self.busy -= 1
        self._holding[waiter.party] -= 1
        if not self._holding[waiter.party]:
            del self._holding[waiter.party]
        self._held_by_peers -= waiter.message.caller_id is not None
        self._budget.release(waiter.message.caller_id, waiter.reserved)
        if waiter.is_suspect:
            self._suspect_runs = False
        if waiter.is_trusted_try:
            self._trusted_tries.discard(waiter.message.caller_id)
        self.reconsider()
        self._fleet.release(waiter.message.workspace_id, waiter.message.caller_id)

    def _forget(self, waiter: _Waiter) -> None:
        caller = waiter.message.caller_id
        waiters = self._waiting.get(caller)
        if waiters is None or waiter not in waiters:
            return
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[caller]
