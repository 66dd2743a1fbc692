"""Text in the cells of a terminal, with the same width in all of them."""

import re
import textwrap
import unicodedata

from rich.cells import cell_len, set_cell_size

from molecule_connect.console.sanitize import one_line

# Terminals disagree on the width of what these combine: skin tones, text and emoji variants, keycaps.
_COMBINING = re.compile("[\U0001f3fb-\U0001f3ff\ufe00-\ufe0f\u20d0-\u20ff\U000e0100-\U000e01ef]")
_FLAG_LETTERS = {0x1F1E6 + number: ord("A") + number for number in range(26)}
_MOST_MARKS = 2


def steady(text: str) -> str:
    """*text* in one line, reduced to characters whose width all terminals agree on.

    Joined emoji appear one by one, flags as letters, and at most two accents are kept on a letter.
    """
    text = one_line(text, 400)
    if text.isascii():
        return text
    kept, marks = [], 0
    for char in _COMBINING.sub("", text).translate(_FLAG_LETTERS):
        marks = marks + 1 if unicodedata.category(char) == "Mn" else 0
        if marks <= _MOST_MARKS:
            kept.append(char)
    return "".join(kept)


def fitted(text: str, width: int, *, pad: bool = True) -> str:
    """The beginning of *text* in *width* cells; an ellipsis shows that it is longer."""
    text = steady(text)
    if cell_len(text) > width:
        text = f"{set_cell_size(text, width - 1).rstrip()}…" if width > 0 else ""
    return set_cell_size(text, width) if pad else text


def tail(text: str, width: int) -> str:
    """The end of *text* in at most *width* cells; an ellipsis shows that it is longer."""
    text = steady(text)
    if cell_len(text) <= width:
        return text
    # Cut characters off the beginning: cell by cell would split wide ones.
    start = max(0, len(text) - max(0, width - 1))
    while start < len(text) and cell_len(text[start:]) > width - 1:
        start += 1
    return f"…{text[start:].lstrip()}" if width > 0 else ""


def wrapped(text: str, width: int, most: int) -> list[str]:
    """*text* in at most *most* lines of *width* cells, the later ones indented."""
    return textwrap.wrap(text, max(8, width), subsequent_indent="    ", max_lines=most, placeholder=" …")
