"""The platform's times: RFC 3339 text on the wire, whole microseconds since 1970 here. Floats lose digits."""

import re
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
    """Microseconds since 1970, cut off after the sixth fractional digit; None for what is no RFC 3339 time.

    A time without an offset is taken as UTC. PostgreSQL's own spelling (a blank for the T, ``+00``) is read too.
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
    """RFC 3339 in UTC with six digits, as ``before_ts`` takes it.

    Raises:
        OverflowError: The time lies outside the years 1 to 9999.
    """
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse_http_date(value: str | None) -> int | None:
    """Microseconds since 1970 of an HTTP date such as the ``Date`` header; None for anything else."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, IndexError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // MICROSECOND
