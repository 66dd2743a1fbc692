"""A hook that Claude Code runs before each shell command; it refuses commands that match no rule of the operator.

Claude Code also runs commands that it considers read-only, such as ``ps``, ``git show`` or ``rev .env``, regardless of
the rules. The hook can only refuse a command: Claude Code applies its own rules as well. It is started by its path and
imports only the standard library.

The arguments are the patterns of the rules, such as ``git log *``. The tool call is read from stdin as JSON. Exit
status 2 refuses it.
"""

import json
import re
import sys
from collections.abc import Iterable

REFUSED = 2


def is_permitted(command: str, patterns: Iterable[str]) -> bool:
    """Whether every simple command in *command* matches one of *patterns*."""
    parts = _simple_commands(command)
    regexes = [_regex(pattern) for pattern in patterns]
    return bool(parts) and all(any(regex.fullmatch(part) for regex in regexes) for part in parts)


def _regex(pattern: str) -> "re.Pattern[str]":
    # Both "git log *" and the older "git log:*" also match the command without arguments.
    start = re.sub(r"(:| )\*\Z", "", pattern.strip())
    end = r"(\W.*)?" if start != pattern.strip() else ""
    return re.compile(".*".join(map(re.escape, start.split("*"))) + end, re.DOTALL)


def _simple_commands(command: str) -> list[str]:
    """Split at separators. Empty if *command* uses substitution or can't be split reliably."""
    found, quote, position = [""], "", 0
    while position < len(command):
        char, rest = command[position], command[position:]
        if quote != "'" and (char == "`" or rest.startswith(("$(", "<(", ">("))):
            return []
        # Quotes have a different meaning in comments and in $'...'.
        if not quote and (rest.startswith(("$'", '$"')) or (char == "#" and not found[-1][-1:].strip())):
            return []
        length = 2 if char == "\\" and quote != "'" else 1
        if char == quote:
            quote = ""
        elif not quote and char in "'\"":
            quote = char
        is_redirection = char == "&" and (found[-1].endswith((">", "<")) or rest.startswith("&>"))
        if not quote and char in ";&|\n" and not is_redirection:
            found.append("")
        else:
            found[-1] += command[position : position + length]
        position += length
    return [] if quote else [part.strip() for part in found if part.strip()]


def main() -> int:
    """Read a tool call from stdin and return the exit status."""
    patterns = sys.argv[1:]
    try:
        command = json.load(sys.stdin)["tool_input"]["command"]
        permitted = is_permitted(command, patterns)
    except (ValueError, LookupError, TypeError, RecursionError):
        permitted = False
    if permitted:
        return 0
    sys.stderr.write(f"Only these shell commands are permitted here: {', '.join(patterns)}\n")
    return REFUSED


if __name__ == "__main__":
    sys.exit(main())
