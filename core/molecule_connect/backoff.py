"""How long to wait before trying again."""

import random as _random
from collections.abc import Callable

import attrs


@attrs.frozen(kw_only=True)
class Backoff:
    """Doubling waits with jitter: a wait lies between half of its nominal length and all of it.

    Attributes:
        first: Nominal seconds after the first failure.
        cap: The longest nominal wait, in seconds.
        random: Gives a float in [0, 1).
    """

    first: float = 1.0
    cap: float = 60.0
    random: Callable[[], float] = _random.random

    def delay(self, failures: int, *, at_least: float | None = None) -> float:
        """Seconds to wait after *failures* failures in a row (1 for the first).

        ``at_least`` is what the platform asked for; it is honoured up to ``cap``.
        """
        nominal = min(self.cap, self.first * 2.0 ** min(failures - 1, 32))
        return max(self.jitter(nominal), min(at_least or 0.0, self.cap))

    def jitter(self, nominal: float) -> float:
        """Between half of *nominal* and all of it."""
        return nominal * (0.5 + self.random() / 2)
