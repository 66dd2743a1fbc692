"""Shares the platform's rate limit of one origin between beats, reads and sends, so that a beat always has room.

The platform counts requests in fixed windows of a minute and tells limit, rest and time to the next window in
``X-RateLimit-*`` (contract 1.4). Reads and sends stop at 60 % of the window; the rest is for beats.

So that peers that write a lot don't use up the window, their answers leave half of it to reads and answers to people:
half may be sent at once, the other half is spread over the window. Peers take turns.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from molecule_connect.platform.operations import Lane

WINDOW = 60.0
SHARE = 0.6
# Of what reads and sends may use: left to others by messages to peers, and used by reads at once.
RESERVE, READ_AT_ONCE = 0.5, 0.25
LONGEST_SAFETY = 300.0
# The platform of 2026-05 takes a workspace for gone after 90 s without a beat.
LONGEST_BEAT = 60.0
LONGEST_REFUSAL = 300.0
_USUAL = 30.0


def _say_nothing(text: str) -> None:
    pass


class Pacer:
    """What the requests to one origin may do.

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
        self._window_end = 0.0
        self._under_way = 0
        self._own = 0
        self._others = 0
        self._blocked_until: dict[Lane, float] = {}
        self._said = False
        self._turns = _Turns()

    def join(self) -> None:
        """One workspace more uses this origin."""
        self.workspaces += 1

    def leave(self) -> None:
        """One workspace less."""
        self.workspaces -= 1

    def wait(self, lane: Lane, *, to_peer: bool = False) -> float:
        """Seconds until a request of *lane* may begin. A message *to_peer* leaves a reserve to others."""
        now = self._clock()
        wait = self._blocked_until.get(lane, 0.0) - now
        if lane is not Lane.BEAT and (limit := self._limit_at(now)) is not None:
            rest, left = self._window_end - now, self._left(limit)
            if left <= 0:
                wait = max(wait, rest)
            elif to_peer:
                # The reserve shrinks with the rest of the window.
                wait = max(wait, rest - left * WINDOW / (limit * SHARE * RESERVE))
        return max(0.0, wait)

    async def admit(self, lane: Lane, *, peer: str = "") -> None:
        """Returns when a request of *lane* may begin. Each is followed by exactly one ``ended``.

        Args:
            peer: Whom the message is for, if it is for a peer.
        """
        if not peer:
            await self._admit(lane)
            return
        async with self._turns.of(peer):
            await self._admit(lane, to_peer=True)

    async def _admit(self, lane: Lane, *, to_peer: bool = False) -> None:
        while (wait := self.wait(lane, to_peer=to_peer)) > 0:
            await self._sleep(wait)
        self._under_way += 1
        self._own += 1

    def read_rest(self) -> float:
        """Seconds between two reads that events ask for, so that these use at most half of what is left."""
        now = self._clock()
        if (limit := self._limit_at(now)) is None:
            return 0.0
        left = self._left(limit)
        if left >= limit * SHARE * (1 - READ_AT_ONCE):
            return 0.0
        return (self._window_end - now) / max(1.0, left / 2)

    def _limit_at(self, now: float) -> int | None:
        """The limit of the current window, None where none is known."""
        return self.limit if now < self._window_end else None

    def _left(self, limit: int) -> float:
        """How many reads and sends may begin in the current window."""
        return self._remaining - self._under_way - limit * (1 - SHARE)

    def ended(self, lane: Lane, headers: Mapping[str, str] | None = None, *, refused_for: float | None = None) -> None:
        """A request of *lane* is over: what its answer's *headers* say of the window.

        Args:
            headers: By lower-case name; None when no answer came.
            refused_for: Seconds of a 429's Retry-After; None when it was no 429.
        """
        self._under_way -= 1
        now = self._clock()
        if refused_for is not None:
            longest = LONGEST_BEAT if lane is Lane.BEAT else LONGEST_REFUSAL
            self._blocked_until[lane] = now + min(refused_for, longest)
        if headers is None or "x-ratelimit-limit" not in headers:
            return
        limit, remaining, reset = (
            _number(headers.get(f"x-ratelimit-{name}")) for name in ("limit", "remaining", "reset")
        )
        self.limit = limit or None
        if limit and remaining is not None:
            if now >= self._window_end:
                self._own, self._others = self._under_way + 1, 0
                self._window_end = now + (reset if reset is not None and 0 < reset <= WINDOW else WINDOW)
            self._remaining = remaining
            self._others = max(self._others, limit - remaining - self._own)
        self._tell()

    def safety_interval(self, usual: float = _USUAL, *, trusted: bool) -> float:
        """Seconds between safety reads: *usual*, or more in a small window; at most 300 with a *trusted* stream."""
        return self._stretched(usual, SHARE, LONGEST_SAFETY if trusted else LONGEST_BEAT)

    def beat_interval(self, usual: float = _USUAL) -> float:
        """Seconds between beats of one workspace: *usual*, more where the window is small; 60 at most."""
        return self._stretched(usual, 1 - SHARE, LONGEST_BEAT)

    def _stretched(self, usual: float, share: float, longest: float) -> float:
        if self.limit is None:
            return usual
        allowed = share * max(1, self.limit - self._others)
        needed = self.workspaces * WINDOW / usual
        return max(usual, min(longest, usual * needed / allowed))

    def _tell(self) -> None:
        safety, beat = self.safety_interval(trusted=True), self.beat_interval()
        stretched = safety > _USUAL or beat > _USUAL
        if stretched and not self._said:
            self._say(
                f"the platform allows {self.limit} requests a minute, which {self.workspaces} workspaces share: "
                f"safety reads now come every {safety:.0f} s, heartbeats every {beat:.0f} s"
            )
        elif self._said and not stretched:
            self._say("the platform's rate limit is wide enough again: safety reads and heartbeats come as usual")
        self._said = stretched


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
