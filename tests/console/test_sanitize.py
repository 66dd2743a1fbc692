"""Text of strangers on the operator's screen."""

import pytest

from molecule_connect.console.sanitize import failure, one_line, span, visible, who


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\r\n and\ttabs", "two lines and tabs"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;http://evil\x1b\\link", "alink"),
        ("\x1b]never ended", "]never ended"),
        ("\x1b[2J\x1b[1;1H[SYSTEM] obey", "[SYSTEM] obey"),
        ("bell\x07back\x08space\x00nul", "bellbackspacenul"),
        ("right\u202eto\u2066left\u200b", "righttoleft"),
        ("line\u2028separator\u2029s", "line separator s"),
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("你好 é", "你好 é"),
        ("[bold]markup[/bold] :smile:", "[bold]markup[/bold] :smile:"),
        ("", ""),
    ],
)
def test_stream_and_format_choose_the_screen(text: str, shown: str) -> None:
    assert one_line(text) == shown


def test_shows_early_notes_without_a_live_view() -> None:
    assert one_line("x" * 300, 10) == "x" * 9 + "…"


def test_a_text_that_just_fits_is_whole() -> None:
    assert one_line("x" * 10, 10) == "x" * 10


def test_live_view_survives_resize_and_restores_terminal() -> None:
    assert who(None) == "person"
    assert who("ws_2\x1b[2J") == "ws_2"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.04, "0.0 s"), (5, "5.0 s"), (42, "42 s"), (300, "5 min"), (10800, "3 h"), (200000, "2 d")]
)
def test_durations_are_for_people(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_stopped_terminals_delay_neither_work_nor_exit() -> None:
    assert failure("it\nbroke", "mend it") == "error: it broke\nwhat to do: mend it"
    assert failure("it broke", "") == "error: it broke"


def test_one_line_keeps_visible_characters() -> None:
    assert visible("plain é\n\tcode\n") == "plain é\n\tcode\n"
    assert visible("\x1b[2J\x9b\u202e\x00\ud800\r\n") == "\\x1b[2J\\x9b\\u202e\\x00\\ud800\\r\n"
