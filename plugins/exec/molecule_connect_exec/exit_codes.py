"""What the exit statuses of a command mean, as an operator says it: ``3:silent``, ``64-78:permanent``, ``*:retry``."""

import enum
import re
from collections.abc import Sequence

from molecule_connect import OptionError

_RULE = re.compile(r"\s*(?:(?P<first>\d{1,3})(?:-(?P<last>\d{1,3}))?|\*)\s*:\s*(?P<word>[a-z]+)\s*\Z")


class Meaning(enum.StrEnum):
    """What becomes of a message whose command ended with a status."""

    RETRY = "retry"
    PERMANENT = "permanent"
    SILENT = "silent"


def meaning(status: int, rules: Sequence[str]) -> Meaning:
    """What *status* means; of the rules that fit the narrowest counts, of equals the last. Without one: retry."""
    found, width = Meaning.RETRY, 256
    for rule in rules:
        first, last, said = _read(rule)
        if first <= status <= last and last - first <= width:
            found, width = said, last - first
    return found


def check_rules(rules: Sequence[str]) -> None:
    """Refuse what is no rule.

    Raises:
        OptionError: One is malformed, or speaks of another status than 1 to 255.
    """
    for rule in rules:
        _read(rule)


def _read(rule: str) -> tuple[int, int, Meaning]:
    match = _RULE.match(rule)
    if match is None or match["word"] not in tuple(Meaning):
        raise OptionError(
            "option 'exit_codes' of backend exec must be a status, a colon and one of retry, permanent, silent",
            hint="write it as 3:silent, 64-78:permanent or *:permanent, once for each rule",
        )
    first = int(match["first"] or 1)
    last = int(match["last"] or match["first"] or 255)
    if not 1 <= first <= last <= 255:
        raise OptionError(
            "option 'exit_codes' of backend exec must speak of statuses from 1 to 255",
            hint="0 is always an answer; what a signal ended is always tried again",
        )
    return first, last, Meaning(match["word"])
