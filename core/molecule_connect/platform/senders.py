"""Eight places for sends, each with a transport of one connection; whoever waits long gives its place to the next."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

SENDERS = 8
PATIENCE = 1.0


class Closable(Protocol):
    async def aclose(self) -> None: ...


C = TypeVar("C", bound=Closable)
R = TypeVar("R")


class Senders(Generic[C]):
    """A free list of transports, made when they are first needed.

    Args:
        patience: Seconds after which a send that still waits for its answer no longer counts: a peer that thinks for a
            minute holds nobody up.
    """

    def __init__(self, open_transport: Callable[[], C], *, count: int = SENDERS, patience: float = PATIENCE) -> None:
        self._open, self._count, self._patience = open_transport, count, patience
        self._places = asyncio.Semaphore(count)
        self._free: list[C] = []
        self._closed = False

    async def run(self, work: Callable[[C], Awaitable[R]]) -> R:
        """What *work* gives when it is handed a transport that nobody else uses."""
        await self._places.acquire()
        holds_place = True

        def give_back() -> None:
            nonlocal holds_place
            if holds_place:
                holds_place = False
                self._places.release()

        try:
            transport = self._free.pop() if self._free else self._open()
        except BaseException:
            give_back()
            raise
        timer = asyncio.get_running_loop().call_later(self._patience, give_back)
        try:
            return await work(transport)
        finally:
            timer.cancel()
            is_kept = len(self._free) < self._count and not self._closed
            if is_kept:
                self._free.append(transport)
            give_back()
            if not is_kept:
                await transport.aclose()

    async def aclose(self) -> None:
        """Closes the free ones now, and those at work when they end."""
        self._closed = True
        while self._free:
            await self._free.pop().aclose()
