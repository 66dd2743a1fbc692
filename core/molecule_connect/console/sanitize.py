"""Make senders' text safe for terminals and logs: no escape codes, one line, limited length."""

import re
import time
import unicodedata

# Complete CSI and OSC sequences, so that "[31m" doesn't remain; other control characters are removed below.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
)
_BLANKS = re.compile(r"\s+")
# Control and format characters (including direction overrides), surrogates, private use, unassigned.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


def one_line(text: str, limit: int = 200) -> str:
    """The first *limit* visible characters of *text* on one line, with an ellipsis if *text* is longer."""
    head = text[: limit * 4]
    if not head.isprintable() or "  " in head:
        head = _SEQUENCES.sub("", head)
        head = _BLANKS.sub(" ", head)
        head = "".join(char for char in head if unicodedata.category(char) not in _HIDDEN)
    head = head.strip()
    if len(head) <= limit and len(text) <= limit * 4:
        return head
    return head[: limit - 1] + "…"


def last_line(text: str, limit: int = 400) -> str:
    """The end of the last line of *text* that isn't blank: of a program's errors, the most telling one."""
    line = next((line for line in reversed(text.splitlines()) if one_line(line)), "")
    return one_line(line[-limit:], limit)


def visible(text: str) -> str:
    """*text* with its lines, and with invisible characters as escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _HIDDEN else ascii(char)[1:-1] for char in text
    )


def who(caller_id: str | None) -> str:
    """The name of a caller, for operators."""
    return "person" if caller_id is None else one_line(caller_id, 64)


def span(seconds: float) -> str:
    """Format a duration: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def ago(seconds: float, now: float) -> str:
    """How long before *now* the time *seconds* was."""
    return f"{span(max(0.0, now - seconds))} ago"


def moment(seconds: float | None) -> str | None:
    """A time (seconds since 1970) as RFC 3339 in UTC."""
    return None if seconds is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def count(number: int, noun: str) -> str:
    """``1 message``, ``1,000 messages``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def failure(text: str, hint: str, traceback: str = "") -> str:
    """Format an error: the traceback if it is a bug, a line with the error, and a line with the hint."""
    lines = [line[: len(line) - len(line.lstrip())] + one_line(line, 400) for line in traceback.splitlines()]
    lines.append(f"error: {one_line(text, 1000)}")
    if hint:
        lines.append(f"what to do: {one_line(hint, 1000)}")
    return "\n".join(lines)
