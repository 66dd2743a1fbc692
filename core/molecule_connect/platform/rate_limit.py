"""The platform's rate limit for one origin, shared so that heartbeats always fit.

The platform counts requests in fixed windows of a minute and reports limit, remaining requests and time to the next
window in ``X-RateLimit-*`` (contract 1.4). All other requests leave a reserve for heartbeats. If they had to wait for
the next window, they are spread evenly over it. Platforms of 2026-08 have a limit per token, which their counts show.

Replies to peers leave half of the window to reads and replies to people, so that busy peers can't use it up. The other
half is spread over the window. Peers take turns.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from molecule_connect.platform.endpoints import Priority

WINDOW = 60.0
SHARE = 0.6
# Shares of the requests for reads and sends: what messages to peers leave to others, and what reads may use at once.
RESERVE, READ_AT_ONCE = 0.5, 0.25
# Largest share of a window that is reserved for heartbeats.
MOST_RESERVED = 0.9
# Share that registering leaves to the heartbeats of registered workspaces.
RESERVED_AT_START = 0.25
LONGEST_SAFETY = 300.0
# The platform of 2026-05 treats a workspace as gone after 90 s without a heartbeat.
LONGEST_HEARTBEAT = 60.0
LONGEST_REFUSAL = 300.0
_USUAL = 30.0
# Interval of polls without an event stream while the feed is quiet.
_POLL = 5.0
# The priorities that start first while requests are spread.
_BEFORE = {
    Priority.LOOKUP: (Priority.REGISTER,),
    # A stream saves polls, and messages that were read have to be answered.
    Priority.READ: (Priority.REGISTER, Priority.LOOKUP, Priority.STREAM, Priority.SEND),
    Priority.STREAM: (Priority.REGISTER, Priority.LOOKUP),
}
# Responses after which the platform's counts show whether all workspaces share a limit.
ENOUGH_RESPONSES = 20


def _say_nothing(text: str) -> None:
    pass


class RateLimiter:
    """Delays requests to one origin.

    Args:
        say: Receives notices for the operator.

    Attributes:
        workspaces: How many workspaces share the limit; see ``join`` and ``leave``.
        limit: Requests per window, or None if the platform has no limit ("unlimited" is a possible value).
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
        # End of the window by this clock, up to a second early, and as the platform last reported it.
        self._window_end, self._reported_end = 0.0, float("-inf")
        # Running requests, and those of them that the platform counted in the window before.
        self._running = self._carried_over = 0
        # In this window: requests, responses, the platform's highest count, and a lower bound of requests of others.
        self._own = self._responses = self._counted = self._others = 0
        self._others_before = 0
        self._is_shared = True
        self._blocked_until: dict[Priority, float] = {}
        # By priority, and whether it is a message to a peer.
        self._queues = {
            (priority, to_peer): deque[asyncio.Event]() for priority in Priority for to_peer in (False, True)
        }
        self._turns = _Turns()
        self._spread_until = self._next_start = 0.0
        self._reported_state = ""
        self._reported_counts: tuple[object, ...] = ()

    def join(self) -> None:
        """Count a workspace that uses this origin."""
        self.workspaces += 1

    def leave(self) -> None:
        """Stop counting a workspace."""
        self.workspaces -= 1

    @property
    def is_limited(self) -> bool:
        """Whether requests are scarce, and unnecessary ones should be skipped."""
        return self._is_spread(self._clock())

    @property
    def remaining(self) -> int | None:
        """Requests that the platform still accepts in this window; None without a limit."""
        if self.limit is None:
            return None
        self._roll(self._clock())
        return max(0, self._remaining - (self._running - self._carried_over))

    def wait(self, priority: Priority, *, to_peer: bool = False) -> float:
        """Return the seconds until a request may start. A message *to_peer* leaves a reserve to others."""
        now = self._clock()
        if self.limit is not None:
            self._roll(now)
        wait = self._blocked_until.get(priority, 0.0) - now
        if priority is not Priority.HEARTBEAT and self.limit is not None and self._is_shared:
            rest, left = self._window_end - now, self._left(priority)
            if left <= 0:
                wait = max(wait, rest)
            elif to_peer:
                # The reserve shrinks towards the end of the window.
                wait = max(wait, rest - left * WINDOW / ((self.limit - self._reserve(priority)) * RESERVE))
            if self._is_spread(now):
                wait = max(wait, self._next_start - now + (self._spacing(priority) if self._yields(priority) else 0.0))
        return max(0.0, wait)

    async def admit(self, priority: Priority, *, peer: str = "") -> None:
        """Wait until a request of *priority* may start. Call ``ended`` once after each request.

        Args:
            peer: The receiving peer of a message.
        """
        if peer:
            await self._turns.take(peer)
        try:
            if self._queues[priority, bool(peer)] or self.wait(priority, to_peer=bool(peer)) > 0:
                await self._queue(priority, to_peer=bool(peer))
            now = self._clock()
            if self.limit is not None and priority is not Priority.HEARTBEAT and self._is_spread(now):
                self._next_start = max(now, self._next_start) + self._spacing(priority)
            self._running += 1
            self._own += 1
        finally:
            if peer:
                self._turns.pass_on()

    async def _queue(self, priority: Priority, *, to_peer: bool) -> None:
        """Wait behind the requests of the same kind."""
        queue, turn = self._queues[priority, to_peer], asyncio.Event()
        queue.append(turn)
        try:
            while True:
                if queue[0] is not turn:
                    await turn.wait()
                elif (wait := self.wait(priority, to_peer=to_peer)) > 0:
                    if priority is not Priority.HEARTBEAT and self.limit is not None and self._left(priority) <= 0:
                        self._spread_until = max(self._spread_until, self._window_end + WINDOW)
                    await self._sleep(wait)
                else:
                    return
        finally:
            queue.remove(turn)
            if queue:
                queue[0].set()

    def read_rest(self) -> float:
        """Return the seconds between reads after events, so that these use at most half of the remaining requests."""
        if self.limit is None:
            return 0.0
        now = self._clock()
        self._roll(now)
        if not self._is_shared:
            return 0.0
        left = self._left(Priority.READ)
        if left >= (self.limit - self._reserve(Priority.READ)) * (1 - READ_AT_ONCE):
            return 0.0
        return (self._window_end - now) / max(1.0, left / 2)

    def ended(
        self, priority: Priority, headers: Mapping[str, str] | None = None, *, refused_for: float | None = None
    ) -> None:
        """Record the end of a request.

        Args:
            headers: The headers of the response by lower-case name; None without a response.
            refused_for: Seconds of the Retry-After of a 429; None for another status.
        """
        self._running -= 1
        self._carried_over = max(0, self._carried_over - 1)
        now = self._clock()
        if refused_for is not None:
            longest = LONGEST_HEARTBEAT if priority is Priority.HEARTBEAT else LONGEST_REFUSAL
            self._blocked_until[priority] = now + min(refused_for, longest)
        if headers is None or "x-ratelimit-limit" not in headers:
            return
        had_limit, self.limit = self.limit is not None, _number(headers["x-ratelimit-limit"]) or None
        if self.limit is not None:
            self._count(now, self.limit, headers)
        if had_limit or self.limit is not None:
            self._report()

    def _count(self, now: float, limit: int, headers: Mapping[str, str]) -> None:
        remaining, reset = (_number(headers.get(f"x-ratelimit-{name}")) for name in ("remaining", "reset"))
        if remaining is None:
            return
        if reset is not None and not 0 < reset <= WINDOW:
            reset = None
        self._roll(now)
        expected = self._reported_end if now < self._reported_end else now + WINDOW
        end = expected if reset is None else now + reset
        if end > self._reported_end + WINDOW / 2:
            # Running requests count in this window, too.
            self._own, self._others_before = self._running + 1, self._others
            self._responses = self._counted = self._others = 0
            self._window_end = self._reported_end = end
        elif self._window_end > self._reported_end + WINDOW / 2:
            return  # it was counted in the window before
        self._remaining = remaining
        self._responses += 1
        self._counted = max(self._counted, limit - remaining)
        self._others = max(self._others, limit - remaining - self._own)
        if self._responses >= ENOUGH_RESPONSES:
            self._is_shared = self._counted >= self._responses / 2

    def safety_interval(self, usual: float = _USUAL, *, trusted: bool) -> float:
        """Return the interval of safety reads: *usual*, or longer for a low limit; at most 300 s if *trusted*."""
        return max(usual, min(LONGEST_SAFETY if trusted else LONGEST_HEARTBEAT, self._load / SHARE))

    def heartbeat_interval(self, usual: float = _USUAL) -> float:
        """Return the interval of heartbeats: *usual*, or longer for a low limit; at most 60 s."""
        return max(usual, min(LONGEST_HEARTBEAT, self._load / (1 - SHARE)))

    def poll_interval(self) -> float:
        """Return the minimum interval of polls without a stream, at most 60 s; 0 while requests aren't scarce."""
        return self.safety_interval(_POLL, trusted=False) if self.is_limited else 0.0

    @property
    def _load(self) -> float:
        """The interval, in seconds, at which one request of each workspace uses up the limit. 0 without a limit."""
        if self.limit is None or not self._is_shared:
            return 0.0
        return self.workspaces * WINDOW / max(1, self.limit - self._used_by_others())

    def _used_by_others(self) -> int:
        return max(self._others, self._others_before)

    def _yields(self, priority: Priority) -> bool:
        """Whether another priority starts first. Messages to peers never do."""
        return any(self._queues[other, False] for other in _BEFORE.get(priority, ()))

    def _left(self, priority: Priority) -> float:
        """Return how many requests of *priority* may start in the current window."""
        return self._remaining - (self._running - self._carried_over) - self._reserve(priority)

    def _reserve(self, priority: Priority) -> float:
        """Return how many requests of a window *priority* leaves to heartbeats."""
        limit = self.limit or 0
        if priority in (Priority.REGISTER, Priority.LOOKUP):
            # A workspace sends no heartbeats before it is registered.
            return RESERVED_AT_START * limit
        return min(
            MOST_RESERVED * limit, max((1 - SHARE) * limit, self.workspaces * WINDOW / self.heartbeat_interval())
        )

    def _is_spread(self, now: float) -> bool:
        """Whether requests are spread over the window, because they had to wait or are too many for the limit."""
        return now < self._spread_until or self._load > _USUAL * (1 - SHARE)

    def _spacing(self, priority: Priority) -> float:
        limit = self.limit or 1
        return WINDOW / max(1.0, limit - self._reserve(priority) - self._used_by_others())

    def _roll(self, now: float) -> None:
        """Enter the next window by this clock. The next response reports its exact end."""
        if self.limit is not None and now >= self._window_end > 0.0:
            self._window_end = now + WINDOW
            self._remaining, self._carried_over = self.limit, self._running
            if any(queue for (priority, _), queue in self._queues.items() if priority is not Priority.HEARTBEAT):
                self._spread_until = self._window_end

    def _report(self) -> None:
        counts = self.workspaces, self.limit, self._used_by_others(), self._is_shared
        is_early = self.workspaces >= 2 * ENOUGH_RESPONSES and self._responses < ENOUGH_RESPONSES
        if counts == self._reported_counts or is_early:
            return
        self._reported_counts = counts
        state, text = self._state()
        if state != self._reported_state:
            self._reported_state = state
            self._say(text)

    def _state(self) -> tuple[str, str]:
        """Return the state of the limit, and its description for the operator."""
        count, limit = self.workspaces, self.limit or 0
        safety, beat = self.safety_interval(trusted=True), self.heartbeat_interval()
        poll = self.safety_interval(_POLL, trusted=False)
        free = max(1, limit - self._used_by_others())
        # At the longest intervals, with an event stream each.
        fit = int(free / (WINDOW / LONGEST_HEARTBEAT + WINDOW / LONGEST_SAFETY))
        if self.limit is not None and self._is_shared and count > fit:
            return "too small", (
                f"{count} workspaces can't keep to the platform's limit of {limit} requests a minute: about {fit} can, "
                "each with an event stream; the others will look offline at times -> serve fewer from this address, "
                "serve some from another one, or raise the platform's RATE_LIMIT"
            )
        if safety > _USUAL or beat > _USUAL:
            return "small", (
                f"{count} workspaces share the platform's limit of {limit} requests a minute: safety reads now run "
                f"every {safety:.0f} s, heartbeats every {beat:.0f} s, and polls without an event stream every "
                f"{poll:.0f} s -> serve fewer workspaces, use a longer --interval-ms, or raise RATE_LIMIT"
            )
        return "", "the platform's rate limit is high enough again: safety reads and heartbeats run as usual"


class _Turns:
    """A lock that peers get in turn; the messages of a peer keep their order."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._is_taken = False

    async def take(self, peer: str) -> None:
        """Wait for the lock, for *peer*. Call ``pass_on`` afterwards."""
        if self._is_taken:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(peer, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self.pass_on()
                raise
        self._is_taken = True

    def pass_on(self) -> None:
        """Give the lock to the next peer."""
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
