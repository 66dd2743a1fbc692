"""When a usage limit is over, as Claude Code tells it."""

import datetime
import re
import zoneinfo

# Waiting for less is no pause, and no limit of a plan is longer than a week.
LEAST_SECONDS = 60.0
MOST_SECONDS = 8 * 86400.0
# Where no time is told.
UNTOLD_SECONDS = 15 * 60.0
# The other side's clock is not ours.
MARGIN_SECONDS = 15.0

_LIMIT = re.compile(
    r"usage limit reached|hit your [\w\s]{0,30}limit|reached your [\w\s]{0,30}limit|\d-hour limit reached|"
    r"weekly limit reached|out of (extra usage|usage credits)",
    re.IGNORECASE,
)
_EPOCH = re.compile(r"\|(\d{10})\b")
_CLOCK = re.compile(
    r"resets?\s+(?:at\s+)?(?:(?P<month>[A-Z][a-z]{2})[a-z]*\s+(?P<day>\d{1,2}),?\s+(?:at\s+)?)?"
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d\d))?\s*(?P<half>[ap])m(?:\s*\((?P<zone>[\w+/-]+)\))?",
    re.IGNORECASE,
)
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def is_usage_limit(text: str) -> bool:
    """Whether *text*, in place of an answer, says that a plan is used up for a while."""
    return _LIMIT.search(text.replace("\u2019", "'")) is not None


def seconds_until_reset(text: str, resets_at: float | None, now: float) -> float:
    """How long to wait: until *resets_at* (seconds since 1970), else until the time in *text*, else a quarter hour."""
    at = resets_at if resets_at is not None else _told(text, now)
    if at is None:
        return UNTOLD_SECONDS
    return min(max(at - now + MARGIN_SECONDS, LEAST_SECONDS), MOST_SECONDS)


def _told(text: str, now: float) -> float | None:
    if epoch := _EPOCH.search(text):
        return float(epoch[1])
    clock = _CLOCK.search(text)
    if clock is None:
        return None
    here = datetime.datetime.fromtimestamp(now, _zone(clock["zone"]))
    hour = int(clock["hour"]) % 12 + (12 if clock["half"].lower() == "p" else 0)
    try:
        at = here.replace(hour=hour, minute=int(clock["minute"] or 0), second=0, microsecond=0)
        if clock["month"]:
            at = at.replace(month=_MONTHS.index(clock["month"].lower()) + 1, day=int(clock["day"]))
            return (at if at > here - datetime.timedelta(days=1) else at.replace(year=at.year + 1)).timestamp()
    except ValueError:
        return None
    # Told without seconds, and sometimes late: what has just passed is now, and not tomorrow.
    return (at if at > here - datetime.timedelta(hours=1) else at + datetime.timedelta(days=1)).timestamp()


def _zone(name: str | None) -> datetime.tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name) if name else None
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return None
