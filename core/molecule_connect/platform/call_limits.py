"""Limits on how many calls wait for a response at the same time."""

import asyncio

import attrs

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
        self._kinds: dict[str, _Kind] = {}

    def of(self, kind: str) -> "Call":
        """Count a call of *kind* inside an ``async with`` block, which waits until the limit has room."""
        calls = self._kinds.get(kind)
        if calls is None:
            self._kinds = {name: calls for name, calls in self._kinds.items() if calls.running or calls.waiting}
            calls = self._kinds[kind] = _Kind(self._count, self._patience)
        return Call(calls)


@attrs.define(eq=False)
class Call:
    """A call that waits for the limit on entry, and counts until its block ends."""

    kind: "_Kind"
    turn: "asyncio.Future[None] | None" = None

    async def __aenter__(self) -> None:
        now = asyncio.get_running_loop().time()
        if self.kind.waiting or not self.kind.has_room(now):
            await self.kind.wait(self)
        else:
            self.kind.running[self] = now

    async def __aexit__(self, *_: object) -> None:
        self.kind.running.pop(self, None)
        if self.kind.waiting:
            self.kind.admit()


@attrs.define(eq=False)
class _Kind:
    """The calls of one kind.

    Attributes:
        running: The calls that still count, with their start time, in the order of their start.
        waiting: In the order of their arrival. A dict takes a tenth of the memory of an empty deque.
    """

    count: int
    patience: float
    running: dict[Call, float] = attrs.field(factory=dict)
    waiting: dict[Call, None] = attrs.field(factory=dict)
    timer: asyncio.TimerHandle | None = None

    def has_room(self, now: float) -> bool:
        while self.running:
            oldest = next(iter(self.running))
            if self.running[oldest] + self.patience > now:
                break
            del self.running[oldest]
        return len(self.running) < self.count

    async def wait(self, call: Call) -> None:
        call.turn = asyncio.get_running_loop().create_future()
        self.waiting[call] = None
        self.admit()
        try:
            await call.turn
        except asyncio.CancelledError:
            self.waiting.pop(call, None)
            self.running.pop(call, None)
            self.admit()
            raise

    def admit(self) -> None:
        """Start waiting calls while there is room, and again when the oldest running call stops counting."""
        loop = asyncio.get_running_loop()
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        now = loop.time()
        while self.waiting and self.has_room(now):
            call = next(iter(self.waiting))
            del self.waiting[call]
            if call.turn is not None and not call.turn.done():
                self.running[call] = now
                call.turn.set_result(None)
        if self.waiting:
            self.timer = loop.call_at(next(iter(self.running.values())) + self.patience, self.admit)
