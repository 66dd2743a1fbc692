"""Which screen a stream gets, and the live view on a real terminal."""

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from molecule_connect.console.json_lines import JsonScreen
from molecule_connect.console.lines import LineScreen
from molecule_connect.console.live import LiveScreen
from molecule_connect.console.screen import Screen
from molecule_connect.console.select import choose

PROGRAM = """
import sys
from molecule_connect import events
from molecule_connect.console.select import choose
from molecule_connect.console.screen import Summary
screen = choose(sys.stderr)
screen.open([Summary(workspace_id="ws_1", backend="mock", mode="poll", api_url="http://x", state_dir="/s")])
screen(events.Registered(workspace_id="ws_1"))
for line in sys.stdin:
    screen(events.Received(workspace_id="ws_1", row_id=line, caller_id=None, text=line))
    if line == "end\\n":
        break
screen.fail("it ended", "begin again", 1)
screen.close()
"""
CTRL_S = "\x13"


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
def test_long_texts_are_cut_with_an_ellipsis(
    stream: io.StringIO, log_format: str, term: str, kind: type[Screen]
) -> None:
    screen = choose(stream, log_format, environ={"TERM": term})
    screen.close()

    assert isinstance(screen, kind)


def test_distinguishes_people_and_peers() -> None:
    stream = Terminal()
    screen = choose(stream, environ={"TERM": "xterm"})
    screen.note("ERROR", "workspace 1: it has no id", "give it one")
    screen.fail("the list has a fault", "mend it", 2)
    screen.close()

    assert stream.getvalue() == (
        "error: workspace 1: it has no id -> give it one\nerror: the list has a fault\nwhat to do: mend it\n"
    )


class Child:
    """A program whose terminal is ours."""

    def __init__(self, program: Path) -> None:
        self.terminal, theirs = pty.openpty()
        self.resize(80, 24)
        environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(theirs)
        self.seen = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, found: Callable[[str], bool], seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not found(self.seen):
            assert time.monotonic() < deadline, self.seen
            if select.select([self.terminal], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.terminal, 1 << 16).decode(errors="replace")
                except OSError:
                    assert found(self.seen), self.seen


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    child = Child(program)
    yield child
    child.process.kill()
    child.process.wait()
    os.close(child.terminal)


def test_failures_have_an_error_and_a_hint(child: Child) -> None:
    child.wait_for(lambda seen: "not registered" in seen or "online" in seen)
    child.resize(30, 10)
    child.wait_for(lambda seen: "\x1b[2J" in seen)
    child.type("end\n")
    child.wait_for(lambda seen: "begin again" in seen)

    last = child.seen[child.seen.rindex("\x1b[2J") :]
    assert "end" in last
    assert "error: it ended" in last
    assert "what to do: begin again" in last
    assert last.rindex("\x1b[?25h") > last.rfind("\x1b[?25l"), "the cursor is shown again"
    assert child.process.wait(10) == 0


def test_visible_keeps_lines_and_escapes_controls(child: Child) -> None:
    child.wait_for(lambda seen: "online" in seen)
    child.type(CTRL_S)
    for number in range(20):
        child.type(f"message {number}\n")
    child.type("end\n")

    assert child.process.wait(20) == 0
    with pytest.raises(AssertionError):
        child.wait_for(lambda seen: "begin again" in seen, seconds=0.2)
