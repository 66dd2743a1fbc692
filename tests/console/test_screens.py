"""Which screen a stream gets, and the live view on a real terminal."""

import io

import pytest

from molecule_connect.console.json_lines import JsonScreen
from molecule_connect.console.lines import LineScreen
from molecule_connect.console.live import LiveScreen
from molecule_connect.console.screen import Screen
from molecule_connect.console.select import choose


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "log_format", "term", "kind"),
    [
        (Terminal(), "auto", "xterm", LiveScreen),
        (Terminal(), "auto", "dumb", LineScreen),
        (Terminal(), "auto", "", LineScreen),
        (Terminal(), "lines", "xterm", LineScreen),
        (Terminal(), "json", "xterm", JsonScreen),
        (io.StringIO(), "auto", "xterm", LineScreen),
        (io.StringIO(), "json", "xterm", JsonScreen),
    ],
)
def test_chooses_the_screen_of_a_stream(stream: io.StringIO, log_format: str, term: str, kind: type[Screen]) -> None:
    screen = choose(stream, log_format, environ={"TERM": term})
    screen.close()

    assert isinstance(screen, kind)


def test_unopened_view_prints_lines() -> None:
    stream = Terminal()
    screen = choose(stream, environ={"TERM": "xterm"})
    screen.note("ERROR", "workspace 1: it has no id", "give it one")
    screen.fail("the list has a fault", "mend it", 2)
    screen.close()

    assert stream.getvalue() == (
        "error: workspace 1: it has no id -> give it one\nerror: the list has a fault\nwhat to do: mend it\n"
    )
