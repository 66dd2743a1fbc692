"""A flag that tasks wait for."""

import asyncio


class Flag:
    """An ``asyncio.Event`` of a fifth of the memory, of which a workspace has many, with a time limit for ``wait``."""

    __slots__ = ("_is_set", "_waiters")

    def __init__(self) -> None:
        self._is_set = False
        self._waiters: list[asyncio.Future[bool]] = []

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake the tasks that wait."""
        self._is_set = True
        for waiter in self._waiters:
            _resolve(waiter, True)

    def clear(self) -> None:
        """Reset it."""
        self._is_set = False

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, for at most *seconds*. Returns whether it was set in time."""
        if self._is_set:
            return True
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[bool] = loop.create_future()
        timer = loop.call_later(seconds, _resolve, waiter, False) if seconds is not None else None
        self._waiters.append(waiter)
        try:
            return await waiter
        finally:
            self._waiters.remove(waiter)
            if timer is not None:
                timer.cancel()


def _resolve(waiter: "asyncio.Future[bool]", is_set: bool) -> None:
    if not waiter.done():
        waiter.set_result(is_set)
