"""The heartbeat: within a second of registering and every 30 s, through everything else that happens."""

import asyncio
from collections import deque
from collections.abc import Callable

from molecule_connect.backoff import Backoff
from molecule_connect.delivery.ports import Registry
from molecule_connect.errors import AuthError, PermanentPlatformError, PlatformError
from molecule_connect.models import Presence

# A failed beat is tried again soon: the platform gives a workspace up after 90 s of silence.
RETRIES = Backoff(first=1.0, cap=4.0)
SAMPLE_AGE = 300.0
MIN_SAMPLES = 3


class Health:
    """What of this connection is broken, and how its last attempts went.

    Attributes:
        changed: Called when something begins or ceases to be broken.
    """

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._broken: dict[str, str] = {}
        self._samples: deque[tuple[float, str]] = deque(maxlen=1000)

    def breaks(self, part: str, reason: str) -> bool:
        """*part* (intake, backend, journal) is broken. True when it was not."""
        new = part not in self._broken
        self._broken[part] = reason
        if new:
            self.changed()
        return new

    def mends(self, part: str) -> bool:
        """*part* works. True when it was broken."""
        was_broken = self._broken.pop(part, None) is not None
        if was_broken:
            self.changed()
        return was_broken

    @property
    def wedged(self) -> str:
        """What is broken, in words; empty while all is well."""
        return "; ".join(f"{part}: {reason}" for part, reason in self._broken.items())

    def sample(self, error: str = "") -> None:
        """One attempt ended, well or with *error*."""
        self._samples.append((asyncio.get_running_loop().time(), error))

    def error_rate(self) -> float:
        """The share of attempts of the last five minutes that failed; 0 with fewer than three of them."""
        since = asyncio.get_running_loop().time() - SAMPLE_AGE
        recent = [error for when, error in self._samples if when >= since]
        if len(recent) < MIN_SAMPLES:
            return 0.0
        return sum(bool(error) for error in recent) / len(recent)

    def sample_error(self) -> str:
        """The newest error of the last five minutes."""
        since = asyncio.get_running_loop().time() - SAMPLE_AGE
        return next((error for when, error in reversed(self._samples) if error and when >= since), "")


class Heartbeat:
    """Beats until cancelled, or until the platform refuses beats for good.

    Args:
        presence: What a beat says, asked for at each.
        interval: Seconds between beats, asked for at each.
        accepted, failed: Told of each beat; ``accepted`` also when it was sent (loop time), ``failed`` whether
            the heartbeat ends by it.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        presence: Callable[[], Presence],
        interval: Callable[[], float],
        accepted: Callable[[Presence, float], None],
        failed: Callable[[PlatformError, bool], None],
    ) -> None:
        self._registry = registry
        self._presence = presence
        self._interval = interval
        self._accepted = accepted
        self._failed = failed
        self._soon = asyncio.Event()

    def beat_now(self) -> None:
        """Do not wait for the next beat's time."""
        self._soon.set()

    async def run(self) -> None:
        """Beat at once, then every interval; a failed beat again after 1, 2, 4 s."""
        failures = 0
        while True:
            self._soon.clear()
            try:
                await self.beat(self._presence())
                failures = 0
            except PermanentPlatformError as exc:
                # A refused token may be a blip, or replaced while we run.
                final = not isinstance(exc, AuthError)
                self._failed(exc, final)
                if final:
                    return
                failures += 1
            except PlatformError as exc:
                failures += 1
                self._failed(exc, False)
            retry = RETRIES.delay(failures) if 0 < failures <= 3 else self._interval()
            try:
                async with asyncio.timeout(min(retry, self._interval())):
                    await self._soon.wait()
            except TimeoutError:
                continue

    async def beat(self, presence: Presence) -> None:
        """One beat.

        Raises:
            PlatformError: It was not accepted.
        """
        began = asyncio.get_running_loop().time()
        await self._registry.beat(presence)
        self._accepted(presence, began)
