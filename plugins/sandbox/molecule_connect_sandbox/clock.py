"""Timestamps: microseconds since 1970, written as RFC 3339."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache

_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return (_EPOCH + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S")


def to_rfc3339(moment: int) -> str:
    """Format as the platform does: up to six fractional digits, no trailing zeros."""
    seconds, micros = divmod(moment, 1_000_000)
    fraction = f"{micros:06d}".rstrip("0")
    return f"{_second(seconds)}.{fraction}Z" if fraction else f"{_second(seconds)}Z"


def from_rfc3339(text: str) -> int:
    """Parse a timestamp into microseconds since 1970.

    Raises:
        ValueError: *text* isn't RFC 3339.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not RFC 3339: {text!r}")
    whole, fraction, zone = match.groups()
    moment = datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone))
    micros = round(int(fraction) / 10 ** (len(fraction) - 6)) if fraction else 0
    return (moment - _EPOCH) // timedelta(microseconds=1) + micros


class Timestamps:
    """Unique, increasing times for new rows."""

    def __init__(self, now: Callable[[], float], last: int = 0) -> None:
        self._now = now
        self.last = last

    def now(self) -> int:
        """The current time in microseconds."""
        return int(self._now() * 1_000_000)

    def next(self) -> int:
        """A time later than all previous ones."""
        self.last = max(self.now(), self.last + 1)
        return self.last
