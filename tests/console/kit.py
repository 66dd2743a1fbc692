"""A program with a live view on a terminal that a test reads."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

PROGRAM = """
import os, signal, sys
from molecule_connect import events
from molecule_connect.cli.signals import StopSignals
from molecule_connect.console.select import choose
from molecule_connect.console.screen import Summary
screen = choose(sys.stderr)
with StopSignals(grace=60, spell=screen.last_words) as signals:
    state = 5 if sys.argv[1] == "BUG" else sys.argv[1]
    screen.open([Summary(workspace_id="ws_1", backend="mock", mode="poll", api_url="http://x", state_dir=state)])
    try:
        screen(events.Registered(workspace_id="ws_1"))
        for line in sys.stdin:
            screen(events.Received(workspace_id="ws_1", row_id=line, caller_id=None, text=line))
            if line == "print\\n":
                print("printed by a plugin")
            if line == "raise\\n":
                raise ValueError("a bug")
            if line == "end\\n":
                break
        screen.fail("it ended", "begin again", 1)
    finally:
        screen.close()
"""
_PIECES = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)", re.DOTALL)


class Child:
    """A program whose terminal is ours.

    Attributes:
        seen: What it wrote.
    """

    def __init__(self, program: Path, *arguments: str) -> None:
        self.terminal, self._theirs = pty.openpty()
        self.resize(80, 24)
        environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, str(program), *arguments],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env={**environ, "TERM": "xterm-256color"},
            process_group=0,
        )
        self.seen = ""

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def echoes(self) -> bool:
        """Whether the terminal echoes keys."""
        return bool(termios.tcgetattr(self._theirs)[3] & termios.ECHO)

    def wait_for(self, found: Callable[[str], bool], seconds: float = 20) -> None:
        """Wait until *found* is true of what it wrote."""
        deadline = time.monotonic() + seconds
        while not found(self.seen):
            assert time.monotonic() < deadline, self.seen
            self.read()

    def wait_for_text(self, text: str, *, times: int = 1) -> None:
        """Wait until it wrote *text* this many times."""
        self.wait_for(lambda seen: seen.count(text) >= times)

    def read(self) -> None:
        """Read what there is."""
        if select.select([self.terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                self.seen += os.read(self.terminal, 1 << 16).decode(errors="replace")

    def ended(self) -> int:
        """The exit code, once everything is read."""
        while self.process.poll() is None:
            self.read()
        self.read()
        return self.process.returncode

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)
        os.close(self._theirs)

    def screens(self) -> tuple[list[str], list[str]]:
        """The lines of the normal screen, with those that scrolled off it, and of the alternate screen."""
        normal, alternate = Page(), Page()
        page = normal
        for match in _PIECES.finditer(self.seen):
            private, numbers, kind, control, text = match.groups()
            if private and numbers == "1049":
                page = alternate if kind == "h" else normal
                alternate = page if kind == "h" else Page()
                page = alternate if kind == "h" else normal
            elif kind == "H":
                line, _, column = (numbers or "1;1").partition(";")
                page.line, page.column = int(line) - 1, int(column or 1) - 1
            elif kind == "J":
                page.lines = [] if numbers == "2" else page.lines[: page.line]
            elif kind == "K":
                page.put("")
                page.lines[page.line] = page.lines[page.line][: page.column]
            elif control == "\n":
                page.line += 1
            elif control == "\r":
                page.column = 0
            elif text:
                page.put(text)
        return normal.lines, alternate.lines


class Page:
    """The lines of a screen. Wide characters count as one."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.line = self.column = 0

    def put(self, text: str) -> None:
        self.lines += [""] * (self.line + 1 - len(self.lines))
        line = self.lines[self.line].ljust(self.column)
        self.lines[self.line] = line[: self.column] + text + line[self.column + len(text) :]
        self.column += len(text)
