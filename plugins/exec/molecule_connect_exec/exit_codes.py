"""The meaning of exit statuses, by rules such as ``3:silent``, ``64-78:permanent`` and ``*:retry``."""

import enum
import re
from collections.abc import Sequence

from molecule_connect import OptionError

_RULE = re.compile(r"\s*(?:(?P<first>\d{1,3})(?:-(?P<last>\d{1,3}))?|\*)\s*:\s*(?P<word>[a-z]+)\s*\Z")


class Meaning(enum.StrEnum):
    """The effect of an exit status."""

    RETRY = "retry"
    PERMANENT = "permanent"
    SILENT = "silent"


def meaning(status: int, rules: Sequence[str]) -> Meaning:
    """The meaning of *status*: the narrowest matching rule, or the last of equal ones. The default is retry."""
    found, width = Meaning.RETRY, 256
    for rule in rules:
        first, last, value = _read(rule)
        if first <= status <= last and last - first <= width:
            found, width = value, last - first
    return found


def check_rules(rules: Sequence[str]) -> None:
    """Validate *rules*.

    Raises:
        OptionError: A rule is malformed, or its statuses aren't in 1 to 255.
    """
    for rule in rules:
        _read(rule)


def _read(rule: str) -> tuple[int, int, Meaning]:
    match = _RULE.match(rule)
    if match is None or match["word"] not in tuple(Meaning):
        raise OptionError(
            "option 'exit_codes' of backend exec must be a status, a colon, and retry, permanent or silent",
            hint="write it as 3:silent, 64-78:permanent or *:permanent; repeat the option for more rules",
        )
    first = int(match["first"] or 1)
    last = int(match["last"] or match["first"] or 255)
    if not 1 <= first <= last <= 255:
        raise OptionError(
            "option 'exit_codes' of backend exec must have statuses from 1 to 255",
            hint="status 0 is always a reply; commands ended by a signal are always retried",
        )
    return first, last, Meaning(match["word"])
