"""One-connection transports for concurrent calls, and the limit on how many calls of a kind start at once."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

SENDERS = 8
PATIENCE = 1.0


class Closable(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closable)
R = TypeVar("R")


class Places:
    """Limits how many calls start at once, by kind. Kinds don't wait for each other.

    Args:
        count: Calls of one kind that may wait for their answer.
        patience: Seconds after which a call that still waits no longer counts: an endpoint that hangs doesn't keep
            the next call from starting.
    """

    def __init__(self, count: int, *, patience: float = PATIENCE) -> None:
        self._count, self._patience = count, patience
        self._kinds: dict[str, asyncio.Semaphore] = {}
        self._users: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def of(self, kind: str) -> AsyncIterator[None]:
        """Hold a place of *kind*, at most for the patience; waits while all of them are taken."""
        places = self._kinds.setdefault(kind, asyncio.Semaphore(self._count))
        self._users[kind] += 1
        try:
            async with self._held(places):
                yield
        finally:
            self._users[kind] -= 1
            if not self._users[kind]:
                del self._users[kind], self._kinds[kind]

    @contextlib.asynccontextmanager
    async def _held(self, places: asyncio.Semaphore) -> AsyncIterator[None]:
        await places.acquire()
        holds_place = True

        def give_back() -> None:
            nonlocal holds_place
            if holds_place:
                holds_place = False
                places.release()

        timer = asyncio.get_running_loop().call_later(self._patience, give_back)
        try:
            yield
        finally:
            timer.cancel()
            give_back()


class Senders(Generic[C]):
    """A free list of transports, opened when they are first needed. A transport serves one call at a time.

    Args:
        count: Calls of one kind that may wait for their answer, and transports that are kept open while idle.
        patience: As in ``Places``: a peer that thinks for a minute delays no other call.
    """

    def __init__(self, open_transport: Callable[[], C], *, count: int = SENDERS, patience: float = PATIENCE) -> None:
        self._open, self._count = open_transport, count
        self._places = Places(count, patience=patience)
        self._free: list[C] = []
        self._closed = False

    async def run(self, work: Callable[[C], Awaitable[R]], *, kind: str = "") -> R:
        """The result of *work*, which gets a transport that no other call uses."""
        async with self._places.of(kind):
            transport = self._free.pop() if self._free else self._open()
            try:
                return await work(transport)
            finally:
                if len(self._free) < self._count and not self._closed:
                    self._free.append(transport)
                else:
                    await transport.aclose()

    async def aclose(self) -> None:
        """Closes the idle transports now, and those in use when their calls end."""
        self._closed = True
        while self._free:
            await self._free.pop().aclose()
