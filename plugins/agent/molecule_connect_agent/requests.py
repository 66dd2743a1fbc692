"""Requests to the platform, repeated where that can't do harm, and waits that end when the client is closed."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import IO, Final, TypeVar

from molecule_connect import (
    AsyncPlatformClient,
    ConfigError,
    PermanentPlatformError,
    PlatformError,
    TransientPlatformError,
    endpoints,
)

T = TypeVar("T")
RETRIES = 3
# The window of a rate limit is a minute, and the platform asks for all of it at most.
LONGEST_DELAY: Final = 60.0
# The platform client sends nothing for this long after a 429 without a Retry-After.
DEFAULT_RETRY_AFTER = 5.0
LONGEST_BODY = 1 << 20
_LIMITED = 429


class ClosedError(ConfigError):
    """The client was closed."""

    def __init__(self) -> None:
        super().__init__("the client is closed", hint="make a new one")


class InjectedTime:
    """The clock of a client whose *sleep* was injected. A wait takes its time even if *clock* doesn't show it."""

    def __init__(self, clock: Callable[[], float], sleep: Callable[[float], Awaitable[object]]) -> None:
        self._clock, self._sleep = clock, sleep
        self._ahead = 0.0

    def now(self) -> float:
        """Seconds."""
        return self._clock() + self._ahead

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        end = self.now() + seconds
        await self._sleep(seconds)
        self._ahead += max(0.0, end - self.now())


class Requests:
    """Sends the requests of one client until it is closed.

    Args:
        clock: Seconds by a clock that is never set.
        sleep: Waits instead of the event loop.
    """

    def __init__(
        self,
        platform: AsyncPlatformClient,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[object]] | None,
    ) -> None:
        self.workspace_id = platform.workspace_id
        self.clock = clock
        self.platform = platform
        self._sleep = sleep
        self._closed = asyncio.Event()

    async def aclose(self) -> None:
        """End all waits, refuse more requests, and close the connections when their requests are answered."""
        if not self._closed.is_set():
            self._closed.set()
            await self.platform.aclose()

    def check_open(self) -> None:
        """Raise ClosedError if the client was closed."""
        if self._closed.is_set():
            raise ClosedError

    async def send(
        self,
        operation: endpoints.Operation[T],
        *,
        retries: int = RETRIES,
        repeatable: bool | None = None,
        is_final: Callable[[TransientPlatformError], bool] | None = None,
        sink: IO[bytes] | None = None,
    ) -> T:
        """Send *operation*; again after a 429, and after a 5xx if it is repeatable.

        Args:
            repeatable: Whether the platform takes a repeat for the same request. None: a GET is, a POST isn't.
            is_final: Whether a retry can't change the error.
            sink: Where to write the body of the response.

        Raises:
            ClosedError: The client was closed.
            PlatformError: The platform refused, or the request failed.
        """
        if repeatable is None:
            repeatable = operation.method == "GET"

        async def call() -> T:
            if sink is not None:
                sink.seek(0)
                sink.truncate()
            return await self.platform.call(operation, sink=sink)

        return await self.retried(call, retries=retries, repeatable=repeatable, is_final=is_final)

    async def retried(
        self,
        work: Callable[[], Awaitable[T]],
        *,
        retries: int = RETRIES,
        repeatable: bool = True,
        is_final: Callable[[TransientPlatformError], bool] | None = None,
    ) -> T:
        """The result of *work*, retried as in ``send``."""
        failures = 0
        while True:
            self.check_open()
            try:
                return await work()
            except TransientPlatformError as exc:
                failures += 1
                can_help = exc.status == _LIMITED or (repeatable and (exc.status or 0) >= 500)
                if failures > retries or not can_help or (is_final is not None and is_final(exc)):
                    raise
                if await self.wait(retry_delay(failures, exc)):
                    raise

    async def send_text(self, operation: endpoints.Operation[T]) -> T:
        """Send an operation with a text of any length, with a hint if it is too long for the platform."""
        if len(operation.body or b"") <= LONGEST_BODY:
            return await self.send(operation)
        # Platforms of 2026-05 cut a body at 1 MiB, and report invalid JSON.
        hint = "it is longer than the platform takes (1 MiB on 2026-05, 16 MiB on 2026-08); send it in pieces"
        with hinting(hint, 400, 413):
            return await self.send(operation)

    async def wait(self, seconds: float) -> bool:
        """Wait until *seconds* have passed or the client is closed. Whether it was closed."""
        if self._sleep is not None:
            await self._sleep(seconds)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._closed.wait()
        return self._closed.is_set()


def retry_delay(failures: int, exc: PlatformError, *, longest: float = LONGEST_DELAY) -> float:
    """Seconds until the next try after *failures* in a row: backoff with jitter, or longer if the platform asks."""
    backoff = min(LONGEST_DELAY, 2.0 ** min(failures - 1, 16)) * random.uniform(0.5, 1)  # noqa: S311 - spreads retries
    asked = exc.retry_after if isinstance(exc, TransientPlatformError) else None
    if asked is None:
        asked = DEFAULT_RETRY_AFTER if exc.status == _LIMITED else 0.0
    return max(min(longest, backoff), min(asked, LONGEST_DELAY))


@contextlib.contextmanager
def hinting(hint: str, *statuses: int) -> Iterator[None]:
    """Add *hint* to a refusal with one of *statuses* that has no hint."""
    try:
        yield
    except PermanentPlatformError as exc:
        if exc.status in statuses and not exc.hint:
            exc.hint = hint
        raise
