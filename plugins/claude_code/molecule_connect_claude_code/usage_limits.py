"""Usage limits of a plan: how Claude Code reports them, and when they reset."""

import datetime
import re
import zoneinfo

MIN_WAIT_SECONDS = 60.0
# No plan has a limit longer than a week.
MAX_WAIT_SECONDS = 8 * 86400.0
# Used if Claude Code reports no time.
DEFAULT_WAIT_SECONDS = 15 * 60.0
# Allows for a difference between the clocks.
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
    """Whether *text*, the text of a failed turn, reports that a usage limit is reached."""
    return _LIMIT.search(text.replace("\u2019", "'")) is not None


def seconds_until_reset(text: str, resets_at: float | None, now: float) -> float:
    """Seconds from *now* until *resets_at*, else until the time in *text*, else 15 minutes. Times are Unix time."""
    at = resets_at if resets_at is not None else _reset_time(text, now)
    if at is None:
        return DEFAULT_WAIT_SECONDS
    return min(max(at - now + MARGIN_SECONDS, MIN_WAIT_SECONDS), MAX_WAIT_SECONDS)


def _reset_time(text: str, now: float) -> float | None:
    if epoch := _EPOCH.search(text):
        return float(epoch[1])
    clock = _CLOCK.search(text)
    if clock is None:
        return None
    today = datetime.datetime.fromtimestamp(now, _zone(clock["zone"]))
    hour = int(clock["hour"]) % 12 + (12 if clock["half"].lower() == "p" else 0)
    try:
        at = today.replace(hour=hour, minute=int(clock["minute"] or 0), second=0, microsecond=0)
        if clock["month"]:
            at = at.replace(month=_MONTHS.index(clock["month"].lower()) + 1, day=int(clock["day"]))
            return (at if at > today - datetime.timedelta(days=1) else at.replace(year=at.year + 1)).timestamp()
    except ValueError:
        return None
    # The text has no seconds and may arrive late: a time of the last hour means now, not tomorrow.
    return (at if at > today - datetime.timedelta(hours=1) else at + datetime.timedelta(days=1)).timestamp()


def _zone(name: str | None) -> datetime.tzinfo | None:
    try:
        return zoneinfo.ZoneInfo(name) if name else None
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        return None
