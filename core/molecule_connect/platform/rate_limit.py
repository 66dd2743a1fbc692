"""Shares the platform's rate limit of one origin, so that a heartbeat always fits.

The platform counts requests in fixed windows of a minute and gives limit, remainder and time to the next window in
``X-RateLimit-*`` (contract 1.4). All other requests leave a reserve for heartbeats. Once they had to wait for the next
window, they are spread evenly over it. Platforms of 2026-08 count each token by itself, which shows by their counts.

So that peers that write a lot don't use up the window, their answers leave half of it to reads and answers to people:
half may be sent at once, the other half is spread over the window. Peers take turns.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from molecule_connect.platform.endpoints import Priority

WINDOW = 60.0
SHARE = 0.6
# Of what reads and sends may use: left to others by messages to peers, and used by reads at once.
RESERVE, READ_AT_ONCE = 0.5, 0.25
# What a window may be used up to at most by heartbeats alone.
MOST_RESERVED = 0.9
# What registering leaves to the heartbeats of those that are registered.
RESERVED_AT_START = 0.25
LONGEST_SAFETY = 300.0
# The platform of 2026-05 takes a workspace for gone after 90 s without a beat.
LONGEST_BEAT = 60.0
LONGEST_REFUSAL = 300.0
_USUAL = 30.0
# Polls of a workspace that has no event stream, while nothing arrives.
_POLL = 5.0
# Once starts are spread, what a priority yields to.
_BEFORE = {
    Priority.LOOKUP: (Priority.REGISTER,),
    # A stream saves polls, and what was read before has to be answered.
    Priority.READ: (Priority.REGISTER, Priority.LOOKUP, Priority.STREAM, Priority.SEND),
    Priority.STREAM: (Priority.REGISTER, Priority.LOOKUP),
}
# Answers after which the platform's count shows whether it counts all workspaces together.
ENOUGH_ANSWERS = 20


def _say_nothing(text: str) -> None:
    pass


class _Turn:
    """A request that waits to start."""

    def __init__(self) -> None:
        self.is_next = asyncio.Event()


class RateLimiter:
    """Says when requests to one origin may start.

    Attributes:
        workspaces: How many workspaces share it; kept by ``join`` and ``leave``.
        limit: Requests per window, or None while the platform sets none ("unlimited" is a value too).
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        say: Callable[[str], None] = _say_nothing,
    ) -> None:
        self.workspaces = 0
        self.limit: int | None = None
        self._clock, self._sleep, self._say = clock, sleep, say
        self._remaining = 0
        # When the window ends as far as we know, and as the platform last said; ours is up to a second early.
        self._window_end, self._told_end = 0.0, float("-inf")
        # Those of the window before that are still under way were counted there.
        self._under_way = self._carried_over = 0
        # Of this window: our requests, our answers, the platform's highest count, and what others used at least.
        self._own = self._answers = self._counted = self._others = 0
        self._others_before = 0
        self._is_shared = True
        self._blocked_until: dict[Priority, float] = {}
        # By priority, and whether it is a message to a peer.
        self._queues = {(priority, to_peer): deque[_Turn]() for priority in Priority for to_peer in (False, True)}
        self._turns = _Turns()
        self._spread_until = self._next_start = 0.0
        self._said = ""

    def join(self) -> None:
        """One workspace more uses this origin."""
        self.workspaces += 1

    def leave(self) -> None:
        """One workspace less."""
        self.workspaces -= 1

    @property
    def is_limited(self) -> bool:
        """Whether requests have to be saved: what isn't needed should not be sent."""
        return self._is_spread(self._clock())

    def wait(self, priority: Priority, *, to_peer: bool = False) -> float:
        """Seconds until a request of *priority* may start. A message *to_peer* leaves a reserve to others."""
        now = self._clock()
        self._roll(now)
        wait = self._blocked_until.get(priority, 0.0) - now
        if priority is not Priority.HEARTBEAT and self.limit is not None and self._is_shared:
            rest, left = self._window_end - now, self._left(priority)
            if left <= 0:
                wait = max(wait, rest)
            elif to_peer:
                # The reserve shrinks with the rest of the window.
                wait = max(wait, rest - left * WINDOW / ((self.limit - self._reserve(priority)) * RESERVE))
            if self._is_spread(now):
                wait = max(wait, self._next_start - now + (self._spacing(priority) if self._yields(priority) else 0.0))
        return max(0.0, wait)

    async def admit(self, priority: Priority, *, peer: str = "") -> None:
        """Returns when a request of *priority* may start. Each is followed by exactly one ``ended``.

        Args:
            peer: Whom the message is for, if it is for a peer.
        """
        if not peer:
            await self._admit(priority)
            return
        async with self._turns.of(peer):
            await self._admit(priority, to_peer=True)

    async def _admit(self, priority: Priority, *, to_peer: bool = False) -> None:
        queue, turn = self._queues[priority, to_peer], _Turn()
        queue.append(turn)
        try:
            while True:
                if queue[0] is not turn:
                    await turn.is_next.wait()
                elif (wait := self.wait(priority, to_peer=to_peer)) > 0:
                    if priority is not Priority.HEARTBEAT and self.limit is not None and self._left(priority) <= 0:
                        self._spread_until = max(self._spread_until, self._window_end + WINDOW)
                    await self._sleep(wait)
                else:
                    break
            if priority is not Priority.HEARTBEAT and self._is_spread(self._clock()):
                self._next_start = max(self._clock(), self._next_start) + self._spacing(priority)
        finally:
            queue.remove(turn)
            if queue:
                queue[0].is_next.set()
        self._under_way += 1
        self._own += 1

    def read_rest(self) -> float:
        """Seconds between two reads that events ask for, so that these use at most half of what is left."""
        now = self._clock()
        self._roll(now)
        if self.limit is None or not self._is_shared:
            return 0.0
        left = self._left(Priority.READ)
        if left >= (self.limit - self._reserve(Priority.READ)) * (1 - READ_AT_ONCE):
            return 0.0
        return (self._window_end - now) / max(1.0, left / 2)

    def ended(
        self, priority: Priority, headers: Mapping[str, str] | None = None, *, refused_for: float | None = None
    ) -> None:
        """A request of *priority* is over: what its answer's *headers* say of the window.

        Args:
            headers: By lower-case name; None when no answer came.
            refused_for: Seconds of a 429's Retry-After; None when it was no 429.
        """
        self._under_way -= 1
        self._carried_over = max(0, self._carried_over - 1)
        now = self._clock()
        if refused_for is not None:
            longest = LONGEST_BEAT if priority is Priority.HEARTBEAT else LONGEST_REFUSAL
            self._blocked_until[priority] = now + min(refused_for, longest)
        if headers is None or "x-ratelimit-limit" not in headers:
            return
        limit, remaining, reset = (
            _number(headers.get(f"x-ratelimit-{name}")) for name in ("limit", "remaining", "reset")
        )
        self.limit = limit or None
        if limit and remaining is not None:
            self._count(now, limit, remaining, reset if reset is not None and 0 < reset <= WINDOW else None)
        self._tell()

    def _count(self, now: float, limit: int, remaining: int, reset: int | None) -> None:
        self._roll(now)
        unsaid = self._told_end if now < self._told_end else now + WINDOW
        end = unsaid if reset is None else now + reset
        if end > self._told_end + WINDOW / 2:
            # Those of our requests that are still under way are counted in this window too.
            self._own, self._others_before = self._under_way + 1, self._others
            self._answers = self._counted = self._others = 0
            self._window_end = self._told_end = end
        elif self._window_end > self._told_end + WINDOW / 2:
            return  # it was counted in the window that we have left
        self._remaining = remaining
        self._answers += 1
        self._counted = max(self._counted, limit - remaining)
        self._others = max(self._others, limit - remaining - self._own)
        if self._answers >= ENOUGH_ANSWERS:
            self._is_shared = self._counted >= self._answers / 2

    def safety_interval(self, usual: float = _USUAL, *, trusted: bool) -> float:
        """Seconds between safety reads: *usual*, or more in a small window; at most 300 with a *trusted* stream."""
        return self._stretched(usual, SHARE, LONGEST_SAFETY if trusted else LONGEST_BEAT)

    def heartbeat_interval(self, usual: float = _USUAL) -> float:
        """Seconds between beats of one workspace: *usual*, more where the window is small; 60 at most."""
        return self._stretched(usual, 1 - SHARE, LONGEST_BEAT)

    def poll_interval(self, usual: float = _POLL) -> float:
        """Seconds between polls without a stream: *usual*, or more in a small window; at most 60."""
        return self.safety_interval(usual, trusted=False)

    def _stretched(self, usual: float, share: float, longest: float) -> float:
        if self.limit is None or not self._is_shared:
            return usual
        allowed = share * max(1, self.limit - self._used_by_others())
        needed = self.workspaces * WINDOW / usual
        return max(usual, min(longest, usual * needed / allowed))

    def _used_by_others(self) -> int:
        return max(self._others, self._others_before)

    def _yields(self, priority: Priority) -> bool:
        """Whether the next start belongs to another priority. Messages to peers have no such right."""
        return any(self._queues[other, False] for other in _BEFORE.get(priority, ()))

    def _left(self, priority: Priority) -> float:
        """How many requests of *priority* may start in the current window."""
        return self._remaining - (self._under_way - self._carried_over) - self._reserve(priority)

    def _reserve(self, priority: Priority) -> float:
        """How much of a window *priority* leaves to heartbeats."""
        limit = self.limit or 0
        if priority in (Priority.REGISTER, Priority.LOOKUP):
            # A workspace that isn't registered yet needs no heartbeats.
            return RESERVED_AT_START * limit
        return min(
            MOST_RESERVED * limit, max((1 - SHARE) * limit, self.workspaces * WINDOW / self.heartbeat_interval())
        )

    def _is_spread(self, now: float) -> bool:
        """Whether the requests of a window are spread over it: they had to wait, or are more than fit as usual."""
        return now < self._spread_until or self.heartbeat_interval() > _USUAL

    def _spacing(self, priority: Priority) -> float:
        limit = self.limit or 1
        return WINDOW / max(1.0, limit - self._reserve(priority) - self._used_by_others())

    def _roll(self, now: float) -> None:
        """Enter the next window, as far as our clock tells; the next answer says exactly when it ends."""
        if self.limit is not None and now >= self._window_end > 0.0:
            self._window_end = now + WINDOW
            self._remaining, self._carried_over = self.limit, self._under_way
            if any(queue for (priority, _), queue in self._queues.items() if priority is not Priority.HEARTBEAT):
                self._spread_until = self._window_end

    def _tell(self) -> None:
        if self.workspaces >= 2 * ENOUGH_ANSWERS and self._answers < ENOUGH_ANSWERS:
            return
        said, text = self._words()
        if said != self._said:
            self._said = said
            self._say(text)

    def _words(self) -> tuple[str, str]:
        """What there is to say of the limit: a word for it, and the text."""
        count, limit = self.workspaces, self.limit or 0
        safety, beat, poll = self.safety_interval(trusted=True), self.heartbeat_interval(), self.poll_interval()
        free = max(1, limit - self._used_by_others())
        # At the longest intervals, with an event stream each.
        fit = int(free / (WINDOW / LONGEST_BEAT + WINDOW / LONGEST_SAFETY))
        if self.limit is not None and self._is_shared and count > fit:
            return "too small", (
                f"{count} workspaces can't keep to the platform's limit of {limit} requests a minute: about {fit} can, "
                "with an event stream each, and the others will look offline at times -> serve fewer from this "
                "address, serve some from another one, or raise the platform's RATE_LIMIT"
            )
        if safety > _USUAL or beat > _USUAL:
            return "small", (
                f"the platform allows {limit} requests a minute, which {count} workspaces share: safety reads now come "
                f"every {safety:.0f} s, heartbeats every {beat:.0f} s, and polls where there is no event stream every "
                f"{poll:.0f} s -> fewer workspaces, a longer --interval-ms, another address or a higher RATE_LIMIT help"
            )
        return "", "the platform's rate limit is wide enough again: safety reads and heartbeats come as usual"


class _Turns:
    """A lock for which peers queue up, each behind its own messages; the lock goes round."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._is_taken = False

    @asynccontextmanager
    async def of(self, peer: str) -> AsyncIterator[None]:
        """Hold the lock inside the block."""
        if self._is_taken:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(peer, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._hand_on()
                raise
        self._is_taken = True
        try:
            yield
        finally:
            self._hand_on()

    def _hand_on(self) -> None:
        self._is_taken = False
        while self._waiting:
            peer = next(iter(self._waiting))
            queue = self._waiting.pop(peer)
            turn = queue.popleft()
            if queue:
                self._waiting[peer] = queue
            if not turn.cancelled():
                self._is_taken = True
                turn.set_result(None)
                return


def _number(value: str | None) -> int | None:
    value = (value or "").strip()
    return int(value[:12]) if value.isascii() and value.isdigit() else None
