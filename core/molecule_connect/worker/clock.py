"""The times that a worker uses."""

import time
from collections.abc import Callable

from molecule_connect.worker.ports import Feed

SECOND = 1_000_000


class Clock:
    """This machine's clock, and the platform's clock as its responses show it.

    Args:
        wall: Seconds since 1970 by this machine's clock, which may be set back or forward.
        monotonic: Seconds by a clock that is never set.
        started: When the user asked for the worker, by *monotonic*; by default, the time of creation.
    """

    def __init__(
        self,
        platform: Feed,
        wall: Callable[[], float] = time.time,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        started: float | None = None,
    ) -> None:
        self._platform = platform
        self.wall = wall
        self.monotonic = monotonic
        self._started = monotonic() if started is None else started

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self.monotonic() - self._started

    def platform_now(self) -> int | None:
        """A lower bound of the platform's time in microseconds; None until a response has shown it."""
        return self._platform.now()

    def now(self) -> int:
        """The platform's time in microseconds; this machine's time until the platform's is known."""
        platform_now = self._platform.now()
        return round(self.wall() * SECOND) if platform_now is None else platform_now
