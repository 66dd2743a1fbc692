"""Limits on how many calls wait for a response at the same time."""

import asyncio
from collections import deque

# Seconds that a call counts; a peer that takes a minute to answer delays no other call.
PATIENCE = 1.0


class CallLimit:
    """Limits the calls of each kind. Kinds don't wait for each other.

    Args:
        count: Calls of one kind that may wait for their response.
        patience: Seconds after which a call no longer counts, so that an endpoint that hangs doesn't block new calls.
    """

    def __init__(self, count: int, *, patience: float = PATIENCE) -> None:
        self._count, self._patience = count, patience
        self._kinds: dict[str, _Calls] = {}

    def of(self, kind: str) -> "Call":
        """Count a call of *kind* inside an ``async with`` block, which waits until the limit has room."""
        calls = self._kinds.get(kind)
        if calls is None:
            self._kinds = {name: calls for name, calls in self._kinds.items() if calls.are_pending}
            calls = self._kinds[kind] = _Calls(self._count, self._patience)
        return Call(calls)


class Call:
    """A call that waits for the limit on entry, and counts until its block ends."""

    def __init__(self, calls: "_Calls") -> None:
        self._calls = calls
        self.turn: asyncio.Future[None] | None = None

    async def __aenter__(self) -> None:
        await self._calls.start(self)

    async def __aexit__(self, *_: object) -> None:
        self._calls.end(self)


class _Calls:
    def __init__(self, count: int, patience: float) -> None:
        self._count, self._patience = count, patience
        # The running calls that still count, in order of their start time.
        self._running: dict[Call, float] = {}
        self._waiting: deque[Call] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def are_pending(self) -> bool:
        return bool(self._running or self._waiting)

    async def start(self, call: Call) -> None:
        loop = asyncio.get_running_loop()
        if not self._waiting and self._has_room(loop.time()):
            self._running[call] = loop.time()
            return
        call.turn = loop.create_future()
        self._waiting.append(call)
        self._admit()
        try:
            await call.turn
        except asyncio.CancelledError:
            if call in self._waiting:
                self._waiting.remove(call)
            self.end(call)
            raise

    def end(self, call: Call) -> None:
        self._running.pop(call, None)
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        """Start waiting calls while there is room, and come back when the oldest running call stops counting."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = loop.time()
        while self._waiting and self._has_room(now):
            call = self._waiting.popleft()
            if call.turn is not None and not call.turn.done():
                self._running[call] = now
                call.turn.set_result(None)
        if self._waiting:
            self._timer = loop.call_at(next(iter(self._running.values())) + self._patience, self._admit)

    def _has_room(self, now: float) -> bool:
        while self._running:
            oldest = next(iter(self._running))
            if self._running[oldest] + self._patience > now:
                break
            del self._running[oldest]
        return len(self._running) < self._count
