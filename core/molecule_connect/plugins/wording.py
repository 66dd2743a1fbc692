"""Pieces of what is said when a plugin or an option is not right."""

import difflib
from collections.abc import Sequence


def first_line(exc: BaseException) -> str:
    """The class of *exc* and the first line of its text."""
    text = str(exc).strip().splitlines()
    return f"{type(exc).__name__}: {text[0]}" if text else type(exc).__name__


def nearest(word: str, known: Sequence[str]) -> str:
    """``, did you mean 'x'?`` for the nearest of *known*, or an empty string."""
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
