"""Refuses shell commands that none of the operator's rules names: a hook that Claude Code runs before each command.

Claude Code itself also runs commands that it takes for read-only, such as ``ps``, ``git show`` or ``rev .env``,
whatever the rules say. This program only ever refuses; Claude Code's own check of the rules comes on top. It is started
by its path and imports nothing but the standard library.

Arguments are the rules' patterns, such as ``git log *``. The call arrives as JSON on stdin. Exit status 2 refuses it.
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
    """The commands between separators; none where *command* runs others by substitution or can't be split surely."""
    found, quote, position = [""], "", 0
    while position < len(command):
        each, rest = command[position], command[position:]
        if quote != "'" and (each == "`" or rest.startswith(("$(", "<(", ">("))):
            return []
        # Quotes mean something else in a comment and in $'...'.
        if not quote and (rest.startswith(("$'", '$"')) or (each == "#" and not found[-1][-1:].strip())):
            return []
        length = 2 if each == "\\" and quote != "'" else 1
        if each == quote:
            quote = ""
        elif not quote and each in "'\"":
            quote = each
        joins_output = each == "&" and (found[-1].endswith((">", "<")) or rest.startswith("&>"))
        if not quote and each in ";&|\n" and not joins_output:
            found.append("")
        else:
            found[-1] += command[position : position + length]
        position += length
    return [] if quote else [part.strip() for part in found if part.strip()]


def main() -> int:
    """Read one call, and say whether it may run."""
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
