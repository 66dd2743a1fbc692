"""Exponential backoff with jitter."""

import random as _random
from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Backoff:
    """Delays that double with each failure. Each is jittered to between half of its nominal length and all of it.

    Attributes:
        first: Nominal delay after the first failure, in seconds.
        cap: The longest nominal delay, in seconds.
        random: Returns a float in [0, 1).
    """

    first: float = 1.0
    cap: float = 60.0
    random: Callable[[], float] = _random.random

    def delay(self, failures: int, *, at_least: float | None = None) -> float:
        """Return the seconds to wait after *failures* consecutive failures, starting with 1.

        Args:
            at_least: The platform's Retry-After. It is honored up to ``cap``.
        """
        nominal = min(self.cap, self.first * 2.0 ** min(failures - 1, 32))
        return max(self.jitter(nominal), min(at_least or 0.0, self.cap))

    def jitter(self, nominal: float) -> float:
        """Return a random duration between half of *nominal* and *nominal*."""
        return nominal * (0.5 + self.random() / 2)
