"""Text of peers, made harmless for a terminal and a log: no escape codes, no second line, no endless length."""

import re
import unicodedata

# CSI and OSC sequences whole, so that "[31m" does not stay behind; the rest of C0 and C1 is met below.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
)
_BLANKS = re.compile(r"\s+")
# Controls, formats (direction overrides among them), surrogates, private use, unassigned.
_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn"))


def one_line(text: str, limit: int = 200) -> str:
    """The first *limit* characters of *text* that show something, on one line; what is cut off ends in an ellipsis."""
    head = text[: limit * 4]
    if not head.isprintable() or "  " in head:
        head = _SEQUENCES.sub("", head)
        head = _BLANKS.sub(" ", head)
        head = "".join(char for char in head if unicodedata.category(char) not in _HIDDEN)
    head = head.strip()
    if len(head) <= limit and len(text) <= limit * 4:
        return head
    return head[: limit - 1] + "…"


def visible(text: str) -> str:
    """All of *text*, line by line as it is, with every character that shows nothing written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in _HIDDEN else ascii(char)[1:-1] for char in text
    )


def who(caller_id: str | None) -> str:
    """A caller in the operator's words."""
    return "person" if caller_id is None else one_line(caller_id, 64)


def span(seconds: float) -> str:
    """A duration for people: 0.4 s, 12 s, 5 min, 3 h, 2 d."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def failure(text: str, hint: str, traceback: str = "") -> str:
    """Why the program ends: one line of what, one line of what to do, under the traceback of a bug."""
    lines = [line[: len(line) - len(line.lstrip())] + one_line(line, 400) for line in traceback.splitlines()]
    lines.append(f"error: {one_line(text, 1000)}")
    if hint:
        lines.append(f"what to do: {one_line(hint, 1000)}")
    return "\n".join(lines)
