"""What of a connection is broken, and how its last attempts went."""

import asyncio
from collections import deque
from collections.abc import Callable

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
