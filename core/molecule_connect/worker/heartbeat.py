"""The heartbeat: within a second of registering and every 30 s, through everything else that happens."""

import asyncio
from collections.abc import Callable

from molecule_connect.backoff import Backoff
from molecule_connect.errors import PlatformError
from molecule_connect.models import Presence
from molecule_connect.worker.ports import Registry

# A failed beat is tried again soon: the platform gives a workspace up after 90 s of silence.
RETRIES = Backoff(first=1.0, cap=4.0)


class Heartbeat:
    """Beats until cancelled.

    Args:
        presence: What a beat says, asked for at each.
        interval: Seconds between beats, asked for at each.
        accepted, failed: Told of each beat; ``accepted`` also when it was sent (loop time).
    """

    def __init__(
        self,
        registry: Registry,
        *,
        presence: Callable[[], Presence],
        interval: Callable[[], float],
        accepted: Callable[[Presence, float], None],
        failed: Callable[[PlatformError], None],
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
            except PlatformError as exc:
                # Even a refusal in the platform's own words may be a blip, and without beats nobody finds us.
                failures += 1
                self._failed(exc)
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
