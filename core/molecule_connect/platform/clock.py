"""Times of the platform: RFC 3339 on the wire, integer microseconds since 1970 here, because floats lose digits."""

import functools
import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime

_RFC3339 = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9})[0-9]*)?"
    r"(?:[Zz]|([+-])([0-9]{2}):?([0-9]{2})?)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
MICROSECOND = timedelta(microseconds=1)
SECOND_US = 1_000_000


def parse_time(value: object) -> int | None:
    """Parse an RFC 3339 time to microseconds since 1970, truncated to six fractional digits. None if it isn't one.

    A time without an offset is UTC. PostgreSQL's format (a space for the T, ``+00``) is accepted, too.
    """
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    year, month, day, hour, minute, second, fraction, sign, off_hour, off_minute = match.groups()
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH_DAY
    except ValueError:
        return None
    seconds = days * 86_400 + int(hour) * 3_600 + int(minute) * 60 + int(second)
    if sign:
        offset = int(off_hour) * 3_600 + int(off_minute or 0) * 60
        seconds += offset if sign == "-" else -offset
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        return None
    return seconds * SECOND_US + int((fraction or "0")[:6].ljust(6, "0"))


def format_time(microseconds: int) -> str:
    """Format a time as RFC 3339 in UTC with six fractional digits, for ``before_ts``.

    Raises:
        OverflowError: The year is not in 1 to 9999.
    """
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


# All responses of the same second have the same date.
@functools.lru_cache(maxsize=16)
def parse_http_date(value: str | None) -> int | None:
    """Parse an HTTP date such as the ``Date`` header to microseconds since 1970. None if it isn't one."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // MICROSECOND


class PlatformClock:
    """A lower bound of the platform's clock, from times in its responses and the time since then.

    Args:
        monotonic: Returns seconds. It may stand still while the machine sleeps; the bound stays valid.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ahead: int | None = None

    def record(self, microseconds: int | None) -> None:
        """Record a time that the platform's clock has shown."""
        if microseconds is not None:
            ahead = microseconds - int(self._monotonic() * SECOND_US)
            self._ahead = ahead if self._ahead is None else max(self._ahead, ahead)

    def now(self) -> int | None:
        """Return microseconds since 1970, or None before the first response."""
        return None if self._ahead is None else int(self._monotonic() * SECOND_US) + self._ahead
