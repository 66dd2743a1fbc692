"""A terminal that shows a full-window view: alternate screen, no echo, and back to normal after every kind of exit."""

import contextlib
import io
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO, cast

from molecule_connect.console.writer import GuardedStream

_ENTER, _LEAVE = "\x1b[?1049h", "\x1b[?1049l"
# Lines of a wrong width are cut, and not wrapped. Only inside of a frame: a killed process leaves the terminal usable.
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_BEGIN, _END = f"\x1b[?2026h{_NO_WRAP}", f"{_WRAP}\x1b[?2026l"
_HOME, _CLEAR, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"
# The cursor is never hidden, so a killed process can't leave it hidden; this is for what ran before.
_SHOW_CURSOR = "\x1b[?25h"
# Unchanged lines are drawn again after this long, in seconds, in case another program wrote over them.
_REPAINT = 10.0
# A longer pause between frames means that the process was stopped, in seconds.
_STOPPED = 2.0
# Seconds to wait for a frame that is being written.
_PATIENCE = 0.2


class Terminal:
    """Draws frames on a terminal, from one thread. ``leave`` may be called from any thread and from signal handlers.

    Attributes:
        stream: Writes to the terminal without raising.
    """

    def __init__(self, stream: TextIO, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.stream = GuardedStream(stream)
        self._fd = _descriptor(stream)
        self._monotonic = monotonic
        self._writing = threading.Lock()
        self._settings: list[Any] | None = None
        self._is_entered = False
        self._is_left = False
        self._size = (0, 0)
        self._lines: list[str] = []
        self._drawn_at = self._painted_at = float("-inf")

    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        with contextlib.suppress(OSError, ValueError):
            size = os.get_terminal_size(self._fd)
            if size.columns and size.lines:
                return size.columns, size.lines
        return 80, 24

    def is_ours(self) -> bool:
        """Whether this process is in the terminal's foreground, or the terminal doesn't know."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except (OSError, ValueError):
            return True

    @property
    def is_entered(self) -> bool:
        """Whether the view is shown."""
        return self._is_entered

    def draw(self, lines: Sequence[str]) -> None:
        """Show *lines*, which fit the window."""
        now, size = self._monotonic(), self.size()
        with self._writing:
            if self._is_left:
                return
            is_stale = now - self._painted_at >= _REPAINT or now - self._drawn_at >= _STOPPED
            frame = ""
            if not self._is_entered:
                self._mute()
                frame = f"{_ENTER}{_SHOW_CURSOR}"
                self._size = (0, 0)
                self._is_entered = True
            frame += _BEGIN
            if size != self._size:
                frame += f"{_CLEAR}{_HOME}"
                self._size, self._lines, is_stale = size, [], True
            frame += self._changes(lines, all_of_them=is_stale)
            # The cursor waits in the last line, which is blank.
            frame += f"\x1b[{size[1]};1H{_CLEAR_LINE}{_END}"
            self._drawn_at, self._lines = now, list(lines)
            if is_stale:
                self._painted_at = now
                self._mute()
            self.stream.write(frame)

    def write(self, text: str) -> None:
        """Write *text* to the normal screen."""
        self.stream.write(text)

    def leave(self) -> None:
        """Restore the terminal for good."""
        ending = self.leaving()
        if ending:
            self.stream.write(ending)

    def leaving(self) -> str:
        """Restore the terminal's settings, and return what to write so that it shows the normal screen.

        For signal handlers, in which a frame of another thread may be half written.
        """
        self._is_left = True
        locked = self._writing.acquire(timeout=_PATIENCE)
        try:
            ending = f"{_WRAP}{_LEAVE}{_SHOW_CURSOR}" if self._is_entered else ""
            self._is_entered = False
            self._unmute()
            return ending
        finally:
            if locked:
                self._writing.release()

    def resume(self) -> None:
        """Allow drawing after ``leave``."""
        self._is_left = False

    def _changes(self, lines: Sequence[str], *, all_of_them: bool) -> str:
        pieces = []
        for place, line in enumerate(lines):
            if all_of_them or place >= len(self._lines) or line != self._lines[place]:
                # Clearing after a full line would erase its last character.
                pieces.append(f"\x1b[{place + 1};1H\x1b[0m{_CLEAR_LINE}{line}\x1b[0m")
        if len(lines) < len(self._lines) or all_of_them:
            pieces.append(f"\x1b[{len(lines) + 1};1H{_CLEAR_REST}")
        return "".join(pieces)

    def _mute(self) -> None:
        """Don't echo keys, which would scroll and overwrite the view. Signals still work."""
        with contextlib.suppress(termios.error, OSError, ValueError):
            settings = termios.tcgetattr(self._fd)
            if settings[3] & termios.ECHO:
                self._settings = [*settings]
                settings[3] &= ~(termios.ECHO | termios.ECHONL)
                termios.tcsetattr(self._fd, termios.TCSANOW, settings)

    def _unmute(self) -> None:
        if self._settings is None or not self.is_ours():
            return
        with contextlib.suppress(termios.error, OSError, ValueError):
            # Keys that were pressed meanwhile are not for the shell.
            termios.tcflush(self._fd, termios.TCIFLUSH)
            termios.tcsetattr(self._fd, termios.TCSANOW, self._settings)


@contextlib.contextmanager
def restored_on_signals(terminal: Terminal) -> Iterator[None]:
    """Restore the terminal before Ctrl-Z or Ctrl-\\ take effect. Use it in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def restore(number: int, frame: object) -> None:
        terminal.leave()
        # Our handler must not see the signal again, and the default one stops or ends the process.
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        # Continued after a stop.
        signal.signal(number, restore)
        terminal.resume()

    before = {
        number: signal.signal(number, restore)
        for number in (signal.SIGTSTP, signal.SIGQUIT)
        if signal.getsignal(number) is signal.SIG_DFL
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Diverted(io.TextIOBase):
    """Stands for ``sys.stdout`` or ``sys.stderr`` during the view: each line goes to *put*."""

    def __init__(self, stream: TextIO, put: Callable[[str], None]) -> None:
        super().__init__()
        self._stream = stream
        self._put = put
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self._stream, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in filter(str.strip, lines):
            self._put(line)
        return len(text)


@contextlib.contextmanager
def diverted(put: Callable[[str], None]) -> Iterator[None]:
    """Pass the lines that other code prints to *put*, as they would be drawn over."""
    before = sys.stdout, sys.stderr
    if sys.stdout is not None and sys.stdout.isatty():
        sys.stdout = cast("TextIO", Diverted(sys.stdout, put))
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr = cast("TextIO", Diverted(sys.stderr, put))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _descriptor(stream: TextIO) -> int:
    """The file descriptor of *stream*; -1 if it has none."""
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return -1
