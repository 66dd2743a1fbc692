"""Text in the cells of a terminal."""

import pytest
from rich.cells import cell_len

from molecule_connect.console.cells import fitted, steady, tail


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("👨\u200d👩\u200d👧", "👨👩👧"),
        ("❤\ufe0f", "❤"),
        ("👍🏽", "👍"),
        ("🇩🇪", "DE"),
        ("1\ufe0f\u20e3", "1"),
        ("a\u0301\u0301\u0301\u0301b", "a\u0301\u0301b"),
        ("می\u200cروم", "میروم"),
        ("\x1b[31mred\x1b[0m\u202e", "red"),
    ],
)
def test_keeps_only_characters_of_certain_width(text: str, shown: str) -> None:
    assert steady(text) == shown


@pytest.mark.parametrize("width", range(12))
@pytest.mark.parametrize("text", ["plain text", "宽字符文本", "a宽b字c", "👨\u200d👩\u200d👧👨", ""])
def test_fits_in_exactly_the_width(text: str, width: int) -> None:
    assert cell_len(fitted(text, width)) == width
    assert cell_len(tail(text, width)) <= width


def test_shows_what_was_cut() -> None:
    assert fitted("a long text", 6, pad=False) == "a lon…"
    assert tail("a long text", 6) == "…text"
    assert tail("宽字符文", 5) == "…符文"
